"""The gateway's transport: messages in, messages out."""

import math
from collections.abc import AsyncIterator
from dataclasses import dataclass

from likeness.gateway.v1 import gateway_pb2, gateway_pb2_grpc

from chassis.calls import CallContext
from chassis.deadline import Deadline
from gateway.batch import BatchSearch
from gateway.classify import Classify
from gateway.collection_servicer import CollectionRpcs
from gateway.duplicates import FindDuplicates
from gateway.ingest import Ingest
from gateway.ingest_batch import IngestBatch
from gateway.item_servicer import ItemRpcs
from gateway.labels import Labels
from gateway.metrics import Metrics
from gateway.reembed import Reembed
from gateway.search import Search
from gateway.status import Status


@dataclass(frozen=True)
class SearchServicer(ItemRpcs, CollectionRpcs, gateway_pb2_grpc.SearchServiceServicer):
    """Hands each call to the module that answers it; those that mostly pass on are in its other parts."""

    search: Search
    batch_search: BatchSearch
    ingest: Ingest
    ingest_batch: IngestBatch
    labels: Labels
    classify: Classify
    find_duplicates: FindDuplicates
    reembed: Reembed
    status: Status
    metrics: Metrics

    async def Search(  # noqa: N802
        self, request: gateway_pb2.SearchRequest, context: CallContext
    ) -> gateway_pb2.SearchResponse:
        """See ``gateway.search``."""
        response = await self.search(request, Deadline.of(context, self.default_deadline_s))
        self.metrics.searched(response.timings)
        return response

    async def IndexImages(  # type: ignore[override]  # noqa: N802  (a coroutine that writes: see the interceptor)
        self, requests: AsyncIterator[gateway_pb2.IndexImagesRequest], context: CallContext
    ) -> None:
        """See ``gateway.ingest``."""
        await self.ingest(requests, context.write)

    async def IndexBatch(  # noqa: N802
        self, request: gateway_pb2.IndexBatchRequest, context: CallContext
    ) -> gateway_pb2.IndexBatchResponse:
        """See ``gateway.ingest_batch``."""
        return await self.ingest_batch(request, Deadline.of(context, self.default_deadline_s))

    async def BatchSearch(  # noqa: N802
        self, request: gateway_pb2.BatchSearchRequest, context: CallContext
    ) -> gateway_pb2.BatchSearchResponse:
        """See ``gateway.batch``."""
        response = await self.batch_search(request, Deadline.of(context, self.default_deadline_s))
        self.metrics.searched(response.timings)
        return response

    async def UpdateLabels(  # noqa: N802
        self, request: gateway_pb2.UpdateLabelsRequest, context: CallContext
    ) -> gateway_pb2.UpdateLabelsResponse:
        """See ``gateway.labels``."""
        return await self.labels.update(request, Deadline.of(context, self.default_deadline_s))

    async def Classify(  # noqa: N802
        self, request: gateway_pb2.ClassifyRequest, context: CallContext
    ) -> gateway_pb2.ClassifyResponse:
        """See ``gateway.classify``."""
        return await self.classify(request, Deadline.of(context, self.default_deadline_s))

    async def SuggestLabels(  # type: ignore[override]  # noqa: N802  (as IndexImages)
        self, request: gateway_pb2.SuggestLabelsRequest, context: CallContext
    ) -> None:
        """See ``gateway.classify``."""
        await self.classify.suggest(request, context.write, Deadline.of(context, math.inf))

    async def FindDuplicates(  # type: ignore[override]  # noqa: N802  (as IndexImages)
        self, request: gateway_pb2.FindDuplicatesRequest, context: CallContext
    ) -> None:
        """See ``gateway.duplicates``."""
        await self.find_duplicates(request, context.write, Deadline.of(context, math.inf))

    async def ReembedCollection(  # type: ignore[override]  # noqa: N802  (as IndexImages)
        self, request: gateway_pb2.ReembedCollectionRequest, context: CallContext
    ) -> None:
        """See ``gateway.reembed``."""
        await self.reembed(request, context.write, Deadline.of(context, math.inf))

    async def GetStatus(  # noqa: N802
        self, _request: gateway_pb2.GetStatusRequest, context: CallContext
    ) -> gateway_pb2.GetStatusResponse:
        """See ``gateway.status``."""
        return await self.status(Deadline.of(context, self.default_deadline_s).left())
