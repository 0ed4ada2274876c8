"""What a gateway does beside ingest and search, over the pictures that ``FakeGateway`` stores.

It knows filters of one label, classifies a picture by the labels that its bytes name, and turns pages of two items.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status
from likeness.common.v1 import error_pb2, metadata_pb2
from likeness.gateway.v1 import gateway_pb2 as pb

from tests.unit.client.fake_collections import FakeCollections

PAGE = 2
SCALE = 50.0


class FakeProduct(FakeCollections):
    """The part of ``FakeGateway`` that lists, counts, labels and compares.

    Attributes:
        stored: pictures by id.
        stream_breaks: what the next streams of suggestions end with after their first page.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = pb.SearchResponse(collection="images")
        self.stored: dict[str, pb.IndexItem] = {}
        self.stream_breaks: list[status_pb2.Status] = []

    def BatchSearch(self, request: pb.BatchSearchRequest, context: grpc.ServicerContext) -> pb.BatchSearchResponse:  # noqa: N802
        self.requests.append(request)
        answer = pb.BatchSearchResponse()
        answer.timings.total.FromMilliseconds(7)
        for search in request.searches:
            if search.terms:
                answer.results.add(response=self.found)
            else:
                answer.results.add(error=item_error(error_pb2.REASON_FIELD_INVALID, "terms: expected 1 to 64"))
        return answer

    def ListItems(self, request: pb.ListItemsRequest, context: grpc.ServicerContext) -> pb.ListItemsResponse:  # noqa: N802
        self.requests.append(pb.ListItemsRequest.FromString(request.SerializeToString()))
        page, token = self._page(request, request.page_token)
        return pb.ListItemsResponse(items=map(self._item, page), next_page_token=token)

    def CountItems(self, request: pb.CountItemsRequest, context: grpc.ServicerContext) -> pb.CountItemsResponse:  # noqa: N802
        self.requests.append(request)
        return pb.CountItemsResponse(count=len(self.matching(request)))

    def GetFacets(self, request: pb.GetFacetsRequest, context: grpc.ServicerContext) -> pb.GetFacetsResponse:  # noqa: N802
        self.requests.append(request)
        found = self.matching(request)
        answer = pb.GetFacetsResponse(count=len(found))
        for asked in request.facets:
            assert asked.key == "labels", "this gateway counts labels alone"
            counts = Counter(label for item_id in found for label in self.stored[item_id].labels)
            facet = answer.facets.add(key=asked.key, distinct=len(counts))
            facet.missing = sum(not self.stored[item_id].labels for item_id in found)
            for label, count in counts.most_common(asked.limit or 10):
                facet.values.add(value=metadata_pb2.Value(string_value=label), count=count)
        return answer

    def UpdateLabels(self, request: pb.UpdateLabelsRequest, context: grpc.ServicerContext) -> pb.UpdateLabelsResponse:  # noqa: N802
        self.requests.append(request)
        answer = pb.UpdateLabelsResponse(missing_ids=[i for i in request.ids if i not in self.stored])
        page = [i for i in request.ids if i in self.stored]
        if not request.ids:
            page, answer.next_page_token = self._page(request, request.page_token)
        rename = {getattr(each, "from"): each.to for each in request.rename}
        for item_id in page:
            item = self.stored[item_id]
            kept = request.set.labels if request.HasField("set") else [rename.get(x, x) for x in item.labels]
            labels = list(dict.fromkeys([*(x for x in kept if x not in request.remove), *request.add]))
            if labels == list(item.labels):
                answer.unchanged += 1
            else:
                answer.updated += 1
                item.labels[:] = labels
        return answer

    def UpdateMetadata(  # noqa: N802
        self, request: pb.UpdateMetadataRequest, context: grpc.ServicerContext
    ) -> pb.UpdateMetadataResponse:
        self.requests.append(request)
        answer = pb.UpdateMetadataResponse()
        for update in request.updates:
            if (item := self.stored.get(update.id)) is None:
                answer.missing_ids.append(update.id)
                continue
            answer.updated += 1
            for key in update.remove_keys:
                item.metadata.fields.pop(key, None)
            item.metadata.MergeFrom(update.set)
            if update.HasField("uri"):
                item.uri = update.uri
        return answer

    def Classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:  # noqa: N802
        self.requests.append(request)
        answer = pb.ClassifyResponse(scale=request.labelling.scale or SCALE)
        answer.fingerprint.model = "starter"
        for each in request.inputs:
            if each.HasField("id") and each.id not in self.stored:
                answer.results.add(error=item_error(error_pb2.REASON_ITEM_NOT_FOUND, f"there is no item {each.id!r}"))
                continue
            encoded = self.stored[each.id].image.encoded if each.HasField("id") else each.image.encoded
            answer.results.add(labels=scores(encoded, request.labelling)[: request.top_k or 5])
        return answer

    def SuggestLabels(  # noqa: N802
        self, request: pb.SuggestLabelsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.SuggestLabelsResponse]:
        self.requests.append(request)
        token, done, total = request.page_token, 0, len(self.matching(request))
        while True:
            page, token = self._page(request, token)
            done += len(page)
            answer = pb.SuggestLabelsResponse(done=done, total=total, next_page_token=token, scale=SCALE)
            for item_id in page:
                best = scores(self.stored[item_id].image.encoded, request.labelling)[: request.top_k or 1]
                if likely := [label for label in best if label.probability >= request.min_probability]:
                    answer.suggestions.add(id=item_id, labels=likely)
            yield answer
            if self.stream_breaks:
                context.abort_with_status(rpc_status.to_status(self.stream_breaks.pop(0)))
            if not token:
                return

    def FindDuplicates(  # noqa: N802
        self, request: pb.FindDuplicatesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.FindDuplicatesResponse]:
        self.requests.append(request)
        found = self.matching(request)
        same: dict[bytes, list[str]] = defaultdict(list)
        for item_id in found:
            same[self.stored[item_id].image.encoded].append(item_id)
        yield pb.FindDuplicatesResponse(total=len(found))
        answer = pb.FindDuplicatesResponse(done=len(found), total=len(found))
        for ids in same.values():
            if len(ids) > 1:
                items = [pb.DuplicateItem(item=self._item(item_id), score=1) for item_id in ids]
                answer.groups.add(items=items, count=len(ids))
        yield answer

    def matching(
        self,
        request: pb.ListItemsRequest
        | pb.CountItemsRequest
        | pb.GetFacetsRequest
        | pb.UpdateLabelsRequest
        | pb.SuggestLabelsRequest
        | pb.FindDuplicatesRequest
        | pb.DeleteItemsRequest,
    ) -> list[str]:
        """The ids that a filter leaves, in their order."""
        if not request.HasField("filter"):
            return sorted(self.stored)
        comparison = request.filter.comparison
        assert (comparison.key, comparison.op) == ("labels", metadata_pb2.OPERATOR_CONTAINS), "one label, no more"
        return sorted(i for i, item in self.stored.items() if comparison.values[0].string_value in item.labels)

    def _page(
        self, request: pb.ListItemsRequest | pb.UpdateLabelsRequest | pb.SuggestLabelsRequest, token: str
    ) -> tuple[list[str], str]:
        left = [item_id for item_id in self.matching(request) if item_id > token]
        return left[:PAGE], left[PAGE - 1] if len(left) > PAGE else ""

    def _item(self, item_id: str) -> pb.Item:
        stored = self.stored[item_id]
        return pb.Item(id=item_id, uri=stored.uri, labels=stored.labels, metadata=stored.metadata)


def scores(encoded: bytes, labelling: pb.Labelling) -> list[pb.LabelScore]:
    """The label that the bytes name has nine tenths; the others share what is left."""
    rest = 0.1 / max(1, len(labelling.labels) - 1)
    named = [(label, 0.9 if label.encode() in encoded else rest) for label in labelling.labels]
    best_first = sorted(named, key=lambda each: -each[1])
    return [pb.LabelScore(label=label, probability=share, similarity=share / 2) for label, share in best_first]


def item_error(reason: error_pb2.Reason.ValueType, message: str) -> error_pb2.ItemError:
    """Why one part of a call failed."""
    code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
    return error_pb2.ItemError(status=status_pb2.Status(code=code, message=message), reason=reason)
