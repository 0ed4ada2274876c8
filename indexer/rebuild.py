"""Storing a collection anew, while it is read and written.

1. An empty copy is staged, and the writer begins to record the ids of what it writes.
2. Everything is copied, 256 at a time, since nobody asks the copy anything yet, with the stamps that the items have.
3. What was written meanwhile is copied once more, until little is left. Then the ids of both are compared.
4. The writer is held for the rest. Both have the same number of items, and the copy becomes the collection.
5. The generation before is dropped.

Until the fourth step nothing has changed for anybody, and the copy is dropped if anything fails, behind the caller.
What comes after it, the next start does if need be.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from chassis.unbroken import unbroken
from indexer.changes import Change, Changes, compare
from indexer.collections import Collection, Hnsw
from indexer.jobs import Job
from indexer.reads import Item
from indexer.writes import StoredRecord

log = structlog.get_logger()

_PAGE = 256
# Items that may be left when the writer is held: half a second's work.
_LEFT = 256
# Now and then Chroma takes many seconds for a chunk: it should not be while the writer is held.
_QUICK_S = 2.0
# Writers that are quicker than the copy would otherwise keep it busy for ever.
_PASSES = 50


class RebuildStore(Protocol):
    """Where both are kept: see ``store.ChromaStore``."""

    async def count(self, collection: Collection, /) -> int:
        """Items in it."""

    async def ids(self, collection: Collection) -> list[str]:
        """The ids of all items."""

    async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
        """Those of the items that exist."""

    async def write(self, collection: Collection, changes: Changes, stamp: dict[str, int]) -> None:
        """Writes what has changed; each id has a stamp."""

    async def delete(self, collection: Collection, ids: Sequence[str]) -> None:
        """Deletes items; what does not exist is no error."""


class RebuildWriters(Protocol):
    """Who writes meanwhile: see ``writers.Writers``."""

    def recording(self, collection: Collection) -> AbstractAsyncContextManager[set[str]]:
        """The ids of what is written during the block."""

    def holding(self, collection: Collection) -> AbstractAsyncContextManager[None]:
        """Holds back writes during the block, with nothing in doubt."""


class Generations(Protocol):
    """What becomes of copies: see ``catalog.Collections``."""

    async def stage_copy(self, collection: Collection, hnsw: Hnsw) -> Collection:
        """Makes an empty next generation that nobody sees."""

    async def commit(self, copy: Collection) -> Collection:
        """Makes it the collection."""

    def discard(self, copy: Collection) -> None:
        """Has it dropped."""

    async def drop_generation(self, old: Collection) -> None:
        """Drops what has been replaced."""


class Rebuild:
    """Stores collections anew."""

    def __init__(
        self,
        store: RebuildStore,
        writers: RebuildWriters,
        generations: Generations,
        *,
        may_commit: Callable[[], None],
        committed: Callable[[Collection], None],
    ) -> None:
        """What it works with.

        Args:
            store: where collections are kept.
            writers: who writes meanwhile.
            generations: what becomes of copies.
            may_commit: asked at the last moment, with the writer held; what it raises undoes everything.
            committed: told of the collection as it is now, with the writer still held.
        """
        self._store = store
        self._writers = writers
        self._generations = generations
        self._may_commit = may_commit
        self._committed = committed

    async def __call__(
        self, job: Job[Any], collection: Collection, remember: Callable[[], Awaitable[None]]
    ) -> Collection:
        """Stores a collection anew with its present HNSW parameters; ``drop`` is to follow.

        Args:
            job: told how far it is, and of its point of no return.
            collection: which, as it is now.
            remember: called when there will soon be something that must be finished.

        Returns:
            The collection as it is stored now.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND: it was deleted meanwhile; STORE_UNAVAILABLE, STORE_FULL; nothing has
                changed.
        """
        copy = await self._generations.stage_copy(collection, collection.hnsw)
        committed: Collection | None = None
        try:
            async with self._writers.recording(collection) as changed:
                await self._copy(job, collection, copy)
                await self._catch_up(job, collection, copy, changed)
                await remember()
                async with self._writers.holding(collection):
                    began = time.monotonic()
                    await self._take_over(collection, copy, changed)
                    await self._check(collection, copy)
                    self._may_commit()
                    job.no_return()
                    committed = await unbroken(self._generations.commit(copy))
                    self._committed(committed)
                    log.info(
                        "collection stored anew",
                        collection=collection.name,
                        generation=committed.generation,
                        writes_waited_s=round(time.monotonic() - began, 3),
                    )
        finally:
            if committed is None:
                self._generations.discard(copy)
        return committed

    async def drop(self, old: Collection) -> bool:
        """Drops the generation before: now or, if that fails or is cancelled, at the next start; whether now."""
        try:
            await self._generations.drop_generation(old)
        except LikenessError as error:
            log.warning("the next start drops what was replaced", collection=old.name, why=error.message)
            return False
        return True

    async def _copy(self, job: Job[Any], old: Collection, copy: Collection) -> None:
        ids = await self._store.ids(old)
        for begin in range(0, len(ids), _PAGE):
            job.report("copying", begin, len(ids))
            await self._put(copy, await self._store.read(old, ids[begin : begin + _PAGE]))
        job.report("copying", len(ids), len(ids))

    async def _catch_up(self, job: Job[Any], old: Collection, copy: Collection, changed: set[str]) -> None:
        for _ in range(_PASSES):
            job.report("copying what was written meanwhile", 0, len(changed))
            began = time.monotonic()
            await self._take_over(old, copy, changed)
            if len(changed) <= _LEFT and time.monotonic() - began < _QUICK_S:
                break
        job.report("comparing")
        there, copied = set(await self._store.ids(old)), set(await self._store.ids(copy))
        unexplained = (there ^ copied) - changed
        if unexplained:
            log.warning("copying items once more", collection=old.name, items=len(unexplained))
            await self._take_over(old, copy, unexplained)

    async def _take_over(self, old: Collection, copy: Collection, changed: set[str]) -> None:
        """Makes the copy equal in all ids that have changed; those that change meanwhile are left in the set."""
        ids = sorted(changed)
        changed.clear()
        try:
            for begin in range(0, len(ids), _PAGE):
                part = ids[begin : begin + _PAGE]
                there, copied = await self._store.read(old, part), await self._store.read(copy, part)
                gone = sorted({r.id for r in copied} - {r.id for r in there})
                if gone:
                    await self._store.delete(copy, gone)
                await self._put(copy, there, copied)
        except BaseException:
            changed.update(ids)
            raise

    async def _put(
        self, copy: Collection, records: Sequence[StoredRecord], copied: Sequence[StoredRecord] = ()
    ) -> None:
        stored = {record.id: (record.vector, record.metadata) for record in copied}
        items = [Item(record.id, record.vector, record.metadata) for record in records]
        changes = compare(items, stored, copy.metric)
        stamps = {record.id: record.stamp for record in records}
        # By the stamp alone snapshots and other indexers see that an item was changed and changed back.
        written = {item.id for item in changes.items}
        older = {r.id for r in copied if r.id in stamps and r.id not in written and r.stamp != stamps[r.id]}
        changes.labels += [Change(i.id, i.metadata, stored[i.id][1]) for i in items if i.id in older]
        changes.relabelled += [item for item in items if item.id in older]
        await self._store.write(copy, changes, stamps)

    async def _check(self, old: Collection, copy: Collection) -> None:
        there, copied = await self._store.count(old), await self._store.count(copy)
        if there != copied:
            message = f"{old.name!r} has {there:,} items and its copy {copied:,}; nothing was changed, try again"
            raise LikenessError(error_pb2.REASON_INTERNAL, message)
