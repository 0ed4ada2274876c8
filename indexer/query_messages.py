"""Queries and their answers: contract ↔ the indexer's values."""

import math
from collections.abc import Sequence
from functools import partial

from likeness.common.v1.types_pb2 import Metric, Vector
from likeness.indexer.v1 import indexer_pb2

from chassis import names
from chassis.errors import LikenessError, invalid, to_item_error
from chassis.vectors import Array
from indexer import messages, vector_messages
from indexer.answers import put_together
from indexer.collections import Collection
from indexer.item_messages import fill
from indexer.listing import nbytes
from indexer.query import Example, Query, Rescore
from indexer.reads import Row
from indexer.violations import check_count

MAX_QUERIES = 128
MAX_TOP_K = 1000
DEFAULT_TOP_K = 10
# Of a query, and of all queries of a call: those left out by the offset are found too.
MAX_HITS = 10_000
MAX_CANDIDATES = 10_000
MAX_CANDIDATES_IN_ALL = 20_000  # of a call: scoring them takes half a second
# How many times the wanted hits are re-scored, and at least how many, where the query does not say.
OVERFETCH, LEAST_CANDIDATES = 10, 100
MAX_EXAMPLES = 64
MAX_WEIGHT = 100


def queries(received: Sequence[indexer_pb2.Query], collection: Collection) -> list[Query | LikenessError]:
    """Queries, or what is wrong with each.

    Raises:
        LikenessError: BATCH_TOO_LARGE or FIELD_INVALID, for what concerns the whole call.
    """
    check_count(len(received), MAX_QUERIES, "queries", "queries")
    vectors = _vectors(received, collection)
    read: list[Query | LikenessError] = []
    for i, message in enumerate(received):
        try:
            read.append(_query(message, f"queries[{i}]", vectors[i]))
        except LikenessError as error:
            read.append(error)
    hits = sum(q.offset + q.top_k for q in read if isinstance(q, Query))
    if hits > MAX_HITS:
        description = f"ask for {hits:,} hits together, those before their offsets included; at most {MAX_HITS:,}"
        raise messages.too_large("queries", f"{description} are given")
    candidates = sum(q.rescore.candidates for q in read if isinstance(q, Query) and q.rescore)
    if candidates > MAX_CANDIDATES_IN_ALL:
        description = f"ask for {candidates:,} candidates to be scored again; at most {MAX_CANDIDATES_IN_ALL:,} are"
        raise messages.too_large("queries", description)
    return read


def response(collection: Collection, outcomes: Sequence[Sequence[Row] | LikenessError]) -> indexer_pb2.QueryResponse:
    """The answers to a call's queries: each its hits, or what it failed with.

    Raises:
        LikenessError: BATCH_TOO_LARGE: all hits together do not fit a message.
    """
    sizes = (_size(rows) for rows in outcomes if not isinstance(rows, LikenessError))
    remedy, field = "ask for fewer hits (top_k) or less of each (fields)", "queries[0].top_k"
    if len(outcomes) > 1:
        remedy, field = f"send fewer queries a call, or {remedy}", "queries"
    messages.check_answer(sizes, field, remedy)
    message = indexer_pb2.QueryResponse(fingerprint=messages.fingerprint_message(collection.fingerprint))
    for outcome in outcomes:
        result = message.results.add()
        if isinstance(outcome, LikenessError):
            result.error.CopyFrom(to_item_error(outcome))
            continue
        add = result.hits.add
        for row in outcome:
            item = row.item
            hit = add(id=item.id, score=row.score, distance=row.distance)
            if item.packed is not None or item.vector is not None:
                fill(hit, item)
    return message


async def respond(
    collection: Collection, outcomes: Sequence[Sequence[Row] | LikenessError]
) -> indexer_pb2.QueryResponse:
    """As ``response``; other calls get their turn while a large one is put together."""
    items = [row.item for rows in outcomes if not isinstance(rows, LikenessError) for row in rows]
    return await put_together(partial(response, collection, outcomes), items)


def _size(rows: Sequence[Row]) -> int:
    """What a query's hits take in a message, all with the same fields; ids alone always fit, and are not counted."""
    if not rows or (rows[0].item.packed is None and rows[0].item.vector is None):
        return 0
    return sum(nbytes(row.item) for row in rows)


def _vectors(received: Sequence[indexer_pb2.Query], collection: Collection) -> list[dict[int, Array | LikenessError]]:
    """For each query the vectors among its examples, by their place, all of a call checked together."""
    found: list[Vector] = []
    places: list[tuple[int, int]] = []
    for i, query in enumerate(received):
        if len(query.examples) <= MAX_EXAMPLES:
            for j, example in enumerate(query.examples):
                if example.HasField("vector"):
                    found.append(example.vector)
                    places.append((i, j))

    def field(n: int) -> str:
        i, j = places[n]
        return f"queries[{i}].examples[{j}].vector"

    of_queries: list[dict[int, Array | LikenessError]] = [{} for _ in received]
    for (i, j), vector in zip(places, vector_messages.read(found, collection, field), strict=True):
        of_queries[i][j] = vector
    return of_queries


def _query(message: indexer_pb2.Query, field: str, vectors: dict[int, Array | LikenessError]) -> Query:
    if message.top_k > MAX_TOP_K:
        raise invalid(f"{field}.top_k", f"{message.top_k:,}; expected 1 to {MAX_TOP_K:,}, or 0 for {DEFAULT_TOP_K}")
    top_k = message.top_k or DEFAULT_TOP_K
    if message.offset + top_k > MAX_HITS:
        description = f"{message.offset:,}; expected at most {MAX_HITS - top_k:,}: {MAX_HITS:,} with top_k"
        raise invalid(f"{field}.offset", description)
    least = message.min_score if message.HasField("min_score") else None
    if least is not None and math.isnan(least):
        raise invalid(f"{field}.min_score", "NaN; expected a number")
    if not 1 <= len(message.examples) <= MAX_EXAMPLES:
        raise invalid(f"{field}.examples", f"{len(message.examples)} of them; expected 1 to {MAX_EXAMPLES}")
    examples = [_example(e, f"{field}.examples[{i}]", vectors.get(i)) for i, e in enumerate(message.examples)]
    rescore = (
        _rescore(message.rescore, f"{field}.rescore", message.offset + top_k) if message.HasField("rescore") else None
    )
    where = messages.where(message, f"{field}.filter")
    return Query(field, tuple(examples), where, least, top_k, message.offset, rescore, message.exact)


def _example(message: indexer_pb2.Example, field: str, vector: Array | LikenessError | None) -> Example:
    weight = message.weight if message.HasField("weight") else 1.0
    if not 0 < abs(weight) <= MAX_WEIGHT:
        raise invalid(f"{field}.weight", f"{weight:g}; expected −{MAX_WEIGHT} to {MAX_WEIGHT} and not 0")
    if isinstance(vector, LikenessError):
        raise vector
    if vector is not None:
        return Example(weight, vector)
    if message.HasField("id"):
        return Example(weight, id=names.check_item_id(message.id, f"{field}.id"))
    raise invalid(field, "nothing is set; expected a vector or an id")


def _rescore(message: indexer_pb2.Rescore, field: str, wanted: int) -> Rescore:
    scoring = messages.SCORINGS.get(message.metric) if message.metric else None
    if message.metric and scoring is None:
        known = ", ".join(Metric.Name(number) for number in messages.SCORINGS)
        raise invalid(f"{field}.metric", f"{message.metric} is none; expected one of {known}")
    if message.candidates > MAX_CANDIDATES:
        description = f"{message.candidates:,}; expected 1 to {MAX_CANDIDATES:,}, or 0 for {OVERFETCH} times the hits"
        raise invalid(f"{field}.candidates", description)
    default = min(MAX_CANDIDATES, max(OVERFETCH * wanted, LEAST_CANDIDATES))
    return Rescore(scoring, max(wanted, message.candidates or default))
