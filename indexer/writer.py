"""Writes to a collection: one writer each, a bounded queue, chunks made of whatever waits.

1. A call puts what it wants at the end of the collection's queue, or is refused when that is full.
2. The writer takes up to a chunk of it from the front, from as many calls as it takes.
3. Chroma has it first, then the serving index; then the calls whose last item that was are acknowledged.

A chunk of 256 costs Chroma two thirds of what four of 64 do. But Chroma holds one lock over its index for a whole
chunk: the worst wait of a query that it answered was 414 ms beside chunks of 64, 638 ms beside 256 and 4,531 ms beside
2,000. So chunks are small where there is no mirror, which answers queries in Chroma's place.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import Context
from typing import TypeVar

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.changes import Change, same
from indexer.collections import Collection, not_found
from indexer.commit import Committer
from indexer.filters import Node
from indexer.reads import Item
from indexer.surroundings import Surroundings, WriteStore
from indexer.write_queue import (
    Call,
    FilterCall,
    ItemsCall,
    ItemsChunk,
    UpdatesCall,
    WriteQueue,
    fail_all,
    merge,
    stopping,
)
from indexer.writes import Update

log = structlog.get_logger()

T = TypeVar("T")

_HEAL_AGAIN_S = 1.0
# Who writes an item that is being erased may try again after this: an erasure takes seconds to minutes.
_ERASED_S = 5.0
# Most items of a chunk where Chroma answers queries of the collection.
_BESIDE_QUERIES = 64


class CollectionWriter:
    """The one writer of one collection."""

    def __init__(
        self, collection: Collection, store: WriteStore, chunk: int, room: int, surroundings: Surroundings | None = None
    ) -> None:
        """Starts the writer.

        Args:
            collection: what it writes to.
            store: where that is kept.
            chunk: most items written at once; of a collection without a mirror at most 64.
            room: most items waiting.
            surroundings: the rest of the indexer; None: there is none.
        """
        self.collection = collection
        self._chunk = chunk
        self._room = room
        self._queue = WriteQueue()
        self._surroundings = surroundings or Surroundings()
        self._committer = Committer(collection, store, self._surroundings)
        self._work = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._refused: frozenset[str] = frozenset()
        self._closed: LikenessError | None = None
        self._gone: LikenessError | None = None
        # Of no call's trace, though one has it made: it writes for all.
        self._task = asyncio.create_task(self._run(), name=f"writer of {collection.name}", context=Context())

    @property
    def waiting(self) -> int:
        """Items that wait."""
        return self._queue.waiting

    @property
    def oldest_s(self) -> float:
        """How long the call in front of the queue has waited, in seconds."""
        return self._queue.age_s

    @property
    def gone(self) -> bool:
        """Whether the collection has been deleted, and with it everything that waited."""
        return self._gone is not None

    @property
    def in_doubt(self) -> bool:
        """Whether Chroma may still carry out a request that got no answer; of a deleted collection nothing matters."""
        return not self.gone and self._committer.in_doubt

    async def write(self, changes: dict[str, Item | None]) -> int:
        """Writes upserts, or deletions where the item is None; never both in one call.

        Returns:
            When Chroma has them: how many items were stored, or how many of the deleted ones existed.

        Raises:
            LikenessError: OVERLOADED, COLLECTION_BUSY: nothing was done; COLLECTION_NOT_FOUND, SHUTTING_DOWN; what the
                store raises.
        """
        self._check_refused({item_id for item_id, item in changes.items() if item is not None})
        return await self._submit(lambda done: ItemsCall(changes, done), len(changes)) if changes else 0

    async def update(self, updates: Sequence[Update]) -> tuple[int, list[str]]:
        """Changes metadata: nothing of it if one change breaks a limit.

        Returns:
            When Chroma has them: how many of the items exist, and the ids of those that do not.

        Raises:
            LikenessError: METADATA_INVALID, naming the update; as ``write``.
        """
        self._check_refused({update.id for update in updates if update.set or update.remove or update.replace})
        return await self._submit(lambda done: UpdatesCall(updates, done), len(updates)) if updates else (0, [])

    async def delete_matching(self, where: Node) -> int:
        """Deletes the items for which a filter is true when its turn has come; returns how many.

        Raises:
            LikenessError: as ``write``; some may be gone.
        """
        return await self._submit(lambda done: FilterCall(where, done), 1)

    async def drain(self) -> None:
        """Writes what waits, then ends; deletions by a filter, waiting or under way, fail with SHUTTING_DOWN."""
        self._closed = stopping()
        self._work.set()
        # Whoever waits for the end may go; the chunk under way is finished all the same.
        await asyncio.shield(self._task)

    @asynccontextmanager
    async def deleting(self) -> AsyncIterator[None]:
        """Finishes the chunk under way, then holds all writes back while the block deletes the collection.

        Once it is gone, they fail with COLLECTION_NOT_FOUND and the writer ends. If the block fails otherwise, the
        writer goes on.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND: somebody else has deleted it meanwhile; what the block raises.
        """
        async with self._turn():
            try:
                yield
            except LikenessError as error:
                if error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND:
                    self._abandon()
                raise
            self._abandon()

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[set[str]]:
        """The ids of what is written or deleted from the beginning of the block on, or may be.

        Whoever takes some out finds them there again if they are written after that, or were being written just then.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND.
        """
        async with self._turn():
            recorded = self._committer.record()
        try:
            yield recorded
        finally:
            self._committer.stop_recording()

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[None]:
        """Finishes the chunk under way, settles what is in doubt, and holds all writes back during the block.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND, STORE_UNAVAILABLE.
        """
        async with self._turn():
            await self._committer.settle()
            yield

    async def review(self, ids: Sequence[str]) -> None:
        """Reads items back from Chroma, between two chunks, since somebody else may have written them.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND, STORE_UNAVAILABLE.
        """
        async with self._turn():
            await self._committer.review(ids)

    @contextmanager
    def refusing(self, ids: AbstractSet[str]) -> Iterator[None]:
        """Refuses calls that would write one of the items, with COLLECTION_BUSY, from now on and during the block."""
        self._refused = frozenset(ids)
        try:
            yield
        finally:
            self._refused = frozenset()

    def _check_refused(self, ids: AbstractSet[str]) -> None:
        found = min(self._refused & ids, default=None)
        if found is not None:
            message = (
                f"item {found!r} is being erased from {self.collection.name!r}; to write it again, wait until that has "
                "ended"
            )
            raise LikenessError(error_pb2.REASON_COLLECTION_BUSY, message, retry_after_s=_ERASED_S)

    async def _submit(self, call: Callable[[asyncio.Future[T]], Call], size: int) -> T:
        if self._closed is not None:
            raise self._closed
        if self._queue.waiting + size > self._room:
            message = (
                f"{self._queue.waiting} items are waiting to be written to {self.collection.name!r}, {size} more "
                f"would exceed {self._room}; try again in a moment, or send smaller calls"
            )
            raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=1.0)
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put(call(done))
        self._work.set()
        return await done

    def _abandon(self) -> None:
        self._closed = self._gone = not_found(self.collection.name)
        self._queue.fail(self._gone)
        self._work.set()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Time to do one thing with the collection, unless it is gone."""
        async with self._one_at_a_time:
            if self._gone is not None:
                raise self._gone
            yield

    @property
    def _most(self) -> int:
        """Items of the next chunk."""
        if self._surroundings.mirror_of(self.collection) is None:
            return min(self._chunk, _BESIDE_QUERIES)
        return self._chunk

    def _next(self, sequence: list[T]) -> tuple[list[T], list[T]]:
        """What goes into the next chunk, and the rest."""
        most = self._most
        return sequence[:most], sequence[most:]

    async def _run(self) -> None:
        try:
            await self._work_off()
        except BaseException:  # the loop ends, most likely
            self._closed = self._closed or stopping()
            self._queue.fail(self._closed)
            raise

    async def _work_off(self) -> None:
        heal_in_s: float | None = None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(heal_in_s):
                    await self._work.wait()
            self._work.clear()
            while await self._step():
                # 0: what failed just now is read before anything else is written. Less: it is time to read once more.
                due = self._committer.heal_in_s
                if due is not None and due < 0:
                    await self._heal()
            if self._closed is not None:
                return
            heal_in_s = await self._heal()

    async def _step(self) -> bool:
        """Writes what is next; False: there is nothing."""
        match self._queue.take(self._most):
            case None:
                return False
            case ItemsChunk() as chunk:
                await self._write(chunk)
            case FilterCall() as call:
                await self._clear(call)
            case calls:
                await self._update(calls)
        return True

    async def _heal(self) -> float | None:
        """Settles what is in doubt, if it is time; returns in how many seconds it is again."""
        due = self._committer.heal_in_s
        if due is None or due > 0:
            return due
        try:
            async with self._turn():
                await self._committer.heal()
        except LikenessError as error:
            if error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND:  # somebody deleted it in Chroma
                return None
        except Exception as error:  # whatever it is, no write succeeds before this does
            log.error("cannot read back what failed", collection=self.collection.name, exc_info=error)
        else:
            return self._committer.heal_in_s
        return _HEAL_AGAIN_S

    async def _write(self, chunk: ItemsChunk) -> None:
        try:
            async with self._turn():
                if chunk.deletes:
                    existed = await self._committer.existing(list(chunk.owners))
                    if existed:
                        await self._committer.delete([item_id for item_id in chunk.owners if item_id in existed])
                    self._committer.acknowledge(chunk.owners.keys() - existed)
                else:
                    # Whatever waits for the same id has a newer item: the last one in the queue's order counts.
                    items = [owners[-1].changes[item_id] for item_id, owners in chunk.owners.items()]
                    await self._committer.upsert([item for item in items if item is not None])
                    existed = set(chunk.owners)
        except BaseException as error:
            # The outcome of each call in the chunk, and of no other; the interceptor logs what nobody expected.
            fail_all(chunk.calls, error)
            return
        chunk.written(existed)

    async def _clear(self, call: FilterCall) -> None:
        try:
            async with self._turn():
                ids = await self._committer.matching(call.where)
            left = ids
            while left:
                async with self._turn():
                    if self._closed is not None:
                        raise self._closed
                    if call.done.done():  # its caller went away
                        return
                    part, left = self._next(left)
                    await self._committer.delete(part)
        except BaseException as error:
            fail_all([call], error)
            return
        if not call.done.done():
            call.done.set_result(len(ids))

    async def _update(self, calls: list[UpdatesCall]) -> None:
        try:
            async with self._turn():
                before = await self._committer.metadata(list({u.id: None for call in calls for u in call.updates}))
                after = dict(before)
                calls = [call for call in calls if merge(call, after)]
                labels = [Change(i, after[i], before[i]) for i in before if not same(before[i], after[i])]
                wanted = {update.id for call in calls for update in call.updates}
                unchanged = wanted & before.keys() - {change.id for change in labels}
                while labels:
                    part, labels = self._next(labels)
                    await self._committer.relabel(part)
                self._committer.acknowledge(unchanged)
        except BaseException as error:
            fail_all(calls, error)
            return
        for call in calls:
            if not call.done.done():
                missing = [update.id for update in call.updates if update.id not in before]
                call.done.set_result((len(call.updates) - len(missing), missing))
