"""UpsertItemsStream: one stream of items into a collection.

1. the first message opens the collection
2. items are read a slice at a time, as long as few enough of the stream's items wait to be written
3. each slice is a call to the collection's writer, several of them under way, so that its chunks are full
4. the end of the stream waits for the last of them
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis import names
from chassis.errors import LikenessError, invalid, to_item_error
from indexer import item_messages, messages
from indexer.catalog import Collections
from indexer.collections import Collection, check_fingerprint
from indexer.item_messages import MAX_ITEMS, SLICE
from indexer.reads import Item
from indexer.violations import merged

Requests = AsyncIterator[indexer_pb2.UpsertItemsStreamRequest]

MAX_REFUSALS = 100
# How soon a slice is offered again to a writer whose queue others have filled.
_AGAIN_S = 0.05


class ItemWriter(Protocol):
    """Stores items; see ``indexer.writer.Writers``."""

    async def upsert(self, collection: Collection, items: Sequence[Item]) -> int:
        """Writes items, of several with one id the last; returns how many distinct ones, once Chroma has them."""


class BulkUpsert:
    """Serves streams of items to write."""

    def __init__(self, collections: Collections, writer: ItemWriter, ahead: int) -> None:
        """No stream yet.

        Args:
            collections: by name.
            writer: stores items.
            ahead: most items of a stream that are with the writer at once; more than a chunk, so that chunks are full.
        """
        self._collections = collections
        self._writer = writer
        self._ahead = max(ahead, SLICE)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ends every stream, now and in future, with SHUTTING_DOWN."""
        self._stopping.set()

    async def __call__(self, requests: Requests) -> indexer_pb2.UpsertItemsStreamResponse:
        """Serves one stream to its end.

        Raises:
            LikenessError: a message is bad as a whole, the vectors are another model's, the store fails, or
                (SHUTTING_DOWN) the indexer stops. An unknown share of the items is stored then.
        """
        async with _tasks() as tasks:
            stopping = tasks.create_task(self._refuse_when_stopping())
            answer = await self._serve(requests)
            stopping.cancel()
        return answer

    async def _refuse_when_stopping(self) -> None:
        await self._stopping.wait()
        message = "the indexer is stopping; send the items again, as a whole or from the last ones known to be stored"
        raise LikenessError(error_pb2.REASON_SHUTTING_DOWN, message, retry_after_s=1.0)

    async def _serve(self, requests: Requests) -> indexer_pb2.UpsertItemsStreamResponse:
        first = await anext(requests, None)
        if first is None:
            raise invalid("collection", "the stream is empty; expected a first message that names the collection")
        names.check_collection(first.collection, "collection")
        expected = messages.expected_fingerprint(first)
        async with self._collections.use(first.collection) as collection:
            check_fingerprint(collection, expected)
            async with _tasks() as writes:
                stream = _Stream(collection, self._writer, writes, self._ahead)
                await stream.take(first)
                async for request in requests:
                    if request.collection not in ("", first.collection):
                        description = f"{request.collection[:200]!r}; the stream's is {first.collection!r}"
                        raise invalid("collection", description)
                    await stream.take(request)
            return stream.answer


@asynccontextmanager
async def _tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """Tasks that belong together: the first failure cancels the others and is what is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


class _Stream:
    """One stream, opened."""

    def __init__(self, collection: Collection, writer: ItemWriter, writes: asyncio.TaskGroup, most_ahead: int) -> None:
        self.answer = indexer_pb2.UpsertItemsStreamResponse()
        self._collection = collection
        self._writer = writer
        self._writes = writes
        self._seen = 0
        self._ahead, self._most_ahead = 0, most_ahead
        self._ids_ahead: set[str] = set()
        self._written = asyncio.Event()

    async def take(self, request: indexer_pb2.UpsertItemsStreamRequest) -> None:
        """Hands a message's items to the writer, as far as few enough wait there."""
        if len(request.items) > MAX_ITEMS:
            raise messages.too_large("items", f"{len(request.items):,} items; at most {MAX_ITEMS:,} a message")
        for start in range(0, len(request.items), SLICE):
            received = request.items[start : start + SLICE]
            good: list[Item] = []
            for message, item in zip(received, item_messages.each_item(received, self._collection, start), strict=True):
                if isinstance(item, Item):
                    good.append(item)
                else:
                    self._refuse(message.id, merged(item))
                self._seen += 1
            if good:
                await self._hand_over(good)

    async def _hand_over(self, items: list[Item]) -> None:
        """Waits until few enough items are ahead of these, and none of the same id: their order stays as sent."""
        ids = {item.id for item in items}
        while self._ahead + len(items) > self._most_ahead or not self._ids_ahead.isdisjoint(ids):
            self._written.clear()
            await self._written.wait()
        self._ahead += len(items)
        self._ids_ahead |= ids
        self._writes.create_task(self._write(items, ids))

    async def _write(self, items: list[Item], ids: set[str]) -> None:
        while True:
            try:
                await self._writer.upsert(self._collection, items)
                break
            except LikenessError as error:
                if error.reason != error_pb2.REASON_OVERLOADED:
                    raise
            await asyncio.sleep(_AGAIN_S)  # others fill the writer's queue; this client is read no further meanwhile
        self.answer.stored += len(items)
        self._ahead -= len(items)
        self._ids_ahead -= ids
        self._written.set()

    def _refuse(self, item_id: str, error: LikenessError) -> None:
        self.answer.refused += 1
        if len(self.answer.refusals) < MAX_REFUSALS:
            cut = item_id.encode()[: names.MAX_ID_BYTES].decode(errors="ignore")
            self.answer.refusals.add(index=self._seen, id=cut, error=to_item_error(error))
