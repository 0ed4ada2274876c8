"""Exports to clients that read slowly, not at all, or go away: over a real connection, of a collection without end."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import grpc
import numpy as np
import pytest
from likeness.indexer.v1 import indexer_pb2 as pb
from likeness.indexer.v1 import indexer_pb2_grpc

from chassis.calls import Calls
from chassis.interceptor import CallInterceptor
from chassis.readiness import Readiness
from indexer import archive_servicer
from indexer.archive_servicer import ArchiveRpcs
from indexer.collections import Collection, Fingerprint, Metric
from indexer.filters import Node
from indexer.reads import Fields
from indexer.scan import Batch, Scan
from indexer.servicing import Sole

SERVICE = "likeness.indexer.v1.IndexerService"
REQUEST = pb.ExportItemsRequest(collection="endless")


class Endless:
    """A collection with items for ever, and what reads it.

    Attributes:
        read: batches that were asked for.
        ended: set when a scan has been let go.
    """

    def __init__(self) -> None:
        self.read = 0
        self.ended = asyncio.Event()

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Collection]:
        yield Collection(name, "key", Fingerprint("m", "a1" * 32, 1024), Metric.L2, datetime.now(UTC))

    def aliases_of(self, name: str) -> list[str]:
        return ["always"]

    def reader(self, collection: Collection) -> "Endless":
        return self

    async def count(self, collection: Collection, where: Node | None) -> int:
        return 10**9

    async def scan(self, collection: Collection, where: Node | None, after: str, fields: Fields) -> Scan:
        return Scan(10**9, self._batches())

    async def _batches(self) -> AsyncGenerator[Batch, None]:
        vectors = np.zeros((200, 1024), np.float32)
        try:
            while True:
                self.read += 1
                yield Batch([f"{self.read:06}-{n}" for n in range(200)], vectors)
        finally:
            self.ended.set()


@asynccontextmanager
async def serving(endless: Endless) -> AsyncIterator[tuple[ArchiveRpcs, "indexer_pb2_grpc.IndexerServiceAsyncStub"]]:
    rpcs = ArchiveRpcs(*cast(Any, (endless, None, endless, Sole())))
    readiness = Readiness(SERVICE)
    await readiness.set(True, "test")
    server = grpc.aio.server(interceptors=[CallInterceptor(Calls(readiness, default_deadline_s=60))])
    handler = grpc.unary_stream_rpc_method_handler(
        cast(Any, rpcs.ExportItems), pb.ExportItemsRequest.FromString, pb.ExportItemsResponse.SerializeToString
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"ExportItems": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = [("grpc.enable_http_proxy", 0)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            yield rpcs, cast(Any, indexer_pb2_grpc.IndexerServiceStub(channel))
    finally:
        await server.stop(0)


async def test_no_more_is_read_than_its_client_takes() -> None:
    endless = Endless()
    async with serving(endless) as (_, stub):
        call = stub.ExportItems(REQUEST)
        first = await call.read()
        assert isinstance(first, pb.ExportItemsResponse)
        assert list(first.collection.aliases) == ["always"]
        for _ in range(50):
            await call.read()
        # Of 0.8 MB each, some are on their way.
        assert endless.read < 50 + 30
        call.cancel()
        await asyncio.wait_for(endless.ended.wait(), 30)


async def test_a_client_that_goes_away_frees_what_was_held_for_it() -> None:
    endless = Endless()
    async with serving(endless) as (_, stub):
        call = stub.ExportItems(REQUEST)
        for _ in range(2):  # the collection, then items: the scan has begun
            await call.read()
        call.cancel()
        await asyncio.wait_for(endless.ended.wait(), 30)


async def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_servicer, "STALLED_S", 0.5)
    endless = Endless()
    async with serving(endless) as (_, stub):
        call = stub.ExportItems(REQUEST)
        await call.read()
        await asyncio.wait_for(endless.ended.wait(), 30)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while await call.read() is not grpc.aio.EOF:
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "after_id" in (caught.value.details() or "")
        # Others are served as before.
        other = stub.ExportItems(REQUEST)
        assert await other.read() is not grpc.aio.EOF
        other.cancel()


async def test_exports_end_when_the_indexer_stops() -> None:
    endless = Endless()
    async with serving(endless) as (rpcs, stub):
        call = stub.ExportItems(REQUEST)
        await call.read()
        rpcs.end_exports()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while await call.read() is not grpc.aio.EOF:
                pass
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert endless.ended.is_set()
