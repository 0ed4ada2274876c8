"""Searches that the event loop answers itself, because that takes less than a moment.

Handing a search to a thread and its rows back costs as much as a small search: the threads wake each other and take
turns at Python's lock. So one search whose work is known to be little is answered where it came in, unless it would
have to wait for one that adds to the graph.
"""

from collections.abc import Sequence

from indexer.reads import Search
from indexer.serving.planner import Planner
from indexer.serving.table import View

# How many numbers of vectors are compared, at most: half a millisecond's work. A graph of vectors of 512 numbers, 96
# wide, counts as 1.2 million.
_MOST_NUMBERS = 2**21
# And how many rows are scored and put in order.
_MOST_ROWS = 256


class NotBriefError(Exception):
    """There is more to do than it seemed."""


class Brief(Planner):
    """Begins as any planner, and ends there."""

    def wider(self, width: int, found: int, members: int, wanted: int) -> int | None:  # noqa: ARG002 (as of any)
        """Raises NotBriefError."""
        raise NotBriefError


def is_brief(view: View, searches: Sequence[Search], planner: Planner) -> bool:
    """Whether it is one search that can be begun with little work, of which the first try is nearly always the last.

    One with a filter never is: finding out for which rows it is true can take long.
    """
    if len(searches) != 1:
        return False
    search = searches[0]
    if search.where is not None or search.exact:
        return False
    tail = view.count - view.tail_from
    wanted = search.candidates + len(search.exclude)
    if wanted > _MOST_ROWS:
        return False
    rows = planner.cost(view.tail_from, max(0, view.live_count - tail), wanted) + tail
    return rows * view.graph.dimension <= _MOST_NUMBERS
