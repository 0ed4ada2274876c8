"""Options of an ingest are checked before anything is taken."""

import math

import pytest
from likeness.common.v1.types_pb2 import METRIC_COSINE, METRIC_L2, Metric
from likeness.gateway.v1 import gateway_pb2

from chassis.errors import LikenessError
from gateway.ingest_options import Options, read_options


def options(metric: Metric.ValueType = METRIC_COSINE, *, thumbnails: bool = True, **fields: object) -> Options:
    message = gateway_pb2.IngestOptions(**fields)  # type: ignore[arg-type]
    return read_options(message, metric, "start.options", thumbnails=thumbnails)


def test_nothing_said_replaces_compares_nothing_and_makes_thumbnails() -> None:
    assert options() == Options()
    assert options(existing=gateway_pb2.EXISTING_POLICY_REPLACE) == Options()


def test_thumbnails_are_made_only_where_neither_gateway_nor_client_is_against_it() -> None:
    assert not options(no_thumbnails=True).thumbnails
    assert not options(thumbnails=False).thumbnails


@pytest.mark.parametrize("near", [math.nan, math.inf, -math.inf, 1.01, -1.01])
def test_a_threshold_that_is_no_cosine_is_refused(near: float) -> None:
    with pytest.raises(LikenessError) as caught:
        options(skip_near_duplicates=near)

    assert caught.value.violations[0].field == "start.options.skip_near_duplicates"


def test_a_threshold_of_another_metric_may_be_any_number_but_no_nan() -> None:
    assert options(METRIC_L2, skip_near_duplicates=-3.5).near == -3.5
    with pytest.raises(LikenessError):
        options(METRIC_L2, skip_near_duplicates=math.nan)


def test_an_unknown_policy_is_refused() -> None:
    message = gateway_pb2.IngestOptions.FromString(b"\x08\x63")
    with pytest.raises(LikenessError) as caught:
        read_options(message, METRIC_COSINE, "options", thumbnails=True)

    assert caught.value.violations[0].field == "options.existing"
