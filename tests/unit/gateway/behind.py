"""An embedder and an indexer in this process, for tests of the gateway: small, slow, and true to the contract."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
from likeness.common.v1 import error_pb2, types_pb2
from likeness.common.v1.metadata_pb2 import Metadata, Value
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc
from prometheus_client import CollectorRegistry

from chassis import metadata as plain_metadata
from chassis.errors import LikenessError, invalid, to_item_error, to_status
from chassis.vectors import Array, from_proto, to_proto
from gateway.backends import Embedder, Indexer
from gateway.embedding import Embedding
from gateway.fetch import Fetch
from gateway.metrics import Metrics
from gateway.settings import GatewaySettings
from gateway.vector_cache import VectorCache
from indexer.messages import where
from tests.unit.indexer.model import true_for

MODEL = types_pb2.ModelFingerprint(model="m", digest="aa", dimension=8)
OTHER = types_pb2.ModelFingerprint(model="another", digest="bb", dimension=8)


def vector(*numbers: float) -> Array:
    """A vector of length 1 that begins with these numbers."""
    whole = np.zeros(8, np.float32)
    whole[: len(numbers)] = numbers
    return whole / np.linalg.norm(whole)


def direction_of(text: str | bytes) -> Array:
    """Some vector, always the same for the same text."""
    seed = hashlib.sha256(text.encode() if isinstance(text, str) else text).digest()[:4]
    numbers = np.random.default_rng(int.from_bytes(seed, "little")).normal(size=8).astype(np.float32)
    return numbers / np.linalg.norm(numbers)


class Behind(embedder_pb2_grpc.EmbedderServiceServicer, indexer_pb2_grpc.IndexerServiceServicer):
    """Both services, what they were asked, and what they hold.

    A picture (its bytes as Latin-1) or text is embedded as ``meaning`` says, or somehow; one that begins with "bad", or
    is in ``damaged``, is refused.
    """

    def __init__(self) -> None:
        self.model = MODEL
        self.max_inputs = 256
        self.max_message_bytes = 64 * 2**20
        self.max_encoded_bytes = self.max_pixels = 0
        self.meaning: dict[str, Array] = {}
        self.damaged: set[str] = set()
        self.collections: dict[str, types_pb2.ModelFingerprint] = {"images": MODEL}
        self.uids: dict[str, str] = {}  # of collections that were made anew
        self.vectors: dict[str, Array] = {}
        self.items: dict[str, dict[str, plain_metadata.Plain]] = {}
        self.calls: list[tuple[str, Any]] = []
        self.announced: list[bool] = []  # of each call, whether it says beforehand that it is bulk
        self.vanish_before_write: set[str] = set()
        self.erasing: set[str] = set()
        self.fail: dict[str, LikenessError] = {}
        self._another_call = asyncio.Event()

    def put(self, item_id: str, direction: Array, **metadata: plain_metadata.Plain) -> None:
        """Stores an item."""
        self.vectors[item_id], self.items[item_id] = direction, metadata

    def asked(self, method: str) -> list[Any]:
        """The requests of a method, in order."""
        return [request for name, request in self.calls if name == method]

    async def until_asked(self, method: str, times: int) -> None:
        """Waits until a method has been called so often."""
        while len(self.asked(method)) < times:
            self._another_call.clear()
            await self._another_call.wait()

    async def GetModel(self, request: Any, context: Any) -> embedder_pb2.GetModelResponse:  # noqa: N802
        limits = types_pb2.EmbedLimits(
            max_inputs=self.max_inputs,
            max_message_bytes=self.max_message_bytes,
            max_encoded_bytes=self.max_encoded_bytes,
            max_pixels=self.max_pixels,
        )
        return embedder_pb2.GetModelResponse(fingerprint=self.model, limits=limits)

    async def Embed(self, request: embedder_pb2.EmbedRequest, context: Any) -> embedder_pb2.EmbedResponse:  # noqa: N802
        await self._begin("Embed", request, context)
        answer = embedder_pb2.EmbedResponse(fingerprint=self.model)
        answer.timings.queue.FromMilliseconds(1)
        answer.timings.decode.FromMilliseconds(2)
        answer.timings.inference.FromMilliseconds(3)
        for i, each in enumerate(request.inputs):
            content = each.text or each.image.encoded.decode("latin-1")
            if content.startswith("bad") or content in self.damaged:
                error = invalid(f"inputs[{i}].text", "is bad")
                answer.results.add(error=to_item_error(error))
            else:
                found = self.meaning.get(content, direction_of(content))
                answer.results.add(vector=to_proto(found))
        return answer

    async def GetCollection(self, request: Any, context: Any) -> indexer_pb2.GetCollectionResponse:  # noqa: N802
        await self._begin("GetCollection", request, context, request.name)
        fingerprint = self.collections[request.name]
        uid = self.uids.get(request.name, f"uid-{request.name}")
        return indexer_pb2.GetCollectionResponse(
            collection=indexer_pb2.Collection(
                name=request.name, uid=uid, fingerprint=fingerprint, metric=types_pb2.METRIC_COSINE
            )
        )

    async def GetItems(self, request: Any, context: Any) -> indexer_pb2.GetItemsResponse:  # noqa: N802
        await self._begin("GetItems", request, context, request.collection)
        there = [i for i in request.ids if i in self.items]
        missing = [i for i in request.ids if i not in self.items]
        return indexer_pb2.GetItemsResponse(items=[self._item(i, request.fields) for i in there], missing_ids=missing)

    async def ListItems(self, request: Any, context: Any) -> indexer_pb2.ListItemsResponse:  # noqa: N802
        await self._begin("ListItems", request, context, request.collection)
        places = sorted((str(self.items[i].get(request.order_by, "")), i) for i in self._matching(request))
        behind = [place for place in places if "\t".join(place) > request.page_token]
        page = [item_id for _, item_id in behind[: request.page_size or 100]]
        token = "\t".join(behind[len(page) - 1]) if len(page) < len(behind) else ""
        return indexer_pb2.ListItemsResponse(items=[self._item(i, request.fields) for i in page], next_page_token=token)

    async def UpsertItems(  # noqa: N802
        self, request: indexer_pb2.UpsertItemsRequest, context: Any
    ) -> indexer_pb2.UpsertItemsResponse:
        await self._begin("UpsertItems", request, context, request.collection)
        if request.expected_uid not in ("", self.uids.get(request.collection, f"uid-{request.collection}")):
            await self._abort(context, LikenessError(error_pb2.REASON_COLLECTION_NOT_FOUND, "made anew"))
        if self.erasing & {item.id for item in request.items}:
            error = LikenessError(error_pb2.REASON_COLLECTION_BUSY, "is being erased", retry_after_s=5.0)
            await self._abort(context, error)
        for item in request.items:
            self.put(item.id, from_proto(item.vector, "vector", 8), **plain_metadata.from_proto(item.metadata, "m"))
        return indexer_pb2.UpsertItemsResponse()

    async def DeleteItems(  # noqa: N802
        self, request: indexer_pb2.DeleteItemsRequest, context: Any
    ) -> indexer_pb2.DeleteItemsResponse:
        await self._begin("DeleteItems", request, context, request.collection)
        gone = [i for i in request.ids if self.items.pop(i, None) is not None and self.vectors.pop(i, None) is not None]
        return indexer_pb2.DeleteItemsResponse(deleted=len(gone))

    async def CountItems(self, request: Any, context: Any) -> indexer_pb2.CountItemsResponse:  # noqa: N802
        await self._begin("CountItems", request, context, request.collection)
        return indexer_pb2.CountItemsResponse(count=len(self._matching(request)))

    async def GetFacets(self, request: Any, context: Any) -> indexer_pb2.GetFacetsResponse:  # noqa: N802
        await self._begin("GetFacets", request, context, request.collection)
        ids = self._matching(request)
        answer = indexer_pb2.GetFacetsResponse(count=len(ids))
        for facet in request.facets:
            counts: dict[str, int] = {}
            for item_id in ids:
                value = self.items[item_id].get(facet.key, [])
                for each in value if isinstance(value, list) else [str(value)]:
                    counts[each] = counts.get(each, 0) + 1
            first = sorted(counts, key=lambda text: (-counts[text], text))[: facet.limit or 10]
            answer.facets.add(
                key=facet.key,
                values=[indexer_pb2.FacetValue(value=Value(string_value=t), count=counts[t]) for t in first],
                distinct=len(counts),
                missing=sum(facet.key not in self.items[i] for i in ids),
            )
        return answer

    async def UpdateMetadata(  # noqa: N802
        self, request: indexer_pb2.UpdateMetadataRequest, context: Any
    ) -> indexer_pb2.UpdateMetadataResponse:
        await self._begin("UpdateMetadata", request, context, request.collection)
        for item_id in self.vanish_before_write:
            self.items.pop(item_id, None)
        answer = indexer_pb2.UpdateMetadataResponse()
        for update in request.updates:
            if update.id not in self.items:
                answer.missing_ids.append(update.id)
                continue
            answer.updated += 1
            for key in (*update.remove_keys, *update.set.fields):
                self.items[update.id].pop(key, None)
            self.items[update.id] |= plain_metadata.from_proto(update.set, "set")
        return answer

    async def Query(self, request: indexer_pb2.QueryRequest, context: Any) -> indexer_pb2.QueryResponse:  # noqa: N802
        await self._begin("Query", request, context, request.collection)
        own = self.collections[request.collection]
        if request.expected_fingerprint.digest not in ("", own.digest):
            await self._abort(context, LikenessError(error_pb2.REASON_MODEL_MISMATCH, "two models"))
        answer = indexer_pb2.QueryResponse(fingerprint=own)
        for i, query in enumerate(request.queries):
            try:
                answer.results.add(hits=self._hits(query, i, request.fields))
            except LikenessError as error:
                answer.results.add(error=to_item_error(error))
        return answer

    def _hits(self, query: indexer_pb2.Query, place: int, fields: types_pb2.ItemFields) -> list[indexer_pb2.Hit]:
        total, own = np.zeros(8, np.float32), set[str]()
        for j, example in enumerate(query.examples):
            weight = example.weight if example.HasField("weight") else 1.0
            if example.WhichOneof("example") == "id":
                if example.id not in self.vectors:
                    message = f"queries[{place}].examples[{j}].id: no item {example.id!r}"
                    raise LikenessError(error_pb2.REASON_ITEM_NOT_FOUND, message)
                own.add(example.id)
                total = total + weight * self.vectors[example.id]
            else:
                total = total + weight * from_proto(example.vector, f"queries[{place}].examples[{j}].vector", 8)
        if not total.any():
            raise invalid(f"queries[{place}].examples", "cancel out", error_pb2.REASON_QUERY_CANCELS_OUT)
        total /= np.linalg.norm(total)
        scores = {i: min(float(self.vectors[i] @ total), 1.0) for i in self._matching(query) if i not in own}
        least = query.min_score if query.HasField("min_score") else -2
        best = sorted((i for i in scores if scores[i] >= least), key=lambda i: (-scores[i], i))
        return [
            indexer_pb2.Hit(
                id=i,
                score=scores[i],
                distance=1 - scores[i],
                metadata=self._metadata(i) if fields.metadata else None,
                vector=to_proto(self.vectors[i]) if fields.vector else None,
            )
            for i in best[query.offset : query.offset + (query.top_k or 10)]
        ]

    def _matching(self, request: Any) -> list[str]:
        node = where(request)
        return [i for i, metadata in self.items.items() if true_for(node, metadata)]

    def _item(self, item_id: str, fields: types_pb2.ItemFields) -> indexer_pb2.Item:
        return indexer_pb2.Item(
            id=item_id,
            metadata=self._metadata(item_id) if fields.metadata else None,
            vector=to_proto(self.vectors[item_id]) if fields.vector else None,
        )

    def _metadata(self, item_id: str) -> Metadata:
        return plain_metadata.to_proto(self.items[item_id])

    async def _begin(self, method: str, request: Any, context: Any, collection: str = "images") -> None:
        self.calls.append((method, request))
        self.announced.append(("likeness-priority", "bulk") in context.invocation_metadata())
        self._another_call.set()
        if method in self.fail:
            await self._abort(context, self.fail[method])
        if collection not in self.collections:
            await self._abort(context, LikenessError(error_pb2.REASON_COLLECTION_NOT_FOUND, f"no {collection!r}"))

    async def _abort(self, context: Any, error: LikenessError) -> None:
        details = (("grpc-status-details-bin", to_status(error).SerializeToString()),)
        context.set_trailing_metadata(details)
        await context.abort(error.code, error.message)


@asynccontextmanager
async def behind(told: Behind | None = None) -> AsyncIterator[tuple[Behind, Embedder, Indexer]]:
    """Both services, and the gateway's connections to them."""
    services = told or Behind()  # type: ignore[abstract]  # only what the gateway calls
    server = grpc.aio.server()
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(services, server)
    indexer_pb2_grpc.add_IndexerServiceServicer_to_server(services, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    settings = GatewaySettings(embedder_address=address, indexer_address=address)
    embedder, indexer = Embedder(settings), Indexer(settings)
    yield services, embedder, indexer
    await embedder.close()
    await indexer.close()
    await server.stop(0)


def embedding(
    embedder: Embedder,
    size: int = 0,
    fetch: Fetch | None = None,
    metrics: Metrics | None = None,
    max_bytes: int = 64 * 2**20,
) -> Embedding:
    """Gives vectors, and remembers so many."""
    metrics = metrics or Metrics(CollectorRegistry())
    cache = VectorCache(size, metrics)
    fetch = fetch or Fetch(GatewaySettings(), metrics)
    return Embedding(embedder, fetch, cache, max_bytes, throttled=metrics.throttled)


def ids(items: Sequence[Any]) -> list[str]:
    """The ids of items or suggestions."""
    return [item.id for item in items]
