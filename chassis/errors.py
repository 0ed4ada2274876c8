"""Every failure that a caller can see, and the one place that turns it into a gRPC status and back.

A service raises ``LikenessError``; the interceptor sends it as ``google.rpc.Status`` with ``ErrorInfo``, ``BadRequest``
and ``RetryInfo``; the next service up reads it back with ``from_rpc_error``. The canonical code follows from the
reason.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from likeness.common.v1 import error_pb2
from likeness.common.v1.error_pb2 import Reason

log = structlog.get_logger()

DOMAIN = "likeness"

# The key in ``ErrorInfo.metadata`` under which a call's failure tells its trace.
_TRACE_ID = "traceId"

# All of a status travels in HTTP/2 trailers, of which clients take 8 KiB: its message as text, in which a byte that is
# not printable ASCII, or "%", takes three, and all of it, the message too, in base64. So many bytes each, and of all
# violations.
_MAX_MESSAGE, _MAX_DESCRIPTION, _MAX_DESCRIPTIONS, _MAX_VIOLATIONS = 1500, 500, 2400, 8

_CODES: dict[Reason.ValueType, grpc.StatusCode] = {
    error_pb2.REASON_COLLECTION_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    error_pb2.REASON_ITEM_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    error_pb2.REASON_COLLECTION_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    error_pb2.REASON_MODEL_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    error_pb2.REASON_SCHEMA_UNSUPPORTED: grpc.StatusCode.FAILED_PRECONDITION,
    error_pb2.REASON_ALIAS_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    error_pb2.REASON_ALIAS_MOVED: grpc.StatusCode.FAILED_PRECONDITION,
    error_pb2.REASON_COLLECTION_ALIASED: grpc.StatusCode.FAILED_PRECONDITION,
    error_pb2.REASON_SNAPSHOT_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    error_pb2.REASON_SNAPSHOT_DAMAGED: grpc.StatusCode.FAILED_PRECONDITION,
    error_pb2.REASON_COLLECTION_BUSY: grpc.StatusCode.FAILED_PRECONDITION,
    error_pb2.REASON_READ_ONLY: grpc.StatusCode.FAILED_PRECONDITION,
    error_pb2.REASON_RESUME_TOKEN_STALE: grpc.StatusCode.FAILED_PRECONDITION,
    error_pb2.REASON_ORIGINAL_MISSING: grpc.StatusCode.FAILED_PRECONDITION,
    error_pb2.REASON_ORIGINAL_CHANGED: grpc.StatusCode.FAILED_PRECONDITION,
    error_pb2.REASON_KEY_MISSING: grpc.StatusCode.UNAUTHENTICATED,
    error_pb2.REASON_KEY_INVALID: grpc.StatusCode.UNAUTHENTICATED,
    error_pb2.REASON_SCOPE_MISSING: grpc.StatusCode.PERMISSION_DENIED,
    error_pb2.REASON_RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    error_pb2.REASON_DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    error_pb2.REASON_OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    error_pb2.REASON_STORE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    error_pb2.REASON_MEMORY_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    error_pb2.REASON_NOT_READY: grpc.StatusCode.UNAVAILABLE,
    error_pb2.REASON_SHUTTING_DOWN: grpc.StatusCode.UNAVAILABLE,
    error_pb2.REASON_EMBEDDER_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    error_pb2.REASON_INDEXER_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    error_pb2.REASON_STORE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    error_pb2.REASON_MEDIA_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    error_pb2.REASON_FETCH_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    error_pb2.REASON_INTERNAL: grpc.StatusCode.INTERNAL,
}
_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True)
class Violation:
    """One bad field of a request.

    Attributes:
        field: where it is in the request message, such as ``items[3].vector``.
        description: what was wrong with it and what was expected.
    """

    field: str
    description: str


@dataclass(eq=False)  # compared by identity, so that it can be hashed like any exception
class LikenessError(Exception):
    """A failure with a reason that the contract names.

    Attributes:
        reason: a value of ``likeness.common.v1.Reason``; decides the canonical code.
        message: what was wrong, what was expected and what to do, for the caller to read.
        violations: the bad fields, for an INVALID_ARGUMENT.
        retry_after_s: seconds after which trying again may help; None where it will not.
        trace_id: of the call that failed with it, once it has; see ``chassis.trace``.
        newer: code and name of a reason that only the service behind knows, which is of a newer release; ``reason`` is
            then the nearest one that is known.
    """

    reason: Reason.ValueType
    message: str
    violations: Sequence[Violation] = field(default=())
    retry_after_s: float | None = None
    trace_id: str | None = None
    newer: tuple[grpc.StatusCode, str] | None = None

    def __str__(self) -> str:
        return f"{self.reason_name}: {self.message}"

    @property
    def code(self) -> grpc.StatusCode:
        """The canonical code: what the reason says, and INVALID_ARGUMENT for every reason about bad input."""
        if self.newer is not None:
            return self.newer[0]
        return _CODES.get(self.reason, grpc.StatusCode.INVALID_ARGUMENT)

    @property
    def reason_name(self) -> str:
        """The reason as ``ErrorInfo`` carries it: without the enum's prefix."""
        return Reason.Name(self.reason).removeprefix("REASON_") if self.newer is None else self.newer[1]


def invalid(where: str, description: str, reason: Reason.ValueType = error_pb2.REASON_FIELD_INVALID) -> LikenessError:
    """A bad request whose one bad field is ``where``."""
    return LikenessError(reason, f"{where}: {description}", [Violation(where, description)])


def incident(event: str, error: BaseException) -> LikenessError:
    """Logs a fault of ours in full and returns what its caller may see of it: the id of the log line.

    The id is of this one fault; the trace id in the line is of the call, which may have met with several.
    """
    number = uuid.uuid4().hex
    log.error(event, incident=number, exc_info=error)
    message = f"an unexpected error; the service's log has its cause under incident {number}"
    return LikenessError(error_pb2.REASON_INTERNAL, message)


def to_status(error: LikenessError) -> status_pb2.Status:
    """The error as ``google.rpc.Status``, details included."""
    told = {} if error.trace_id is None else {_TRACE_ID: error.trace_id}
    details = [_pack(error_details_pb2.ErrorInfo(reason=error.reason_name, domain=DOMAIN, metadata=told))]
    if error.violations:
        details.append(_pack(_bad_request(error.violations)))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(_pack(retry))
    return status_pb2.Status(code=error.code.value[0], message=_cut(error.message, _MAX_MESSAGE, 3), details=details)


def to_item_error(error: LikenessError) -> error_pb2.ItemError:
    """The error of one item of a call."""
    reason = error.reason if error.newer is None else error_pb2.REASON_UNSPECIFIED
    return error_pb2.ItemError(status=to_status(error), reason=reason)


def from_status(status: status_pb2.Status) -> LikenessError:
    """Reads back what ``to_status`` wrote. A status of another origin becomes the reason nearest to its code."""
    info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), None
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(request.DESCRIPTOR):
            detail.Unpack(request)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            message = error_details_pb2.RetryInfo()
            detail.Unpack(message)
            retry = message.retry_delay.ToMilliseconds() / 1000
    name, newer = f"REASON_{info.reason}", None
    if info.domain == DOMAIN and name in Reason.DESCRIPTOR.values_by_name:
        reason = Reason.Value(name)
    else:
        reason = _nearest_reason(status.code)
        if info.domain == DOMAIN and info.reason:
            newer = _GRPC_CODES.get(status.code, grpc.StatusCode.UNKNOWN), info.reason
    violations = [Violation(v.field, v.description) for v in request.field_violations]
    return LikenessError(reason, status.message, violations, retry, newer=newer)


def from_rpc_error(error: grpc.RpcError, unavailable: Reason.ValueType, what: str) -> LikenessError:
    """What a call to another service ended with.

    Args:
        error: as grpc raised it (a ``grpc.Call`` too).
        unavailable: the reason that stands for "that service cannot be reached".
        what: the service in words, with its address.
    """
    assert isinstance(error, grpc.aio.AioRpcError)
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
    except ValueError:  # details that contradict the code: trust the code
        status = None
    if status is not None:
        return from_status(status)
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return LikenessError(unavailable, f"{what} cannot be reached ({error.details()}); try again", retry_after_s=1.0)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, f"{what} did not answer before the deadline")
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # gRPC's own, for a message over the limit
        message = f"{what}: {error.details()}; send or ask for less, or raise LIKENESS_MAX_MESSAGE_MB"
        return LikenessError(error_pb2.REASON_BATCH_TOO_LARGE, message)
    reason = _nearest_reason(error.code().value[0])
    if reason == error_pb2.REASON_INTERNAL:
        return incident(f"{what} answered {error.code().name}", error)
    return LikenessError(reason, f"{what} answered {error.details()}")


def in_request(error: LikenessError, rename: Callable[[str], str]) -> LikenessError:
    """The same error for a request whose fields have other names."""
    violations = [Violation(rename(v.field), v.description) for v in error.violations]
    message = error.message
    if error.violations and message == f"{error.violations[0].field}: {error.violations[0].description}":
        message = f"{violations[0].field}: {violations[0].description}"
    return replace(error, message=message, violations=violations, trace_id=None)


def _bad_request(violations: Sequence[Violation]) -> error_details_pb2.BadRequest:
    """The first of them that there is room for, one at least."""
    request, room = error_details_pb2.BadRequest(), _MAX_DESCRIPTIONS
    for violation in violations[:_MAX_VIOLATIONS]:
        field, description = (_cut(text, _MAX_DESCRIPTION) for text in (violation.field, violation.description))
        room -= len(field.encode()) + len(description.encode())
        if room < 0 and request.field_violations:
            break
        request.field_violations.add(field=field, description=description)
    return request


def _cut(text: str, most: int, odd: int = 1) -> str:
    """A text's beginning, of at most so many bytes in UTF-8; one that HTTP/2 carries as three counts as ``odd``."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text[:most]
    for i, character in enumerate(text):
        plain = " " <= character <= "~" and character != "%"
        most -= 1 if plain else odd * len(character.encode(errors="replace"))
        if most < 0:
            return text[:i]
    return text


def _nearest_reason(code: int) -> Reason.ValueType:
    match _GRPC_CODES.get(code):
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            return error_pb2.REASON_FIELD_INVALID
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return error_pb2.REASON_OVERLOADED
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return error_pb2.REASON_DEADLINE_EXCEEDED
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return error_pb2.REASON_NOT_READY
        case _:
            return error_pb2.REASON_INTERNAL


def _pack(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
