"""What all collections in memory share: threads, and how graphs are made, searched and looked after."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from chassis.cores import cores
from indexer.collections import Collection, Metric
from indexer.metrics import Metrics, SearchPath
from indexer.reads import Fields, Row, Search
from indexer.serving.batcher import Batcher, Brief
from indexer.serving.brief import is_brief
from indexer.serving.builder import Builder
from indexer.serving.candidates import Way
from indexer.serving.collection import ServingCollection
from indexer.serving.graph import GraphSettings, limit_threads
from indexer.serving.maintenance import Maintenance, Observer
from indexer.serving.planner import Planner, PlannerSettings
from indexer.serving.reading import ReadThreads
from indexer.serving.schedule import MaintenanceSettings
from indexer.serving.search import answer, answering
from indexer.serving.steps import Step, Steps, carried_out
from indexer.serving.table import Table, View
from indexer.settings import IndexerSettings
from indexer.turnstile import Turnstile

# Searches that one thread takes together: so many are quicker than one by one, and a single search beside them does not
# wait long.
_MAX_BATCH = 16
# With more threads than these, brief searches go the way of all others: what is gained was measured on two cores.
_FEW_THREADS = 2
# Lists, counts, facets and exports that are worked on at once, beside searches, which must find a core: at most, and
# otherwise half as many as may search.
_MOST_READING = 4
# By L2, vectors of different lengths are harder to find: see ``GraphSettings``. Of lengths that spread by 20 %, 5,000 ×
# 512, 0.987 of the nearest 10 were found with the width that suits the cosine, 0.991 with this many times that.
_WIDER_BY_L2 = 4 / 3


class Engine:
    """Makes what serves a collection from memory."""

    def __init__(self, settings: IndexerSettings, metrics: Metrics) -> None:
        """Starts no thread before it is needed."""
        count = settings.search_threads or cores()
        self._settings = settings
        self._jobs = count
        self._searching = ThreadPoolExecutor(count, "search")
        self._brief = ThreadPoolExecutor(min(count, _FEW_THREADS), "brief")
        reading = min(max(1, count // 2), _MOST_READING)
        self._reading = ThreadPoolExecutor(reading, "read")
        turnstile = Turnstile(reading, settings.read_queue, "LIKENESS_READ_QUEUE")
        self.threads = ReadThreads(self._searching, self._reading, turnstile)
        self._background = ThreadPoolExecutor(4, "maintenance")
        self._builder = Builder()
        self.mask_bytes = settings.mask_cache_mb * 2**20
        self._metrics = metrics

    def table(self, collection: Collection) -> Table:
        """An empty table."""
        graph = self.graph_settings(collection)
        return Table(collection.fingerprint.dimension, collection.metric, graph, self.mask_bytes)

    def graph_settings(self, collection: Collection) -> GraphSettings:
        """How the graph of a collection is made: as it was built, and by the settings where that says nothing."""
        return GraphSettings(
            collection.built.max_neighbors or self._settings.graph_neighbors,
            collection.built.ef_construction or self._settings.ef_construction,
        )

    def planner(self, collection: Collection) -> Planner:
        """How a collection is searched, by what it is set to just now."""
        wider = _WIDER_BY_L2 if collection.metric is Metric.L2 else 1.0
        ef_search = collection.hnsw.ef_search or round(wider * self._settings.ef_search)
        return Planner(PlannerSettings(ef_search, self._settings.rows_per_step))

    def batcher(self, serving: ServingCollection) -> Batcher[View]:
        """What answers searches on a collection."""
        brief = Brief(
            partial(self._is_brief, serving),
            partial(self._begin, serving),
            self._at_once,
            self._carry_out,
            self._brief,
            self._jobs,
        )
        return Batcher(
            lambda: serving.view,
            partial(self._in_thread, serving),
            self._searching,
            jobs=self._jobs,
            max_batch=_MAX_BATCH,
            max_waiting=self._settings.search_queue,
            brief=brief if self._jobs <= _FEW_THREADS else None,
            on_wait=partial(self._metrics.searched_stage, "queue"),
        )

    def maintenance(self, serving: ServingCollection, folder: Path, observer: Observer) -> Maintenance:
        """What looks after a collection; not started."""
        settings = MaintenanceSettings(
            dead_share=self._settings.rebuild_dead_share,
            free_bytes=self._settings.min_free_disk_mb * 2**20,
            snapshot_share=self._settings.snapshot_share,
            probe_s=self._settings.recall_probe_s,
        )
        return Maintenance(
            serving,
            folder=folder,
            graph=self.graph_settings(serving.collection),
            answer=partial(self._answer, serving),
            threads=self._background,
            builder=self._builder,
            settings=settings,
            observer=observer,
        )

    def _is_brief(self, serving: ServingCollection, view: View, searches: Sequence[Search]) -> bool:
        return is_brief(view, searches, self.planner(serving.collection))

    def _begin(
        self, serving: ServingCollection, view: View, searches: Sequence[Search], fields: Fields
    ) -> Steps[list[list[Row] | None]]:
        """See ``batcher.Brief``."""
        unfinished = set[int]()
        found = yield from self._counted(self.planner(serving.collection), view, searches, fields, unfinished)
        return [None if i in unfinished else rows for i, rows in enumerate(found)]

    def _at_once(self, view: View, step: Step) -> tuple[bool, Any]:
        with view.graph.reading_now() as may:
            return may, step() if may else None

    def _carry_out(self, step: Step, share: int) -> Any:
        limit_threads(max(1, self._jobs // share))
        return step()

    def _in_thread(
        self, serving: ServingCollection, view: View, searches: Sequence[Search], fields: Fields
    ) -> list[list[Row]]:
        return carried_out(self._counted(self.planner(serving.collection), view, searches, fields))

    def _answer(
        self, serving: ServingCollection, view: View, searches: Sequence[Search], fields: Fields
    ) -> list[list[Row]]:
        return answer(view, searches, fields, self.planner(serving.collection))

    def _counted(
        self,
        planner: Planner,
        view: View,
        searches: Sequence[Search],
        fields: Fields,
        unfinished: set[int] | None = None,
    ) -> Steps[list[list[Row]]]:
        began, ways = time.perf_counter(), list[Way]()
        found = yield from answering(
            view,
            searches,
            fields,
            planner,
            unfinished=unfinished,
            on_way=ways.append,
            on_stage=self._metrics.searched_stage,
        )
        paths: dict[SearchPath, int] = {"graph": ways.count(Way.GRAPH), "exact": ways.count(Way.EXACT)}
        if ways:
            self._metrics.searched({path: count for path, count in paths.items() if count}, time.perf_counter() - began)
        return found

    def close(self) -> None:
        """Ends the threads, once what they are at is done."""
        for threads in (self._searching, self._brief, self._reading, self._background):
            threads.shutdown()
        self._builder.close()
