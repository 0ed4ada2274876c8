import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.changes import Change, Changes, Move
from indexer.collections import Metric
from indexer.fenced_store import FencedStore
from indexer.heartbeat import Holder
from indexer.lease import Lease
from indexer.reads import Item
from indexer.store import ChromaStore
from indexer.writes import StoredRecord
from tests.proxy import Proxy
from tests.unit.indexer.conftest import Connected
from tests.unit.indexer.passing_time import PassingTime
from tests.unit.indexer.serving.tables import DIMENSION, vectors

READS = {
    "collections",
    "connect",
    "connected",
    "count",
    "disconnect",
    "existing",
    "fetch",
    "find",
    "ids",
    "idle",
    "matching",
    "metadata",
    "moved",
    "newer",
    "newest",
    "quiet",
    "read",
    "search",
}
CHANGES = {"create", "delete", "describe", "drop", "relabel", "set_apart", "write"}


def test_whatever_changes_chroma_is_fenced() -> None:
    public = {name for name, _ in inspect.getmembers(ChromaStore) if not name.startswith("_")}
    assert public - READS == CHANGES, "a new method of ChromaStore: name it above, and fence it if it changes Chroma"
    assert FencedStore.__dict__.keys() >= CHANGES


def test_who_waits_on_a_connection_that_is_cut_is_told_when_chroma_counts_as_away(
    connected: Connected, chroma_url: str
) -> None:
    store = ChromaStore({}, 60)

    async def run(proxy: Proxy) -> float:
        await store.connect(proxy.url)
        await store.collections()
        proxy.cut(silent=True)
        waiting = [asyncio.create_task(store.collections()) for _ in range(3)]
        _, pending = await asyncio.wait(waiting, timeout=0.5)
        assert len(pending) == 3
        began = time.monotonic()
        store.disconnect()
        for failed in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(failed, LikenessError)
            assert failed.reason == error_pb2.REASON_STORE_UNAVAILABLE
        return time.monotonic() - began

    port = urlsplit(chroma_url).port
    assert port is not None
    with Proxy(port) as proxy:
        assert connected.loop.run(run(proxy)) < 10


def test_nothing_is_changed_without_permission_nor_acknowledged_after_it_is_lost(
    connected: Connected, chroma_url: str
) -> None:
    of = connected.collection("fenced", Metric.COSINE, DIMENSION)
    left = connected.collection("left", Metric.COSINE, DIMENSION)
    refused = LikenessError(error_pb2.REASON_READ_ONLY, "another writes")
    permits: list[bool] = []

    async def permit() -> None:
        if not permits.pop(0):
            raise refused

    store = FencedStore({}, 60, permit)
    connected.loop.run(store.connect(chroma_url))
    item = Item("id", vectors(1)[0], {"name": "one"})
    label = [Change("id", {"name": "other"}, {"name": "one"})]
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.create("another", Metric.COSINE, {"owner": "test"}),
        lambda: store.describe(of, {"owner": "another"}),
        lambda: store.write(of, Changes([item], [], []), 1),
        lambda: store.relabel(of, label, 2),
        lambda: store.delete(of, ["id"]),
        lambda: store.set_apart("left", left.key),
        lambda: store.drop("fenced"),
    ]

    async def awaited(call: Callable[[], Awaitable[object]]) -> object:
        return await call()

    def there() -> object:
        stored = {each.name: each.metadata for each in connected.loop.run(store.collections())}
        ids = connected.loop.run(store.read(of, ["id"])) if "fenced" in stored else []
        return stored, [(record.id, record.metadata, record.stamp) for record in ids]

    for call in calls:
        before = there()
        permits[:] = [False]
        with pytest.raises(LikenessError, match="another writes"):
            connected.loop.run(awaited(call))
        assert there() == before
        permits[:] = [True, False]
        with pytest.raises(LikenessError, match="another writes"):
            connected.loop.run(awaited(call))
        assert there() != before, "it was done, and may not be acknowledged"
    documents = store.make_document("Likeness.Writer.1", {"writer": "{}"})
    assert connected.loop.run(documents) is True
    assert connected.loop.run(store.make_document("Likeness.Writer.1", {"writer": "other"})) is False
    (stored,) = [each for each in connected.loop.run(store.collections()) if each.name == "Likeness.Writer.1"]
    connected.loop.run(store.rewrite_document(stored.name, stored.key, {"writer": "new"}))
    (stored,) = [each for each in connected.loop.run(store.collections()) if each.name == "Likeness.Writer.1"]
    assert stored.metadata == {"writer": "new"}
    for _ in range(2):
        connected.loop.run(store.drop_document(stored.name))
    with pytest.raises(LikenessError, match="COLLECTION_NOT_FOUND"):
        connected.loop.run(store.rewrite_document(stored.name, stored.key, {"writer": "late"}))


def test_a_writer_that_stands_still_between_two_requests_and_is_followed_sends_no_other(
    connected: Connected, chroma_url: str
) -> None:
    of = connected.collection("followed", Metric.COSINE, DIMENSION)
    items = [Item(f"id{i:02}", vector, {}) for i, vector in enumerate(vectors(20))]
    moved = [Move(Item(item.id, vector, {}), {}) for item, vector in zip(items, vectors(20, seed=1), strict=True)]
    clock = PassingTime()
    asked: list[bool] = []

    async def permit() -> None:
        asked.append(True)
        if len(asked) == 2:  # after the first of three parts
            clock.stands_still_for(100)
            assert await successor.acquire(Holder("second", "place", "host", 2, "there:1", 15.0)) is False
        await lease.permit()

    async def lost(_: str) -> None:
        """Nobody needs to know."""

    store = FencedStore({}, 60, permit)
    lease = Lease(store, dict, lost, clock=clock.clock, sleep=clock.sleep)
    successor = Lease(store, dict, lost, clock=clock.clock, sleep=clock.sleep)

    async def written() -> list[StoredRecord]:
        await connected.store.write(of, Changes(items, [], []), 1)
        await store.connect(chroma_url)
        await lease.acquire(Holder("first", "place", "host", 1, "here:1", 15.0))
        with pytest.raises(LikenessError, match="process 2 on host"):
            await store.write(of, Changes([], moved, []), 2)
        await successor.release()
        await store.drop_document("Likeness.Writer.2")
        return await connected.store.read(of, [item.id for item in items])

    stamps = {record.id: record.stamp for record in connected.loop.run(written())}
    assert stamps == {item.id: 2 if i < 8 else 1 for i, item in enumerate(items)}
    assert asked == [True, True]
