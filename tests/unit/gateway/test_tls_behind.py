"""TLS between the gateway and the services behind it."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from chassis.tls import ListenerTls
from gateway import backend
from gateway.backends import Indexer
from gateway.indexer_reads import INDEXER
from gateway.settings import GatewaySettings
from tests.certificates import Authority


@asynccontextmanager
async def serving(tls: ListenerTls) -> AsyncIterator[str]:
    server = grpc.aio.server()
    health = health_aio.HealthServicer()
    await health.set(INDEXER, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_secure_port("127.0.0.1:0", tls.grpc())
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def test_the_gateway_shows_its_certificate_to_an_indexer_that_wants_one(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.sign("gateway")
    async with serving(authority.listener(mutual=True)) as address:
        indexer = Indexer(
            GatewaySettings(
                indexer_address=address,
                upstream_tls_ca=authority.ca,
                upstream_tls_cert=own.certificate,
                upstream_tls_key=own.key,
            )
        )
        await asyncio.wait_for(indexer.wait_until_serving(), 60)
        await indexer.close()


async def test_a_gateway_that_waits_for_an_indexer_it_does_not_believe_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()

    def listen(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        said.put_nowait(event)
        raise structlog.DropEvent

    monkeypatch.setattr(backend, "log", structlog.wrap_logger(None, processors=[listen]))
    async with serving(Authority(tmp_path).listener()) as address:
        other = Authority(tmp_path, "other")
        indexer = Indexer(GatewaySettings(indexer_address=address, upstream_tls_ca=other.ca))
        waiting = asyncio.create_task(indexer.wait_until_serving())
        assert (await said.get())["event"] == "waiting for a service"
        why = (await asyncio.wait_for(said.get(), 60))["why"]
        waiting.cancel()
        await asyncio.wait([waiting])
        await indexer.close()
    assert "CERTIFICATE_VERIFY_FAILED" in why
