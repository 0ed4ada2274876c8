"""What answers searches: an interface that Chroma satisfies today and an index in memory can satisfy as well."""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from chassis.metadata import Plain
from chassis.vectors import Array
from indexer.collections import Collection
from indexer.filters import Node


@dataclass(frozen=True)
class Fields:
    """What comes back of an item besides its id."""

    metadata: bool = False
    vector: bool = False


@dataclass(frozen=True)
class Item:
    """An item.

    Attributes:
        id: unique in its collection.
        vector: float32 [dimension]; None where it was not asked for.
        metadata: key to value; empty where it was not asked for.
    """

    id: str
    vector: Array | None = None
    metadata: dict[str, Plain] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """An item found, and how alike it is: the score as the contract's Metric defines it, higher is more alike."""

    item: Item
    score: float


class Reader(Protocol):
    """Finds neighbours and reads items."""

    async def search(
        self, collection: Collection, vectors: Array, where: Node | None, k: int, fields: Fields
    ) -> list[list[Row]]:
        """The nearest neighbours.

        Args:
            collection: where to search.
            vectors: float32 [n, dimension].
            where: only items for which it is true; None: all.
            k: most rows a vector, at least 1.
            fields: what comes back of each item.

        Returns:
            n lists of at most k rows, in no particular order.
        """

    async def fetch(self, collection: Collection, ids: list[str], fields: Fields) -> dict[str, Item]:
        """The items that exist among ``ids`` (without repetitions), by id."""


class Turnstile:
    """Lets a bounded number of searches run, a bounded number wait, and refuses the rest."""

    def __init__(self, running: int, waiting: int) -> None:
        self._running = asyncio.Semaphore(running)
        self._room = waiting
        self._waiting = 0

    async def __aenter__(self) -> None:
        if self._running.locked() and self._waiting >= self._room:
            message = f"{self._waiting} searches are waiting for their turn; try again in a moment"
            raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=1.0)
        self._waiting += 1
        try:
            await self._running.acquire()
        finally:
            self._waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._running.release()
