"""Rows in the contract's orders, a page at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.filters import Scalar
from indexer.reads import After, Listing
from indexer.serving.columns import Columns, Kind, Rows, Values, number
from indexer.serving.texts import Order, Sorted

Bools = npt.NDArray[np.bool_]

# The kinds that have an order, in theirs.
_ORDERED = (Kind.NUMBER, Kind.STRING, Kind.BOOL)
_LEAST_SCANNED = 1024


@dataclass(frozen=True)
class _Page:
    """What is being looked for."""

    alive: Bools
    listing: Listing
    ids: Order
    wanted: int


class Orders:
    """The orders of rows by id and by metadata. For worker threads: the first page by id and by a string takes long."""

    def __init__(self, ids: Sequence[str], columns: Columns) -> None:
        """Nothing ordered yet.

        Args:
            ids: row → id; only ever appended to.
            columns: the metadata.
        """
        self._id_texts = ids
        self._columns = columns
        self._ids = Sorted(ids)
        self._words = Sorted(columns.words)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self._ids.nbytes + self._words.nbytes

    def page(self, alive: Bools, listing: Listing) -> tuple[list[int], After | None]:
        """A page.

        Args:
            alive: bool [count], the rows to list; ``listing.where`` is not looked at.
            listing: in which order, from where on, how many.

        Returns:
            The rows in order, and where the next page begins; None: this is the last.
        """
        page = _Page(alive, listing, self._ids.order(len(alive)), listing.size + 1)
        if listing.order_by:
            rows, values = self._by_key(page)
        else:
            rows, values = self._by_id(page), [None] * page.wanted
        if len(rows) < page.wanted:
            return rows, None
        del rows[-1]
        return rows, After(self._id_texts[rows[-1]], values[len(rows) - 1])

    def by_id(self, alive: Bools, after: str) -> Rows:
        """All rows in the order of their ids.

        Args:
            alive: bool [count], the rows wanted.
            after: only rows with an id behind this one; empty: all.

        Returns:
            int32 [n].
        """
        order = self._ids.order(len(alive))
        places = order.places[order.behind(after) :] if after else order.places
        places = places[places < len(alive)]
        return places[alive[places]]

    def _by_id(self, page: _Page) -> list[int]:
        after, places = page.listing.after, page.ids.places
        if page.listing.descending:
            places = places[: page.ids.first(after.id)] if after else places
            return _first(places[::-1], page.alive, page.wanted)
        places = places[page.ids.behind(after.id) :] if after else places
        return _first(places, page.alive, page.wanted)

    def _by_key(self, page: _Page) -> tuple[list[int], list[Scalar | None]]:
        after = page.listing.after
        begun = None if after is None else _kind(after.value)
        kinds = _ORDERED if after is None else _ORDERED[_ORDERED.index(begun) :] if begun is not None else ()
        rows: list[int] = []
        values: list[Scalar | None] = []
        for kind in kinds:
            if len(rows) < page.wanted:
                found, stored = self._of_kind(page, kind, after if kind is begun else None, page.wanted - len(rows))
                rows += found.tolist()
                values += [self._plain(kind, value) for value in stored.tolist()]
        if len(rows) < page.wanted:
            rest = self._without_order(page, after if begun is None else None, page.wanted - len(rows))
            rows += rest
            values += [None] * len(rest)
        return rows, values

    def _of_kind(self, page: _Page, kind: Kind, after: After | None, wanted: int) -> tuple[Rows, Values]:
        """The first rows with values of a kind, and these values as they are stored."""
        rows, values = self._columns.column(page.listing.order_by, kind, len(page.alive))
        entries = np.flatnonzero(page.alive[rows])
        rows, values = rows[entries], values[entries]
        if not len(rows):
            return rows, values
        words = self._words.order(len(self._columns.words)) if kind is Kind.STRING else None
        keys: Values = values if words is None else words.ranks[values]
        if after is not None:
            limit = _limit(words, after.value)
            beyond = keys < limit if page.listing.descending else keys > limit
            tied = np.flatnonzero(keys == limit)
            beyond[tied] = page.ids.ranks[rows[tied]] >= page.ids.behind(after.id)
            entries = np.flatnonzero(beyond)
            rows, values, keys = rows[entries], values[entries], keys[entries]
        chosen = _least(-keys if page.listing.descending else keys, rows, page.ids, wanted)
        return rows[chosen], values[chosen]

    def _without_order(self, page: _Page, after: After | None, wanted: int) -> list[int]:
        alive = page.alive.copy()
        for kind in _ORDERED:
            alive[self._columns.column(page.listing.order_by, kind, len(alive))[0]] = False
        places = page.ids.places[page.ids.behind(after.id) :] if after else page.ids.places
        return _first(places, alive, wanted)

    def _plain(self, kind: Kind, value: float) -> Scalar:
        match kind:
            case Kind.NUMBER:
                return number(value)
            case Kind.BOOL:
                return bool(value)
            case _:
                return self._columns.words[int(value)]


def _kind(value: Scalar | None) -> Kind | None:
    match value:
        case None:
            return None
        case bool():
            return Kind.BOOL
        case str():
            return Kind.STRING
        case _:
            return Kind.NUMBER


def _limit(words: Order | None, value: Scalar | None) -> float:
    """Where the page before ended, in the numbers that its values are ordered by."""
    if words is None or not isinstance(value, str):
        return float(value or 0)
    first = words.first(value)
    # A string that no row has any more stood between two that are.
    return first if words.behind(value) > first else first - 0.5


def _first(places: Rows, alive: Bools, wanted: int) -> list[int]:
    """The first places that are alive."""
    found: list[int] = []
    begin, size = 0, max(_LEAST_SCANNED, 2 * wanted)
    while begin < len(places) and len(found) < wanted:
        part = places[begin : begin + size]
        part = part[part < len(alive)]
        found += part[alive[part]][: wanted - len(found)].tolist()
        begin, size = begin + size, 4 * size
    return found


def _least(keys: Values, rows: Rows, ids: Order, wanted: int) -> npt.NDArray[np.intp]:
    """Where the least keys are, in order; equal keys by id."""
    if len(keys) <= wanted:
        return np.lexsort((ids.ranks[rows], keys))
    limit = np.partition(keys, wanted - 1)[wanted - 1]
    less, tied = np.flatnonzero(keys < limit), np.flatnonzero(keys == limit)
    missing = wanted - len(less)
    if len(tied) > missing:
        tied = tied[np.argpartition(ids.ranks[rows[tied]], missing - 1)[:missing]]
    chosen = np.concatenate([less, tied])
    return chosen[np.lexsort((ids.ranks[rows[chosen]], keys[chosen]))]
