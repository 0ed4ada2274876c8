"""Makes a backup of a collection.

1. The collection is read in one state, in the order of the ids, and written to files of a new folder.
2. The manifest follows: only now it is a backup. What fails before leaves nothing.
3. What earlier attempts have left goes, and older backups, as far as they are not to be kept.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from importlib.metadata import version

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.archive.files import Storage
from indexer.archive.manifest import Manifest, Part
from indexer.archive.parts import PartsWriter
from indexer.archive.snapshots import Snapshot, Snapshots
from indexer.archive.threads import Threads
from indexer.collections import Collection
from indexer.jobs import Job
from indexer.reads import Fields, Reader

log = structlog.get_logger()

# Of an item, besides its vector, before its metadata are known.
_BESIDE_VECTOR = 100


@dataclass(frozen=True)
class Made:
    """What became of it.

    Attributes:
        snapshot: the backup.
        deleted: older ones that were deleted.
    """

    snapshot: Snapshot
    deleted: Sequence[str]


@dataclass(frozen=True)
class BackUp:
    """How backups are made.

    Attributes:
        storage: where they go.
        snapshots: those there are.
        threads: for what blocks.
        reader: what answers reads of a collection now.
        still: keeps a collection from changing while it is read; does nothing where a scan shows one state anyway.
        keep: most backups of a collection; 0: all.
        in_use: backups that must not be deleted now.
    """

    storage: Storage
    snapshots: Snapshots
    threads: Threads
    reader: Callable[[Collection], Reader]
    still: Callable[[Collection], AbstractAsyncContextManager[None]]
    keep: int
    in_use: Callable[[], frozenset[str]]
    # Of one collection's name there may be several: it was deleted amid a backup, and made anew.
    _under_way: set[str] = field(default_factory=set, init=False)

    async def __call__(self, collection: Collection, job: Job[Made]) -> Made:
        """Makes one.

        Raises:
            LikenessError: STORE_FULL, STORE_UNAVAILABLE, COLLECTION_NOT_FOUND; nothing is left of it then.
        """
        name = await self.threads.run(lambda: self.snapshots.new_name(collection.name))
        writer = PartsWriter(self.storage, name, collection.fingerprint.dimension)
        self._under_way.add(name)
        try:
            await self.threads.run(lambda: self.storage.make(name))
            parts = await self._copy(collection, writer, job)
            # From here on it takes a moment.
            job.no_return()
            manifest = Manifest(
                collection, Snapshot(name, None, 0).created, sum(p.rows for p in parts), parts, _releases()
            )
            snapshot = await self.threads.run(lambda: self.snapshots.complete(name, manifest))
        except BaseException:
            await self._undo(name, writer)
            raise
        finally:
            self._under_way.discard(name)
        return Made(snapshot, await self._clear(snapshot))

    async def _copy(self, collection: Collection, writer: PartsWriter, job: Job[Made]) -> list[Part]:
        async with self.still(collection):
            scan = await self.reader(collection).scan(collection, None, "", Fields(metadata=True, vector=True))
            room = scan.total * (4 * collection.fingerprint.dimension + _BESIDE_VECTOR)
            await self.threads.run(lambda: self.storage.require_room(room))
            done = 0
            job.report("copying", done, scan.total)
            async with aclosing(scan.batches) as batches:
                async for batch in batches:
                    await self.threads.run(lambda batch=batch: writer.add(batch))  # type: ignore[misc]
                    done += len(batch.ids)
                    job.report("copying", done, scan.total)
            parts = await self.threads.run(writer.finish)
        if done != scan.total:
            message = (
                f"collection {collection.name!r} was changed in Chroma while it was read: {done:,} of {scan.total:,} "
                "items were there; try again, and see that nobody else writes to this Chroma"
            )
            raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, message)
        return parts

    async def _undo(self, name: str, writer: PartsWriter) -> None:
        def undo() -> None:
            writer.abandon()
            self.snapshots.remove(name)

        try:
            await self.threads.run(undo)
        except LikenessError as error:
            log.warning("what a failed backup has left cannot be removed", backup=name, why=error.message)

    async def _clear(self, made: Snapshot) -> list[str]:
        """Deletes what is not wanted any more; what cannot be deleted now, the next backup deletes."""
        try:
            return await self.threads.run(lambda: self._clear_now(made))
        except LikenessError as error:
            log.warning("older backups cannot be deleted", backup=made.name, why=error.message)
            return []

    def unfinished(self, collection: str) -> list[str]:
        """What backups of collections of that name have left, but for those that are under way. For a thread."""
        # Those that end meanwhile were under way before, those that begin meanwhile are afterwards.
        under_way = frozenset(self._under_way)
        left = self.snapshots.leftovers(collection)
        return [name for name in left if name not in under_way and name not in self._under_way]

    def _clear_now(self, made: Snapshot) -> list[str]:
        for name in self.unfinished(made.collection):
            log.info("removing what an unfinished backup has left", backup=name)
            self.snapshots.remove(name)
        if not self.keep:
            return []
        # One that cannot be restored keeps none from being kept, and is kept: somebody may bring its files back.
        others = [s.name for s in self.snapshots.all(made.collection) if not s.fault and s.name != made.name]
        deleted = [name for name in others[self.keep - 1 :] if name not in self.in_use()]
        for name in deleted:
            self.snapshots.remove(name)
        return deleted


def _releases() -> dict[str, str]:
    return {"likeness": version("likeness"), "chromadb": version("chromadb"), "pyarrow": version("pyarrow")}
