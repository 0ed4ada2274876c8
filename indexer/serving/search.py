"""Answers searches on one view of a collection, in five steps.

1. Which rows may be found: those that are alive and for which the filter is true. The planner chooses the way.
2. Rows of the graph: the nearest by the graph, one call for all searches of one width, or all of them scored. What is
   as close as the last one wanted, within what float32 can tell, is taken too.
3. Rows of the tail, which no graph holds yet: all scored.
4. Exact scores of what was found, from the vectors as they were written: first by the collection's metric, which
   decides what counts as found, then by the one asked for.
5. Order by score and id, and the page asked for.

What takes long there, or would wait for the graph, is a ``Step`` to be carried out in a thread. So searches without a
filter can be answered on the event loop but for those (see ``batcher``), and all in one thread (``carried_out``).
"""

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from chassis.vectors import Array
from indexer.filters import Node
from indexer.reads import Fields, Row, Search
from indexer.scoring import OF_METRIC, Scoring, distance, scores
from indexer.serving.planner import Planner
from indexer.serving.table import View

Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]

Stage = Literal["filter", "nearest", "score", "rows"]

Answer = TypeVar("Answer")
# To be carried out anywhere; what it gives is sent to the one that asks for it.
Step = Callable[[], Any]
Steps = Generator[Step, Any, Answer]

# Closeness of two rows differs by less than this share of the largest if their exact scores may be equal, or in another
# order: float32 sums of up to 4,096 products.
_UNSURE = 4e-6
_SCORED_AT_ONCE = 4096  # rows whose vectors are copied together: 8 MiB at 512 numbers
# Rows that are scored and put in order where others wait, and numbers of their vectors, as often as they are read: a
# millisecond's work or two. More make a step.
_SCORED_BRIEFLY = 512
_SCORED_NUMBERS = 2**18
_MEASURED_AT_ONCE = 2**22  # closeness of so many pairs together: 16 MiB


class Way(Enum):
    """How a search was answered; the value is for metrics."""

    GRAPH = "graph"
    EXACT = "exact"


@dataclass(frozen=True, slots=True)
class _Members:
    """The rows that a filter lets be found.

    Attributes:
        mask: bool [view.count]; None: every row.
        in_graph: how many of the graph's.
        tail: those of the tail, int64, counted from its beginning.
    """

    mask: Bools | None
    in_graph: int
    tail: Rows


class _Found(NamedTuple):
    """Candidates: rows int64 [n] and their closeness float32 [n]."""

    rows: Rows
    closeness: Array


def carried_out(steps: Steps[Answer]) -> Answer:
    """What steps lead to, each carried out here."""
    found: Any = None
    while True:
        try:
            step = steps.send(found)
        except StopIteration as end:
            led_to: Answer = end.value
            return led_to
        found = step()


def answer(
    view: View,
    searches: Sequence[Search],
    fields: Fields,
    planner: Planner,
    *,
    on_way: Callable[[Way], None] = lambda _: None,
) -> list[list[Row]]:
    """As ``answering``, all of it here."""
    return carried_out(answering(view, searches, fields, planner, on_way=on_way))


def answering(
    view: View,
    searches: Sequence[Search],
    fields: Fields,
    planner: Planner,
    *,
    unfinished: set[int] | None = None,
    on_way: Callable[[Way], None] = lambda _: None,
    on_stage: Callable[[Stage, float], None] = lambda *_: None,
) -> Steps[list[list[Row]]]:
    """The rows of each search, best first and equal scores by id.

    Args:
        view: what is searched.
        searches: of vectors of the collection's dimension.
        fields: what comes back of each row.
        planner: chooses between the graph and scoring all.
        unfinished: gets the places of searches for which the first try found too few, and whose rows mean nothing.
            None: they are gone on with.
        on_way: told for each search how it was answered.
        on_stage: told how many seconds each stage took, waits for threads included: "filter" is step 1, "nearest" 2 and
            3, "score" 4 and the order, "rows" the page.
    """
    if not searches:
        return []
    started = time.perf_counter()
    members = {where: _members(view, where) for where in {search.where for search in searches}}
    filtered = time.perf_counter()
    found = yield from _in_graph(view, searches, members, planner, unfinished=unfinished, on_way=on_way)
    if any(len(each.tail) for each in members.values()):
        found = yield partial(_with_tail, view, searches, members, found)
    nearest = time.perf_counter()
    on_stage("filter", filtered - started)
    on_stage("nearest", nearest - filtered)
    rows = [each.rows for each in found]
    count = sum(map(len, rows)) * (1 + _rescored(view, searches) + fields.vector)
    large = count > _SCORED_BRIEFLY or count * view.graph.dimension > _SCORED_NUMBERS
    scoring = _scored(view, searches, rows, fields, on_stage, began=nearest, may_wait=large)
    if large:
        many: list[list[Row]] = yield partial(carried_out, scoring)
        return many
    few = yield from scoring
    return few


def _members(view: View, where: Node | None) -> _Members:
    mask: Bools | None = None
    if where is not None:
        mask = view.masks.mask(where, view.count)
    if view.dead_count:
        mask = view.live if mask is None else mask & view.live
    if mask is None:
        return _Members(None, view.tail_from, np.arange(view.count - view.tail_from))
    return _Members(mask, int(np.count_nonzero(mask[: view.tail_from])), np.flatnonzero(mask[view.tail_from :]))


def _wanted(search: Search) -> int:
    return search.candidates + len(search.exclude)


def _in_graph(
    view: View,
    searches: Sequence[Search],
    members: dict[Node | None, _Members],
    planner: Planner,
    *,
    unfinished: set[int] | None,
    on_way: Callable[[Way], None],
) -> Steps[list[_Found]]:
    """The nearest members among the graph's rows, for each search."""
    nothing = _Found(np.empty(0, np.int64), np.empty(0, np.float32))
    found = [nothing] * len(searches)
    by_width: dict[int | None, list[int]] = defaultdict(list)
    for i, search in enumerate(searches):
        in_graph = members[search.where].in_graph
        width = None if search.exact else planner.width(view.tail_from, in_graph, _wanted(search))
        by_width[width].append(i)
    to_score = by_width.pop(None, [])
    items = view.tail_from - view.dead_count  # in the graph; or more, if some of the tail are dead
    while by_width:
        width = min(filter(None, by_width))
        group = by_width.pop(width)
        nearest, closeness = yield partial(view.graph.nearest, _vectors(searches, group), width)
        full = (nearest[:, -1] >= 0).tolist()  # as many as were asked for
        known = (nearest.max(axis=1) < view.tail_from).tolist()  # each in the view's part of the graph
        for k, (i, rows, close) in enumerate(zip(group, nearest, closeness, strict=True)):
            search, of = searches[i], members[searches[i].where]
            kept = _Found(rows, close)
            if of.mask is not None or not (full[k] and known[k]):
                kept = _kept(kept, of.mask, view.tail_from)
            near = _surely_nearest(kept, _wanted(search), close)
            rank = 0
            if near is not None and search.where is not None:
                rank = _rank(view, rows, kept.rows[_wanted(search) - 1])
            deep = rank > 0 and not planner.reaches(width, rank, max(items, of.in_graph), of.in_graph, _wanted(search))
            if near is not None and full[k] and not deep:
                found[i] = near
                on_way(Way.GRAPH)
                continue
            if unfinished is not None:
                unfinished.add(i)
                continue
            if deep:
                wider = planner.deeper(rank, of.in_graph)
            else:
                wider = planner.wider(width, len(kept.rows), of.in_graph, _wanted(search))
            # Fewer rows than asked for: some cannot be reached, however wide the search.
            (to_score if wider is None or not full[k] else by_width[wider]).append(i)
    for _ in to_score:
        on_way(Way.EXACT)
    for where, group in _by_filter(searches, to_score).items():
        of = members[where]
        rows = np.arange(view.tail_from) if of.mask is None else np.flatnonzero(of.mask[: view.tail_from])
        for i, near in (yield partial(_measured, searches, group, rows, view.graph.closeness)):
            found[i] = near
    return found


def _with_tail(
    view: View, searches: Sequence[Search], members: dict[Node | None, _Members], in_graph: list[_Found]
) -> list[_Found]:
    """What was found among the graph's rows, and the nearest members among the tail's, for each search."""
    found = list(in_graph)

    def measure(vectors: Array, rows: Rows) -> Array:
        return view.graph.closeness_to(view.tail, vectors, rows)

    for where, group in _by_filter(searches, range(len(searches))).items():
        for i, near in _measured(searches, group, members[where].tail, measure):
            both = _together(found[i], _Found(near.rows + view.tail_from, near.closeness))
            found[i] = _closest(both, _wanted(searches[i]))
    return found


def _measured(
    searches: Sequence[Search], group: Sequence[int], rows: Rows, measure: Callable[[Array, Rows], Array]
) -> list[tuple[int, _Found]]:
    """The nearest of the rows, for each search of the group."""
    found: list[tuple[int, _Found]] = []
    at_once = max(1, _MEASURED_AT_ONCE // max(1, len(rows)))
    for begin in range(0, len(group), at_once):
        some = group[begin : begin + at_once]
        closeness = measure(_vectors(searches, some), rows)
        for i, close in zip(some, closeness, strict=True):
            found.append((i, _closest(_Found(rows, close), _wanted(searches[i]))))
    return found


def _by_filter(searches: Sequence[Search], chosen: Iterable[int]) -> dict[Node | None, list[int]]:
    groups: dict[Node | None, list[int]] = defaultdict(list)
    for i in chosen:
        groups[searches[i].where].append(i)
    return groups


def _together(one: _Found, other: _Found) -> _Found:
    return _Found(np.concatenate((one.rows, other.rows)), np.concatenate((one.closeness, other.closeness)))


def _vectors(searches: Sequence[Search], group: Sequence[int]) -> Array:
    return searches[group[0]].vector[None] if len(group) == 1 else np.stack([searches[i].vector for i in group])


def _kept(found: _Found, mask: Bools | None, before: int) -> _Found:
    """Those that are members, among rows of the view's part of the graph."""
    known = (found.rows >= 0) & (found.rows < before)
    if mask is not None:
        known &= mask[np.where(known, found.rows, 0)]
    return _Found(found.rows[known], found.closeness[known])


def _surely_nearest(members: _Found, wanted: int, closeness: Array) -> _Found | None:
    """The ``wanted`` nearest members, and those that cannot be told from the last of them; None: some may be missing.

    Args:
        members: those among the rows that the graph gave, nearest first.
        wanted: how many.
        closeness: of all rows that it gave, nearest first. It gave every row that is nearer than its last.
    """
    near = members.closeness
    if len(near) < wanted:
        return None
    unsure = _UNSURE * float(max(abs(closeness[0]), abs(closeness[-1])))
    limit = near[wanted - 1] - unsure
    if limit <= closeness[-1] + unsure:
        return None
    stop = wanted
    while stop < len(near) and near[stop] >= limit:
        stop += 1
    return _Found(members.rows[:stop], near[:stop])


def _rank(view: View, nearest: Rows, row: np.int64) -> int:
    """The place of a row among those of items that the graph gave, from 1.

    Rows that were replaced do not count: they lie where those that replaced them do, at whatever is edited often.
    """
    before = nearest[: int(np.flatnonzero(nearest == row)[0]) + 1]
    return int(np.count_nonzero(view.live[before[(before >= 0) & (before < view.tail_from)]]))


def _closest(found: _Found, wanted: int) -> _Found:
    """The ``wanted`` nearest of all, in no order, and those that cannot be told from the last of them."""
    close = found.closeness
    if len(close) <= wanted:
        return found
    last = np.partition(close, len(close) - wanted)[len(close) - wanted]
    taken = np.flatnonzero(close >= last - _UNSURE * float(max(abs(close.max()), abs(close.min()))))
    return _Found(found.rows[taken], close[taken])


def _scored(
    view: View,
    searches: Sequence[Search],
    rows: list[Rows],
    fields: Fields,
    on_stage: Callable[[Stage, float], None],
    *,
    began: float,
    may_wait: bool,
) -> Steps[list[list[Row]]]:
    """Steps 4 and 5, of the rows that were found for each search."""
    ranked = yield from _ranked(view, searches, rows, may_wait=may_wait)
    scored = time.perf_counter()
    pages = partial(_pages, view, searches, ranked, fields)
    answers = (yield from _reading(view, pages, may_wait=may_wait)) if fields.vector else pages()
    on_stage("score", scored - began)
    on_stage("rows", time.perf_counter() - scored)
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


def _rescored(view: View, searches: Sequence[Search]) -> bool:
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
