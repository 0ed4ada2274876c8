"""Work that is done to its end, whatever becomes of whoever waits for it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


async def unbroken(work: Coroutine[Any, Any, Result]) -> Result:
    """Does it to its end also when cancelled meanwhile; the cancellation is raised then.

    Raises:
        Exception: what the work raises, unless it was cancelled meanwhile.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()  # heard: whoever was cancelled cannot do anything about it
        raise
