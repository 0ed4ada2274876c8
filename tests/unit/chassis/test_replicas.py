"""Which replica a call goes to, and what becomes of it where that one, or DNS, changes its mind."""

import asyncio
import time
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from chassis import replicas
from chassis.channel import connect
from chassis.replicas import Replicas, addresses
from tests.certificates import Authority

READY, FAILING = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Channel:
    """A channel that is none, and at the same time what makes calls on it; they are held while it is told to."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.state = READY
        self.code: grpc.StatusCode | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.asked: list[dict[str, Any]] = []
        self.closed = False

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.state

    async def method(self, request: str, **options: Any) -> str:
        self.asked.append(options)
        await self.open.wait()
        if self.code is not None:
            raise grpc.aio.AioRpcError(self.code, grpc.aio.Metadata(), grpc.aio.Metadata())
        return self.target

    async def close(self) -> None:
        self.closed = True


class Service:
    """Replicas at addresses that the test says, each with one connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *found: str) -> None:
        self.found = list(found)
        self.unknown = False
        self.whole = Channel("whole")
        self.channels: dict[str, Channel] = {}
        monkeypatch.setattr(replicas, "addresses", self._look)
        monkeypatch.setattr(replicas, "_LOOK_AGAIN_S", 0.0)
        whole = cast(grpc.aio.Channel, self.whole)
        self.replicas = Replicas("service:1", lambda channel: cast(Channel, channel), whole, self._connect, 1)

    async def ask(self, **options: Any) -> str:
        """A call; what was found before it, or in the one before, is what it can go to."""
        answer = await self.replicas.call(lambda stub: stub.method, "question", timeout=60, **options)
        await asyncio.sleep(0)  # to the look at the addresses that it began
        return answer

    async def _look(self, address: str) -> dict[str, str | None]:
        assert address == "service:1"
        if self.unknown:
            raise OSError("no such name")
        return dict.fromkeys(self.found)

    def _connect(self, target: str, authority: str | None) -> grpc.aio.Channel:
        self.channels[target] = Channel(target)
        return cast(grpc.aio.Channel, self.channels[target])


async def test_a_call_goes_to_the_address_where_the_fewest_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch, "a", "b")
    assert await service.ask() == "whole", "nothing is known yet"
    assert {await service.ask(), await service.ask()} == {"a", "b"}

    service.channels["a"].open.clear()
    asked = asyncio.gather(*[service.ask() for _ in range(2)])
    await asyncio.sleep(0)
    assert [await service.ask() for _ in range(20)] == ["b"] * 20
    service.channels["a"].open.set()
    assert set(await asked) == {"a", "b"}


async def test_one_that_is_not_ready_gets_no_calls_and_where_none_is_all_are_asked_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service(monkeypatch, "a", "b")
    await service.ask()
    service.channels["a"].state = FAILING
    assert [await service.ask() for _ in range(4)] == ["b"] * 4
    service.channels["b"].state = FAILING
    assert await service.ask(wait_for_ready=True) == "whole"
    assert service.whole.asked[-1]["wait_for_ready"]
    assert service.channels["a"].asked == []


async def test_what_is_unavailable_at_one_is_asked_of_all_in_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service(monkeypatch, "a")
    await service.ask()
    service.channels["a"].code = grpc.StatusCode.UNAVAILABLE
    began = time.monotonic()
    assert await service.ask() == "whole"
    assert 60 - (time.monotonic() - began) <= service.whole.asked[-1]["timeout"] < 60
    assert len(service.channels["a"].asked) == 1

    asked = len(service.whole.asked)
    service.channels["a"].code = grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.ask()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(service.whole.asked) == asked


async def test_new_addresses_get_calls_and_those_that_are_gone_end_theirs_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service(monkeypatch, "a")
    await service.ask()
    gone = service.channels["a"]
    gone.open.clear()
    service.found = ["b"]
    last = asyncio.create_task(service.ask())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await service.ask() == "b"
    assert not gone.closed
    gone.open.set()
    assert await last == "a"
    assert await service.ask() == "b"
    assert gone.closed

    service.unknown = True
    assert [await service.ask() for _ in range(3)] == ["b"] * 3, "those known last, where the name is not known"


async def test_all_are_closed_those_that_are_gone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch, "a", "b")
    await service.ask()
    service.channels["a"].open.clear()
    held = [asyncio.create_task(service.ask()) for _ in range(2)]
    await asyncio.sleep(0)
    service.found = ["b"]
    assert await service.ask() == "b"
    await service.replicas.close()
    assert service.whole.closed
    assert all(channel.closed for channel in service.channels.values())
    service.channels["a"].open.set()
    await asyncio.gather(*held)


@pytest.mark.parametrize(
    ("address", "targets"),
    [
        ("127.0.0.1:7", {"ipv4:127.0.0.1:7": "127.0.0.1:7"}),
        ("dns:///127.0.0.1:7", {"ipv4:127.0.0.1:7": "127.0.0.1:7"}),
        ("[::1]:7", {"ipv6:[::1]:7": "[::1]:7"}),
        ("ipv4:127.0.0.1:7,127.0.0.2:8", {"ipv4:127.0.0.1:7": None, "ipv4:127.0.0.2:8": None}),
        ("ipv6:[::1]:7", {"ipv6:[::1]:7": None}),
        ("unix:/run/x.sock", {"unix:/run/x.sock": None}),
        ("unix:///run/x:1", {"unix:///run/x:1": None}),
        ("dns://8.8.8.8/host:7", {"dns://8.8.8.8/host:7": None}),
        ("xds:///service:7", {"xds:///service:7": None}),
    ],
)
async def test_what_an_address_stands_for(address: str, targets: dict[str, str | None]) -> None:
    assert await addresses(address) == targets


async def test_a_name_stands_for_its_addresses_which_go_by_that_name() -> None:
    found = await addresses("localhost:7")
    assert found["ipv4:127.0.0.1:7"] == "localhost:7"


async def test_with_tls_a_certificate_needs_the_name_in_the_address_and_not_the_number(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.sign("named", "service.test")
    server = grpc.aio.server()
    health = health_aio.HealthServicer()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    credentials = grpc.ssl_server_credentials([(own.key.read_bytes(), own.certificate.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    for name, believed in (("service.test", True), ("other.test", False)):
        channel = connect(
            f"ipv4:127.0.0.1:{port}",
            "grpc.health.v1.Health",
            (),
            1,
            "interactive",
            tls=authority.channel(),
            authority=f"{name}:{port}",
        )
        check = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
            health_pb2.HealthCheckRequest(), timeout=20
        )
        if believed:
            assert (await check).status == health_pb2.HealthCheckResponse.SERVING
        else:
            with pytest.raises(grpc.aio.AioRpcError, match=r"CERTIFICATE|[Pp]eer|verif"):
                await check
        await channel.close()
    await server.stop(0)
