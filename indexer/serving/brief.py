"""Searches that take a few milliseconds at most, and need not wait for what takes longer: see ``batcher``."""

from collections.abc import Sequence

from indexer.reads import Search
from indexer.serving.planner import Planner
from indexer.serving.table import View

# How many numbers of vectors are compared for a search one by one, at most: half a millisecond's work.
_MOST_NUMBERS = 2**21
# And what a search of the graph counts as: of vectors of 512 numbers, by the cosine, 1.2 million for 10 hits, 2.9
# million for 40.
_MOST_IN_GRAPH = 3 * 2**20
# And how many rows are wanted.
_MOST_ROWS = 256
# Searches that are answered together, at most.
MOST_TOGETHER = 16


def is_brief(view: View, searches: Sequence[Search], planner: Planner) -> bool:
    """Whether it is few searches that can each be begun with little work, and the first try is nearly always the last.

    One with a filter is not: finding out for which rows it is true can take long.
    """
    return len(searches) <= MOST_TOGETHER and all(_is_brief(view, search, planner) for search in searches)


def _is_brief(view: View, search: Search, planner: Planner) -> bool:
    if search.where is not None or search.exact:
        return False
    tail = view.count - view.tail_from
    wanted = search.candidates + len(search.exclude)
    if wanted > _MOST_ROWS:
        return False
    members = max(0, view.live_count - tail)
    width, dimension = planner.width(view.tail_from, members, wanted), view.graph.dimension
    most = _MOST_NUMBERS if width is None else _MOST_IN_GRAPH
    return tail * dimension <= _MOST_NUMBERS and (planner.cost(width, members) + tail) * dimension <= most
