"""A search request as the indexer's query: checked, and back to the client's field names where that is refused."""

import math
import re

from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import Vector
from likeness.embedder.v1 import embedder_pb2
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis.errors import LikenessError, invalid
from chassis.vectors import from_proto
from gateway.requests import renamed

MAX_TERMS = 64
MAX_FACETS = 32
# As the indexer takes them of one query.
MAX_TOP_K, MAX_HITS, MAX_CANDIDATES = 1000, 10_000, 10_000


def check(request: gateway_pb2.SearchRequest) -> None:
    """Checks what is to be known before anything is embedded; the rest is the indexer's to check."""
    if not 1 <= len(request.terms) <= MAX_TERMS:
        raise invalid("terms", f"{len(request.terms)} terms; expected 1 to {MAX_TERMS}")
    for i, term in enumerate(request.terms):
        kind = term.WhichOneof("term")
        if kind is None:
            raise invalid(f"terms[{i}]", "is empty; expected a picture, a text, an id or a vector")
        if term.HasField("weight") and not (math.isfinite(term.weight) and 0 < abs(term.weight) <= 100):
            raise invalid(f"terms[{i}].weight", f"{term.weight:g}; expected −100 to 100 and not 0")
        if kind == "vector":
            from_proto(term.vector, f"terms[{i}].vector")
    if len(request.facets) > MAX_FACETS:
        description = f"{len(request.facets)} facets; at most {MAX_FACETS} are taken"
        raise invalid("facets", description, error_pb2.REASON_BATCH_TOO_LARGE)


def is_embedded(term: gateway_pb2.Term) -> bool:
    """Whether the term's vector comes from the embedder."""
    return term.WhichOneof("term") in ("image", "text")


def embed_input(term: gateway_pb2.Term) -> embedder_pb2.EmbedInput:
    """A picture or text as the embedder takes it."""
    if term.WhichOneof("term") == "image":
        return embedder_pb2.EmbedInput(image=term.image)
    return embedder_pb2.EmbedInput(text=term.text)


def query(request: gateway_pb2.SearchRequest, vectors: dict[int, Vector]) -> indexer_pb2.Query:
    """The query; ``vectors`` are those of the embedded terms, by their place among the terms."""
    return indexer_pb2.Query(
        examples=[_example(term, vectors.get(i)) for i, term in enumerate(request.terms)],
        filter=request.filter if request.HasField("filter") else None,
        min_score=request.min_score if request.HasField("min_score") else None,
        rescore=indexer_pb2.Rescore(metric=request.rescore.metric, candidates=request.rescore.candidates)
        if request.HasField("rescore")
        else None,
        exact=request.exact,
        top_k=request.top_k,
        offset=request.offset,
    )


def of_search(error: LikenessError, place: int) -> LikenessError:
    """The error of the query at this place of a QueryRequest, with the names that a SearchRequest's fields have."""
    return renamed(error, lambda field: re.sub(r"^examples\b", "terms", field.removeprefix(f"queries[{place}].")))


def of_term(error: LikenessError, place: int) -> LikenessError:
    """The error of one embedded input, with the name of the term that it was."""
    return renamed(error, lambda field: re.sub(r"^inputs\[\d+\]", f"terms[{place}]", field))


def asks_too_much(request: gateway_pb2.SearchRequest) -> bool:
    """Whether it is refused, by itself, for how much it asks for."""
    return (
        request.top_k > MAX_TOP_K
        or hits(request) > MAX_HITS
        or request.rescore.candidates > MAX_CANDIDATES
        or len(request.facets) > MAX_FACETS
    )


def hits(request: gateway_pb2.SearchRequest) -> int:
    """How many hits the indexer finds for it, those that the offset leaves out included."""
    return request.offset + (request.top_k or 10)


def candidates(request: gateway_pb2.SearchRequest) -> int:
    """How many items are scored again for it (see ``Rescore.candidates``)."""
    if not request.HasField("rescore"):
        return 0
    asked = request.rescore.candidates or min(max(10 * hits(request), 100), MAX_CANDIDATES)
    return max(asked, hits(request))


def _example(term: gateway_pb2.Term, vector: Vector | None) -> indexer_pb2.Example:
    example = indexer_pb2.Example(weight=term.weight if term.HasField("weight") else None)
    if term.WhichOneof("term") == "id":
        example.id = term.id
    else:
        example.vector.CopyFrom(term.vector if vector is None else vector)
    return example
