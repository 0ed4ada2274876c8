"""The tests' own network: what it does to bytes is what a test asked for."""

import asyncio
import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.proxy import Proxy, random_sizes

HELLO = bytes(range(256)) * 400


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while block := await reader.read(65_536):
                writer.write(block)
                await writer.drain()
        writer.transport.abort()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(answer, "127.0.0.1", 0), loop).result(10)
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def said_back(client: socket.socket) -> bytes:
    """What comes back of the greeting."""
    client.sendall(HELLO)
    return exactly(client, len(HELLO))


def received(client: socket.socket) -> bytes:
    try:
        return client.recv(65_536)
    except ConnectionError:
        return b""


def exactly(client: socket.socket, n: int) -> bytes:
    got = b""
    while len(got) < n and (block := received(client)):
        got += block
    return got


def test_what_is_sent_passes_and_a_dropped_connection_ends(echo: int) -> None:
    with Proxy(echo) as proxy, connected(proxy) as client:
        assert said_back(client) == HELLO
        proxy.drop()
        assert received(client) == b""
        with connected(proxy) as again:
            assert said_back(again) == HELLO


def test_a_refused_connection_ends_at_once_until_it_is_mended(echo: int) -> None:
    with Proxy(echo) as proxy:
        proxy.cut(silent=False)
        with connected(proxy) as client:
            assert received(client) == b""
        proxy.mend()
        with connected(proxy) as client:
            assert said_back(client) == HELLO


def test_a_silent_network_swallows_what_is_sent(echo: int) -> None:
    with Proxy(echo) as proxy, connected(proxy) as client:
        assert said_back(client) == HELLO
        proxy.cut(silent=True)
        client.sendall(HELLO)
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(10)
        proxy.mend()
        assert received(client) == b""


def test_a_slow_network_delivers_everything_later(echo: int) -> None:
    with Proxy(echo) as proxy, connected(proxy) as client:
        proxy.delay(0.15)
        client.sendall(b"ping")
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(10)
        assert exactly(client, 4) == b"ping"


def test_a_connection_is_cut_after_so_many_bytes_and_the_next_one_after_its_own(echo: int) -> None:
    with Proxy(echo) as proxy, connected(proxy) as first:
        first.sendall(b"before")
        assert exactly(first, 6) == b"before"
        proxy.cut_after([100, 7])
        first.sendall(b"x" * 100)  # on its way there, so that nothing comes back
        assert received(first) == b""
        with connected(proxy) as second:
            second.sendall(b"12345")
            assert exactly(second, 100) == b"12"
        with connected(proxy) as third:
            assert said_back(third) == HELLO
        assert proxy.cuts == 2


def test_random_sizes_are_the_same_for_the_same_seed() -> None:
    sizes = list(random_sizes(7, 10, 20, 50))
    assert sizes == list(itertools.islice(random_sizes(7, 10, 20), 50))
    assert set(sizes) <= set(range(10, 21))
    assert sizes != list(random_sizes(8, 10, 20, 50))
