"""A busy service is waited for, within bounds, and whoever brings the work is told."""

import asyncio
import time

import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from gateway.backoff import Backoff
from gateway.metrics import BackoffCause


class Busy:
    """A service that refuses its first calls."""

    def __init__(self, refusals: int, hint_s: float | None = 0.05) -> None:
        self.refusals, self.hint_s = refusals, hint_s
        self.asked: list[float] = []

    async def __call__(self) -> str:
        self.asked.append(time.monotonic())
        refused = len(self.asked) <= self.refusals
        await asyncio.sleep(0)
        if refused:
            raise LikenessError(error_pb2.REASON_OVERLOADED, "busy", retry_after_s=self.hint_s)
        return "done"


class Told(list[tuple[float, BackoffCause]]):
    def __init__(self) -> None:
        super().__init__()
        self.once = asyncio.Event()

    def __call__(self, seconds: float, cause: BackoffCause) -> None:
        self.append((seconds, cause))
        self.once.set()


async def test_a_refused_call_is_made_again_after_what_the_service_says() -> None:
    told, busy = Told(), Busy(2)

    assert await Backoff(10, asyncio.Event(), told).call("embedder", busy) == "done"

    assert told == [(0.05, "embedder")] * 2
    assert all(later - earlier >= 0.05 for earlier, later in zip(busy.asked, busy.asked[1:], strict=False))


async def test_without_a_word_from_the_service_waits_grow() -> None:
    told = Told()

    await Backoff(10, asyncio.Event(), told).call("indexer", Busy(2, None))

    assert [seconds for seconds, _ in told] == [0.2, 0.4]


async def test_a_refusal_that_lasts_is_passed_on() -> None:
    busy = Busy(10_000)

    with pytest.raises(LikenessError) as caught:
        await Backoff(0.2, asyncio.Event(), Told()).call("embedder", busy)

    assert caught.value.reason == error_pb2.REASON_OVERLOADED
    assert len(busy.asked) > 1


async def test_other_failures_are_passed_on_at_once() -> None:
    async def full() -> None:
        raise LikenessError(error_pb2.REASON_STORE_FULL, "full", retry_after_s=0.01)

    told = Told()
    with pytest.raises(LikenessError):
        await Backoff(10, asyncio.Event(), told).call("indexer", full)

    assert told == []


async def test_calls_refused_together_tell_once_and_nobody_asks_meanwhile() -> None:
    told, busy = Told(), Busy(3, 0.2)
    backoff = Backoff(10, asyncio.Event(), told)

    await asyncio.gather(*(backoff.call("embedder", busy) for _ in range(3)))

    assert len(told) == 1
    assert busy.asked[3] - busy.asked[0] >= 0.2


async def test_a_stop_wakes_whoever_waits() -> None:
    stopping, told, busy = asyncio.Event(), Told(), Busy(1, 600.0)
    call = asyncio.create_task(Backoff(3600, stopping, told).call("embedder", busy))
    async with asyncio.timeout(30):
        await told.once.wait()
        stopping.set()

        assert await call == "done"
