"""The data of the indexer's benchmark: the same for everybody, and with right answers."""

import numpy as np
import pytest

from benchmarks.indexer import data, scope
from indexer.chroma_collections import HNSW
from indexer.serving.graph import GraphSettings
from indexer.serving.planner import PlannerSettings


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "product"])
def test_a_small_set_begins_a_large_one(metric: data.Metric) -> None:
    large = data.vectors(12_000, metric)
    assert large.shape == (12_000, data.DIMENSION)
    assert np.array_equal(data.vectors(300, metric), large[:300])
    assert np.array_equal(data.clusters(300), data.clusters(12_000)[:300])


def test_vectors_have_length_1_for_the_cosine_and_different_lengths_otherwise() -> None:
    assert np.allclose(np.linalg.norm(data.vectors(500), axis=1), 1, atol=1e-5)
    assert np.linalg.norm(data.vectors(500, "product"), axis=1).std() > 0.1


def test_queries_are_not_stored() -> None:
    assert (data.queries(50) @ data.vectors(2_000).T).max() < 0.999


@pytest.mark.parametrize("per_cent", scope.SELECTIVITIES)
def test_a_filter_leaves_the_share_that_it_is_named_for(per_cent: float) -> None:
    share = 100 * data.mask(200_000, ("n", 10 * per_cent)).mean()
    assert share == pytest.approx(per_cent, rel=0.2)


def test_the_nearest_are_those_that_sorting_finds() -> None:
    stored, asked = data.vectors(700, "euclidean"), data.queries(70)
    members = data.mask(700, ("n", 300.0))
    distances = np.linalg.norm(stored[None] - asked[:, None], axis=2)
    distances[:, ~members] = np.inf
    assert data.nearest(stored, asked, "euclidean", members, 5) == [
        set(row) for row in np.argsort(distances)[:, :5].tolist()
    ]
    products = np.where(members, asked @ stored.T, -np.inf)
    assert data.nearest(stored, asked, "product", members, 5) == [
        set(row) for row in np.argsort(-products)[:, :5].tolist()
    ]


def test_fewer_members_than_wanted_are_all_nearest() -> None:
    members = np.zeros(100, np.bool_)
    members[[3, 7]] = True
    assert data.nearest(data.vectors(100), data.queries(1), "cosine", members, 10) == [{3, 7}]


def test_recall_counts_what_was_found_of_what_was_wanted() -> None:
    assert data.recall([[1, 2, 3], [4]], [{1, 2}, {5, 6}]) == 0.5
    assert data.recall([[]], [set()]) == 1.0


def test_others_are_measured_with_the_indexers_own_settings() -> None:
    graph = GraphSettings()
    assert (graph.neighbors, graph.ef_construction) == (scope.NEIGHBOURS, scope.EF_CONSTRUCTION)
    assert PlannerSettings().ef_search == scope.EF_SEARCH
    assert scope.CHROMA_HNSW == HNSW


def test_the_quick_cut_leaves_large_sizes_out_unless_they_are_asked_for() -> None:
    assert scope.Scope.of(quick=True, sizes=None, clients=2, peers=False).main == 20_000
    assert scope.Scope.of(quick=True, sizes=[50_000, 10_000], clients=2, peers=False).sizes == (10_000, 50_000)
    assert scope.Scope.of(quick=False, sizes=None, clients=2, peers=False).main == 50_000


def test_ingest_is_measured_at_one_size_and_everything_else_at_all() -> None:
    whole = scope.Scope.of(quick=False, sizes=None, clients=2, peers=True)
    assert [size for size in whole.sizes if whole.takes("ingest", size)] == [50_000]
    assert all(whole.takes("filters", size) and whole.peers_at(size) for size in whole.sizes)
    cut = scope.Scope.of(quick=True, sizes=None, clients=2, peers=True)
    assert [size for size in cut.sizes if cut.takes("filters", size)] == [20_000]
