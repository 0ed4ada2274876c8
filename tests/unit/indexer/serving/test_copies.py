from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.vectors import Array
from indexer.collections import Metric
from indexer.serving import copies, graph, relink
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
    firsts = Firsts(DIMENSION, lambda asked: rows[asked])
    if not hashed:
        firsts._factors[:] = 0
    begin, found = sizes[0], []
    for size in [*sizes[1:], len(of)]:
        found += firsts.take(part := rows[begin : begin + size], begin).tolist()
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


def test_rows_that_could_not_be_stored_are_taken_again() -> None:
    stored = vectors([1, 2])
    firsts = Firsts(DIMENSION, lambda asked: stored[asked])
    assert firsts.take(vectors([1, 2]), 0).tolist() == [-1, -1]
    for _ in range(2):
        assert firsts.take(vectors([3, 3, 2]), 2).tolist() == [-1, 2, 1]


def test_nodes_are_followed_by_their_copies() -> None:
    held = Copies()
    assert held.any(np.array([[0, 1], [2, -1]])) == [False, False]
    held.add([1, 4, 1], [5, 6, 7])
    assert held.any(np.array([[0, 5], [2, -1], [4, 1], [0, 1]])) == [False, False, True, True]
    rows, closeness = held.with_copies(np.array([4, 0, 1, -1]), np.array([0.5, 0.4, 0.3, -9], np.float32))
    assert rows.tolist() == [4, 6, 0, 1, 5, 7, -1]
    assert closeness.tolist() == np.array([0.5, 0.5, 0.4, 0.3, 0.3, 0.3, -9], np.float32).tolist()


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
        one.write(tmp_path / str(number))
        made.append(Graph.read(tmp_path / str(number), DIMENSION, Metric.COSINE, GraphSettings()))
    for one in made:
        one.add(rows[900:])
        assert np.array_equal(one.vectors(np.arange(1000)), rows)
        links, begins, width = relink.lowest_layer(graph.faiss, one._index.hnsw, 1000)
        linked = links[begins[nodes][:, None] + np.arange(width)]
        assert set(linked[linked >= 0].tolist()) <= set(nodes)
        found, near = one.nearest(rows, 48)
        assert set(found.ravel().tolist()) <= set(nodes)
        assert (found[:, 0] == first).mean() > 0.99
        for row in np.flatnonzero(found[:, 0] == first)[::50].tolist():
            everything, close = one.copies.with_copies(found[row], near[row])
            equal = np.flatnonzero((rows == rows[row]).all(axis=1))
            assert sorted(everything[: len(equal)].tolist()) == equal.tolist()
            assert np.allclose(close, rows[everything] @ rows[row], atol=1e-6)


@pytest.mark.parametrize("metric", [Metric.L2, Metric.INNER_PRODUCT])
def test_no_link_to_or_from_a_copy_is_made_later(metric: Metric) -> None:
    rows, first = with_copies()
    made = Graph(DIMENSION, metric, GraphSettings())
    made.build(rows * np.random.default_rng(1).uniform(0.2, 5, 1000).astype(np.float32)[first, None])
    made.relink()
    links, begins, width = relink.lowest_layer(graph.faiss, made._index.hnsw, 1000)
    is_copy = np.array(first) != np.arange(1000)
    assert np.array_equal(copies.marked(links, begins), is_copy)
    own = links[begins[is_copy][:, None] + np.arange(width)]
    assert np.array_equal(own[:, 0], np.array(first)[is_copy])
    assert (own[:, 2:] == -1).all()
    others = links[begins[~is_copy][:, None] + np.arange(width)]
    assert not is_copy[others[others >= 0]].any()


def test_rows_that_few_link_to_are_told_without_copies() -> None:
    """A copy's mark is no link to its node, and a copy needs none."""
    width = 4
    links = np.full((12, width), -1, np.int32)
    links[0] = [1, 2, 3, -1]
    links[1], links[2] = [0, 2, 3, -1], [0, 1, 3, -1]
    for copy in range(4, 12):
        links[copy, :2] = 3, copy
    links[3, :3] = 0, 1, 2
    plain = relink.missing(links[:4].ravel().copy(), np.arange(0, 4 * width, width), width)
    assert relink.missing(links.ravel(), np.arange(0, 12 * width, width), width) == plain
