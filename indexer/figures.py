"""Keeps the figures that Prometheus reads up to date: each second, and every 30 what files take and Chroma serves."""

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from chassis.errors import LikenessError
from indexer.disk_usage import DiskUsage
from indexer.metrics import Metrics
from indexer.registry import Registry
from indexer.serving.masks import Masks

log = structlog.get_logger()

_LOOK_S, _MEASURE_S = 1.0, 30.0


class Figures:
    """What is told of an indexer while it runs."""

    def __init__(
        self,
        metrics: Metrics,
        registry: Registry,
        disk: DiskUsage,
        waiting_writes: Callable[[], Mapping[str, tuple[int, float]]],
        lag_s: Callable[[], float],
    ) -> None:
        """Not running yet.

        Args:
            metrics: told.
            registry: the collections.
            disk: measures their files.
            waiting_writes: items that wait to be written, and how many seconds the first has waited, by collection.
            lag_s: by how many seconds this indexer may be behind the one that writes.
        """
        self._metrics = metrics
        self._registry = registry
        self._disk = disk
        self._waiting_writes = waiting_writes
        self._lag_s = lag_s
        self._filters: dict[str, tuple[Masks, int, int]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins."""
        self._task = asyncio.create_task(self._run(), name="figures of the collections")

    async def stop(self) -> None:
        """Ends. Harmless when it has not begun."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        measured = -_MEASURE_S
        while True:
            try:
                self._look()
                if time.monotonic() - measured >= _MEASURE_S:
                    measured = time.monotonic()
                    await self._measure()
            except Exception as error:  # nobody waits for it, and the next look may succeed
                log.error("cannot tell the figures", exc_info=error)
            await asyncio.sleep(_LOOK_S)

    def _look(self) -> None:
        registry, metrics = self._registry, self._metrics
        registry.keep_in_budget()
        status = registry.status()
        for collection in status.collections:
            metrics.collection(collection)
        for name, (items, oldest_s) in self._waiting_writes().items():
            metrics.write_queue(name, items, oldest_s)
        metrics.search_queue(registry.searches_waiting)
        metrics.store_up(status.store_available)
        metrics.reader_lag(self._lag_s())
        self._count_filters()

    def _count_filters(self) -> None:
        before, self._filters = self._filters, {}
        for uid, serving in self._registry.in_memory().items():
            masks = serving.view.masks
            hits, misses = masks.uses
            self._filters[uid] = (masks, hits, misses)
            last = before.get(uid)
            if last is not None and last[0] is masks:  # else it is that of another table, and counts anew
                hits, misses = hits - last[1], misses - last[2]
            self._metrics.filters(hits, misses)

    async def _measure(self) -> None:
        status = self._registry.status()
        sizes = await self._disk.of([(each.uid, each.key) for each in status.collections])
        there = self._registry.uids
        for collection, size in zip(status.collections, sizes, strict=True):
            if size is not None and collection.uid in there:
                self._metrics.disk(collection.name, size)
        if (size := await self._disk.store()) is not None:
            self._metrics.store_bytes(size)
        for uid, found in self._registry.in_chroma().items():
            try:
                items = await self._registry.store.count(found)
            except LikenessError as error:  # Chroma is away, or the collection has gone
                log.debug("cannot count the items", collection=found.name, why=error.message)
                continue
            if uid in self._registry.uids:
                self._metrics.stored_items(found.name, items)
