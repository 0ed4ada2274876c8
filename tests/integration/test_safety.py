"""The gateway as a process with keys, TLS and mTLS to the services behind it, among clients that mean it no good."""

import asyncio
import contextlib
import hashlib
import json
import resource
import socket
import ssl
import threading
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from likeness.common.v1 import error_pb2
from likeness.embedder.v1 import embedder_pb2_grpc
from likeness.gateway.v1 import gateway_pb2 as pb
from likeness.gateway.v1 import gateway_pb2_grpc
from likeness.indexer.v1 import indexer_pb2_grpc

from chassis.errors import from_rpc_error
from chassis.health import wait_until_serving
from chassis.server import allow_many_connections
from chassis.tls import ListenerTls, of_this_host
from gateway.backends import EMBEDDER
from gateway.indexer_reads import INDEXER
from likeness_client import Client, LikenessError, Security, Term
from tests.certificates import Authority
from tests.processes import Service, eventually, forget_peak, free_port, launch, peak_memory
from tests.unit.gateway.behind import Behind, vector

KEYS = {"reader": "read", "writer": "write", "flood": "write", "root": "admin"}
STREAMS = 10_000
# LIKENESS_INGEST_STREAMS: so many of them are served at once.
PLACES = 16
# Bombs of gzip, sent at once, and what each unpacks to. Whole, they would take 8 GiB.
BOMBS, BOMB_MIB = 16, 512


@dataclass(frozen=True)
class Guarded:
    """A running gateway.

    Attributes:
        service: its process.
        authority: whom clients believe.
        keys: its file of keys.
        http_port: where it speaks HTTP.
    """

    service: Service
    authority: Authority
    keys: Path
    http_port: int

    def client(self, key: str | None, timeout_s: float = 30) -> Client:
        """A client with this key."""
        return Client(self.service.address, timeout=timeout_s, security=Security(key, tls_ca=self.authority.ca))

    @asynccontextmanager
    async def channel(self, *options: tuple[str, int]) -> AsyncIterator[Any]:
        """A connection of its own, without a key."""
        credentials = self.authority.channel().grpc()
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1), *options]
        async with grpc.aio.secure_channel(self.service.address, credentials, options=own) as channel:
            await channel.channel_ready()
            yield gateway_pb2_grpc.SearchServiceStub(channel)


def write_keys(file: Path, **scopes: str) -> None:
    """A file in which everybody's key is the name with "-key" behind it."""
    text = ""
    for name, scope in scopes.items():
        digest = hashlib.sha256(f"{name}-key".encode()).hexdigest()
        text += f'[[key]]\nname = "{name}"\nsha256 = "{digest}"\nscopes = ["{scope}"]\n'
    file.write_text(text)


@contextmanager
def services(tls: ListenerTls) -> Iterator[str]:
    """An embedder and an indexer that take only clients with a certificate, in a thread; yields their address."""
    address: list[str] = []
    started, ended = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        held = Behind()  # type: ignore[abstract]  # only what the gateway calls
        held.put("a", vector(1.0))
        server = grpc.aio.server()
        embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(held, server)
        indexer_pb2_grpc.add_IndexerServiceServicer_to_server(held, server)
        health = health_aio.HealthServicer()
        for name in (EMBEDDER, INDEXER):
            await health.set(name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        address.append(f"localhost:{server.add_secure_port('127.0.0.1:0', tls.grpc())}")
        await server.start()
        started.set()
        await ended.wait()
        await server.stop(0)

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        assert started.wait(30)
        yield address[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("safety")
    authority, inside = Authority(folder), Authority(folder, "inside")
    own, within = authority.sign("gateway", "localhost", "127.0.0.1"), inside.sign("gateway")
    keys, http_port = folder / "keys.toml", free_port()
    write_keys(keys, **KEYS)
    with services(inside.listener(mutual=True)) as behind:
        environment = {
            "LIKENESS_API_KEYS_FILE": str(keys),
            "LIKENESS_TLS_CERT": str(own.certificate),
            "LIKENESS_TLS_KEY": str(own.key),
            "LIKENESS_UPSTREAM_TLS_CA": str(inside.ca),
            "LIKENESS_UPSTREAM_TLS_CERT": str(within.certificate),
            "LIKENESS_UPSTREAM_TLS_KEY": str(within.key),
            "LIKENESS_EMBEDDER_ADDRESS": behind,
            "LIKENESS_INDEXER_ADDRESS": behind,
            "LIKENESS_HTTP_PORT": str(http_port),
            "LIKENESS_MEDIA_URL": str(folder / "media"),
        }
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (min(soft, 1024), hard)
        )  # as in many shells; the gateway asks for more
        service = launch("gateway", environment, "LIKENESS_GATEWAY_PORT", folder)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        try:
            why = wait_until_serving(service.address, 60, of_this_host(environment))
            assert why is None, f"{why}; it wrote:\n{service.log}"
            yield Guarded(service, authority, keys, http_port)
            assert service.stop() == 0, service.log
        finally:
            service.kill()


def gzipped_spaces(mib: int) -> bytes:
    """So many MiB, never held as such."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(b" " * 2**20) for _ in range(mib)) + packer.flush()


def refusal(client: Client) -> str:
    with client, pytest.raises(LikenessError) as caught:
        client.search(Term.text("anything"))
    return caught.value.reason


def test_keys_and_tls_on_every_hop_answer_a_search_and_nothing_else_gets_through(gateway: Guarded) -> None:
    with gateway.client("reader-key") as client:
        assert [hit.item.id for hit in client.search(Term.text("anything")).hits] == ["a"]
    assert refusal(gateway.client(None)) == "KEY_MISSING"
    assert refusal(gateway.client("wrong")) == "KEY_INVALID"
    assert refusal(Client(gateway.service.address, security=Security("reader-key"))) == "GATEWAY_UNREACHABLE"
    with gateway.client("reader-key") as client, pytest.raises(LikenessError) as caught:
        client.delete(["a"])
    assert caught.value.reason == "SCOPE_MISSING"


def test_http_has_the_same_certificate_and_the_same_keys(gateway: Guarded) -> None:
    trusting = gateway.authority.channel().context()
    rpc = "/likeness.gateway.v1.SearchService/CountItems"
    with httpx.Client(
        base_url=f"https://localhost:{gateway.http_port}", verify=trusting, trust_env=False, timeout=30
    ) as http:
        assert http.post(rpc, json={}).status_code == 401
        assert http.post(rpc, json={}, headers={"authorization": "Bearer reader-key"}).status_code == 200
        assert http.get("/healthz").status_code == 200


@pytest.fixture
def rotating(gateway: Guarded) -> Iterator[Guarded]:
    """The gateway, whose file of keys is as it was once the test has ended."""
    yield gateway
    write_keys(gateway.keys, **KEYS)


async def test_a_rotated_key_counts_within_seconds_and_ends_the_open_streams_of_the_old_one(rotating: Guarded) -> None:
    async with rotating.channel() as stub:
        stream: Any = stub.IndexImages(metadata=bearer("writer-key"))
        await stream.write(pb.IndexImagesRequest(start=pb.IndexStart()))
        assert (await stream.read()).HasField("started")

        write_keys(rotating.keys, **{name: scope for name, scope in KEYS.items() if name != "writer"}, new="write")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(30):
                await stream.read()
        assert reason(caught.value) == "KEY_INVALID"
        await stub.CountItems(pb.CountItemsRequest(), metadata=bearer("new-key"), timeout=30)

        complaints = rotating.service.log.count("API keys cannot be used")
        rotating.keys.write_text("")  # nobody is locked out, and nobody let in
        async with asyncio.timeout(30):
            while rotating.service.log.count("API keys cannot be used") == complaints:
                await stub.CountItems(pb.CountItemsRequest(), metadata=bearer("new-key"), timeout=30)
        await stub.CountItems(pb.CountItemsRequest(), metadata=bearer("new-key"), timeout=30)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CountItems(pb.CountItemsRequest(), metadata=bearer("writer-key"), timeout=30)
        assert reason(caught.value) == "KEY_INVALID"


async def test_a_message_above_the_limit_is_refused_and_the_next_one_answered(gateway: Guarded) -> None:
    async with gateway.channel() as stub:
        large = pb.SearchRequest(terms=[pb.Term(text="x" * (65 * 2**20))])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Search(large, metadata=bearer("reader-key"), timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Of a caller without a key no more than the metadata is read.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Search(large, timeout=60)
        assert caught.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED)
        await stub.CountItems(pb.CountItemsRequest(), metadata=bearer("reader-key"), timeout=30)


async def test_bombs_of_gzip_are_refused_by_http_in_bounded_memory(gateway: Guarded) -> None:
    process = psutil.Process(gateway.service.process.pid)
    rpc, bomb = "/likeness.gateway.v1.SearchService/Search", gzipped_spaces(BOMB_MIB)
    assert len(bomb) < 2**20
    sent = {"authorization": "Bearer reader-key", "content-encoding": "gzip"}
    kinds = [{"content-type": f"application/{kind}", **sent} for kind in ("json", "proto")]
    async with httpx.AsyncClient(
        base_url=f"https://localhost:{gateway.http_port}",
        verify=gateway.authority.channel().context(),
        trust_env=False,
        timeout=60,
    ) as http:
        before = forget_peak(process)
        answers = await asyncio.gather(*(http.post(rpc, content=bomb, headers=kinds[n % 2]) for n in range(BOMBS)))
        grown = peak_memory(process) - before
    told = Counter((each.status_code, each.json()["details"][0]["debug"]["reason"]) for each in answers)
    assert set(told) <= {(400, "BATCH_TOO_LARGE"), (429, "OVERLOADED")}
    assert told[(400, "BATCH_TOO_LARGE")] >= BOMBS // 2
    # Two are unpacked at once, each to 64 MiB and no more; to make one piece of them takes as much again.
    assert grown < 400 * 2**20


def test_connections_that_say_nothing_or_half_a_thing_stop_nobody(gateway: Guarded) -> None:
    host, _, port = gateway.service.address.rpartition(":")
    allow_many_connections()
    half = gateway.authority.channel().context()
    half.set_alpn_protocols(["h2"])
    with contextlib.ExitStack() as held:
        for number in range(1500):
            connection = held.enter_context(socket.create_connection((host, int(port)), timeout=30))
            if number % 4 == 1:
                connection.send(b"\x16\x03\x01")  # the beginning of a handshake
            if number % 4 == 2:
                connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")  # without TLS
        for _ in range(20):
            plain = socket.create_connection((host, int(port)), timeout=30)
            encrypted: ssl.SSLSocket = held.enter_context(half.wrap_socket(plain, server_hostname="localhost"))
            encrypted.send(b"PRI * HTTP/2.0\r\n")  # and no more of it
        with gateway.client("reader-key") as client:
            assert [hit.item.id for hit in client.search(Term.text("anything")).hits] == ["a"]


async def test_ten_thousand_streams_at_once_are_refused_with_a_reason_while_others_are_answered(
    gateway: Guarded,
) -> None:
    process = psutil.Process(gateway.service.process.pid)
    before = process.memory_info().rss
    async with contextlib.AsyncExitStack() as stack:
        other = await stack.enter_async_context(gateway.channel())
        flood: list[asyncio.Task[str]] = []
        for _ in range(10):
            stub = await stack.enter_async_context(gateway.channel())
            calls = [stub.IndexImages(metadata=bearer("flood-key")) for _ in range(STREAMS // 10)]
            flood += [asyncio.create_task(ending(call)) for call in calls]
            await other.CountItems(pb.CountItemsRequest(), metadata=bearer("reader-key"), timeout=60)
        # All but those that got a place, which the gateway holds open for a while.
        endings = Counter[str]()
        for ended in asyncio.as_completed(flood, timeout=90):
            endings[await ended] += 1
            if endings.total() == STREAMS - PLACES:
                break
        grown = process.memory_info().rss - before
        await other.CountItems(pb.CountItemsRequest(), metadata=bearer("reader-key"), timeout=60)
        for task in flood:
            task.cancel()
        await asyncio.wait(flood)
    assert endings["OVERLOADED"] >= 0.9 * STREAMS
    assert set(endings) <= {"OVERLOADED", "DEADLINE_EXCEEDED"}
    assert grown < 100 * 2**20


def test_the_log_names_the_key_and_holds_none(gateway: Guarded) -> None:
    with gateway.client("root-key") as client, pytest.raises(LikenessError):
        client.search(Term.text("a"), collection='no\nname", "forged": "yes')

    def told() -> list[dict[str, Any]]:
        return [json.loads(line) for line in gateway.service.log.splitlines() if line.startswith("{")]

    # The line is written when nothing is left of the call, a moment after its answer.
    assert eventually(lambda: any(line.get("key") == "root" for line in told()))
    assert [line["reason"] for line in told() if line.get("key") == "root"] == ["FIELD_INVALID"]
    assert not any("forged" in line for line in told())
    assert not any(f"{name}-key" in gateway.service.log for name in (*KEYS, "new"))


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def reason(error: grpc.aio.AioRpcError) -> str:
    return from_rpc_error(error, error_pb2.REASON_UNSPECIFIED, "").reason_name


async def ending(call: Any) -> str:
    """The reason for which a stream fails."""
    try:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        return reason(caught.value)
    finally:
        call.cancel()
