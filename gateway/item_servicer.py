"""Transport of what is the indexer's to answer: items read, listed, counted and changed; and deleted."""

from dataclasses import dataclass

from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis.calls import CallContext
from chassis.deadline import Deadline
from gateway import facets, items
from gateway.backends import Indexer
from gateway.deletion import Deletion
from gateway.indexer_reads import IndexerReads
from gateway.metadata_changes import to_indexer
from gateway.requests import collection_name


@dataclass(frozen=True)
class ItemRpcs:
    """Passes calls on to the indexer, or to its readers. They check them: the fields have the same names there.

    Attributes:
        indexer: changes items.
        reads: reads them.
        default_deadline_s: of a call without one.
        deletion: deletes them.
    """

    indexer: Indexer
    reads: IndexerReads
    default_deadline_s: float
    deletion: Deletion

    async def GetItems(  # noqa: N802
        self, request: gateway_pb2.GetItemsRequest, context: CallContext
    ) -> gateway_pb2.GetItemsResponse:
        """Reads items by id."""
        fields = items.wanted(request)
        read = indexer_pb2.GetItemsRequest(
            collection=collection_name(request.collection), ids=request.ids, fields=items.to_read(fields)
        )
        found = await self.reads.get(read, self._time(context))
        return gateway_pb2.GetItemsResponse(
            items=[items.from_stored(item, fields) for item in found.items], missing_ids=found.missing_ids
        )

    async def ListItems(  # noqa: N802
        self, request: gateway_pb2.ListItemsRequest, context: CallContext
    ) -> gateway_pb2.ListItemsResponse:
        """Reads a page of items."""
        fields = items.wanted(request)
        listing = indexer_pb2.ListItemsRequest(
            collection=collection_name(request.collection),
            filter=request.filter if request.HasField("filter") else None,
            order_by=request.order_by,
            descending=request.descending,
            page_size=request.page_size,
            page_token=request.page_token,
            fields=items.to_read(fields),
        )
        page = await self.reads.list(listing, self._time(context))
        return gateway_pb2.ListItemsResponse(
            items=[items.from_stored(item, fields) for item in page.items], next_page_token=page.next_page_token
        )

    async def CountItems(  # noqa: N802
        self, request: gateway_pb2.CountItemsRequest, context: CallContext
    ) -> gateway_pb2.CountItemsResponse:
        """Counts items."""
        counting = indexer_pb2.CountItemsRequest(
            collection=collection_name(request.collection),
            filter=request.filter if request.HasField("filter") else None,
        )
        return gateway_pb2.CountItemsResponse(count=await self.reads.count(counting, self._time(context)))

    async def GetFacets(  # noqa: N802
        self, request: gateway_pb2.GetFacetsRequest, context: CallContext
    ) -> gateway_pb2.GetFacetsResponse:
        """Counts items by the values of their metadata."""
        counting = indexer_pb2.GetFacetsRequest(
            collection=collection_name(request.collection),
            filter=request.filter if request.HasField("filter") else None,
            facets=facets.wanted(request.facets),
        )
        counted = await self.reads.facets(counting, self._time(context))
        return gateway_pb2.GetFacetsResponse(count=counted.count, facets=facets.shown(counted.facets))

    async def UpdateMetadata(  # noqa: N802
        self, request: gateway_pb2.UpdateMetadataRequest, context: CallContext
    ) -> gateway_pb2.UpdateMetadataResponse:
        """Changes metadata."""
        done = await self.indexer.update_metadata(to_indexer(request), self._time(context))
        return gateway_pb2.UpdateMetadataResponse(updated=done.updated, missing_ids=done.missing_ids)

    async def DeleteItems(  # noqa: N802
        self, request: gateway_pb2.DeleteItemsRequest, context: CallContext
    ) -> gateway_pb2.DeleteItemsResponse:
        """See ``gateway.deletion``."""
        return await self.deletion(request, Deadline.of(context, self.default_deadline_s))

    def _time(self, context: CallContext) -> float:
        return Deadline.of(context, self.default_deadline_s).left()
