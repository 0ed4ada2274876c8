"""Scores what was found exactly, puts it in order and makes the page that was asked for."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from indexer.reads import Fields, Row, Search
from indexer.scoring import OF_METRIC, Scoring, distance, scores
from indexer.serving.candidates import Rows
from indexer.serving.steps import Answer, Steps
from indexer.serving.table import View

Scores = npt.NDArray[np.float64]

Stage = Literal["filter", "nearest", "score", "rows"]

_SCORED_AT_ONCE = 4096  # rows whose vectors are copied together: 8 MiB at 512 numbers


def scored(
    view: View,
    searches: Sequence[Search],
    rows: list[Rows],
    fields: Fields,
    on_stage: Callable[[Stage, float], None],
    *,
    began: float,
    may_wait: bool,
) -> Steps[list[list[Row]]]:
    """The page of each search, of the rows that were found for it; BEGAN: when that had been done."""
    ranked = yield from _ranked(view, searches, rows, may_wait=may_wait)
    in_order = time.perf_counter()
    pages = partial(_pages, view, searches, ranked, fields)
    answers = (yield from _reading(view, pages, may_wait=may_wait)) if fields.vector else pages()
    on_stage("score", in_order - began)
    on_stage("rows", time.perf_counter() - in_order)
    return answers


def _reading(view: View, work: Callable[[], Answer], *, may_wait: bool) -> Steps[Answer]:
    """What reads vectors. Few are read at once, unless that were to wait for one that adds to the graph."""
    if may_wait:
        return work()
    with view.graph.reading_now() as may:
        if may:
            return work()
    waited_for: Answer = yield work
    return waited_for


def rescored(view: View, searches: Sequence[Search]) -> bool:
    """Whether any of the searches asks for scores other than those of the collection's metric."""
    own = OF_METRIC[view.graph.metric]
    return any(search.scoring is not own for search in searches)


def _ranked(
    view: View, searches: Sequence[Search], rows: list[Rows], *, may_wait: bool
) -> Steps[list[tuple[list[int], list[float]]]]:
    """The rows and their scores, for each search: in order, the excluded and those below the least score left out."""
    own = OF_METRIC[view.graph.metric]
    points = yield from _scores(view, searches, [own] * len(searches), rows, may_wait=may_wait)
    ranked = [_ordered(view, *each) for each in zip(searches, rows, points, strict=True)]
    other = [i for i, search in enumerate(searches) if search.scoring is not own]
    if other:
        chosen = [np.array(ranked[i][0][: searches[i].candidates], np.int64) for i in other]
        asked = [searches[i] for i in other]
        scorings = [search.scoring for search in asked]
        again = yield from _scores(view, asked, scorings, chosen, may_wait=may_wait)
        for i, search, kept, score in zip(other, asked, chosen, again, strict=True):
            ranked[i] = _ordered(view, search, kept, score)
    return [
        (found, score) if search.min_score is None else _at_least(search.min_score, found, score)
        for search, (found, score) in zip(searches, ranked, strict=True)
    ]


def _scores(
    view: View, searches: Sequence[Search], scorings: Sequence[Scoring], rows: Sequence[Rows], *, may_wait: bool
) -> Steps[list[Scores]]:
    """Exact scores of each search's rows. The vectors of all are read together, as long as they are not many."""
    asked = list(zip(scorings, searches, rows, strict=True))
    if sum(map(len, rows)) > _SCORED_AT_ONCE:
        return [np.concatenate(list(_in_parts(view, *each))) for each in asked]
    # Search by search: together they would leave the processor's cache, which costs more than numpy's calls.
    originals = yield from _reading(view, partial(view.originals, np.concatenate(rows)), may_wait=may_wait)
    points, start = [], 0
    for scoring, search, some in asked:
        points.append(scores(scoring, search.vector, originals[start : start + len(some)]))
        start += len(some)
    return points


def _in_parts(view: View, scoring: Scoring, search: Search, rows: Rows) -> Iterable[Scores]:
    for start in range(0, max(1, len(rows)), _SCORED_AT_ONCE):
        yield scores(scoring, search.vector, view.originals(rows[start : start + _SCORED_AT_ONCE]))


def _ordered(view: View, search: Search, rows: Rows, points: Scores) -> tuple[list[int], list[float]]:
    numbers = rows.tolist()
    keyed = sorted(zip((-points).tolist(), [view.ids[row] for row in numbers], numbers, strict=True))
    if search.exclude:
        keyed = [each for each in keyed if each[1] not in search.exclude]
    return [row for _, _, row in keyed], [-point for point, _, _ in keyed]


def _at_least(least: float, rows: list[int], points: list[float]) -> tuple[list[int], list[float]]:
    kept = sum(point >= least for point in points)
    return rows[:kept], points[:kept]


def _pages(
    view: View, searches: Sequence[Search], ranked: Sequence[tuple[list[int], list[float]]], fields: Fields
) -> list[list[Row]]:
    """The page that each search asks for, with what was asked for of its items."""
    answers = []
    for search, (rows, points) in zip(searches, ranked, strict=True):
        page = slice(search.offset, search.offset + search.top_k)
        found = zip(view.items(rows[page], fields), points[page], strict=True)
        answers.append([Row(item, point, distance(search.scoring, point)) for item, point in found])
    return answers
