"""One call on its way through the threads: whether its caller still waits, and where its time goes."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from embedder.inputs import Timings


class CallerGoneError(Exception):
    """Raised in a thread in place of work whose caller no longer waits."""


class Call:
    """Shared by the event loop and by the threads that work for one call."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._working = 0
        self._idle_since = time.perf_counter()
        self._waited = 0.0
        self._spent = {"decode": 0.0, "inference": 0.0}
        self._batch_size = 0

    def cancel(self) -> None:
        """Says that nobody waits for the result any more: work that has not begun is not begun."""
        self._cancelled.set()

    def check(self) -> None:
        """Raises CallerGoneError if nobody waits any more. Threads call it before every piece of work."""
        if self._cancelled.is_set():
            raise CallerGoneError

    @contextmanager
    def working(self, stage: Literal["decode", "inference"], batch_size: int = 0) -> Iterator[None]:
        """Counts the time inside as the stage's, and the time in which nobody is inside as waiting.

        Args:
            stage: whose time it is.
            batch_size: inputs in the forward pass.
        """
        begun = time.perf_counter()
        with self._lock:
            if self._working == 0:
                self._waited += begun - self._idle_since
            self._working += 1
        try:
            yield
        finally:
            ended = time.perf_counter()
            with self._lock:
                self._working -= 1
                if self._working == 0:
                    self._idle_since = ended
                self._spent[stage] += ended - begun
                self._batch_size = max(self._batch_size, batch_size)

    def timings(self) -> Timings:
        """Where the time went, once the call's work is done."""
        with self._lock:
            return Timings(self._waited, self._spent["decode"], self._spent["inference"], self._batch_size)
