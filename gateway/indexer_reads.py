"""What any indexer answers, the writer and its readers alike: searches, lists, counts, and where to look."""

import grpc
from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from gateway.backend import Backend
from gateway.settings import GatewaySettings

INDEXER = "likeness.indexer.v1.IndexerService"

# All of them may be repeated.
READS = ("GetCollection", "GetItems", "ListItems", "CountItems", "GetFacets", "Query")


class IndexerReads(Backend):
    """Calls that change nothing. Whoever is given no more than this does not mind answers that are a little behind."""

    def __init__(
        self, name: str, address: str, setting: str, channel: grpc.aio.Channel, settings: GatewaySettings
    ) -> None:
        """Over a channel that its owner closes.

        Args:
            name: what it is called.
            address: where it is.
            setting: the variable that says so.
            channel: to there.
            settings: all of the gateway's.
        """
        super().__init__(name, address, setting, error_pb2.REASON_INDEXER_UNAVAILABLE, settings)
        self._stub = indexer_pb2_grpc.IndexerServiceStub(channel)

    async def collection(self, name: str, timeout_s: float) -> indexer_pb2.Collection:
        """One collection."""
        request = indexer_pb2.GetCollectionRequest(name=name)
        return (await self._repeatable(self._stub.GetCollection, request, timeout_s)).collection

    async def get(self, request: indexer_pb2.GetItemsRequest, timeout_s: float) -> indexer_pb2.GetItemsResponse:
        """Reads items."""
        return await self._repeatable(self._stub.GetItems, request, timeout_s)

    async def list(self, request: indexer_pb2.ListItemsRequest, timeout_s: float) -> indexer_pb2.ListItemsResponse:
        """A page of items."""
        return await self._repeatable(self._stub.ListItems, request, timeout_s)

    async def count(self, request: indexer_pb2.CountItemsRequest, timeout_s: float) -> int:
        """How many items there are, or how many a filter leaves."""
        return (await self._repeatable(self._stub.CountItems, request, timeout_s)).count

    async def facets(self, request: indexer_pb2.GetFacetsRequest, timeout_s: float) -> indexer_pb2.GetFacetsResponse:
        """Counts by metadata value."""
        return await self._repeatable(self._stub.GetFacets, request, timeout_s)

    async def query(self, request: indexer_pb2.QueryRequest, timeout_s: float) -> indexer_pb2.QueryResponse:
        """Nearest neighbours."""
        return await self._repeatable(self._stub.Query, request, timeout_s)
