"""The backups of an indexer: one place that makes, lists, deletes and restores them."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from typing import Protocol

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.archive.backup import BackUp, Made
from indexer.archive.files import Storage
from indexer.archive.restore import Restore, Restored, RestoreStore, Serves
from indexer.archive.snapshots import Snapshot, Snapshots
from indexer.archive.threads import Threads
from indexer.catalog import Collections
from indexer.collections import Collection
from indexer.jobs import Job, Jobs
from indexer.reads import Reader
from indexer.writes import Mirror

Hold = Callable[[Collection], AbstractAsyncContextManager[None]]


class Observer(Protocol):
    """Counts backups: see ``metrics.Metrics``."""

    def backup(self, made: bool) -> None:
        """One was made, or could not be."""

    def restored(self, ok: bool) -> None:
        """One was made a collection, or could not be."""


class Serving(Serves, Protocol):
    """What serves collections: see ``registry.Registry``."""

    def reader(self, collection: Collection) -> Reader:
        """What answers reads of a collection now."""

    def mirror_of(self, collection: Collection) -> Mirror | None:
        """The collection in memory, if it is there."""


class Archive:
    """Backups; used from the event loop."""

    def __init__(
        self,
        storage: Storage,
        *,
        keep: int,
        chunk: int,
        jobs: Jobs,
        collections: Collections,
        store: RestoreStore,
        serving: Serving,
        hold: Hold,
        admit: Callable[[Collection, int], None],
        observer: Observer,
    ) -> None:
        """An archive.

        Args:
            storage: where the backups are.
            keep: most backups of a collection; 0: all.
            chunk: most items written at once when one is restored.
            jobs: those under way.
            collections: the collections there are.
            store: where their items are.
            serving: what serves them.
            hold: has writes to a collection wait.
            admit: refuses so many items more, by raising, where the disk is full.
            observer: told what became of backups.
        """
        self._serving = serving
        self._hold = hold
        self._jobs = jobs
        self._observer = observer
        self._in_use: Counter[str] = Counter()
        self._threads = threads = Threads()
        self._snapshots = snapshots = Snapshots(storage)
        self._back_up = BackUp(storage, snapshots, threads, serving.reader, self._still, keep, self._used)
        self._restore = Restore(storage, snapshots, threads, collections, store, serving, admit, chunk)

    def create(self, collection: Collection) -> Job[Made]:
        """Begins to make a backup; the job raises what ``BackUp`` does.

        Raises:
            LikenessError: COLLECTION_BUSY or SHUTTING_DOWN.
        """

        async def work(job: Job[Made]) -> Made:
            with self._counted(self._observer.backup):
                return await self._back_up(collection, job)

        return self._jobs.run(collection.uid, "backup", collection.name, work)

    async def list(self, collection: str = "") -> Sequence[Snapshot]:
        """The backups, of one collection or of all, the newest first.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        return await self._threads.run(lambda: self._snapshots.all(collection))

    async def delete(self, name: str) -> None:
        """Deletes a backup.

        Raises:
            LikenessError: SNAPSHOT_NOT_FOUND; COLLECTION_BUSY: it is being restored; STORE_UNAVAILABLE.
        """
        if self._in_use[name]:
            message = f"backup {name!r} is being restored; delete it when that has ended"
            raise LikenessError(error_pb2.REASON_COLLECTION_BUSY, message)
        await self._threads.run(lambda: self._snapshots.delete(name))

    async def restore(self, name: str, collection: str = "") -> Job[Restored]:
        """Begins to make a collection of a backup; the job raises what ``Restore`` does.

        Args:
            name: the backup's.
            collection: the collection's; empty: the one it had.

        Raises:
            LikenessError: SNAPSHOT_NOT_FOUND, SNAPSHOT_DAMAGED, SCHEMA_UNSUPPORTED, COLLECTION_BUSY, STORE_UNAVAILABLE
                or SHUTTING_DOWN.
        """
        with ExitStack() as using:
            using.enter_context(self._using(name))
            manifest = await self._threads.run(lambda: self._snapshots.manifest(name))
            made = collection or manifest.collection.name

            async def work(job: Job[Restored]) -> Restored:
                with self._counted(self._observer.restored):
                    return await self._restore(name, manifest, made, job)

            job = self._jobs.run(f"name:{made}", "restore", made, work)
            used = using.pop_all()
            job.task.add_done_callback(lambda _: used.close())
            return job

    async def holding(self, collection: str, ids: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        """The backups that hold one of the items; those that cannot be read count as if they did.

        What unfinished backups of the collection have left is removed, but for those that are under way: of a
        collection of that name that was deleted.

        Returns:
            Those of the collection, and those of collections of other names: it may have been restored from one.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """

        def look() -> tuple[Sequence[str], Sequence[str]]:
            for left in self._back_up.unfinished(collection):
                self._snapshots.remove(left)
            found = self._snapshots.holding(ids)
            return (
                [snapshot.name for snapshot in found if snapshot.collection == collection],
                [snapshot.name for snapshot in found if snapshot.collection != collection],
            )

        return await self._threads.run(look)

    def close(self) -> None:
        """Ends its threads; once no job is under way any more."""
        self._threads.close()

    @asynccontextmanager
    async def _still(self, collection: Collection) -> AsyncIterator[None]:
        """Keeps a collection from changing, where a scan of it shows more than one state."""
        if self._serving.mirror_of(collection) is not None:
            yield
            return
        async with self._hold(collection):
            yield

    def _used(self) -> frozenset[str]:
        return frozenset(+self._in_use)

    @contextmanager
    def _using(self, name: str) -> Iterator[None]:
        self._in_use[name] += 1
        try:
            yield
        finally:
            self._in_use[name] -= 1

    @contextmanager
    def _counted(self, count: Callable[[bool], None]) -> Iterator[None]:
        try:
            yield
        except BaseException:
            count(False)
            raise
        count(True)
