"""Answers on their way to the client: what it has not taken yet waits here, and only for as long as is fair.

uvicorn hands each body to its connection whole, and takes that for sent: the connection may be closed as an idle one,
by TLS with what the client has not taken, and nobody knows how much that is. So a body goes in parts, each when the
client has taken the one before.
"""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

# A body goes in parts of so many bytes.
PART_BYTES = 64 * 1024
# A part that is not taken within so many seconds is given up.
UNREAD_S = 60.0
# A body has as long, and a second more for each so many of its bytes.
LEAST_BYTES_PER_S = 64 * 1024
# In the state of a scope: what closes the connection, with what has not been taken.
ABORT = "likeness.abort"


class InParts:
    """An ASGI application whose answers go in parts; it closes the connection of a client that is too slow."""

    def __init__(self, app: ASGIApp) -> None:
        """Takes the application that answers."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""

        async def in_parts(message: MutableMapping[str, Any]) -> None:
            body = message.get("body", b"")
            if len(body) <= PART_BYTES:
                await send(message)
                return
            more = message.get("more_body", False)
            try:
                async with asyncio.timeout(UNREAD_S + len(body) / LEAST_BYTES_PER_S):
                    for start in range(0, len(body), PART_BYTES):
                        end = start + PART_BYTES
                        await send({**message, "body": body[start:end], "more_body": more or end < len(body)})
            except TimeoutError:
                scope["state"][ABORT]()
                await send({**message, "body": b""})  # until the server knows that the client is gone

        await self._app(scope, receive, in_parts)
