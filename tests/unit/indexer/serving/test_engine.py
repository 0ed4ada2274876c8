"""What a collection says of its index goes before what the settings say."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from chassis.cores import Found
from indexer.collections import Hnsw, Metric
from indexer.metrics import Metrics
from indexer.serving.collection import ServingCollection
from indexer.serving.engine import Engine
from indexer.serving.graph import GraphSettings
from indexer.settings import IndexerSettings
from tests.unit.indexer.serving.tables import collection


@pytest.fixture
def engine() -> Iterator[Engine]:
    settings = IndexerSettings(graph_neighbors=12, ef_construction=99, ef_search=64)
    made = Engine(settings, Metrics(CollectorRegistry()))
    yield made
    made.close()


def test_a_graph_is_made_as_it_was_built_and_not_as_it_should_be(engine: Engine) -> None:
    made = collection()
    assert engine.graph_settings(made) == GraphSettings(12, 99)
    built = replace(made, built=Hnsw(max_neighbors=40, ef_search=5000), hnsw=Hnsw(max_neighbors=8, ef_construction=20))
    assert engine.graph_settings(built) == GraphSettings(40, 99)
    assert engine.graph_settings(replace(made, built=Hnsw(ef_construction=20))) == GraphSettings(12, 20)


def test_a_search_is_as_wide_as_the_collection_says_at_once(engine: Engine) -> None:
    made = collection()
    serving = ServingCollection(made, engine.table(made), 0)

    def width() -> int | None:
        return engine.planner(serving.collection).width(rows=10**6, members=10**6, wanted=10)

    assert width() == 64
    serving.collection = replace(made, hnsw=Hnsw(ef_search=320))
    assert width() == 320
    serving.collection = replace(made, hnsw=Hnsw())
    assert width() == 64


def test_by_l2_a_search_is_wider_unless_the_collection_says_how_wide(engine: Engine) -> None:
    made = replace(collection(), metric=Metric.L2)
    assert engine.planner(made).width(rows=10**6, members=10**6, wanted=10) == 96, "85, by steps of 32"
    said = replace(made, hnsw=Hnsw(ef_search=64))
    assert engine.planner(said).width(rows=10**6, members=10**6, wanted=10) == 64


@pytest.mark.parametrize(("asked", "threads"), [(0, 3), (5, 5)])
def test_there_are_as_many_threads_as_cores_that_may_be_used(
    asked: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chassis.cores.found", lambda: Found(machine=64, affinity=64, quota=2.5))
    made = Engine(IndexerSettings(search_threads=asked), Metrics(CollectorRegistry()))
    assert made._searching._max_workers == threads
    made.close()
