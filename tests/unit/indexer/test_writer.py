"""The writer of a collection, over a store that the test holds in its hand."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.collections import Collection, Fingerprint, Metric
from indexer.reads import Item
from indexer.writer import CollectionWriter, Writers

COLLECTION = Collection("c", "key", Fingerprint("m", "d" * 64, 2), Metric.COSINE, datetime.now(UTC))


class HeldStore:
    """Remembers what it is told to write, and answers when the gate is open."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.chunks: list[tuple[str, list[str]]] = []
        self.poison: set[str] = set()
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()

    async def upsert(self, collection: Collection, items: Sequence[Item]) -> None:
        await self._enter("upsert", [item.id for item in items])
        self.items.update({item.id: item for item in items})

    async def delete(self, collection: Collection, ids: Sequence[str]) -> set[str]:
        await self._enter("delete", list(ids))
        return {i for i in ids if self.items.pop(i, None) is not None}

    async def _enter(self, kind: str, ids: list[str]) -> None:
        assert len(ids) == len(set(ids)), "Chroma refuses repeated ids"
        self.chunks.append((kind, ids))
        self.entered.set()
        await self.gate.wait()
        if self.poison & set(ids):
            raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, "poison")


def items(*ids: str, value: float = 0) -> dict[str, Item | None]:
    return {i: Item(i, np.full(2, value, np.float32)) for i in ids}


def numbered(first: int, count: int) -> dict[str, Item | None]:
    return items(*(f"n{n}" for n in range(first, first + count)))


def writer_over(store: HeldStore, room: int = 1024) -> CollectionWriter:
    return CollectionWriter(COLLECTION, store, chunk=64, room=room)


async def waiting(*calls: asyncio.Task[int]) -> None:
    """Gives the calls their turn to enter the queue; the store is held, so nothing else can happen."""
    for _ in calls:
        await asyncio.sleep(0)


async def test_a_call_is_acknowledged_only_after_the_store_has_answered() -> None:
    store = HeldStore()
    writer = writer_over(store)
    call = asyncio.create_task(writer.write(items("a", "b")))
    await store.entered.wait()
    assert not call.done()
    store.gate.set()
    assert await call == 2
    await writer.drain()


async def test_calls_that_wait_become_chunks_of_at_most_64() -> None:
    store = HeldStore()
    writer = writer_over(store)
    first = asyncio.create_task(writer.write(items("first")))
    await store.entered.wait()
    calls = [asyncio.create_task(writer.write(numbered(n * 10, 10))) for n in range(13)]
    await waiting(*calls)
    store.gate.set()
    assert await asyncio.gather(first, *calls) == [1, *[10] * 13]
    assert [len(ids) for _, ids in store.chunks] == [1, 64, 64, 2]
    await writer.drain()


async def test_a_large_call_is_written_in_chunks_of_64() -> None:
    store = HeldStore()
    store.gate.set()
    writer = writer_over(store)
    assert await writer.write(numbered(0, 1000)) == 1000
    assert [len(ids) for _, ids in store.chunks] == [64] * 15 + [40]
    await writer.drain()


async def test_of_writes_to_one_id_the_last_counts_and_all_are_acknowledged() -> None:
    store = HeldStore()
    writer = writer_over(store)
    first = asyncio.create_task(writer.write(items("first")))
    await store.entered.wait()
    calls = [asyncio.create_task(writer.write(items("same", f"own{n}", value=n))) for n in range(5)]
    await waiting(*calls)
    store.gate.set()
    assert await asyncio.gather(first, *calls) == [1, *[2] * 5]
    assert [ids for _, ids in store.chunks[1:]] == [["same", "own0", "own1", "own2", "own3", "own4"]]
    vector = store.items["same"].vector
    assert vector is not None
    assert vector[0] == 4
    await writer.drain()


async def test_upserts_and_deletions_take_effect_in_their_order() -> None:
    store = HeldStore()
    writer = writer_over(store)
    first = asyncio.create_task(writer.write(items("a")))
    await store.entered.wait()
    deletions: dict[str, Item | None] = {"a": None, "b": None}
    last: dict[str, Item | None] = {"b": None}
    calls = [asyncio.create_task(writer.write(c)) for c in (deletions, items("a", "b"), deletions, last)]
    await waiting(*calls)
    store.gate.set()
    await first
    assert await asyncio.gather(*calls) == [1, 2, 2, 0]
    assert [kind for kind, _ in store.chunks] == ["upsert", "delete", "upsert", "delete"]
    assert store.items == {}
    await writer.drain()


async def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    store = HeldStore()
    writer = writer_over(store, room=100)
    first = asyncio.create_task(writer.write(items("first")))
    await store.entered.wait()
    call = asyncio.create_task(writer.write(numbered(0, 100)))
    await waiting(call)
    with pytest.raises(LikenessError) as caught:
        await writer.write(items("x"))
    assert caught.value.reason == error_pb2.REASON_OVERLOADED
    assert caught.value.retry_after_s is not None
    store.gate.set()
    await asyncio.gather(first, call)
    assert await writer.write(items("x")) == 1
    await writer.drain()


async def test_a_chunk_that_fails_fails_the_calls_that_had_items_in_it_and_no_others() -> None:
    store = HeldStore()
    store.poison = {"bad"}
    writer = writer_over(store)
    first = asyncio.create_task(writer.write(items("first")))
    await store.entered.wait()
    # Two calls share the chunk with the bad item; the third straddles it and the next; the fourth comes after.
    contents = [items("bad"), numbered(0, 10), numbered(10, 60), numbered(70, 5)]
    calls = [asyncio.create_task(writer.write(c)) for c in contents]
    await waiting(*calls)
    store.gate.set()
    outcomes = await asyncio.gather(first, *calls, return_exceptions=True)
    assert outcomes[0] == 1
    assert [type(o) for o in outcomes[1:4]] == [LikenessError] * 3
    assert outcomes[4] == 5
    assert "n69" not in {i for _, ids in store.chunks[2:] for i in ids}, "the rest of a failed call is not written"
    await writer.drain()


async def test_a_caller_that_goes_before_its_turn_is_skipped() -> None:
    store = HeldStore()
    writer = writer_over(store, room=100)
    first = asyncio.create_task(writer.write(items("first")))
    await store.entered.wait()
    gone, stays = (asyncio.create_task(writer.write(items(i))) for i in ("gone", "stays"))
    await waiting(gone, stays)
    gone.cancel()
    store.gate.set()
    assert list(await asyncio.gather(first, stays)) == [1, 1]
    assert set(store.items) == {"first", "stays"}
    assert await writer.write(numbered(0, 100)) == 100, "its room is free again"
    await writer.drain()


async def test_a_caller_that_goes_during_its_chunk_does_not_disturb_it() -> None:
    store = HeldStore()
    writer = writer_over(store)
    call = asyncio.create_task(writer.write(items("a")))
    await store.entered.wait()
    call.cancel()
    after = asyncio.create_task(writer.write(items("b")))
    store.gate.set()
    assert await after == 1
    assert set(store.items) == {"a", "b"}
    await writer.drain()


async def test_draining_writes_what_waits_and_refuses_what_comes() -> None:
    store = HeldStore()
    writer = writer_over(store)
    call = asyncio.create_task(writer.write(numbered(0, 100)))
    await store.entered.wait()
    drained = asyncio.create_task(writer.drain())
    await asyncio.sleep(0)
    with pytest.raises(LikenessError) as caught:
        await writer.write(items("late"))
    assert caught.value.reason == error_pb2.REASON_SHUTTING_DOWN
    store.gate.set()
    assert await call == 100
    await drained


async def test_deleting_the_collection_ends_its_writer_and_fails_what_waits() -> None:
    store = HeldStore()
    writers = Writers(store, chunk=64, room=1024)
    under_way = asyncio.create_task(writers.upsert(COLLECTION, [Item("a", np.ones(2, np.float32))]))
    await store.entered.wait()
    waits = asyncio.create_task(writers.delete(COLLECTION, ["a"]))
    await waiting(waits)
    abandoned = asyncio.create_task(writers.abandon(COLLECTION.key))
    await asyncio.sleep(0)
    store.gate.set()
    await abandoned
    assert await under_way == 1
    with pytest.raises(LikenessError) as caught:
        await waits
    assert caught.value.reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    await writers.drain()


async def test_an_unexpected_fault_reaches_the_caller_and_the_writer_goes_on() -> None:
    class Broken(HeldStore):
        async def upsert(self, collection: Collection, items: Sequence[Item]) -> None:
            if items[0].id == "bad":
                raise ZeroDivisionError
            await super().upsert(collection, items)

    store = Broken()
    store.gate.set()
    writer = writer_over(store)
    with pytest.raises(ZeroDivisionError):
        await writer.write(items("bad"))
    assert await writer.write(items("good")) == 1
    await writer.drain()
