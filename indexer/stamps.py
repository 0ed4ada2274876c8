"""Stamps: when an item was written last, as a number that only grows. What Chroma holds beyond a stamp is newer.

A stamp is a time in microseconds, so that stamps go on growing over restarts without being looked up; where the clock
was set back, they go on from the greatest there is.
"""

import time


class Stamps:
    """The stamps of one collection."""

    def __init__(self, newest: int | None) -> None:
        """``newest``: the greatest that was given before; None: none is greater than the time now."""
        self._last = max(newest or 0, now() - 1)

    @property
    def last(self) -> int:
        """No stamp in use is greater."""
        return self._last

    def next(self) -> int:
        """A stamp greater than all before."""
        self._last = max(self._last + 1, now())
        return self._last


def now() -> int:
    """The time as a stamp: microseconds since 1970. Below 2^53, up to which Chroma compares exactly, until 2255."""
    return time.time_ns() // 1000
