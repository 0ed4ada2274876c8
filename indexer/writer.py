"""Writes to a collection: one writer each, a bounded queue, chunks made of whatever waits.

1. A call puts its upserts or deletions at the end of the collection's queue, or is refused when that is full.
2. The writer takes up to a chunk of them from the front, from as many calls as it takes, upserts and deletions apart.
3. When Chroma has answered, the calls whose last item that was are acknowledged.

Chroma holds one lock over its index for a whole chunk: the worst wait of a query was 414 ms beside chunks of 64 and
4,531 ms beside chunks of 2,000.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.collections import Collection, not_found
from indexer.reads import Item

log = structlog.get_logger()


class WriteStore(Protocol):
    """Where items are written."""

    async def upsert(self, collection: Collection, items: Sequence[Item]) -> None:
        """Writes items, each id once."""

    async def delete(self, collection: Collection, ids: Sequence[str]) -> set[str]:
        """Deletes items, each id once; returns the ids that existed."""


@dataclass(eq=False)
class _Call:
    """What one call wants written, each id once: upserts, or deletions where the item is None."""

    changes: dict[str, Item | None]
    done: asyncio.Future[int]
    untaken: deque[str] = field(init=False)
    unwritten: int = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        self.untaken = deque(self.changes)
        self.unwritten = len(self.changes)

    @property
    def deletes(self) -> bool:
        return next(iter(self.changes.values())) is None


class CollectionWriter:
    """The one writer of one collection."""

    def __init__(self, collection: Collection, store: WriteStore, chunk: int, room: int) -> None:
        """Starts the writer.

        Args:
            collection: what it writes to.
            store: where that is kept.
            chunk: most items written at once.
            room: most items waiting.
        """
        self._collection = collection
        self._store = store
        self._chunk = chunk
        self._room = room
        self._calls: deque[_Call] = deque()
        self._waiting = 0
        self._work = asyncio.Event()
        self._closed: LikenessError | None = None
        self._task = asyncio.create_task(self._run(), name=f"writer of {collection.name}")

    async def write(self, changes: dict[str, Item | None]) -> int:
        """Writes upserts, or deletions where the item is None; never both in one call.

        Returns:
            When Chroma has them: how many items were stored, or how many of the deleted ones existed.

        Raises:
            LikenessError: OVERLOADED: nothing was done; COLLECTION_NOT_FOUND, SHUTTING_DOWN; what the store raises.
        """
        if self._closed is not None:
            raise self._closed
        if self._waiting + len(changes) > self._room:
            message = (
                f"{self._waiting} items are waiting to be written to {self._collection.name!r}, {len(changes)} more "
                f"would exceed {self._room}; try again in a moment, or send smaller calls"
            )
            raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=1.0)
        call = _Call(changes, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        self._waiting += len(changes)
        self._work.set()
        return await call.done

    async def drain(self) -> None:
        """Writes what waits, then ends."""
        await self._end(LikenessError(error_pb2.REASON_SHUTTING_DOWN, "the indexer is stopping; try again"))

    async def abandon(self) -> None:
        """Fails what waits with COLLECTION_NOT_FOUND, finishes the chunk under way, then ends."""
        gone = not_found(self._collection.name)
        for call in self._calls:
            _fail(call, gone)
        await self._end(gone)

    async def _end(self, why: LikenessError) -> None:
        self._closed = why
        self._work.set()
        await self._task

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while chunk := self._take():
                await self._write(chunk)
            if self._closed is not None:
                return

    def _take(self) -> dict[str, list[_Call]]:
        """Up to a chunk of ids from the front, each with the calls that it belongs to, the last of which counts."""
        chunk: dict[str, list[_Call]] = {}
        first: _Call | None = None
        while self._calls:
            call = self._calls[0]
            if call.done.done():  # its caller went away, or a part of it failed
                self._waiting -= len(call.untaken)
                call.untaken.clear()
            if first is not None and call.untaken and call.deletes != first.deletes:
                break
            while call.untaken and (len(chunk) < self._chunk or call.untaken[0] in chunk):
                chunk.setdefault(call.untaken.popleft(), []).append(call)
                self._waiting -= 1
                first = call
            if call.untaken:
                break
            self._calls.popleft()
        return chunk

    async def _write(self, chunk: dict[str, list[_Call]]) -> None:
        calls = {call for owners in chunk.values() for call in owners}
        try:
            if next(iter(calls)).deletes:
                existed = await self._store.delete(self._collection, list(chunk))
            else:
                # Whatever waits for the same id has a newer item: the last one in the queue's order counts.
                items = [owners[-1].changes[item_id] for item_id, owners in chunk.items()]
                await self._store.upsert(self._collection, [item for item in items if item is not None])
                existed = None
        except Exception as error:
            # The outcome of each call in the chunk, and of no other; the interceptor logs what nobody expected.
            for call in calls:
                _fail(call, error)
            return
        for item_id, owners in chunk.items():
            for position, call in enumerate(owners):
                call.unwritten -= 1
                # An id that two calls delete existed for the first.
                call.count += existed is None or (position == 0 and item_id in existed)
        for call in calls:
            if call.unwritten == 0 and not call.done.done():
                call.done.set_result(call.count)


class Writers:
    """The writers of all collections."""

    def __init__(self, store: WriteStore, chunk: int, room: int) -> None:
        self._store = store
        self._chunk = chunk
        self._room = room
        self._writers: dict[str, CollectionWriter] = {}
        self._stopping = False

    async def upsert(self, collection: Collection, items: Sequence[Item]) -> int:
        """Writes items, of several with one id the last; returns how many distinct ones, once Chroma has them.

        Raises:
            LikenessError: as ``CollectionWriter.write``.
        """
        return await self._writer(collection).write({item.id: item for item in items})

    async def delete(self, collection: Collection, ids: Sequence[str]) -> int:
        """Deletes items; returns how many of the ids existed, once Chroma has done it.

        Raises:
            LikenessError: as ``CollectionWriter.write``.
        """
        return await self._writer(collection).write(dict.fromkeys(ids))

    async def abandon(self, key: str) -> None:
        """Ends the writer of a collection that is about to be deleted; ``key`` is the collection's."""
        writer = self._writers.pop(key, None)
        if writer is not None:
            await writer.abandon()

    async def drain(self) -> None:
        """Writes everything that waits and ends all writers."""
        self._stopping = True
        await asyncio.gather(*(writer.drain() for writer in self._writers.values()))

    def _writer(self, collection: Collection) -> CollectionWriter:
        if self._stopping:
            raise LikenessError(error_pb2.REASON_SHUTTING_DOWN, "the indexer is stopping; try again")
        if collection.key not in self._writers:
            self._writers[collection.key] = CollectionWriter(collection, self._store, self._chunk, self._room)
        return self._writers[collection.key]


def _fail(call: _Call, error: Exception) -> None:
    if not call.done.done():
        call.done.set_exception(error)
