"""What signals say of the end: the first SIGTERM or SIGINT to stop, a second one not to wait before that.

A process that has others beside it on its port (LIKENESS_WORKERS) is told to hurry by its parent alone, by a signal of
its own: Ctrl-C, and whoever ends a whole group of processes, reaches parent and children at once, and would seem to
have asked twice.
"""

import asyncio
import signal

# From a parent of several processes to each of them.
HURRY = signal.SIGUSR1


class Stopping:
    """Follows the signals of this process, in its event loop.

    Attributes:
        asked: set when it is to stop.
        hurried: set when it is to do so without a delay.
    """

    def __init__(self, *, has_parent: bool) -> None:
        """Begins to follow them.

        Args:
            has_parent: a parent says when to hurry.
        """
        self.asked, self.hurried = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        if has_parent:
            loop.add_signal_handler(HURRY, self.hurried.set)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.asked.set if has_parent else self._told)

    def _told(self) -> None:
        (self.hurried if self.asked.is_set() else self.asked).set()

    async def delay(self, seconds: float, unless: "asyncio.Task[None]") -> None:
        """Returns after so many seconds, or when it is told to hurry or ``unless`` is done."""
        hurried = asyncio.create_task(self.hurried.wait())
        await asyncio.wait({hurried, unless}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
