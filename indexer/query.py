"""Queries: examples become one vector, equal searches become one call to the store, rows become hits."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, invalid
from chassis.vectors import Array
from indexer.collections import Collection, Metric
from indexer.filters import Node
from indexer.reads import Fields, Reader, Row

# The float32 numbers that come in are right to 6e-8; what is left of a sum below this share is their rounding.
CANCELLED = 1e-6


@dataclass(frozen=True)
class Example:
    """What to be like, or unlike: a vector (float32 [dimension]) or the id of a stored item."""

    weight: float
    vector: Array | None = None
    id: str = ""


@dataclass(frozen=True)
class Query:
    """One query.

    Attributes:
        field: where it stands in the request, for its errors.
        examples: at least one.
        where: only items for which it is true; None: all.
        min_score: only hits with at least this score; None: all.
        top_k: most hits, at least 1.
    """

    field: str
    examples: tuple[Example, ...]
    where: Node | None
    min_score: float | None
    top_k: int

    @property
    def ids(self) -> set[str]:
        """The stored items among the examples."""
        return {e.id for e in self.examples if e.vector is None}


@dataclass(frozen=True)
class _Search:
    """A query made ready: its vector, float32 [dimension]."""

    position: int
    query: Query
    vector: Array


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
    ready = [(i, q) for i, q in enumerate(queries) if isinstance(q, Query)]

    ids = {item_id for _, query in ready for item_id in query.ids}
    stored = await reader.fetch(collection, sorted(ids), Fields(vector=True))
    examples = {item_id: item.vector for item_id, item in stored.items() if item.vector is not None}

    # Equal filters are equal text: the repr of a frozen tree, in which True and 1 differ.
    groups: dict[tuple[str, int], list[_Search]] = {}
    for position, query in ready:
        try:
            vector = combine(query, examples, collection)
        except LikenessError as error:
            outcomes[position] = error
            continue
        # The examples themselves are found too, and left out afterwards.
        k = query.top_k + len(query.ids)
        groups.setdefault((repr(query.where), k), []).append(_Search(position, query, vector))

    async def search(k: int, group: list[_Search]) -> None:
        vectors = np.stack([s.vector for s in group])
        found = await reader.search(collection, vectors, group[0].query.where, k, fields)
        for s, rows in zip(group, found, strict=True):
            outcomes[s.position] = _hits(s.query, rows)

    try:
        async with asyncio.TaskGroup() as tasks:
            for (_, k), group in groups.items():
                tasks.create_task(search(k, group))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return outcomes


def combine(query: Query, stored: dict[str, Array], collection: Collection) -> Array:
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
            message = f"collection {collection.name!r} has no item {example.id!r}, which the query names as an example"
            raise LikenessError(error_pb2.REASON_ITEM_NOT_FOUND, message)
        rows.append(vector.astype(np.float64))
    weights = np.array([e.weight for e in query.examples], np.float64)
    vectors = np.stack(rows)
    lengths = np.linalg.norm(vectors, axis=1)
    if collection.metric is Metric.COSINE:
        vectors, lengths = vectors / lengths[:, None], np.ones_like(lengths)
    total = weights @ vectors
    length = float(np.linalg.norm(total))
    if length <= CANCELLED * float(np.abs(weights) @ lengths):
        description = "the weighted examples cancel out and leave no direction to search in; change or drop one"
        raise invalid(f"{query.field}.examples", description, error_pb2.REASON_QUERY_CANCELS_OUT)
    scale = length if collection.metric is Metric.COSINE else float(np.abs(weights).sum())
    return (total / scale).astype(np.float32)


def _hits(query: Query, rows: list[Row]) -> list[Row]:
    ids = query.ids
    least = query.min_score
    hits = [row for row in rows if row.item.id not in ids and (least is None or row.score >= least)]
    hits.sort(key=lambda row: (-row.score, row.item.id))
    return hits[: query.top_k]
