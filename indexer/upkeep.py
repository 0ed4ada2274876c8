"""Rebuilding and erasing as jobs, what the next start has to finish, and the disk space that Chroma gives back.

What has begun and cannot be undone is remembered in ``DATA_DIR/unfinished``, a file a collection, named after its uid,
that says what it was and holds nothing of its items.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import structlog

from chassis.durable import to_disk
from chassis.errors import LikenessError
from chassis.unbroken import unbroken
from indexer import reclaim
from indexer.catalog import Collections
from indexer.collections import Collection
from indexer.disk import DiskGuard
from indexer.disk_usage import folder_bytes
from indexer.erase import Erased, Erasure
from indexer.jobs import Job, Jobs
from indexer.reads import Reader
from indexer.rebuild import Rebuild

log = structlog.get_logger()

Kind = Literal["rebuild", "erasure"]

# Collections that are deleted together give their space back together.
_DEBOUNCE_S = 1.0
# Longest wait for what is left of an earlier run or of failed work, in seconds: with a full disk, it may never go.
_LEFT_S = 900.0
# How often, and how long, it is waited for a moment without writes.
_LOOK_S, _LOOKS = 0.5, 60


@dataclass(frozen=True)
class Rebuilt:
    """What became of a rebuild.

    Attributes:
        collection: as it is stored now.
        count: items in it.
        bytes_before: that the data directory took; 0: unknown.
        bytes_after: that it takes now.
    """

    collection: Collection
    count: int
    bytes_before: int
    bytes_after: int


class Serving(Protocol):
    """What serves reads: see ``registry.Registry``."""

    async def renew(self, collection: Collection) -> None:
        """Clears what is no longer in a collection from memory and its snapshots."""

    def reader(self, collection: Collection) -> Reader:
        """What answers reads of it."""


class Observer(Protocol):
    """Counts what was done: see ``metrics.Metrics``."""

    def job(self, kind: Kind, result: Literal["ok", "failed"]) -> None:
        """A collection was stored anew, or items erased; or not."""


@dataclass(frozen=True, eq=False)
class OwnFiles:
    """The data directory, where Chroma is our own.

    Attributes:
        data_dir: it.
        disk: refuses what there is no room for.
        pause: stops Chroma during a block, while what is asked of it waits.
    """

    data_dir: Path
    disk: DiskGuard
    pause: Callable[[], AbstractAsyncContextManager[None]]

    @property
    def chroma(self) -> Path:
        """Chroma's own directory."""
        return self.data_dir / "chroma"

    async def compact(self) -> None:
        """Removes what belongs to nothing any more from Chroma's files; writes wait meanwhile.

        Raises:
            LikenessError: STORE_FULL, STORE_UNAVAILABLE.
        """
        await asyncio.to_thread(reclaim.remove_orphans, self.chroma)
        await unbroken(self._compact())

    async def _compact(self) -> None:
        async with self.pause():
            await asyncio.to_thread(reclaim.compact, self.chroma)

    def require_room(self, collection: Collection) -> None:
        """Refuses a rebuild that the disk has no room for. For a thread.

        Raises:
            LikenessError: STORE_FULL.
        """
        index = reclaim.index_directory(self.chroma, collection.key)
        rows = (self.chroma / reclaim.DATABASE).stat().st_size
        needed = 3 * rows + (0 if index is None else folder_bytes(index))
        self.disk.require(needed, f"storing {collection.name!r} anew")


class Upkeep:
    """Jobs that store collections anew. Used from the event loop."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        collections: Collections,
        rebuild: Rebuild,
        erasure: Erasure,
        serving: Serving,
        files: OwnFiles | None,
        unfinished: Path,
        waiting: Callable[[], int],
        observer: Observer,
    ) -> None:
        """Nothing is under way.

        Args:
            jobs: those under way.
            collections: the collections there are.
            rebuild: stores one anew.
            erasure: erases items.
            serving: what serves reads.
            files: the data directory; None: Chroma is somebody else's.
            unfinished: the folder in which is remembered what has to be finished.
            waiting: how many items wait to be written.
            observer: told what was done.
        """
        self._jobs = jobs
        self._collections = collections
        self._rebuild = rebuild
        self._erasure = erasure
        self._serving = serving
        self._files = files
        self._unfinished = unfinished
        self._waiting = waiting
        self._observer = observer
        self._tidying: asyncio.Task[None] | None = None
        self._untidy: set[str] = set()  # uids of collections that are no more, and whose traces have to go
        self._left_over: set[str] = set()  # uids of those of which the next start drops what is left
        self._dropped = False
        self._purging = 0

    def rebuild(self, collection: Collection) -> Job[Rebuilt]:
        """Begins to store a collection anew.

        Raises:
            LikenessError: COLLECTION_BUSY, SHUTTING_DOWN; the job: STORE_FULL and what ``Rebuild`` raises.
        """

        async def work(job: Job[Rebuilt]) -> Rebuilt:
            before = await self._bytes()
            now = await self._purge(job, collection, "rebuild")
            await self._forget(collection.uid)
            count = await self._serving.reader(now).count(now, None)
            return Rebuilt(now, count, before, await self._bytes())

        return self._run(collection, "rebuild", work)

    def erase(self, collection: Collection, ids: Sequence[str], delete_backups: bool) -> Job[Erased]:
        """Begins to erase items.

        Args:
            collection: whose.
            ids: each once.
            delete_backups: whether backups of the collection that hold one go too.

        Raises:
            LikenessError: COLLECTION_BUSY, SHUTTING_DOWN; the job: STORE_FULL and what ``Erasure`` raises.
        """

        async def work(job: Job[Erased]) -> Erased:
            await self._require_room(collection)

            async def begin() -> None:
                await self._remember(collection.uid, "erasure")

            async def purge() -> None:
                await self._purge(job, collection, "erasure")

            erased = await self._erasure(job, collection, ids, delete_backups=delete_backups, begin=begin, purge=purge)
            if not erased.found_in:  # else the next start tries once more
                await self._forget(collection.uid)
            return erased

        return self._run(collection, "erasure", work)

    async def resume(self) -> None:
        """Begins to finish what an earlier run left, once everything is served.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        left = await asyncio.to_thread(self._left)
        if left:
            there = {c.uid: c for c in (await self._collections.list("", 2**31))[0] if isinstance(c, Collection)}
            for uid, kind in left.items():
                log.info("finishing what an earlier run left", collection=uid, job=kind)
                if uid in there:
                    self._finish(there[uid], kind)
                elif self._files is None:  # deleted since, and no file of ours
                    await self._forget(uid)
                else:  # deleted since: only its traces are left
                    self._untidy.add(uid)
        self.deleted()

    def deleted(self) -> None:
        """A collection was deleted: its disk space comes back soon."""
        self._dropped = True
        if self._files is not None and (self._tidying is None or self._tidying.done()):
            tidying = self._tidy(self._files)  # after more deletions than this: in no call's trace
            self._tidying = asyncio.create_task(tidying, name="reclaiming disk space", context=Context())

    async def stop(self) -> None:
        """Ends what it does by itself; jobs have ended."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.wait({self._tidying})

    def _run(self, collection: Collection, kind: Kind, work: Callable[[Job[Any]], Any]) -> Job[Any]:
        async def observed(job: Job[Any]) -> Any:
            try:
                result = await work(job)
            except Exception:
                self._observer.job(kind, "failed")
                raise
            self._observer.job(kind, "ok")
            return result

        return self._jobs.run(collection.uid, kind, collection.name, observed)

    def _finish(self, collection: Collection, kind: Kind) -> None:
        async def work(job: Job[None]) -> None:
            if kind == "erasure":
                await self._purge(job, collection, kind)
            else:
                await self._clear(job, collection)
            await self._forget(collection.uid)

        self._run(collection, kind, work)

    async def _left_dropped(self, uids: set[str]) -> None:
        """Waits for what may hold traces of these collections; where it stays, the next start clears them away."""
        try:
            async with asyncio.timeout(_LEFT_S):
                dropped = await self._collections.left_dropped()
        except TimeoutError:
            dropped = False
        if not dropped:
            self._left_over |= uids

    async def _purge(self, job: Job[Any], collection: Collection, kind: Kind) -> Collection:
        """Stores a collection anew, and clears away what was."""
        await self._require_room(collection)
        self._purging += 1
        try:
            now = await self._rebuild(job, collection, lambda: self._remember(collection.uid, kind))
            job.only_tidying()
            job.report("dropping what was replaced")
            if not await self._rebuild.drop(collection):
                self._left_over.add(collection.uid)
            await self._clear(job, now)
        finally:
            self._purging -= 1
        return now

    async def _clear(self, job: Job[Any], collection: Collection) -> None:
        job.report("building the index in memory")
        await self._serving.renew(collection)
        if self._files is not None:
            job.report("dropping what is left of earlier work")
            await self._left_dropped({collection.uid})
            job.report("clearing Chroma's files")
            await self._files.compact()

    async def _require_room(self, collection: Collection) -> None:
        if self._files is not None:
            await asyncio.to_thread(self._files.require_room, collection)

    async def _bytes(self) -> int:
        return 0 if self._files is None else await asyncio.to_thread(folder_bytes, self._files.data_dir)

    async def _tidy(self, files: OwnFiles) -> None:
        await self._left_dropped(self._untidy)
        while self._dropped:
            await asyncio.sleep(_DEBOUNCE_S)  # a pace, not a wait for anything
            self._dropped = False
            try:
                await self._tidy_once(files)
            except (LikenessError, OSError, sqlite3.Error) as error:  # the next deletion, or start, tries again
                log.warning("disk space does not come back yet", why=str(error))
            except Exception as error:  # which must not end the tidying
                log.error("disk space does not come back", exc_info=error)

    async def _tidy_once(self, files: OwnFiles) -> None:
        if self._purging:  # which comes to it itself
            return
        await asyncio.to_thread(reclaim.remove_orphans, files.chroma)
        if bool(self._untidy) or await asyncio.to_thread(reclaim.worth_compacting, files.chroma):
            for _ in range(_LOOKS):
                if not self._waiting():
                    break
                await asyncio.sleep(_LOOK_S)
            uids = set(self._untidy)
            await files.compact()
            for uid in uids:
                await self._forget(uid)
            self._untidy -= uids

    async def _remember(self, uid: str, kind: Kind) -> None:
        await asyncio.to_thread(self._write, uid, kind)

    def _write(self, uid: str, kind: Kind) -> None:
        self._unfinished.mkdir(parents=True, exist_ok=True)
        path = self._unfinished / uid
        if kind == "rebuild" and path.exists():  # less than what is to be finished already
            return
        path.write_text(kind)
        to_disk(path)
        to_disk(self._unfinished)

    async def _forget(self, uid: str) -> None:
        """There is nothing to finish, unless what was replaced is still there."""
        if uid in self._left_over:
            return
        await asyncio.to_thread((self._unfinished / uid).unlink, missing_ok=True)

    def _left(self) -> dict[str, Kind]:
        if not self._unfinished.is_dir():
            return {}
        # One that was cut off while it was written is taken for the greater task.
        return {p.name: "rebuild" if p.read_text() == "rebuild" else "erasure" for p in self._unfinished.iterdir()}
