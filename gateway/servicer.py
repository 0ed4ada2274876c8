"""The gateway's transport: messages in, messages out."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from likeness.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from likeness.indexer.v1 import indexer_pb2

from chassis.deadline import Deadline
from gateway import items
from gateway.backends import Indexer
from gateway.ingest import Ingest
from gateway.search import Search, collection_name
from gateway.status import Status

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class SearchServicer(gateway_pb2_grpc.SearchServiceServicer):
    """Hands each call to the module that answers it."""

    search: Search
    ingest: Ingest
    status: Status
    indexer: Indexer
    default_deadline_s: float

    async def Search(  # noqa: N802
        self, request: gateway_pb2.SearchRequest, context: Context
    ) -> gateway_pb2.SearchResponse:
        """See ``gateway.search``."""
        return await self.search(request, Deadline.of(context, self.default_deadline_s))

    async def IndexImages(  # type: ignore[override]  # noqa: N802  (a coroutine that writes: see the interceptor)
        self, requests: AsyncIterator[gateway_pb2.IndexImagesRequest], context: Context
    ) -> None:
        """See ``gateway.ingest``."""
        await self.ingest(requests, context.write)

    async def GetItems(  # noqa: N802
        self, request: gateway_pb2.GetItemsRequest, context: Context
    ) -> gateway_pb2.GetItemsResponse:
        """Reads items from the indexer."""
        fields = items.wanted(request)
        read = indexer_pb2.GetItemsRequest(
            collection=collection_name(request.collection), ids=request.ids, fields=items.to_read(fields)
        )
        found = await self.indexer.get(read, Deadline.of(context, self.default_deadline_s).left())
        return gateway_pb2.GetItemsResponse(
            items=[items.from_stored(item, fields) for item in found.items], missing_ids=found.missing_ids
        )

    async def DeleteItems(  # noqa: N802
        self, request: gateway_pb2.DeleteItemsRequest, context: Context
    ) -> gateway_pb2.DeleteItemsResponse:
        """Deletes items at the indexer."""
        delete = indexer_pb2.DeleteItemsRequest(collection=collection_name(request.collection), ids=request.ids)
        gone = await self.indexer.delete(delete, Deadline.of(context, self.default_deadline_s).left())
        return gateway_pb2.DeleteItemsResponse(deleted=gone.deleted)

    async def GetStatus(  # noqa: N802
        self, _request: gateway_pb2.GetStatusRequest, context: Context
    ) -> gateway_pb2.GetStatusResponse:
        """See ``gateway.status``."""
        return await self.status(Deadline.of(context, self.default_deadline_s).left())
