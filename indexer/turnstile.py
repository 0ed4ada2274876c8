"""What bounds reads that are not searches in memory, or are answered by Chroma."""

import asyncio

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError

_RETRY_AFTER_S = 1.0


class Turnstile:
    """Lets a bounded number of reads run, a bounded number wait, and refuses the rest."""

    def __init__(self, running: int, waiting: int, setting: str) -> None:
        """Nobody is inside.

        Args:
            running: most that run.
            waiting: most that wait.
            setting: what says how many may wait, for whoever is refused.
        """
        self._running = asyncio.Semaphore(running)
        self._room = waiting
        self._setting = setting
        self._waiting = 0

    async def __aenter__(self) -> None:
        if self._running.locked() and self._waiting >= self._room:
            message = f"{self._waiting} reads wait for their turn already, of {self._room} ({self._setting}); try again"
            raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=_RETRY_AFTER_S)
        self._waiting += 1
        try:
            await self._running.acquire()
        finally:
            self._waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._running.release()

    @property
    def in_line(self) -> asyncio.Semaphore:
        """The same for what waits for its turn however many wait: the next part of something long."""
        return self._running
