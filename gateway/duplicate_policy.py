"""Which items are skipped, since the collection has them, or the same, already.

1. before embedding: ids that are there; pictures whose SHA-256 is there, looked up through the index of metadata
2. after: pictures whose vector is near one that is there, or near an earlier one of the batch

Pictures of one SHA-256 that are under way at once never reach a batch together: the stream keeps them apart.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from likeness.common.v1 import error_pb2
from likeness.common.v1.metadata_pb2 import OPERATOR_IN, Comparison, Filter, Value
from likeness.common.v1.types_pb2 import METRIC_COSINE, METRIC_L2, ItemFields, Metric, ModelFingerprint, Vector
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis.errors import LikenessError, from_status
from chassis.vectors import Array, from_proto
from gateway.backends import Indexer
from gateway.backoff import Backoff
from gateway.ingest_item import Item
from gateway.ingest_options import Options

R = TypeVar("R")

_HASH = "sha256"
_PAGE = 1000
# The most values of a filter, and queries of a call.
_VALUES, _QUERIES = 256, 128


@dataclass(frozen=True)
class Skip:
    """Why an item is skipped.

    Attributes:
        reason: as the contract names it.
        existing_id: of the item that is there.
        score: how alike it is, of a near duplicate.
    """

    reason: gateway_pb2.SkipReason.ValueType
    existing_id: str
    score: float = 0.0


@dataclass(frozen=True)
class DuplicatePolicy:
    """Looks for what is there already.

    Attributes:
        indexer: is asked for it.
        collection: where.
        metric: the collection's.
        options: what to look for.
        timeout_s: longest wait for one call.
        backoff: makes the calls, and again while the indexer has too much to do.
    """

    indexer: Indexer
    collection: str
    metric: Metric.ValueType
    options: Options
    timeout_s: float
    backoff: Backoff

    async def before_embedding(self, batch: Sequence[Item]) -> dict[str, Skip]:
        """What is skipped of a batch, by the items' ids; where pictures are compared, it has each once."""
        skipped: dict[str, Skip] = {}
        if self.options.skip_existing:
            for item_id in await self._existing([item.id for item in batch]):
                skipped[item_id] = Skip(gateway_pb2.SKIP_REASON_EXISTS, item_id)
        if self.options.skip_exact:
            left = {item.sha256: item.id for item in batch if item.id not in skipped}
            for sha256, existing_id in (await self._same_picture(left)).items():
                skipped[left[sha256]] = Skip(gateway_pb2.SKIP_REASON_EXACT_DUPLICATE, existing_id)
        return skipped

    async def after_embedding(self, vectors: Mapping[str, Vector], model: ModelFingerprint) -> dict[str, Skip]:
        """What is skipped of embedded items.

        Args:
            vectors: by the items' ids, in the order sent.
            model: what made them; the collection has to be of the same.
        """
        near = self.options.near
        if near is None or not vectors:
            return {}
        skipped = await self._near(vectors, near, model)
        kept: list[tuple[str, Array]] = []
        for item_id, vector in vectors.items():
            if item_id in skipped:
                continue
            array = from_proto(vector, "vector")
            scores = [(self._score(array, other), other_id) for other_id, other in kept]
            best = max(scores, default=None)
            if best is not None and best[0] >= near:
                skipped[item_id] = Skip(gateway_pb2.SKIP_REASON_NEAR_DUPLICATE, best[1], best[0])
            else:
                kept.append((item_id, array))
        return skipped

    async def _existing(self, ids: Sequence[str]) -> list[str]:
        request = indexer_pb2.GetItemsRequest(collection=self.collection, ids=ids, fields=ItemFields())
        found = await self._asked(lambda: self.indexer.get(request, self.timeout_s))
        return [item.id for item in found.items]

    async def _same_picture(self, ids: Mapping[str, str]) -> dict[str, str]:
        """By SHA-256 the id of an item, another than the one given, that is the same picture."""
        found: dict[str, str] = {}
        hashes = list(ids)
        runs = [hashes[i : i + _VALUES] for i in range(0, len(hashes), _VALUES)]
        while runs:
            run = runs.pop()
            page = await self._listed(run, _PAGE)
            for item in page.items:
                sha256 = item.metadata.fields[_HASH].string_value
                if item.id != ids[sha256]:
                    found.setdefault(sha256, item.id)
            if page.next_page_token and len(run) > 1:
                # Pictures that are there very often have filled the page: what they have hidden is asked for by itself,
                # and of each two items are enough.
                runs.extend([sha256] for sha256 in run if sha256 not in found)
        return found

    async def _listed(self, hashes: Sequence[str], page_size: int) -> indexer_pb2.ListItemsResponse:
        values = [Value(string_value=sha256) for sha256 in hashes]
        request = indexer_pb2.ListItemsRequest(
            collection=self.collection,
            filter=Filter(comparison=Comparison(key=_HASH, op=OPERATOR_IN, values=values)),
            page_size=page_size if len(hashes) > 1 else 2,
            fields=ItemFields(metadata=True),
        )
        return await self._asked(lambda: self.indexer.list(request, self.timeout_s))

    async def _near(self, vectors: Mapping[str, Vector], near: float, model: ModelFingerprint) -> dict[str, Skip]:
        """What has a near duplicate in the collection."""
        ids, skipped = list(vectors), dict[str, Skip]()
        for start in range(0, len(ids), _QUERIES):
            part = ids[start : start + _QUERIES]
            request = indexer_pb2.QueryRequest(collection=self.collection, expected_fingerprint=model)
            for item_id in part:
                query = request.queries.add(min_score=near, top_k=2)  # one of them may be the item itself
                query.examples.add(vector=vectors[item_id])
            answer = await self._asked(partial(self.indexer.query, request, self.timeout_s))
            for item_id, result in zip(part, answer.results, strict=True):
                if result.HasField("error"):
                    raise from_status(result.error.status)
                hit = next((hit for hit in result.hits if hit.id != item_id), None)
                if hit is not None:
                    skipped[item_id] = Skip(gateway_pb2.SKIP_REASON_NEAR_DUPLICATE, hit.id, hit.score)
        return skipped

    async def _asked(self, call: Callable[[], Awaitable[R]]) -> R:
        try:
            return await self.backoff.call("indexer", call)
        except LikenessError as error:
            if error.reason != error_pb2.REASON_DEADLINE_EXCEEDED:
                raise
            message = "the indexer gave no answer in time; see LIKENESS_INGEST_CALL_S"
            raise LikenessError(error_pb2.REASON_INDEXER_UNAVAILABLE, message, retry_after_s=1.0) from error

    def _score(self, one: Array, other: Array) -> float:
        """How alike two vectors are: see ``likeness.common.v1.Metric``."""
        one, other = one.astype(np.float64), other.astype(np.float64)
        if self.metric == METRIC_L2:
            return -float(np.linalg.norm(one - other))
        product = float(one @ other)
        if self.metric != METRIC_COSINE:
            return product
        scale = float(np.linalg.norm(one) * np.linalg.norm(other))
        return min(max(product / scale, -1.0), 1.0) if scale else 0.0
