"""Work that waits for Chroma."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError

log = structlog.get_logger()

Answer = TypeVar("Answer")

_TRY_AGAIN_S = 0.5
# In a row, with Chroma there; each pause between them is twice the one before, 7.5 s together. That Chroma has gone is
# seen within two seconds, unless it hangs.
_MOST_FAILURES = 5


async def patiently(work: Callable[[], Awaitable[Answer]], connected: Callable[[], bool] = lambda: False) -> Answer:
    """Does it again as long as Chroma is away: whoever looks after Chroma brings it back.

    Args:
        work: what is done.
        connected: whether Chroma is there. What fails five times in a row all the same is given up: it may be that
            Chroma cannot read one collection. Left out: nothing is given up, since nothing goes without the work.

    Raises:
        LikenessError: STORE_UNAVAILABLE, STORE_FULL: it was given up; what else the work raises.
    """
    failures = 0
    while True:
        try:
            return await work()
        except LikenessError as error:
            if error.reason not in (error_pb2.REASON_STORE_UNAVAILABLE, error_pb2.REASON_STORE_FULL):
                raise
            failures = failures + 1 if connected() else 0
            if failures == _MOST_FAILURES:
                raise
            log.warning("waiting for Chroma", why=error.message)
            await asyncio.sleep(_TRY_AGAIN_S * 2 ** max(failures - 1, 0))
