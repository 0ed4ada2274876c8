"""From SIGTERM to the end: what is answered meanwhile, for how long, and what ends it sooner."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from likeness.embedder.v1 import embedder_pb2_grpc

from chassis import health, server
from chassis.calls import Calls
from chassis.readiness import LIVE, Readiness
from chassis.settings import ServiceSettings
from chassis.stopping import HURRY
from tests.processes import free_port
from tests.unit.chassis.guarded import GET, SERVICE, Servicer, refusal

LONG_S = 3600.0
SERVES, SERVES_NOT = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Answering:
    """A service that answers, once it may start."""

    name = SERVICE

    def __init__(self) -> None:
        self.may_start = asyncio.Event()
        self.ready = asyncio.Event()
        self.stopped = False

    def calls(self, readiness: Readiness) -> Calls:
        self.readiness = readiness
        return Calls(readiness)

    def register(self, server: grpc.aio.Server) -> None:
        embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(Servicer(), server)

    async def start(self, readiness: Readiness) -> None:
        await self.may_start.wait()

    async def stop(self) -> None:
        self.stopped = True


class Running:
    """A service in this process, which its signals reach."""

    def __init__(self, delay_s: float, replica: int | None) -> None:
        self.service = Answering()
        self.settings = ServiceSettings(port=free_port(), stop_delay_s=delay_s)
        role = server.Role(ready=self.service.ready.set, replica=replica)
        self.ended = asyncio.create_task(server._serve(self.settings, self.service, role))

    async def ready(self) -> None:
        self.service.may_start.set()
        await self.service.ready.wait()

    async def call(self) -> Any:
        """An answer, over a connection of its own."""
        async with self._channel() as channel:
            stub: Any = embedder_pb2_grpc.EmbedderServiceStub(channel)
            return await stub.GetModel(GET, timeout=30)

    async def health(self, name: str = "") -> int:
        async with self._channel() as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            return int((await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)).status)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[Any]:
        """What somebody sees who watches its health and serves accordingly."""
        async with self._channel() as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            yield stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))

    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.settings.address, options=[("grpc.use_local_subchannel_pool", 1)])


@asynccontextmanager
async def running(delay_s: float, replica: int | None = None) -> AsyncIterator[Running]:
    made = Running(delay_s, replica)
    try:
        async with asyncio.timeout(60):
            yield made
    finally:
        made.ended.cancel()
        await asyncio.wait({made.ended})


def tell(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_new_calls_are_answered_after_sigterm_until_a_second_signal(second: signal.Signals) -> None:
    async with running(LONG_S) as served:
        await served.ready()
        async with served.watched() as watch:
            assert (await watch.read()).status == SERVES
            tell(signal.SIGTERM)
            assert (await watch.read()).status == SERVES_NOT

            for _ in range(3):
                await served.call()
            assert [await served.health(), await served.health(LIVE)] == [SERVES_NOT, SERVES]
            await served.service.readiness.set(True, "the store is back")
            assert await served.health() == SERVES_NOT
            assert not served.service.stopped

            tell(second)
            assert await watch.read() is grpc.aio.EOF
        assert await served.ended == 0
        assert served.service.stopped
        assert (await refusal(served.call())).code() is grpc.StatusCode.UNAVAILABLE


async def test_the_delay_ends_by_itself() -> None:
    async with running(0.1) as served:
        await served.ready()
        now = asyncio.get_running_loop().time
        began = now()
        tell(signal.SIGTERM)
        assert await served.ended == 0
        assert now() - began >= 0.1


async def test_without_a_delay_one_signal_will_do() -> None:
    async with running(0) as served:
        await served.ready()
        tell(signal.SIGTERM)
        assert await served.ended == 0


async def test_a_service_that_cannot_go_on_does_not_wait_for_the_delays_end() -> None:
    async with running(LONG_S) as served:
        await served.ready()
        async with served.watched() as watch:
            assert (await watch.read()).status == SERVES
            tell(signal.SIGTERM)
            assert (await watch.read()).status == SERVES_NOT
            await served.service.readiness.give_up("another writer has taken over")
        assert await served.ended == 1


async def test_a_service_that_gives_up_stops_without_a_delay() -> None:
    async with running(LONG_S) as served:
        await served.ready()
        await served.service.readiness.give_up("another writer has taken over")
        assert await served.ended == 1


async def test_a_service_that_gives_up_while_it_starts_stops() -> None:
    async with running(LONG_S) as served:
        await served.health()  # so it listens, and starts
        await served.service.readiness.give_up("another writer has taken over")
        assert await served.ended == 1
        assert not served.service.ready.is_set()
        assert served.service.stopped


async def test_a_service_that_has_given_up_is_never_ready_again() -> None:
    readiness = Readiness(SERVICE)
    await readiness.give_up("another writer has taken over")
    await readiness.set(True, "warmed up")
    assert (readiness.serving, readiness.why) == (False, "another writer has taken over")


async def test_a_service_that_is_starting_is_live_and_stops_without_a_delay() -> None:
    async with running(LONG_S) as served:
        address = served.settings.address
        assert await asyncio.to_thread(health.serving, address, 30, None, LIVE) is None
        assert await asyncio.to_thread(health.wait_until_serving, address, 30, None, LIVE) is None
        assert await asyncio.to_thread(health.serving, address, 30) == "NOT_SERVING"
        tell(signal.SIGTERM)
        assert await served.ended == 0
        assert not served.service.ready.is_set()


async def test_one_of_several_processes_is_hurried_by_its_parent_and_by_nobody_else() -> None:
    async with running(LONG_S, replica=0) as served:
        await served.ready()
        async with served.watched() as watch:
            assert (await watch.read()).status == SERVES
            tell(signal.SIGTERM)
            assert (await watch.read()).status == SERVES_NOT
            for again in (signal.SIGTERM, signal.SIGINT):  # as from whoever ends a whole group
                tell(again)
                for _ in range(3):
                    await served.call()
            tell(HURRY)
            assert await watch.read() is grpc.aio.EOF
        assert await served.ended == 0
