"""How long a call may still take."""

import time
from typing import Protocol, Self

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError


class Timed(Protocol):
    """A call that may bring a deadline: gRPC's context, or another transport's."""

    def time_remaining(self) -> float | None:
        """Seconds to it; None: it has none."""


class Deadline:
    """A point in time by which an answer must be there."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    @classmethod
    def of(cls, context: Timed, default_s: float) -> Self:
        """The caller's deadline, or ``default_s`` from now if the call brought none."""
        left = context.time_remaining()
        return cls(default_s if left is None else left)

    def left(self) -> float:
        """Seconds left: the next hop's timeout.

        Raises:
            LikenessError: DEADLINE_EXCEEDED, if there are none.
        """
        left = self._at - time.monotonic()
        if left <= 0:
            raise LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, "the deadline passed before the work was done")
        return left
