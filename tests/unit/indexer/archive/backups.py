"""An archive without a Chroma: collections in memory, files wherever the test wants them."""

from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.archive.archive import Archive
from indexer.archive.files import Storage
from indexer.catalog import Collections
from indexer.changes import Changes
from indexer.collections import Collection, Fingerprint, Hnsw, Metric
from indexer.jobs import Jobs
from indexer.reads import Item, Reader
from indexer.serving.collection import ServingCollection
from indexer.serving.graph import GraphSettings
from indexer.serving.reader import MemoryReader
from indexer.serving.reading import ReadThreads
from indexer.serving.table import Table, View
from indexer.turnstile import Turnstile
from indexer.writes import Mirror, Written

DIMENSION = 6


class Catalog:
    """Collections by name, and those that are staged."""

    def __init__(self) -> None:
        self.there: dict[str, Collection] = {}
        self.staged: dict[str, Collection] = {}
        self.fails_to_commit = False

    async def stage_new(
        self,
        name: str,
        fingerprint: Fingerprint,
        metric: Metric,
        hnsw: Hnsw,
        description: str,
        *,
        earlier_uids: Iterable[str],
    ) -> Collection:
        if name in self.there:
            raise LikenessError(error_pb2.REASON_COLLECTION_EXISTS, name)
        made = Collection(
            name,
            f"key-of-{name}",
            fingerprint,
            metric,
            datetime.now(UTC),
            hnsw=hnsw,
            description=description,
            earlier_uids=tuple(earlier_uids),
        )
        self.staged[name] = made
        return made

    async def commit(self, copy: Collection) -> Collection:
        if self.fails_to_commit:
            raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, "no answer")
        self.there[copy.name] = self.staged.pop(copy.name)
        return copy

    def discard(self, copy: Collection) -> None:
        del self.staged[copy.name]


class World:
    """Is what an archive has around it.

    Attributes:
        items: what Chroma has, by uid.
        serving: what is in memory, by uid.
        held: whether writes wait.
        calls: for the observer.
    """

    def __init__(self, where: str, keep: int = 0, chunk: int = 4) -> None:
        self.catalog = Catalog()
        self.items: dict[str, dict[str, Item]] = {}
        self.serving: dict[str, ServingCollection] = {}
        self.held = 0
        self.calls: list[tuple[str, bool]] = []
        self.full_after: int | None = None
        self.lost: set[str] = set()
        self.jobs = Jobs()
        self.threads = ThreadPoolExecutor(1)
        self.archive = Archive(
            Storage(where),
            keep=keep,
            chunk=chunk,
            jobs=self.jobs,
            collections=cast(Collections, self.catalog),
            store=self,
            serving=self,
            hold=self.hold,
            admit=self.admit,
            observer=self,
        )

    def add(self, name: str, written: Sequence[Written], metric: Metric = Metric.COSINE, **more: Any) -> Collection:
        """A collection in memory with some items."""
        made = Collection(name, f"key-of-{name}", Fingerprint("m", "a1" * 32, DIMENSION), metric, datetime.now(UTC))
        made = self.catalog.there[name] = replace(made, **more)
        self.serving[made.uid] = self._empty(made)
        self.serving[made.uid].apply(written, [], 1)
        return made

    @property
    def names(self) -> list[str]:
        """Of the collections there are, those that are staged included."""
        return [*self.catalog.there, *self.catalog.staged]

    def view(self, collection: Collection) -> View:
        return self.serving[collection.uid].view

    # What the archive sees.
    def reader(self, collection: Collection) -> Reader:
        threads = ReadThreads(self.threads, self.threads, Turnstile(1, 0, "A_SETTING"))
        return MemoryReader(self.serving[collection.uid], cast(Any, None), threads)

    def mirror_of(self, collection: Collection) -> Mirror | None:
        return None if "chroma" in collection.name else self.serving[collection.uid]

    def stage(self, collection: Collection, items: int) -> ServingCollection | None:
        return self._empty(collection)

    def complete(self, collection: Collection, serving: ServingCollection | None) -> None:
        assert serving is not None
        self.serving[collection.uid] = serving

    def updated(self, collection: Collection) -> None:
        assert collection.uid in self.serving

    def deleted(self, uid: str) -> None:
        self.serving.pop(uid, None)

    async def write(self, collection: Collection, changes: Changes, stamp: int) -> None:
        stored = self.items.setdefault(collection.uid, {})
        stored.update({item.id: item for item in changes.added if item.id not in self.lost})

    async def count(self, collection: Collection) -> int:
        return len(self.items.get(collection.uid, {}))

    def admit(self, collection: Collection, items: int) -> None:
        if self.full_after is not None and len(self.items.get(collection.uid, {})) >= self.full_after:
            raise LikenessError(error_pb2.REASON_STORE_FULL, "full")

    @asynccontextmanager
    async def hold(self, collection: Collection) -> AsyncIterator[None]:
        self.held += 1
        yield

    def backup(self, made: bool) -> None:
        self.calls.append(("backup", made))

    def restored(self, ok: bool) -> None:
        self.calls.append(("restored", ok))

    def _empty(self, collection: Collection) -> ServingCollection:
        table = Table(DIMENSION, collection.metric, GraphSettings(8, 40), 1 << 20)
        return ServingCollection(collection, table, 0)


def some(count: int, seed: int = 0) -> list[Written]:
    """Items of any length, with awkward metadata."""
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(count, DIMENSION)) * rng.uniform(1e-3, 1e3, (count, 1))).astype(np.float32)
    return [
        Written.of(f"é{n:04}𝄞", vector, {"n": n, "share": n / 7, "tags": ["a", f"b{n}"]} if n % 3 else {})
        for n, vector in enumerate(vectors)
    ]
