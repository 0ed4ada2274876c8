"""A clock that goes on when the test says so."""

import asyncio
import heapq
import itertools

_ENOUGH_TURNS = 50


class PassingTime:
    """One process's clock, and whoever sleeps by it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._numbers), woken))
        await woken

    async def passes(self, seconds: float) -> None:
        """The clock goes on; who wakes on the way does what it does."""
        until = self.now + seconds
        await settled()
        while self._sleepers and self._sleepers[0][0] <= until:
            self.now, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)
            await settled()
        self.now = until

    def stands_still_for(self, seconds: float) -> None:
        """The process is stopped for so long: nobody wakes, and then it is later."""
        self.now += seconds


async def settled() -> None:
    """Everybody who can go on has done so."""
    for _ in range(_ENOUGH_TURNS):
        await asyncio.sleep(0)
