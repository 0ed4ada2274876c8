"""No more calls are sent to a service that refuses some than it takes."""

import asyncio
from collections.abc import Awaitable

import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, invalid
from gateway.throttle import Throttle


class Service:
    """Takes so many calls at once, until it is told to answer them, and refuses the others.

    Attributes:
        asked: calls that came.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.now = 1000.0
        self.asked = 0
        self._held: list[asyncio.Future[str]] = []
        self.throttle = Throttle(lambda: self.now, lambda low, high: (low + high) / 2)

    async def _call(self) -> str:
        self.asked += 1
        if len(self._held) >= self.room:
            raise LikenessError(error_pb2.REASON_OVERLOADED, "full", retry_after_s=0.5)
        self._held.append(asyncio.get_running_loop().create_future())
        return await self._held[-1]

    def call(self) -> "asyncio.Task[str]":
        return asyncio.ensure_future(self.throttle(self._call))

    async def many(self, calls: int) -> tuple[int, int]:
        """Sends so many at once; how many the service was asked for, and how many of those that came it refused."""
        asked = self.asked
        tasks = [self.call() for _ in range(calls)]
        await asyncio.sleep(0)
        refused = [task for task in tasks if task.done()]
        for task in refused:
            with pytest.raises(LikenessError, match="full"):
                task.result()
        return self.asked - asked, len(refused)

    def answer(self, calls: int) -> None:
        for held in self._held[:calls]:
            held.set_result("vector")
        del self._held[:calls]


async def test_nothing_is_held_back_before_a_refusal() -> None:
    service = Service(room=1000)
    assert await service.many(500) == (500, 0)


async def test_after_a_refusal_no_more_are_sent_than_the_service_took() -> None:
    service = Service(room=100)
    assert await service.many(101) == (101, 1)
    assert await service.many(50) == (0, 50)
    service.answer(30)
    await asyncio.sleep(0)
    # Room for 90.9 calls, of which 70 are under way.
    assert await service.many(50) == (21, 29)


async def test_who_is_refused_here_is_told_about_what_the_service_told_last() -> None:
    service = Service(room=100)
    await service.many(101)
    with pytest.raises(LikenessError) as caught:
        await service.call()
    assert caught.value.reason == error_pb2.REASON_OVERLOADED
    assert caught.value.retry_after_s == pytest.approx(0.5)
    assert caught.value is not caught.value.__context__


async def test_the_limit_grows_by_a_tenth_ten_times_a_second_while_it_holds_calls_back() -> None:
    service = Service(room=100)
    await service.many(101)
    service.room = 10_000
    sent = []
    for _ in range(3):
        service.now += 0.1
        sent.append((await service.many(1000))[0])
    assert sent == [0, 10, 11]  # 100.0, 110.0 and 121.0 of 100 under way at first
    service.now += 0.05
    assert await service.many(10) == (0, 10)


async def test_refusals_at_the_same_moment_lower_the_limit_once() -> None:
    service = Service(room=100)
    busy = asyncio.Event()

    async def refused_later() -> None:
        await busy.wait()
        raise LikenessError(error_pb2.REASON_OVERLOADED, "full", retry_after_s=0.5)

    late = [asyncio.ensure_future(service.throttle(refused_later)) for _ in range(200)]
    await asyncio.sleep(0)
    busy.set()
    await asyncio.wait(late)
    assert all(task.exception() for task in late)
    # Nine tenths of the 200 that were under way at the first refusal.
    service.room = 1000
    assert await service.many(1000) == (180, 820)


async def test_few_calls_are_always_sent() -> None:
    service = Service(room=0)
    for _ in range(50):
        service.now += 1
        assert await service.many(1) == (1, 1)


async def test_other_failures_hold_nothing_back() -> None:
    service = Service(room=100)

    async def fails() -> str:
        raise invalid("text", "bad")

    def failing() -> Awaitable[str]:
        return service.throttle(fails)

    for _ in range(200):
        with pytest.raises(LikenessError, match="bad"):
            await failing()
    assert await service.many(100) == (100, 0)
