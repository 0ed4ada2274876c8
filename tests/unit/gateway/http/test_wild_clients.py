"""Clients that are slow, many, or no HTTP clients at all: each gets what it deserves, and the next one its answer."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from chassis.tls import ListenerTls
from gateway.http import answers, server
from tests.certificates import Authority
from tests.unit.gateway.behind import Behind, vector
from tests.unit.gateway.http.serving import SERVICE, Gateway, serving

COUNT = f"POST {SERVICE}/CountItems HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

STREAM = COUNT.replace("CountItems", "FindDuplicates").replace("application/json", "application/connect+json")


def library() -> Behind:
    services = Behind()  # type: ignore[abstract]  # only what the gateway calls
    services.put("a", vector(1))
    return services


async def answered(gateway: Gateway, count: int = 1) -> None:
    """A usual call is answered."""
    assert (await gateway.call("CountItems", {})).json() == {"count": str(count)}


def with_headers(head: str, more: bytes) -> bytes:
    """A whole request, with these lines more in its head, after which the connection is closed."""
    return head.encode() + b"Connection: close\r\n" + more + b"\r\nContent-Length: 2\r\n\r\n{}"


def refused_as_invalid(answer: bytes) -> None:
    """It is refused by name, as a wrong field in a message is."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400"), answer
    assert b"content-type: application/json" in head.lower()
    told = json.loads(body)
    assert told["code"] == "invalid_argument"
    assert told["details"][0]["debug"]["reason"] == "FIELD_INVALID"
    assert told["details"][1]["debug"]["fieldViolations"]


async def until(registry: CollectorRegistry, name: str, value: float, **labels: str) -> None:
    """Waits until a figure is this."""
    async with asyncio.timeout(60):
        while registry.get_sample_value(f"likeness_gateway_{name}", labels) != value:  # noqa: ASYNC110  (no event tells)
            await asyncio.sleep(0.01)


async def test_headers_that_do_not_come_to_their_end_close_the_connection() -> None:
    async with serving(library(), http_headers_s=1) as gateway:
        begun = COUNT.encode()
        whole = begun + b"Content-Length: 2\r\n\r\n{}"
        silent, cut, after_a_whole_one = await asyncio.gather(
            gateway.raw(b""), gateway.raw(begun), gateway.raw(whole + begun)
        )
        await answered(gateway)

    assert silent == cut == b""
    assert after_a_whole_one.startswith(b"HTTP/1.1 200")


async def test_headers_that_drip_close_the_connection_too() -> None:
    async with serving(library(), http_headers_s=1) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)

        async def drip() -> None:
            while True:
                writer.write(b"X")
                await writer.drain()
                await asyncio.sleep(0.02)

        writer.write(COUNT.encode())
        dripping = asyncio.create_task(drip())
        assert await asyncio.wait_for(_to_the_end(reader), 60) == b""
        dripping.cancel()
        await asyncio.wait({dripping})
        await answered(gateway)


async def test_a_body_that_does_not_come_to_its_end_is_answered_with_deadline_exceeded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "LINGER_S", 0.1)
    async with serving(library(), http_body_s=1) as gateway:
        answer = await gateway.raw(f"{COUNT}Content-Length: 100\r\n\r\n{{".encode())
        await answered(gateway)
        ended = {"method": "CountItems", "transport": "http", "code": "DEADLINE_EXCEEDED"}
        counted = gateway.registry.get_sample_value("likeness_gateway_calls_total", ended)

    assert answer.startswith(b"HTTP/1.1 504")
    assert b"deadline_exceeded" in answer
    assert b"DEADLINE_EXCEEDED" in answer
    assert counted == 1


async def test_a_body_above_the_limit_is_refused_before_it_is_read_or_as_soon_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "LINGER_S", 0.1)
    most = 2**20
    async with serving(library(), max_message_mb=1) as gateway:
        announced = await gateway.raw(f"{COUNT}Content-Length: {most + 1}\r\n\r\n".encode())
        chunk = b"%x\r\n%b\r\n" % (most + 1, b" " * (most + 1))
        chunked = await gateway.raw(f"{COUNT}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk)
        nearly = await gateway.call("CountItems", b"{}" + b" " * (most - 2))
        await until(gateway.registry, "http_request_bytes", 0)
        await answered(gateway)

    for answer in (announced, chunked):
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"BATCH_TOO_LARGE" in answer
    assert nearly.status_code == 200


async def test_a_client_that_goes_on_sending_after_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LINGER_S", 0.2)
    async with serving(library()) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(COUNT.replace("application/json", "text/plain").encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 415")
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(60):
                while True:
                    writer.write(b"1\r\nx\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.01)
        await until(gateway.registry, "http_connections", 0)


async def test_bytes_in_flight_are_bounded_and_free_again_when_their_sender_goes() -> None:
    begun = COUNT.encode() + b"Content-Length: 1000000\r\n\r\n" + b" " * 900_000
    async with serving(library(), max_message_mb=1, http_in_flight_mb=1) as gateway:
        _, held = await asyncio.open_connection("127.0.0.1", gateway.port)
        held.write(begun)
        await until(gateway.registry, "http_request_bytes", 900_000)
        refused = await gateway.call("CountItems", b"{}" + b" " * 200_000)
        await answered(gateway)
        held.close()
        await until(gateway.registry, "http_request_bytes", 0)
        taken = await gateway.call("CountItems", b"{}" + b" " * 200_000)

    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["details"][0]["debug"]["reason"] == "OVERLOADED"
    assert taken.status_code == 200


async def test_connections_above_the_most_are_closed_and_leave_the_others_alone() -> None:
    async with serving(library(), http_connections=3) as gateway:
        opened = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(3)]
        await until(gateway.registry, "http_connections", 3)
        fourth = await gateway.raw(b"")
        refused = gateway.registry.get_sample_value("likeness_gateway_http_connections_refused_total")
        opened[0][1].write(COUNT.encode() + b"Content-Length: 2\r\n\r\n{}")
        first = await asyncio.wait_for(opened[0][0].readline(), 60)
        for _, writer in opened:
            writer.close()
        await until(gateway.registry, "http_connections", 0)
        await answered(gateway)

    assert fourth == b""
    assert refused == 1
    assert first.startswith(b"HTTP/1.1 200")


LARGE = b'{"pageSize": 1000, "fields": {"metadata": true}}'


def large_library() -> Behind:
    """Items whose list is some 6 MB: more than the system takes for a client that has little room."""
    services = library()
    for number in range(400):
        services.put(f"{number:04}", vector(1), **{f"key{i}": "x" * 4000 for i in range(4)})
    return services


@asynccontextmanager
async def asking(gateway: Gateway, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    """A client with little room that has asked for a large list, and does not read it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", gateway.port))
    name = None if tls is None else "localhost"
    _, writer = await asyncio.open_connection(sock=client, limit=1024, ssl=tls, server_hostname=name)
    try:
        writer.write(f"{COUNT.replace('CountItems', 'ListItems')}Content-Length: {len(LARGE)}\r\n\r\n".encode() + LARGE)
        yield
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_answer_that_nobody_reads_is_given_up(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "UNREAD_S", 0.2)
    authority = Authority(tmp_path)
    told = with_tls(authority.listener()) if scheme == "https" else {}
    tls = authority.channel().context() if scheme == "https" else None
    async with serving(large_library(), **told) as gateway, asyncio.timeout(60), asking(gateway, tls):
        await until(gateway.registry, "calls_total", 1, method="ListItems", transport="http", code="OK")
        await until(gateway.registry, "http_connections", 0)
        await until(gateway.registry, "http_answer_bytes", 0)


async def test_answers_that_are_not_taken_are_bounded_and_each_holds_its_calls_place() -> None:
    services = large_library()
    async with serving(services, max_message_mb=8, http_in_flight_mb=8) as gateway, asyncio.timeout(60):
        async with asking(gateway):
            await until_held(gateway)
            refused = await gateway.call("ListItems", LARGE)
            await answered(gateway, 401)
            ended = gateway.registry.get_sample_value(
                "likeness_gateway_calls_total", {"method": "ListItems", "transport": "http", "code": "OK"}
            )
        await until(gateway.registry, "http_answer_bytes", 0)
        taken = await gateway.call("ListItems", LARGE)

    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["details"][0]["debug"]["reason"] == "OVERLOADED"
    assert not ended
    assert (taken.status_code, len(taken.json()["items"])) == (200, 401)


async def until_held(gateway: Gateway) -> None:
    """Waits until an answer is held."""
    async with asyncio.timeout(60):
        while not gateway.registry.get_sample_value("likeness_gateway_http_answer_bytes"):  # noqa: ASYNC110  (as above)
            await asyncio.sleep(0.01)


NO_HTTP = [
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    b"\x00" * 5000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 100_000,
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n" + b"Y: b\r\n" * 10_000,
    b"GET /readyz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    COUNT.encode() + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    COUNT.encode() + b"Content-Length: -1\r\n\r\n{}",
    COUNT.encode() + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}",
    COUNT.encode() + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
]


async def test_what_is_no_http_is_refused_and_the_connection_closed() -> None:
    async with serving(library(), http_headers_s=1) as gateway:
        found = await asyncio.gather(*(gateway.raw(sent) for sent in NO_HTTP))
        await answered(gateway)
        await until(gateway.registry, "http_connections", 1)  # our own

    for sent, answer in zip(NO_HTTP, found, strict=True):
        assert answer == b"" or answer.split(b"\r\n")[0].split()[1] in (b"400", b"403", b"501"), sent[:100]


async def test_bytes_in_headers_that_are_no_text_are_the_callers_fault() -> None:
    async with serving(library()) as gateway:
        found = [
            await gateway.raw(with_headers(head, odd))
            for head, odd in (
                (COUNT, b"Content-Encoding: id\xa6\xdantity"),
                (COUNT, b"Connect-Protocol-Version: \xff"),
                (COUNT, b"Connect-Timeout-Ms: \xb2"),
                (STREAM, b"Connect-Content-Encoding: \xff"),
            )
        ]
        other = await gateway.raw(with_headers(COUNT, b"X-Api-Key: \xff\xfe"))

    for answer in found:
        refused_as_invalid(answer)
    assert other.startswith(b"HTTP/1.1 200")


async def test_a_header_that_two_readers_could_read_in_two_ways_is_refused() -> None:
    async with serving(library()) as gateway:
        for head, more in (
            (COUNT, b"Content-Type: application/json"),
            (COUNT, b"Content-Type: application/grpc-web+proto"),
            (COUNT.replace("application/json", "application/grpc-web"), b"Content-Type: application/json"),
            (COUNT.replace("application/json", "application/grpc"), b"Content-Type: application/json"),
            (STREAM.replace("application/connect+json", "text/plain"), b"Content-Type: application/connect+json"),
            (COUNT, b"Content-Encoding: identity\r\nContent-Encoding: gzip"),
            (COUNT, b"Connect-Timeout-Ms: 1000\r\nConnect-Timeout-Ms: 1"),
            (COUNT, b"Connect-Protocol-Version: 1\r\nConnect-Protocol-Version: 7"),
        ):
            refused_as_invalid(await gateway.raw(with_headers(head, more)))
        await answered(gateway)


async def test_another_version_of_the_protocol_is_refused_like_any_wrong_field() -> None:
    async with serving(library()) as gateway:
        for version in (b"7", b"", b"1, 1", b"01"):
            for head in (COUNT, STREAM):
                refused_as_invalid(await gateway.raw(with_headers(head, b"Connect-Protocol-Version: " + version)))
        known = await gateway.raw(with_headers(COUNT, b"Connect-Protocol-Version: 1"))

    assert known.startswith(b"HTTP/1.1 200")


async def test_a_types_case_and_parameters_do_not_matter() -> None:
    async with serving(library()) as gateway:
        for kind in ("Application/JSON", "application/json; charset=utf-8", "APPLICATION/json ;charset=latin-1;x"):
            answer = await gateway.call("CountItems", {}, content_type=kind)
            assert (answer.status_code, answer.json()) == (200, {"count": "1"}), kind


def with_tls(tls: ListenerTls) -> dict[str, Any]:
    return {"tls_cert": tls.certificate, "tls_key": tls.key, "tls_client_ca": tls.client_ca}


async def test_tls_takes_https_and_nothing_else(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with serving(library(), **with_tls(authority.listener())) as gateway:
        url = f"https://127.0.0.1:{gateway.port}/healthz"
        async with httpx.AsyncClient(verify=authority.channel().context(), trust_env=False, timeout=30) as client:
            answer = await client.get(url)
            plain = await gateway.raw(COUNT.encode() + b"Content-Length: 2\r\n\r\n{}")
            async with httpx.AsyncClient(verify=ssl.create_default_context(), trust_env=False, timeout=30) as stranger:
                with pytest.raises(httpx.ConnectError):
                    await stranger.get(url)
            again = await client.get(url)

    assert answer.status_code == again.status_code == 200
    assert b"HTTP/1.1" not in plain


async def test_a_handshake_that_does_not_come_to_its_end_closes_the_connection(tmp_path: Path) -> None:
    tls = Authority(tmp_path).listener()
    async with serving(library(), **with_tls(tls), http_headers_s=0.1) as gateway:
        silent = await gateway.raw(b"")
        begun = await gateway.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        await until(gateway.registry, "http_connections", 0)

    assert silent == begun == b""


async def test_connections_that_have_not_shaken_hands_yet_count_towards_the_most(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with serving(library(), **with_tls(authority.listener()), http_connections=3) as gateway:
        silent = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(3)]
        await until(gateway.registry, "http_connections", 3)
        fourth = await gateway.raw(b"")
        refused = gateway.registry.get_sample_value("likeness_gateway_http_connections_refused_total")
        for _, writer in silent:
            writer.close()
        await until(gateway.registry, "http_connections", 0)
        async with httpx.AsyncClient(verify=authority.channel().context(), trust_env=False, timeout=30) as client:
            answer = await client.get(f"https://127.0.0.1:{gateway.port}/healthz")
            open_now = gateway.registry.get_sample_value("likeness_gateway_http_connections")
        await until(gateway.registry, "http_connections", 0)

    assert fourth == b""
    assert refused == 1
    assert answer.status_code == 200
    assert open_now == 1


async def test_a_gateway_that_stops_waits_for_no_handshake(tmp_path: Path) -> None:
    async with serving(library(), **with_tls(Authority(tmp_path).listener()), drain_s=600) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        await until(gateway.registry, "http_connections", 1)

    assert await asyncio.wait_for(_to_the_end(reader), 60) == b""
    writer.close()


async def test_mutual_tls_wants_a_certificate_of_the_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with serving(library(), **with_tls(authority.listener(mutual=True))) as gateway:
        url = f"https://127.0.0.1:{gateway.port}/healthz"
        shown = authority.channel(authority.sign("client")).context()
        async with httpx.AsyncClient(verify=shown, trust_env=False) as client:
            answer = await client.get(url)
        async with httpx.AsyncClient(verify=authority.channel().context(), trust_env=False) as client:
            with pytest.raises(httpx.TransportError):
                await client.get(url)

    assert answer.status_code == 200


async def _to_the_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:  # it was closed while something was under way to it
        return b""
