"""Queries of different searches, sent to the indexer in one call where they are small and there at the same moment."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from likeness.indexer.v1 import indexer_pb2

from chassis.deadline import Deadline
from gateway.indexer_reads import IndexerReads
from gateway.joint import JointCalls

# Of a query that shares a call: hits, and bytes, its vectors included, at most.
_MOST_HITS = 50
_MOST_BYTES = 32 * 1024


@dataclass(frozen=True)
class Answered:
    """The answer to a request.

    Attributes:
        response: of the call that it was sent in.
        first: the place of its first query in that.
    """

    response: indexer_pb2.QueryResponse
    first: int = 0


class JointQueries:
    """Sends queries to the indexer. None shares a call with one that has a filter, names an item or is large."""

    def __init__(self, indexer: IndexerReads) -> None:
        """Sends nothing yet."""
        self._indexer = indexer
        self._joint = JointCalls(self._send)

    async def __call__(self, request: indexer_pb2.QueryRequest, deadline: Deadline) -> Answered:
        """Sends a request, if it is small maybe together with others'.

        Args:
            request: of at least one query.
            deadline: by when.

        Raises:
            LikenessError: the call failed as a whole.
        """
        if _is_small(request):
            answered = await self._joint(request, _in_common(request), deadline)
            if answered is not None:
                return answered
        response = await self._indexer.query(request, deadline.left())
        if len(response.results) != len(request.queries):
            raise ValueError(f"the indexer gave {len(response.results)} results for {len(request.queries)} queries")
        return Answered(response)

    async def _send(self, requests: Sequence[indexer_pb2.QueryRequest], timeout_s: float) -> list[Answered]:
        one = requests[0]
        together = indexer_pb2.QueryRequest(
            collection=one.collection,
            expected_fingerprint=one.expected_fingerprint if one.HasField("expected_fingerprint") else None,
            queries=[request.queries[0] for request in requests],
            fields=one.fields if one.HasField("fields") else None,
        )
        response = await self._indexer.query(together, timeout_s)
        return [Answered(response, place) for place in range(len(response.results))]


def _is_small(request: indexer_pb2.QueryRequest) -> bool:
    if len(request.queries) != 1 or request.fields.vector or request.ByteSize() > _MOST_BYTES:
        return False
    query = request.queries[0]
    if query.exact or query.offset or query.HasField("filter") or query.HasField("rescore"):
        return False
    if any(example.WhichOneof("example") != "vector" for example in query.examples):
        return False
    return query.top_k <= _MOST_HITS


def _in_common(request: indexer_pb2.QueryRequest) -> Hashable:
    model = request.expected_fingerprint.SerializeToString(deterministic=True)
    return request.collection, model, request.fields.metadata, request.queries[0].top_k
