"""What is there at the same moment, put together without a clock that anybody waits for.

Calls that are there at the same moment do not reach their handlers at the same moment: gRPC's own thread hands each
step of each call to the event loop, which it can do only when the loop lets it, so a call takes the loop many turns
from its connection to its handler. Who works as soon as the first has arrived works for that one alone, and keeps the
loop from the others.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# How many turns of the loop in which nothing arrives are waited for while fewer are there than went together the last
# time, and otherwise. A turn with nothing to do takes some 4 µs.
_PATIENT_TURNS = 64
_TURNS = 8
# Nor is anything waited for longer than this since the last has arrived, and since the first, however busy the loop is.
_QUIET_S = 0.0005
_LONGEST_S = 0.004
# After so many that came alone it is seen whether that is for want of patience.
_PROBE_AFTER = 8


class Gathering(Generic[T]):
    """Takes what arrives, and gives on what has arrived together. Used on one event loop."""

    def __init__(self, take: Callable[[list[T]], int], most: int) -> None:
        """Empty.

        Args:
            take: gets what is together, in the order in which it came; returns how many of them went together in the
                end, at most. Must not raise.
            most: how many it gets at once.
        """
        self._take = take
        self._most = most
        self._here: list[T] = []
        self._expected = 1
        self._alone = 0
        self._behind = False  # whether what is here was there when as many as may be were given on
        self._quiet = 0  # turns since one arrived
        self._first = self._last = 0.0  # when they did

    def add(self, one: T) -> None:
        """One more has arrived."""
        self._quiet, self._last = 0, time.monotonic()
        if not self._here:
            self._first = self._last
            self._look_again()
        self._here.append(one)

    def _look_again(self) -> None:
        asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._quiet += 1
        if self._has_patience():
            self._look_again()
            return
        together, self._here = self._here[: self._most], self._here[self._most :]
        was_behind, self._behind = self._behind, bool(self._here)
        if self._behind:
            self._look_again()
        went = self._take(together)
        if not was_behind:  # how many a crowd leaves over tells nothing
            self._learn(went)

    def _has_patience(self) -> bool:
        if self._behind or len(self._here) >= self._most or self._expected == 1:
            return False
        if self._quiet >= (_PATIENT_TURNS if len(self._here) < self._expected else _TURNS):
            return False
        now = time.monotonic()
        return now < self._last + _QUIET_S and now < self._first + _LONGEST_S

    def _learn(self, together: int) -> None:
        self._expected = together
        self._alone = self._alone + 1 if together == 1 else 0
        if self._alone == _PROBE_AFTER:
            self._expected, self._alone = 2, 0
