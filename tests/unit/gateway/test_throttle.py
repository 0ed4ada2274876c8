"""Embedders that refuse many calls are asked for no more than they take; one busy one of several changes nothing."""

import asyncio
import gc
import weakref

import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, invalid
from gateway.throttle import Throttle


class Service:
    """Holds as many calls as it has room for until it is told to answer them, and refuses the others.

    Attributes:
        asked: calls that came.
        told: calls that did not, since the throttle refused them.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.now = 1000.0
        self.asked = self.told = 0
        self._held: list[asyncio.Future[str]] = []
        self.throttle = Throttle(self._tell, lambda: self.now, self._chance)

    def _tell(self) -> None:
        self.told += 1

    def _chance(self, low: float, high: float) -> float:
        assert (low, high) == (1.0, 2.0)
        return 1.5

    async def _call(self) -> str:
        self.asked += 1
        if len(self._held) >= self.room:
            raise LikenessError(error_pb2.REASON_OVERLOADED, "full", retry_after_s=0.4)
        self._held.append(asyncio.get_running_loop().create_future())
        return await self._held[-1]

    def call(self) -> "asyncio.Task[str]":
        return asyncio.ensure_future(self.throttle(self._call))

    async def sends(self, calls: int) -> int:
        """How many of so many calls reach the service."""
        asked = self.asked
        tasks = [self.call() for _ in range(calls)]
        await asyncio.sleep(0)
        for task in tasks:
            if task.done():
                assert isinstance(task.exception(), LikenessError)
        return self.asked - asked

    async def answers(self, calls: int) -> None:
        for held in self._held[:calls]:
            held.set_result("vector")
        del self._held[:calls]
        await asyncio.sleep(0)


async def test_nothing_is_held_back_before_a_refusal() -> None:
    assert await Service(room=1000).sends(500) == 500


async def test_while_less_than_two_fifths_are_refused_nothing_is_limited() -> None:
    service = Service(room=100)
    assert await service.sends(166) == 166
    service.room = 1000
    assert await service.sends(500) == 500


async def test_a_few_refusals_limit_nothing_nor_do_those_of_long_ago() -> None:
    service = Service(room=0)
    assert await service.sends(9) == 9
    service.now += 4
    assert await service.sends(9) == 9
    service.room = 1000
    assert await service.sends(500) == 500


async def test_where_many_are_refused_no_more_are_sent_than_are_under_way_less_a_tenth() -> None:
    service = Service(room=100)
    assert await service.sends(300) == 167
    assert service.told == 133
    await service.answers(30)
    # 90.9, nine tenths of the 100 that it held and the one that it had just refused, of which 70 are under way.
    assert await service.sends(50) == 21


async def test_refusals_at_the_same_moment_lower_the_limit_once() -> None:
    service = Service(room=100)
    busy = asyncio.Event()

    async def refused_later() -> None:
        await busy.wait()
        raise LikenessError(error_pb2.REASON_OVERLOADED, "full", retry_after_s=0.4)

    late = [asyncio.ensure_future(service.throttle(refused_later)) for _ in range(200)]
    await asyncio.sleep(0)
    busy.set()
    await asyncio.wait(late)
    service.room = 1000
    assert await service.sends(1000) == 109  # nine tenths of the 121 under way at the eightieth


async def test_the_limit_grows_by_a_tenth_in_a_tenth_of_a_second() -> None:
    service = Service(room=100)
    await service.sends(300)
    service.room = 10_000
    sent = []
    for _ in range(3):
        service.now += 0.1
        sent.append(await service.sends(1000))
    assert sent == [0, 10, 11]  # limits of 100.0, 110.0 and 121.0, and 100 under way at first


async def test_a_limit_ends_with_the_refusals() -> None:
    service = Service(room=0)
    await service.sends(20)
    service.room = 10_000
    service.now += 5.1
    assert await service.sends(5000) == 5000


@pytest.mark.parametrize("refused", [0, 20])
async def test_a_quiet_night_changes_nothing(refused: int) -> None:
    service = Service(room=0)
    await service.sends(refused)
    service.room = 1000
    for _ in range(2):
        service.now += 10 * 3600
        assert await service.sends(100) == 100


async def test_a_call_that_is_refused_at_the_end_of_a_quiet_night_changes_nothing() -> None:
    service = Service(room=1000)
    morning = asyncio.Event()

    async def refused_in_the_morning() -> None:
        await morning.wait()
        raise LikenessError(error_pb2.REASON_OVERLOADED, "full", retry_after_s=0.4)

    call = asyncio.ensure_future(service.throttle(refused_in_the_morning))
    await asyncio.sleep(0)
    service.now += 10 * 3600
    morning.set()
    await asyncio.wait([call])
    assert await service.sends(100) == 100


async def test_the_limit_is_never_less_than_sixteen() -> None:
    service = Service(room=0)
    for _ in range(50):
        service.now += 0.1
        await service.sends(20)
    service.room = 100
    assert await service.sends(20) == 16


@pytest.mark.parametrize("replicas", [3, 4, 16])
async def test_one_replica_of_several_that_refuses_everything_limits_nothing(replicas: int) -> None:
    service = Service(room=0)
    under_way: list[list[asyncio.Future[str]]] = []
    turn = 0

    async def round_robin() -> str:
        nonlocal turn
        turn += 1
        if turn % replicas == 0:
            raise LikenessError(error_pb2.REASON_OVERLOADED, "full", retry_after_s=0.4)
        under_way[-1].append(asyncio.get_running_loop().create_future())
        return await under_way[-1][-1]

    tasks: list[asyncio.Task[str]] = []
    for _ in range(300):
        service.now += 0.01
        under_way.append([])
        tasks += [asyncio.ensure_future(service.throttle(round_robin)) for _ in range(20)]
        await asyncio.sleep(0)
        if len(under_way) > 20:  # an answer takes a fifth of a second
            for answer in under_way.pop(0):
                answer.set_result("vector")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert service.told == 0


async def test_who_is_refused_here_is_told_when_to_come_and_nothing_else() -> None:
    service = Service(room=100)
    await service.sends(300)
    first, second = service.call(), service.call()
    await asyncio.wait([first, second])
    errors = [first.exception(), second.exception()]
    assert errors[0] is not errors[1]  # a traceback grows with every raise
    for error in errors:
        assert isinstance(error, LikenessError)
        assert error.reason == error_pb2.REASON_OVERLOADED
        assert error.retry_after_s == pytest.approx(0.6)
        assert "100 calls to them are under way" in error.message
        assert "in 0.6 s" in error.message


async def test_calls_that_are_given_up_give_their_places_back() -> None:
    service = Service(room=100)
    calls = [service.call() for _ in range(300)]
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    service.room = 10_000
    assert await service.sends(1000) == 91


async def test_other_failures_hold_nothing_back() -> None:
    service = Service(room=100)

    async def fails() -> str:
        raise invalid("text", "bad")

    for _ in range(200):
        with pytest.raises(LikenessError, match="bad"):
            await service.throttle(fails)
    assert await service.sends(100) == 100


class _Request:
    pass


async def test_nothing_of_a_refused_call_is_kept() -> None:
    throttle = Throttle(lambda: None)
    kept: list[weakref.ref[_Request]] = []

    async def refused() -> None:
        request = _Request()
        kept.append(weakref.ref(request))
        raise LikenessError(error_pb2.REASON_OVERLOADED, f"no room for {request}")

    with pytest.raises(LikenessError, match="no room"):
        await throttle(refused)
    gc.collect()
    assert kept[0]() is None
