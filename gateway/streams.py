"""What long answers have in common: how large a message is, how many streams there are, how long they wait."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from gateway.requests import shutting_down

# So long a message waits for its reader, in seconds; then what is held for the stream is free again.
STALLED_S = 300.0

# Size of what one message carries, so that it stays well below the 64 MiB that clients take.
MAX_BYTES = 48 * 2**20

M = TypeVar("M")
R = TypeVar("R")


@asynccontextmanager
async def admitted(streams: asyncio.Semaphore, what: str) -> AsyncIterator[None]:
    """One of the places for streams of a kind.

    Raises:
        LikenessError: OVERLOADED: none is free.
    """
    if streams.locked():
        message = f"as many {what} as are allowed are under way; try again later"
        raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=10.0)
    async with streams:
        yield


async def unless(stopping: asyncio.Event, work: Coroutine[Any, Any, R], what_now: str) -> R:
    """Does it, unless the gateway stops before it is done.

    Args:
        stopping: set when it does.
        work: cancelled then.
        what_now: what the client of a stream that ended so does.

    Raises:
        LikenessError: SHUTTING_DOWN; or what the work raises.
    """
    working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise shutting_down(what_now)
        return working.result()
    finally:
        working.cancel()
        stopped.cancel()


def patient(write: Callable[[M], Awaitable[None]], stalled_s: float, what_now: str) -> Callable[[M], Awaitable[None]]:
    """The same ``write``, which fails with DEADLINE_EXCEEDED when nobody takes a message for so long.

    Args:
        write: returns when there is room for the next message.
        stalled_s: how long it may take.
        what_now: what the client of a stream that ended so does.
    """

    async def send(message: M) -> None:
        try:
            async with asyncio.timeout(stalled_s):
                await write(message)
        except TimeoutError:
            text = f"nobody has read from the stream for {stalled_s:g} s; {what_now}"
            raise LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, text) from None

    return send
