"""Searches: terms → one Embed call → one Query call for each collection, facets beside it → hits.

A single search is a batch of one; a small one may share its calls with other callers' (``gateway.joint``).
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from google.protobuf.duration_pb2 import Duration
from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import ItemFields, ModelFingerprint, Vector
from likeness.embedder.v1 import embedder_pb2
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis import vectors as vector_messages
from chassis.deadline import Deadline
from chassis.errors import LikenessError, from_status, in_request
from gateway import facets, items, queries
from gateway.embedding import Embedding
from gateway.explain import cosines
from gateway.indexer_reads import IndexerReads
from gateway.joint_queries import JointQueries
from gateway.requests import collection_name, duration, expected_fingerprint, mismatch
from gateway.streams import MAX_BYTES

# Calls for facets and for stored vectors that a batch has under way at once.
_AT_ONCE = 8
# More hits and values of facets than these are put into messages in a thread: they would hold up the event loop. With
# seven keys of metadata 100 hits take 2 ms, 1,000 take 40 and 10,000 take 440 (on two busy cores).
INLINE_ROWS = 100


@dataclass
class _Search:
    """A search under way.

    Attributes:
        request: as the client sent it.
        collection: where it searches.
        fingerprint: the model that the collection must be of; None: any.
        vectors: of the embedded terms, and, to explain, of the stored ones; by place.
        remembered: whether some of them were made before this call, maybe by a model that is no longer the embedder's.
        answer: what was found; in the end that, or ``error``, is set.
        counts: the facets, if asked for.
        error: why it failed.
    """

    request: gateway_pb2.SearchRequest
    collection: str = ""
    fingerprint: ModelFingerprint | None = None
    vectors: dict[int, Vector] = field(default_factory=dict)
    remembered: bool = False
    answer: tuple[indexer_pb2.QueryResult, ModelFingerprint] | None = None
    counts: indexer_pb2.GetFacetsResponse | None = None
    error: LikenessError | None = None

    def plan(self) -> None:
        """Checks the request and reads what it says of the whole."""
        queries.check(self.request)
        self.collection = collection_name(self.request.collection)
        self.fingerprint = expected_fingerprint(self.request)

    def begin_again(self) -> None:
        """Forgets what came of it."""
        self.vectors, self.answer, self.counts, self.error = {}, None, None, None
        self.plan()

    @property
    def needs_vectors(self) -> bool:
        """Whether the vectors of its hits are read: to be shown, or to be compared with the terms."""
        return self.request.explain or self.request.fields.vector


class Search:
    """Answers searches from an embedder and an indexer."""

    def __init__(self, embedding: Embedding, indexer: IndexerReads) -> None:
        self._embedding, self._indexer = embedding, indexer
        self._queries = JointQueries(indexer)

    async def __call__(self, request: gateway_pb2.SearchRequest, deadline: Deadline) -> gateway_pb2.SearchResponse:
        """Finds the items nearest to the request's terms.

        Raises:
            LikenessError: a term is bad, the terms cancel out, the collection is unknown or of another model, or a
                service cannot be reached.
        """
        (outcome,), timings = await self.many([request], deadline)
        if isinstance(outcome, LikenessError):
            raise outcome
        outcome.timings.CopyFrom(timings)
        return outcome

    async def many(
        self, requests: Sequence[gateway_pb2.SearchRequest], deadline: Deadline, *, split: bool = False
    ) -> tuple[list[gateway_pb2.SearchResponse | LikenessError], gateway_pb2.SearchTimings]:
        """Answers searches together; what each failed with stands in its place.

        Args:
            requests: the searches.
            deadline: by when.
            split: whether their terms may be more than one call to the embedder takes.
        """
        started = time.perf_counter()
        timings = gateway_pb2.SearchTimings()
        searches = [_Search(request) for request in requests]
        for search in searches:
            try:
                search.plan()
            except LikenessError as error:
                search.error = error
        await self._embed(_good(searches), deadline, timings, split=split)
        deadline.left()
        await self._look_up(_good(searches), deadline, timings)
        await self._look_up_anew(searches, deadline, timings, split=split)
        explaining = time.perf_counter()
        explains = any(request.explain for request in requests)
        if explains or sum(map(_rows, searches)) > INLINE_ROWS:
            outcomes = await asyncio.to_thread(lambda: [_outcome(search) for search in searches])
        else:
            outcomes = [_outcome(search) for search in searches]
        if explains:
            timings.explain.CopyFrom(duration(time.perf_counter() - explaining))
        finished = time.perf_counter()
        timings.total.CopyFrom(duration(finished - started))
        return outcomes, timings

    async def _look_up_anew(
        self, searches: Sequence[_Search], deadline: Deadline, timings: gateway_pb2.SearchTimings, *, split: bool
    ) -> None:
        """Searches again, with vectors made now, where those remembered turned out to be of another model."""
        stale = [each for each in searches if each.remembered and _is_mismatch(each.error)]
        if not stale:
            return
        for search in stale:
            search.begin_again()
        await self._embed(stale, deadline, timings, split=split, fresh=True)
        await self._look_up(_good(stale), deadline, timings)

    async def _embed(
        self,
        searches: Sequence[_Search],
        deadline: Deadline,
        timings: gateway_pb2.SearchTimings,
        *,
        split: bool,
        fresh: bool = False,
    ) -> None:
        """Gives the searches the vectors of their pictures and texts; a text that several have is embedded once."""
        inputs: list[embedder_pb2.EmbedInput] = []
        places: dict[str, int] = {}
        terms: list[tuple[_Search, int, int]] = []
        for search in searches:
            for i, term in enumerate(search.request.terms):
                if queries.is_embedded(term):
                    place = places.setdefault(term.text, len(inputs)) if term.text else len(inputs)
                    if place == len(inputs):
                        inputs.append(queries.embed_input(term))
                    terms.append((search, i, place))
        if not inputs:
            return
        started = time.perf_counter()
        try:
            embedded = await self._embedding(inputs, deadline, split=split, fresh=fresh)
        except LikenessError as error:
            for search, _, _ in terms:
                search.error = in_request(error, lambda name: name.replace("inputs", "terms", 1))
            return
        for search, i, place in terms:
            outcome = embedded.outcomes[place]
            if isinstance(outcome, LikenessError):
                search.error = search.error or queries.of_term(outcome, i)
            else:
                search.vectors[i] = outcome
        for search in {id(search): search for search, _, _ in terms}.values():
            search.remembered = embedded.remembered
            expected = search.fingerprint
            if expected is not None and expected.digest != embedded.fingerprint.digest:
                search.error = mismatch(embedded.fingerprint, expected, "the model that the request expects")
            search.fingerprint = embedded.fingerprint
        timings.embed.CopyFrom(duration(time.perf_counter() - started))
        timings.embed_queue.CopyFrom(embedded.timings.queue)
        timings.embed_decode.CopyFrom(embedded.timings.decode)
        timings.embed_inference.CopyFrom(embedded.timings.inference)

    async def _look_up(
        self, searches: Sequence[_Search], deadline: Deadline, timings: gateway_pb2.SearchTimings
    ) -> None:
        """Queries, counts and reads stored vectors, all at once."""
        # Vectors are large: one search that needs them must not make its neighbours' answer too large.
        groups: dict[tuple[str, str, bool], list[_Search]] = {}
        for search in searches:
            digest = "" if search.fingerprint is None else search.fingerprint.digest
            groups.setdefault((search.collection, digest, search.needs_vectors), []).append(search)
        few = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for group in groups.values():
                tasks.create_task(self._query(group, deadline, timings.query))
            for search in searches:
                if search.request.facets:
                    tasks.create_task(self._count(search, deadline, few, timings.facets))
                if search.request.explain:
                    tasks.create_task(self._read_terms(search, deadline, few))

    async def _query(self, group: Sequence[_Search], deadline: Deadline, took: Duration) -> None:
        """Queries for searches of one collection and one model, all with vectors or all without.

        They are one call, or, where its answer would be too large, several with a part of them each, until what is
        found fills a message.
        """
        started = time.perf_counter()
        waiting, room = [group], MAX_BYTES
        while waiting:
            part = waiting.pop()
            if room < 0:
                for search in part:
                    search.error = search.error or no_room()
                continue
            request = indexer_pb2.QueryRequest(
                collection=part[0].collection,
                expected_fingerprint=part[0].fingerprint,
                queries=[queries.query(search.request, search.vectors) for search in part],
                fields=items.to_read(ItemFields(vector=part[0].needs_vectors)),
            )
            try:
                answered = await self._queries(request, deadline)
            except LikenessError as error:
                if error.reason == error_pb2.REASON_BATCH_TOO_LARGE and len(part) > 1:
                    half = len(part) // 2
                    waiting += [part[half:], part[:half]]
                    continue
                for search in part:
                    search.error = search.error or queries.of_search(error, 0)
                continue
            if waiting:
                room -= sum(map(_size, part, answered.response.results[answered.first :]))
            for place, search in enumerate(part, answered.first):
                result = answered.response.results[place]
                if result.HasField("error"):
                    search.error = search.error or queries.of_search(from_status(result.error.status), place)
                else:
                    search.answer = result, answered.response.fingerprint
            _longest(took, time.perf_counter() - started)

    async def _count(self, search: _Search, deadline: Deadline, few: asyncio.Semaphore, took: Duration) -> None:
        async with few:
            started = time.perf_counter()
            request = indexer_pb2.GetFacetsRequest(
                collection=search.collection,
                filter=search.request.filter if search.request.HasField("filter") else None,
                facets=facets.wanted(search.request.facets),
            )
            try:
                search.counts = await self._indexer.facets(request, deadline.left())
            except LikenessError as error:
                search.error = search.error or error
            _longest(took, time.perf_counter() - started)

    async def _read_terms(self, search: _Search, deadline: Deadline, few: asyncio.Semaphore) -> None:
        """Adds the vectors of the terms that are stored items, or that the caller brought."""
        stored: dict[str, list[int]] = {}
        for i, term in enumerate(search.request.terms):
            if term.WhichOneof("term") == "vector":
                search.vectors[i] = term.vector
            elif term.WhichOneof("term") == "id":
                stored.setdefault(term.id, []).append(i)
        if not stored:
            return
        request = indexer_pb2.GetItemsRequest(collection=search.collection, ids=stored, fields=ItemFields(vector=True))
        async with few:
            try:
                found = await self._indexer.get(request, deadline.left())
            except LikenessError as error:
                search.error = search.error or in_request(error, lambda name: name.replace("ids", "terms", 1))
                return
        for item in found.items:
            for i in stored[item.id]:
                search.vectors[i] = item.vector
        for missing in found.missing_ids:  # the query says so too, unless it was deleted just between the two
            message = f"terms[{stored[missing][0]}].id: there is no item {missing!r} in the collection"
            search.error = search.error or LikenessError(error_pb2.REASON_ITEM_NOT_FOUND, message)


def no_room() -> LikenessError:
    """The error of a search of a batch that would be found, but not told."""
    message = (
        f"the answers before this one leave no room for it: at most {MAX_BYTES // 2**20} MiB are given together; send "
        "the search in another call, or ask for fewer hits or fields"
    )
    return LikenessError(error_pb2.REASON_BATCH_TOO_LARGE, message)


def _size(search: _Search, result: indexer_pb2.QueryResult) -> int:
    """Bytes of what its client will be sent, or a little more: not all that is read is."""
    fields = items.wanted(search.request)
    left_out = 0 if fields.vector else sum(len(hit.vector.f32) for hit in result.hits)
    if not fields.metadata:
        values = (hit.metadata.fields.items() for hit in result.hits)
        left_out += sum(
            value.ByteSize() for each in values for key, value in each if key not in (items.URI, items.LABELS)
        )
    return result.ByteSize() - left_out


def _is_mismatch(error: LikenessError | None) -> bool:
    return error is not None and error.reason == error_pb2.REASON_MODEL_MISMATCH


def _good(searches: Sequence[_Search]) -> list[_Search]:
    return [search for search in searches if search.error is None]


def _rows(search: _Search) -> int:
    found = 0 if search.answer is None else len(search.answer[0].hits)
    return found + (0 if search.counts is None else sum(len(each.values) for each in search.counts.facets))


def rows(outcome: gateway_pb2.SearchResponse | LikenessError) -> int:
    """How many hits and values of facets it has."""
    if isinstance(outcome, LikenessError):
        return 0
    return len(outcome.hits) + sum(len(each.values) for each in outcome.facets)


def _outcome(search: _Search) -> gateway_pb2.SearchResponse | LikenessError:
    if search.error is not None:
        return search.error
    assert search.answer is not None
    result, fingerprint = search.answer
    fields = items.wanted(search.request)
    response = gateway_pb2.SearchResponse(collection=search.collection, fingerprint=fingerprint)
    for hit in result.hits:
        response.hits.add(item=items.from_stored(hit, fields), score=hit.score, distance=hit.distance)
    if search.request.explain and result.hits:
        terms = [search.vectors[i] for i in range(len(search.request.terms))]
        alike = cosines(
            np.stack([vector_messages.from_proto(hit.vector, "hit.vector") for hit in result.hits]),
            np.stack([vector_messages.from_proto(vector, "terms") for vector in terms]),
        )
        for shown, row in zip(response.hits, alike, strict=True):
            shown.term_similarities.extend(row.tolist())
    if search.counts is not None:
        response.facets.extend(facets.shown(search.counts.facets))
        response.count = search.counts.count
    return response


def _longest(took: Duration, seconds: float) -> None:
    """The time of what runs at once is that of its slowest part."""
    if duration(seconds).ToNanoseconds() > took.ToNanoseconds():
        took.CopyFrom(duration(seconds))
