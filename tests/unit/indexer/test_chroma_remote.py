"""The watch over a Chroma of somebody else's, behind a proxy that says what it likes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer import chroma_remote
from indexer.chroma_remote import RemoteChroma
from indexer.store import ChromaStore

PAGE = b"<html>Welcome</html>"
NUMBER = b"7"
GARBLED = b"no gzip at all"


class Proxy:
    """Forwards to Chroma, or answers everything itself.

    Attributes:
        answer: what it answers with; None: it forwards.
        answered: how often it has answered itself.
    """

    def __init__(self, chroma: str) -> None:
        parts = urlsplit(chroma)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self.answer: bytes | None = None
        self.answered: asyncio.Queue[None] = asyncio.Queue()
        self._connected: set[asyncio.StreamWriter] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def says(self, answer: bytes | None) -> None:
        """From now on, on new connections: those there are end."""
        self.answer = answer
        for writer in self._connected:
            writer.close()

    async def stop(self) -> None:
        self.says(self.answer)
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connected.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await (self._forward(reader, writer) if self.answer is None else self._say(self.answer, reader, writer))
        writer.close()
        self._connected.discard(writer)

    async def _say(self, answer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        coding = b"Content-Encoding: gzip\r\n" if answer is GARBLED else b""
        writer.write(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s" % (coding, len(answer), answer)
        )
        await writer.drain()
        self.answered.put_nowait(None)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, self._port)
        answering = asyncio.create_task(_pass_on(there, writer))
        try:
            await _pass_on(reader, back)
        finally:
            back.close()
            await answering


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    writer.close()


class Watched:
    """What is told of Chroma behind a proxy."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.store = ChromaStore({}, 30)
        self.ups: asyncio.Queue[None] = asyncio.Queue()
        self.downs: asyncio.Queue[str] = asyncio.Queue()
        self.failures: list[Exception] = []

    async def begin(self, start_s: float = 60) -> None:
        self.chroma = RemoteChroma(await self.proxy.start(), {}, start_s, self._up, self._down)
        await self.chroma.start()
        await self.ups.get()

    async def _up(self, url: str) -> None:
        await self.store.connect(url)
        self.ups.put_nowait(None)

    async def _down(self, why: str) -> None:
        self.store.disconnect()
        self.downs.put_nowait(why)
        if self.failures:
            raise self.failures.pop()


@pytest.fixture
async def watched(chroma_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    monkeypatch.setattr(chroma_remote, "WATCH_S", 0.02)
    made = Watched(Proxy(chroma_url))
    yield made
    await made.chroma.stop()
    await made.proxy.stop()


@pytest.mark.parametrize("answer", [PAGE, NUMBER, GARBLED], ids=["a page", "a number", "what cannot be read"])
async def test_chroma_is_found_again_whatever_a_proxy_has_said_in_its_place(watched: Watched, answer: bytes) -> None:
    async with asyncio.timeout(60):
        await watched.begin()
        watched.proxy.says(GARBLED)  # a heartbeat that cannot be read is none
        assert "no heartbeat" in await watched.downs.get()
        watched.proxy.says(answer)
        while not watched.proxy.answered.empty():
            watched.proxy.answered.get_nowait()
        for _ in range(20):
            await watched.proxy.answered.get()
        watched.proxy.says(None)
        await watched.ups.get()
        assert isinstance(await watched.store.collections(), list)


async def test_chroma_is_found_again_where_nobody_could_be_told_that_it_was_gone(watched: Watched) -> None:
    async with asyncio.timeout(60):
        await watched.begin()
        watched.failures.append(RuntimeError("as the test wants it"))
        watched.proxy.says(GARBLED)
        await watched.downs.get()
        watched.proxy.says(None)
        await watched.ups.get()


async def test_a_start_where_something_else_answers_says_what(watched: Watched) -> None:
    watched.proxy.says(PAGE)
    async with asyncio.timeout(60):
        with pytest.raises(
            LikenessError, match=r"no Chroma server at .*JSONDecodeError.*LIKENESS_CHROMA_URL"
        ) as caught:
            await watched.begin(start_s=0.2)
    assert caught.value.reason == error_pb2.REASON_STORE_UNAVAILABLE
