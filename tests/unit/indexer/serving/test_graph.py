import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from chassis.cores import Found
from chassis.vectors import Array
from indexer.collections import Metric
from indexer.serving import graph as graphs
from indexer.serving.graph import Graph, GraphSettings, limit_threads
from indexer.serving.phases import PhaseFairLock

SETTINGS = GraphSettings()
METRICS = list(Metric)


def vectors(count: int, dimension: int = 16, seed: int = 0) -> Array:
    found: Array = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def closeness(metric: Metric, queries: Array, rows: Array) -> npt.NDArray[np.float64]:
    q, v = queries.astype(np.float64)[:, None], rows.astype(np.float64)[None]
    found: npt.NDArray[np.float64] = -((q - v) ** 2).sum(axis=2) if metric is Metric.L2 else (q * v).sum(axis=2)
    return found


@pytest.mark.parametrize("metric", METRICS)
def test_the_nearest_come_first_with_their_closeness(metric: Metric) -> None:
    graph, rows, queries = Graph(16, metric, SETTINGS), vectors(500), vectors(20, seed=1)
    graph.build(rows)
    found, near = graph.nearest(queries, 64)
    exact = closeness(metric, queries, rows)
    assert (found[:, 0] == exact.argmax(axis=1)).mean() > 0.95
    assert np.allclose(near, np.take_along_axis(exact, found, axis=1), atol=1e-5)
    assert (np.diff(near, axis=1) <= 0).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("queries", "asked"), [(1, 1), (1, 700), (3, 65), (17, 700), (40, 64)])
def test_closeness_to_given_rows_is_that_of_their_vectors(metric: Metric, queries: int, asked: int) -> None:
    graph, rows, some = Graph(16, metric, SETTINGS), vectors(900), vectors(queries, seed=1)
    graph.build(rows)
    chosen = np.sort(np.random.default_rng(2).permutation(900)[:asked])
    expected = closeness(metric, some, rows[chosen])
    assert np.allclose(graph.closeness(some, chosen), expected, atol=1e-5)
    assert np.allclose(graph.closeness_to(rows, some, chosen), expected, atol=1e-5)


def test_squared_distances_are_as_exact_as_they_are_small() -> None:
    """Not computed from lengths and products, of which little would be left here."""
    rows = np.float32(100) + np.float32(0.01) * np.random.default_rng(0).standard_normal((500, 512)).astype(np.float32)
    rows[7] = 0
    graph, queries = Graph(512, Metric.L2, SETTINGS), np.asarray(rows[:20] + np.float32(0.001), np.float32)
    graph.build(rows)
    exact = closeness(Metric.L2, queries, rows)
    found, near = graph.nearest(queries, 64)
    assert np.allclose(near, np.take_along_axis(exact, found, axis=1), rtol=1e-6, atol=0)
    everything = np.arange(500)
    assert np.allclose(graph.closeness(queries, everything), exact, rtol=1e-6, atol=0)
    assert np.allclose(graph.closeness_to(rows, queries, everything), exact, rtol=1e-6, atol=0)


def test_closeness_is_the_same_whether_it_is_measured_in_one_go_or_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, rows, some = Graph(600, Metric.L2, SETTINGS), vectors(3000, 600), vectors(5, 600, seed=1)
    graph.build(rows[:1])
    at_once = graph.closeness_to(rows, some, np.arange(3000))
    monkeypatch.setattr("indexer.serving.graph._SCORES_AT_ONCE", 700)
    assert np.array_equal(at_once, graph.closeness_to(rows, some, np.arange(3000)))


def test_there_is_nothing_near_in_an_empty_graph() -> None:
    graph = Graph(16, Metric.L2, SETTINGS)
    assert (graph.nearest(vectors(2), 5)[0] == -1).all()
    assert graph.vectors(np.empty(0, np.int64)).shape == (0, 16)
    assert graph.closeness(vectors(2), np.empty(0, np.int64)).shape == (2, 0)
    graph.add(np.empty((0, 16), np.float32))
    assert graph.count == 0


def test_vectors_come_back_as_they_went_in() -> None:
    graph, rows = Graph(16, Metric.INNER_PRODUCT, SETTINGS), vectors(300) * 7
    graph.build(rows[:200])
    graph.add(rows[200:])
    assert graph.count == 300
    assert np.array_equal(graph.vectors(np.array([299, 0, 200, 0])), rows[[299, 0, 200, 0]])


def test_rows_added_one_by_one_are_found_as_well_as_rows_built_at_once() -> None:
    rows, queries = vectors(2000), vectors(100, seed=1)
    exact = np.argsort(-closeness(Metric.COSINE, queries, rows), axis=1)[:, :10]
    graph = Graph(16, Metric.COSINE, SETTINGS)
    graph.add(rows)
    found, _ = graph.nearest(queries, 128)
    hits = [len(set(a[:10]) & set(b)) for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
    assert sum(hits) / 1000 >= 0.99


@pytest.mark.parametrize("metric", METRICS)
def test_a_graph_read_from_a_file_answers_as_the_one_written_and_grows(metric: Metric, tmp_path: Path) -> None:
    graph, rows = Graph(16, metric, SETTINGS), vectors(300)
    graph.build(rows[:250])
    graph.write(tmp_path / "graph", tmp_path / "nodes")
    again = Graph.read(tmp_path / "graph", tmp_path / "nodes", 16, metric, SETTINGS)
    found, near = graph.nearest(rows[:20], 30)
    found_again, near_again = again.nearest(rows[:20], 30)
    assert np.array_equal(found, found_again)
    assert np.array_equal(near, near_again)
    again.add(rows[250:])
    assert again.count == 300
    assert again.nearest(rows[299:], 1)[0].tolist() == [[299]]


def test_a_file_of_another_graph_is_refused(tmp_path: Path) -> None:
    graph = Graph(16, Metric.L2, SETTINGS)
    graph.build(vectors(50))
    graph.write(tmp_path / "graph", tmp_path / "nodes")
    for dimension, metric, settings in [
        (17, Metric.L2, SETTINGS),
        (16, Metric.COSINE, SETTINGS),
        (16, Metric.L2, GraphSettings(neighbors=8)),
    ]:
        with pytest.raises(ValueError, match="expected"):
            Graph.read(tmp_path / "graph", tmp_path / "nodes", dimension, metric, settings)


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "graph").write_bytes(b"no graph")
    with pytest.raises(RuntimeError):
        Graph.read(tmp_path / "graph", tmp_path / "nodes", 16, Metric.L2, SETTINGS)
    with pytest.raises(RuntimeError):
        Graph.read(tmp_path / "none", tmp_path / "nodes", 16, Metric.L2, SETTINGS)


def test_its_bytes_are_those_of_vectors_and_links() -> None:
    graph = Graph(64, Metric.COSINE, SETTINGS)
    graph.build(vectors(1000, 64))
    assert 1000 * (4 * 64 + 4 * 32) <= graph.nbytes <= 1000 * (4 * 64 + 4 * 32 + 80)


def test_searches_while_rows_are_added_find_only_what_is_there_and_what_they_should() -> None:
    """Rows that were there before are found throughout; what is found has the closeness it says."""
    rows = vectors(4000, 32)
    graph = Graph(32, Metric.COSINE, SETTINGS)
    graph.build(rows[:1000])
    ended = threading.Event()

    def add() -> None:
        try:
            graph.add(rows[1000:])
        finally:
            ended.set()

    def search(seed: int) -> int:
        random, searched = np.random.default_rng(seed), 0
        while not ended.is_set() or searched < 20:
            chosen = random.integers(1000, size=8)
            found, near = graph.nearest(rows[chosen], 32)
            assert found[:, 0].tolist() == chosen.tolist()
            assert found.max() < graph.count
            assert np.allclose(near, np.einsum("qd,qkd->qk", rows[chosen], rows[found]), atol=1e-5)
            assert np.array_equal(graph.vectors(found[0]), rows[found[0]])
            assert np.allclose(graph.closeness(rows[chosen], chosen), rows[chosen] @ rows[chosen].T, atol=1e-5)
            searched += 1
        return searched

    with ThreadPoolExecutor(4) as threads:
        searching = [threads.submit(search, seed) for seed in range(3)]
        threads.submit(add).result()
        assert sum(each.result() for each in searching) >= 60
    assert graph.count == 4000
    assert (graph.nearest(rows, 16)[0][:, 0] == np.arange(4000)).mean() > 0.99


def test_writing_to_a_file_keeps_out_what_adds_and_lets_searches_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, rows = Graph(16, Metric.L2, SETTINGS), vectors(100)
    graph.build(rows)
    began, go_on = threading.Event(), threading.Event()

    def write_index(*_: object) -> None:
        began.set()
        assert go_on.wait(10)

    monkeypatch.setattr("indexer.serving.graph.faiss.write_index", write_index)
    with ThreadPoolExecutor(2) as threads:
        writing = threads.submit(graph.write, tmp_path / "graph", tmp_path / "nodes")
        assert began.wait(10)
        adding = threads.submit(graph.add, rows)
        for _ in range(20):
            assert graph.nearest(rows[:1], 1)[0].tolist() == [[0]]
        assert graph.count == 100
        go_on.set()
        writing.result()
        adding.result()
    assert graph.count == 200


def test_after_an_attempt_to_add_that_failed_it_answers_and_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, rows = Graph(16, Metric.L2, SETTINGS), vectors(100)
    graph.build(rows)
    more = vectors(100, seed=1)
    with monkeypatch.context() as patched:
        patched.setattr(graph._index, "add", out_of_memory)
        with pytest.raises(RuntimeError, match="bad_alloc"):
            graph.add(more)
    with pytest.raises(RuntimeError, match="no more rows"):
        graph.add(more)
    assert graph.nearest(rows[:1], 1)[0].tolist() == [[0]]


def out_of_memory(_: Array) -> None:
    raise RuntimeError("std::bad_alloc")


class Turns:
    """Threads that hold a lock until they are told to leave, and an account of who is inside."""

    def __init__(self) -> None:
        self.lock = PhaseFairLock()
        self.inside: list[str] = []
        self._changed = threading.Condition()
        self._leaving: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []

    def start(self, name: str, hold: Callable[[], AbstractContextManager[None]]) -> None:
        self._leaving[name] = threading.Event()

        def run() -> None:
            with hold():
                with self._changed:
                    self.inside.append(name)
                    self._changed.notify_all()
                assert self._leaving[name].wait(10)
                with self._changed:
                    self.inside.remove(name)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def leave(self, *names: str) -> None:
        for name in names:
            self._leaving[name].set()

    def await_inside(self, *names: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: sorted(self.inside) == sorted(names), 10), self.inside

    def await_waiting(self, readers: int = 0, writer: bool = False) -> None:
        """Until so many readers wait, and a writer has asked for its turn."""
        for _ in range(10_000_000):
            with self.lock._changed:
                if self.lock._waiting_readers == readers and self.lock._turn_taken == writer:
                    return
        raise AssertionError("nobody came")

    def end(self) -> None:
        self.leave(*self._leaving)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


def test_readers_share_the_lock() -> None:
    turns = Turns()
    turns.start("a", turns.lock.reading)
    turns.start("b", turns.lock.reading)
    turns.await_inside("a", "b")
    turns.end()


def test_a_writer_that_waits_goes_before_readers_that_come_later() -> None:
    turns = Turns()
    turns.start("early", turns.lock.reading)
    turns.await_inside("early")
    turns.start("writer", turns.lock.writing)
    turns.await_waiting(writer=True)
    turns.start("late", turns.lock.reading)
    turns.await_waiting(readers=1, writer=True)
    turns.leave("early")
    turns.await_inside("writer")
    turns.leave("writer")
    turns.await_inside("late")
    turns.end()


def test_readers_that_wait_go_before_the_next_writer() -> None:
    turns = Turns()
    turns.start("first", turns.lock.writing)
    turns.await_inside("first")
    turns.start("second", turns.lock.writing)
    for reader in ("a", "b"):
        turns.start(reader, turns.lock.reading)
    turns.await_waiting(readers=2, writer=True)
    turns.leave("first")
    turns.await_inside("a", "b")
    turns.leave("a", "b")
    turns.await_inside("second")
    turns.end()


def test_one_that_must_not_wait_shares_the_lock_with_readers_and_keeps_writers_out() -> None:
    turns = Turns()
    turns.start("a", turns.lock.reading)
    turns.await_inside("a")
    with turns.lock.reading_now() as inside:
        assert inside
        turns.leave("a")
        turns.start("writer", turns.lock.writing)
        turns.await_waiting(writer=True)
        assert turns.inside in ([], ["a"])
    turns.await_inside("writer")
    turns.end()


def test_one_that_must_not_wait_does_not_get_in_where_a_writer_is_or_waits() -> None:
    turns = Turns()
    turns.start("a", turns.lock.reading)
    turns.await_inside("a")
    turns.start("writer", turns.lock.writing)
    turns.await_waiting(writer=True)
    with turns.lock.reading_now() as inside:
        assert not inside
    turns.leave("a")
    turns.await_inside("writer")
    with turns.lock.reading_now() as inside:
        assert not inside
    turns.leave("writer")
    turns.end()
    with turns.lock.reading_now() as inside:
        assert inside


def test_one_that_is_inside_without_a_wait_reads_on_while_a_writer_waits() -> None:
    turns = Turns()
    with turns.lock.reading_now() as inside:
        assert inside
        turns.start("writer", turns.lock.writing)
        turns.await_waiting(writer=True)
        turns.start("late", turns.lock.reading)
        turns.await_waiting(readers=1, writer=True)
        with turns.lock.reading_now() as again:
            assert again
        with turns.lock.reading():
            assert turns.inside == []
    turns.await_inside("writer")
    turns.leave("writer")
    turns.await_inside("late")
    turns.end()


def test_one_that_writes_again_and_again_lets_every_waiting_reader_in_between() -> None:
    """Between two turns of the writer, all readers that waited have been in: counted, not timed."""
    lock, done = PhaseFairLock(), threading.Event()
    turns = 0
    seen: list[int] = []

    def write() -> None:
        nonlocal turns
        while not done.is_set():
            with lock.writing():
                turns += 1

    def read() -> None:
        for _ in range(300):
            before = turns
            with lock.reading():
                seen.append(turns - before)

    with ThreadPoolExecutor(4) as threads:
        writing = threads.submit(write)
        for each in [threads.submit(read) for _ in range(3)]:
            each.result()
        done.set()
        writing.result()
    # A reader can be kept from asking by the scheduler, but once it waits one turn passes at most.
    assert np.median(seen) <= 2
    assert turns > 1


def test_adding_gets_its_turn_however_many_search() -> None:
    graph, rows = Graph(16, Metric.L2, SETTINGS), vectors(600)
    graph.build(rows[:100])
    added = threading.Event()

    def search() -> None:
        while not added.is_set():
            graph.nearest(rows[:64], 64)

    with ThreadPoolExecutor(4) as threads:
        searching = [threads.submit(search) for _ in range(3)]
        threads.submit(graph.add, rows[100:]).result(60)
        added.set()
        for each in searching:
            each.result()
    assert graph.count == 600


def test_a_limited_thread_searches_with_no_more_openmp_threads_than_it_may() -> None:
    def used(most: int | None) -> int:
        if most is not None:
            limit_threads(most)
        graphs._use_threads(3)
        return int(graphs.faiss.omp_get_max_threads())

    for most, expected in ((1, 1), (None, 3)):
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(used, most).result() == expected


def test_a_graph_is_built_with_as_many_openmp_threads_as_cores_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chassis.cores.found", lambda: Found(machine=64, affinity=64, quota=2.5))
    graph = Graph(16, Metric.COSINE, SETTINGS)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(graph.build, vectors(100)).result()
        assert threads.submit(graphs.faiss.omp_get_max_threads).result() == 3
