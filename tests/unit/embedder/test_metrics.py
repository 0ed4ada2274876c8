"""The embedder's figures: their names, labels and values."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from chassis.readiness import Readiness
from embedder.inputs import Lane
from embedder.metrics import Metrics
from embedder.service import EmbedderService
from embedder.settings import EmbedderSettings
from tests.processes import ROOT


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"likeness_embedder_{name}", labels)


def test_inputs_are_counted_by_kind_lane_and_result(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.item("image", Lane.BULK, "ok")
    metrics.item("image", Lane.BULK, "ok")
    metrics.item("text", Lane.INTERACTIVE, "expired")

    assert value(registry, "items_total", kind="image", lane="bulk", result="ok") == 2
    assert value(registry, "items_total", kind="text", lane="interactive", result="expired") == 1
    assert value(registry, "items_total", kind="text", lane="bulk", result="ok") == 0


def test_the_queue_tells_depth_and_age(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.queue_length("decode", Lane.BULK, 5)
    metrics.queue_length("decode", Lane.BULK, 3)
    metrics.queue_length("model", Lane.INTERACTIVE, 1)
    metrics.oldest(Lane.BULK, 1.5)

    assert value(registry, "queue_items", stage="decode", lane="bulk") == 3
    assert value(registry, "queue_items", stage="model", lane="interactive") == 1
    assert value(registry, "queue_oldest_seconds", lane="bulk") == 1.5


def test_a_forward_pass_tells_its_size_and_time(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.batch("image", 8, 0.25)

    assert value(registry, "batch_size_sum", kind="image") == 8
    assert value(registry, "batch_size_bucket", kind="image", le="4.0") == 0
    assert value(registry, "batch_size_bucket", kind="image", le="8.0") == 1
    assert value(registry, "inference_seconds_sum", kind="image") == 0.25


def test_times_padding_drops_and_shortcuts(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.decoded("text", 0.002)
    metrics.waited("image", Lane.BULK, 0.5)
    metrics.tokens(count=128, padding=32)
    metrics.dropped("inference", "cancelled")
    metrics.cache_hit()
    metrics.cache_missed()
    metrics.joined("image")

    assert value(registry, "decode_seconds_count", kind="text") == 1
    assert value(registry, "queue_seconds_sum", kind="image", lane="bulk") == 0.5
    assert value(registry, "tokens_total") == 128
    assert value(registry, "padding_tokens_total") == 32
    assert value(registry, "dropped_total", stage="inference", why="cancelled") == 1
    assert value(registry, "cache_hits_total", kind="text") == 1
    assert value(registry, "cache_misses_total", kind="text") == 1
    assert value(registry, "joined_total", kind="image") == 1


def test_the_model_s_troubles(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.model_up(True)
    metrics.model_restarted("stuck")
    metrics.batch_limit("image", 4)
    metrics.batch_failed("out_of_memory")

    assert value(registry, "model_up") == 1
    assert value(registry, "model_restarts_total", why="stuck") == 1
    assert value(registry, "batch_limit", kind="image") == 4
    assert value(registry, "batch_failures_total", why="out_of_memory") == 1


def test_the_service_s_calls_are_counted_by_method_and_code(registry: CollectorRegistry) -> None:
    service = EmbedderService(EmbedderSettings(), registry)
    calls = service.calls(Readiness(service.name))

    calls.admit("/likeness.embedder.v1.EmbedderService/Embed", (), "grpc").end()  # before it was answered

    assert value(registry, "calls_total", method="Embed", transport="grpc", code="CANCELLED") == 1
    assert value(registry, "call_seconds_count", method="Embed", transport="grpc") == 1
    assert value(registry, "refused_total", reason="OVERLOADED") == 0


def test_names_follow_the_conventions_and_all_are_explained(metrics: Metrics, registry: CollectorRegistry) -> None:
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))

    assert len(families) >= 17
    for family in families:
        assert re.fullmatch(r"likeness_embedder_[a-z_]+|likeness_build_info", family.name)
        assert family.documentation.endswith(".")
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)


def test_several_processes_add_up_and_a_dead_one_s_gauges_go(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
    }
    child = """
import os
from embedder.inputs import Lane
from embedder.metrics import Metrics
metrics = Metrics()
metrics.item("image", Lane.BULK, "ok")
metrics.queue_length("decode", Lane.BULK, 3)
metrics.model_up(True)
print(os.getpid())
"""
    pids = [
        subprocess.run(
            [sys.executable, "-c", child], env=environment, check=True, timeout=60, capture_output=True, text=True
        ).stdout.strip()
        for _ in range(2)
    ]
    parent = f"""
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
registry = CollectorRegistry()
MultiProcessCollector(registry, {str(tmp_path)!r})
def show():
    print(registry.get_sample_value("likeness_embedder_items_total", dict(kind="image", lane="bulk", result="ok")),
          registry.get_sample_value("likeness_embedder_queue_items", dict(stage="decode", lane="bulk")),
          registry.get_sample_value("likeness_embedder_model_up"),
          [sample.value for family in registry.collect() for sample in family.samples if "build" in sample.name])
show()
mark_process_dead({pids[0]}, {str(tmp_path)!r})
show()
"""
    done = subprocess.run(
        [sys.executable, "-c", parent], env=environment, check=True, timeout=60, capture_output=True, text=True
    )

    assert done.stdout.split("\n")[:2] == ["2.0 6.0 2.0 [1.0]", "2.0 3.0 1.0 [1.0]"]
