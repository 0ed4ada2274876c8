"""Reads failures back from what gRPC brings: the status, its details, or a connection that never was."""

from typing import TypeVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from likeness.common.v1 import error_pb2

from likeness_client.errors import GATEWAY_UNREACHABLE, INDEXER_UNREACHABLE, LikenessError, Violation

_M = TypeVar("_M", bound=Message)
_DOMAIN = "likeness"
_UNREACHABLE = {"gateway": GATEWAY_UNREACHABLE, "indexer": INDEXER_UNREACHABLE}
_CODES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def from_status(status: status_pb2.Status) -> LikenessError:
    """The error that a ``google.rpc.Status`` tells of."""
    reason, violations, retry_after_s, trace_id = "", [], None, None
    for detail in status.details:
        if (info := _unpack(detail, error_details_pb2.ErrorInfo())) and info.domain == _DOMAIN:
            reason, trace_id = info.reason, info.metadata.get("traceId")
        elif request := _unpack(detail, error_details_pb2.BadRequest()):
            violations = [Violation(v.field, v.description) for v in request.field_violations]
        elif retry := _unpack(detail, error_details_pb2.RetryInfo()):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    code = _CODES.get(status.code, "UNKNOWN")
    return LikenessError(code, reason, status.message, violations, retry_after_s, trace_id)


def from_item_error(error: error_pb2.ItemError) -> LikenessError:
    """The error of one item of a call."""
    read = from_status(error.status)
    if not read.reason and error.reason:
        known = error.reason in error_pb2.Reason.values()
        read.reason = error_pb2.Reason.Name(error.reason).removeprefix("REASON_") if known else str(error.reason)
    return read


def from_rpc_error(
    error: grpc.RpcError, address: str, timeout: float | None, service: str = "gateway"
) -> LikenessError:
    """What a call ended with.

    Args:
        error: as grpc raised it; it is a ``grpc.Call`` too.
        address: where the service was looked for.
        timeout: the call's deadline in seconds, if it had one.
        service: what was looked for, ``"gateway"`` or ``"indexer"``.
    """
    assert isinstance(error, grpc.Call)
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # details that contradict the code: trust the code
        status = None
    if status is not None:
        return from_status(status)
    code, details = error.code(), error.details() or "no details"
    if code is grpc.StatusCode.UNAVAILABLE:
        # gRPC tells of every attempt in turn; the last words are the cause: "Connection refused", "Socket closed".
        cause = details.rsplit(": ", 1)[-1]
        return LikenessError(code.name, _UNREACHABLE[service], f"no {service} answers at {address} ({cause})")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = f"the {service} at {address} did not answer within {timeout:g} s" if timeout else details
        return LikenessError(code.name, "DEADLINE_EXCEEDED", message)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        message = f"the server at {address} does not know this call: is it a Likeness {service} of this release?"
        return LikenessError(code.name, "", message)
    return LikenessError(code.name, "", f"{address} answered: {details}")


def _unpack(detail: any_pb2.Any, message: _M) -> _M | None:
    return message if detail.Unpack(message) else None
