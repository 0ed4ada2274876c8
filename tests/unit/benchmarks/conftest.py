"""Time that costs none."""

import asyncio
import selectors
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from benchmarks.embedder import loops


class _Unwaiting(selectors.DefaultSelector):
    """Looks whether anything is there, and waits for nothing: the clock goes on instead.

    Attributes:
        now: the clock, in seconds.
    """

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0 if timeout is not None else None)
        if not found and timeout:
            self.now += timeout
        return found


class MadeUpTime(asyncio.SelectorEventLoop):
    """An event loop whose sleeps take no time, and exactly as long as they say by its own clock."""

    def __init__(self) -> None:
        self._waiting = _Unwaiting()
        super().__init__(self._waiting)

    def time(self) -> float:
        """The clock, in seconds."""
        return self._waiting.now

    def works(self, seconds: float) -> None:
        """Computing for so long: nothing else goes on meanwhile."""
        self._waiting.now += seconds


@pytest.fixture
def made_up_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[MadeUpTime]:
    """Such a loop, by whose clock ``benchmarks.embedder.loops`` measures."""
    loop = MadeUpTime()
    monkeypatch.setattr(loops, "time", SimpleNamespace(perf_counter=loop.time, process_time=loop.time))
    yield loop
    loop.close()
