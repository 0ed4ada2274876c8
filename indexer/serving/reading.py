"""Threads for reads of collections in memory that are no searches."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from indexer.turnstile import Turnstile

Answer = TypeVar("Answer")


class ReadThreads:
    """Has what is brief done beside searches, and what can take long in threads of its own, so much of it at once."""

    def __init__(self, brief: Executor, long: Executor, turnstile: Turnstile) -> None:
        """All collections may share one.

        Args:
            brief: for a millisecond's work at most: the threads that search.
            long: for lists, counts, facets and exports, behind which no search may wait.
            turnstile: bounds what is under way there.
        """
        self._brief = brief
        self._long = long
        self._turnstile = turnstile

    async def briefly(self, work: Callable[[], Answer]) -> Answer:
        """Does what takes a millisecond at most."""
        return await asyncio.get_running_loop().run_in_executor(self._brief, work)

    async def at_length(self, work: Callable[[], Answer]) -> Answer:
        """Does what can take long.

        Raises:
            LikenessError: OVERLOADED: too much waits for its turn.
        """
        async with self._turnstile:
            return await asyncio.get_running_loop().run_in_executor(self._long, work)

    async def in_line(self, work: Callable[[], Answer]) -> Answer:
        """Does a part of something longer: it waits for its turn, however much waits."""
        async with self._turnstile.in_line:
            return await asyncio.get_running_loop().run_in_executor(self._long, work)
