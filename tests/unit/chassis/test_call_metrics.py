"""How calls went, as Prometheus reads it: the same of every service."""

import platform

import grpc
import pytest
from prometheus_client import CollectorRegistry

from chassis import __version__
from chassis.call_log import Outcome, Transport
from chassis.call_metrics import CallMetrics

OK, EXHAUSTED = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> CallMetrics:
    return CallMetrics("likeness_test", registry)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"likeness_test_{name}", labels)


def outcome(transport: Transport, code: grpc.StatusCode, reason: str | None = None, admitted: bool = True) -> Outcome:
    return Outcome("/likeness.test.v1.TestService/Try", transport, admitted, code, reason, 0.2, None)


def test_calls_are_counted_by_method_transport_and_code(metrics: CallMetrics, registry: CollectorRegistry) -> None:
    metrics.called(outcome("http", OK))
    metrics.called(outcome("http", OK))
    metrics.called(outcome("grpc", grpc.StatusCode.NOT_FOUND, "ITEM_NOT_FOUND"))

    assert value(registry, "calls_total", method="Try", transport="http", code="OK") == 2
    assert value(registry, "calls_total", method="Try", transport="grpc", code="NOT_FOUND") == 1
    assert value(registry, "call_seconds_sum", method="Try", transport="http") == 0.4


def test_a_call_that_was_turned_away_is_counted_by_its_reason(
    metrics: CallMetrics, registry: CollectorRegistry
) -> None:
    assert value(registry, "refused_total", reason="OVERLOADED") == 0
    metrics.called(outcome("grpc", EXHAUSTED, "OVERLOADED", admitted=False))
    metrics.called(outcome("grpc", EXHAUSTED, "OVERLOADED"))  # by a queue within, for one

    assert value(registry, "refused_total", reason="OVERLOADED") == 1
    assert value(registry, "calls_total", method="Try", transport="grpc", code="RESOURCE_EXHAUSTED") == 2
    assert value(registry, "call_seconds_count", method="Try", transport="grpc") == 1


def test_a_reason_that_was_not_named_beforehand_makes_no_series(
    metrics: CallMetrics, registry: CollectorRegistry
) -> None:
    metrics.called(outcome("grpc", EXHAUSTED, "SOMETHING_NEW", admitted=False))

    assert value(registry, "refused_total", reason="SOMETHING_NEW") is None
    assert value(registry, "calls_total", method="Try", transport="grpc", code="RESOURCE_EXHAUSTED") == 1


def test_the_release_that_runs_is_told(metrics: CallMetrics, registry: CollectorRegistry) -> None:
    (family,) = [family for family in registry.collect() if family.name == "likeness_build_info"]
    (sample,) = family.samples
    labels = {"version": __version__, "service": "test", "python": platform.python_version()}
    assert (sample.labels, sample.value) == (labels, 1)
