"""The network between two processes, which can be cut, silenced, slowed down, and cut off after so many bytes."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

import numpy as np

from tests.processes import free_port

_AT_ONCE = 65_536
# Blocks of one direction on their way through a slow network.
_BLOCKS_ON_THE_WAY = 256


class Proxy:
    """Passes bytes on between a port of its own and another, as long as it is not told otherwise. Runs in a thread.

    What a method changes is so when it returns, for the connections that are open as for later ones.
    """

    def __init__(self, to_port: int, tls: ssl.SSLContext | None = None) -> None:
        """Not running yet.

        Args:
            to_port: on loopback, where whatever connects here is passed on to.
            tls: spoken with whoever connects here; None: the bytes are passed on as they are.
        """
        self.port = free_port()
        self.cuts = 0
        self._tls = tls
        self._to_port = to_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy {self.port}")
        self._refusing = self._silent = False
        self._delay_s = 0.0
        self._sizes: Iterator[int] = iter(())
        self._links: dict[_Link, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """Where it listens: ``host:port``."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Where it listens, for HTTP."""
        return f"{'https' if self._tls is not None else 'http'}://{self.address}"

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

        self._do(begin)

    def drop(self) -> None:
        """Resets the connections that are open; new ones pass."""
        self._do(self._reset)

    def delay(self, seconds: float) -> None:
        """Whatever is sent arrives so much later, in both directions."""

        def begin() -> None:
            self._delay_s = seconds

        self._do(begin)

    def cut_after(self, sizes: Iterable[int]) -> None:
        """Cuts each connection, those open now first, after so many bytes more, both directions together.

        What came before has arrived. ``cuts`` counts.

        Args:
            sizes: one for each connection, in their order; those beyond the last are not cut.
        """

        def begin() -> None:
            self._sizes = iter(sizes)
            for link in self._links:
                link.left = next(self._sizes, None)

        self._do(begin)

    def mend(self) -> None:
        """New connections pass again; those that are open end, since they may have lost something."""

        def end() -> None:
            self._silent = self._refusing = False
            self._delay_s, self._sizes = 0.0, iter(())
            self._reset()

        self._do(end)

    def _do(self, change: Callable[[], None]) -> None:
        async def make() -> None:
            change()

        asyncio.run_coroutine_threadsafe(make(), self._loop).result(10)

    def _reset(self) -> None:
        for link in self._links:
            link.abort()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, ssl=self._tls)

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self._reset()
        if self._links:
            await asyncio.wait(self._links.values())

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        link = _Link(writer)
        self._links[link] = task
        try:
            if self._refusing:
                return
            link.left = next(self._sizes, None)
            with contextlib.suppress(OSError):
                onward, link.onward = await asyncio.open_connection("127.0.0.1", self._to_port)
                await asyncio.gather(self._pass(link, reader, link.onward), self._pass(link, onward, writer))
        finally:
            link.abort()
            del self._links[link]

    async def _pass(self, link: "_Link", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction, until its sender ends it or it is cut; the other one ends with it."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_BLOCKS_ON_THE_WAY)
        reading = asyncio.create_task(self._read(reader, on_the_way))
        with contextlib.suppress(OSError):
            await self._arrive(link, on_the_way, writer)
            writer.close()  # what was written still arrives
            await writer.wait_closed()
        reading.cancel()
        link.abort()

    async def _read(self, reader: asyncio.StreamReader, on_the_way: "asyncio.Queue[tuple[float, bytes]]") -> None:
        block = b"-"
        while block:
            try:
                block = await reader.read(_AT_ONCE)
            except OSError:
                block = b""
            await on_the_way.put((self._loop.time() + self._delay_s, block))

    async def _arrive(
        self, link: "_Link", on_the_way: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter
    ) -> None:
        while True:
            due, block = await on_the_way.get()
            if not block:
                return
            await asyncio.sleep(due - self._loop.time())
            if self._silent:
                continue
            if link.left is not None and len(block) >= link.left:
                writer.write(block[: link.left])
                self.cuts += 1
                return
            if link.left is not None:
                link.left -= len(block)
            writer.write(block)
            await writer.drain()


class _Link:
    """A connection: its two ends, and how many bytes may still pass; None: any number."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.onward: asyncio.StreamWriter | None = None
        self.left: int | None = None

    def abort(self) -> None:
        """Resets both ends."""
        for writer in (self._writer, self.onward):
            if writer is not None:
                writer.transport.abort()


def random_sizes(seed: int, least: int, most: int, n: int | None = None) -> Iterator[int]:
    """Sizes for ``Proxy.cut_after``, the same for the same seed.

    Args:
        seed: of chance.
        least: the smallest, in bytes.
        most: the greatest.
        n: how many; None: without end.
    """
    rng = np.random.default_rng(seed)
    while n is None or n > 0:
        yield int(rng.integers(least, most + 1))
        n = None if n is None else n - 1
