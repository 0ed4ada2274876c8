"""Who watches a service's health: each by itself, however slow it reads. A real server on loopback."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.calls import Calls
from chassis.interceptor import CallInterceptor
from chassis.readiness import LIVE, Readiness
from tests.unit.chassis.stingy import HEADERS, connected

SERVICE = "likeness.embedder.v1.EmbedderService"
WATCH = "/grpc.health.v1.Health/Watch"
Answer = health_pb2.HealthCheckResponse
SERVES, SERVES_NOT, UNKNOWN = Answer.SERVING, Answer.NOT_SERVING, Answer.SERVICE_UNKNOWN


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Readiness, int]]:
    readiness = Readiness(SERVICE)
    await readiness.set(True, "test")
    server = grpc.aio.server(interceptors=[CallInterceptor(Calls(readiness))])
    health_pb2_grpc.add_HealthServicer_to_server(readiness.health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with asyncio.timeout(60):
        yield readiness, port
    await server.stop(0)


@asynccontextmanager
async def reading(port: int) -> AsyncIterator[Any]:
    """Of a client that reads what it is sent."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def rest(watch: Any) -> list[int]:
    """The states that follow, until the server ends the stream."""
    told = []
    while (answer := await watch.read()) is not grpc.aio.EOF:
        told.append(answer.status)
    return told


def states(messages: list[bytes]) -> list[int]:
    return [Answer.FromString(message).status for message in messages]


@pytest.mark.parametrize("name", ["", SERVICE, LIVE])
async def test_a_client_that_reads_nothing_holds_up_neither_readiness_nor_other_watchers(name: str) -> None:
    asked = health_pb2.HealthCheckRequest(service=name)
    async with serving() as (readiness, port), connected(port) as stingy, reading(port) as stub:
        await stingy.call(WATCH, asked.SerializeToString())
        await stingy.received(HEADERS)  # so its first state is under way
        watch = stub.Watch(asked)
        assert (await watch.read()).status == SERVES
        await readiness.set(False, "test")
        assert (await stub.Check(asked)).status == (SERVES if name == LIVE else SERVES_NOT)
        await readiness.stop()
        assert await rest(watch) == ([] if name == LIVE else [SERVES_NOT])


async def test_a_client_that_reads_late_sees_the_state_of_then_and_the_end() -> None:
    async with serving() as (readiness, port), connected(port) as stingy:
        stream = await stingy.call(WATCH)
        await stingy.received(HEADERS)
        for ready in (False, True):
            await readiness.set(ready, "test")
        await readiness.stop()
        await stingy.give(stream, 1000)
        assert states(await stingy.rest(stream)) == [SERVES, SERVES_NOT]


async def test_who_watches_when_the_service_stops_sees_its_state_and_the_end() -> None:
    asked = health_pb2.HealthCheckRequest(service=SERVICE)
    async with serving() as (readiness, port), reading(port) as stub:
        watch = stub.Watch(asked)
        assert (await watch.read()).status == SERVES
        await readiness.stop()
        assert await rest(watch) == [SERVES_NOT]
        assert await rest(stub.Watch(asked)) == [SERVES_NOT]


class Asked:
    """A request that tells when it is let go."""

    def __init__(self, encoded: bytes) -> None:
        self.service = health_pb2.HealthCheckRequest.FromString(encoded).service
        kept.add(self)


kept = weakref.WeakSet[Asked]()


def health_of(readiness: Readiness) -> grpc.GenericRpcHandler:
    rpcs = {
        "Watch": grpc.unary_stream_rpc_method_handler(readiness.health.Watch, Asked, Answer.SerializeToString),
        "Check": grpc.unary_unary_rpc_method_handler(readiness.health.Check, Asked, Answer.SerializeToString),
    }
    return grpc.method_handlers_generic_handler("grpc.health.v1.Health", rpcs)


async def test_a_name_that_nobody_knows_is_unknown_and_is_not_kept() -> None:
    readiness = Readiness(SERVICE)
    await readiness.set(True, "test")
    server = grpc.aio.server(interceptors=[CallInterceptor(Calls(readiness))])
    server.add_generic_rpc_handlers([health_of(readiness)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gc.collect()
    gc.disable()
    try:
        async with asyncio.timeout(60), reading(port) as stub:
            asked = health_pb2.HealthCheckRequest(service="x" * 2**20)
            watch = stub.Watch(asked)
            assert (await watch.read()).status == UNKNOWN
            assert not kept
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Check(asked)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            await server.stop(0)
            assert not kept
    finally:
        gc.enable()
        await server.stop(0)


async def test_all_states_are_told_at_once() -> None:
    async with serving() as (readiness, port), reading(port) as stub:
        await readiness.set(False, "test")
        listed = (await stub.List(health_pb2.HealthListRequest())).statuses  # type: ignore[attr-defined]
    assert {name: each.status for name, each in listed.items()} == {"": SERVES_NOT, SERVICE: SERVES_NOT, LIVE: SERVES}
