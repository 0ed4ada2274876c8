"""Queries: examples become one vector each, all searches of a call go to the reader together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, invalid
from chassis.vectors import Array
from indexer.collections import Collection, Metric
from indexer.filters import Node
from indexer.reads import Fields, Reader, Row, Search
from indexer.scoring import OF_METRIC, Scoring

# The float32 numbers that come in are right to 6e-8; what is left of a sum below this share is their rounding.
CANCELLED = 1e-6


@dataclass(frozen=True, slots=True)
class Example:
    """What to be like, or unlike: a vector (float32 [dimension]) or the id of a stored item."""

    weight: float
    vector: Array | None = None
    id: str = ""


@dataclass(frozen=True, slots=True)
class Rescore:
    """Scores by a formula (None: the collection's), for so many of the items nearest by the collection's metric."""

    scoring: Scoring | None
    candidates: int


@dataclass(frozen=True, slots=True)
class Query:
    """One query.

    Attributes:
        field: where it stands in the request, for its errors.
        examples: at least one.
        where: only items for which it is true; None: all.
        min_score: only hits with at least this score; None: all.
        top_k: most hits, at least 1.
        offset: best hits to leave out.
        rescore: how hits are scored; None: by the collection's metric.
        exact: whether every item is compared.
    """

    field: str
    examples: tuple[Example, ...]
    where: Node | None = None
    min_score: float | None = None
    top_k: int = 10
    offset: int = 0
    rescore: Rescore | None = None
    exact: bool = False

    @property
    def ids(self) -> frozenset[str]:
        """The stored items among the examples."""
        return frozenset([e.id for e in self.examples if e.vector is None])


async def answer(
    reader: Reader, collection: Collection, queries: Sequence[Query | LikenessError], fields: Fields
) -> list[list[Row] | LikenessError]:
    """Answers queries, each by itself.

    Args:
        reader: finds neighbours.
        collection: where to search.
        queries: the queries; an error stands for one that was refused before, and is its answer.
        fields: what comes back of each hit.

    Returns:
        For each query its hits, best first and equal scores by id, or what it failed with.

    Raises:
        LikenessError: what the reader raises; it concerns the whole call.
    """
    outcomes: list[list[Row] | LikenessError] = [q if isinstance(q, LikenessError) else [] for q in queries]
    ids = sorted({item_id for q in queries if isinstance(q, Query) for item_id in q.ids})
    examples: dict[str, Array] = {}
    if ids:
        stored = await reader.fetch(collection, ids, Fields(vector=True))
        examples = {item_id: item.vector for item_id, item in stored.items() if item.vector is not None}

    searches: dict[int, Search] = {}
    for position, query in enumerate(queries):
        if isinstance(query, LikenessError):
            continue
        try:
            if query.exact and not reader.compares_all:
                raise _approximate(query, collection)
            searches[position] = _search(query, combine(query, examples, collection), collection)
        except LikenessError as error:
            outcomes[position] = error
    if not searches:
        return outcomes
    found = await reader.search(collection, list(searches.values()), fields)
    for position, rows in zip(searches, found, strict=True):
        outcomes[position] = rows

    if examples:  # one that was deleted while the search ran leaves hits that are like nothing there is
        left = await reader.fetch(collection, sorted(examples), Fields())
        for position, search in searches.items():
            gone = search.exclude - left.keys()
            if gone:
                outcomes[position] = _unknown(min(gone), collection)
    return outcomes


def combine(query: Query, stored: Mapping[str, Array], collection: Collection) -> Array:
    """The one vector that a query's examples stand for, as the contract's ``Query.examples`` defines it.

    Args:
        query: the query.
        stored: the vectors of the stored items, by id.
        collection: decides the metric.

    Returns:
        float32 [dimension]; of length 1 for the cosine.

    Raises:
        LikenessError: ITEM_NOT_FOUND or QUERY_CANCELS_OUT.
    """
    rows: list[npt.NDArray[np.float64]] = []
    for example in query.examples:
        vector = stored.get(example.id) if example.vector is None else example.vector
        if vector is None:
            raise _unknown(example.id, collection)
        rows.append(vector.astype(np.float64))
    if len(rows) == 1:
        return _alone(query, rows[0], collection)
    weights = np.array([e.weight for e in query.examples], np.float64)
    vectors = np.stack(rows)
    lengths = np.linalg.norm(vectors, axis=1)
    if collection.metric is Metric.COSINE:
        vectors, lengths = vectors / lengths[:, None], np.ones_like(lengths)
    total = weights @ vectors
    length = float(np.linalg.norm(total))
    if length <= CANCELLED * float(np.abs(weights) @ lengths):
        raise _cancelled(query)
    scale = length if collection.metric is Metric.COSINE else float(np.abs(weights).sum())
    return (total / scale).astype(np.float32)


def _alone(query: Query, vector: npt.NDArray[np.float64], collection: Collection) -> Array:
    """What most queries are: the sum of one (``vector``, overwritten), in a fifth of the time of a sum of several."""
    length = math.sqrt(vector @ vector)
    if length == 0:
        raise _cancelled(query)
    scale = length if collection.metric is Metric.COSINE else 1.0
    vector /= scale if query.examples[0].weight > 0 else -scale
    return vector.astype(np.float32)


def _search(query: Query, vector: Array, collection: Collection) -> Search:
    wanted = query.offset + query.top_k
    rescore = query.rescore or Rescore(None, wanted)
    return Search(
        vector=vector,
        where=query.where,
        top_k=query.top_k,
        offset=query.offset,
        min_score=query.min_score,
        scoring=rescore.scoring or OF_METRIC[collection.metric],
        candidates=max(wanted, rescore.candidates),
        exclude=query.ids,
        exact=query.exact,
    )


def _unknown(item_id: str, collection: Collection) -> LikenessError:
    message = f"collection {collection.name!r} has no item {item_id!r}, which the query names as an example"
    return LikenessError(error_pb2.REASON_ITEM_NOT_FOUND, message)


def _approximate(query: Query, collection: Collection) -> LikenessError:
    description = f"set, but collection {collection.name!r} is served from Chroma, whose searches are approximate"
    return invalid(f"{query.field}.exact", f"{description}; leave it unset, or see GetStatus for why")


def _cancelled(query: Query) -> LikenessError:
    description = "the weighted examples cancel out and leave no direction to search in; change or drop one"
    return invalid(f"{query.field}.examples", description, error_pb2.REASON_QUERY_CANCELS_OUT)
