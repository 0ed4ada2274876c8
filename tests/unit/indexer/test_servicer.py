"""Making and deleting collections, when the caller goes away in between or the store knows better."""

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest
from likeness.common.v1 import error_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2 as pb
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from chassis.errors import LikenessError
from indexer import leftovers
from indexer.catalog import Collections
from indexer.chroma_reader import ChromaReader
from indexer.collection_servicer import CollectionRpcs
from indexer.collections import Metric, StoredCollection
from indexer.deleted import STORE_NAME
from indexer.metrics import Metrics
from indexer.registry import Registry
from indexer.servicing import Context, Sole
from indexer.settings import IndexerSettings
from indexer.status import Mode
from indexer.store import ChromaStore
from indexer.turnstile import Turnstile
from indexer.writers import Writers
from tests.unit.indexer.held_store import HeldStore
from tests.unit.indexer.shelf import Shelf

CONTEXT = cast(Context, None)
CREATE = pb.CreateCollectionRequest(
    name="col",
    fingerprint=types_pb2.ModelFingerprint(model="m", digest="a1" * 32, dimension=4),
    metric=types_pb2.METRIC_COSINE,
)
DELETE = pb.DeleteCollectionRequest(name="col")


class Indexer:
    """The servicer over a shelf."""

    def __init__(self, folder: Path) -> None:
        self.shelf = Shelf()
        self.collections = Collections(self.shelf)
        store = ChromaStore({}, 1)
        reader = ChromaReader(store, Turnstile(1, 1, "A_SETTING"))
        settings, metrics = IndexerSettings(), Metrics(CollectorRegistry())
        self.writers = Writers(HeldStore(), 64, 1024)
        upgrade = self.collections.upgrade
        self.registry = Registry(settings, store, reader, metrics, folder, upgrade)
        self.servicer = CollectionRpcs(self.collections, self.writers, self.registry, Sole())

    @property
    def served(self) -> list[str]:
        return [collection.name for collection in self.registry.status().collections]

    async def leave(self, call: Any) -> None:
        """Goes away while the store is at it; then lets the store answer."""
        self.shelf.entered.clear()
        self.shelf.gate.clear()
        task = asyncio.create_task(call)
        await self.shelf.entered.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        self.shelf.gate.set()
        for _ in range(20):
            await asyncio.sleep(0)

    async def gone(self) -> None:
        """Waits until what was deleted has left the store."""
        while any("likeness.dropped" in stored.metadata for stored in self.shelf.kept.values()):
            self.shelf.dropped.clear()
            await self.shelf.dropped.wait()

    async def stop(self) -> None:
        await self.collections.stop()
        await self.writers.drain()
        await self.registry.stop()


@pytest.fixture
async def indexer(tmp_path: Path) -> Any:
    indexer = Indexer(tmp_path)
    yield indexer
    await indexer.stop()


async def test_what_is_made_and_deleted_is_served_and_no_longer(indexer: Indexer) -> None:
    await indexer.servicer.CreateCollection(CREATE, CONTEXT)
    assert indexer.served == ["col"]
    await indexer.servicer.DeleteCollection(DELETE, CONTEXT)
    assert indexer.served == []
    assert indexer.writers.waiting == {}


async def test_deleted_collections_are_told_behind_the_last_of_those_that_are_there(
    indexer: Indexer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (await indexer.servicer.CreateCollection(CREATE, CONTEXT)).collection
    await indexer.servicer.DeleteCollection(DELETE, CONTEXT)
    for name in ("newer", "newest"):
        stored = {"likeness.schema": 99, "likeness.name": name, "likeness.uid": f"uid-{name}"}
        stored["likeness.earlier_uids"] = json.dumps([f"before-{name}"])
        await indexer.shelf.create(name, Metric.L2, stored)
    monkeypatch.setattr(indexer.registry, "count_newer", nobody_counts)
    first = await indexer.servicer.ListCollections(pb.ListCollectionsRequest(page_size=1), CONTEXT)
    token = first.next_page_token
    last = await indexer.servicer.ListCollections(pb.ListCollectionsRequest(page_size=1, page_token=token), CONTEXT)
    assert (list(first.deleted_uids), list(last.deleted_uids)) == ([], [made.uid])
    assert [list(each.earlier_uids) for each in (*first.collections, *last.collections)] == [
        ["before-newer"],
        ["before-newest"],
    ]


async def nobody_counts(_: object) -> int:
    return 0


async def test_uids_that_a_new_collection_names_are_kept_and_bad_ones_refused(indexer: Indexer) -> None:
    request = pb.CreateCollectionRequest(name="copy", fingerprint=CREATE.fingerprint, earlier_uids=["a1", "b-2"])
    made = (await indexer.servicer.CreateCollection(request, CONTEXT)).collection
    assert list(made.earlier_uids) == ["a1", "b-2"]
    request.earlier_uids[:] = ["fine", "../no", ""]
    with pytest.raises(LikenessError) as caught:
        await indexer.servicer.CreateCollection(request, CONTEXT)
    assert [violation.field for violation in caught.value.violations] == ["earlier_uids[1]", "earlier_uids[2]"]
    request.earlier_uids[:] = ["a"] * 1001
    with pytest.raises(LikenessError) as caught:
        await indexer.servicer.CreateCollection(request, CONTEXT)
    assert caught.value.reason == error_pb2.REASON_BATCH_TOO_LARGE


async def test_a_collection_whose_maker_went_away_is_served(indexer: Indexer) -> None:
    await indexer.leave(indexer.servicer.CreateCollection(CREATE, CONTEXT))
    assert indexer.shelf.kept.keys() == {"col"}
    assert indexer.served == ["col"]


async def test_a_collection_whose_making_got_no_answer_is_served(indexer: Indexer) -> None:
    for lost, missed in ((1, 0), (0, 2), (1, 1)):
        indexer.shelf.lost, indexer.shelf.missed = lost, missed
        made = (await indexer.servicer.CreateCollection(CREATE, CONTEXT)).collection
        (served,) = indexer.registry.status().collections
        (stored,) = (each for each in indexer.shelf.kept.values() if each.name != STORE_NAME)
        assert (served.uid, served.key, served.mode) == (made.uid, stored.key, Mode.MEMORY)
        await indexer.servicer.DeleteCollection(DELETE, CONTEXT)
        await indexer.gone()


async def test_a_name_that_somebody_else_has_in_the_store_is_refused(indexer: Indexer) -> None:
    indexer.shelf.kept["col"] = StoredCollection("col", "foreign", {"owner": "somebody"})
    with pytest.raises(LikenessError, match="not one of Likeness's"):
        await indexer.servicer.CreateCollection(CREATE, CONTEXT)
    assert indexer.served == []


async def test_a_collection_whose_deleter_went_away_is_no_longer_served(indexer: Indexer) -> None:
    await indexer.servicer.CreateCollection(CREATE, CONTEXT)
    await indexer.leave(indexer.servicer.DeleteCollection(DELETE, CONTEXT))
    assert indexer.shelf.kept.keys() == {STORE_NAME}
    assert indexer.served == []


async def test_a_failure_that_nobody_waits_for_is_logged(indexer: Indexer) -> None:
    indexer.shelf.failure = LikenessError(error_pb2.REASON_STORE_FULL, "no room")
    with capture_logs() as logs:
        await indexer.leave(indexer.servicer.CreateCollection(CREATE, CONTEXT))
    assert [(entry["log_level"], entry["exc_info"]) for entry in logs] == [("error", indexer.shelf.failure)]


async def test_a_deletion_whose_answer_is_lost_is_carried_through(indexer: Indexer) -> None:
    for lost, missed in ((1, 0), (0, 2)):
        await indexer.servicer.CreateCollection(CREATE, CONTEXT)
        indexer.shelf.lost, indexer.shelf.missed = lost, missed
        await indexer.servicer.DeleteCollection(DELETE, CONTEXT)
        assert indexer.served == []
    await indexer.gone()
    assert indexer.shelf.kept.keys() == {STORE_NAME}


async def test_a_deletion_that_cannot_be_sent_fails_and_the_collection_goes_on(indexer: Indexer) -> None:
    await indexer.servicer.CreateCollection(CREATE, CONTEXT)
    indexer.shelf.away = True
    with pytest.raises(LikenessError, match="no answer"):
        await indexer.servicer.DeleteCollection(DELETE, CONTEXT)
    assert indexer.served == ["col"]
    indexer.shelf.away = False
    await indexer.servicer.DeleteCollection(DELETE, CONTEXT)
    assert indexer.served == []


async def test_a_collection_that_somebody_else_deleted_is_no_longer_served(indexer: Indexer) -> None:
    await indexer.servicer.CreateCollection(CREATE, CONTEXT)
    indexer.shelf.kept.clear()
    with pytest.raises(LikenessError) as caught:
        await indexer.servicer.DeleteCollection(DELETE, CONTEXT)
    assert caught.value.reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert indexer.served == []


async def test_who_uses_a_collection_is_waited_for_and_nobody_new_is_let_in(indexer: Indexer) -> None:
    await indexer.servicer.CreateCollection(CREATE, CONTEXT)
    async with indexer.collections.use("col"):
        deletion = asyncio.create_task(indexer.servicer.DeleteCollection(DELETE, CONTEXT))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not deletion.done()
        with pytest.raises(LikenessError) as caught:
            async with indexer.collections.use("col"):
                pass
        assert caught.value.reason == error_pb2.REASON_COLLECTION_NOT_FOUND
        with pytest.raises(LikenessError) as caught:
            await indexer.servicer.DeleteCollection(DELETE, CONTEXT)
        assert caught.value.reason == error_pb2.REASON_COLLECTION_BUSY
        assert indexer.served == ["col"]
    await deletion
    assert indexer.served == []


async def test_what_was_deleted_is_dropped_once_the_store_is_back(
    indexer: Indexer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "_TRY_AGAIN_S", 0.01)
    await indexer.servicer.CreateCollection(CREATE, CONTEXT)
    drop, refused = indexer.shelf.drop, asyncio.Event()

    async def away(name: str, key: str, /) -> None:
        refused.set()
        raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, "away")

    indexer.shelf.drop = away  # type: ignore[method-assign]
    await indexer.servicer.DeleteCollection(DELETE, CONTEXT)
    await refused.wait()
    assert indexer.served == []
    assert indexer.shelf.kept.keys() == {"col", STORE_NAME}
    indexer.shelf.drop = drop  # type: ignore[method-assign]
    await indexer.gone()
    assert indexer.shelf.kept.keys() == {STORE_NAME}


async def test_a_collection_is_made_anew_while_the_deleted_one_is_not_gone_yet(indexer: Indexer) -> None:
    await indexer.servicer.CreateCollection(CREATE, CONTEXT)
    dropping = asyncio.Event()
    drop = indexer.shelf.drop

    async def slowly(name: str, key: str, /) -> None:
        await dropping.wait()
        await drop(name, key)

    indexer.shelf.drop = slowly  # type: ignore[method-assign]
    await indexer.servicer.DeleteCollection(DELETE, CONTEXT)
    made = (await indexer.servicer.CreateCollection(CREATE, CONTEXT)).collection
    assert (made.name, indexer.served) == ("col", ["col"])
    dropping.set()
    await indexer.gone()
    (left,) = indexer.shelf.kept.keys() - {STORE_NAME}
    assert left.startswith("Likeness.")
    async with Collections(indexer.shelf).use("col") as collection:
        assert collection.uid == made.uid


async def test_a_deletion_that_comes_late_spares_the_collection_made_anew(indexer: Indexer) -> None:
    await indexer.servicer.CreateCollection(CREATE, CONTEXT)
    late, begun = asyncio.Event(), asyncio.Event()

    async def delete_late() -> None:
        async with indexer.collections.leaving("col") as old, indexer.writers.deleting(old):
            begun.set()
            await late.wait()
            await indexer.collections.delete(old)

    deletion = asyncio.create_task(delete_late())
    await begun.wait()
    (old,) = indexer.registry.status().collections
    indexer.shelf.kept.clear()
    indexer.registry.deleted(old.uid)
    await indexer.servicer.CreateCollection(CREATE, CONTEXT)
    late.set()
    with pytest.raises(LikenessError) as caught:
        await deletion
    assert caught.value.reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert indexer.shelf.kept["col"].key == "key2"
    assert indexer.served == ["col"]
