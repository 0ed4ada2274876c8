"""The indexer as a whole, with a Chroma of its own, behind a server in this process: what is answered when."""

import shutil
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2 as pb
from likeness.indexer.v1 import indexer_pb2_grpc
from prometheus_client import CollectorRegistry

from chassis.errors import from_rpc_error
from chassis.interceptor import CallInterceptor
from chassis.readiness import Readiness
from indexer import disk
from indexer.service import IndexerService
from indexer.settings import IndexerSettings
from tests.integration.indexer.calls import FINGERPRINT, compared, item, like, unit

MIB = 2**20
NAME = "col"


@asynccontextmanager
async def listening(folder: Path, **told: Any) -> AsyncIterator[tuple[IndexerService, Readiness, Any]]:
    """One that listens and has not begun to start; with what it says of itself, and a client."""
    settings = IndexerSettings(data_dir=folder / "data", snapshots=str(folder / "snapshots"), **told)
    service, readiness = IndexerService(settings, CollectorRegistry()), Readiness("likeness.indexer.v1.IndexerService")
    server = grpc.aio.server(interceptors=[CallInterceptor(service.calls(readiness))])
    service.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield service, readiness, indexer_pb2_grpc.IndexerServiceStub(channel)
    finally:
        await server.stop(0)


@asynccontextmanager
async def serving(folder: Path, **told: Any) -> AsyncIterator[Any]:
    """A client of one that serves."""
    async with listening(folder, **told) as (service, readiness, stub):
        try:
            await service.start(readiness)
            await readiness.set(True, "test")
            yield stub
        finally:
            await service.stop()


async def reason(call: Awaitable[Any]) -> "error_pb2.Reason.ValueType":
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value, error_pb2.REASON_UNSPECIFIED, "").reason


async def test_its_status_is_told_while_it_starts_and_nothing_else_is_answered(tmp_path: Path) -> None:
    async with listening(tmp_path) as (_, _, stub):
        status = await stub.GetStatus(pb.GetStatusRequest(), timeout=30)
        assert not status.store_available
        assert status.role == pb.ROLE_WRITER
        for call in (stub.CountItems(pb.CountItemsRequest(collection=NAME)), stub.ListAliases(pb.ListAliasesRequest())):
            assert await reason(call) == error_pb2.REASON_NOT_READY


async def test_an_almost_full_disk_takes_deletions_still_and_no_writes_and_a_full_one_is_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [1000 * MIB]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    monkeypatch.setattr(disk, "_LOOK_S", 0.0)
    async with serving(tmp_path, min_free_disk_mb=100) as stub:

        def upsert(n: int) -> Any:
            return stub.UpsertItems(pb.UpsertItemsRequest(collection=NAME, items=[item(n, k=n)]), timeout=60)

        def delete(**what: Any) -> Any:
            return stub.DeleteItems(pb.DeleteItemsRequest(collection=NAME, **what), timeout=60)

        async def read() -> list[str]:
            """What there is, as four ways of asking agree."""
            listed = await stub.ListItems(pb.ListItemsRequest(collection=NAME), timeout=60)
            found = await stub.Query(pb.QueryRequest(collection=NAME, queries=[like(unit(0))]), timeout=60)
            counted = await stub.CountItems(pb.CountItemsRequest(collection=NAME), timeout=60)
            ids = [each.id for each in listed.items]
            got = await stub.GetItems(pb.GetItemsRequest(collection=NAME, ids=ids), timeout=60)
            assert len(found.results[0].hits) == counted.count == len(got.items) == len(ids)
            return ids

        await stub.CreateCollection(pb.CreateCollectionRequest(name=NAME, fingerprint=FINGERPRINT), timeout=60)
        for n in range(4):
            await upsert(n)

        free[0] = 99 * MIB
        update = pb.MetadataUpdate(id="i3", set=item(3, m=1).metadata)
        writes = [
            upsert(9),
            stub.UpsertItemsStream(iter([pb.UpsertItemsStreamRequest(collection=NAME, items=[item(9)])]), timeout=60),
            stub.UpdateMetadata(pb.UpdateMetadataRequest(collection=NAME, updates=[update]), timeout=60),
        ]
        assert [await reason(write) for write in writes] == [error_pb2.REASON_STORE_FULL] * 3
        assert await read() == ["i0", "i1", "i2", "i3"]
        free[0] = 32 * MIB
        assert (await delete(ids=["i0"])).deleted == 1
        assert (await delete(filter=compared("k", "EQ", 1))).deleted == 1
        assert await read() == ["i2", "i3"]

        free[0] = 31 * MIB
        assert await reason(delete(ids=["i2"])) == error_pb2.REASON_STORE_FULL
        assert await reason(delete(filter=compared("k", "EQ", 2))) == error_pb2.REASON_STORE_FULL
        assert await read() == ["i2", "i3"]

        free[0] = 100 * MIB
        assert (await upsert(9)).stored == 1
        assert await read() == ["i2", "i3", "i9"]
