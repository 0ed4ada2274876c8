"""The indexer's figures: their names, labels and values."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from chassis.readiness import Readiness
from indexer.metrics import Metrics
from indexer.service import IndexerService
from indexer.settings import IndexerSettings
from indexer.status import CollectionStatus, Mode


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"likeness_indexer_{name}", labels)


def test_a_search_tells_its_paths_size_and_time(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.searched({"graph": 7, "exact": 1}, 0.002)
    metrics.searched_stage("score", 0.001)
    metrics.search_queue(3)
    assert value(registry, "search_stage_seconds_sum", stage="score") == 0.001
    assert value(registry, "search_stage_seconds_count", stage="queue") == 0
    assert value(registry, "queries_total", path="graph") == 7
    assert value(registry, "queries_total", path="exact") == 1
    assert value(registry, "queries_total", path="chroma") == 0
    assert value(registry, "search_batch_size_sum") == 8
    assert value(registry, "search_seconds_sum", path="graph") == 0.002
    assert value(registry, "search_queue_queries") == 3


def test_writes_tell_their_kind_time_and_queue(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.wrote("upsert", 64, 0.1)
    metrics.write_queue("images", 128, 1.5)
    assert value(registry, "writes_total", kind="upsert") == 64
    assert value(registry, "write_seconds_count", kind="upsert") == 1
    assert value(registry, "write_queue_items", collection="images") == 128
    assert value(registry, "write_queue_seconds", collection="images") == 1.5


def test_a_collection_shows_what_it_takes_until_it_is_deleted(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.collection(CollectionStatus("images", Mode.MEMORY, rows=10, dead_rows=3, unindexed_rows=2, memory_bytes=99))
    shown = {
        name: value(registry, name, collection="images")
        for name in ("in_memory", "items", "rows", "dead_rows", "unindexed_rows", "memory_bytes")
    }
    assert shown == {
        "in_memory": 1, "items": 7, "rows": 10, "dead_rows": 3, "unindexed_rows": 2, "memory_bytes": 99,
    }  # fmt: skip
    assert value(registry, "recall", collection="images") is None, "no probe has run"
    metrics.collection(CollectionStatus("images", Mode.MEMORY, recall=0.99))
    assert value(registry, "recall", collection="images") == 0.99
    metrics.collection_deleted("images")
    assert value(registry, "rows", collection="images") is None
    assert value(registry, "recall", collection="images") is None


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.MEMORY])
def test_a_collection_shows_no_recall_once_it_is_not_in_memory(
    metrics: Metrics, registry: CollectorRegistry, mode: Mode
) -> None:
    metrics.collection(CollectionStatus("images", Mode.MEMORY, recall=0.99))
    metrics.collection(CollectionStatus("images", mode))
    assert value(registry, "in_memory", collection="images") == 0
    assert value(registry, "recall", collection="images") is None
    metrics.collection(CollectionStatus("images", Mode.MEMORY))
    assert value(registry, "recall", collection="images") is None, "no probe has run since"


def test_a_collection_that_never_showed_all_its_figures_can_be_deleted(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    metrics.collection(CollectionStatus("images", Mode.LOADING))
    metrics.collection_deleted("images")
    metrics.collection_deleted("unknown")
    assert value(registry, "rows", collection="images") is None


def test_loads_snapshots_rebuilds_and_the_store(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.loaded("snapshot", 1.5)
    metrics.snapshot("failed")
    metrics.rebuilt(ok=True)
    metrics.store_up(True)
    metrics.budget(2**30)
    assert value(registry, "loads_total", source="snapshot") == 1
    assert value(registry, "load_seconds_sum") == 1.5
    assert value(registry, "snapshots_total", result="failed") == 1
    assert value(registry, "rebuilds_total", result="ok") == 1
    assert value(registry, "store_up") == 1
    assert value(registry, "memory_budget_bytes") == 2**30


def test_filters_disk_and_lag(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.filters(known=3, unknown=1)
    metrics.disk("images", 4096)
    metrics.store_bytes(8192)
    metrics.reader_lag(2.5)
    metrics.store_back()
    assert value(registry, "filter_cache_total", result="hit") == 3
    assert value(registry, "filter_cache_total", result="miss") == 1
    assert value(registry, "disk_bytes", collection="images") == 4096
    assert value(registry, "store_bytes") == 8192
    assert value(registry, "reader_lag_seconds") == 2.5
    assert value(registry, "store_restarts_total") == 1
    metrics.collection_deleted("images")
    assert value(registry, "disk_bytes", collection="images") is None


def test_the_service_s_calls_are_counted_by_method_and_code(registry: CollectorRegistry, tmp_path: Path) -> None:
    settings = IndexerSettings(data_dir=tmp_path, snapshots=str(tmp_path / "snapshots"))
    service = IndexerService(settings, registry)
    calls = service.calls(Readiness(service.name))
    calls.admit("/likeness.indexer.v1.IndexerService/Query", (), "grpc").end()  # before it was answered
    assert value(registry, "calls_total", method="Query", transport="grpc", code="CANCELLED") == 1
    assert value(registry, "call_seconds_count", method="Query", transport="grpc") == 1
    assert value(registry, "refused_total", reason="OVERLOADED") == 0


def test_names_follow_the_conventions_and_all_are_explained(metrics: Metrics, registry: CollectorRegistry) -> None:
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert len(families) >= 20
    for family in families:
        assert re.fullmatch(r"likeness_indexer_[a-z_]+|likeness_build_info", family.name)
        assert family.documentation.endswith(".")
