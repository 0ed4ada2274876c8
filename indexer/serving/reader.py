# ruff: noqa: ARG002 (the collection is the one that it was made for)
"""Reads of one collection, answered from memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from indexer import listing as listings
from indexer import scan as scans
from indexer.collections import Collection
from indexer.filters import Node
from indexer.reads import Facet, Fields, Listing, Page, Row, Search, StoredItem
from indexer.scan import Batch, Scan
from indexer.serving.batcher import Batcher
from indexer.serving.collection import ServingCollection
from indexer.serving.facets import facets
from indexer.serving.reading import ReadThreads
from indexer.serving.table import Bools, View

Answer = TypeVar("Answer")


class MemoryReader:
    """Reads a serving collection. What takes longer than a moment runs in a thread, on one view."""

    def __init__(self, serving: ServingCollection, batcher: Batcher[View], threads: ReadThreads) -> None:
        """A reader.

        Args:
            serving: what it reads.
            batcher: answers searches.
            threads: do the rest.
        """
        self._serving = serving
        self._batcher = batcher
        self._threads = threads

    @property
    def compares_all(self) -> bool:
        """See ``Reader``."""
        return True

    @property
    def waiting(self) -> int:
        """Searches that wait for their turn."""
        return self._batcher.waiting

    async def search(self, collection: Collection, searches: Sequence[Search], fields: Fields) -> list[list[Row]]:
        """See ``Reader``."""
        return await self._batcher.submit(searches, fields)

    async def fetch(self, collection: Collection, ids: Sequence[str], fields: Fields) -> dict[str, StoredItem]:
        """See ``Reader``."""
        row_of = self._serving.table.row_of
        rows = [row for item_id in ids if (row := row_of.get(item_id)) is not None]
        view = self._serving.view  # in which these are the rows
        # Vectors are behind the graph's lock, which the event loop must not wait for.
        if fields.vector:
            items = await self._threads.briefly(lambda: view.items(rows, fields))
        else:
            items = view.items(rows, fields)
        return {item.id: item for item in items}

    async def count(self, collection: Collection, where: Node | None) -> int:
        """See ``Reader``."""
        if where is None:
            return self._serving.view.live_count
        return await self._in_turn(lambda view: int(np.count_nonzero(_alive(view, where))))

    async def page(self, collection: Collection, listing: Listing, fields: Fields) -> Page:
        """See ``Reader``."""

        def read(view: View) -> Page:
            alive = _alive(view, listing.where)
            rows, after = view.orders.page(alive, listing)
            items = view.items(rows, fields)
            kept = listings.fitting(items)
            if kept < len(items):
                # Rare: what is asked for again is where the next page begins.
                _, after = view.orders.page(alive, replace(listing, size=kept))
            return Page(items[:kept], after)

        return await self._in_turn(read)

    async def scan(self, collection: Collection, where: Node | None, after: str, fields: Fields) -> Scan:
        """See ``Reader``. Never refused: a backup must not fail because others list."""

        def begin() -> Scan:
            view = self._serving.view
            rows = view.orders.by_id(_alive(view, where), after)
            return scans.of_rows(rows, lambda part: _batch(view, part, fields), self._threads.in_line)

        return await self._threads.in_line(begin)

    async def facets(
        self, collection: Collection, where: Node | None, wanted: Mapping[str, int]
    ) -> tuple[int, list[Facet]]:
        """See ``Reader``."""

        def read(view: View) -> tuple[int, list[Facet]]:
            alive = _alive(view, where)
            return int(np.count_nonzero(alive)), facets(view.columns, alive, wanted)

        return await self._in_turn(read)

    async def _in_turn(self, read: Callable[[View], Answer]) -> Answer:
        """Reads the view of the moment when it is its turn: a wait holds no older one."""
        return await self._threads.at_length(lambda: read(self._serving.view))


def _alive(view: View, where: Node | None) -> Bools:
    return view.live if where is None else view.live & view.masks.mask(where, view.count)


def _batch(view: View, rows: npt.NDArray[np.int32], fields: Fields) -> Batch:
    """The first of the rows, as many as go into a batch."""
    numbers = rows.tolist()
    size = 4 * view.tail.shape[1] if fields.vector else 0
    sizes = [size + listings.text_bytes(view.ids[row]) for row in numbers]
    if fields.metadata:
        sizes = [size + len(view.packed[row]) for size, row in zip(sizes, numbers, strict=True)]
    count = scans.fitting(sizes)
    chosen, numbers = rows[:count].astype(np.int64), numbers[:count]
    return Batch(
        [view.ids[row] for row in numbers],
        view.vectors(chosen) if fields.vector else None,
        view.lengths[chosen] if fields.vector and view.lengths is not None else None,
        [view.packed[row] for row in numbers] if fields.metadata else None,
    )
