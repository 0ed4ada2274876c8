"""What the loader and the writer ask of Chroma."""

from typing import Any
from urllib.parse import urlsplit

import chromadb
import numpy as np
import pytest
from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.errors import InternalError
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.changes import Change, Changes
from indexer.chroma import ChromaConnection
from indexer.collections import Metric
from indexer.filters import Comparison, Kind, Op
from indexer.listed import sort_out
from indexer.reads import Item
from indexer.stamps import now
from indexer.store import ChromaStore
from tests.unit.indexer.conftest import Connected


def items(*ids: str, **metadata: int) -> Changes:
    return Changes(added=[Item(i, np.ones(2, np.float32), dict(metadata)) for i in ids])


def test_what_is_newer_than_a_stamp_is_found(connected: Connected) -> None:
    store, run = connected.store, connected.loop.run
    collection = connected.collection("stamped", Metric.L2, 2)
    assert run(store.newest(collection, 0)) is None
    for stamp in (10, 20, 30):
        run(store.write(collection, items(f"a{stamp}", f"b{stamp}", n=stamp), stamp))
    assert set(run(store.ids(collection))) == {"a10", "b10", "a20", "b20", "a30", "b30"}
    assert set(run(store.newer(collection, 10))) == {"a20", "b20", "a30", "b30"}
    assert run(store.newer(collection, 30)) == []
    run(store.relabel(collection, [Change("a10", {"m": 1}, {"n": 10})], 40))
    assert run(store.newer(collection, 30)) == ["a10"]
    (record,) = run(store.read(collection, ["a10", "none"]))
    assert (record.id, record.stamp, record.metadata) == ("a10", 40, {"m": 1})


@pytest.mark.parametrize("greatest", [1000, 1001, 1_700_000_000_000_000, 2**53 - 1])
def test_the_greatest_stamp_is_found_where_the_clock_was_set_back(connected: Connected, greatest: int) -> None:
    store, run = connected.store, connected.loop.run
    collection = connected.collection(f"set-back-{greatest}", Metric.L2, 2)
    for n, stamp in enumerate(sorted({500, 1000, 1001, greatest - 1, greatest})):
        if stamp <= greatest:
            run(store.write(collection, items(f"i{n}"), stamp))
    assert run(store.newest(collection, 900)) == greatest
    assert run(store.newest(collection, greatest)) == greatest
    assert run(store.newest(collection, greatest + 1)) is None


def test_items_of_the_first_layout_are_read_and_replaced(connected: Connected, chroma_url: str) -> None:
    store, run = connected.store, connected.loop.run
    collection = connected.collection("unstamped", Metric.L2, 2)

    address = urlsplit(chroma_url)
    foreign = chromadb.HttpClient(address.hostname or "", address.port or 0).get_collection("unstamped")
    metadatas: list[Any] = [{"n": 1, "s": "x", "_keys": ["#n", "s"]}, None]
    foreign.add(ids=["plain", "bare"], embeddings=np.ones((2, 2), np.float32), metadatas=metadatas)

    before = {record.id: record for record in run(store.read(collection, ["plain", "bare"]))}
    assert {i: (record.stamp, record.metadata) for i, record in before.items()} == {
        "plain": (0, {"n": 1, "s": "x"}),
        "bare": (0, {}),
    }
    assert run(store.newer(collection, 0)) == []
    connected.upsert(collection, Item("plain", np.ones(2, np.float32), {"s": "y"}))
    (after,) = run(store.read(collection, ["plain"]))
    assert after.metadata == {"s": "y"}
    assert run(store.newer(collection, 0)) == ["plain"]
    exists = Comparison("n", Op.EXISTS, Kind.NONE, ())
    assert run(store.matching(collection, exists)) == []


def test_more_ids_than_a_statement_takes_are_read_in_parts(connected: Connected) -> None:
    store, run = connected.store, connected.loop.run
    collection = connected.collection("many-ids", Metric.L2, 2)
    run(store.write(collection, items("a", "b", n=1), 1))
    ids = ["a", "b", *(f"none{n}" for n in range(40_000))]
    assert run(store.existing(collection, ids)) == {"a", "b"}
    assert run(store.metadata(collection, ids[:5000])) == {"a": {"n": 1}, "b": {"n": 1}}


def test_what_is_known_of_a_collection_is_forgotten_once_it_is_gone(connected: Connected, chroma_url: str) -> None:
    store, run = connected.store, connected.loop.run
    known = store._chroma._handles
    dropped, vanished = (connected.collection(name, Metric.L2, 2) for name in ("dropped", "vanished"))
    for collection in (dropped, vanished):
        assert run(store.count(collection)) == 0
        assert collection.name in known
    run(store.drop("dropped"))
    assert "dropped" not in known

    address = urlsplit(chroma_url)
    chromadb.HttpClient(address.hostname or "", address.port or 0).delete_collection("vanished")
    with pytest.raises(LikenessError) as caught:
        run(store.count(vanished))
    assert caught.value.reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert "vanished" not in known


def test_what_is_dropped_late_or_again_is_not_what_was_made_under_its_name_meanwhile(connected: Connected) -> None:
    store, run = connected.store, connected.loop.run
    before = connected.collection("successor", Metric.L2, 2)
    run(store.drop("successor", before.key))
    after = connected.collection("successor", Metric.L2, 2)
    connected.upsert(after, Item("a", np.ones(2, np.float32)))

    with pytest.raises(LikenessError) as caught:
        run(store.drop("successor", before.key))

    assert caught.value.reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert run(store.count(after)) == 1


def test_dropping_goes_on_where_an_attempt_has_failed(connected: Connected) -> None:
    store, run = connected.store, connected.loop.run
    collection = connected.collection("half", Metric.L2, 2)
    connected.upsert(collection, Item("a", np.ones(2, np.float32)))
    apart = f"Likeness.Dropped.{collection.key}"
    assert run(store.set_apart("half", collection.key)) == apart  # and then its process died
    assert [sort_out([each]).dropped for each in run(store.collections()) if each.key == collection.key] == [
        [run(store.find(apart))]
    ]

    run(store.drop("half", collection.key))

    assert run(store.find(apart)) is None


def test_a_collection_made_anew_under_its_name_is_another(connected: Connected) -> None:
    store, run = connected.store, connected.loop.run
    before = connected.collection("anew", Metric.L2, 2)
    connected.upsert(before, Item("a", np.ones(2, np.float32)))
    run(store.drop("anew"))
    after = connected.collection("anew", Metric.L2, 2)
    assert run(store.count(after)) == 0
    with pytest.raises(LikenessError) as caught:
        run(store.count(before))
    assert caught.value.reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert run(store.count(after)) == 0


async def test_a_store_that_is_not_connected_says_so() -> None:
    store = ChromaStore({}, 1.0)
    assert not store.connected
    with pytest.raises(LikenessError) as caught:
        await store.find("any")
    assert caught.value.reason == error_pb2.REASON_STORE_UNAVAILABLE


def test_items_with_the_largest_metadata_are_written_in_requests_that_chroma_takes(connected: Connected) -> None:
    collection = connected.collection("largest-metadata", Metric.COSINE, 4)
    worst = "\x01" * 60_000  # six bytes each, as JSON
    items = [Item(f"i{n:03}", np.full(4, n + 1, np.float32), {"note": worst, "n": n}) for n in range(200)]
    stamp = now()
    connected.loop.run(connected.store.write(collection, Changes(added=items), stamp))
    labels = [Change(item.id, {**item.metadata, "n": -1}, item.metadata) for item in items]
    connected.loop.run(connected.store.relabel(collection, labels, stamp + 1))
    read = connected.loop.run(connected.store.read(collection, [item.id for item in items]))
    assert {record.id for record in read} == {item.id for item in items}
    assert all(record.metadata == {"note": worst, "n": -1} for record in read)


async def test_an_index_that_chroma_could_not_write_down_is_a_full_disk_that_needs_a_rebuild() -> None:
    async def fail() -> None:
        async with ChromaConnection({}, 5.0)._translated("deleting items", "pictures"):
            raise InternalError("Error in compaction: Failed to apply logs to the hnsw segment writer")

    with pytest.raises(LikenessError, match=r"'pictures' down.*then rebuild the collection") as caught:
        await fail()
    assert caught.value.reason == error_pb2.REASON_STORE_FULL
    assert caught.value.retry_after_s is None


class Overtaken:
    """Chroma between two steps of a read: it has found the items, and now looks for the vector of each.

    Those that are deleted just then are deleted for real; what it says of them is what Chroma 1.5.9 says.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *deletions: list[str]) -> None:
        self.deletions = list(deletions)
        self.reads = 0
        get = AsyncCollection.get

        async def overtaken(handle: AsyncCollection, *args: Any, **asked: Any) -> Any:
            if "embeddings" in asked["include"]:
                self.reads += 1
                if self.deletions:
                    if ids := self.deletions.pop(0):
                        await handle.delete(ids=ids)
                    raise InternalError("Error executing plan: Internal error: Error finding id")
            return await get(handle, *args, **asked)

        monkeypatch.setattr(AsyncCollection, "get", overtaken)


def test_items_that_are_deleted_while_a_page_is_read_do_not_keep_the_others_from_being_read(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run = connected.store, connected.loop.run
    collection = connected.collection("overtaken", Metric.L2, 2)
    run(store.write(collection, items("a", "b", "c", "d"), 1))
    Overtaken(monkeypatch, ["b"], ["c"])
    assert {record.id for record in run(store.read(collection, ["a", "b", "c", "d"]))} == {"a", "d"}


def test_a_page_of_which_nothing_is_left_is_empty(connected: Connected, monkeypatch: pytest.MonkeyPatch) -> None:
    store, run = connected.store, connected.loop.run
    collection = connected.collection("overtaken-whole", Metric.L2, 2)
    run(store.write(collection, items("a", "b"), 1))
    Overtaken(monkeypatch, ["a", "b"])
    assert run(store.read(collection, ["a", "b"])) == []


def test_what_chroma_cannot_read_with_nothing_deleted_fails_after_a_few_attempts(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run = connected.store, connected.loop.run
    collection = connected.collection("unreadable", Metric.L2, 2)
    run(store.write(collection, items("a", "b"), 1))
    asked = Overtaken(monkeypatch, *([] for _ in range(100)))
    with pytest.raises(LikenessError, match="Error finding id") as caught:
        run(store.read(collection, ["a", "b"]))
    assert caught.value.reason == error_pb2.REASON_STORE_UNAVAILABLE
    assert asked.reads == 3
