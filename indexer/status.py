"""What the indexer says of itself: the answer of ``GetStatus``."""

from dataclasses import dataclass, field
from enum import Enum, StrEnum


class Mode(Enum):
    """Where reads of a collection are answered; the value is the contract's name without its prefix."""

    LOADING = "LOADING"
    MEMORY = "MEMORY"
    CHROMA = "CHROMA"


class Role(StrEnum):
    """Whether an indexer writes; the value is that of LIKENESS_ROLE."""

    WRITER = "writer"
    READER = "reader"


@dataclass(frozen=True, slots=True)
class CollectionStatus:
    """Where one collection is served from.

    Attributes:
        name: the collection's.
        mode: where reads are answered.
        reason: why it is not served from memory; empty if it is.
        loaded: while loading, items in memory so far.
        total: while loading, items there are.
        rows: in memory, rows of items, dead ones included.
        dead_rows: in memory, rows that were replaced or deleted.
        unindexed_rows: in memory, rows that are not in the graph yet.
        memory_bytes: in memory, bytes it takes, estimated.
        recall: what the last probe found; None: none yet.
        last_write: the greatest stamp of an item in memory, in microseconds since 1970; 0: none is known.
        uid: the collection's.
        key: Chroma's id of it.
    """

    name: str
    mode: Mode
    reason: str = ""
    loaded: int = 0
    total: int = 0
    rows: int = 0
    dead_rows: int = 0
    unindexed_rows: int = 0
    memory_bytes: int = 0
    recall: float | None = None
    last_write: int = 0
    uid: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """What the indexer is doing.

    Attributes:
        store_available: whether Chroma answers.
        memory_bytes: bytes that the collections in memory take.
        memory_budget_bytes: bytes they may take.
        collections: where each is served from, in any order.
    """

    store_available: bool
    memory_bytes: int
    memory_budget_bytes: int
    collections: list[CollectionStatus] = field(default_factory=list)
