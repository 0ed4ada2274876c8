"""Waits, for as long as is allowed, while a service has too much to do, and tells those who bring the work."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from gateway.metrics import BackoffCause

R = TypeVar("R")

# Told by the service; without its word, this, doubled from one refusal to the next.
_FIRST_S, _LONGEST_S = 0.2, 5.0
# A stop wakes whoever waits. What has been read is still seen through, with waits no longer than this.
_STOPPING_S = 0.5


def growing_s(refused: int) -> float:
    """How long to wait, in seconds, before a call that was refused once more than ``refused`` times is made again."""
    return min(_FIRST_S * 2.0 ** min(refused, 10), _LONGEST_S)


class Backoff:
    """Holds one stream's work back. All of its calls share it: one refusal keeps the others from trying."""

    def __init__(self, longest_s: float, stopping: asyncio.Event, tell: Callable[[float, BackoffCause], None]) -> None:
        """Holds nothing back yet.

        Args:
            longest_s: how long a call may be refused before its refusal is passed on.
            stopping: set when the gateway stops.
            tell: called with the seconds that nothing should be sent for, and whose doing it is.
        """
        self._longest_s = longest_s
        self._stopping = stopping
        self._tell = tell
        self._until = 0.0
        self._calm = asyncio.Event()
        self._calm.set()

    async def call(self, cause: BackoffCause, attempt: Callable[[], Awaitable[R]]) -> R:
        """Makes a call, and again while it is refused with OVERLOADED.

        Raises:
            LikenessError: what the call failed with; OVERLOADED only after ``longest_s`` of it.
        """
        until, refused = time.monotonic() + self._longest_s, 0
        while True:
            await self.clear()
            try:
                result = await attempt()
            except LikenessError as error:
                left = until - time.monotonic()
                if error.reason != error_pb2.REASON_OVERLOADED or left <= 0:
                    raise
                own = growing_s(refused)
                self._calm.clear()
                self.pause(min(error.retry_after_s or own, left), cause)
                refused += 1
            else:
                self._calm.set()
                return result

    def pause(self, seconds: float, cause: BackoffCause) -> None:
        """From now on nothing is done for so long."""
        until = time.monotonic() + seconds
        if until <= self._until:
            return
        # Of calls that are refused together the first tells, unless another has to wait a good deal longer.
        if time.monotonic() >= self._until or until - self._until > seconds / 2:
            self._tell(seconds, cause)
        self._until = until

    async def clear(self) -> None:
        """Returns when nothing is held back any more."""
        while (left := self._until - time.monotonic()) > 0:
            if self._stopping.is_set():
                await asyncio.sleep(min(left, _STOPPING_S))
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._stopping.wait()

    async def calm(self) -> None:
        """Returns when nothing is held back, and what was refused last has been taken: so much for new work."""
        while not self._calm.is_set() or self._until > time.monotonic():
            await self._calm.wait()
            await self.clear()
