"""A web server on loopback that answers whatever a test tells it to, byte by byte."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]

PNG = b"\x89PNG\r\n\x1a\n and so on"


@dataclass
class Hostile:
    """The server.

    Attributes:
        port: where it listens.
        scheme: "http", or "https" where it speaks TLS.
        answers: what it says, by path; anything else is a 404.
        requests: the heads of the requests that came.
        connections: how many there were.
    """

    port: int = 0
    scheme: str = "http"
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    connections: int = 0

    def url(self, path: str, host: str = "pictures.example") -> str:
        """Where a path is."""
        return f"{self.scheme}://{host}:{self.port}{path}"


def response(body: bytes, *headers: str, status: str = "200 OK", kind: str = "image/png") -> bytes:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    if kind:
        lines.append(f"Content-Type: {kind}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def redirect(to: str, status: str = "302 Found") -> bytes:
    """An answer that sends the client elsewhere."""
    return response(b"", f"Location: {to}", status=status)


@asynccontextmanager
async def hostile(tls: ssl.SSLContext | None = None) -> AsyncIterator[Hostile]:
    """Such a server, running, with TLS or without."""
    told = Hostile(scheme="http" if tls is None else "https")
    handlers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.connections += 1
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                told.requests.append(head)
                answer = told.answers.get(head.split(" ")[1], response(b"", status="404 Not Found"))
                if callable(answer):
                    await answer(writer)
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return  # the client has gone, or the test is over
        finally:
            handlers.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    told.port = server.sockets[0].getsockname()[1]
    try:
        yield told
    finally:
        server.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
