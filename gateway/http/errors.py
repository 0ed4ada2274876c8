"""Failures as HTTP tells them: Connect's code and status, the details as by gRPC, Retry-After."""

import json
import math
from base64 import b64encode
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import google.protobuf.any_pb2
from connectrpc.code import Code
from connectrpc.errors import ConnectError, ErrorDetail
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2
from protobuf.wkt import Any as WireAny
from protobuf.wkt import Struct
from starlette.responses import Response

from chassis.errors import LikenessError, to_status
from chassis.trace import TRACE_ID

# The types must have been imported for their messages to be printed.
_DETAILS = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)

_STATUSES = {
    Code.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    Code.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    Code.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    Code.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    Code.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    Code.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
}


class _Detail(ErrorDetail):
    """A detail that is shown as JSON beside its bytes, for clients that have no protobuf."""

    def __init__(self, detail: google.protobuf.any_pb2.Any) -> None:
        super().__init__(WireAny(type_url=detail.type_url, value=detail.value))
        self.shown = {name: value for name, value in MessageToDict(detail).items() if name != "@type"}

    def value(self, _type: Any = None) -> Any:
        """What Connect prints as ``debug``."""
        return Struct.from_json(json.dumps(self.shown))


class CallError(ConnectError):
    """A failure of ours as Connect's library sends it.

    Attributes:
        error: the failure.
        headers: those that say more about it.
    """

    def __init__(self, error: LikenessError) -> None:
        self.error = error
        status = to_status(error)
        super().__init__(Code[error.code.name], status.message, [_Detail(detail) for detail in status.details])
        self.headers = headers(error)


def headers(error: LikenessError) -> Mapping[str, str]:
    """Headers that say more about a failure."""
    told = {} if error.trace_id is None else {TRACE_ID: error.trace_id}
    if error.retry_after_s is not None:
        told["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    elif error.code.name == "UNAUTHENTICATED":
        told["www-authenticate"] = "Bearer"
    return told


def response(error: LikenessError) -> Response:
    """The failure as the answer of a path that is no rpc, in the form that Connect's unary errors have."""
    code = Code[error.code.name]
    return _response(_STATUSES.get(code, HTTPStatus.INTERNAL_SERVER_ERROR), code, error, headers(error))


def refusal(status: HTTPStatus, code: Code, message: str, **more: str) -> Response:
    """An answer by HTTP's own rules, such as 404 or 405, in the same form."""
    body = {"code": code.value, "message": message}
    return Response(json.dumps(body), status, more, "application/json")


def _response(status: HTTPStatus, code: Code, error: LikenessError, more: Mapping[str, str]) -> Response:
    told = CallError(error)
    details = [
        {"type": each.type_name, "value": b64encode(each.message_bytes).decode().rstrip("="), "debug": each.shown}
        for each in told.details
        if isinstance(each, _Detail)
    ]
    body = {"code": code.value, "message": told.message, "details": details}
    return Response(json.dumps(body, ensure_ascii=False), status, more, "application/json")
