"""The two services behind the gateway: typed calls, each with a timeout, failures as ``LikenessError``.

Calls that may be repeated are: by gRPC within a second or two (see ``chassis.channel``), and, while the service stays
away, here, until LIKENESS_RIDE_OUT_S or the caller's time is over: a restart is ridden out. Calls that may not be
repeated (making and deleting collections, setting and deleting aliases) are sent once. None is ever sent twice at once.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from likeness.common.v1 import error_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from chassis.channel import connect
from chassis.errors import LikenessError, from_rpc_error
from gateway.settings import GatewaySettings

log = structlog.get_logger()

EMBEDDER = "likeness.embedder.v1.EmbedderService"
INDEXER = "likeness.indexer.v1.IndexerService"

Answer = TypeVar("Answer")

# What EmbedRequest.priority says, for an embedder that has no time to read requests.
_BULK = (("likeness-priority", "bulk"),)

# Between two watches at start, should the first end at once.
_WATCH_AGAIN_S = 0.5

# Waits between attempts while a service is away: the first, and the longest, which is as long as gRPC takes at most to
# look for it again.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 2.0


class _Backend:
    """A service: where it is, and what its failures are called."""

    def __init__(
        self, name: str, address: str, unavailable: error_pb2.Reason.ValueType, settings: GatewaySettings
    ) -> None:
        self.name = name
        self.address = address
        self._unavailable = unavailable
        self._ride_out_s = settings.ride_out_s

    async def _call(self, call: Awaitable[Answer]) -> Answer:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._unavailable, f"the {self.name} at {self.address}") from error

    async def _repeatable(
        self, method: Callable[..., Awaitable[Answer]], request: Any, timeout_s: float, *, ride_out: bool = True
    ) -> Answer:
        """A call that is sent again while the service is away, as long as there is time."""
        started = time.monotonic()
        give_up = started + min(timeout_s, self._ride_out_s if ride_out else 0)
        pause = _FIRST_PAUSE_S
        while True:
            left = started + timeout_s - time.monotonic()
            try:
                return await self._call(method(request, timeout=left))
            except LikenessError as error:
                # With an answer that says why while there is still time to hear it.
                if error.code is not grpc.StatusCode.UNAVAILABLE or time.monotonic() + pause >= give_up:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _bulk_call(self, call: Awaitable[Answer]) -> Answer:
        """A call whose time limit is ours, not the caller's: to it, no answer in time is a service away."""
        try:
            return await self._call(call)
        except LikenessError as error:
            if error.reason != error_pb2.REASON_DEADLINE_EXCEEDED:
                raise
            message = f"the {self.name} at {self.address} gave no answer in time; see LIKENESS_INGEST_CALL_S"
            raise LikenessError(self._unavailable, message, retry_after_s=1.0) from error

    async def _wait_until_serving(self, channel: grpc.aio.Channel, service: str) -> None:
        log.info("waiting for a service", name=self.name, address=self.address)
        told: str | None = None
        while True:
            watch = health_pb2_grpc.HealthStub(channel).Watch(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(service=service)
            )
            try:
                async for answer in watch:
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                    if answer.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
                        raise self._misplaced(f"it does not know {service}")
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise self._misplaced(f"{error.code().name}: {error.details()}") from error
                if error.details() != told:  # nobody listens yet; or a certificate is not believed, for ever
                    told = error.details()
                    log.info("a service is not there yet", name=self.name, address=self.address, why=told)
            finally:
                watch.cancel()
            await asyncio.sleep(_WATCH_AGAIN_S)

    def _misplaced(self, why: str) -> LikenessError:
        message = (
            f"{self.address} is not the {self.name} ({why}); set LIKENESS_{self.name.upper()}_ADDRESS to where it is"
        )
        return LikenessError(self._unavailable, message)


class Embedder(_Backend):
    """Calls to whichever embedder replica is next."""

    def __init__(self, settings: GatewaySettings) -> None:
        super().__init__("embedder", settings.embedder_address, error_pb2.REASON_EMBEDDER_UNAVAILABLE, settings)
        methods, size, tls = ("GetModel", "Embed"), settings.max_message_mb, settings.upstream_tls
        # A replica that is stopping, or whose worker has died, gets no calls. Not so the indexer, of which there is
        # one: what it can answer without Chroma it does.
        self._interactive = connect(self.address, EMBEDDER, methods, size, "interactive", watch_health=True, tls=tls)
        self._bulk = connect(self.address, EMBEDDER, methods, size, "bulk", watch_health=True, tls=tls)
        # Sees what the others are kept from, and so can tell a service of another kind.
        self._watched = connect(self.address, EMBEDDER, methods, size, "interactive", tls=tls)
        self._stub = embedder_pb2_grpc.EmbedderServiceStub(self._interactive)
        self._bulk_stub = embedder_pb2_grpc.EmbedderServiceStub(self._bulk)

    async def wait_until_serving(self) -> None:
        """Waits, without limit, for the first replica that says SERVING."""
        await self._wait_until_serving(self._watched, EMBEDDER)

    async def model(self, timeout_s: float, *, ride_out: bool = True) -> embedder_pb2.GetModelResponse:
        """The model and its limits."""
        request = embedder_pb2.GetModelRequest()
        return await self._repeatable(self._stub.GetModel, request, timeout_s, ride_out=ride_out)

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
            call = self._bulk_stub.Embed(request, timeout=timeout_s, wait_for_ready=True, metadata=_BULK)
            return await self._bulk_call(call)
        request = embedder_pb2.EmbedRequest(inputs=inputs, priority=priority)
        known = _BULK if priority == embedder_pb2.PRIORITY_BULK else None
        return await self._repeatable(partial(self._stub.Embed, metadata=known), request, timeout_s)

    async def close(self) -> None:
        """Closes the connections."""
        for channel in (self._interactive, self._bulk, self._watched):
            await channel.close()


class Indexer(_Backend):
    """Calls to the indexer."""

    def __init__(self, settings: GatewaySettings) -> None:
        super().__init__("indexer", settings.indexer_address, error_pb2.REASON_INDEXER_UNAVAILABLE, settings)
        reads = (
            "GetCollection",
            "ListCollections",
            "ListAliases",
            "GetItems",
            "ListItems",
            "CountItems",
            "GetFacets",
            "Query",
        )
        # Not SetAlias: the second attempt of a move from an expected collection would find the first one's.
        writes = ("UpsertItems", "UpdateMetadata", "DeleteItems", "UpdateCollection")
        self._interactive = connect(
            self.address, INDEXER, (*reads, *writes), settings.max_message_mb, "interactive", tls=settings.upstream_tls
        )
        self._bulk = connect(
            self.address, INDEXER, (*reads, *writes), settings.max_message_mb, "bulk", tls=settings.upstream_tls
        )
        self._stub = indexer_pb2_grpc.IndexerServiceStub(self._interactive)
        self._bulk_stub = indexer_pb2_grpc.IndexerServiceStub(self._bulk)

    async def wait_until_serving(self) -> None:
        """Waits, without limit, until it says SERVING."""
        await self._wait_until_serving(self._interactive, INDEXER)

    async def collection(self, name: str, timeout_s: float) -> indexer_pb2.Collection:
        """One collection."""
        request = indexer_pb2.GetCollectionRequest(name=name)
        return (await self._repeatable(self._stub.GetCollection, request, timeout_s)).collection

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

    async def create_collection(
        self, request: indexer_pb2.CreateCollectionRequest, timeout_s: float
    ) -> indexer_pb2.Collection:
        """Makes a collection. Not repeated by itself: a second attempt would find the first one's."""
        return (await self._call(self._stub.CreateCollection(request, timeout=timeout_s))).collection

    async def update_collection(
        self, request: indexer_pb2.UpdateCollectionRequest, timeout_s: float
    ) -> indexer_pb2.Collection:
        """Changes a collection."""
        return (await self._repeatable(self._stub.UpdateCollection, request, timeout_s)).collection

    async def delete_collection(self, name: str, timeout_s: float) -> None:
        """Deletes a collection. Not repeated by itself, as above."""
        await self._call(self._stub.DeleteCollection(indexer_pb2.DeleteCollectionRequest(name=name), timeout=timeout_s))

    async def set_alias(self, request: indexer_pb2.SetAliasRequest, timeout_s: float) -> str:
        """Makes or moves an alias; returns the collection that it stood for, empty if it is new."""
        return (await self._call(self._stub.SetAlias(request, timeout=timeout_s))).previous_collection

    async def delete_alias(self, alias: str, timeout_s: float) -> str:
        """Deletes an alias; returns the collection that it stood for."""
        request = indexer_pb2.DeleteAliasRequest(alias=alias)
        return (await self._call(self._stub.DeleteAlias(request, timeout=timeout_s))).collection

    async def aliases(self, timeout_s: float) -> Sequence[indexer_pb2.Alias]:
        """All aliases, by name."""
        return (await self._repeatable(self._stub.ListAliases, indexer_pb2.ListAliasesRequest(), timeout_s)).aliases

    async def upsert(self, request: indexer_pb2.UpsertItemsRequest, timeout_s: float) -> None:
        """Stores items; they are on disk when this returns."""
        await self._bulk_call(self._bulk_stub.UpsertItems(request, timeout=timeout_s, wait_for_ready=True))

    async def get(self, request: indexer_pb2.GetItemsRequest, timeout_s: float) -> indexer_pb2.GetItemsResponse:
        """Reads items."""
        return await self._repeatable(self._stub.GetItems, request, timeout_s)

    async def delete(
        self, request: indexer_pb2.DeleteItemsRequest, timeout_s: float
    ) -> indexer_pb2.DeleteItemsResponse:
        """Deletes items."""
        return await self._repeatable(self._stub.DeleteItems, request, timeout_s)

    async def list(self, request: indexer_pb2.ListItemsRequest, timeout_s: float) -> indexer_pb2.ListItemsResponse:
        """A page of items."""
        return await self._repeatable(self._stub.ListItems, request, timeout_s)

    async def count(self, request: indexer_pb2.CountItemsRequest, timeout_s: float) -> int:
        """How many items there are, or how many a filter leaves."""
        return (await self._repeatable(self._stub.CountItems, request, timeout_s)).count

    async def facets(self, request: indexer_pb2.GetFacetsRequest, timeout_s: float) -> indexer_pb2.GetFacetsResponse:
        """Counts by metadata value."""
        return await self._repeatable(self._stub.GetFacets, request, timeout_s)

    async def update_metadata(
        self, request: indexer_pb2.UpdateMetadataRequest, timeout_s: float
    ) -> indexer_pb2.UpdateMetadataResponse:
        """Changes metadata; it is on disk when this returns."""
        return await self._repeatable(self._stub.UpdateMetadata, request, timeout_s)

    async def query(self, request: indexer_pb2.QueryRequest, timeout_s: float) -> indexer_pb2.QueryResponse:
        """Nearest neighbours."""
        return await self._repeatable(self._stub.Query, request, timeout_s)

    async def close(self) -> None:
        """Closes the connections."""
        await self._interactive.close()
        await self._bulk.close()
