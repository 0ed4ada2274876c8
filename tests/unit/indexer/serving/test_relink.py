"""Rows that few others link to."""

import numpy as np
import pytest

from chassis.vectors import Array
from indexer.collections import Metric
from indexer.serving import relink
from indexer.serving import table as tables
from indexer.serving.graph import Graph, GraphSettings, faiss
from indexer.serving.table import Table
from indexer.writes import Written

DIMENSION, ROWS, QUERIES = 64, 4000, 200


def clustered(count: int, seed: int) -> Array:
    """float32 [count, DIMENSION]: of length 1, around 100 centres."""
    centres = np.random.default_rng(0).standard_normal((100, DIMENSION))
    rng = np.random.default_rng(seed)
    points = centres[rng.integers(0, 100, count)] + 0.8 * rng.standard_normal((count, DIMENSION))
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True), np.float32)


def of_differing_lengths() -> Array:
    lengths = np.random.default_rng(1).lognormal(0, 0.3, (ROWS, 1))
    return np.asarray(clustered(ROWS, 2) * lengths, np.float32)


def degrees(graph: Graph) -> np.ndarray:
    links, begins, width = relink.lowest_layer(faiss, graph._index.hnsw, graph.count)
    targets = links[begins[:, None] + np.arange(width)]
    return np.bincount(targets[targets >= 0], minlength=graph.count)


@pytest.mark.parametrize("at_once", [True, False])
def test_by_l2_rows_of_any_length_are_linked_to_and_found(at_once: bool) -> None:
    graph, rows, queries = Graph(DIMENSION, Metric.L2, GraphSettings()), of_differing_lengths(), clustered(QUERIES, 3)
    if at_once:
        graph.build(rows)
    else:
        for begin in range(0, ROWS, 500):
            graph.add(rows[begin : begin + 500])

    found, _ = graph.nearest(queries, 96)

    exact = ((queries**2).sum(1)[:, None] - 2 * queries @ rows.T + (rows**2).sum(1)[None]).argsort(axis=1)[:, :10]
    hits = sum(len(set(some[:10].tolist()) & set(right.tolist())) for some, right in zip(found, exact, strict=True))
    assert hits / exact.size > 0.985
    assert (degrees(graph) < relink.LEAST).mean() < 0.01


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many rows each time all links were looked through."""
    found: list[int] = []
    missing = relink.missing

    def watched(links: relink.Links, begins: relink.Places, width: int) -> list[relink.Edit]:
        found.append(len(begins))
        return missing(links, begins, width)

    monkeypatch.setattr(relink, "missing", watched)
    return found


@pytest.mark.parametrize("metric", list(Metric))
def test_a_rebuild_looks_for_rows_that_few_link_to_as_it_grows_and_at_its_end(
    looked: list[int], monkeypatch: pytest.MonkeyPatch, metric: Metric
) -> None:
    """And not at every step: that would be as many times the whole graph as there are steps."""
    monkeypatch.setattr(tables, "_BUILT_AT_ONCE", 10)
    rows, table = of_differing_lengths()[:1995], Table(DIMENSION, metric, GraphSettings(8, 40), 1 << 20)
    table.apply([Written(f"{i:04}", row, b"", {}) for i, row in enumerate(rows)], [])
    built = table.compacted(table.view, lambda: False)
    if metric is Metric.COSINE:
        assert not looked
        return
    assert looked[-1] == 1995, "of all, at the end"
    assert sum(looked) <= 13 * 1995, "11 times, and what is left of the last"
    table.apply([Written(f"more{i}", row, b"", {}) for i, row in enumerate(2 * rows[:15])], [])
    built.catch_up(table.view)
    built.build_tail(lambda: False)
    assert looked[-1] == 2010


def test_links_are_counted_in_few_parts_however_many_rows_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    width, count = 12, 1000
    links = np.random.default_rng(4).integers(-1, count // 2, (count, width)).astype(np.int32).ravel()
    begins = np.arange(count, dtype=np.int64) * width
    expected = relink.missing(links, begins, width)
    assert expected
    parts: list[int] = []

    def counting(values: np.ndarray, minlength: int) -> np.ndarray:
        parts.append(len(values))
        return np.asarray(bincount(values, minlength=minlength))

    bincount = np.bincount
    monkeypatch.setattr(relink, "_LEAST_AT_ONCE", 1)
    monkeypatch.setattr(np, "bincount", counting)
    assert relink.missing(links, begins, width) == expected
    assert 2 <= len(parts) <= 16


def test_links_are_taken_from_rows_that_most_link_to_and_no_row_links_to_another_twice() -> None:
    # Rows 0 to 19 link to each other; 20 links to them, and nobody to it.
    width, count = 12, 21
    links = np.array([[(row + step) % 20 for step in range(1, width + 1)] for row in range(count)], np.int32).ravel()
    begins = np.arange(count, dtype=np.int64) * width

    edits = relink.missing(links, begins, width)
    relink.apply(links, edits)

    table = links.reshape(count, width)
    assert len(edits) == relink.LEAST
    assert {row for _, _, row in edits} == {20}
    assert (table == 20).any(axis=1).sum() == relink.LEAST
    assert all(len(set(row.tolist())) == width for row in table)
    assert min(np.bincount(table.ravel(), minlength=count)) >= relink.LEAST


def test_a_place_that_has_changed_since_is_left_alone() -> None:
    links = np.array([1, 2, 3], np.int32)

    relink.apply(links, [(0, 1, 9), (1, 7, 9)])

    assert links.tolist() == [9, 2, 3]
