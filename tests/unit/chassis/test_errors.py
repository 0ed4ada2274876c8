"""Errors keep everything on their way through a status, and the code follows from the reason."""

import string
from base64 import b64encode
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from likeness.common.v1 import error_pb2
from likeness.common.v1.error_pb2 import Reason

from chassis.errors import LikenessError, Violation, from_status, in_request, invalid, to_item_error, to_status


@pytest.mark.parametrize("reason", [r for r in Reason.values() if r != error_pb2.REASON_UNSPECIFIED])
def test_an_error_of_every_reason_survives_the_way_through_a_status(reason: Reason.ValueType) -> None:
    error = LikenessError(reason, "what, expected, do", [Violation("items[3].vector", "bad")], 1.5)

    status = to_status(error)
    back = from_status(status)

    assert (back.reason, back.message, list(back.violations), back.retry_after_s) == (
        reason,
        "what, expected, do",
        [Violation("items[3].vector", "bad")],
        1.5,
    )
    assert status.code == error.code.value[0]


def test_every_reason_about_bad_input_is_invalid_argument_and_the_others_are_not() -> None:
    bad_input = [r for r in Reason.values() if 0 < r < 40]
    others = [r for r in Reason.values() if r >= 40]

    assert {LikenessError(r, "").code for r in bad_input} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert grpc.StatusCode.INVALID_ARGUMENT not in {LikenessError(r, "").code for r in others}


def test_error_info_carries_the_reason_without_its_prefix_and_the_domain() -> None:
    info = error_details_pb2.ErrorInfo()
    assert to_status(LikenessError(error_pb2.REASON_MODEL_MISMATCH, "x")).details[0].Unpack(info)

    assert (info.reason, info.domain) == ("MODEL_MISMATCH", "likeness")


def test_an_item_error_repeats_the_reason_beside_the_status() -> None:
    item = to_item_error(invalid("image", "is empty", error_pb2.REASON_IMAGE_DAMAGED))

    assert item.reason == error_pb2.REASON_IMAGE_DAMAGED
    assert item.status.message == "image: is empty"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, error_pb2.REASON_OVERLOADED),
        (grpc.StatusCode.DEADLINE_EXCEEDED, error_pb2.REASON_DEADLINE_EXCEEDED),
        (grpc.StatusCode.UNAVAILABLE, error_pb2.REASON_NOT_READY),
        (grpc.StatusCode.INVALID_ARGUMENT, error_pb2.REASON_FIELD_INVALID),
        (grpc.StatusCode.DATA_LOSS, error_pb2.REASON_INTERNAL),
    ],
)
def test_a_status_of_another_origin_becomes_the_nearest_reason(code: grpc.StatusCode, reason: Reason.ValueType) -> None:
    assert from_status(status_pb2.Status(code=code.value[0], message="m")).reason == reason


def test_an_error_is_renamed_for_a_request_whose_fields_have_other_names() -> None:
    error = in_request(invalid("queries[0].top_k", "is 2000"), lambda field: field.removeprefix("queries[0]."))

    assert error.message == "top_k: is 2000"
    assert list(error.violations) == [Violation("top_k", "is 2000")]


def test_a_reason_of_a_newer_release_is_passed_on_as_it_came() -> None:
    status = to_status(LikenessError(error_pb2.REASON_ITEM_NOT_FOUND, "queries[0].mood: is unknown", retry_after_s=2.0))
    info = error_details_pb2.ErrorInfo(reason="MOOD_NOT_FOUND", domain="likeness")
    status.details[0].Pack(info)

    error = in_request(from_status(status), lambda field: field)
    again = from_status(to_status(error))

    for each in (error, again):
        assert (each.code, each.reason_name, each.retry_after_s) == (grpc.StatusCode.NOT_FOUND, "MOOD_NOT_FOUND", 2.0)
    assert to_item_error(error).reason == error_pb2.REASON_UNSPECIFIED


@pytest.mark.parametrize("text", ["x", "é", "写", "\U0001f600", "\n", "%"])
def test_whatever_an_error_repeats_it_fits_into_the_trailers_of_a_call(text: str) -> None:
    violations = [Violation(f"items[{i}].{text * 2000}", text * 2000) for i in range(20)]
    status = to_status(LikenessError(error_pb2.REASON_FIELD_INVALID, text * 20_000, violations, 1.0, "t" * 32))
    as_it_is = "".join(sorted(set(string.printable) - set(string.whitespace) - {"%"})) + " "
    in_trailers = len(quote(status.message, safe=as_it_is)) + len(b64encode(status.SerializeToString()))

    assert in_trailers < 7_500
    assert from_status(status).violations[0].field.startswith("items[0].")
    assert status.message.startswith(text)
