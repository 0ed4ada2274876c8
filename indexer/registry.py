"""Which collection is served from where: the one place that decides between memory and Chroma."""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.budget import Budget
from indexer.collections import Collection, NewerCollection
from indexer.memory import release
from indexer.metrics import Metrics
from indexer.patience import patiently
from indexer.reads import Reader
from indexer.served import OverBudgetError, Served, estimate, expected, over_budget, status_of
from indexer.serving import snapshot
from indexer.serving.collection import ServingCollection
from indexer.serving.engine import Engine
from indexer.serving.loader import load
from indexer.serving.maintenance import Maintenance
from indexer.serving.reader import MemoryReader
from indexer.serving.table import StoppedError, Table
from indexer.settings import IndexerSettings, Reads
from indexer.status import CollectionStatus, Mode, Status
from indexer.store import ChromaStore
from indexer.writes import Mirror

log = structlog.get_logger()


@dataclass(eq=False)
class Registry:
    """The collections that there are, by uid. Used from the event loop.

    Attributes:
        settings: the indexer's.
        store: Chroma.
        chroma: answers reads from Chroma.
        metrics: told how collections are.
        folder: of the serving snapshots.
        upgrade: marks a collection as of this release's layout, before what only it understands is kept of it.
        told: where another indexer writes: a stamp up to which everything was in Chroma before a collection is loaded.
    """

    settings: IndexerSettings
    store: ChromaStore
    chroma: Reader
    metrics: Metrics
    folder: Path
    upgrade: Callable[[Collection], Awaitable[None]]
    told: Callable[[Collection], Awaitable[int]] | None = None
    _engine: Engine = field(init=False)
    _served: dict[str, Served] = field(default_factory=dict)
    _staged: dict[str, int] = field(default_factory=dict)  # bytes that collections being made will take, by uid
    _ending: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._engine = Engine(self.settings, self.metrics)
        self._budget = Budget(self.settings.memory_budget_bytes, self._served)
        self.metrics.budget(self._budget.most)

    @property
    def needs_store(self) -> bool:
        """Whether reads of some collection are answered by Chroma."""
        return any(served.mode is not Mode.MEMORY for served in self._served.values())

    async def load(self, collections: Sequence[Collection | NewerCollection]) -> None:
        """Brings into memory what belongs there, the smallest first; returns when reads of all are complete."""
        ours = {c.uid: Served(c, Mode.LOADING) for c in collections if isinstance(c, Collection)}
        self._served |= ours
        await asyncio.to_thread(self._forget_others, set(ours))
        sized = [(count, served) for served in ours.values() if (count := await self._to_bring(served)) is not None]
        for count, served in sorted(sized, key=lambda pair: (pair[0], pair[1].collection.name)):
            await self._bring(served, count)

    @property
    def uids(self) -> set[str]:
        """Of all collections."""
        return set(self._served)

    async def add(self, collection: Collection) -> None:
        """Brings a collection into memory that another indexer has made; Chroma answers reads until it is there."""
        served = self._served[collection.uid] = Served(collection, Mode.LOADING)
        if (count := await self._to_bring(served)) is not None:
            await self._bring(served, count)

    def serving(self, uid: str) -> ServingCollection | None:
        """The collection in memory, if it is there."""
        served = self._served.get(uid)
        return None if served is None else served.serving

    def in_memory(self) -> dict[str, ServingCollection]:
        """What is served from memory, by uid."""
        return {uid: served.serving for uid, served in self._served.items() if served.serving is not None}

    def in_chroma(self) -> dict[str, Collection]:
        """What Chroma answers reads of, by uid."""
        return {uid: served.collection for uid, served in self._served.items() if served.mode is Mode.CHROMA}

    @property
    def searches_waiting(self) -> int:
        """Queries that wait to be searched for in memory."""
        return sum(served.reader.waiting for served in self._served.values() if served.reader is not None)

    def loading(self, uid: str) -> bool:
        """Whether it is being read into memory."""
        served = self._served.get(uid)
        return served is not None and served.mode is Mode.LOADING

    def reader(self, collection: Collection) -> Reader:
        """What answers reads of a collection now."""
        served = self._served.get(collection.uid)
        return self.chroma if served is None or served.reader is None else served.reader

    def mirror_of(self, collection: Collection) -> Mirror | None:
        """The collection in memory, if it is there: what follows the writes to Chroma."""
        served = self._served.get(collection.uid)
        return None if served is None else served.serving

    def admit(self, collection: Collection, items: int) -> None:
        """Makes sure that there is memory for so many more items.

        With LIKENESS_READS=auto the largest is served from Chroma from then on where clearing dead rows is not enough.

        Raises:
            LikenessError: MEMORY_FULL, with LIKENESS_READS=memory; OVERLOADED: not before dead rows are cleared away.
        """
        served = self._served.get(collection.uid)
        if served is None or served.serving is None:
            return
        budget, more = self._budget, items * estimate(collection)
        if budget.used + more <= budget.most or not self.store.connected:
            return
        if self.settings.reads is Reads.MEMORY:
            budget.clear()
            raise budget.full()
        if not budget.make_room(more):
            self._evict(budget.largest(), over_budget(budget.most))
        elif budget.used + more > budget.utmost:
            raise budget.crowded()

    async def count_newer(self, collection: NewerCollection) -> int:
        """How many items there are in a collection that a newer release wrote."""
        return await self.store.count(collection.store_name)

    def status_of(self, collection: Collection) -> CollectionStatus:
        """Where a collection is served from, and what it takes."""
        served = self._served.get(collection.uid)
        return CollectionStatus(collection.name, Mode.CHROMA) if served is None else status_of(served)

    def updated(self, collection: Collection) -> None:
        """What is said of a collection has changed: its parameters or its description."""
        served = self._served.get(collection.uid)
        if served is not None:
            served.collection = collection
            if served.serving is not None:
                served.serving.collection = collection

    async def renew(self, collection: Collection) -> None:
        """Clears what is no longer in a collection from memory and its snapshots; makes its graph as it is built now.

        Raises:
            Exception: memory ran out, or the disk fails.
        """
        served = self._served.get(collection.uid)
        if served is not None and served.maintenance is not None:
            try:
                await served.maintenance.renew(self._engine.graph_settings(collection))
                await served.maintenance.forget_snapshots()
            except StoppedError:
                log.info("collection has left memory", collection=collection.name)
            else:
                return
        await asyncio.to_thread(snapshot.remove, self.folder / collection.uid)

    def created(self, collection: Collection) -> None:
        """A collection was made just now, and is empty."""
        served = self._served[collection.uid] = Served(collection, Mode.CHROMA, "LIKENESS_READS is chroma")
        if self.settings.reads is not Reads.CHROMA:
            self._serve(served, ServingCollection(collection, self._engine.table(collection), 0))

    def stage(self, collection: Collection, items: int) -> ServingCollection | None:
        """What takes in a collection that is being made, to serve it from memory once it is complete.

        Args:
            collection: nobody reads it yet.
            items: that it will have.

        Returns:
            None: it will be served from Chroma.

        Raises:
            LikenessError: MEMORY_FULL, with LIKENESS_READS=memory.
        """
        if self.settings.reads is Reads.CHROMA:
            return None
        more, staged = items * estimate(collection), sum(self._staged.values())
        if self.settings.reads is Reads.MEMORY:
            if self._budget.used + staged + more > self._budget.most:
                raise self._budget.full(staged)
        elif not self._budget.make_room(staged + more):
            return None
        self._staged[collection.uid] = more
        return ServingCollection(collection, self._engine.table(collection), 0)

    def complete(self, collection: Collection, serving: ServingCollection | None) -> None:
        """A collection that was staged is complete: it is served from now on."""
        self._staged.pop(collection.uid, None)
        why = "LIKENESS_READS is chroma" if self.settings.reads is Reads.CHROMA else over_budget(self._budget.most)
        served = self._served[collection.uid] = Served(collection, Mode.CHROMA, why)
        if serving is not None:
            self._serve(served, serving)

    def deleted(self, uid: str) -> None:
        """A collection was deleted just now, or is not made after all; ``uid`` is the collection's."""
        self._staged.pop(uid, None)
        served = self._served.pop(uid, None)
        if served is None:
            return
        self.metrics.collection_deleted(served.collection.name)
        task = asyncio.create_task(self._end(served.maintenance, self.folder / uid))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def forget(self, name: str) -> None:
        """The store has no collection of that name: what is served under it was deleted there."""
        for uid in [uid for uid, served in self._served.items() if served.collection.name == name]:
            self.deleted(uid)

    def status(self) -> Status:
        """What the indexer is doing."""
        return Status(
            store_available=self.store.connected,
            memory_bytes=self._budget.used,
            memory_budget_bytes=self._budget.most,
            collections=[status_of(served) for served in self._served.values()],
        )

    async def stop(self) -> None:
        """Ends what looks after the collections; each leaves a snapshot."""
        await asyncio.gather(*(s.maintenance.stop() for s in self._served.values() if s.maintenance), *self._ending)
        await asyncio.to_thread(self._engine.close)

    def _connected(self) -> bool:
        return self.store.connected

    async def _to_bring(self, served: Served) -> int | None:
        """How many items are to be brought into memory; None: none, Chroma answers reads of the collection."""
        if self.settings.reads is Reads.CHROMA:
            served.mode, served.reason = Mode.CHROMA, "LIKENESS_READS is chroma"
            return None
        try:
            return await patiently(partial(self.store.count, served.collection), self._connected)
        except Exception as error:
            if isinstance(error, LikenessError) and error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND:
                return 0  # whoever lists the collections next will see
            _leave_to_chroma(served, error)
            return None

    async def _bring(self, served: Served, count: int) -> None:
        collection = served.collection
        began, budget, bounded = time.monotonic(), self._budget, self.settings.reads is Reads.AUTO

        def require(nbytes: int) -> None:
            if bounded and not budget.fits(nbytes):
                raise OverBudgetError

        def progress(loaded: int, total: int, table: Table) -> None:
            served.loaded, served.total = loaded, total
            require(expected(collection, table, total))

        def may_read(nbytes: int, rows: int) -> bool:
            require(nbytes * count // max(rows, 1))
            return not bounded or budget.used + nbytes <= budget.utmost

        served.total = count
        try:
            require(count * estimate(collection))
            if self.told is None:
                await patiently(partial(self.upgrade, collection), self._connected)
            told = None if self.told is None else await patiently(partial(self.told, collection), self._connected)
            loaded = await patiently(
                lambda: load(
                    self.store,
                    collection,
                    folder=self.folder / collection.uid,
                    graph=self._engine.graph_settings(collection),
                    mask_bytes=self._engine.mask_bytes,
                    progress=progress,
                    may_read=may_read,
                ),
                self._connected,
            )
            await asyncio.to_thread(release)
        except OverBudgetError:
            served.mode, served.reason = Mode.CHROMA, over_budget(budget.most)
            log.warning("collection is served from Chroma", collection=collection.name, why=served.reason)
            return
        except Exception as error:
            _leave_to_chroma(served, error)
            return
        self.metrics.loaded("snapshot" if loaded.from_snapshot else "chroma", time.monotonic() - began)
        if self._served.get(collection.uid) is not served:  # deleted meanwhile
            return
        if told is not None:
            loaded.serving.watermark = min(loaded.serving.watermark, told)
        self._serve(served, loaded.serving)
        if bounded and not budget.make_room(0):
            self._evict(served, over_budget(budget.most))

    def _serve(self, served: Served, serving: ServingCollection) -> None:
        """Serves from memory from now on."""
        batcher = self._engine.batcher(serving)
        served.serving, served.reader = serving, MemoryReader(serving, batcher, self._engine.threads)
        serving.on_failure = lambda error: self._evict(served, f"it could not follow a write ({error!r})")
        served.maintenance = self._engine.maintenance(serving, self.folder / served.collection.uid, self.metrics)
        served.maintenance.start()
        served.mode, served.reason = Mode.MEMORY, ""

    def _evict(self, served: Served, why: str) -> None:
        """Serves from Chroma from now on, until the next start."""
        maintenance = served.maintenance
        served.serving = served.reader = served.maintenance = None
        served.mode, served.reason = Mode.CHROMA, why
        log.warning("collection is served from Chroma", collection=served.collection.name, why=why)
        task = asyncio.create_task(self._end(maintenance, None))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, maintenance: Maintenance | None, folder: Path | None) -> None:
        if maintenance is not None:
            await maintenance.stop(save=False)
        if folder is not None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def keep_in_budget(self) -> None:
        """Makes room where another indexer writes: nothing can be refused there. To be called now and then."""
        budget = self._budget
        if self.told is not None and not (budget.make_room(0) and budget.used <= budget.utmost):
            self._evict(budget.largest(), over_budget(budget.most))

    def _forget_others(self, uids: set[str]) -> None:
        """Removes the snapshots of collections that are no more."""
        if self.folder.is_dir():
            for found in self.folder.iterdir():
                if found.name not in uids:
                    shutil.rmtree(found, ignore_errors=True)


def _leave_to_chroma(served: Served, error: Exception) -> None:
    """What fails of one collection keeps no other from being served."""
    served.mode, served.reason = Mode.CHROMA, f"it could not be loaded ({error})"
    log.error("collection is served from Chroma", collection=served.collection.name, exc_info=error)
