"""Which searches the event loop answers itself, and that nobody on it waits for one that adds to the graph."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from chassis.vectors import Array
from indexer.collections import Fingerprint, Metric
from indexer.filters import Comparison, Kind, Op
from indexer.metrics import Metrics
from indexer.reads import Fields, Row, Search
from indexer.scoring import Scoring
from indexer.serving.brief import is_brief
from indexer.serving.collection import ServingCollection
from indexer.serving.engine import Engine
from indexer.serving.planner import Planner, PlannerSettings
from indexer.serving.search import answer
from indexer.serving.table import Table
from indexer.settings import IndexerSettings
from indexer.writes import Written
from tests.unit.indexer.serving.tables import collection

DIMENSION, ROWS = 16, 1500
PLANNER = Planner(PlannerSettings(ef_search=32, rows_per_step=2))
VECTORS = np.random.default_rng(3).standard_normal((ROWS, DIMENSION)).astype(np.float32)


def search(vector: Array = VECTORS[0], top_k: int = 10) -> Search:
    return Search(vector, None, top_k, 0, None, Scoring.L2, top_k)


class Served:
    """A collection, most of it in its graph, and what answers searches on it."""

    def __init__(self, threads: int = 1) -> None:
        self.registry = CollectorRegistry()
        settings = IndexerSettings(ef_search=32, rows_per_step=2, search_threads=threads)
        self.engine = Engine(settings, Metrics(self.registry))
        made = replace(collection(), fingerprint=Fingerprint("m", "d" * 64, DIMENSION), metric=Metric.L2)
        self.table = Table(DIMENSION, Metric.L2, self.engine.graph_settings(made), 1 << 20)
        self.table.apply([Written.of(f"{i:05}", vector, {}) for i, vector in enumerate(VECTORS)], [])
        self.table.view.graph.build(VECTORS[:-100])
        self.table.absorbed(ROWS - 100)
        self.batcher = self.engine.batcher(ServingCollection(made, self.table, 0))

    async def found(self, asked: Search) -> list[Row]:
        """The rows of a search."""
        [rows] = await self.batcher.submit([asked], Fields())
        return rows

    @property
    def in_thread(self) -> bool:
        """Whether any search has gone to a thread."""
        return self.in_search_thread or bool(self.engine._brief._threads)

    @property
    def in_search_thread(self) -> bool:
        """Whether one has gone where larger ones go."""
        return bool(self.engine.threads._threads)

    def counted(self, path: str) -> float | None:
        return self.registry.get_sample_value("likeness_indexer_queries_total", {"path": path})


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.engine.close()


async def test_a_small_search_is_answered_on_the_event_loop_and_counted(served: Served) -> None:
    rows = await served.found(search())
    assert rows[0].item.id == "00000"
    assert len(rows) == 10
    assert not served.in_thread
    assert served.counted("graph") == 1


async def test_where_there_are_many_threads_they_search() -> None:
    made = Served(threads=3)
    try:
        assert (await made.found(search()))[0].item.id == "00000"
        assert made.in_search_thread
    finally:
        made.engine.close()


async def test_what_has_just_been_written_is_found(served: Served) -> None:
    served.table.apply([Written.of("new", VECTORS[7], {})], ["00007"])
    assert (await served.found(search(VECTORS[7])))[0].item.id == "new"
    assert not served.in_thread


async def test_the_rows_are_those_that_a_thread_finds(served: Served) -> None:
    served.table.apply([], [f"{i:05}" for i in range(0, ROWS, 20)])
    for vector in VECTORS[:50]:
        at_once = await served.found(search(vector))
        assert not served.in_thread
        assert at_once == answer(served.table.view, [search(vector)], Fields(), PLANNER)[0]


async def test_while_a_row_is_added_a_thread_waits_and_not_the_event_loop(served: Served) -> None:
    adding, done = threading.Event(), threading.Event()

    def add() -> None:
        with served.table.view.graph._lock.writing():
            adding.set()
            assert done.wait(10)

    with ThreadPoolExecutor(1) as threads:
        writer = threads.submit(add)
        assert adding.wait(10)
        waiting = asyncio.create_task(served.found(search()))
        for _ in range(10):
            await asyncio.sleep(0)  # comes back: the event loop does not wait
        assert served.in_thread
        assert not waiting.done()
        done.set()
        assert (await waiting)[0].item.id == "00000"
        writer.result()
    assert served.in_thread


async def test_a_search_that_must_go_on_goes_to_a_thread_and_is_counted_once(served: Served) -> None:
    near = np.argsort(((VECTORS - VECTORS[0]) ** 2).sum(axis=1))[:200]
    served.table.apply([], [f"{i:05}" for i in near])  # so that the first width finds nothing that is alive
    rows = await served.found(search())
    truth = sorted(set(range(ROWS)) - set(near.tolist()), key=lambda i: float(((VECTORS[i] - VECTORS[0]) ** 2).sum()))
    assert [row.item.id for row in rows] == [f"{i:05}" for i in truth[:10]]
    assert served.in_thread
    assert (served.counted("graph") or 0) + (served.counted("exact") or 0) == 1


async def test_one_that_must_go_on_does_not_cost_the_others_their_answers(served: Served) -> None:
    near = np.argsort(((VECTORS - VECTORS[0]) ** 2).sum(axis=1))[:200]
    served.table.apply([], [f"{i:05}" for i in near])
    far = int(np.argmax(((VECTORS - VECTORS[0]) ** 2).sum(axis=1)))
    going_on, other = await asyncio.gather(served.found(search()), served.found(search(VECTORS[far])))
    assert len(going_on) == 10
    assert other[0].item.id == f"{far:05}"
    assert (served.counted("graph") or 0) + (served.counted("exact") or 0) == 2
    batches = served.registry.get_sample_value("likeness_indexer_search_batch_size_count")
    assert batches == 2  # what could be answered at the first try, and what had to go on


async def test_searches_that_come_together_are_answered_together_each_as_if_alone(served: Served) -> None:
    found = await asyncio.gather(*(served.found(search(vector)) for vector in VECTORS[:20]))
    assert found == [answer(served.table.view, [search(vector)], Fields(), PLANNER)[0] for vector in VECTORS[:20]]
    assert not served.in_search_thread
    assert served.counted("graph") == 20
    batches = served.registry.get_sample_value("likeness_indexer_search_batch_size_count")
    assert batches == 2  # of 16 at most


def test_only_few_searches_without_a_filter_are_brief(served: Served) -> None:
    view, where = served.table.view, Comparison("n", Op.EQ, Kind.NUMBER, (1,))
    assert is_brief(view, [search()] * 8, PLANNER)
    assert not is_brief(view, [search()] * 9, PLANNER)
    assert not is_brief(view, [search(), replace(search(), where=where)], PLANNER)
    assert not is_brief(view, [replace(search(), where=where)], PLANNER)
    assert not is_brief(view, [replace(search(), exact=True)], PLANNER)
    assert not is_brief(view, [search(top_k=300)], PLANNER)


def test_what_compares_many_numbers_is_not_brief(served: Served) -> None:
    view = served.table.view
    graph = replace(view, tail_from=10**7, count=10**7, live_count=10**7)
    assert is_brief(graph, [search()], PLANNER)
    assert not is_brief(graph, [search()], Planner(PlannerSettings(ef_search=1000, rows_per_step=200)))
    tail = replace(view, tail_from=0, count=200_000, live_count=200_000)
    assert not is_brief(tail, [search()], PLANNER)
    assert is_brief(replace(tail, count=100_000, live_count=100_000), [search()], PLANNER)
