"""Every call that the gateway makes for a call carries its trace; what it asks for itself carries none."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from chassis import trace
from chassis.errors import LikenessError
from gateway.backends import Embedder, Indexer, Readers
from gateway.indexer_reads import IndexerReads
from gateway.settings import GatewaySettings
from tests.unit.gateway.behind import Behind

TEXT = [embedder_pb2.EmbedInput(text="a")]
# How each method is called.
OF_EMBEDDER: dict[str, Callable[[Embedder], Awaitable[Any]]] = {
    "model": lambda embedder: embedder.model(5),
    "embed": lambda embedder: embedder.embed(TEXT, 5),
    "embed, with priority": lambda embedder: embedder.embed(TEXT, 5, priority=embedder_pb2.PRIORITY_BULK),
    "embed, in bulk": lambda embedder: embedder.embed(TEXT, 5, bulk=True),
}
OF_READERS: dict[str, Callable[[Readers], Awaitable[Any]]] = {
    "status": lambda readers: readers.status(5),
}
OF_INDEXER: dict[str, Callable[[Indexer], Awaitable[Any]]] = {
    "collection": lambda indexer: indexer.collection("a", 5),
    "uid": lambda indexer: indexer.uid("a", 5),
    "list_collections": lambda indexer: indexer.list_collections(indexer_pb2.ListCollectionsRequest(), 5),
    "collections": lambda indexer: indexer.collections(5),
    "create_collection": lambda indexer: indexer.create_collection(indexer_pb2.CreateCollectionRequest(), 5),
    "update_collection": lambda indexer: indexer.update_collection(indexer_pb2.UpdateCollectionRequest(), 5),
    "delete_collection": lambda indexer: indexer.delete_collection("a", 5),
    "set_alias": lambda indexer: indexer.set_alias(indexer_pb2.SetAliasRequest(), 5),
    "delete_alias": lambda indexer: indexer.delete_alias("x", 5),
    "aliases": lambda indexer: indexer.aliases(5),
    "upsert": lambda indexer: indexer.upsert(indexer_pb2.UpsertItemsRequest(), 5),
    "get": lambda indexer: indexer.get(indexer_pb2.GetItemsRequest(), 5),
    "delete": lambda indexer: indexer.delete(indexer_pb2.DeleteItemsRequest(), 5),
    "list": lambda indexer: indexer.list(indexer_pb2.ListItemsRequest(), 5),
    "count": lambda indexer: indexer.count(indexer_pb2.CountItemsRequest(), 5),
    "facets": lambda indexer: indexer.facets(indexer_pb2.GetFacetsRequest(), 5),
    "update_metadata": lambda indexer: indexer.update_metadata(indexer_pb2.UpdateMetadataRequest(), 5),
    "query": lambda indexer: indexer.query(indexer_pb2.QueryRequest(), 5),
}


class Recorder(grpc.aio.ServerInterceptor):
    """What came with each call, whether it is answered or not."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str | bytes]] = []

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method.startswith("/likeness."):  # and no health check
            self.seen.append(dict(handler_call_details.invocation_metadata))
        return await continuation(handler_call_details)


@asynccontextmanager
async def recorded() -> AsyncIterator[tuple[Recorder, Callable[[str], Awaitable[Any]]]]:
    """What has come, and what makes a call of a name."""
    recorder, services = Recorder(), Behind()  # type: ignore[abstract]  # what is not there fails, and was recorded
    server = grpc.aio.server(interceptors=[recorder])
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(services, server)
    indexer_pb2_grpc.add_IndexerServiceServicer_to_server(services, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    settings = GatewaySettings(embedder_address=address, indexer_address=address, indexer_read_address=address)
    embedder, readers, indexer = Embedder(settings), Readers(settings), Indexer(settings)

    async def make(name: str) -> None:
        with suppress(LikenessError):
            if name in OF_EMBEDDER:
                await OF_EMBEDDER[name](embedder)
            elif name in OF_READERS:
                await OF_READERS[name](readers)
            else:
                await OF_INDEXER[name](indexer)

    yield recorder, make
    for backend in (embedder, readers, indexer):
        await backend.close()
    await server.stop(0)


def test_no_call_is_forgotten_here() -> None:
    of_readers = OF_INDEXER.keys() & vars(IndexerReads).keys() | OF_READERS.keys()
    for kind, calls in ((Embedder, OF_EMBEDDER.keys()), (Readers, of_readers), (Indexer, OF_INDEXER.keys())):
        methods = {name for name, _ in inspect.getmembers(kind, inspect.iscoroutinefunction) if name[0] != "_"}
        assert {name.partition(",")[0] for name in calls} == methods - {"wait_until_serving", "close"}


@pytest.mark.parametrize("name", [*OF_EMBEDDER, *OF_READERS, *OF_INDEXER])
async def test_each_call_carries_the_trace_that_it_is_made_for(name: str) -> None:
    async with recorded() as (recorder, make):
        of = trace.Trace.of([("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")])
        entered = trace.enter(of)
        await make(name)
        trace.leave(entered)
        await make(name)
    assert [seen.get("traceparent") for seen in recorder.seen] == [f"00-{of.id}-{of.span_id}-01", None]
    bulk = ["bulk"] * 2 if name in ("embed, with priority", "embed, in bulk") else [None] * 2
    assert [seen.get("likeness-priority") for seen in recorder.seen] == bulk
