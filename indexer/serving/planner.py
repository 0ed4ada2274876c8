"""How a search is carried out: through the graph, how wide, or by scoring every row that may be found.

A filter is never handed to the graph. faiss takes one, but a search then ends among rows that the filter leaves out:
with a filter that has to do with the vectors (all pictures of dogs, and the query is a cat) it found 60 to 80 % of what
there is, and nothing showed it. Here the graph gives the rows nearest of all, and those that may be found (members) are
kept. If there are as many as wanted, they are the nearest members; if not, it shows. Then the search is made wider, or
every member is scored, whichever costs less. Deleted rows are no members: the same rule covers them.

Costs are in rows scored one by one: 0.2 µs for one of 512 numbers. A step of ``ef`` (one row more that the graph looks
for) takes as long as scoring some 25 rows, whatever the machine and the dimension; ``python -m
benchmarks.serving_plan`` measures it.
"""

from dataclasses import dataclass

# A graph's recall falls with the rank of what is looked for. Two more steps for each rank beyond the first 10 keep it
# where it is for those.
_STEPS_PER_RANK = 2
_FREE_RANKS = 10
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

    def cost(self, rows: int, members: int, wanted: int) -> float:
        """Of what ``width`` begins with, in rows scored one by one."""
        width = self.width(rows, members, wanted)
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
        return self._if_cheaper(max(4 * width, self._wide(wanted * width / (found + 1))), members)

    def _wide(self, rank: float) -> int:
        wide = self._settings.ef_search + _STEPS_PER_RANK * max(0.0, rank - _FREE_RANKS)
        return -(-int(wide) // _WIDTH_STEP) * _WIDTH_STEP

    def _if_cheaper(self, width: int, members: int) -> int | None:
        return width if width * self._settings.rows_per_step < members else None
