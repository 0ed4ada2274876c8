"""The network between an indexer and Chroma, which can be cut."""

import asyncio
import contextlib
import ssl
import threading
from types import TracebackType
from typing import Self

from tests.processes import free_port

_AT_ONCE = 65_536


class Proxy:
    """Passes bytes on between a port of its own and another, as long as it is not cut. Runs in a thread."""

    def __init__(self, to_port: int, tls: ssl.SSLContext | None = None) -> None:
        """Not running yet.

        Args:
            to_port: on loopback, where whatever connects here is passed on to.
            tls: spoken with whoever connects here; None: the bytes are passed on as they are.
        """
        self.port = free_port()
        self._tls = tls
        self._to_port = to_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy {self.port}")
        self._refusing = self._silent = False
        self._connections: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self._tls is not None else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def cut(self, *, silent: bool) -> None:
        """Nothing passes any more.

        Args:
            silent: what is sent disappears, and nobody is told; else connections are reset, and refused.
        """

        def begin() -> None:
            self._silent, self._refusing = silent, not silent
            if not silent:
                self._reset()

        self._loop.call_soon_threadsafe(begin)

    def mend(self) -> None:
        """New connections pass again; those that have lost something end."""

        def end() -> None:
            self._silent = self._refusing = False
            self._reset()

        self._loop.call_soon_threadsafe(end)

    def _reset(self) -> None:
        for connection in list(self._connections):
            connection.transport.abort()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, ssl=self._tls)

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self._reset()
        if self._passing:
            await asyncio.wait(self._passing)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        self._connections.add(writer)
        try:
            if self._refusing:
                return
            with contextlib.suppress(OSError):
                onward = await asyncio.open_connection("127.0.0.1", self._to_port)
                self._connections.add(onward[1])
                try:
                    await asyncio.gather(self._pass(reader, onward[1]), self._pass(onward[0], writer))
                finally:
                    self._connections.discard(onward[1])
                    onward[1].transport.abort()
        finally:
            self._connections.discard(writer)
            writer.transport.abort()
            self._passing.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while block := await reader.read(_AT_ONCE):
            if not self._silent:
                writer.write(block)
                await writer.drain()
        writer.transport.abort()
