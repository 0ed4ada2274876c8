"""The services behind the gateway: typed calls, each with a timeout, failures as ``LikenessError``.

Calls that may not be repeated (making and deleting collections, setting and deleting aliases) are sent once; others
again while the service is away, see ``gateway.backend``.

Of indexers one writes. What clients search and list is asked of its readers where LIKENESS_INDEXER_READ_ADDRESS names
some, and of nobody else then; everything that has to see what was written just now is asked of the writer.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import grpc
from likeness.common.v1 import error_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from chassis.channel import connect
from chassis.replicas import Replicas
from gateway.backend import Backend, bringing
from gateway.indexer_reads import INDEXER, READS, IndexerReads
from gateway.settings import GatewaySettings

EMBEDDER = "likeness.embedder.v1.EmbedderService"

# What EmbedRequest.priority says, for an embedder that has no time to read requests.
_BULK = (("likeness-priority", "bulk"),)


class Embedder(Backend):
    """Calls to the embedder replica that has the fewest of them."""

    def __init__(self, settings: GatewaySettings) -> None:
        unavailable = error_pb2.REASON_EMBEDDER_UNAVAILABLE
        super().__init__("embedder", settings.embedder_address, "LIKENESS_EMBEDDER_ADDRESS", unavailable, settings)
        methods, size, tls = ("GetModel", "Embed"), settings.max_message_mb, settings.upstream_tls

        # A replica that is stopping, or whose worker has died, gets no calls.
        def replicas(use: Literal["interactive", "bulk"]) -> "Replicas[embedder_pb2_grpc.EmbedderServiceAsyncStub]":
            def single(target: str, authority: str | None) -> grpc.aio.Channel:
                return connect(target, EMBEDDER, (), size, use, watch_health=True, tls=tls, authority=authority)

            whole = connect(self.address, EMBEDDER, methods, size, use, watch_health=True, tls=tls)
            stub, each = embedder_pb2_grpc.EmbedderServiceStub, settings.embedder_connections
            return Replicas(self.address, stub, whole, single, each)

        self._interactive, self._bulk = replicas("interactive"), replicas("bulk")
        # Sees what the others are kept from, and so can tell a service of another kind.
        self._watched = connect(self.address, EMBEDDER, methods, size, "interactive", tls=tls)

    async def wait_until_serving(self) -> None:
        """Waits, without limit, for the first replica that says SERVING."""
        await self._wait_until_serving(self._watched, EMBEDDER)

    async def model(self, timeout_s: float, *, ride_out: bool = True) -> embedder_pb2.GetModelResponse:
        """The model and its limits."""
        method = partial(self._interactive.call, lambda stub: stub.GetModel)
        return await self._repeatable(method, embedder_pb2.GetModelRequest(), timeout_s, ride_out=ride_out)

    async def embed(
        self,
        inputs: Sequence[embedder_pb2.EmbedInput],
        timeout_s: float,
        *,
        bulk: bool = False,
        priority: embedder_pb2.Priority.ValueType = embedder_pb2.PRIORITY_INTERACTIVE,
    ) -> embedder_pb2.EmbedResponse:
        """Vectors, or errors, for pictures and texts, in their order.

        Args:
            inputs: what to embed.
            timeout_s: how long to wait.
            bulk: an ingest's call, whose time limit is ours: it goes last, and rides out a restart of the embedder.
            priority: who goes first; of a bulk call always PRIORITY_BULK.
        """
        if bulk:
            request = embedder_pb2.EmbedRequest(inputs=inputs, priority=embedder_pb2.PRIORITY_BULK)
            metadata = bringing(*_BULK)
            call = self._bulk.call(
                lambda stub: stub.Embed, request, timeout=timeout_s, wait_for_ready=True, metadata=metadata
            )
            return await self._bulk_call(call)
        request = embedder_pb2.EmbedRequest(inputs=inputs, priority=priority)
        known = _BULK if priority == embedder_pb2.PRIORITY_BULK else ()
        method = partial(self._interactive.call, lambda stub: stub.Embed)
        return await self._repeatable(method, request, timeout_s, said=known)

    async def close(self) -> None:
        """Closes the connections."""
        for connections in (self._interactive, self._bulk, self._watched):
            await connections.close()


class Readers(IndexerReads):
    """Calls to whichever reader of the indexer is next."""

    def __init__(self, settings: GatewaySettings) -> None:
        address, size, tls = settings.indexer_read_address, settings.max_message_mb, settings.upstream_tls
        methods = (*READS, "GetStatus")
        # One that is stopping, still loading, or kept from what it reads gets no calls.
        self._serving = connect(address, INDEXER, methods, size, "interactive", watch_health=True, tls=tls)
        # Sees what the other is kept from, and so can tell a service of another kind.
        self._watched = connect(address, INDEXER, methods, size, "interactive", tls=tls)
        super().__init__("reader", address, "LIKENESS_INDEXER_READ_ADDRESS", self._serving, settings)

    async def wait_until_serving(self) -> None:
        """Waits, without limit, for the first reader that says SERVING."""
        await self._wait_until_serving(self._watched, INDEXER)

    async def status(self, timeout_s: float) -> indexer_pb2.GetStatusResponse:
        """What one of them is doing; no restart is ridden out."""
        request = indexer_pb2.GetStatusRequest()
        return await self._repeatable(self._stub.GetStatus, request, timeout_s, ride_out=False)

    async def close(self) -> None:
        """Closes the connections."""
        await self._serving.close()
        await self._watched.close()


class Indexer(IndexerReads):
    """Calls to the indexer that writes. What it answers holds everything that was acknowledged before."""

    def __init__(self, settings: GatewaySettings) -> None:
        address, size, tls = settings.indexer_address, settings.max_message_mb, settings.upstream_tls
        # Not SetAlias: the second attempt of a move from an expected collection would find the first one's.
        writes = ("UpsertItems", "UpdateMetadata", "DeleteItems", "UpdateCollection")
        methods = (*READS, "ListCollections", "ListAliases", *writes)
        # Whatever its health: there is one, and what it can answer without Chroma it does.
        self._interactive = connect(address, INDEXER, methods, size, "interactive", tls=tls)
        self._bulk = connect(address, INDEXER, methods, size, "bulk", tls=tls)
        super().__init__("indexer", address, "LIKENESS_INDEXER_ADDRESS", self._interactive, settings)
        self._bulk_stub = indexer_pb2_grpc.IndexerServiceStub(self._bulk)

    async def wait_until_serving(self) -> None:
        """Waits, without limit, until it says SERVING."""
        await self._wait_until_serving(self._interactive, INDEXER)

    async def uid(self, name: str, timeout_s: float) -> str:
        """Which collection has this name now, for an ingest."""
        request = indexer_pb2.GetCollectionRequest(name=name)
        asked = self._repeatable(self._bulk_stub.GetCollection, request, timeout_s)
        return (await self._bulk_call(asked)).collection.uid

    async def list_collections(
        self, request: indexer_pb2.ListCollectionsRequest, timeout_s: float
    ) -> indexer_pb2.ListCollectionsResponse:
        """A page of collections."""
        return await self._repeatable(self._stub.ListCollections, request, timeout_s)

    async def collections(self, timeout_s: float) -> Sequence[indexer_pb2.Collection]:
        """The first 1,000 collections, by name; no restart is ridden out."""
        request = indexer_pb2.ListCollectionsRequest(page_size=1000)
        return (await self._repeatable(self._stub.ListCollections, request, timeout_s, ride_out=False)).collections

    async def aliases(self, timeout_s: float) -> Sequence[indexer_pb2.Alias]:
        """All aliases, by name."""
        return (await self._repeatable(self._stub.ListAliases, indexer_pb2.ListAliasesRequest(), timeout_s)).aliases

    async def create_collection(
        self, request: indexer_pb2.CreateCollectionRequest, timeout_s: float
    ) -> indexer_pb2.Collection:
        """Makes a collection. Not repeated by itself: a second attempt would find the first one's."""
        call = self._stub.CreateCollection(request, timeout=timeout_s, metadata=bringing())
        return (await self._call(call)).collection

    async def update_collection(
        self, request: indexer_pb2.UpdateCollectionRequest, timeout_s: float
    ) -> indexer_pb2.Collection:
        """Changes a collection."""
        return (await self._repeatable(self._stub.UpdateCollection, request, timeout_s)).collection

    async def delete_collection(self, name: str, timeout_s: float) -> None:
        """Deletes a collection. Not repeated by itself, as above."""
        request = indexer_pb2.DeleteCollectionRequest(name=name)
        await self._call(self._stub.DeleteCollection(request, timeout=timeout_s, metadata=bringing()))

    async def set_alias(self, request: indexer_pb2.SetAliasRequest, timeout_s: float) -> str:
        """Makes or moves an alias; returns the collection that it stood for, empty if it is new."""
        call = self._stub.SetAlias(request, timeout=timeout_s, metadata=bringing())
        return (await self._call(call)).previous_collection

    async def delete_alias(self, alias: str, timeout_s: float) -> str:
        """Deletes an alias; returns the collection that it stood for."""
        request = indexer_pb2.DeleteAliasRequest(alias=alias)
        call = self._stub.DeleteAlias(request, timeout=timeout_s, metadata=bringing())
        return (await self._call(call)).collection

    async def upsert(self, request: indexer_pb2.UpsertItemsRequest, timeout_s: float) -> None:
        """Stores items; they are on disk when this returns."""
        metadata = bringing()
        call = self._bulk_stub.UpsertItems(request, timeout=timeout_s, wait_for_ready=True, metadata=metadata)
        await self._bulk_call(call)

    async def delete(
        self, request: indexer_pb2.DeleteItemsRequest, timeout_s: float
    ) -> indexer_pb2.DeleteItemsResponse:
        """Deletes items."""
        return await self._repeatable(self._stub.DeleteItems, request, timeout_s)

    async def update_metadata(
        self, request: indexer_pb2.UpdateMetadataRequest, timeout_s: float
    ) -> indexer_pb2.UpdateMetadataResponse:
        """Changes metadata; it is on disk when this returns."""
        return await self._repeatable(self._stub.UpdateMetadata, request, timeout_s)

    async def close(self) -> None:
        """Closes the connections."""
        await self._interactive.close()
        await self._bulk.close()
