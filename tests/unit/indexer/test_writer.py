"""The writer of a collection, over a store that the test holds in its hand."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from likeness.common.v1 import error_pb2

from chassis import metadata, trace
from chassis.errors import LikenessError
from indexer.changes import Changes
from indexer.collections import Collection, Fingerprint, Metric, not_found
from indexer.filters import Comparison, Kind, Op
from indexer.reads import Item
from indexer.stamps import now
from indexer.surroundings import Surroundings
from indexer.write_queue import Call, FilterCall, ItemsCall, UpdatesCall, WriteQueue
from indexer.writer import CollectionWriter
from indexer.writers import Writers
from indexer.writes import Mirror, StoredRecord, Update
from tests.unit.indexer.held_store import DictMirror, HeldStore

EVEN = Comparison("even", Op.EQ, Kind.BOOL, (True,))
COLLECTION = Collection("c", "key", Fingerprint("m", "d" * 64, 2), Metric.COSINE, datetime.now(UTC))


def items(*ids: str, value: float = 0) -> dict[str, Item | None]:
    return {i: Item(i, np.full(2, value, np.float32)) for i in ids}


def numbered(first: int, count: int) -> dict[str, Item | None]:
    return items(*(f"n{n}" for n in range(first, first + count)))


def writer_over(store: HeldStore, room: int = 1024) -> CollectionWriter:
    return CollectionWriter(COLLECTION, store, chunk=64, room=room)


def reason(outcome: object) -> object:
    return outcome.reason if isinstance(outcome, LikenessError) else outcome


class Deletion:
    """Of a collection with writers, held by the test."""

    def __init__(self) -> None:
        self.store = HeldStore()
        self.mirror = DictMirror()
        self.writers = Writers(self.store, 64, 1024, Surroundings(mirror_of=lambda _: self.mirror))
        self.begun = asyncio.Event()
        self._outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def upsert(self, item_id: str) -> asyncio.Task[int]:
        return asyncio.create_task(self.writers.upsert(COLLECTION, [Item(item_id, np.ones(2, np.float32))]))

    def begin(self) -> None:
        self._task = asyncio.create_task(self.run())

    async def end(self, error: LikenessError | None) -> None:
        if error is None:
            self._outcome.set_result(None)
        else:
            self._outcome.set_exception(error)
        await self._task

    async def run(self) -> None:
        async with self.writers.deleting(COLLECTION):
            self.begun.set()
            await self._outcome


async def waiting(*calls: asyncio.Task[Any]) -> None:
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


async def test_what_is_written_for_all_is_in_nobody_s_trace_not_in_that_of_the_first_call() -> None:
    class Telling(HeldStore):
        async def write(self, collection: Collection, changes: Changes, stamp: int) -> None:
            traces.append(trace.current())
            await super().write(collection, changes, stamp)

    traces: list[trace.Trace | None] = []
    store = Telling()
    store.gate.set()
    entered = trace.enter(trace.Trace.of([]))
    writer = writer_over(store)
    await writer.write(items("a"))
    trace.leave(entered)
    await writer.write(items("b"))
    assert traces == [None, None]
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


@pytest.mark.parametrize(
    ("mirror", "chunks"), [(None, [64] * 15 + [40]), (DictMirror(), [250] * 4)], ids=["from Chroma", "from memory"]
)
async def test_chunks_are_small_where_chroma_answers_queries(mirror: Mirror | None, chunks: list[int]) -> None:
    store = HeldStore()
    store.gate.set()
    writer = CollectionWriter(COLLECTION, store, 250, 1024, Surroundings(mirror_of=lambda _: mirror))
    assert await writer.write(numbered(0, 1000)) == 1000
    assert [len(ids) for _, ids in store.chunks] == chunks
    store.chunks.clear()
    assert await writer.write(dict.fromkeys(numbered(0, 1000))) == 1000
    assert [len(ids) for _, ids in store.chunks] == chunks
    await writer.drain()


async def test_a_mirror_that_goes_makes_the_chunks_small_that_follow() -> None:
    store = HeldStore()
    mirror = DictMirror()
    there: list[Mirror | None] = [mirror]
    writer = CollectionWriter(COLLECTION, store, 250, 1024, Surroundings(mirror_of=lambda _: there[0]))
    store.gate.set()
    even = {f"n{n}": Item(f"n{n}", np.ones(2, np.float32), {"even": True}) for n in range(500)}
    assert await writer.write(dict(even)) == 500
    store.chunks.clear()
    store.gate.clear()
    store.entered.clear()
    deletion = asyncio.create_task(writer.delete_matching(EVEN))
    await store.entered.wait()
    there[0] = None
    store.gate.set()
    assert await deletion == 500
    assert [len(ids) for _, ids in store.chunks] == [250, 64, 64, 64, 58]
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


@pytest.mark.parametrize("update", [False, True])
async def test_writes_of_an_item_that_is_being_erased_are_refused_with_a_time_to_come_back(update: bool) -> None:
    store = HeldStore()
    store.gate.set()
    writer = writer_over(store)

    async def write(*ids: str) -> object:
        if update:
            return await writer.update([Update(item_id, {"n": 1}) for item_id in ids])
        return await writer.write(items(*ids, value=1))

    await writer.write(items("a", "b"))
    with writer.refusing({"a"}):
        with pytest.raises(LikenessError) as refused:
            await write("b", "a")
        assert refused.value.reason == error_pb2.REASON_COLLECTION_BUSY
        assert refused.value.retry_after_s == 5
        assert "'a' is being erased" in refused.value.message
        assert await write("b") == ((1, []) if update else 1)
    assert await write("a") == ((1, []) if update else 1)
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


async def test_who_waits_for_the_end_of_a_writer_may_go_and_the_chunk_is_finished() -> None:
    store = HeldStore()
    writer = writer_over(store)
    call = asyncio.create_task(writer.write(items("a")))
    await store.entered.wait()
    drained = asyncio.create_task(writer.drain())
    await asyncio.sleep(0)
    drained.cancel()
    await asyncio.wait([drained])
    store.gate.set()
    async with asyncio.timeout(5):
        assert await call == 1
        await writer.drain()


@pytest.mark.parametrize(
    "begin",
    [
        lambda writer: writer.write(items("b")),
        lambda writer: writer.update([Update("a", {"n": 1})]),
        lambda writer: writer.delete_matching(EVEN),
    ],
    ids=["items", "updates", "filter"],
)
async def test_a_writer_that_is_cancelled_fails_its_calls_and_those_that_wait(
    begin: Callable[[CollectionWriter], Coroutine[Any, Any, Any]],
) -> None:
    store = HeldStore()
    store.gate.set()
    writer = writer_over(store)
    await writer.write({"a": Item("a", np.ones(2, np.float32), {"even": True})})
    store.gate.clear()
    store.entered.clear()
    under_way = asyncio.create_task(begin(writer))
    await store.entered.wait()
    waits = asyncio.create_task(writer.write(items("c")))
    await waiting(waits)
    writer._task.cancel()
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(under_way, waits, writer.write(items("d")), return_exceptions=True)
    assert [reason(outcome) for outcome in outcomes] == [error_pb2.REASON_SHUTTING_DOWN] * 3


async def test_deleting_the_collection_ends_its_writer_and_fails_what_waits() -> None:
    deletion = Deletion()
    under_way = deletion.upsert("a")
    await deletion.store.entered.wait()
    waits = deletion.upsert("b")
    await waiting(waits)
    deletion.begin()
    await asyncio.sleep(0)
    assert not deletion.begun.is_set(), "the chunk under way comes first"
    deletion.store.gate.set()
    await deletion.begun.wait()
    assert await under_way == 1
    comes = deletion.upsert("c")
    await waiting(comes)
    assert not waits.done()
    assert not comes.done()
    await deletion.end(None)
    outcomes = await asyncio.gather(waits, comes, return_exceptions=True)
    assert [reason(outcome) for outcome in outcomes] == [error_pb2.REASON_COLLECTION_NOT_FOUND] * 2
    assert deletion.store.chunks == [("upsert", ["a"])]
    assert deletion.writers.waiting == {}


async def test_when_somebody_else_has_deleted_the_collection_its_writer_ends_too() -> None:
    deletion = Deletion()
    deletion.begin()
    await deletion.begun.wait()
    waits = deletion.upsert("a")
    await waiting(waits)
    with pytest.raises(LikenessError):
        await deletion.end(not_found("c"))
    assert reason((await asyncio.gather(waits, return_exceptions=True))[0]) == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert deletion.writers.waiting == {}


async def test_of_two_deletions_at_once_the_second_finds_nothing() -> None:
    deletion = Deletion()
    deletion.begin()
    await deletion.begun.wait()
    second = asyncio.create_task(deletion.run())
    await waiting(second)
    await deletion.end(None)
    with pytest.raises(LikenessError) as caught:
        await second
    assert caught.value.reason == error_pb2.REASON_COLLECTION_NOT_FOUND


async def test_a_collection_whose_deletion_failed_is_written_again_and_what_was_in_doubt_is_read_back() -> None:
    deletion = Deletion()
    store = deletion.store
    store.gate.set()
    store.poison_after, store.dies = {"a"}, True
    with pytest.raises(LikenessError, match="poison"):
        await deletion.upsert("a")
    assert deletion.mirror.items == {}
    deletion.begin()
    await deletion.begun.wait()
    waits = [deletion.upsert("b"), deletion.upsert("c")]
    await waiting(*waits)
    store.poison_after, store.away = set(), False
    with pytest.raises(LikenessError, match="no drop"):
        await deletion.end(LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, "no drop"))
    assert await asyncio.gather(*waits) == [1, 1]
    assert deletion.mirror.items.keys() == store.items.keys() == {"a", "b", "c"}
    await deletion.writers.drain()


async def test_a_long_deletion_by_filter_makes_way_for_the_deletion_of_the_collection() -> None:
    deletion = Deletion()
    deletion.store.gate.set()
    vector = np.ones(2, np.float32)
    await deletion.writers.upsert(COLLECTION, [Item(f"n{n}", vector, {"even": True}) for n in range(200)])
    deletion.store.gate.clear()
    deletion.store.entered.clear()
    by_filter = asyncio.create_task(deletion.writers.delete_matching(COLLECTION, EVEN))
    await deletion.store.entered.wait()
    deletion.begin()
    await asyncio.sleep(0)
    deletion.store.gate.set()
    await deletion.begun.wait()
    assert len(deletion.store.items) == 200 - 64
    await deletion.end(None)
    assert reason((await asyncio.gather(by_filter, return_exceptions=True))[0]) == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert len(deletion.store.items) == 200 - 64


async def test_while_there_is_always_something_to_write_what_failed_is_read_once_more() -> None:
    class Slow(HeldStore):
        async def write(self, collection: Collection, changes: Changes, stamp: int) -> None:
            await asyncio.sleep(0.001)
            await super().write(collection, changes, stamp)

    store = Slow()
    store.gate.set()
    mirror = DictMirror()
    writer = CollectionWriter(COLLECTION, store, 1, 1024, Surroundings(mirror_of=lambda _: mirror, settle_s=0.2))
    store.poison = {"late"}
    with pytest.raises(LikenessError, match="poison"):
        await writer.write(items("late"))
    stop = False

    async def ingest(name: str) -> None:
        n = 0
        while not stop:
            await writer.write(items(f"{name}{n % 8}", value=n))
            n += 1

    ingesting = [asyncio.create_task(ingest(name)) for name in "abc"]
    await asyncio.sleep(0.05)
    store.items["late"], store.stamps["late"] = Item("late", np.ones(2, np.float32)), now()  # carried out late
    async with asyncio.timeout(5):
        while "late" not in mirror.items:
            mirror.applied.clear()
            await mirror.applied.wait()
    stop = True
    await asyncio.gather(*ingesting)
    await writer.drain()


async def test_an_unexpected_fault_reaches_the_caller_and_the_writer_goes_on() -> None:
    class Broken(HeldStore):
        async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
            if "bad" in ids:
                raise ZeroDivisionError
            return await super().read(collection, ids)

    store = Broken()
    store.gate.set()
    writer = writer_over(store)
    with pytest.raises(ZeroDivisionError):
        await writer.write(items("bad"))
    assert await writer.write(items("good")) == 1
    await writer.drain()


async def test_what_is_stored_already_is_not_written_again() -> None:
    store = HeldStore()
    store.gate.set()
    writer = writer_over(store)
    assert await writer.write(items("a", "b", value=1)) == 2
    stamps = dict(store.stamps)
    assert await writer.write({**items("a", "b", value=1), **items("c")}) == 3
    assert store.chunks[1:] == [("upsert", ["c"])]
    assert {i: store.stamps[i] for i in stamps} == stamps
    await writer.drain()


async def test_stamps_grow_from_write_to_write_also_when_the_clock_was_set_back() -> None:
    store = HeldStore()
    store.gate.set()
    store.greatest = now() + 3_600_000_000
    writer = writer_over(store)
    for value in (1, 2, 3):
        before = store.stamps.get("a", store.greatest)
        await writer.write(items("a", value=value))
        assert store.stamps["a"] > before
    await writer.drain()


async def test_updates_change_what_they_name_and_tell_what_is_missing() -> None:
    store = HeldStore()
    store.gate.set()
    writer = writer_over(store)
    vector = np.ones(2, np.float32)
    await writer.write({i: Item(i, vector, {"keep": 1, "drop": "x"}) for i in ("a", "b", "c")})
    updates = [
        Update("a", {"new": True}, ("drop", "never there")),
        Update("missing", {"new": True}),
        Update("b", {"only": ["x"]}, (), replace=True),
        Update("c", {"drop": "y"}, ("drop",)),
    ]
    assert await writer.update(updates) == (3, ["missing"])
    found = {i: item.metadata for i, item in store.items.items()}
    assert found == {"a": {"keep": 1, "new": True}, "b": {"only": ["x"]}, "c": {"keep": 1, "drop": "y"}}
    written = store.chunks[-1]
    assert await writer.update(updates) == (3, ["missing"])
    assert store.chunks[-1] is written, "what is so already is not written again"
    await writer.drain()


async def test_of_a_call_with_an_update_that_breaks_a_limit_nothing_is_written() -> None:
    store = HeldStore()
    store.gate.set()
    writer = writer_over(store)
    vector = np.ones(2, np.float32)
    await writer.write({f"n{n}": Item(f"n{n}", vector, {"a": 1}) for n in range(200)})
    store.gate.clear()
    held = asyncio.create_task(writer.write(items("held")))
    full = {f"key{n}": n for n in range(metadata.MAX_KEYS)}
    bad = [*(Update(f"n{n}", {"b": 2}) for n in range(150)), Update("n150", full)]
    calls = [asyncio.create_task(writer.update(each)) for each in (bad, [Update("n0", {"c": 3})])]
    await waiting(held, *calls)
    store.gate.set()
    with pytest.raises(LikenessError) as caught:
        await calls[0]
    assert caught.value.reason == error_pb2.REASON_METADATA_INVALID
    assert caught.value.violations[0].field == "updates[150]"
    assert (await held, await calls[1]) == (1, (1, []))
    assert store.items["n0"].metadata == {"a": 1, "c": 3}
    assert store.items["n1"].metadata == {"a": 1}
    await writer.drain()


async def test_small_calls_of_updates_share_a_chunk_and_see_each_other() -> None:
    store = HeldStore()
    store.gate.set()
    writer = writer_over(store)
    await writer.write(numbered(0, 10))
    store.gate.clear()
    store.entered.clear()
    first = asyncio.create_task(writer.write(items("first")))
    await store.entered.wait()
    calls = [asyncio.create_task(writer.update([Update(f"n{n % 10}", {f"k{n}": n})])) for n in range(64)]
    await waiting(*calls)
    store.gate.set()
    await first
    assert await asyncio.gather(*calls) == [(1, [])] * 64
    assert [kind for kind, _ in store.chunks] == ["upsert", "upsert", "update"]
    assert store.items["n3"].metadata == {f"k{n}": n for n in range(3, 64, 10)}
    await writer.drain()


async def test_a_deletion_by_filter_sees_what_was_written_before_it_and_not_what_comes_after() -> None:
    store = HeldStore()
    writer = writer_over(store)
    vector = np.ones(2, np.float32)
    first = asyncio.create_task(writer.write(items("first")))
    await store.entered.wait()
    before = {f"b{n}": Item(f"b{n}", vector, {"even": n % 2 == 0}) for n in range(200)}
    after = {f"a{n}": Item(f"a{n}", vector, {"even": True}) for n in range(3)}
    calls = [
        asyncio.create_task(writer.write(dict(before))),
        asyncio.create_task(writer.delete_matching(EVEN)),
        asyncio.create_task(writer.write(dict(after))),
    ]
    await waiting(first, *calls)
    store.gate.set()
    assert await asyncio.gather(*calls) == [200, 100, 3]
    assert store.items.keys() == {"first", *after, *(i for i in before if not before[i].metadata["even"])}
    assert [len(ids) for kind, ids in store.chunks if kind == "delete"] == [64, 36]
    await writer.drain()


async def test_a_long_deletion_stops_when_its_caller_goes() -> None:
    store = HeldStore()
    store.gate.set()
    writer = writer_over(store)
    await writer.write({f"n{n}": Item(f"n{n}", np.ones(2, np.float32), {"even": True}) for n in range(200)})
    store.gate.clear()
    store.entered.clear()
    call = asyncio.create_task(writer.delete_matching(EVEN))
    await store.entered.wait()
    call.cancel()
    after = asyncio.create_task(writer.write(items("after")))
    await waiting(after)
    store.gate.set()
    assert await after == 1
    assert len(store.items) == 200 - 64 + 1
    await writer.drain()


async def test_what_waits_is_counted_by_collection() -> None:
    store = HeldStore()
    writers = Writers(store, chunk=64, room=1024)
    vector = np.ones(2, np.float32)
    first = asyncio.create_task(writers.upsert(COLLECTION, [Item("first", vector)]))
    await store.entered.wait()
    second = asyncio.create_task(writers.upsert(COLLECTION, [Item("a", vector), Item("b", vector)]))
    await waiting(second)
    assert writers.waiting == {"c": 2}
    store.gate.set()
    await asyncio.gather(first, second)
    assert writers.waiting == {"c": 0}
    await writers.drain()


async def test_a_collection_is_prepared_once_and_a_refused_chunk_is_not_begun() -> None:
    prepared: list[str] = []
    refusal = LikenessError(error_pb2.REASON_STORE_FULL, "full")
    most = 10

    async def prepare(collection: Collection) -> None:
        prepared.append(collection.name)

    def admit(_: Collection, count: int) -> None:
        if count > most:
            raise refusal

    store = HeldStore()
    store.gate.set()
    writer = CollectionWriter(COLLECTION, store, 64, 1024, Surroundings(prepare=prepare, admit=admit))
    assert await writer.write(numbered(0, 10)) == 10
    with pytest.raises(LikenessError) as caught:
        await writer.write(numbered(10, 11))
    assert caught.value is refusal
    assert await writer.write({f"n{n}": None for n in range(20)}) == 10, "deletions are let through"
    assert [len(ids) for _, ids in store.chunks] == [10, 10]
    assert prepared == ["c"]
    await writer.drain()


async def test_the_queue_gives_back_all_its_room() -> None:
    queue = WriteQueue()
    loop = asyncio.get_running_loop()
    calls: list[Call] = []
    for n in range(12):
        calls += [
            ItemsCall(numbered(n, 1 + n % 5), loop.create_future()),
            UpdatesCall([Update(f"n{i}") for i in range(1 + n % 7)], loop.create_future()),
            FilterCall(EVEN, loop.create_future()),
        ]
    for call in calls:
        queue.put(call)
    for call in calls[::4]:
        call.done.cancel()
    taken = 0
    while (each := queue.take(4)) is not None:
        taken += sum(len(call.updates) for call in each) if isinstance(each, list) else 1
    assert taken > 0
    assert queue.waiting == 0
