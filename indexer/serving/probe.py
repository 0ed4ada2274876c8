"""How many of the truly nearest items searches find, measured on the collection as it is."""

from collections.abc import Callable, Sequence

import numpy as np

from chassis.vectors import Array
from indexer.collections import Metric
from indexer.reads import Fields, Row, Search
from indexer.scoring import OF_METRIC, scores
from indexer.serving.table import Rows, View

Answer = Callable[[View, Sequence[Search], Fields], list[list[Row]]]

TOP_K = 10
SAMPLE = 16

_ROWS_AT_ONCE = 8192
# Exact in double precision, but taken from the best in single precision: so many more, lest rounding leave one out.
_SPARE = 8


def recall(view: View, metric: Metric, answer: Answer, random: np.random.Generator) -> float | None:
    """The share of the 10 nearest items that searches for the neighbours of 16 stored items found.

    Takes about as long as 16 exact searches; runs in a thread.

    Args:
        view: what is searched.
        metric: of the collection.
        answer: searches, as for everybody.
        random: chooses the items.

    Returns:
        0 to 1. An item as near as the tenth counts as well as the tenth. None: there is nothing to find.
    """
    live = np.flatnonzero(view.live)
    wanted = min(TOP_K, len(live) - 1)
    if wanted < 1:
        return None
    chosen = np.sort(random.choice(live, min(SAMPLE, len(live)), replace=False))
    queries, scoring = view.vectors(chosen), OF_METRIC[metric]
    searches = [
        Search(query, None, wanted, 0, None, scoring, wanted, frozenset({view.ids[row]}))
        for query, row in zip(queries, chosen.tolist(), strict=True)
    ]
    answers = answer(view, searches, Fields())
    found = 0
    for query, rows, answered in zip(queries, _nearest(view, metric, live, chosen, queries), answers, strict=True):
        least = np.sort(scores(scoring, query, view.originals(rows)))[-wanted]
        found += sum(row.score >= float(least) for row in answered)
    return found / (wanted * len(chosen))


def _nearest(view: View, metric: Metric, live: Rows, chosen: Rows, queries: Array) -> Rows:
    """For each query a few rows more than are wanted, the nearest ones but its own: int64 [q, k]."""
    k = min(TOP_K + _SPARE, len(live) - 1)
    best_rows = np.full((len(queries), k), live[0])
    best = np.full((len(queries), k), -np.inf, np.float32)
    for begin in range(0, len(live), _ROWS_AT_ONCE):
        rows = live[begin : begin + _ROWS_AT_ONCE]
        vectors = view.vectors(rows)
        near = queries @ vectors.T
        if metric is Metric.L2:
            near = 2 * near - np.einsum("ij,ij->i", vectors, vectors)
        near[chosen[:, None] == rows] = -np.inf
        all_rows = np.concatenate([best_rows, np.broadcast_to(rows, near.shape)], axis=1)
        both = np.concatenate([best, near], axis=1)
        top = np.argpartition(both, -k, axis=1)[:, -k:]
        best_rows, best = np.take_along_axis(all_rows, top, axis=1), np.take_along_axis(both, top, axis=1)
    return best_rows
