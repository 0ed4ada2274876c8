from collections.abc import Sequence

import faiss
import numpy as np
import pytest

from indexer.collections import Metric
from indexer.reads import Fields, Row, Search
from indexer.serving import probe, search
from indexer.serving.planner import Planner, PlannerSettings
from indexer.serving.table import Table, View
from indexer.writes import Written
from tests.unit.indexer.serving.tables import DIMENSION, absorb, empty, vectors, written

# As if scoring a row took as long as a wide search, so that all searches go through the graph.
THROUGH_THE_GRAPH = Planner(PlannerSettings(ef_search=64, rows_per_step=0.001))


def answer(view: View, searches: Sequence[Search], fields: Fields) -> list[list[Row]]:
    return search.answer(view, searches, fields, THROUGH_THE_GRAPH)


def probed(view: View, metric: Metric = Metric.COSINE, found: probe.Answer = answer) -> float | None:
    return probe.recall(view, metric, found, np.random.default_rng(3))


def in_graph(metric: Metric, count: int = 1000) -> Table:
    table = empty(metric)
    table.apply(written(range(count), values=lambda _: {}), [])
    absorb(table, count)
    return table


@pytest.mark.parametrize("metric", Metric)
def test_a_good_graph_finds_everything(metric: Metric) -> None:
    table = in_graph(metric)
    table.apply(written(range(900, 1100), seed=2, values=lambda _: {}), [f"id{i}" for i in range(50)])
    assert probed(table.view, metric) == pytest.approx(1.0, abs=0.02)


def test_vectors_that_are_all_the_same_are_found() -> None:
    table = empty()
    vector = vectors(1)[0]
    table.apply([Written.of(f"id{i}", vector, {}) for i in range(100)], [])
    absorb(table, 60)
    assert probed(table.view) == 1.0


# Not the inner product: its graphs hang on a few long vectors, so that a damaged one finds next to nothing, and every
# row is scored instead.
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.L2])
def test_a_damaged_graph_finds_less(metric: Metric) -> None:
    table = in_graph(metric)
    view = table.view
    links = view.graph._index.hnsw.neighbors
    cut = faiss.vector_to_array(links)
    cut[np.isin(cut, np.arange(0, 1000, 3))] = 1  # nobody points to these rows any more
    faiss.copy_array_to_vector(cut, links)
    found = probed(view, metric)
    assert found is not None
    assert 0 < found < 0.9


def test_rows_that_a_search_leaves_out_are_missed() -> None:
    view = in_graph(Metric.COSINE).view

    def short(view: View, searches: Sequence[Search], fields: Fields) -> list[list[Row]]:
        return [rows[:5] for rows in answer(view, searches, fields)]

    assert probed(view, found=short) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("count", "found"), [(0, None), (1, None), (2, 1.0), (5, 1.0), (11, 1.0), (12, 1.0)])
def test_few_items_are_enough(count: int, found: float | None) -> None:
    table = empty()
    table.apply(written(range(count + 1), values=lambda _: {}), [])
    table.apply([], ["id0"])
    assert probed(table.view) == found


def test_the_rows_compared_with_are_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_ROWS_AT_ONCE", 64)
    table = in_graph(Metric.L2, 500)
    view, live = table.view, np.arange(500)
    chosen = np.array([3, 77, 499])
    queries = view.vectors(chosen)
    found = probe._nearest(view, Metric.L2, live, chosen, queries)
    for rows, query, own in zip(found, queries, chosen.tolist(), strict=True):
        away = np.linalg.norm(view.vectors(live) - query, axis=1)
        away[own] = np.inf
        assert set(rows.tolist()) == set(np.argsort(away)[: len(rows)].tolist())
    assert found.shape == (3, 18)
    assert queries.shape == (3, DIMENSION)
