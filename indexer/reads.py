"""What answers reads: one interface, satisfied by the serving index in memory and by Chroma."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from chassis.metadata import Plain
from chassis.vectors import Array
from indexer.collections import Collection
from indexer.filters import Node
from indexer.scoring import Scoring

if TYPE_CHECKING:
    from indexer.scan import Scan


@dataclass(frozen=True)
class Fields:
    """What comes back of an item besides its id."""

    metadata: bool = False
    vector: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """An item to write.

    Attributes:
        id: unique in its collection.
        vector: float32 [dimension].
        metadata: key to value.
    """

    id: str
    vector: Array
    metadata: Mapping[str, Plain] = field(default_factory=dict)


class StoredItem(NamedTuple):
    """An item as it was read.

    Attributes:
        id: unique in its collection.
        vector: float32 [dimension]; None where it was not asked for.
        packed: the serialised likeness.common.v1.Metadata, ready to be sent; None where it was not asked for.
    """

    id: str
    vector: Array | None = None
    packed: bytes | None = None


class Row(NamedTuple):
    """An item found: score and distance as the contract's Metric defines them."""

    item: StoredItem
    score: float
    distance: float


@dataclass(frozen=True, slots=True)
class Search:
    """One search.

    Attributes:
        vector: float32 [dimension]; of length 1 for the cosine.
        where: only items for which it is true; None: all.
        top_k: most rows, at least 1.
        offset: best rows to leave out.
        min_score: only rows with at least this score; None: all.
        scoring: what the scores are.
        candidates: how many items, nearest by the collection's metric, are scored; at least offset + top_k.
        exclude: ids that are not found.
        exact: whether every item is compared.
    """

    vector: Array
    where: Node | None
    top_k: int
    offset: int
    min_score: float | None
    scoring: Scoring
    candidates: int
    exclude: frozenset[str] = frozenset()
    exact: bool = False


@dataclass(frozen=True, slots=True)
class After:
    """The last item of a page: the next begins behind it.

    Attributes:
        id: its id.
        value: of the key ordered by; None: ordered by id, or the item has no value that is ordered.
    """

    id: str
    value: str | int | float | bool | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A page to read; the order is that of the contract's ListItemsRequest.

    Attributes:
        where: only items for which it is true; None: all.
        order_by: a metadata key; empty: by id.
        descending: from the greatest to the least.
        size: most items, at least 1.
        after: where the page before ended; None: from the beginning.
    """

    where: Node | None
    order_by: str
    descending: bool
    size: int
    after: After | None


@dataclass(frozen=True, slots=True)
class Page:
    """Items of a page in order, and where the next begins; None: this is the last."""

    items: list[StoredItem]
    next: After | None


@dataclass(frozen=True, slots=True)
class Facet:
    """The values of one key.

    Attributes:
        key: the key.
        values: values and how many items have each, in the contract's order.
        distinct: different values there are, given or not.
        missing: items that lack the key.
    """

    key: str
    values: list[tuple[str | int | float | bool, int]]
    distinct: int
    missing: int


class Reader(Protocol):
    """Answers reads of a collection. Each raises COLLECTION_NOT_FOUND, OVERLOADED or STORE_UNAVAILABLE."""

    @property
    def compares_all(self) -> bool:
        """Whether it can answer a search by comparing every item; one that cannot is not asked to."""

    async def search(self, collection: Collection, searches: Sequence[Search], fields: Fields) -> list[list[Row]]:
        """For each search its rows, best first and equal scores by id."""

    async def fetch(self, collection: Collection, ids: Sequence[str], fields: Fields) -> dict[str, StoredItem]:
        """The items that exist among ``ids`` (without repetitions), by id."""

    async def count(self, collection: Collection, where: Node | None) -> int:
        """How many items there are, or for how many the filter is true."""

    async def facets(
        self, collection: Collection, where: Node | None, wanted: Mapping[str, int]
    ) -> tuple[int, list[Facet]]:
        """How many items there are, and for each key wanted its most frequent values, as many as it maps to."""

    async def scan(self, collection: Collection, where: Node | None, after: str, fields: Fields) -> "Scan":
        """All items, or those for which the filter is true, with ids behind ``after``, in the order of their ids."""

    # Last: what follows in the class sees this in place of the builtin.
    async def page(self, collection: Collection, listing: Listing, fields: Fields) -> Page:
        """A page of items."""
