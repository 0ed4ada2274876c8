"""Deleting items so that nothing of them is left on the disk, and looking for what is.

1. Writes of the items are refused until the end. What they leave is listed: ids, strings, vectors.
2. Control: all of it must be found in Chroma's files now. A search that misses what is there would prove nothing.
3. They are deleted, the collection is stored anew, memory and its snapshots are cleared, Chroma's file is written anew.
4. The whole data directory is searched. What is found and is another item's as well does not count.

From the deletion on it is finished by the next start, if it does not come to its end: ``upkeep`` remembers that.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, incident
from indexer.collections import Collection, Metric
from indexer.jobs import Job
from indexer.reads import Fields, Reader
from indexer.traces import Searched, Traces
from indexer.writes import StoredRecord, Update

_EVERYTHING = Fields(metadata=True, vector=True)


@dataclass(frozen=True)
class Erased:
    """What was erased, and how that was checked: the contract's ErasureReport.

    Attributes:
        deleted: items that existed.
        files: that were read in search of traces; 0: they are somebody else's.
        size: bytes in them.
        found_in: files that hold something, relative to the data directory.
        traces: what was searched for.
        left_out: strings that were not.
        other_collections: that hold one of the ids.
        backups: that still hold one, of this collection or of others.
        deleted_backups: that did.
        ended: when, UTC.
    """

    deleted: int
    files: int
    size: int
    found_in: list[str]
    traces: int
    left_out: int
    other_collections: list[str]
    backups: list[str]
    deleted_backups: list[str]
    ended: datetime


class EraseStore(Protocol):
    """Where items are: see ``store.ChromaStore``."""

    async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
        """Those of the items that exist."""

    async def existing(self, collection: Collection, ids: Sequence[str]) -> set[str]:
        """Which of ``ids`` exist."""


class EraseWriters(Protocol):
    """Who writes: see ``writers.Writers``."""

    def refusing(self, collection: Collection, ids: AbstractSet[str]) -> AbstractContextManager[None]:
        """Refuses writes of the items during the block."""

    async def update_metadata(self, collection: Collection, updates: Sequence[Update]) -> tuple[int, list[str]]:
        """Changes metadata, after what came before."""

    async def delete(self, collection: Collection, ids: Sequence[str]) -> int:
        """Deletes items; returns how many existed."""


class Backups(Protocol):
    """Backups: see ``archive.Archive``."""

    async def holding(self, collection: str, ids: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        """The backups that hold one of the items: those of a collection, and those of others."""

    async def delete(self, name: str) -> None:
        """Deletes one, or raises COLLECTION_BUSY while it is restored, SNAPSHOT_NOT_FOUND if it is gone."""


@dataclass(frozen=True, eq=False)
class Erasure:
    """Erases items.

    Attributes:
        store: where they are.
        writers: who writes.
        reader: what answers reads of a collection.
        backups: of collections.
        everything: the collections there are.
        data_dir: what is searched; None: Chroma's files are somebody else's.
    """

    store: EraseStore
    writers: EraseWriters
    reader: Callable[[Collection], Reader]
    backups: Backups
    everything: Callable[[], Awaitable[Sequence[Collection]]]
    data_dir: Path | None

    async def __call__(
        self,
        job: Job[Any],
        collection: Collection,
        ids: Sequence[str],
        *,
        delete_backups: bool,
        begin: Callable[[], Awaitable[None]],
        purge: Callable[[], Awaitable[None]],
    ) -> Erased:
        """Erases items.

        Args:
            job: told how far it is.
            collection: whose.
            ids: each once; unknown ones are no error.
            delete_backups: whether backups of the collection that hold one go too.
            begin: called when it is time to remember that this has to be finished.
            purge: stores the collection anew and clears everything that is no longer in it.

        Raises:
            LikenessError: INTERNAL: the control failed, and nothing was done; what the store raises.
        """
        with self.writers.refusing(collection, frozenset(ids)):
            # It changes nothing, and is done once everything is that was waiting to be written.
            await self.writers.update_metadata(collection, [Update(item_id) for item_id in ids])
            job.report("reading the items", 0, len(ids))
            records = await self.store.read(collection, ids)
            traces = Traces.of(ids, records, cosine=collection.metric is Metric.COSINE)
            await self._control(job, collection, traces)
            job.report("deleting", 0, len(records))
            await begin()
            job.no_return()
            deleted = await self.writers.delete(collection, ids)
            job.only_tidying()
            await purge()
            searched, found, left_out = await self._look(job, traces)
            own, foreign = await self.backups.holding(collection.name, ids)
            deleted_backups = [name for name in own if await self._deleted(name)] if delete_backups else []
            others = [
                other.name
                for other in await self.everything()
                if other.uid != collection.uid and await self.store.existing(other, ids)
            ]
        return Erased(
            deleted=deleted,
            files=0 if searched is None else searched.files,
            size=0 if searched is None else searched.size,
            found_in=found,
            traces=0 if searched is None else len(traces.traces) - left_out,
            left_out=traces.too_short + left_out,
            other_collections=others,
            backups=[*(name for name in own if name not in deleted_backups), *foreign],
            deleted_backups=deleted_backups,
            ended=datetime.now(UTC),
        )

    async def _deleted(self, backup: str) -> bool:
        """Deletes a backup, unless that is being restored: the report tells of it, and all else is erased by now."""
        try:
            await self.backups.delete(backup)
        except LikenessError as error:
            if error.reason == error_pb2.REASON_COLLECTION_BUSY:
                return False
            if error.reason != error_pb2.REASON_SNAPSHOT_NOT_FOUND:  # somebody else has deleted it meanwhile
                raise
        return True

    async def _control(self, job: Job[Any], collection: Collection, traces: Traces) -> None:
        if self.data_dir is None:
            return
        found = (await self._search(job, "searching what is there now", self.data_dir / "chroma", traces)).windows
        missed = sum(trace.stored and not trace.windows & found for trace in traces.traces)
        if missed:
            message = (
                f"a search of the files does not find {missed:,} of {len(traces.traces):,} traces of items that are "
                f"stored in {collection.name!r}, so it could not show that they are gone; nothing was erased. Rebuild "
                "the collection, then try again"
            )
            fault = incident("an erasure was not begun", RuntimeError(message))
            fault.message = f"{fault.message}: {message}"
            raise fault

    async def _look(self, job: Job[Any], traces: Traces) -> tuple[Searched | None, list[str], int]:
        """What was searched, in which files something was found, and how many traces other items have as well."""
        if self.data_dir is None:
            return None, [], 0
        searched = await self._search(job, "searching for what is left", self.data_dir, traces)
        shared = searched.windows & await self._of_others(job, traces) if searched.windows else set()
        found = [str(path.relative_to(self.data_dir)) for path, windows in searched.found.items() if windows - shared]
        return searched, sorted(found), sum(trace.plain <= shared for trace in traces.traces)

    async def _search(self, job: Job[Any], stage: str, folder: Path, traces: Traces) -> Searched:
        loop, ended = asyncio.get_running_loop(), False

        def progress(size: int) -> None:
            if ended:
                raise _EndedError
            loop.call_soon_threadsafe(job.report, stage, size)

        try:
            return await asyncio.to_thread(traces.search, folder, progress)
        finally:
            ended = True

    async def _of_others(self, job: Job[Any], traces: Traces) -> set[int]:
        """The windows that are in items which are stored, or in what is known of collections."""
        found: set[int] = set()
        for collection in await self.everything():
            found |= await asyncio.to_thread(traces.found, repr(collection).encode())
            scan = await self.reader(collection).scan(collection, None, "", _EVERYTHING)
            done = 0
            async with aclosing(scan.batches) as batches:
                async for batch in batches:
                    done += len(batch.ids)
                    job.report("comparing with other items", done, scan.total)
                    parts = ["\0".join(batch.ids).encode(), b"\0".join(batch.packed or ())]
                    parts += [v.astype("<f4").tobytes() for v in (batch.vectors, batch.originals()) if v is not None]
                    for part in parts:
                        found |= await asyncio.to_thread(traces.found, part)
        return found


class _EndedError(Exception):
    """Nobody waits for a search any more."""
