"""The gateway's figures, as Prometheus reads them."""

import grpc
from likeness.common.v1 import error_pb2
from prometheus_client import CollectorRegistry

from gateway.metrics import Metrics


def test_calls_are_counted_by_method_transport_and_code() -> None:
    metrics = Metrics(CollectorRegistry())

    metrics.called("Search", "http", grpc.StatusCode.OK)
    metrics.called("Search", "http", grpc.StatusCode.OK)
    metrics.called("Search", "grpc", grpc.StatusCode.NOT_FOUND)

    value = metrics.registry.get_sample_value
    by_http = {"method": "Search", "transport": "http", "code": "OK"}
    by_grpc = {"method": "Search", "transport": "grpc", "code": "NOT_FOUND"}
    assert value("likeness_gateway_calls_total", by_http) == 2
    assert value("likeness_gateway_calls_total", by_grpc) == 1


def test_a_refusal_is_counted_by_its_reason_and_other_failures_are_none() -> None:
    metrics = Metrics(CollectorRegistry())

    metrics.refused(error_pb2.REASON_RATE_LIMITED)
    metrics.refused(error_pb2.REASON_ITEM_NOT_FOUND)

    value = metrics.registry.get_sample_value
    assert value("likeness_gateway_refused_total", {"reason": "RATE_LIMITED"}) == 1
    assert value("likeness_gateway_refused_total", {"reason": "ITEM_NOT_FOUND"}) is None


def test_what_has_not_happened_yet_is_shown_as_0() -> None:
    metrics = Metrics(CollectorRegistry())

    value = metrics.registry.get_sample_value
    assert value("likeness_gateway_ingest_items_total", {"outcome": "skipped"}) == 0
    assert value("likeness_gateway_cache_misses_total", {"cache": "picture"}) == 0
    assert value("likeness_gateway_fetches_total", {"outcome": "refused"}) == 0
