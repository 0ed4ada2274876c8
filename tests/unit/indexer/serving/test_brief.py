"""Which searches are brief, and that nobody on the event loop waits for one that adds to the graph."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from chassis.vectors import Array
from indexer.collections import Fingerprint, Metric
from indexer.filters import Comparison, Kind, Op
from indexer.metrics import Metrics
from indexer.reads import Fields, Row, Search
from indexer.scoring import Scoring
from indexer.serving import graph as graphs
from indexer.serving import search as searching
from indexer.serving.brief import is_brief
from indexer.serving.collection import ServingCollection
from indexer.serving.engine import Engine
from indexer.serving.graph import GraphSettings
from indexer.serving.planner import Planner, PlannerSettings
from indexer.serving.search import answer, answering
from indexer.serving.steps import Steps
from indexer.serving.table import Table, View
from indexer.settings import IndexerSettings
from indexer.writes import Written
from tests.unit.indexer.serving.tables import collection

DIMENSION, ROWS = 16, 1500
PLANNER = Planner(PlannerSettings(ef_search=43, rows_per_step=2))  # as the engine's is, of a collection by L2
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
    def in_search_thread(self) -> bool:
        """Whether one has gone where larger ones go."""
        return bool(self.engine._searching._threads)

    def counted(self, path: str) -> float | None:
        return self.registry.get_sample_value("likeness_indexer_queries_total", {"path": path})


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.engine.close()


async def test_a_small_search_is_brief_and_counted(served: Served) -> None:
    rows = await served.found(search())
    assert rows[0].item.id == "00000"
    assert len(rows) == 10
    assert not served.in_search_thread
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
    assert not served.in_search_thread


async def test_the_rows_are_the_nearest_that_are_left(served: Served) -> None:
    gone = range(0, ROWS, 20)
    served.table.apply([], [f"{i:05}" for i in gone])
    left = np.setdiff1d(np.arange(ROWS), gone)
    right = 0
    for vector in VECTORS[:50]:
        order = left[np.argsort(((VECTORS[left] - vector) ** 2).sum(axis=1))[:10]]
        found = [row.item.id for row in await served.found(search(vector))]
        right += len(set(found) & {f"{i:05}" for i in order})
    assert right > 0.95 * 500
    assert not served.in_search_thread


class Adding:
    """Has the graph's lock, as one that adds rows, from ``begin`` to ``end``."""

    def __init__(self, view: View) -> None:
        self._lock, self._inside, self._ends = view.graph._lock, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._add)

    def _add(self) -> None:
        with self._lock.writing():
            self._inside.set()
            assert self._ends.wait(10)

    def begin(self) -> None:
        self._thread.start()
        assert self._inside.wait(10)

    def end(self) -> None:
        self._ends.set()
        self._thread.join()


async def test_while_a_row_is_added_a_thread_waits_and_not_the_event_loop(served: Served) -> None:
    adding = Adding(served.table.view)
    adding.begin()
    waiting = asyncio.create_task(served.found(search()))
    for _ in range(10):
        await asyncio.sleep(0)  # comes back: the event loop does not wait
    assert not waiting.done()
    adding.end()
    assert (await waiting)[0].item.id == "00000"
    assert not served.in_search_thread


@pytest.mark.parametrize("fields", [Fields(), Fields(vector=True)])
def test_vectors_are_read_at_once_unless_a_row_is_added_just_then(served: Served, fields: Fields) -> None:
    view = served.table.view
    asked = [search(), search(VECTORS[1])]
    expected = [[row.item.id for row in rows] for rows in answer(view, asked, fields, PLANNER)]

    def found(steps: Steps[list[list[Row]]], *, busy: bool) -> tuple[int, list[list[str]]]:
        """How many steps there were, and the ids."""
        step, count = next(steps), 0
        while True:
            count, outcome, adding = count + 1, step(), Adding(view)
            if busy:
                adding.begin()
            try:
                step = steps.send(outcome)  # comes back: whoever asks for steps does not wait
            except StopIteration as end:
                return count, [[row.item.id for row in rows] for rows in end.value]
            finally:
                if busy:
                    adding.end()

    few, ids = found(answering(view, asked, fields, PLANNER), busy=False)
    assert ids == expected
    more, ids = found(answering(view, asked, fields, PLANNER), busy=True)
    assert ids == expected
    assert more == few + 1 + fields.vector


MUCH = [
    (16, Scoring.L2, Fields(), 2**18, 2),
    (16, Scoring.L2, Fields(), 16 * 16 * DIMENSION - 1, 3),  # by the numbers of the vectors
    (33, Scoring.L2, Fields(), 2**18, 3),  # by the rows
    (20, Scoring.L1, Fields(), 2**18, 3),  # which are read again to be scored by another formula
    (20, Scoring.L2, Fields(vector=True), 2**18, 3),  # or to be sent
]


@pytest.mark.parametrize("case", MUCH)
def test_what_is_much_to_score_and_to_order_is_a_step(
    monkeypatch: pytest.MonkeyPatch, served: Served, case: tuple[int, Scoring, Fields, int, int]
) -> None:
    count, scoring, fields, numbers, most = case
    monkeypatch.setattr(searching, "_SCORED_NUMBERS", numbers)
    ordered = list[int]()

    class Told(list[str]):
        """The ids, which are looked at when rows are put in order."""

        def __getitem__(self, row: Any) -> Any:
            ordered.append(threading.get_ident())
            return super().__getitem__(row)

    view = replace(served.table.view, ids=Told(served.table.view.ids))
    steps, found = answering(view, [replace(search(top_k=count), scoring=scoring)] * 16, fields, PLANNER), None
    with ThreadPoolExecutor(1) as threads:
        for _ in range(most):
            step = steps.send(found)
            found = threads.submit(step).result(10)
        with pytest.raises(StopIteration) as end:
            steps.send(found)
    assert [len(rows) for rows in end.value.value] == [count] * 16
    here = threading.get_ident()
    assert {each == here for each in ordered} == {most == 2}


def test_rows_of_the_graph_that_are_newer_than_the_view_are_found_in_its_tail_alone(served: Served) -> None:
    view = served.table.view
    view.graph.build(VECTORS[-100:])
    for vector in VECTORS[-100:-80]:
        [rows] = answer(view, [search(vector)], Fields(), PLANNER)
        truth = np.argsort(((VECTORS - vector) ** 2).sum(axis=1))[:10]
        found = [row.item.id for row in rows]
        assert len(set(found)) == 10
        assert found[0] == f"{truth[0]:05}"
        assert len(set(found) & {f"{i:05}" for i in truth}) >= 8


def test_where_the_graph_gives_fewer_rows_than_it_was_asked_for_all_are_found() -> None:
    table = Table(DIMENSION, Metric.L2, GraphSettings(), 1 << 20)
    table.apply([Written.of(f"{i:05}", vector, {}) for i, vector in enumerate(VECTORS[:20])], [])
    table.build_tail(lambda: False)
    steps = answering(table.view, [search()], Fields(), Planner(PlannerSettings(ef_search=32, rows_per_step=0.01)))
    first = next(steps)
    assert isinstance(first, partial)
    assert first.func == table.view.graph.nearest, "not scored one by one from the start"
    with pytest.raises(StopIteration) as end:
        steps.send(steps.send(first())())
    truth = np.argsort(((VECTORS[:20] - VECTORS[0]) ** 2).sum(axis=1))[:10]
    assert [row.item.id for row in end.value.value[0]] == [f"{i:05}" for i in truth]


@pytest.mark.parametrize(("share", "most"), [(1, 2), (2, 1), (3, 1)])
def test_a_step_has_its_share_of_the_cores(share: int, most: int) -> None:
    served = Served(threads=2)
    try:
        carry_out = partial(served.engine._carry_out, lambda: graphs._threads.most, share)
        assert served.engine._brief.submit(carry_out).result(10) == most
    finally:
        served.engine.close()


async def test_a_search_that_must_go_on_goes_to_a_thread_and_is_counted_once(served: Served) -> None:
    near = np.argsort(((VECTORS - VECTORS[0]) ** 2).sum(axis=1))[:200]
    served.table.apply([], [f"{i:05}" for i in near])  # so that the first width finds nothing that is alive
    rows = await served.found(search())
    truth = sorted(set(range(ROWS)) - set(near.tolist()), key=lambda i: float(((VECTORS[i] - VECTORS[0]) ** 2).sum()))
    assert [row.item.id for row in rows] == [f"{i:05}" for i in truth[:10]]
    assert served.in_search_thread
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
    assert is_brief(view, [search()] * 16, PLANNER)
    assert not is_brief(view, [search()] * 17, PLANNER)
    assert not is_brief(view, [search(), replace(search(), where=where)], PLANNER)
    assert not is_brief(view, [replace(search(), where=where)], PLANNER)
    assert not is_brief(view, [replace(search(), exact=True)], PLANNER)
    assert not is_brief(view, [search(top_k=257)], PLANNER)


def test_what_compares_many_numbers_is_not_brief(served: Served) -> None:
    view = served.table.view
    graph = replace(view, tail_from=10**7, count=10**7, live_count=10**7)
    assert is_brief(graph, [search()], PLANNER)
    assert not is_brief(graph, [search()], Planner(PlannerSettings(ef_search=1000, rows_per_step=200)))
    tail = replace(view, tail_from=0, count=200_000, live_count=200_000)
    assert not is_brief(tail, [search()], PLANNER)
    assert is_brief(replace(tail, count=100_000, live_count=100_000), [search()], PLANNER)
