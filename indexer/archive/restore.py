"""Makes a collection from a backup.

1. A collection that nobody sees is made: from now on its name is taken, and what the backup is of is not deleted, since
   the pictures are found under its uid.
2. Every file is read to its end and compared with the manifest.
3. The items are written, through the store like all others, and to what will serve them.
4. They are counted, the collection is committed, and it is served. What fails before leaves nothing, once what it made
   is dropped.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from google.protobuf.message import DecodeError
from likeness.common.v1.metadata_pb2 import Metadata

from chassis import metadata, names
from chassis.errors import LikenessError
from chassis.vectors import Array
from indexer.archive import parts
from indexer.archive.files import Storage
from indexer.archive.manifest import Manifest, Part, damaged
from indexer.archive.snapshots import Snapshots
from indexer.archive.threads import Threads
from indexer.catalog import Collections
from indexer.changes import Changes
from indexer.collections import Collection, Metric
from indexer.jobs import Job
from indexer.reads import Item
from indexer.scan import Batch
from indexer.serving.collection import ServingCollection
from indexer.stamps import Stamps
from indexer.vector_messages import LONGEST, SHORTEST
from indexer.writes import Written

# By which a direction's length, or a vector's that was multiplied by it, may differ.
_ROUNDING = 1e-3


class RestoreStore(Protocol):
    """Where collections are kept: see ``store.ChromaStore``."""

    async def write(self, collection: Collection, changes: Changes, stamp: int) -> None:
        """Writes items."""

    async def count(self, collection: Collection) -> int:
        """Items in a collection."""


class Serves(Protocol):
    """What serves collections: see ``registry.Registry``."""

    def stage(self, collection: Collection, items: int) -> ServingCollection | None:
        """What takes in a collection that is being made; None: it will be served from Chroma."""

    def complete(self, collection: Collection, serving: ServingCollection | None) -> None:
        """It is complete: it is served from now on."""

    def updated(self, collection: Collection) -> None:
        """What is said of a collection has changed."""

    def deleted(self, uid: str) -> None:
        """It is not served any more."""


@dataclass(frozen=True)
class Restored:
    """A collection made from a backup, and the items in it."""

    collection: Collection
    count: int


@dataclass(frozen=True)
class _Items:
    """Some items as they are written to Chroma, and as memory takes them."""

    items: list[Item]
    written: list[Written]


@dataclass(frozen=True)
class Restore:
    """How backups become collections.

    Attributes:
        storage: where the backups are.
        snapshots: those there are.
        threads: for what blocks.
        collections: the collections there are.
        store: where their items are written.
        serves: what serves them.
        admit: refuses so many items more, by raising, where the disk is full.
        chunk: most items written at once: other collections' writes get in between.
    """

    storage: Storage
    snapshots: Snapshots
    threads: Threads
    collections: Collections
    store: RestoreStore
    serves: Serves
    admit: Callable[[Collection, int], None]
    chunk: int

    async def __call__(self, backup: str, manifest: Manifest, name: str, job: Job[Restored]) -> Restored:
        """Makes one.

        Args:
            backup: its name.
            manifest: what it says of itself.
            name: of the collection to make.
            job: told how far it is.

        Raises:
            LikenessError: SNAPSHOT_DAMAGED, COLLECTION_EXISTS, STORE_FULL, MEMORY_FULL or STORE_UNAVAILABLE; what was
                made of it is dropped.
        """
        of = manifest.collection
        earlier_uids = (of.uid, *of.earlier_uids)
        staged = await self.collections.stage_new(
            name, of.fingerprint, of.metric, of.hnsw, of.description, earlier_uids=earlier_uids
        )
        try:
            await self._check(backup, manifest, job)
            serving = self.serves.stage(staged, manifest.rows)
            await self._fill(staged, serving, backup, manifest, job)
            # From here on it takes a moment. Whoever finds the collection also finds what serves it.
            job.no_return()
            self.serves.complete(staged, serving)
            committed = await self.collections.commit(staged)
        except BaseException:
            self.serves.deleted(staged.uid)
            self.collections.discard(staged)
            raise
        self.serves.updated(committed)
        return Restored(committed, manifest.rows)

    async def _check(self, backup: str, manifest: Manifest, job: Job[Restored]) -> None:
        done = 0
        for part in manifest.parts:
            job.report("checking the backup", done, manifest.rows)
            await self.threads.run(lambda part=part: self.snapshots.check(backup, part))  # type: ignore[misc]
            done += part.rows

    async def _fill(
        self,
        staged: Collection,
        serving: ServingCollection | None,
        backup: str,
        manifest: Manifest,
        job: Job[Restored],
    ) -> None:
        done, stamps = 0, Stamps(None)
        job.report("restoring", done, manifest.rows)
        read = self._read(staged, backup, manifest.parts)
        try:
            while (some := await self.threads.run(lambda: next(read, None))) is not None:
                self.admit(staged, len(some.items))
                stamp = stamps.next()
                await self.store.write(staged, Changes(added=some.items), stamp)
                if serving is not None:
                    await self.threads.run(lambda: serving.apply(some.written, [], stamp))  # noqa: B023 (awaited here)
                done += len(some.items)
                job.report("restoring", done, manifest.rows)
        finally:
            await self.threads.run(read.close)
        if done != manifest.rows:
            raise damaged(backup, f"its files hold {done:,} items, and its manifest says {manifest.rows:,}")
        count = await self.store.count(staged)
        if count != manifest.rows:
            raise damaged(backup, f"of its {manifest.rows:,} items Chroma holds {count:,}")

    def _read(self, staged: Collection, backup: str, files: Sequence[Part]) -> Generator[_Items, None, None]:
        """The items in order, some at a time; runs in threads."""
        dimension, before = staged.fingerprint.dimension, ""
        for part in files:
            try:
                for batch in parts.read(self.storage, f"{backup}/{part.name}", dimension, self.chunk):
                    yield _items(staged, batch, before)
                    before = batch.ids[-1]
            except (FileNotFoundError, ValueError, TypeError, KeyError, DecodeError, pa.ArrowException) as error:
                raise damaged(backup, f"its file {part.name} holds what no backup does: {error}") from error
            except LikenessError as error:
                if error.violations:
                    raise damaged(backup, f"its file {part.name} holds what no backup does: {error.message}") from error
                raise


def _items(collection: Collection, batch: Batch, before: str) -> _Items:
    """Items as they are written.

    Raises:
        ValueError: these are none that a collection can have.
        LikenessError: the same, naming the field.
    """
    vectors, lengths, packed = batch.originals(), batch.lengths, batch.packed
    assert vectors is not None
    assert batch.vectors is not None
    assert packed is not None
    _check_vectors(collection, batch, vectors)
    made = _Items([], [])
    for i, item_id in enumerate(batch.ids):
        if names.check_item_id(item_id, "id") <= before:
            raise ValueError(f"id {item_id!r} does not come after {before!r}")
        before = item_id
        plain = metadata.from_proto(Metadata.FromString(packed[i]), "metadata")
        made.items.append(Item(item_id, vectors[i], plain))
        if lengths is None:
            made.written.append(Written(item_id, vectors[i], packed[i], plain))
        else:
            made.written.append(Written(item_id, batch.vectors[i], packed[i], plain, float(lengths[i])))
    return made


def _check_vectors(collection: Collection, batch: Batch, vectors: Array) -> None:
    if batch.lengths is not None:
        assert batch.vectors is not None
        units = np.linalg.norm(batch.vectors.astype(np.float64), axis=1)
        if collection.metric is not Metric.COSINE or not (np.abs(units - 1) < _ROUNDING).all():
            raise ValueError("a length beside a vector that is no direction")
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    shortest = SHORTEST * (1 - _ROUNDING) if collection.metric is Metric.COSINE else 0.0
    if not ((norms >= shortest) & (norms <= LONGEST * (1 + _ROUNDING))).all():  # NaN is neither
        raise ValueError("a vector that no collection of this metric takes")
