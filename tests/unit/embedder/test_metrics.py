"""The embedder's figures: their names, labels and values."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from chassis.readiness import Readiness
from embedder.entries import Entry, Stage
from embedder.inputs import Lane, Pixels
from embedder.metrics import Metrics
from embedder.preprocess import Preprocess
from embedder.service import EmbedderService
from embedder.settings import EmbedderSettings
from tests.processes import ROOT
from tests.unit.embedder.bench import WAIT_S, Bench, Build, grey, vectors, words
from tests.unit.embedder.fake_worker import angle


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


@pytest.fixture
def decoding_may_go_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Whether pictures are decoded; while it is cleared, those that have been begun stay where they are."""
    go_on = threading.Event()
    go_on.set()

    class Gated(Preprocess):
        """Waits for it before each picture."""

        def __call__(self, picture: Image.Image, out: Pixels | None = None) -> Pixels:
            assert go_on.wait(WAIT_S)
            return super().__call__(picture, out)

    monkeypatch.setattr("embedder.assembly.Preprocess", Gated)
    yield go_on
    go_on.set()


def _waiting(bench: Bench) -> dict[tuple[str, str], float]:
    """What the queues tell of themselves: inputs by stage and lane, and by lane the age of the oldest one."""
    lanes, stages = ("interactive", "bulk"), ("decode", "model")
    told = {(stage, lane): bench.count("queue_items", stage=stage, lane=lane) for stage in stages for lane in lanes}
    return told | {("age", lane): bench.count("queue_oldest_seconds", lane=lane) for lane in lanes}


async def test_a_pipeline_under_load_tells_how_many_wait_for_what_and_the_age_of_the_oldest(
    build: Build, decoding_may_go_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic() + 1000.0
    stands_still = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    for module in ("assembly", "decoding"):  # whose clock both queues tell ages by
        monkeypatch.setattr(f"embedder.{module}.time", stands_still)
    monkeypatch.setattr("embedder.assembly._LOOK_S", 0.001)
    looks, oldest_told = list[Lane](), Metrics.oldest

    def look(metrics: Metrics, lane: Lane, seconds: float) -> None:
        oldest_told(metrics, lane, seconds)
        looks.append(lane)

    monkeypatch.setattr(Metrics, "oldest", look)
    bench = await build(decode_threads=1)
    first, held = await bench.hold()
    await bench.until(lambda: set(_waiting(bench).values()) == {0.0})  # what the model has does not wait

    decoding_may_go_on.clear()
    of_bulk = bench.start(bench.outcomes(words(3), words(20), words(40), lane=Lane.BULK))
    await bench.until(lambda: bench.pipeline.waiting_for_model == 3)
    pictures = bench.start(bench.outcomes(*[grey(level) for level in range(20, 25)]))
    await bench.until(lambda: len(bench.pipeline._in_flight) == 9)
    more = bench.start(bench.outcomes(words(5), words(6)))
    large = bench.start(bench.outcomes(*[grey(level) for level in range(30, 34)], lane=Lane.BULK))
    await bench.until(lambda: len(bench.pipeline._in_flight) == 15)
    entries = list(bench.pipeline._in_flight.values())

    def oldest(lane: Lane) -> Entry:
        waiting = [each for each in entries if each.lane is lane and each.stage in (Stage.TO_DECODE, Stage.TO_INFER)]
        return min(waiting, key=lambda each: each.created)

    # Of five pictures one is with the thread for all lanes, one with that for interactive ones.
    expected = {("decode", "interactive"): 3.0, ("decode", "bulk"): 4.0}
    expected |= {("model", "interactive"): 2.0, ("model", "bulk"): 3.0}
    expected |= {("age", lane.name.lower()): now - oldest(lane).created for lane in Lane}
    assert (oldest(Lane.INTERACTIVE).kind, oldest(Lane.BULK).kind) == ("image", "text"), "one of each queue"
    looks.clear()
    await bench.until(lambda: len(looks) > 2 * len(Lane))  # at all lanes, after everything is in its place
    assert _waiting(bench) == expected

    decoding_may_go_on.set()
    held.release()
    await first
    assert np.allclose(vectors(await pictures), [angle(level) for level in range(20, 25)])
    for call in (of_bulk, more, large):
        vectors(await call)
    await bench.until(lambda: set(_waiting(bench).values()) == {0.0})


async def test_of_a_batch_of_texts_what_only_fills_up_the_shorter_ones_counts_as_padding(build: Build) -> None:
    bench = await build()

    def told() -> tuple[float, float]:
        return bench.count("tokens_total"), bench.count("padding_tokens_total")

    before = told()
    outcomes, timings = await bench.together(words(3), words(5), words(8))
    assert (len(vectors(outcomes)), timings.batch_size) == (3, 3)
    assert (told()[0] - before[0], told()[1] - before[1]) == (3 * 8, 5 + 3)
    await bench.outcomes(words(12))
    assert (told()[0] - before[0], told()[1] - before[1]) == (3 * 8 + 12, 5 + 3), "a text alone wastes nothing"


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
