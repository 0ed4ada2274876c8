"""What the writers of collections work with: where items are kept, and the rest of the indexer."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from chassis.metadata import Plain
from indexer.changes import Change, Changes
from indexer.collections import Collection
from indexer.filters import Node
from indexer.writes import Mirror, StoredRecord

WriteKind = Literal["upsert", "update", "delete"]


class WriteStore(Protocol):
    """Where items are written: see ``store.ChromaStore``."""

    async def newest(self, collection: Collection, at_least: int) -> int | None:
        """The greatest stamp, if it is ``at_least`` that."""

    async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
        """The items that exist."""

    async def metadata(self, collection: Collection, ids: Sequence[str]) -> dict[str, dict[str, Plain]]:
        """Their metadata, by id."""

    async def existing(self, collection: Collection, ids: Sequence[str]) -> set[str]:
        """Which of ``ids`` exist."""

    async def matching(self, collection: Collection, where: Node) -> list[str]:
        """The ids of the items for which the filter is true."""

    async def write(self, collection: Collection, changes: Changes, stamp: int) -> None:
        """Writes what has changed."""

    async def relabel(self, collection: Collection, labels: Sequence[Change], stamp: int) -> None:
        """Replaces the metadata of items."""

    async def delete(self, collection: Collection, ids: Sequence[str]) -> None:
        """Deletes items; what does not exist is no error."""


async def _nothing(_: Collection) -> None:
    return


def _anything(_: Collection, _items: int) -> None:
    return


def _any_deletion() -> None:
    return


def _no_mirror(_: Collection) -> Mirror | None:
    return None


def _unseen(_: WriteKind, _items: int, _seconds: float) -> None:
    return


def _settled() -> bool:
    return False


def _untold(_: Collection, _stamp: int, _again: Sequence[str]) -> None:
    return


@dataclass(frozen=True)
class Surroundings:
    """What writers need to know of the rest of the indexer.

    Attributes:
        mirror_of: the collection's serving index; None: it is not served from memory. Asked before each chunk.
        prepare: called once before the first write to a collection.
        admit: refuses a chunk of so many items before anything is done with it, by raising.
        admit_deletion: likewise, a chunk of deletions.
        wrote: is told of every chunk how many items it had and how long it took, in seconds.
        done: is told up to which stamp everything is in Chroma, and of what was deleted or read back, whose stamps tell
            nothing: what other indexers must know that follow this one.
        settle_s: after how many seconds a request without an answer is no longer carried out.
        unsettled: whether a request of a writer before this one may still be carried out.
    """

    mirror_of: Callable[[Collection], Mirror | None] = _no_mirror
    prepare: Callable[[Collection], Awaitable[None]] = _nothing
    admit: Callable[[Collection, int], None] = _anything
    admit_deletion: Callable[[], None] = _any_deletion
    wrote: Callable[[WriteKind, int, float], None] = _unseen
    done: Callable[[Collection, int, Sequence[str]], None] = _untold
    settle_s: float = 60.0
    unsettled: Callable[[], bool] = _settled
