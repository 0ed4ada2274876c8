"""TLS of listeners and channels: who gets through, and what the others are told. Real servers on loopback."""

import asyncio
import datetime
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from prometheus_client import CollectorRegistry

from chassis import health, metrics
from chassis.channel import connect
from chassis.tls import ChannelTls, ListenerTls, TlsError, as_it_shows, name_of, of_this_host
from tests.certificates import Authority
from tests.processes import ROOT, free_port

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def listening(tls: ListenerTls | None, port: int = 0) -> AsyncIterator[str]:
    server = grpc.aio.server()
    servicer = health_aio.HealthServicer()
    await servicer.set("", SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    where = f"127.0.0.1:{port}"
    port = server.add_insecure_port(where) if tls is None else server.add_secure_port(where, tls.grpc())
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def ask(address: str, tls: ChannelTls | None) -> str:
    """SERVING, or the code of the failure."""
    async with connect(address, "grpc.health.v1.Health", (), 4, "interactive", tls=tls) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=30)  # type: ignore[attr-defined]
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def test_a_client_that_believes_the_authority_gets_through(authority: Authority) -> None:
    async with listening(authority.listener()) as address:
        assert await ask(address, authority.channel()) == "SERVING"


async def test_plaintext_gets_nothing_from_a_tls_port_and_tls_nothing_from_a_plain_one(authority: Authority) -> None:
    async with listening(authority.listener()) as address:
        assert await ask(address, None) == "UNAVAILABLE"
        assert await ask(address, authority.channel()) == "SERVING"  # and the port outlives it
    async with listening(None) as address:
        assert await ask(address, authority.channel()) == "UNAVAILABLE"


async def test_an_expired_certificate_is_not_believed(authority: Authority) -> None:
    async with listening(authority.listener(expires=-datetime.timedelta(minutes=5))) as address:
        assert await ask(address, authority.channel()) == "UNAVAILABLE"


async def test_a_server_of_another_authority_or_of_another_name_is_not_believed(
    authority: Authority, tmp_path: Path
) -> None:
    async with listening(Authority(tmp_path, "another").listener()) as address:
        assert await ask(address, authority.channel()) == "UNAVAILABLE"
    elsewhere = authority.sign("elsewhere", "elsewhere.example")
    async with listening(ListenerTls(elsewhere.certificate, elsewhere.key)) as address:
        assert await ask(address, authority.channel()) == "UNAVAILABLE"


async def test_with_mutual_tls_only_clients_with_a_certificate_of_the_authority_get_through(
    authority: Authority, tmp_path: Path
) -> None:
    wrong, expired = Authority(tmp_path, "another").sign("client"), authority.sign("late", expires=-ONE_MINUTE)
    async with listening(authority.listener(mutual=True)) as address:
        assert await ask(address, authority.channel()) == "UNAVAILABLE"
        assert await ask(address, authority.channel(wrong)) == "UNAVAILABLE"
        assert await ask(address, authority.channel(expired)) == "UNAVAILABLE"
        assert await ask(address, None) == "UNAVAILABLE"
        assert await ask(address, authority.channel(authority.sign("client"))) == "SERVING"


ONE_MINUTE = datetime.timedelta(minutes=1)


async def test_the_health_check_speaks_tls_with_what_the_service_itself_has(
    authority: Authority, tmp_path: Path
) -> None:
    made = authority.sign("gateway", "gateway.example")  # not the address that it asks
    variables = {"LIKENESS_TLS_CERT": str(made.certificate), "LIKENESS_TLS_KEY": str(made.key)}
    async with listening(ListenerTls(made.certificate, made.key, authority.ca)) as address:
        own = of_this_host(variables)
        assert await asyncio.to_thread(health.serving, address, 30, own) is None
        assert await asyncio.to_thread(health.wait_until_serving, address, 30, own) is None
        command = [sys.executable, "-m", "chassis.health", address]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LIKENESS_")}
        told = await asyncio.to_thread(
            subprocess.run, command, env=environment | variables, cwd=ROOT, timeout=60, capture_output=True
        )
        assert told.returncode == 0, told.stderr
        other = Authority(tmp_path, "another").sign("gateway", "gateway.example")
        assert name_of(address, ChannelTls(other.certificate, other.certificate, other.key)) is None
    assert of_this_host({}) is None


async def test_waiting_for_a_service_that_does_not_listen_yet_finds_its_name_later(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = authority.sign("gateway", "gateway.example")  # not the address that it asks
    tls = ListenerTls(made.certificate, made.key)
    loop, tried, port = asyncio.get_running_loop(), asyncio.Event(), free_port()

    def told(address: str, tls: ChannelTls) -> str | None:
        name = name_of(address, tls)
        loop.call_soon_threadsafe(tried.set)
        return name

    monkeypatch.setattr(health, "name_of", told)
    own = ChannelTls(made.certificate, made.certificate, made.key)
    waiting = asyncio.create_task(asyncio.to_thread(health.wait_until_serving, f"127.0.0.1:{port}", 20, own))
    await tried.wait()
    async with listening(tls, port):
        assert await waiting is None


@pytest.mark.parametrize("mutual", [False, True])
def test_metrics_are_shown_by_https_and_a_silent_client_stops_nobody(authority: Authority, mutual: bool) -> None:
    endpoint = metrics.serve("127.0.0.1", 0, CollectorRegistry(), tls=authority.listener(mutual=mutual))
    assert endpoint is not None
    where = f"https://localhost:{endpoint.port}/metrics"
    trusting = authority.channel(authority.sign("client") if mutual else None).context()
    with socket.create_connection(("127.0.0.1", endpoint.port)):  # and says nothing
        with httpx.Client(trust_env=False, timeout=30, verify=trusting) as http:
            assert http.get(where).status_code == 200
        with httpx.Client(trust_env=False, timeout=30, verify=authority.channel().context()) as http:
            if mutual:
                with pytest.raises(httpx.TransportError):
                    http.get(where)
            else:
                assert http.get(where).status_code == 200
        with httpx.Client(trust_env=False, timeout=30) as http, pytest.raises(httpx.TransportError):
            http.get(where.replace("https", "http"))
        endpoint.stop()


def test_files_that_are_no_certificates_or_do_not_fit_are_named(authority: Authority, tmp_path: Path) -> None:
    one, other = authority.sign("one", "localhost"), authority.sign("other", "localhost")
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    bad: list[ListenerTls | ChannelTls] = [
        ListenerTls(nonsense, one.key),
        ListenerTls(one.certificate, other.key),
        ListenerTls(one.certificate, tmp_path / "none.key"),
        ListenerTls(one.certificate, one.key, nonsense),
        ChannelTls(nonsense),
        ChannelTls(tmp_path / "none.pem"),
        ChannelTls(authority.ca, one.certificate, other.key),
    ]
    for tls in bad:
        with pytest.raises(TlsError, match=r"\.(pem|key)"):
            tls.grpc()


def test_http_speaks_nothing_older_than_tls_1_2(authority: Authority) -> None:
    assert authority.listener().context().minimum_version >= ssl.TLSVersion.TLSv1_2


def test_nothing_listens_where_the_name_is_asked_for(authority: Authority) -> None:
    assert name_of(f"127.0.0.1:{free_port()}", authority.channel()) is None


async def checked(address: str, variables: dict[str, str]) -> tuple[int, str]:
    """The exit code of the health check by the command line, and what it wrote."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LIKENESS_")} | variables
    command = [sys.executable, "-m", "chassis.health", address]
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


@pytest.mark.parametrize("mutual", [False, True])
async def test_the_health_check_outlives_the_renewal_of_the_certificate_that_the_service_has_read(
    authority: Authority, mutual: bool
) -> None:
    made = authority.sign("gateway", "gateway.example")
    variables = {"LIKENESS_TLS_CERT": str(made.certificate), "LIKENESS_TLS_KEY": str(made.key)}
    async with listening(ListenerTls(made.certificate, made.key, authority.ca if mutual else None)) as address:
        before = made.certificate.read_bytes()
        assert authority.sign("gateway", "gateway.example") == made
        assert made.certificate.read_bytes() != before
        assert await checked(address, variables) == (0, "")
        own = of_this_host(variables)
        assert await asyncio.to_thread(health.wait_until_serving, address, 30, own) is None


async def test_the_health_check_fails_once_the_certificate_that_is_shown_has_expired(authority: Authority) -> None:
    made = authority.sign("gateway", "localhost", expires=-ONE_MINUTE)
    variables = {"LIKENESS_TLS_CERT": str(made.certificate), "LIKENESS_TLS_KEY": str(made.key)}
    async with listening(ListenerTls(made.certificate, made.key)) as address:
        authority.sign("gateway", "localhost")
        code, said = await checked(address, variables)
    assert code == 1
    assert "certificate has expired" in said


async def test_elsewhere_the_health_check_believes_the_file_alone(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = authority.sign("gateway", "localhost", "127.0.0.1")
    own = ChannelTls(made.certificate, made.certificate, made.key)
    async with listening(ListenerTls(made.certificate, made.key)) as address:
        authority.sign("gateway", "localhost", "127.0.0.1")
        monkeypatch.setattr(health, "is_loopback", lambda _host: False)
        told = await asyncio.to_thread(health.serving, address, 5, own)
    assert told is not None
    assert "its certificate is not believed" in told


async def test_the_certificate_of_what_does_not_listen_or_speaks_no_tls_is_the_files(authority: Authority) -> None:
    own = authority.channel(authority.sign("gateway"))
    assert as_it_shows(f"127.0.0.1:{free_port()}", own) is own
    async with listening(None) as address:
        assert await asyncio.to_thread(as_it_shows, address, own) is own


# What gRPC's library writes by itself is read of a process that has loaded it as a service does.
SHAKEN = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from chassis.tls import ListenerTls
import grpc
server = grpc.server(ThreadPoolExecutor(1))
port = server.add_secure_port("127.0.0.1:0", ListenerTls(Path(sys.argv[1]), Path(sys.argv[2])).grpc())
server.start()
for _ in range(10):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n" * 10)
        while True:
            try:
                if not connection.recv(4096):
                    break
            except ConnectionError:
                break
server.stop(0).wait()
"""


async def test_failed_handshakes_write_nothing(authority: Authority) -> None:
    made = authority.sign("server", "localhost")
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    command = [sys.executable, "-c", SHAKEN, str(made.certificate), str(made.key)]
    process = await asyncio.create_subprocess_exec(*command, env=environment, cwd=ROOT, stderr=subprocess.PIPE)
    _, said = await process.communicate()
    assert (process.returncode, said) == (0, b"")
