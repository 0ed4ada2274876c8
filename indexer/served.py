"""A collection as the registry knows it: where it is served from, and by what."""

from dataclasses import dataclass

from indexer.collections import Collection
from indexer.serving.collection import ServingCollection
from indexer.serving.maintenance import Maintenance
from indexer.serving.reader import MemoryReader
from indexer.serving.table import Table
from indexer.status import CollectionStatus, Mode

# What an item takes beside its vector: its id, a few keys of metadata and its links in the graph.
_BESIDE_VECTOR = 700


@dataclass(eq=False)
class Served:
    """A collection, and what serves it from memory, if it is served from there."""

    collection: Collection
    mode: Mode
    reason: str = ""
    loaded: int = 0
    total: int = 0
    serving: ServingCollection | None = None
    reader: MemoryReader | None = None
    maintenance: Maintenance | None = None

    @property
    def nbytes(self) -> int:
        """Bytes it takes in memory."""
        return 0 if self.serving is None else self.serving.table.nbytes

    @property
    def live_nbytes(self) -> int:
        """Bytes it will take once its dead rows have been cleared away, if they can be."""
        if self.serving is None or self.maintenance is None or not self.maintenance.clears:
            return self.nbytes
        return _live_nbytes(self.serving.table)


def status_of(served: Served) -> CollectionStatus:
    """What is said of it."""
    name, uid, key = served.collection.name, served.collection.uid, served.collection.key
    if served.serving is None:
        return CollectionStatus(name, served.mode, served.reason, served.loaded, served.total, uid=uid, key=key)
    view = served.serving.view
    return CollectionStatus(
        name,
        served.mode,
        rows=view.count,
        dead_rows=view.dead_count,
        unindexed_rows=len(view.tail),
        memory_bytes=served.nbytes,
        recall=None if served.maintenance is None else served.maintenance.recall,
        last_write=served.serving.watermark,
        uid=uid,
        key=key,
    )


class OverBudgetError(Exception):
    """The collection does not fit what collections in memory may take."""


def estimate(collection: Collection) -> int:
    """Bytes that an item takes in memory, before it is known."""
    return 4 * collection.fingerprint.dimension + _BESIDE_VECTOR


def expected(collection: Collection, table: Table, total: int) -> int:
    """Bytes that so many items will take in memory, some of which a table has already."""
    there = table.view.live_count
    held = _live_nbytes(table) * min(there, total) // max(there, 1)
    return held + max(total - there, 0) * estimate(collection)


def _live_nbytes(table: Table) -> int:
    """Bytes that a table takes for its live rows: about what is left of it when it is built anew."""
    return table.nbytes * table.view.live_count // max(table.view.count, 1)


def over_budget(budget: int) -> str:
    """Why a collection is not in memory."""
    return f"collections in memory may take {budget >> 20:,} MiB (LIKENESS_MEMORY_BUDGET_MB), and it does not fit"
