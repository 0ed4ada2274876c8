import asyncio
from collections.abc import Sequence

import pytest

from indexer.aftermath import look_again
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

    assert await look_again(store, {COLLECTION.uid: old - 1}, [serving], review) == 3
    assert sorted(reviewed) == ["id3", "id5", "late"]
    assert await look_again(filled(), {COLLECTION.uid: old - 1}, [loaded(filled())], review) == 0


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
        await look_again(store, {}, [serving], review)
    assert asyncio.all_tasks() == before


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
