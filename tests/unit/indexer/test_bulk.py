"""Streams of items to write, over a writer that the test holds in its hand."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from likeness.common.v1 import error_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from chassis.errors import LikenessError
from indexer.aliases import Aliases
from indexer.bulk import BulkUpsert, Requests
from indexer.catalog import Collections
from indexer.collections import Collection, Metric, StoredCollection, not_found
from indexer.reads import Item
from tests.unit.indexer.shelf import Shelf

DIMENSION = 4
VECTOR = types_pb2.Vector(f32=np.ones(DIMENSION, "<f4").tobytes())
METADATA: Mapping[str, Any] = {
    "likeness.schema": 1,
    "likeness.model": "starter",
    "likeness.digest": "a1" * 32,
    "likeness.dimension": DIMENSION,
    "likeness.metric": Metric.COSINE.value,
    "likeness.created": datetime.now(UTC).isoformat(),
}


AHEAD = 768


def shelf() -> Shelf:
    """A store that knows one collection, "col", and an alias of it."""
    made = Shelf()
    made.kept["col"] = StoredCollection("col", "key", METADATA)
    aliases = Aliases(1, {"alias": "col"})
    made.kept[aliases.store_name] = StoredCollection(aliases.store_name, "key0", aliases.metadata)
    return made


class HeldWriter:
    """Writes what it is given when it is let; fails first with what it is told."""

    def __init__(self, *, held: bool = False) -> None:
        self.calls: list[list[str]] = []
        self.written: list[str] = []
        self.failures: list[LikenessError] = []
        self.cancelled = 0
        self.let = asyncio.Event()
        self._called = asyncio.Event()
        if not held:
            self.let.set()

    async def upsert(self, collection: Collection, items: Sequence[Item]) -> int:
        self.calls.append([item.id for item in items])
        self._called.set()
        if self.failures:
            raise self.failures.pop(0)
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.written += [item.id for item in items]
        return len({item.id for item in items})

    async def called(self, times: int) -> None:
        """Waits until it has been called so often."""
        while len(self.calls) < times:
            self._called.clear()
            await self._called.wait()


def part(*ids: str, collection: str = "", expected: types_pb2.ModelFingerprint | None = None) -> Any:
    items = [pb.Item(id=i, vector=VECTOR) for i in ids]
    return pb.UpsertItemsStreamRequest(collection=collection, items=items, expected_fingerprint=expected)


async def sent(*parts: pb.UpsertItemsStreamRequest) -> Requests:
    for each in parts:
        yield each


async def serve(writer: HeldWriter, *parts: pb.UpsertItemsStreamRequest) -> pb.UpsertItemsStreamResponse:
    return await BulkUpsert(Collections(shelf()), writer, AHEAD)(sent(*parts))


async def failure(writer: HeldWriter, *parts: pb.UpsertItemsStreamRequest) -> LikenessError:
    with pytest.raises(LikenessError) as caught:
        await serve(writer, *parts)
    return caught.value


def numbered(first: int, count: int) -> list[str]:
    return [f"i{n}" for n in range(first, first + count)]


async def test_every_item_is_stored_and_one_sent_twice_counts_twice() -> None:
    writer = HeldWriter()
    answer = await serve(
        writer, part(*numbered(0, 200), collection="col"), part("i0", "i0"), part(), part("last", collection="col")
    )
    assert (answer.stored, answer.refused, len(answer.refusals)) == (203, 0, 0)
    assert sorted(writer.written) == sorted([*numbered(0, 200), "i0", "i0", "last"])
    assert max(map(len, writer.calls)) <= 64


async def test_a_bad_item_is_left_out_and_reported_by_its_place_in_the_stream() -> None:
    writer = HeldWriter()
    second = part("good", "bad", "fine")
    second.items[1].vector.f32 = b"123"
    second.items[1].metadata.fields["no good"].int_value = 1
    answer = await serve(writer, part(*numbered(0, 100), collection="col"), second)
    assert (answer.stored, answer.refused) == (102, 1)
    assert "bad" not in writer.written
    (refusal,) = answer.refusals
    assert (refusal.index, refusal.id) == (101, "bad")
    assert refusal.error.reason == error_pb2.REASON_VECTOR_INVALID
    assert "and 1 more bad field" in refusal.error.status.message


async def test_the_first_hundred_refusals_are_named_and_all_are_counted() -> None:
    answer = await serve(HeldWriter(), part(*["é" * 300] * 150, "good", collection="col"))
    assert (answer.stored, answer.refused) == (1, 150)
    assert [r.index for r in answer.refusals] == list(range(100))
    assert answer.refusals[0].id == "é" * 256, "cut to 512 bytes"


async def test_no_more_is_read_than_a_few_chunks_ahead_of_the_writer() -> None:
    writer = HeldWriter(held=True)
    read = 0
    stuck = asyncio.Event()

    async def requests() -> AsyncIterator[pb.UpsertItemsStreamRequest]:
        nonlocal read
        for n in range(100):
            read += 1
            yield part(*numbered(64 * n, 64), collection="col")
            if n == 11:
                asyncio.get_running_loop().call_later(0.05, stuck.set)

    stream = asyncio.create_task(BulkUpsert(Collections(shelf()), writer, AHEAD)(requests()))
    await stuck.wait()
    assert read == 13, "twelve slices with the writer, and the one that waits"
    assert len(writer.calls) == 12
    writer.let.set()
    assert (await stream).stored == 6400


async def test_items_of_one_id_are_handed_over_one_after_the_other() -> None:
    writer = HeldWriter(held=True)
    stream = asyncio.create_task(serve(writer, part("a", "b", collection="col"), part("x"), part("b"), part("y")))
    await writer.called(2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert writer.calls == [["a", "b"], ["x"]]
    writer.let.set()
    assert (await stream).stored == 5
    assert writer.calls == [["a", "b"], ["x"], ["b"], ["y"]]


async def test_a_full_queue_holds_the_stream_up_and_does_not_fail_it() -> None:
    writer = HeldWriter()
    writer.failures = [LikenessError(error_pb2.REASON_OVERLOADED, "full", retry_after_s=1.0)] * 2
    answer = await serve(writer, part("a", collection="col"), part("b"), part("a"))
    assert answer.stored == 3
    assert sorted(writer.written) == ["a", "a", "b"]


async def test_a_store_that_fails_fails_the_stream_and_what_waits_is_given_up() -> None:
    writer = HeldWriter(held=True)
    parts = [part("a", collection="col"), part("b"), part("c")]
    writer.failures = [LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, "away", retry_after_s=1.0)]
    error = await failure(writer, *parts)
    assert (error.reason, error.retry_after_s) == (error_pb2.REASON_STORE_UNAVAILABLE, 1.0)
    assert writer.written == []
    assert len(writer.calls) == 1 + writer.cancelled


async def test_a_collection_deleted_meanwhile_is_forgotten() -> None:
    store, writer = shelf(), HeldWriter()
    bulk = BulkUpsert(Collections(store), writer, AHEAD)
    writer.failures = [not_found("col")]
    with pytest.raises(LikenessError):
        await bulk(sent(part("a", collection="col")))
    await bulk(sent(part("a", collection="col")))
    assert store.listings == 2


OTHER = types_pb2.ModelFingerprint(model="other", digest="b2" * 32, dimension=DIMENSION)


@pytest.mark.parametrize(
    ("parts", "reason", "field"),
    [
        ([], "FIELD_INVALID", "collection"),
        ([part("a")], "FIELD_INVALID", "collection"),
        ([part("a", collection="no name")], "FIELD_INVALID", "collection"),
        ([part("a", collection="nowhere")], "COLLECTION_NOT_FOUND", ""),
        ([part("a", collection="col"), part("b", collection="other")], "FIELD_INVALID", "collection"),
        ([part("a", collection="col"), part(*numbered(0, 1025))], "BATCH_TOO_LARGE", "items"),
        ([part("a", collection="col", expected=OTHER)], "MODEL_MISMATCH", ""),
        (
            [part("a", collection="col", expected=types_pb2.ModelFingerprint(model="other"))],
            "FIELD_INVALID",
            "expected_fingerprint.digest",
        ),
    ],
)
async def test_a_message_that_is_bad_as_a_whole_fails_the_stream(
    parts: list[pb.UpsertItemsStreamRequest], reason: str, field: str
) -> None:
    error = await failure(HeldWriter(), *parts)
    assert error.reason_name == reason
    assert (error.violations[0].field if error.violations else "") == field


async def test_an_alias_may_be_repeated_and_nothing_else() -> None:
    writer = HeldWriter()
    answer = await serve(writer, part("a", collection="alias"), part("b", collection="alias"), part("c"))
    assert answer.stored == 3
    error = await failure(writer, part("a", collection="alias"), part("b", collection="other"))
    assert error.violations[0].field == "collection"


async def test_a_stop_ends_open_streams_and_refuses_new_ones() -> None:
    writer = HeldWriter(held=True)
    bulk = BulkUpsert(Collections(shelf()), writer, AHEAD)

    async def endless() -> AsyncIterator[pb.UpsertItemsStreamRequest]:
        yield part("a", collection="col")
        await asyncio.Event().wait()

    stream = asyncio.create_task(bulk(endless()))
    await writer.called(1)
    bulk.stop()
    for outcome in (stream, bulk(endless())):
        with pytest.raises(LikenessError) as caught:
            await asyncio.wait_for(outcome, 5)
        assert caught.value.reason == error_pb2.REASON_SHUTTING_DOWN
    assert writer.cancelled >= 1


async def test_a_client_that_goes_gives_up_what_waits() -> None:
    writer = HeldWriter(held=True)
    stream = asyncio.create_task(serve(writer, *(part(f"i{n}", collection="col") for n in range(10))))
    await writer.called(10)
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream
    assert writer.cancelled == 10
