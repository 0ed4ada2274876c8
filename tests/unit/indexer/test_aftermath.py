import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from likeness.common.v1 import error_pb2
from structlog.testing import capture_logs

from chassis.errors import LikenessError
from indexer import aftermath
from indexer.aftermath import look_again, look_until
from indexer.collections import Collection
from indexer.commit import Committer
from indexer.reads import Item
from indexer.serving import loader
from indexer.serving.collection import ServingCollection
from indexer.surroundings import Surroundings
from indexer.writes import StoredRecord
from tests.unit.indexer.held_store import HeldStore
from tests.unit.indexer.serving.tables import collection, empty, items, vectors
from tests.unit.indexer.serving.test_following import Shared, filled

COLLECTION = collection()


def loaded(store: Shared) -> ServingCollection:
    serving = ServingCollection(COLLECTION, empty(), 0)
    serving.apply([record.written() for record in store.records.values()], [], store.stamp)
    return serving


async def test_late_writes_of_the_writer_before_are_read_back_and_nothing_else() -> None:
    store = filled()
    serving = loaded(store)
    old = serving.watermark - 10
    for item_id, vector in zip(("late", "id3"), vectors(2, seed=1), strict=True):
        store.records[item_id] = StoredRecord(item_id, vector, {"name": "late"}, old)
    del store.records["id5"]
    reviewed: list[str] = []

    async def review(of: Collection, ids: Sequence[str]) -> None:
        assert of is COLLECTION
        reviewed.extend(ids)

    assert await look_again(store, old - 1, serving, review) == 3
    assert sorted(reviewed) == ["id3", "id5", "late"]
    assert await look_again(filled(), old - 1, loaded(filled()), review) == 0


async def test_when_a_review_fails_nothing_is_read_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Shared):
        async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
            self.asked += ids
            if len(self.asked) > 1:
                await asyncio.Event().wait()
            return [self.records[item_id] for item_id in ids]

    async def review(of: Collection, ids: Sequence[str]) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(loader, "_PAGE", 1)
    serving = loaded(filled(0))
    store = Slow()
    store.records = filled(3).records
    before = asyncio.all_tasks()
    with pytest.raises(ZeroDivisionError):
        await look_again(store, 0, serving, review)
    assert asyncio.all_tasks() == before


class Several(Shared):
    """Chroma with collections that have the same items; of some it fails to list the ids.

    Attributes:
        faults: what it fails with, one after another, by key; the last one for ever.
        looks: keys of those whose ids were listed.
        connected: whether Chroma answers at all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults: dict[str, list[Exception | None]] = {}
        self.looks: list[str] = []
        self.connected = True

    async def ids(self, collection: Collection) -> list[str]:
        self.looks.append(collection.key)
        faults = self.faults.get(collection.key, [None])
        if (fault := faults.pop(0) if len(faults) > 1 else faults[0]) is not None:
            raise fault
        return await super().ids(collection)

    def serving(self, *keys: str) -> list[ServingCollection]:
        return [ServingCollection(replace(COLLECTION, key=key, uid=key), empty(), 0) for key in keys]


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Several:
    monkeypatch.setattr(aftermath, "_LOOK_S", 0.001)
    monkeypatch.setattr(aftermath, "_TRIES", 3)
    store = Several()
    store.records = filled(1).records
    return store


AWAY = LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, "away")


async def test_a_collection_that_cannot_be_compared_holds_up_no_other(several: Several) -> None:
    fault = ZeroDivisionError("a fault")
    several.faults["one"] = [fault, AWAY, None]
    serving, reviewed = several.serving("one", "two"), list[str]()

    async def review(of: Collection, ids: Sequence[str]) -> None:
        reviewed.append(of.key)

    with capture_logs() as logs:
        assert await look_until(time.monotonic(), several, {}, lambda: serving, review)
    assert several.looks == ["one", "two", "one", "one"], "each until it had its last look"
    assert reviewed == ["two", "one"]
    failures = [line for line in logs if "cannot look" in line["event"]]
    assert [line["log_level"] for line in failures] == ["error", "warning"]
    assert failures[0]["exc_info"] is fault


async def test_a_collection_that_chroma_cannot_read_is_given_up_and_one_that_is_away_is_not(several: Several) -> None:
    """Else the writers would remember all that they write, for ever."""
    several.faults["bad"] = [AWAY]
    serving = several.serving("bad", "good")

    async def review(of: Collection, ids: Sequence[str]) -> None:
        several.connected = len(several.looks) > 20

    several.faults["good"] = [*[AWAY] * 10, None]
    several.connected = False
    with capture_logs() as logs:
        assert not await look_until(time.monotonic(), several, {}, lambda: serving, review)
    assert several.looks.count("good") == 11, "nothing counts before Chroma is back"
    assert [line["uid"] for line in logs if "not looked for any more" in line["event"]] == ["bad"]


async def test_what_is_read_back_is_as_chroma_has_it_and_readers_are_told() -> None:
    store, shared, told = HeldStore(), filled(3), list[tuple[int, list[str]]]()
    store.gate.set()
    serving = loaded(shared)
    late = shared.records["id1"]
    committer = Committer(
        COLLECTION,
        store,
        Surroundings(mirror_of=lambda _: serving, done=lambda _, stamp, again: told.append((stamp, sorted(again)))),
    )
    store.items = {"id1": Item("id1", late.vector, late.metadata)}
    store.stamps = {"id1": late.stamp}
    await committer.review(["id1", "id2"])
    assert set(items(serving.view)) == {"id0", "id1"}
    assert [again for _, again in told] == [["id1", "id2"]]
