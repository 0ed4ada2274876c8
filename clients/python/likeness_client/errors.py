"""The one exception that a call can end with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from likeness_client.items import Picture

# Reasons of the client's own, for what no server was asked. All others are those of likeness.common.v1.Reason.
GATEWAY_UNREACHABLE = "GATEWAY_UNREACHABLE"
INDEXER_UNREACHABLE = "INDEXER_UNREACHABLE"
FILE_UNREADABLE = "FILE_UNREADABLE"
FILE_INVALID = "FILE_INVALID"
RESUME_REFUSED = "RESUME_REFUSED"
IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"
FIELD_INVALID = "FIELD_INVALID"


@dataclass(frozen=True)
class Violation:
    """One bad field of a request.

    Attributes:
        field: where it is in the request message, such as ``terms[0].image``.
        description: what was wrong with it and what was expected.
    """

    field: str
    description: str


@dataclass(eq=False)
class LikenessError(Exception):
    """A call, or one item of it, that failed.

    Attributes:
        code: the canonical gRPC code, such as ``"NOT_FOUND"``.
        reason: why, as the contract names it, such as ``"COLLECTION_NOT_FOUND"``; ``"GATEWAY_UNREACHABLE"``,
            ``"INDEXER_UNREACHABLE"``, ``"FILE_UNREADABLE"`` and the like where no server could say. Empty if the server
            gave none.
        message: what was wrong, what was expected and what to do.
        violations: the bad fields, if the request was refused for them.
        retry_after_s: seconds after which trying again may help; None where the server did not say.
        trace_id: under which the servers' logs have what they did for the call; None where the server did not say, and
            for an item. Python shows it below the message of an exception that nobody catches.
    """

    code: str
    reason: str
    message: str
    violations: Sequence[Violation] = field(default=())
    retry_after_s: float | None = None
    trace_id: str | None = None

    def __post_init__(self) -> None:
        if self.trace_id is not None:
            self.add_note(f"trace id {self.trace_id}")

    def __str__(self) -> str:
        return f"{self.reason or self.code}: {self.message}"

    @property
    def passing(self) -> bool:
        """True for what may be over when tried again."""
        return self.code == "UNAVAILABLE" or self.retry_after_s is not None


@dataclass(eq=False)
class IndexInterruptedError(LikenessError):
    """An ingest stream that broke for good before every picture was answered.

    Attributes:
        unanswered: the pictures taken from the caller's iterable that have no result: stored or not, and harmless to
            send again. Pictures after these were not taken from it.
    """

    unanswered: Sequence["Picture"] = field(default=())
