import asyncio

import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.turnstile import Turnstile


async def test_the_turnstile_lets_some_run_some_wait_and_refuses_the_rest() -> None:
    turnstile = Turnstile(running=2, waiting=1, setting="A_SETTING")
    leave = asyncio.Event()
    inside: list[int] = []

    async def visit(n: int) -> None:
        async with turnstile:
            inside.append(n)
            await leave.wait()

    visits = [asyncio.create_task(visit(n)) for n in range(3)]
    for _ in visits:
        await asyncio.sleep(0)
    assert inside == [0, 1]
    with pytest.raises(LikenessError) as caught:
        await visit(3)
    assert caught.value.reason == error_pb2.REASON_OVERLOADED
    assert caught.value.retry_after_s
    assert "1 reads wait" in caught.value.message
    assert "of 1 (A_SETTING)" in caught.value.message
    leave.set()
    await asyncio.gather(*visits)
    assert inside == [0, 1, 2]


async def test_one_who_stops_waiting_gives_its_place_free() -> None:
    turnstile = Turnstile(running=1, waiting=1, setting="A_SETTING")
    async with turnstile:
        waiting = asyncio.create_task(turnstile.__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        again = asyncio.create_task(turnstile.__aenter__())
        await asyncio.sleep(0)
        assert not again.done()
    await again
