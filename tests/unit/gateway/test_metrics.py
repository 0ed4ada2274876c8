"""The gateway's figures, as Prometheus reads them."""

import grpc
import pytest
from likeness.gateway.v1.gateway_pb2 import SearchTimings
from prometheus_client import CollectorRegistry

from chassis.calls import Outcome, Transport
from gateway.metrics import STAGES, Metrics


def outcome(transport: Transport, code: grpc.StatusCode, reason: str | None = None, admitted: bool = True) -> Outcome:
    return Outcome("/likeness.gateway.v1.SearchService/Search", transport, admitted, code, reason, 0.2, None)


def test_calls_are_counted_by_method_transport_and_code() -> None:
    metrics = Metrics(CollectorRegistry())

    metrics.called(outcome("http", grpc.StatusCode.OK))
    metrics.called(outcome("http", grpc.StatusCode.OK))
    metrics.called(outcome("grpc", grpc.StatusCode.NOT_FOUND, "ITEM_NOT_FOUND"))

    value = metrics.registry.get_sample_value
    by_http = {"method": "Search", "transport": "http"}
    by_grpc = {"method": "Search", "transport": "grpc"}
    assert value("likeness_gateway_calls_total", {**by_http, "code": "OK"}) == 2
    assert value("likeness_gateway_calls_total", {**by_grpc, "code": "NOT_FOUND"}) == 1
    assert value("likeness_gateway_call_seconds_sum", by_http) == 0.4


def test_a_call_that_was_turned_away_is_counted_by_its_reason() -> None:
    metrics = Metrics(CollectorRegistry())

    metrics.called(outcome("http", grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", admitted=False))
    metrics.called(outcome("http", grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"))  # by the embedder, for one

    value = metrics.registry.get_sample_value
    assert value("likeness_gateway_refused_total", {"reason": "RATE_LIMITED"}) == 1
    assert value("likeness_gateway_refused_total", {"reason": "OVERLOADED"}) == 0
    took = {"method": "Search", "transport": "http"}
    assert value("likeness_gateway_call_seconds_count", took) == 1


def test_a_search_is_measured_by_the_stages_that_it_had() -> None:
    metrics = Metrics(CollectorRegistry())
    timings = SearchTimings()
    timings.query.FromMilliseconds(20)
    timings.total.FromMilliseconds(30)

    metrics.searched(timings)

    value = metrics.registry.get_sample_value
    measured = {stage: value("likeness_gateway_search_seconds_sum", {"stage": stage}) for stage in STAGES}
    assert measured == {"embed": 0, "query": pytest.approx(0.02), "total": pytest.approx(0.03)}


def test_what_has_not_happened_yet_is_shown_as_0() -> None:
    metrics = Metrics(CollectorRegistry())

    value = metrics.registry.get_sample_value
    assert value("likeness_gateway_ingest_items_total", {"outcome": "skipped"}) == 0
    assert value("likeness_gateway_cache_misses_total", {"cache": "picture"}) == 0
    assert value("likeness_gateway_fetches_total", {"outcome": "refused"}) == 0
