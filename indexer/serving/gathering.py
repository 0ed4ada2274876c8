"""Calls that are there at the same moment, put together without a clock.

They do not reach their handlers at the same moment: gRPC's own thread hands each step of each call to the event loop,
which it can do only when the loop lets it, so a call takes the loop many turns from its connection to its handler. Who
works as soon as the first has arrived works for that one alone, and keeps the loop from the others.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# How many turns of the loop in which nothing arrives are waited for while fewer are there than came together the last
# time, and otherwise. A turn with nothing to do takes some 4 µs.
_PATIENT_TURNS = 64
_TURNS = 8
# After so many that came alone it is seen whether that is for want of patience.
_PROBE_AFTER = 8


class Gathering(Generic[T]):
    """Takes what arrives, and gives on what has arrived together. Used on one event loop."""

    def __init__(self, take: Callable[[list[T]], None], most: int) -> None:
        """Empty.

        Args:
            take: gets what is together, in the order in which it came; must not raise.
            most: how many of them at once.
        """
        self._take = take
        self._most = most
        self._here: list[T] = []
        self._expected = 1
        self._alone = 0
        self._quiet = 0  # turns since one arrived

    def __len__(self) -> int:
        return len(self._here)

    def add(self, one: T) -> None:
        """One more has arrived."""
        self._here.append(one)
        self._quiet = 0
        if len(self._here) == 1:
            self._look_again()

    def _look_again(self) -> None:
        asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._quiet += 1
        if len(self._here) < self._most and self._quiet < self._patience():
            self._look_again()
            return
        together, self._here = self._here[: self._most], self._here[self._most :]
        if self._here:
            self._look_again()
        self._learn(len(together))
        self._take(together)

    def _patience(self) -> int:
        if self._expected == 1:
            return 1
        return _PATIENT_TURNS if len(self._here) < self._expected else _TURNS

    def _learn(self, count: int) -> None:
        self._expected = count
        self._alone = self._alone + 1 if count == 1 else 0
        if self._alone == _PROBE_AFTER:
            self._expected, self._alone = 2, 0
