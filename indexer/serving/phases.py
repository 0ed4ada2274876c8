"""A lock that many readers share and one writer has alone, in turn.

Phase-fair, after Brandenburg and Anderson, "Spin-based reader-writer synchronization for multiprocessor real-time
systems" (2010): once a writer waits, new readers wait too, so it gets in as soon as those inside have left; and when it
leaves, every reader that waits goes in before the next writer does. So nobody waits for more than one turn of the
others, however busy they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock, local


class PhaseFairLock:
    """Held by any number of readers, or by one writer. Not re-entrant, but for readers within ``reading_now``."""

    def __init__(self) -> None:
        self._writers = Lock()  # one writer at a time asks for its turn
        self._changed = Condition(Lock())
        self._readers = 0
        self._waiting_readers = 0
        self._turn_taken = False  # by a writer that waits or writes
        self._turns = 0  # that writers have had
        self._inside = local()  # whether this thread is, by ``reading_now``

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Shares it with other readers."""
        if getattr(self._inside, "now", False):  # to ask again would be to wait for a writer that waits for us
            yield
            return
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def reading_now(self) -> Iterator[bool]:
        """Shares it for all that this thread reads within the block, if no writer has its turn or waits for it.

        Yields:
            False: one does, and the block runs without the lock.
        """
        if getattr(self._inside, "now", False):
            yield True
            return
        if not self._enter_now():
            yield False
            return
        self._inside.now = True
        try:
            yield True
        finally:
            self._inside.now = False
            self._leave()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Has it alone."""
        with self._writers:
            self._begin()
            try:
                yield
            finally:
                self._end()

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """Keeps writers out, for however long, and no reader waits for it."""
        with self._writers:
            yield

    def _enter(self) -> None:
        with self._changed:
            if not self._turn_taken:
                self._readers += 1
                return
            self._waiting_readers += 1
            turn = self._turns
            while turn == self._turns:  # the writer that ends its turn counts this reader in
                self._changed.wait()

    def _enter_now(self) -> bool:
        with self._changed:
            if self._turn_taken:
                return False
            self._readers += 1
            return True

    def _leave(self) -> None:
        with self._changed:
            self._readers -= 1
            if not self._readers and self._turn_taken:
                self._changed.notify_all()

    def _begin(self) -> None:
        with self._changed:
            self._turn_taken = True
            while self._readers:
                self._changed.wait()

    def _end(self) -> None:
        with self._changed:
            self._turn_taken = False
            self._turns += 1
            self._readers, self._waiting_readers = self._waiting_readers, 0
            self._changed.notify_all()
