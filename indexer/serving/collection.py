"""A collection in memory: it follows what is written to Chroma, and is what reads look at."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from likeness.common.v1.metadata_pb2 import Metadata

from chassis import metadata
from chassis.metadata import Plain
from chassis.vectors import Array
from indexer.collections import Collection
from indexer.filters import Node
from indexer.serving.table import Table, View
from indexer.writes import Written


class ServingCollection:
    """The rows of a collection, how far they follow Chroma, and how much has changed since the last snapshot."""

    def __init__(self, collection: Collection, table: Table, watermark: int) -> None:
        """A collection as it was loaded.

        Args:
            collection: whose.
            table: its rows.
            watermark: the greatest stamp of what is in the table.
        """
        self.collection = collection
        self.table = table
        self.watermark = watermark
        self.changed_rows = 0
        self.changed_at = time.monotonic()
        self.changed = asyncio.Event()
        self.on_failure: Callable[[Exception], None] = lambda _: None

    @property
    def view(self) -> View:
        """The state that reads see now."""
        return self.table.view

    async def stored(self, ids: Sequence[str]) -> dict[str, tuple[Array, Mapping[str, Plain]]]:
        """The vector, float32 [dimension], and the metadata of those items that exist, by id."""
        view, known = self.view, self._rows(ids)
        if not known:
            return {}

        # Vectors are behind the graph's lock, which the event loop must not wait for.
        def read() -> dict[str, tuple[Array, Mapping[str, Plain]]]:
            vectors = view.originals(np.array([row for _, row in known], np.int64))
            return {i: (vector, unpacked(view.packed[row])) for (i, row), vector in zip(known, vectors, strict=True)}

        return await asyncio.to_thread(read)

    def existing(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that exist."""
        return {item_id for item_id, _ in self._rows(ids)}

    def metadata(self, ids: Sequence[str]) -> dict[str, Mapping[str, Plain]]:
        """The metadata alone."""
        return {item_id: unpacked(self.view.packed[row]) for item_id, row in self._rows(ids)}

    async def matching(self, where: Node) -> list[str]:
        """The ids of the items for which a filter is true, in no particular order."""
        view = self.view

        def find() -> list[str]:
            rows = np.flatnonzero(view.masks.mask(where, view.count) & view.live)
            return [view.ids[row] for row in rows.tolist()]

        return await asyncio.to_thread(find)

    def apply(self, written: Sequence[Written], deleted: Sequence[str], stamp: int) -> None:
        """Takes over what Chroma has accepted: from now on every read sees it.

        Where that fails, for want of memory say, the table is good for reads of its last view only: ``on_failure`` is
        told.
        """
        try:
            self.table.apply(written, deleted)
        except Exception as error:
            self.on_failure(error)
            raise
        self.watermark = max(self.watermark, stamp)
        self.changed_at = time.monotonic()
        self.changed_rows += len(written) + len(deleted)
        self.changed.set()

    def _rows(self, ids: Sequence[str]) -> list[tuple[str, int]]:
        return [(item_id, row) for item_id in ids if (row := self.table.row_of.get(item_id)) is not None]

    def absorbed(self, upto: int) -> None:
        """The graph holds all rows before ``upto``."""
        self.table.absorbed(upto)

    def replace(self, compacted: Table) -> None:
        """Goes on with a table that was compacted from the present one."""
        compacted.catch_up(self.view)
        self.changed_rows += self.view.dead_count
        self.table = compacted


def unpacked(packed: bytes) -> dict[str, Plain]:
    """Metadata as it was written."""
    return metadata.from_proto(Metadata.FromString(packed), "metadata")
