import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.vectors import Array
from indexer.collections import Metric
from indexer.serving import copies, graph
from indexer.serving.copies import Copies, Firsts
from indexer.serving.graph import Graph, GraphSettings

DIMENSION = 16


def vectors(of: list[int]) -> Array:
    """Rows with the same number are equal; others differ in one bit at least, or in a sign of zero."""
    found = np.zeros((len(of), DIMENSION), np.float32)
    for row, number in zip(found, of, strict=True):
        row[number % DIMENSION] = np.nextafter(np.float32(1), np.float32(2)) if number // DIMENSION else 1
    return found


def first_of_each(of: list[int]) -> list[int]:
    return [-1 if of.index(number) == row else of.index(number) for row, number in enumerate(of)]


def taken(of: list[int], sizes: list[int], *, hashed: bool = True) -> list[int]:
    rows = vectors(of)
    firsts = Firsts(DIMENSION)
    if not hashed:
        firsts._factors[:] = 0
    begin, found = sizes[0], []
    for size in [*sizes[1:], len(of)]:
        found += firsts.take(part := rows[begin : begin + size], begin, lambda asked: rows[asked]).tolist()
        begin += len(part)
    return [-2] * sizes[0] + found


@given(
    st.lists(st.integers(0, 2 * DIMENSION - 1), max_size=60),
    st.lists(st.integers(0, 20), min_size=1, max_size=8),
    st.sampled_from([0, 5, 1000]),
)
def test_the_first_row_with_each_vector_is_told_however_they_come(of: list[int], sizes: list[int], recent: int) -> None:
    """In parts of any size, with some of them read from a file before, and put in order early or late."""
    sizes[0] = min(sizes[0], len(of))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copies, "_LEAST_RECENT", recent)
        patched.setattr(copies, "_HASHED_AT_ONCE", 7)
        found = taken(of, sizes)
    assert found[sizes[0] :] == first_of_each(of)[sizes[0] :]


def test_rows_of_one_hash_are_compared() -> None:
    """The others of them are taken for rows of their own."""
    assert taken([1, 2, 1, 2, 1], [0, 3, 1, 1], hashed=False) == [-1, -1, 0, -1, 0]


def test_vectors_of_two_numbers_have_hashes_as_far_apart_as_others() -> None:
    """They differ in few bits, the high ones of each number."""
    signs = np.random.default_rng(5).choice(np.array([-0.25, 0.25], np.float32), (20_000, 16))
    distinct = len(np.unique(signs, axis=0))
    hashes = Firsts(16)._hashed(signs)
    assert len(np.unique(hashes)) == distinct
    low = np.unique(hashes & np.uint64(0xFFFFFFFF))
    assert len(low) > 0.99 * distinct


def test_rows_that_could_not_be_stored_are_taken_again() -> None:
    stored = vectors([1, 2])
    firsts = Firsts(DIMENSION)
    assert firsts.take(vectors([1, 2]), 0, lambda asked: stored[asked]).tolist() == [-1, -1]
    for _ in range(2):
        assert firsts.take(vectors([3, 3, 2]), 2, lambda asked: stored[asked]).tolist() == [-1, 2, 1]


def test_rows_are_followed_by_their_copies() -> None:
    held = Copies()
    held.make_room(8)
    assert held.counts(np.array([[0, 1], [2, -1]])) == [0, 0]
    held.add(np.array([1, 4, 1]), np.array([5, 6, 7]))
    assert held.counts(np.array([[0, 3], [2, -1], [4, 1], [0, 1]])) == [0, 0, 3, 2]
    assert [list(held.of(row)) for row in (0, 1, 4)] == [[], [7, 5], [6]]
    rows, closeness = held.with_copies(np.array([4, 0, 1, -1]), np.array([0.5, 0.4, 0.3, -9], np.float32))
    assert rows.tolist() == [4, 6, 0, 1, 7, 5, -1]
    assert closeness.tolist() == np.array([0.5, 0.5, 0.4, 0.3, 0.3, 0.3, -9], np.float32).tolist()


def test_where_no_row_is_no_copies_are_though_the_last_row_is_one() -> None:
    held = Copies()
    held.make_room(1000)
    full = len(held._before)
    held.add(np.array([0]), np.array([full - 2]))
    held.add(np.array([0]), np.array([full - 1]))
    held._counts[-1] = 1
    assert held._before[-1] >= 0
    assert held.counts(np.array([[3, -1]])) == [0]
    assert held.with_copies(np.array([3, -1]), np.zeros(2, np.float32))[0].tolist() == [3, -1]


def unit(count: int, seed: int = 0) -> Array:
    found: Array = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def with_copies(seed: int = 0) -> tuple[Array, list[int]]:
    """1,000 rows of 700 vectors, and where each has been first."""
    random = np.random.default_rng(seed)
    of = [*range(500), *random.permutation([*range(500, 700), *random.integers(0, 20, 300)]).tolist()]
    return unit(700)[of], [of.index(number) for number in of]


def test_only_the_first_of_equal_rows_is_a_node(tmp_path: Path) -> None:
    """In a graph that was built at once, in one that grew, and in those read from files, which grow on."""
    rows, first = with_copies()
    nodes = sorted(set(first))
    built, grown = (Graph(DIMENSION, Metric.COSINE, GraphSettings()) for _ in range(2))
    built.build(rows[:900])
    grown.build(rows[:100])
    grown.add(rows[100:900])
    made = [built, grown]
    for number, one in enumerate(made[:2]):
        files = tmp_path / f"{number}", tmp_path / f"{number}.npy"
        one.write(*files)
        made.append(Graph.read(*files, DIMENSION, Metric.COSINE, GraphSettings()))
    for one in made:
        one.add(rows[900:])
        assert (one.count, one.firsts.tolist(), one._index.ntotal) == (1000, nodes, len(nodes))
        assert one.nodes(np.arange(1000)).tolist() == [nodes.index(row) for row in first]
        assert np.array_equal(one.vectors(np.arange(1000)), rows)
        asked = np.arange(0, 1000, 7)
        assert np.allclose(one.closeness(rows[:5], asked), rows[:5] @ rows[asked].T, atol=1e-6)
        found, near = one.nearest(rows, 48)
        assert set(found.ravel().tolist()) <= set(nodes)
        assert (found[:, 0] == first).mean() > 0.99
        for row in np.flatnonzero(found[:, 0] == first)[::50].tolist():
            everything, close = one.copies.with_copies(found[row], near[row])
            equal = np.flatnonzero((rows == rows[row]).all(axis=1))
            assert sorted(everything[: len(equal)].tolist()) == equal.tolist()
            assert np.allclose(close, rows[everything] @ rows[row], atol=1e-6)


def test_nodes_of_another_graph_are_refused(tmp_path: Path) -> None:
    rows, _ = with_copies()
    for name, count in (("one", 1000), ("other", 900)):
        made = Graph(DIMENSION, Metric.COSINE, GraphSettings())
        made.build(rows[:count])
        made.write(tmp_path / name, tmp_path / f"{name}.npy")
    swapped = np.load(tmp_path / "one.npy")
    swapped[[3, 7]] = swapped[[7, 3]]
    np.save(tmp_path / "swapped.npy", swapped)
    np.save(tmp_path / "floats.npy", swapped.astype(np.float32))
    for nodes in ("other.npy", "swapped.npy", "floats.npy"):
        with pytest.raises(ValueError, match="nodes of another graph"):
            Graph.read(tmp_path / "one", tmp_path / nodes, DIMENSION, Metric.COSINE, GraphSettings())


def test_copies_take_no_room_for_vectors_or_links() -> None:
    made = Graph(512, Metric.COSINE, GraphSettings())
    made.build(np.random.default_rng(0).standard_normal((1000, 512)).astype(np.float32))
    before = made.nbytes
    made.build(made.vectors(np.arange(1000)))
    assert 1000 * 12 <= made.nbytes - before <= 1000 * 60


def test_rows_are_built_together_whatever_copies_are_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """faiss takes more than one core for more than a hundred rows at once only."""
    rows, first = with_copies()
    made = Graph(DIMENSION, Metric.COSINE, GraphSettings())
    added: list[int] = []
    add = made._index.add

    def counting(some: Array) -> None:
        added.append(len(some))
        add(some)

    monkeypatch.setattr(made._index, "add", counting)
    made.build(rows)
    assert added == [len(set(first))]


def test_copies_teach_nobody_that_many_rows_fit_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers are kept out for as long as nodes take."""
    rows = unit(3000)
    made = Graph(DIMENSION, Metric.COSINE, GraphSettings())
    made.build(rows[:2000])
    monkeypatch.setattr(graph, "_HOLD_S", 0.0)  # one node at a time
    made.add(rows[2000:2010])
    assert made._at_once == 1
    added: list[int] = []
    append = made._append

    def counting(some: Array, of: copies.Rows) -> None:
        added.append(int(np.count_nonzero(of < 0)))
        append(some, of)

    monkeypatch.setattr(made, "_append", counting)
    made.add(np.concatenate((rows[:600], rows[2010:2030], rows[:50], rows[2030:2040])))
    assert max(added) == 1
    assert sum(added) == 30
    assert len(added) <= 40
    assert made.count == 2690


def test_a_graph_that_nobody_needs_is_freed_at_once() -> None:
    """The garbage collector knows nothing of its gigabytes, and so sees no reason to look."""
    made = Graph(DIMENSION, Metric.COSINE, GraphSettings())
    made.build(with_copies()[0])
    seen = weakref.ref(made)
    gc.disable()
    try:
        del made
        assert seen() is None
    finally:
        gc.enable()


def test_what_may_lack_rows_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = Graph(DIMENSION, Metric.COSINE, GraphSettings())
    made.build(unit(100))

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(made.copies, "add", fail)
    with pytest.raises(MemoryError):
        made.add(unit(200))
    with pytest.raises(RuntimeError, match="memory ran out"):
        made.write(tmp_path / "graph", tmp_path / "nodes")
    assert list(tmp_path.iterdir()) == []
