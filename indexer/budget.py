"""What the collections in memory may take together, and who makes room where they take more.

Rows that were replaced or deleted take room until the table is built anew. So they send no collection out of memory:
they are cleared away, and meanwhile the collections may take a little more. What would not fit even then has to leave.
"""

from collections.abc import Mapping

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.served import Served

# By what share of the budget it may be passed while dead rows are cleared away, and what share has to be free after it:
# for less, tables would be built anew all the time. Where there is room already, none of that is asked.
_SPARE, _FREE = 1 / 8, 1 / 16


class Budget:
    """Bytes that the collections in memory may take, and who takes how many of them."""

    def __init__(self, most: int, served: Mapping[str, Served]) -> None:
        """A budget.

        Args:
            most: bytes.
            served: the collections, by uid; as they are whenever something is asked.
        """
        self.most = most
        self.utmost = most + int(_SPARE * most)
        self._served = served

    @property
    def used(self) -> int:
        """Bytes that the collections in memory take, estimated."""
        return sum(each.nbytes for each in self._served.values())

    def fits(self, more: int) -> bool:
        """Whether so many bytes more fit, once the dead rows that can be cleared away have been."""
        return sum(each.live_nbytes for each in self._served.values()) + more <= self.most

    def make_room(self, more: int) -> bool:
        """Has dead rows cleared away where room for so many bytes more is wanted; False: it would not be enough."""
        excess = self.used + more - self.most
        if excess > 0 and not self.fits(more + int(_FREE * self.most)):
            return False
        for each in sorted(self._served.values(), key=lambda each: each.nbytes - each.live_nbytes, reverse=True):
            if excess <= 0:
                break
            if each.maintenance is not None:
                each.maintenance.make_room()
                excess -= each.nbytes - each.live_nbytes
        return True

    def clear(self) -> None:
        """Has all dead rows cleared away."""
        for each in self._served.values():
            if each.maintenance is not None:
                each.maintenance.make_room()

    def largest(self) -> Served:
        """The collection in memory that takes the most, dead rows left aside; there must be one."""
        there = [each for each in self._served.values() if each.serving is not None]
        return max(there, key=lambda each: each.live_nbytes)

    def full(self, staged: int = 0) -> LikenessError:
        """MEMORY_FULL: nothing more fits beside them, and ``staged`` bytes of collections that are being made."""
        return LikenessError(
            error_pb2.REASON_MEMORY_FULL,
            f"the collections in memory take {self.used + staged >> 20:,} MiB of {self.most >> 20:,}; raise "
            "LIKENESS_MEMORY_BUDGET_MB, delete collections or items (whose room comes back with the next rebuild), "
            "or set LIKENESS_READS to auto or chroma",
        )

    def crowded(self) -> LikenessError:
        """OVERLOADED: there will be room once dead rows have been cleared away."""
        return LikenessError(
            error_pb2.REASON_OVERLOADED,
            f"the collections in memory take {self.used >> 20:,} MiB of {self.most >> 20:,} until rows that were "
            "replaced or deleted are cleared away, which is under way; try again in a moment, or raise "
            "LIKENESS_MEMORY_BUDGET_MB",
            retry_after_s=1.0,
        )
