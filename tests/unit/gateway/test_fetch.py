"""Fetching pictures by uri, from a server and a name server that mean no good."""

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from chassis.errors import LikenessError
from gateway.fetch import Fetch
from gateway.fetch_policy import Address, FetchPolicy, is_public
from gateway.metrics import Metrics
from gateway.settings import GatewaySettings
from tests.unit.gateway.hostile import PNG, Hostile, hostile, redirect, response

ANY_PORT = frozenset(range(1, 65536))


@dataclass
class Names:
    """A name server: what it says of a name, one answer after the other, the last again and again."""

    answers: dict[str, list[list[str]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        told = self.answers.get(host, [["127.0.0.1"]])
        return told.pop(0) if len(told) > 1 else told[0]


@dataclass
class Place:
    """A fetch that may go to loopback and nowhere else private, and who it speaks to."""

    web: Hostile
    names: Names
    fetch: Fetch
    metrics: Metrics

    async def get(self, path: str, max_bytes: int | None = None, timeout_s: float = 60) -> bytes:
        return await self.fetch(self.web.url(path), "image.uri", timeout_s, max_bytes)

    async def failure(self, path: str, max_bytes: int | None = None, timeout_s: float = 60) -> LikenessError:
        return await failure(self.fetch, self.web.url(path), max_bytes, timeout_s)

    def counted(self, outcome: str) -> float | None:
        return self.metrics.registry.get_sample_value("likeness_gateway_fetches_total", {"outcome": outcome})


async def failure(fetch: Fetch, uri: str, max_bytes: int | None = None, timeout_s: float = 60) -> LikenessError:
    with pytest.raises(LikenessError) as caught:
        await fetch(uri, "image.uri", timeout_s, max_bytes)
    assert "127.0.0.1" not in caught.value.message
    return caught.value


def on_this_machine(address: Address) -> bool:
    return address.is_loopback or is_public(address)


@asynccontextmanager
async def place(
    allows: Any = on_this_machine, tls: ssl.SSLContext | None = None, **settings: Any
) -> AsyncIterator[Place]:
    names, metrics = Names(), Metrics(CollectorRegistry())
    async with hostile(tls) as web:
        policy = FetchPolicy(ports=ANY_PORT, allows=allows)
        fetch = Fetch(GatewaySettings(fetch=True, **settings), metrics, policy, names)
        try:
            yield Place(web, names, fetch, metrics)
        finally:
            await fetch.close()


async def test_a_picture_is_fetched_and_nothing_of_the_caller_is_told() -> None:
    async with place() as here:
        here.web.answers["/a.png?b=c"] = response(PNG)
        assert await here.get("/a.png?b=c#d") == PNG
        assert await here.get("/a.png?b=c") == PNG

    (head, _) = here.web.requests
    told = {line.split(":")[0].lower() for line in head.split("\r\n")[1:] if line}
    assert told == {"host", "user-agent", "accept", "accept-encoding"}
    assert f"Host: pictures.example:{here.web.port}\r\n" in head
    assert here.web.connections == 1
    assert here.counted("ok") == 2


async def test_nothing_is_fetched_unless_it_is_told_to() -> None:
    async with hostile() as web:
        fetch = Fetch(GatewaySettings(), Metrics(CollectorRegistry()), FetchPolicy(ports=ANY_PORT))
        error = await failure(fetch, web.url("/a"))
        await fetch.close()

    assert error.reason_name == "FETCH_DISABLED"
    assert error.violations[0].field == "image.uri"
    assert web.connections == 0


@pytest.mark.parametrize(
    "host", ["localhost", "127.1", "0x7f000001", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"]
)
async def test_this_machine_is_never_asked_by_whatever_name(host: str) -> None:
    async with hostile() as web:
        fetch = Fetch(GatewaySettings(fetch=True), Metrics(CollectorRegistry()), FetchPolicy(ports=ANY_PORT))
        error = await failure(fetch, web.url("/a", host))
        await fetch.close()

    assert error.reason_name == "FETCH_REFUSED"
    assert error.violations[0].field == "image.uri"
    assert web.connections == 0


@pytest.mark.parametrize(
    "answer",
    [
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["fe80::1%2"],
        ["::ffff:10.0.0.1"],
        ["64:ff9b::a9fe:a9fe"],
        ["8.8.8.8", "192.168.0.1"],
        ["nonsense"],
    ],
)
async def test_a_name_is_refused_if_any_of_its_addresses_is_private(answer: list[str]) -> None:
    async with place(is_public) as here:
        here.names.answers["pictures.example"] = [answer]
        error = await here.failure("/a")

    assert error.reason_name == "FETCH_REFUSED"
    assert not any(address in error.message for address in answer)
    assert here.web.connections == 0
    assert here.counted("refused") == 1


async def test_a_name_that_changes_its_address_is_asked_for_once_and_the_checked_one_is_connected_to() -> None:
    async with place() as here:
        here.web.answers["/a"] = response(PNG)
        here.names.answers["pictures.example"] = [["127.0.0.1"], ["10.0.0.1"]]
        assert await here.get("/a") == PNG
        assert here.names.asked == ["pictures.example"]


async def test_a_new_connection_is_checked_again() -> None:
    async with place() as here:
        here.web.answers["/a"] = response(PNG, "Connection: close")
        here.names.answers["pictures.example"] = [["127.0.0.1"], ["10.0.0.1"]]
        assert await here.get("/a") == PNG
        assert (await here.failure("/a")).reason_name == "FETCH_REFUSED"


@pytest.mark.parametrize(
    "to",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://inside.example/",
        "file:///etc/passwd",
        "gopher://pictures.example/",
        "//user@pictures.example/",
        "http://2130706433/",
    ],
)
async def test_a_redirect_is_followed_only_to_where_the_first_uri_might_have_led(to: str) -> None:
    def loopback_only(address: Address) -> bool:
        return str(address) == "127.0.0.1"

    async with place(loopback_only) as here:
        here.names.answers["inside.example"] = [["10.0.0.1"]]
        here.web.answers["/a"] = redirect(to)
        error = await here.failure("/a")

    assert error.reason_name == "FETCH_REFUSED"
    assert error.violations[0].field == "image.uri"


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_redirects_to_other_paths_and_hosts_are_followed(status: str) -> None:
    async with place() as here:
        here.web.answers |= {
            "/a/b": redirect("../c", status),
            "/c": redirect(here.web.url("/d", "other.example"), status),
            "/d": response(PNG, kind="application/octet-stream"),
        }
        assert await here.get("/a/b") == PNG
    assert dict.fromkeys(here.names.asked) == dict.fromkeys(["pictures.example", "other.example"])


@pytest.mark.parametrize("to", ["http://[", "http://[x]/", "//]"])
async def test_a_redirect_that_no_one_can_read_is_the_hosts_failure(to: str) -> None:
    async with place() as here:
        here.web.answers["/a"] = redirect(to)
        error = await here.failure("/a")

    assert (error.reason_name, error.retry_after_s) == ("FETCH_FAILED", None)
    assert error.violations[0].field == "image.uri"
    assert here.counted("failed") == 1


async def test_a_fault_of_ours_in_a_fetch_has_an_incident_and_its_caller_can_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ask(*_: object) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(Fetch, "_ask", ask)
    async with place() as here:
        error = await here.failure("/a")

    assert error.reason_name == "INTERNAL"
    assert "incident" in error.message
    assert here.counted("failed") == 1


async def test_a_circle_of_redirects_ends() -> None:
    async with place(fetch_redirects=2) as here:
        here.web.answers |= {"/a": redirect("/b"), "/b": redirect("/a")}
        assert (await here.failure("/a")).reason_name == "FETCH_FAILED"
    assert len(here.web.requests) == 3


async def test_a_body_is_read_no_further_than_what_is_taken() -> None:
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            sent += 0x10000
            await writer.drain()

    async with place(fetch_max_mb=1) as here:
        here.web.answers |= {"/endless": endless, "/long": response(PNG * 10), "/huge": response(b"")}
        here.web.answers["/huge"] = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 99999999999\r\n\r\n"
        assert (await here.failure("/endless")).reason_name == "FETCH_FAILED"
        assert (await here.failure("/huge")).reason_name == "FETCH_FAILED"
        assert (await here.failure("/long", max_bytes=20)).reason_name == "FETCH_FAILED"
        assert await here.get("/long", max_bytes=len(PNG) * 10) == PNG * 10
    assert sent < 64 * 2**20


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"])
async def test_one_that_drips_is_given_up_after_the_whole_time(begin: bytes) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        await asyncio.Event().wait()

    async with place(fetch_timeout_s=0.2) as here:
        here.web.answers["/a"] = drip
        error = await here.failure("/a")
    assert error.reason_name == "FETCH_UNAVAILABLE"
    assert error.retry_after_s is not None
    assert here.counted("unavailable") == 1


async def test_the_callers_deadline_ends_it_too_and_a_wait_for_a_place_counts() -> None:
    arrived = asyncio.Event()

    async def hold(writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await asyncio.Event().wait()

    async with place(fetch_at_once=1) as here:
        here.web.answers |= {"/hold": hold, "/a": response(PNG)}
        holding = asyncio.create_task(here.get("/hold"))
        await arrived.wait()
        error = await here.failure("/a", timeout_s=0.1)
        assert here.web.connections == 1
        holding.cancel()
        await asyncio.wait([holding])
        assert await here.get("/a") == PNG
    assert error.reason_name == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (response(b"no", status="404 Not Found"), "FETCH_FAILED"),
        (response(b"", status="204 No Content"), "FETCH_FAILED"),
        (response(b"", status="302 Found"), "FETCH_FAILED"),
        (response(b"", status="503 Busy"), "FETCH_UNAVAILABLE"),
        (response(b"<html>", kind="text/html"), "FETCH_FAILED"),
        (response(b"{}", kind="application/json"), "FETCH_FAILED"),
        (response(gzip.compress(bytes(10**6)), "Content-Encoding: gzip"), "FETCH_FAILED"),
        (response(b"", f"X: {'y' * 200_000}"), "FETCH_FAILED"),
        (b"220 mail.example ESMTP\r\n\r\n", "FETCH_FAILED"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: gzip\r\n\r\n", "FETCH_FAILED"),
    ],
)
async def test_what_is_no_plain_picture_is_not_taken(answer: bytes, reason: str) -> None:
    async with place() as here:
        here.web.answers["/a"] = answer
        error = await here.failure("/a")
    assert error.reason_name == reason


async def test_a_connection_that_is_cut_or_refused_may_be_tried_again() -> None:
    async def cut(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n123")
        await writer.drain()

    async def silent(writer: asyncio.StreamWriter) -> None:
        return

    async with place() as here:
        here.web.answers |= {"/cut": cut, "/silent": silent}
        assert (await here.failure("/cut")).reason_name == "FETCH_UNAVAILABLE"
        assert (await here.failure("/silent")).reason_name == "FETCH_UNAVAILABLE"
        here.web.port = 1
        assert (await here.failure("/a")).reason_name == "FETCH_UNAVAILABLE"
