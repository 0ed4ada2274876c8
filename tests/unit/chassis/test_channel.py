"""Which of several connections a call takes. The connections here are none: they hold calls until they are let go."""

import asyncio
from typing import cast

import grpc
import pytest

from chassis.channel import Connections

READY, FAILING = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Channel:
    """A channel in a state that the test says, and at the same time what makes calls on it."""

    def __init__(self) -> None:
        self.state = READY
        self.held: list[asyncio.Future[str]] = []
        self.closed = False

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        assert try_to_connect
        return self.state

    async def method(self, request: str, *, wait_for_ready: bool) -> str:
        assert (request, wait_for_ready) == ("question", True)
        self.held.append(asyncio.get_running_loop().create_future())
        return await self.held[-1]

    async def close(self) -> None:
        self.closed = True


def connections(count: int) -> tuple[list[Channel], Connections[Channel]]:
    channels = [Channel() for _ in range(count)]
    return channels, Connections(cast(list[grpc.aio.Channel], channels), lambda channel: cast(Channel, channel))


async def begin(made: Connections[Channel], count: int = 1) -> "list[asyncio.Task[str]]":
    """So many calls, each on its way before the next."""
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(made.call(lambda stub: stub.method, "question", wait_for_ready=True)))
        await asyncio.sleep(0)
    return tasks


def under_way(channels: list[Channel]) -> list[int]:
    return [sum(not each.done() for each in channel.held) for channel in channels]


async def test_a_call_goes_where_the_fewest_are_under_way() -> None:
    channels, made = connections(3)
    calls = await begin(made, 6)
    assert under_way(channels) == [2, 2, 2]

    for held in channels[1].held:
        held.set_result("answer")
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0)
    await begin(made, 2)
    assert under_way(channels) == [2, 2, 2]
    assert len(channels[1].held) == 4


async def test_where_several_have_as_few_they_take_turns() -> None:
    channels, made = connections(3)
    for _ in range(6):
        (call,) = await begin(made)
        next(each for channel in channels for each in channel.held if not each.done()).set_result("answer")
        assert await call == "answer"
    assert [len(channel.held) for channel in channels] == [2, 2, 2]


async def test_calls_that_fail_or_are_cancelled_are_under_way_no_more() -> None:
    channels, made = connections(2)
    cancelled, failing = await begin(made, 2)
    cancelled.cancel()
    await asyncio.wait({cancelled})
    (left,) = [each for channel in channels for each in channel.held if not each.done()]
    left.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await failing

    await begin(made, 4)
    assert under_way(channels) == [2, 2]


async def test_one_that_is_not_ready_gets_calls_only_where_none_is() -> None:
    channels, made = connections(3)
    channels[1].state = FAILING
    await begin(made, 6)
    assert under_way(channels) == [3, 0, 3]

    channels[0].state = channels[2].state = FAILING
    await begin(made, 6)
    assert under_way(channels) == [4, 4, 4]


async def test_all_are_closed() -> None:
    channels, made = connections(3)
    await made.close()
    assert all(channel.closed for channel in channels)
