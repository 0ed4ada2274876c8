"""Finds the rows that are nearest to what a search asks for: by the graph, or by scoring all that may be found.

What is as close as the last one wanted, within what float32 can tell, is found too: exact scores decide between them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from chassis.vectors import Array
from indexer.collections import Metric
from indexer.filters import Node
from indexer.reads import Search
from indexer.serving.graph import Graph
from indexer.serving.planner import Planner
from indexer.serving.steps import Steps
from indexer.serving.table import View

Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Closeness of two rows differs by less than this share of the larger one (L2), or of the largest there is, if their
# exact scores may be equal, or in another order: float32 sums of up to 4,096 products.
_UNSURE = 4e-6
# Of rows with equal vectors so many, the latest, are asked what became of their items.
_COPIES_LOOKED_AT = 64
# So many copies are put beside their nodes in a quarter of a millisecond; more are where others do not wait.
_EXPANDED_BRIEFLY = 1024
_MEASURED_AT_ONCE = 2**22  # closeness of so many pairs together: 16 MiB


class Way(Enum):
    """How a search was answered; the value is for metrics."""

    GRAPH = "graph"
    EXACT = "exact"


@dataclass(frozen=True, slots=True)
class Members:
    """The rows that a filter lets be found.

    Attributes:
        mask: bool [view.count]; None: every row.
        in_graph: how many of the graph's.
        tail: those of the tail, int64, counted from its beginning.
    """

    mask: Bools | None
    in_graph: int
    tail: Rows


class Found(NamedTuple):
    """Candidates: rows int64 [n] and their closeness float32 [n]."""

    rows: Rows
    closeness: Array


def members_of(view: View, where: Node | None) -> Members:
    """The rows that are alive and for which a filter is true."""
    mask: Bools | None = None
    if where is not None:
        mask = view.masks.mask(where, view.count)
    if view.dead_count:
        mask = view.live if mask is None else mask & view.live
    if mask is None:
        return Members(None, view.tail_from, np.arange(view.count - view.tail_from))
    return Members(mask, int(np.count_nonzero(mask[: view.tail_from])), np.flatnonzero(mask[view.tail_from :]))


def _wanted(search: Search) -> int:
    return search.candidates + len(search.exclude)


def in_graph(
    view: View,
    searches: Sequence[Search],
    members: dict[Node | None, Members],
    planner: Planner,
    *,
    unfinished: set[int] | None,
    on_way: Callable[[Way], None],
) -> Steps[list[Found]]:
    """The nearest members among the graph's rows, for each search."""
    nothing = Found(np.empty(0, np.int64), np.empty(0, np.float32))
    found, metric = [nothing] * len(searches), view.graph.metric
    by_width: dict[int | None, list[int]] = defaultdict(list)
    for i, search in enumerate(searches):
        eligible = members[search.where].in_graph
        width = None if search.exact else planner.width(view.tail_from, eligible, _wanted(search))
        by_width[width].append(i)
    to_score = by_width.pop(None, [])
    items = view.tail_from - view.dead_count  # in the graph; or more, if some of the tail are dead
    while by_width:
        width = min(filter(None, by_width))
        group = by_width.pop(width)
        nearest, closeness = yield partial(view.graph.nearest, _vectors(searches, group), width)
        full = (nearest[:, -1] >= 0).tolist()  # as many as were asked for
        known = (nearest.max(axis=1) < view.tail_from).tolist()  # each in the view's part of the graph
        copies = view.graph.copies.counts(nearest)
        for k, (i, nodes, near_nodes) in enumerate(zip(group, nearest, closeness, strict=True)):
            search, of = searches[i], members[searches[i].where]
            wanted, given = _wanted(search), Found(nodes, near_nodes)
            gathered = _gathered(view, given, copies[k], of, wanted, whole=full[k] and known[k])
            (rows, close), kept = yield from gathered
            near = _surely_nearest(kept, wanted, close)
            # Some rows cannot be reached, however wide the search.
            stuck = not full[k] or _crowded(near_nodes, kept, wanted, view.graph)
            rank, deep = 0, False
            # Without a filter only dead rows are left out, and where none of those lie nearer the rank is known.
            if near is not None and (search.where is not None or rows[wanted - 1] != kept.rows[wanted - 1]):
                last = int(np.count_nonzero(near_nodes >= kept.closeness[wanted - 1]))
                rank, with_gone = _rank(view, nodes[:last], rows)
                of_all = view.tail_from if with_gone else max(items, of.in_graph)
                asked = len(np.unique(view.graph.nodes(kept.rows[:wanted]))) if copies[k] else wanted
                deep = not planner.reaches(width, rank, of_all, of.in_graph, asked)
            if near is not None and not (stuck or deep):
                found[i] = near
                on_way(Way.GRAPH)
                continue
            if unfinished is not None:
                unfinished.add(i)
                continue
            if deep:
                wider = planner.deeper(rank, of.in_graph)
            else:
                wider = planner.wider(width, len(kept.rows), of.in_graph, wanted)
            (to_score if wider is None or stuck else by_width[wider]).append(i)
    for _ in to_score:
        on_way(Way.EXACT)
    for where, group in _by_filter(searches, to_score).items():
        of = members[where]
        rows = np.arange(view.tail_from) if of.mask is None else np.flatnonzero(of.mask[: view.tail_from])
        for i, near in (yield partial(_measured, searches, group, rows, metric, view.graph.closeness)):
            found[i] = near
    return found


def with_tail(
    view: View, searches: Sequence[Search], members: dict[Node | None, Members], nearest: list[Found]
) -> list[Found]:
    """What was found among the graph's rows, and the nearest members among the tail's, for each search."""
    found, metric = list(nearest), view.graph.metric

    def measure(vectors: Array, rows: Rows) -> Array:
        return view.graph.closeness_to(view.tail, vectors, rows)

    for where, group in _by_filter(searches, range(len(searches))).items():
        for i, near in _measured(searches, group, members[where].tail, metric, measure):
            both = _together(found[i], Found(near.rows + view.tail_from, near.closeness))
            found[i] = _closest(both, _wanted(searches[i]), metric)
    return found


def _measured(
    searches: Sequence[Search],
    group: Sequence[int],
    rows: Rows,
    metric: Metric,
    measure: Callable[[Array, Rows], Array],
) -> list[tuple[int, Found]]:
    """The nearest of the rows, for each search of the group."""
    found: list[tuple[int, Found]] = []
    at_once = max(1, _MEASURED_AT_ONCE // max(1, len(rows)))
    for begin in range(0, len(group), at_once):
        some = group[begin : begin + at_once]
        closeness = measure(_vectors(searches, some), rows)
        for i, close in zip(some, closeness, strict=True):
            found.append((i, _closest(Found(rows, close), _wanted(searches[i]), metric)))
    return found


def _by_filter(searches: Sequence[Search], chosen: Iterable[int]) -> dict[Node | None, list[int]]:
    groups: dict[Node | None, list[int]] = defaultdict(list)
    for i in chosen:
        groups[searches[i].where].append(i)
    return groups


def _together(one: Found, other: Found) -> Found:
    return Found(np.concatenate((one.rows, other.rows)), np.concatenate((one.closeness, other.closeness)))


def _vectors(searches: Sequence[Search], group: Sequence[int]) -> Array:
    return searches[group[0]].vector[None] if len(group) == 1 else np.stack([searches[i].vector for i in group])


def _kept(found: Found, mask: Bools | None, before: int) -> Found:
    """Those that are members, among rows of the view's part of the graph."""
    known = (found.rows >= 0) & (found.rows < before)
    if mask is not None:
        known &= mask[np.where(known, found.rows, 0)]
    return Found(found.rows[known], found.closeness[known])


def _gathered(
    view: View, nodes: Found, copies: int, of: Members, wanted: int, *, whole: bool
) -> Steps[tuple[Found, Found]]:
    """What the graph gave, with copies, and the members among it.

    Args:
        view: whose graph was searched.
        nodes: what it gave, nearest first.
        copies: how many those have.
        of: whose members.
        wanted: how many of them.
        whole: whether every node is a row of the view.
    """
    kept = nodes if of.mask is None and whole else _kept(nodes, of.mask, view.tail_from)
    if not copies:
        return nodes, kept
    expand = partial(_with_copies, view, nodes, kept, wanted)
    everything = (yield expand) if copies > _EXPANDED_BRIEFLY else expand()
    return everything, _kept(everything, of.mask, view.tail_from)


def _with_copies(view: View, nodes: Found, members: Found, wanted: int) -> Found:
    """Nodes with their copies, but for those that are farther than as many members as are wanted.

    Args:
        view: whose graph was searched.
        nodes: what it gave, nearest first.
        members: those of them that are members themselves.
        wanted: how many members.
    """
    near, end = nodes.closeness, len(nodes.rows)
    if len(members.rows) >= wanted:
        least = members.closeness[wanted - 1] - _UNSURE * float(max(abs(near[0]), abs(near[-1])))
        end = int(np.count_nonzero(near >= least))
    expanded = Found(*view.graph.copies.with_copies(nodes.rows[:end], near[:end]))
    return _together(expanded, Found(nodes.rows[end:], near[end:]))


def _surely_nearest(members: Found, wanted: int, closeness: Array) -> Found | None:
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
    stop = wanted + int(np.count_nonzero(near[wanted:] >= limit))
    return Found(members.rows[:stop], near[:stop])


def _crowded(closeness: Array, members: Found, wanted: int, graph: Graph) -> bool:
    """Whether more nodes that cannot be told apart than a row has links are among the nearest, or go on from there.

    Such rows link to each other alone. So a search that has come to some of them need not come to the rest, however
    wide it is, and rows that are farther make it look complete.

    Args:
        closeness: of all nodes that the graph gave, as many as were asked for, nearest first.
        members: as for ``_surely_nearest``.
        wanted: how many of them.
        graph: that was searched.
    """
    links, metric = graph.links, graph.metric
    if len(members.rows) < wanted or len(closeness) <= links:
        return False
    nearest, farthest = float(closeness[0]), float(closeness[-1])
    spread = closeness[:-links] - closeness[links:]
    if spread.min() > _UNSURE * max(abs(nearest), abs(farthest)):  # as nearly always
        return False
    limit = float(members.closeness[wanted - 1])
    limit -= _unsure(metric, limit, nearest, farthest)
    return any(
        close - beyond <= _unsure(metric, beyond, nearest, farthest)
        for close, beyond in zip(closeness[:-links].tolist(), closeness[links:].tolist(), strict=True)
        if close >= limit
    )


def _unsure(metric: Metric, close: float, nearest: float, farthest: float) -> float:
    """How much less close a row may look that is as close as another one, or closer.

    Sums of squares, all of one sign, are as exact as they are small: an item far away makes none less exact. Of a
    product, large terms may leave little.

    Args:
        metric: the collection's.
        close: how close the other one looks.
        nearest: how close the closest of all does.
        farthest: how close the least close of all does.
    """
    return _UNSURE * (abs(close) if metric is Metric.L2 else max(abs(nearest), abs(farthest)))


def _rank(view: View, nodes: Rows, given: Rows) -> tuple[int, bool]:
    """How many of the nodes are of items that are there or are gone from there, and whether any is gone.

    Items that were replaced do not count where what replaced them lies there too, as at whatever is edited often; or in
    the tail, for which no graph has to be searched. Items that were deleted, or lie elsewhere now, do: the search went
    through them.

    Args:
        view: whose graph was searched.
        nodes: the nearest that the graph gave, by their first rows.
        given: all rows that it gave.
    """
    nodes = nodes[(nodes >= 0) & (nodes < view.tail_from)]
    live = view.live[nodes]
    rank, gone = int(np.count_nonzero(live)), set[str]()
    for first in nodes[~live].tolist():
        known = (row for row in view.graph.copies.of(first) if row < view.tail_from)
        rows = [first, *islice(known, _COPIES_LOOKED_AT)]
        if view.live[rows].any():
            rank += 1
            continue
        for item_id in {view.ids[row] for row in rows}:
            now = view.row_of.get(item_id)
            if now is None or (now < view.tail_from and not (given == now).any()):
                gone.add(item_id)
                break
    return rank + len(gone), bool(gone)


def _closest(found: Found, wanted: int, metric: Metric) -> Found:
    """The ``wanted`` nearest of all, in no order, and those that cannot be told from the last of them."""
    close = found.closeness
    if len(close) <= wanted:
        return found
    last = float(np.partition(close, len(close) - wanted)[len(close) - wanted])
    taken = np.flatnonzero(close >= last - _unsure(metric, last, float(close.max()), float(close.min())))
    return Found(found.rows[taken], close[taken])
