"""How a search is carried out: through the graph, how wide, or by scoring every row that may be found.

A filter is never handed to the graph. faiss takes one, but a search then ends among rows that the filter leaves out:
with a filter that has to do with the vectors (all pictures of dogs, and the query is a cat) it found 60 to 80 % of what
there is, and nothing showed it. Here the graph gives the rows nearest of all, and those that may be found (members) are
kept. If there are as many as wanted, they are the nearest members; if not, it shows. Then the search is made wider, or
every member is scored, whichever costs less. Deleted rows are no members: the same rule covers them.

Nor is a search relied upon whose members lie deeper among all rows than chance would have it, as those of such a filter
do, or those behind a cluster that was deleted: of what is deep a graph misses more. It is made wider in the same way.

Costs are in rows scored one by one: 0.2 µs for one of 512 numbers. A step of ``ef`` (one row more that the graph looks
for) takes as long as scoring some 25 rows, whatever the machine and the dimension; ``python -m
benchmarks.serving_plan`` measures it.
"""

import math
from dataclasses import dataclass

# A graph's recall falls with the rank of what is looked for, most where a cluster ends and the next rows are in others.
# 20,000 × 512 in clusters of 20: of the nearest 40, 0.984 were found with two more steps for each rank beyond the first
# 10, 0.991 with four; of the nearest 100, 0.978 and 0.992.
_STEPS_PER_RANK = 4
_FREE_RANKS = 10
# Where the filter leaves out the nearest cluster, all that is looked for is out there, and takes so many steps more.
# With half of the other clusters members, whole ones, 0.99 of the nearest 10 were found at a width of 330 behind a
# cluster of 20 (the last of them was the 39th row), 500 behind one of 100 (119th) and 2,300 behind one of 500 (525th).
_STEPS_WHERE_DEEP = 128
# So many standard deviations from what is expected are still chance: of filters that have nothing to do with the
# vectors, fewer than one in a hundred searches is repeated. Half as deep again as without a filter is not deep, and a
# search of most of the width that is called for has found nearly what that would.
_CHANCE = 3.0
_NOT_DEEP = 1.5
_WIDE_ENOUGH = 0.8
# Where too few members were found, how deep they lie is guessed from those; ``reaches`` tells whether it was enough.
_STEPS_PER_GUESSED_RANK = 2
# Searches of one width go to the graph together, so widths are multiples of this.
_WIDTH_STEP = 32


@dataclass(frozen=True)
class PlannerSettings:
    """What decides between speed and recall.

    Attributes:
        ef_search: how wide the graph is searched for 10 items, at least; 10 to 10,000.
        rows_per_step: how many rows are scored in the time of one step of ``ef_search``.
    """

    ef_search: int = 96
    rows_per_step: float = 25.0


class Planner:
    """Chooses by cost. Widths are of ``Graph.nearest``; None: every member is scored."""

    def __init__(self, settings: PlannerSettings) -> None:
        self._settings = settings

    def width(self, rows: int, members: int, wanted: int) -> int | None:
        """How to begin.

        Args:
            rows: in the graph.
            members: those of them that may be found.
            wanted: how many of those are wanted.
        """
        if members <= wanted:
            return None
        return self._if_cheaper(self._wide(wanted * rows / members), members)

    def cost(self, width: int | None, members: int) -> float:
        """Of a search so wide, in rows scored one by one; None: of scoring every member."""
        return members if width is None else width * self._settings.rows_per_step

    def wider(self, width: int, found: int, members: int, wanted: int) -> int | None:
        """How to go on after a search that found too few.

        Args:
            width: of that search.
            found: members it found.
            members: rows that may be found.
            wanted: how many of those are wanted.
        """
        # Members are as frequent as they were, or rarer.
        guessed = self._wide(wanted * width / (found + 1), _STEPS_PER_GUESSED_RANK)
        return self._if_cheaper(max(4 * width, guessed), members)

    def reaches(self, width: int, rank: int, rows: int, members: int, wanted: int) -> bool:
        """Whether a search that found as many members as wanted can be relied upon to have found the nearest.

        Args:
            width: of that search.
            rank: of the last one wanted among all vectors of items, equal ones counted once, from 1.
            rows: of items, in the graph; and of those that are gone, where ``rank`` counts them.
            members: those of them that may be found.
            wanted: how many of those are wanted, equal ones counted once.
        """
        share = members / rows
        by_chance = wanted / share + _CHANCE * math.sqrt(wanted * (1 - share)) / share  # negative binomial
        if rank <= max(by_chance, _NOT_DEEP * wanted):
            return True
        return width >= _WIDE_ENOUGH * self._deep(rank)

    def deeper(self, rank: int, members: int) -> int | None:
        """How to go on after a search that does not reach.

        Args:
            rank: of the last member wanted among all vectors of items, equal ones counted once, from 1.
            members: rows that may be found.
        """
        return self._if_cheaper(self._deep(rank), members)

    def _deep(self, rank: int) -> int:
        return self._wide(rank) + _STEPS_WHERE_DEEP

    def _wide(self, rank: float, steps_per_rank: int = _STEPS_PER_RANK) -> int:
        wide = self._settings.ef_search + steps_per_rank * max(0.0, rank - _FREE_RANKS)
        return -(-int(wide) // _WIDTH_STEP) * _WIDTH_STEP

    def _if_cheaper(self, width: int, members: int) -> int | None:
        return width if width * self._settings.rows_per_step < members else None
