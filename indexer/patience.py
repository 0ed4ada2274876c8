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


async def patiently(work: Callable[[], Awaitable[Answer]]) -> Answer:
    """Does it again as long as Chroma is away: whoever looks after Chroma brings it back."""
    while True:
        try:
            return await work()
        except LikenessError as error:
            if error.reason not in (error_pb2.REASON_STORE_UNAVAILABLE, error_pb2.REASON_STORE_FULL):
                raise
            log.warning("waiting for Chroma", why=error.message)
            await asyncio.sleep(_TRY_AGAIN_S)
