"""Pages and facets of metadata that have been read, in plain Python: for collections that Chroma serves.

The order and the kinds of values are those of the contract's ListItemsRequest, FacetValue and Facet. How much of a page
fits a message is the same wherever it was read.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from chassis.metadata import Plain
from indexer.reads import After, Facet, Listing, StoredItem
from indexer.serving.columns import number

Scalar = str | int | float | bool

_NUMBER, _STRING, _BOOL, _NONE = range(4)

# Of a page's items: what a gRPC client takes that was told nothing of message sizes (4 MiB).
PAGE_BYTES = 3 * 2**20


def nbytes(item: StoredItem) -> int:
    """What an item takes in a message, but for some tens of bytes."""
    size = text_bytes(item.id)
    if item.packed is not None:
        size += len(item.packed)
    if item.vector is not None:
        size += 4 * item.vector.size
    return size


def text_bytes(text: str) -> int:
    """What a text takes in a message."""
    return len(text) if text.isascii() else len(text.encode())


def fitting(items: Sequence[StoredItem]) -> int:
    """How many of a page's items fit a message: the first one always does."""
    size = 0
    for count, item in enumerate(items):
        size += nbytes(item)
        if size > PAGE_BYTES and count:
            return count
    return len(items)


def first(listing: Listing, values: Mapping[str, Plain | None]) -> tuple[list[str], After | None]:
    """A page of items.

    Args:
        listing: which page.
        values: by id, the value of the key ordered by; None where there is none, and for all where none is.

    Returns:
        The ids in order, and where the next page begins; None: this is the last.
    """
    left = [item_id for item_id, value in values.items() if _is_behind(listing, item_id, value)]
    # Sorting keeps the order of equals, in reverse too: by id, except where the id is what is reversed.
    left.sort(reverse=listing.descending and not listing.order_by)
    by_kind: list[list[str]] = [[], [], [], []]
    for item_id in left:
        by_kind[_kind(values[item_id])].append(item_id)
    for ids in by_kind[:_NONE]:
        ids.sort(key=lambda item_id: _comparable(values[item_id]), reverse=listing.descending)
    ordered = [item_id for ids in by_kind for item_id in ids]
    page = ordered[: listing.size]
    if len(ordered) == len(page):
        return page, None
    return page, behind(page[-1], values)


def behind(item_id: str, values: Mapping[str, Plain | None]) -> After:
    """Where the page begins that follows an item.

    Args:
        item_id: the item.
        values: as in ``first``.
    """
    value = values[item_id]
    return After(item_id, None if isinstance(value, list) else value)


@dataclass
class Counts:
    """Counts the values of one key."""

    key: str
    missing: int = 0
    _counts: Counter[tuple[int, Scalar]] = field(default_factory=Counter)

    def add(self, metadata: Iterable[Mapping[str, Plain]]) -> None:
        """Counts items."""
        for each in metadata:
            value = each.get(self.key)
            if value is None:
                self.missing += 1
            elif isinstance(value, list):
                self._counts.update((_STRING, text) for text in set(value))
            else:
                self._counts[_kind(value), _comparable(value)] += 1

    def facet(self, limit: int) -> Facet:
        """The most frequent values, at most ``limit``."""
        ordered = sorted(self._counts.items(), key=lambda entry: (-entry[1], entry[0]))
        values = [(number(v) if isinstance(v, float) else v, count) for (_, v), count in ordered[:limit]]
        return Facet(self.key, values, len(self._counts), self.missing)


def _is_behind(listing: Listing, item_id: str, value: Plain | None) -> bool:
    after = listing.after
    if after is None:
        return True
    kind, kind_after = _kind(value), _kind(after.value)
    if kind != kind_after:
        return kind > kind_after
    if kind != _NONE and (mine := _comparable(value)) != (last := _comparable(after.value)):
        return (mine < last) if listing.descending else (mine > last)  # type: ignore[operator]  # of one kind
    return item_id < after.id if listing.descending and not listing.order_by else item_id > after.id


def _kind(value: Plain | None) -> int:
    match value:
        case None | list():
            return _NONE
        case bool():
            return _BOOL
        case str():
            return _STRING
        case _:
            return _NUMBER


def _comparable(value: Plain | None) -> Scalar:
    """What values of one kind are compared and counted by: whole numbers and fractions are one type."""
    assert value is not None
    assert not isinstance(value, list)
    return value if isinstance(value, str | bool) else float(value)
