"""Threads for what blocks on files: of their own, so that a storage that hangs holds up nothing else."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

_COUNT = 4


class Threads:
    """A few threads."""

    def __init__(self) -> None:
        """Starts none before it is needed."""
        self._pool = ThreadPoolExecutor(_COUNT, "archive")

    async def run(self, work: Callable[[], Result]) -> Result:
        """Does it in a thread; when cancelled, waits for its end first, so that whoever cleans up comes after it."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            if not future.cancelled():
                future.exception()  # nobody else asks for it
            raise

    def close(self) -> None:
        """Ends the threads, once what they are at is done."""
        self._pool.shutdown()
