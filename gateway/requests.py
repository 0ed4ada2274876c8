"""What the gateway's requests have in common: a collection, an expected model, what is left of their time."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from google.protobuf.duration_pb2 import Duration
from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import ModelFingerprint

from chassis import names
from chassis.deadline import Deadline
from chassis.errors import LikenessError, in_request, invalid

DEFAULT_COLLECTION = "images"

_FIELD = re.compile(r"[a-z0-9_]+(\[\d+\])?(\.[a-z0-9_]+(\[\d+\])?)*")


class ExpectsModel(Protocol):
    """A request that may name the model that its caller expects."""

    @property
    def expected_fingerprint(self) -> ModelFingerprint:
        """The model."""

    def HasField(self, field_name: Any, /) -> bool:  # noqa: N802  (protobuf's)
        """Whether the field is set."""


def collection_name(name: str, field: str = "collection") -> str:
    """The collection that a request names in this field; the default one if it names none."""
    return names.check_collection(name, field) if name else DEFAULT_COLLECTION


def expected_fingerprint(request: ExpectsModel, field: str = "expected_fingerprint") -> ModelFingerprint | None:
    """The model that a caller expects; None: any."""
    if not request.HasField("expected_fingerprint"):
        return None
    if not request.expected_fingerprint.digest:
        raise invalid(f"{field}.digest", "is empty; expected the digest that GetStatus tells, or no fingerprint at all")
    return request.expected_fingerprint


def mismatch(embedder: ModelFingerprint, other: ModelFingerprint, whose: str) -> LikenessError:
    """The error for vectors of two models that would be mixed."""
    return LikenessError(
        error_pb2.REASON_MODEL_MISMATCH,
        f"the embedder runs {embedder.model[:100]} ({embedder.digest[:12]}…), but {whose} is {other.model[:100]} "
        f"({other.digest[:12]}…); vectors of two models cannot be compared: use the same model, or another collection",
    )


def of_collection(name: str) -> str:
    """Whose model it is, for ``mismatch``."""
    return f"the model of collection {name!r}"


def renamed(error: LikenessError, rename: Callable[[str], str]) -> LikenessError:
    """The same error for a request whose fields have other names.

    An error of no violations, such as FETCH_UNAVAILABLE, may begin with a field's name too.
    """
    field, colon, what = error.message.partition(": ")
    if error.violations or not colon or not _FIELD.fullmatch(field):
        return in_request(error, rename)
    return replace(error, message=f"{rename(field)}: {what}", trace_id=None)


@contextmanager
def at_token(token: str, given: str, rpc: str) -> Iterator[None]:
    """Around a ListItems call of another rpc, at a page token.

    One that is refused is the caller's fault if it came with the request. If not, the page before gave it, and the
    collection is another by now.

    Args:
        token: of the page.
        given: the token in the request; empty if there is none.
        rpc: what is under way.

    Raises:
        LikenessError: FIELD_INVALID; COLLECTION_NOT_FOUND.
    """
    try:
        yield
    except LikenessError as error:
        if all(violation.field != "page_token" for violation in error.violations):
            raise
        if token != given:
            message = f"the collection was deleted and made anew during this {rpc}; begin again for the new one"
            raise LikenessError(error_pb2.REASON_COLLECTION_NOT_FOUND, message) from error
        description = f"{token[:100]!r} is none that {rpc} gave for this request; begin without one"
        raise invalid("page_token", description, error.reason) from error


def shutting_down(what_now: str) -> LikenessError:
    """The error for a stream that ends early because the gateway stops; ``what_now`` says what its client does."""
    message = f"the gateway is stopping; {what_now}"
    return LikenessError(error_pb2.REASON_SHUTTING_DOWN, message, retry_after_s=1.0)


def patience(deadline: Deadline, longest_s: float) -> float:
    """Seconds for one of many calls of a stream, which itself may have no deadline.

    Raises:
        LikenessError: DEADLINE_EXCEEDED.
    """
    return min(deadline.left(), longest_s)


def duration(seconds: float) -> Duration:
    """Seconds as a message."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
