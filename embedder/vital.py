"""Work in the background that the service cannot be without."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from chassis.errors import incident

GiveUp = Callable[[str], Awaitable[None]]


def vital(work: Callable[[], Coroutine[Any, Any, None]], what: str, give_up: GiveUp) -> "asyncio.Task[None]":
    """Runs it until it is cancelled.

    Args:
        work: has no end of its own.
        what: it is, for people.
        give_up: told why, if it fails: callers would wait for ever on a service that looks well.
    """

    async def run() -> None:
        try:
            await work()
        except Exception as error:
            incident(f"{what} has come to an end", error)
            await give_up(f"{what} has come to an end")

    return asyncio.create_task(run())
