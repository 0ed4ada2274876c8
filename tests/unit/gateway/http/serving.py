"""A whole gateway in this process, by gRPC and by HTTP, before the services of ``behind``."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from likeness.embedder.v1 import embedder_pb2_grpc
from likeness.gateway.v1 import gateway_pb2_grpc
from likeness.indexer.v1 import indexer_pb2_grpc
from prometheus_client import CollectorRegistry

from chassis.interceptor import CallInterceptor
from chassis.readiness import Readiness
from gateway.backends import EMBEDDER
from gateway.indexer_reads import INDEXER
from gateway.media import Media
from gateway.service import GatewayService
from gateway.settings import GatewaySettings
from tests.unit.gateway.behind import Behind

SERVICE = "/likeness.gateway.v1.SearchService"
# Of no use to a client without TLS, which would read a file of authorities for each context of its own.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@dataclass(frozen=True)
class Gateway:
    """A running gateway.

    Attributes:
        http: a client of its HTTP port.
        grpc: a client of its gRPC port.
        port: of HTTP.
        address: of gRPC, ``host:port``.
        readiness: what it says of itself.
        registry: its figures.
        media: its thumbnails.
    """

    http: httpx.AsyncClient
    grpc: "gateway_pb2_grpc.SearchServiceAsyncStub"
    port: int
    address: str
    readiness: Readiness
    registry: CollectorRegistry
    media: Media

    async def raw(self, sent: bytes) -> bytes:
        """Sends bytes; returns everything that comes back until the gateway closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(sent)
            return await asyncio.wait_for(reader.read(), 60)
        except ConnectionError:  # it was closed while something was under way to it
            return b""
        finally:
            writer.close()

    async def call(self, rpc: str, request: Any, **headers: str) -> httpx.Response:
        """Calls an rpc with JSON."""
        sent = {"content-type": "application/json", **{name.replace("_", "-"): each for name, each in headers.items()}}
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        return await self.http.post(f"{SERVICE}/{rpc}", content=body, headers=sent)


@asynccontextmanager
async def serving(services: Behind, *, started: bool = True, **told: Any) -> AsyncIterator[Gateway]:
    """A gateway with these settings, ready unless it is not ``started``; it ends with the context."""
    server = grpc.aio.server()
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(services, server)
    indexer_pb2_grpc.add_IndexerServiceServicer_to_server(services, server)
    health = health_aio.HealthServicer()
    for name in (EMBEDDER, INDEXER):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    behind = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()

    mine = {"http_port": 0, "drain_s": 1.0, "media_url": "memory://media"}
    settings = GatewaySettings(**{"embedder_address": behind, "indexer_address": behind, **mine, **told})
    readiness, registry = Readiness(GatewayService.name), CollectorRegistry()
    gateway = GatewayService(settings, registry)
    front = grpc.aio.server(interceptors=[CallInterceptor(gateway.calls(readiness))])
    gateway.register(front)
    address = f"127.0.0.1:{front.add_insecure_port('127.0.0.1:0')}"
    await front.start()
    try:
        await gateway.start(readiness)
        if started:
            await readiness.set(True, "warmed up")
        async with (
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{gateway.http_port}", trust_env=False, timeout=30, verify=_NO_TLS
            ) as http,
            grpc.aio.insecure_channel(address) as channel,
        ):
            stub: Any = gateway_pb2_grpc.SearchServiceStub(channel)
            yield Gateway(http, stub, gateway.http_port, address, readiness, registry, Media(settings.media_url))
    finally:
        await readiness.stop()
        await front.stop(0)
        await gateway.stop()
        await server.stop(0)
