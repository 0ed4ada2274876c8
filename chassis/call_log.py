"""The one line of each call in the log."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import grpc
import structlog

from chassis.audit import Touched
from chassis.trace import Trace

log = structlog.get_logger()

# Refusals that come by the hundred a second, when there is no time to write of each, or that strangers may make as many
# of as they like: of each kind, for each key, one a second is logged, with how many were left out before it.
_CROWDED = frozenset({"OVERLOADED", "RATE_LIMITED", "KEY_MISSING", "KEY_INVALID", "SCOPE_MISSING"})
_CROWDED_S = 1.0

Transport = Literal["grpc", "http"]


@dataclass(frozen=True)
class Outcome:
    """How a call went.

    Attributes:
        method: ``/package.Service/Method``.
        transport: what brought it.
        admitted: False: it was turned away before anything was done for it.
        code: what it ended with.
        reason: of a failure.
        seconds: from its admission to its end.
        key: the name of its key, if it had one.
        trace: what it belongs to.
        touched: what it was to change, if it is one of those that are logged for that; see ``chassis.audit``.
        peer: of such a call, the address that it came from.
    """

    method: str
    transport: Transport
    admitted: bool
    code: grpc.StatusCode
    reason: str | None
    seconds: float
    key: str | None
    trace: Trace | None = None
    touched: Touched | None = None
    peer: str | None = None


@dataclass
class _Crowd:
    """Refusals of one kind: when the last one was logged, and how many were not since."""

    logged: float = float("-inf")
    unlogged: int = 0


class CallLog:
    """Writes the lines: at INFO if the call failed, or is one that is recorded; of refusals in crowds some alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is written yet.

        Args:
            clock: in seconds.
        """
        self._clock = clock
        self._crowds: dict[tuple[str, str | None], _Crowd] = {}

    def write(self, outcome: Outcome) -> None:
        """A call has ended, or was refused."""
        unlogged, level = self._unlogged(outcome), logging.INFO
        if unlogged is None or (outcome.code is grpc.StatusCode.OK and outcome.touched is None):
            level = logging.DEBUG
        if log.is_enabled_for(level):  # else nothing is put together: so it is for most calls
            log.log(level, "call", **_line(outcome), **({"unlogged": unlogged} if unlogged else {}))

    def _unlogged(self, outcome: Outcome) -> int | None:
        """How many like it were left out of the log since the last line; None: so is this one."""
        if outcome.reason not in _CROWDED or outcome.touched is not None:
            return 0
        crowd = self._crowds.setdefault((outcome.reason, outcome.key), _Crowd())
        now = self._clock()
        if now < crowd.logged + _CROWDED_S:
            crowd.unlogged += 1
            return None
        unlogged, crowd.logged, crowd.unlogged = crowd.unlogged, now, 0
        return unlogged


def _line(outcome: Outcome) -> dict[str, object]:
    line: dict[str, object] = {
        "method": outcome.method,
        "transport": outcome.transport,
        "code": outcome.code.name,
        "reason": outcome.reason,
        "ms": round(outcome.seconds * 1000, 1),
    }
    if outcome.key is not None:
        line["key"] = outcome.key
    if outcome.touched is not None:
        line["touched"] = outcome.touched
    if outcome.peer is not None:
        line["peer"] = outcome.peer
    if outcome.trace is not None:
        line |= {"trace_id": outcome.trace.id, "span_id": outcome.trace.span_id}
        if outcome.trace.parent_id is not None:
            line["parent_id"] = outcome.trace.parent_id
    return line
