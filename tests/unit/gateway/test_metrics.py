"""The gateway's figures, as Prometheus reads them."""

import grpc
import pytest
from likeness.gateway.v1.gateway_pb2 import SearchTimings
from prometheus_client import CollectorRegistry

from chassis.call_log import Outcome
from gateway.metrics import STAGES, Metrics


@pytest.mark.parametrize("reason", ["KEY_MISSING", "KEY_INVALID", "SCOPE_MISSING", "RATE_LIMITED", "OVERLOADED"])
def test_a_call_that_was_turned_away_is_counted_by_its_reason(reason: str) -> None:
    metrics = Metrics(CollectorRegistry())
    value = metrics.registry.get_sample_value
    assert value("likeness_gateway_refused_total", {"reason": reason}) == 0

    method, code = "/likeness.gateway.v1.SearchService/Search", grpc.StatusCode.PERMISSION_DENIED
    metrics.calls.called(Outcome(method, "http", False, code, reason, 0.2, None))

    assert value("likeness_gateway_refused_total", {"reason": reason}) == 1
    labels = {"method": "Search", "transport": "http", "code": "PERMISSION_DENIED"}
    assert value("likeness_gateway_calls_total", labels) == 1


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
