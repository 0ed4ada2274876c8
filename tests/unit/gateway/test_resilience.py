"""What the gateway does while a service behind it restarts, and while one of several embedders is slow or away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from likeness.common.v1 import error_pb2, types_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from likeness.indexer.v1 import indexer_pb2

from chassis.errors import LikenessError
from chassis.vectors import to_proto
from gateway.backends import EMBEDDER, Embedder
from gateway.settings import GatewaySettings
from tests.processes import free_port
from tests.unit.gateway.behind import MODEL, vector
from tests.unit.gateway.shelves import shelves

TEXT = [embedder_pb2.EmbedInput(text="a")]


class Health(health_aio.HealthServicer):
    """A health check that knows how many connections have asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.watched = 0
        self.another = asyncio.Event()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        self.watched += 1
        self.another.set()
        await super().Watch(request, context)


class Replica(embedder_pb2_grpc.EmbedderServiceServicer):
    """An embedder with a health check; its calls wait at a gate."""

    def __init__(self) -> None:
        self.calls = 0
        self.open = asyncio.Event()
        self.open.set()
        self.entered = asyncio.Event()
        self.health = Health()

    async def Embed(self, request: Any, context: Any) -> embedder_pb2.EmbedResponse:  # noqa: N802
        self.calls += 1
        self.entered.set()
        await self.open.wait()
        made = to_proto(np.array([1, 0], np.float32))
        return embedder_pb2.EmbedResponse(fingerprint=MODEL, results=[embedder_pb2.EmbedResult(vector=made)])

    async def says(self, serving: bool) -> None:
        answer = health_pb2.HealthCheckResponse
        await self.health.set(EMBEDDER, answer.SERVING if serving else answer.NOT_SERVING)


async def start(replica: Any, port: int = 0, *, shared: bool = False) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", int(shared))])
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(replica, server)
    if isinstance(replica, Replica):
        health_pb2_grpc.add_HealthServicer_to_server(replica.health, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, port


@asynccontextmanager
async def replicas(count: int, *more: int, connections: int = 1) -> AsyncIterator[tuple[list[Replica], Embedder]]:
    """So many embedders that serve, and ``more`` ports, behind so many connections of the gateway to each."""
    told = [Replica() for _ in range(count)]  # type: ignore[abstract]  # only what is called
    servers = []
    for replica in told:
        await replica.says(True)
        servers.append(await start(replica))
    where = ",".join(f"127.0.0.1:{port}" for port in (*(port for _, port in servers), *more))
    embedder = Embedder(GatewaySettings(embedder_address=f"ipv4:{where}", embedder_connections=connections))
    try:
        yield told, embedder
    finally:
        await embedder.close()
        for server, _ in servers:
            await server.stop(0)


@asynccontextmanager
async def sharing_a_port(connections: int) -> AsyncIterator[tuple[list[Replica], Embedder]]:
    """Two embedders on one port, as LIKENESS_WORKERS starts them: the kernel gives each connection to one of them."""
    told = [Replica() for _ in range(2)]  # type: ignore[abstract]  # as above
    servers, port = [], 0
    for replica in told:
        await replica.says(True)
        server, port = await start(replica, port, shared=True)
        servers.append(server)
    embedder = Embedder(GatewaySettings(embedder_address=f"127.0.0.1:{port}", embedder_connections=connections))
    try:
        yield told, embedder
    finally:
        await embedder.close()
        for server in servers:
            await server.stop(0)


async def until_both_are_asked(embedder: Embedder, told: list[Replica], *, bulk: bool = False) -> None:
    async with asyncio.timeout(60):
        while not all(replica.calls for replica in told):
            await embedder.embed(TEXT, 20, bulk=bulk)


async def test_calls_to_the_others_go_on_while_one_replica_is_held() -> None:
    async with replicas(2) as (told, embedder):
        await until_both_are_asked(embedder, told)
        told[0].open.clear()
        calls = [asyncio.create_task(embedder.embed(TEXT, 60)) for _ in range(20)]
        await told[0].entered.wait()
        waiting: set[asyncio.Task[Any]] = set(calls)
        while len(waiting) > 10:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert not told[0].open.is_set(), "ten were answered while the other ten wait"
        told[0].open.set()
        await asyncio.gather(*calls)


async def until_all_are_connected(embedder: Embedder, told: list[Replica]) -> None:
    """Until every connection of the default number, and the one to all replicas, watches each replica's health."""
    async with asyncio.timeout(60):
        await embedder.embed(TEXT, 20)
        for replica in told:
            while replica.health.watched < GatewaySettings().embedder_connections + 1:
                replica.health.another.clear()
                await replica.health.another.wait()
        for _ in range(20):  # each connection hears the answer it asked for
            await embedder.embed(TEXT, 20)


async def test_a_slow_replica_keeps_one_call_waiting_however_many_come_one_after_another() -> None:
    async with replicas(2, connections=GatewaySettings().embedder_connections) as (told, embedder):
        await until_all_are_connected(embedder, told)
        told[0].open.clear()
        waiting = []
        for _ in range(200):
            told[0].entered.clear()
            call = asyncio.create_task(embedder.embed(TEXT, 60))
            held = asyncio.create_task(told[0].entered.wait())
            await asyncio.wait([call, held], return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                waiting.append(call)
            held.cancel()
        told[0].open.set()
        await asyncio.gather(*waiting)
    assert len(waiting) <= 1, "one, while the other has none"


async def test_a_slow_replica_keeps_half_of_those_waiting_who_call_at_once_and_the_others_go_on() -> None:
    callers, answered, enough = 10, 0, asyncio.Event()

    async def call_on_and_on(embedder: Embedder) -> None:
        nonlocal answered
        while not enough.is_set():
            await embedder.embed(TEXT, 60)
            answered += 1
            if answered >= 300:
                enough.set()

    async with replicas(2, connections=GatewaySettings().embedder_connections) as (told, embedder):
        await until_all_are_connected(embedder, told)
        told[0].open.clear()
        before = told[0].calls
        calls = [asyncio.create_task(call_on_and_on(embedder)) for _ in range(callers)]
        async with asyncio.timeout(60):
            await enough.wait()
        assert told[0].calls - before <= callers // 2, "no more than the other has under way"
        told[0].open.set()
        await asyncio.gather(*calls)


@pytest.mark.parametrize("bulk", [False, True])
async def test_processes_that_share_a_port_both_get_calls(bulk: bool) -> None:
    async with sharing_a_port(connections=40) as (told, embedder):  # that all go to one: once in 2 ** 39
        await until_both_are_asked(embedder, told, bulk=bulk)


async def test_a_process_that_says_it_does_not_serve_gets_no_calls_on_a_shared_port_either() -> None:
    async with sharing_a_port(connections=40) as (told, embedder):
        await until_both_are_asked(embedder, told)
        await told[0].says(False)
        quiet = 0
        while quiet < 40:  # the word takes a moment to get there, by each connection
            before = told[0].calls
            await embedder.embed(TEXT, 20)
            quiet = quiet + 1 if told[0].calls == before else 0
        before = told[0].calls
        await asyncio.gather(*[embedder.embed(TEXT, 20) for _ in range(80)])
        assert told[0].calls == before
        await told[0].says(True)
        while told[0].calls == before:
            await embedder.embed(TEXT, 20)


async def test_a_replica_that_says_it_does_not_serve_gets_no_calls_until_it_does() -> None:
    async with replicas(2) as (told, embedder):
        await until_both_are_asked(embedder, told)
        await told[0].says(False)
        quiet = 0
        while quiet < 10:  # the word takes a moment to get there
            before = told[0].calls
            await embedder.embed(TEXT, 20)
            quiet = quiet + 1 if told[0].calls == before else 0
        before = told[0].calls
        for _ in range(20):
            await embedder.embed(TEXT, 20)
        assert told[0].calls == before
        await told[0].says(True)
        while told[0].calls == before:
            await embedder.embed(TEXT, 20)


async def test_a_replica_that_accepts_connections_and_says_nothing_gets_no_calls() -> None:
    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    mute = await asyncio.start_server(nothing, "127.0.0.1", 0)
    async with mute, replicas(1, mute.sockets[0].getsockname()[1]) as (told, embedder):
        for _ in range(20):
            await embedder.embed(TEXT, 20)
        assert told[0].calls == 20


async def test_a_restart_of_the_embedder_is_ridden_out() -> None:
    replica, port = Replica(), free_port()  # type: ignore[abstract]  # as above
    embedder = Embedder(GatewaySettings(embedder_address=f"127.0.0.1:{port}", ride_out_s=60))
    impatient = Embedder(GatewaySettings(embedder_address=f"127.0.0.1:{port}", ride_out_s=0))
    call = asyncio.create_task(embedder.embed(TEXT, 60))
    with pytest.raises(LikenessError) as away:  # by now the first call has failed, too
        await impatient.embed(TEXT, 60)
    await impatient.close()
    await replica.says(True)
    server, _ = await start(replica, port)
    answer = await call
    await embedder.close()
    await server.stop(0)

    assert away.value.reason_name == "EMBEDDER_UNAVAILABLE"
    assert len(answer.results) == 1


@pytest.mark.parametrize("reason", [error_pb2.REASON_NOT_READY, error_pb2.REASON_SHUTTING_DOWN])
async def test_a_call_that_may_be_repeated_is_until_the_indexer_is_back(reason: Any) -> None:
    async with shelves() as (services, _, indexer):
        services.make("images")
        services.store("images", "x", vector(1))
        services.fail["CountItems"] = LikenessError(reason, "not now", retry_after_s=1.0)
        counting = asyncio.create_task(indexer.count(indexer_pb2.CountItemsRequest(collection="images"), 60))
        await services.until_asked("CountItems", 6)  # more often than gRPC tries by itself
        del services.fail["CountItems"]
        assert await counting == 1


async def test_the_callers_deadline_and_the_setting_bound_the_patience() -> None:
    async with shelves(ride_out_s=60) as (services, embedder, indexer):
        services.fail["ListItems"] = services.fail["Embed"] = LikenessError(error_pb2.REASON_NOT_READY, "not now")
        with pytest.raises(LikenessError) as short:
            await indexer.list(indexer_pb2.ListItemsRequest(collection="images"), 3)
    async with shelves(ride_out_s=0) as (services, embedder, indexer):
        services.fail["ListItems"] = services.fail["Embed"] = LikenessError(error_pb2.REASON_NOT_READY, "not now")
        with pytest.raises(LikenessError) as none:
            await embedder.embed(TEXT, 600)

    assert short.value.reason_name in ("NOT_READY", "DEADLINE_EXCEEDED")
    assert none.value.reason_name == "NOT_READY"


async def test_what_cannot_pass_is_told_at_once() -> None:
    async with shelves() as (services, _, indexer):
        with pytest.raises(LikenessError) as caught:
            await indexer.count(indexer_pb2.CountItemsRequest(collection="none"), 60)
    assert caught.value.reason_name == "COLLECTION_NOT_FOUND"
    assert len(services.asked("CountItems")) == 1


async def test_what_may_not_be_repeated_is_sent_once() -> None:
    async with shelves() as (services, _, indexer):
        services.make("images")
        fail = LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, "no Chroma", retry_after_s=1.0)
        services.fail |= dict.fromkeys(("CreateCollection", "DeleteCollection", "SetAlias", "DeleteAlias"), fail)
        making = indexer_pb2.CreateCollectionRequest(name="new", fingerprint=MODEL, metric=types_pb2.METRIC_COSINE)
        for call in (
            indexer.create_collection(making, 60),
            indexer.delete_collection("images", 60),
            indexer.set_alias(indexer_pb2.SetAliasRequest(alias="now", collection="images"), 60),
            indexer.delete_alias("now", 60),
        ):
            with pytest.raises(LikenessError) as caught:
                await call
            assert caught.value.reason_name == "STORE_UNAVAILABLE"
    assert [name for name, _ in services.calls] == list(services.fail)
