"""A gate before Chroma: shut while Chroma is away on purpose, so that what is asked of it waits and does not fail."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


class Gate:
    """Open at first. Used from one event loop."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._inside: set[asyncio.Task[Any] | None] = set()
        self._left = asyncio.Event()
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """One piece of work behind the gate; waits as long as it is shut. What the same task does within it passes."""
        task = asyncio.current_task()
        if task in self._inside:
            yield
            return
        while not self._open.is_set():
            await self._open.wait()
        self._inside.add(task)
        try:
            yield
        finally:
            self._inside.discard(task)
            self._left.set()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """Lets nobody in during the block, which begins when all that were inside have left."""
        async with self._turn:
            self._open.clear()
            try:
                while self._inside:
                    self._left.clear()
                    await self._left.wait()
                yield
            finally:
                self._open.set()
