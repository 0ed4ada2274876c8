"""Reads answered by Chroma, for collections that are not in memory: the same answers, more slowly."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence

import numpy as np
from likeness.common.v1 import error_pb2

from chassis.errors import invalid
from chassis.metadata import Plain
from chassis.vectors import Array
from indexer import listing as listings
from indexer import scan as scans
from indexer.collections import Collection, Metric
from indexer.filters import Node
from indexer.reads import Facet, Fields, Listing, Page, Row, Search, StoredItem
from indexer.scan import MOST_ITEMS, Batch, Scan
from indexer.scoring import OF_METRIC, Scoring, distances, scores
from indexer.store import ChromaStore
from indexer.turnstile import Turnstile

# An order and facets need the metadata of every item that matches: about 20,000 a second. An order by id needs the ids.
MOST_READ = 100_000
MOST_LISTED = 1_000_000
_READ_AT_ONCE = 1000
# Whole items of a page: as many of the largest as fit one.
_FETCHED_AT_ONCE = 250

# Items found beyond those wanted, so that of equally near ones at the edge those with the first ids are kept.
_EDGE = 16


class ChromaReader:
    """``reads.Reader`` over Chroma."""

    def __init__(
        self, store: ChromaStore, turnstile: Turnstile, on_search: Callable[[int, float, float], None] = lambda *_: None
    ) -> None:
        """A reader.

        Args:
            store: where the collections are.
            turnstile: bounds what is under way.
            on_search: told of how many searches were sent together, the seconds they waited, and those they took.
        """
        self._on_search = on_search
        self._store = store
        self._turnstile = turnstile

    @property
    def compares_all(self) -> bool:
        """See ``Reader``."""
        return False

    async def search(self, collection: Collection, searches: Sequence[Search], fields: Fields) -> list[list[Row]]:
        """For each search its rows, best first and equal scores by id.

        Raises:
            LikenessError: FILTER_INVALID, OVERLOADED, COLLECTION_NOT_FOUND or STORE_UNAVAILABLE.
        """
        found: list[list[Row]] = [[] for _ in searches]

        async def ask(positions: list[int]) -> None:
            group = [searches[i] for i in positions]
            wanted = Fields(metadata=fields.metadata, vector=fields.vector or _needs_vectors(collection, group))
            vectors = np.stack([s.vector for s in group])
            came = time.perf_counter()
            async with self._turnstile:
                began = time.perf_counter()
                rows = await self._store.search(collection, vectors, group[0].where, _reach(group[0]), wanted)
                self._on_search(len(group), began - came, time.perf_counter() - began)
            for i, candidates in zip(positions, rows, strict=True):
                found[i] = _best(collection, searches[i], candidates, fields)

        # Equal filters are equal text: the repr of a frozen tree, in which True and 1 differ.
        groups: dict[tuple[str, int], list[int]] = {}
        for i, search in enumerate(searches):
            groups.setdefault((repr(search.where), _reach(search)), []).append(i)
        try:
            async with asyncio.TaskGroup() as tasks:
                for positions in groups.values():
                    tasks.create_task(ask(positions))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return found

    async def fetch(self, collection: Collection, ids: Sequence[str], fields: Fields) -> dict[str, StoredItem]:
        """The items that exist among ``ids`` (without repetitions), by id.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND or STORE_UNAVAILABLE.
        """
        return await self._store.fetch(collection, ids, fields) if ids else {}

    async def count(self, collection: Collection, where: Node | None) -> int:
        """How many items there are, or for how many the filter is true.

        Raises:
            LikenessError: FILTER_INVALID, OVERLOADED, COLLECTION_NOT_FOUND or STORE_UNAVAILABLE.
        """
        return await self._store.count(collection) if where is None else len(await self.matching(collection, where))

    async def matching(self, collection: Collection, where: Node) -> list[str]:
        """The ids of the items for which the filter is true, in no particular order.

        Raises:
            LikenessError: FILTER_INVALID, OVERLOADED, COLLECTION_NOT_FOUND or STORE_UNAVAILABLE.
        """
        async with self._turnstile:
            return await self._store.matching(collection, where)

    async def facets(
        self, collection: Collection, where: Node | None, wanted: Mapping[str, int]
    ) -> tuple[int, list[Facet]]:
        """How many items there are, and for each key wanted its most frequent values, as many as it maps to.

        Raises:
            LikenessError: FILTER_INVALID, also where too many items match; OVERLOADED, COLLECTION_NOT_FOUND or
                STORE_UNAVAILABLE.
        """
        counts = [listings.Counts(key) for key in wanted]
        total = 0
        async with self._turnstile:
            for part in _parts(await self._ids(collection, where, MOST_READ, "facets")):
                # What does not match any more since it was listed does not count.
                metadata = await self._store.metadata(collection, part, where)
                total += len(metadata)
                for each in counts:
                    each.add(metadata.values())
        return total, [each.facet(wanted[each.key]) for each in counts]

    async def page(self, collection: Collection, listing: Listing, fields: Fields) -> Page:
        """A page of items, found anew among all that match.

        Raises:
            LikenessError: FILTER_INVALID, also where too many items match; OVERLOADED, COLLECTION_NOT_FOUND or
                STORE_UNAVAILABLE.
        """
        async with self._turnstile:
            most = MOST_READ if listing.order_by else MOST_LISTED
            ids = await self._ids(collection, listing.where, most, "an order" if listing.order_by else "a list")
            values: dict[str, Plain | None] = dict.fromkeys(ids)
            if listing.order_by:
                values = {}
                for part in _parts(ids):
                    metadata = await self._store.metadata(collection, part, listing.where)
                    values.update((item_id, each.get(listing.order_by)) for item_id, each in metadata.items())
            page, after = await asyncio.to_thread(listings.first, listing, values)
            items: list[StoredItem] = []
            for part in _parts(page, _FETCHED_AT_ONCE):
                found = await self._store.fetch(collection, part, fields, listing.where)
                # What has been deleted since is left out, and what does not match any more.
                items += [found[item_id] for item_id in part if item_id in found]
                kept = listings.fitting(items)
                if kept < len(items):
                    return Page(items[:kept], listings.behind(items[kept - 1].id, values))
        return Page(items, after)

    async def scan(self, collection: Collection, where: Node | None, after: str, fields: Fields) -> Scan:
        """The items in the order of their ids; what is deleted before its batch is read is left out.

        Holds the ids of all that match, some 100 bytes each.

        Raises:
            LikenessError: FILTER_INVALID, OVERLOADED, COLLECTION_NOT_FOUND or STORE_UNAVAILABLE; the last two from the
                batches too.
        """
        async with self._turnstile:
            if where is None:
                listed = await self._store.ids(collection)
            else:
                listed = await self._store.matching(collection, where)
        ids = await asyncio.to_thread(scans.ascending, listed, after)
        del listed

        async def batches() -> AsyncGenerator[Batch, None]:
            # By a filter metadata are read too.
            at_once = _FETCHED_AT_ONCE if fields.vector or fields.metadata or where is not None else MOST_ITEMS
            for part in _parts(ids, at_once):
                async with self._turnstile.in_line:
                    found = await self._store.fetch(collection, part, fields, where)
                items = [found[item_id] for item_id in part if item_id in found]
                while items:
                    count = scans.fitting([listings.nbytes(item) for item in items])
                    yield scans.of_items(items[:count], fields)
                    del items[:count]

        return Scan(len(ids) if where is None else 0, batches())

    async def _ids(self, collection: Collection, where: Node | None, most: int, what: str) -> Sequence[str]:
        if where is None:
            ids = await self._store.ids(collection) if await self._store.count(collection) <= most else None
        else:
            ids = await self._store.matching(collection, where, most + 1)
        if ids is None or len(ids) > most:
            description = (
                f"more than {most:,} items match, and this collection is served from Chroma, where {what} needs every "
                "one of them; narrow the filter, or serve the collection from memory (LIKENESS_READS)"
            )
            raise invalid("filter", description, error_pb2.REASON_FILTER_INVALID)
        return ids


def _reach(search: Search) -> int:
    """How many neighbours are asked for."""
    return search.candidates + len(search.exclude) + _EDGE


def _needs_vectors(collection: Collection, searches: Sequence[Search]) -> bool:
    """Whether Chroma's own scores will not do.

    They are right to some 1e-7, of a stored vector 0.9999999 where it should be 1, which a least score would leave out.
    Vectors make ten hits 1.5 to 2 times as dear, and a hundred four times, so where nobody can tell they are not read.
    Of inner products anybody can: those of short vectors are themselves not much more than 1e-7.
    """
    own = OF_METRIC[collection.metric]
    inexact = collection.metric is Metric.INNER_PRODUCT
    return inexact or any(search.scoring is not own or search.min_score is not None for search in searches)


def _best(collection: Collection, search: Search, rows: list[Row], fields: Fields) -> list[Row]:
    own = OF_METRIC[collection.metric]
    near = [row for row in rows if row.item.id not in search.exclude]
    near = sorted(_scored(near, search.vector, own), key=_rank)[: search.candidates]
    if search.scoring is not own:
        near = sorted(_scored(near, search.vector, search.scoring), key=_rank)
    least = search.min_score
    kept = [row for row in near if least is None or row.score >= least]
    kept = kept[search.offset : search.offset + search.top_k]
    if fields.vector:
        return kept
    return [Row(StoredItem(row.item.id, None, row.item.packed), row.score, row.distance) for row in kept]


def _scored(rows: list[Row], vector: Array, scoring: Scoring) -> list[Row]:
    """The rows with scores from their vectors; as they are, if those were not read."""
    vectors = [row.item.vector for row in rows if row.item.vector is not None]
    if not vectors:
        return rows
    exact = scores(scoring, vector, np.stack(vectors))
    away = distances(scoring, exact)
    return [
        Row(row.item, score, distance) for row, score, distance in zip(rows, exact.tolist(), away.tolist(), strict=True)
    ]


def _rank(row: Row) -> tuple[float, str]:
    return -row.score, row.item.id


def _parts(ids: Sequence[str], size: int = _READ_AT_ONCE) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
