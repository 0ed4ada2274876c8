"""One search: terms → one Embed call → one Query call → hits."""

import math
import re
import time
from dataclasses import dataclass
from functools import partial

from google.protobuf.duration_pb2 import Duration
from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import ModelFingerprint, Vector
from likeness.embedder.v1 import embedder_pb2
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis import names
from chassis.deadline import Deadline
from chassis.errors import LikenessError, from_status, in_request, invalid
from gateway import items
from gateway.backends import Embedder, Indexer

DEFAULT_COLLECTION = "images"
MAX_TERMS = 64


@dataclass(frozen=True)
class Search:
    """Answers searches from an embedder and an indexer."""

    embedder: Embedder
    indexer: Indexer

    async def __call__(self, request: gateway_pb2.SearchRequest, deadline: Deadline) -> gateway_pb2.SearchResponse:
        """Finds the items nearest to the request's terms.

        Raises:
            LikenessError: a term is bad, the terms cancel out, the collection is unknown or of another model, or a
                service cannot be reached.
        """
        started = time.perf_counter()
        _check_terms(request)
        collection = collection_name(request.collection)
        fingerprint, vectors = await self._embed(request, deadline)
        embedded = time.perf_counter()

        fields = items.wanted(request)
        query = indexer_pb2.Query(
            examples=[_example(term, vectors.get(i)) for i, term in enumerate(request.terms)],
            filter=request.filter if request.HasField("filter") else None,
            min_score=request.min_score if request.HasField("min_score") else None,
            top_k=request.top_k,
        )
        try:
            answer = await self.indexer.query(
                indexer_pb2.QueryRequest(
                    collection=collection,
                    expected_fingerprint=fingerprint,
                    queries=[query],
                    fields=items.to_read(fields),
                ),
                deadline.left(),
            )
            result = answer.results[0]
            if result.HasField("error"):
                raise from_status(result.error.status)
        except LikenessError as error:
            raise in_request(error, _search_field) from error
        finished = time.perf_counter()
        return gateway_pb2.SearchResponse(
            collection=collection,
            fingerprint=answer.fingerprint,
            hits=[gateway_pb2.Hit(item=items.from_stored(hit, fields), score=hit.score) for hit in result.hits],
            timings=gateway_pb2.SearchTimings(
                embed=_duration(embedded - started) if vectors else None,
                query=_duration(finished - embedded),
                total=_duration(finished - started),
            ),
        )

    async def _embed(
        self, request: gateway_pb2.SearchRequest, deadline: Deadline
    ) -> tuple[ModelFingerprint | None, dict[int, Vector]]:
        """The vectors of the picture and text terms, by position, and the model that the search must be in."""
        expected = expected_fingerprint(request)
        positions = [i for i, term in enumerate(request.terms) if term.WhichOneof("term") in ("image", "text")]
        if not positions:
            return expected, {}
        try:
            answer = await self.embedder.embed([_input(request.terms[i]) for i in positions], deadline.left())
        except LikenessError as error:
            raise in_request(error, lambda field: field.replace("inputs", "terms", 1)) from error
        if expected is not None and expected.digest != answer.fingerprint.digest:
            raise mismatch(answer.fingerprint, expected, "the model that the request expects")
        vectors: dict[int, Vector] = {}
        for i, result in zip(positions, answer.results, strict=True):
            if result.HasField("error"):
                raise in_request(from_status(result.error.status), partial(re.sub, r"^inputs\[\d+\]", f"terms[{i}]"))
            vectors[i] = result.vector
        return answer.fingerprint, vectors


def collection_name(name: str) -> str:
    """The collection that a request names; the default one if it names none."""
    return names.check_collection(name, "collection") if name else DEFAULT_COLLECTION


def expected_fingerprint(
    request: gateway_pb2.SearchRequest | gateway_pb2.IndexStart, field: str = "expected_fingerprint"
) -> ModelFingerprint | None:
    """The model that a caller expects; None: any."""
    if not request.HasField("expected_fingerprint"):
        return None
    if not request.expected_fingerprint.digest:
        raise invalid(f"{field}.digest", "is empty; expected the digest that GetStatus tells, or no fingerprint at all")
    return request.expected_fingerprint


def mismatch(embedder: ModelFingerprint, other: ModelFingerprint, whose: str) -> LikenessError:
    """The error for vectors of two models that would be mixed."""
    return LikenessError(
        error_pb2.REASON_MODEL_MISMATCH,
        f"the embedder runs {embedder.model[:100]} ({embedder.digest[:12]}…), but {whose} is {other.model[:100]} "
        f"({other.digest[:12]}…); vectors of two models cannot be compared: use the same model, or another collection",
    )


def _check_terms(request: gateway_pb2.SearchRequest) -> None:
    if not 1 <= len(request.terms) <= MAX_TERMS:
        raise invalid("terms", f"{len(request.terms)} terms; expected 1 to {MAX_TERMS}")
    for i, term in enumerate(request.terms):
        if term.WhichOneof("term") is None:
            raise invalid(f"terms[{i}]", "is empty; expected a picture, a text, an id or a vector")
        if term.HasField("weight") and not (math.isfinite(term.weight) and 0 < abs(term.weight) <= 100):
            raise invalid(f"terms[{i}].weight", f"{term.weight:g}; expected −100 to 100 and not 0")


def _input(term: gateway_pb2.Term) -> embedder_pb2.EmbedInput:
    if term.WhichOneof("term") == "image":
        return embedder_pb2.EmbedInput(image=term.image)
    return embedder_pb2.EmbedInput(text=term.text)


def _example(term: gateway_pb2.Term, vector: Vector | None) -> indexer_pb2.Example:
    example = indexer_pb2.Example(weight=term.weight if term.HasField("weight") else None)
    if term.WhichOneof("term") == "id":
        example.id = term.id
    else:
        example.vector.CopyFrom(term.vector if vector is None else vector)
    return example


def _search_field(field: str) -> str:
    """The name, in a SearchRequest, of a field of the QueryRequest made from it."""
    return re.sub(r"^examples\b", "terms", field.removeprefix("queries[0]."))


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
