"""Searches that take a few milliseconds at most, and that wait for others of their kind alone.

A thread that searches and the event loop take turns at Python's lock. So few of these are under way at once, and those
that are there at the same moment are answered together: see ``batcher``.
"""

from indexer.reads import Search
from indexer.serving.planner import Planner
from indexer.serving.table import View

# How many numbers of vectors are compared for a search, at most: half a millisecond's work. A graph of vectors of 512
# numbers, 96 wide, counts as 1.2 million.
_MOST_NUMBERS = 2**21
# And how many rows are scored and put in order.
_MOST_ROWS = 256
# Searches that are answered together, at most.
MOST_TOGETHER = 16


def is_brief(view: View, search: Search, planner: Planner) -> bool:
    """Whether a search can be begun with little work, and the first try is nearly always the last.

    One with a filter is not: finding out for which rows it is true can take long.
    """
    if search.where is not None or search.exact:
        return False
    tail = view.count - view.tail_from
    wanted = search.candidates + len(search.exclude)
    if wanted > _MOST_ROWS:
        return False
    rows = planner.cost(view.tail_from, max(0, view.live_count - tail), wanted) + tail
    return rows * view.graph.dimension <= _MOST_NUMBERS
