"""What an indexer tells of collections, items and backups, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from likeness_client.items import Fingerprint, MetadataValue

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Metric(StrEnum):
    """How likeness is measured."""

    COSINE = "cosine"
    L2 = "l2"
    INNER_PRODUCT = "inner_product"


@dataclass(frozen=True)
class Hnsw:
    """How an index is made and searched; 0 is the indexer's default.

    Attributes:
        max_neighbors: links of an item (M), 4 to 128; applies from the next rebuild on.
        ef_construction: how wide the index is searched when an item is added, 16 to 2,000; from the next rebuild on.
        ef_search: how wide a query searches, 10 to 10,000; at once in memory, in Chroma from the next rebuild on.
    """

    max_neighbors: int = 0
    ef_construction: int = 0
    ef_search: int = 0


@dataclass(frozen=True)
class Collection:
    """A collection.

    Attributes:
        name: its name.
        uid: what tells it from another of the same name; a rebuild keeps it.
        fingerprint: the model whose vectors it holds.
        metric: how likeness is measured.
        hnsw: how its index is made and searched; None where a gateway tells of it, which does not know.
        description: what it is for.
        aliases: other names that stand for it.
        count: items in it.
        create_time: when it was made; None if the indexer does not know.
        earlier_uids: of what it was restored or imported from, the last first; the gateway finds its pictures by these
            too. Empty where a gateway tells of it.
    """

    name: str
    uid: str
    fingerprint: Fingerprint
    metric: Metric
    hnsw: Hnsw | None = None
    description: str = ""
    aliases: tuple[str, ...] = ()
    count: int = 0
    create_time: datetime | None = None
    earlier_uids: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServingStatus:
    """Where a collection is served from, and what it takes.

    Attributes:
        name: the collection's name.
        mode: ``"loading"``, ``"memory"`` or ``"chroma"``.
        reason: why it is not served from memory; empty if it is.
        loaded: while loading, items in memory so far.
        total: while loading, items there are.
        rows: in memory, rows of items, replaced and deleted ones included.
        dead_rows: of these, those replaced or deleted.
        unindexed_rows: of these, those not in the graph yet.
        dead_share: ``dead_rows`` of ``rows``, 0 to 1.
        memory_bytes: bytes it takes in memory, estimated.
        disk_bytes: bytes its own files take; None if Chroma is somebody else's.
        recall: share of the 10 nearest items that searches found, by the last probe; None before the first.
        last_write_time: None if nothing was written since the indexer was started.
    """

    name: str
    mode: str
    reason: str
    loaded: int
    total: int
    rows: int
    dead_rows: int
    unindexed_rows: int
    dead_share: float
    memory_bytes: int
    disk_bytes: int | None
    recall: float | None
    last_write_time: datetime | None


@dataclass(frozen=True)
class Described:
    """A collection, and where it is served from."""

    collection: Collection
    status: ServingStatus


@dataclass(frozen=True)
class CollectionUpdate:
    """A collection as it was changed, and whether something of the change applies only after a rebuild."""

    collection: Collection
    needs_rebuild: bool


@dataclass(frozen=True)
class Alias:
    """Another name of a collection."""

    name: str
    collection: str


@dataclass(frozen=True)
class Item:
    """A stored item.

    Attributes:
        id: its id.
        metadata: what else is known of it.
        vector: its numbers, if asked for.
    """

    id: str
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    vector: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Items beside one another.

    Attributes:
        ids: n ids.
        metadata: n mappings.
        vectors: float32 [n, dimension]; None if not asked for.
    """

    ids: list[str]
    metadata: list[dict[str, MetadataValue]]
    vectors: "NDArray[np.float32] | None"

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class GetResult:
    """Items read by id: those that exist, in the order asked for, and the ids of those that do not."""

    items: tuple[Item, ...]
    missing_ids: tuple[str, ...]


@dataclass(frozen=True)
class Hit:
    """A neighbour: the item, and how alike it is; a higher score is more."""

    item: Item
    score: float


@dataclass(frozen=True)
class QueryResult:
    """The hits of a query, best first, and the model whose vectors were searched."""

    hits: tuple[Hit, ...]
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Progress:
    """How far something is: what is being done, items done of it, and items there are (0: unknown)."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Snapshot:
    """A backup.

    Attributes:
        name: such as ``"photos/20261122T101500.123Z"``.
        collection: the collection as it was.
        create_time: when it was made.
        size: bytes it takes.
        fault: why it cannot be restored, as far as its manifest shows; empty if it can.
    """

    name: str
    collection: Collection
    create_time: datetime | None
    size: int
    fault: str


@dataclass(frozen=True)
class SnapshotMade:
    """A backup just made, and the names of older ones that were deleted for it."""

    snapshot: Snapshot
    deleted: tuple[str, ...]


@dataclass(frozen=True)
class Rebuilt:
    """A rebuilt collection, and the bytes of the data directory before and after; 0: Chroma is somebody else's."""

    collection: Collection
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class ErasureReport:
    """What was erased, and how that was checked.

    Attributes:
        deleted: items that existed and were deleted.
        files_searched: files read to the end in search of traces; 0: Chroma is somebody else's.
        bytes_searched: bytes in those.
        traces: what was searched for: ids, encodings of vectors, strings of metadata.
        strings_left_out: strings not searched for, since other items have them too or they are too short.
        found_in: files in which something was found.
        other_collections: other collections that hold one of the ids, and were left as they are.
        snapshots: backups that still hold one of the items, also those of collections of other names.
        deleted_snapshots: backups that were deleted.
        end_time: when it ended.
    """

    deleted: int
    files_searched: int
    bytes_searched: int
    traces: int
    strings_left_out: int
    found_in: tuple[str, ...]
    other_collections: tuple[str, ...]
    snapshots: tuple[str, ...]
    deleted_snapshots: tuple[str, ...]
    end_time: datetime | None

    @property
    def clean(self) -> bool:
        """Whether nothing is left anywhere that was searched, backups included."""
        return not self.found_in and not self.snapshots


@dataclass(frozen=True)
class Limits:
    """The most that a request may ask for; ``likeness.indexer.v1.Limits`` has the fields' meaning and units."""

    dimension: int
    message_bytes: int
    batch: int
    id_bytes: int
    metadata_keys: int
    metadata_key_bytes: int
    metadata_bytes: int
    queries: int
    examples: int
    top_k: int
    hits: int
    candidates: int
    filter_depth: int
    filter_nodes: int
    filter_values: int
    facets: int
    page_size: int


@dataclass(frozen=True)
class IndexerStatus:
    """What an indexer is doing.

    Attributes:
        store_available: whether Chroma answers.
        memory_bytes: bytes that the collections in memory take.
        memory_budget_bytes: bytes they may take.
        collections: ordered by name.
        limits: what a request may ask for.
        role: ``"writer"`` or ``"reader"``.
        lag_s: of a reader, seconds by which it may be behind the writer.
        store_bytes: bytes of Chroma's files; None if Chroma is somebody else's.
    """

    store_available: bool
    memory_bytes: int
    memory_budget_bytes: int
    collections: tuple[ServingStatus, ...]
    limits: Limits
    role: str
    lag_s: float
    store_bytes: int | None
