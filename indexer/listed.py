"""What Chroma lists, sorted: collections, the aliases, and what is left over."""

from collections.abc import Sequence
from dataclasses import dataclass

from indexer import deleted
from indexer.aliases import Aliases, latest
from indexer.collections import PREFIX, Collection, NewerCollection, StoredCollection, from_stored, is_ours
from indexer.deleted import Deleted

# How what is being dropped is named: whatever its marks say, it is half empty.
APART = "Likeness.Dropped."
# Instead of all other marks: of a copy, whose it is; of a collection to be, its name; of what was deleted, its uid.
COPY_OF, RESTORES, DROPPED = (f"{PREFIX}{mark}" for mark in ("copy_of", "restores", "dropped"))


@dataclass(frozen=True)
class Listed:
    """Everything of Likeness's in a store.

    Attributes:
        collections: by name; of each the highest generation.
        aliases: the highest version of them.
        replaced: earlier generations.
        copies: what was staged and not committed.
        dropped: what was deleted and is not gone yet.
        documents: every version of them, the earliest first.
        deleted: what is remembered of collections that were deleted.
    """

    collections: dict[str, Collection | NewerCollection]
    aliases: Aliases
    replaced: list[StoredCollection]
    copies: list[StoredCollection]
    dropped: list[StoredCollection]
    documents: list[StoredCollection]
    deleted: Deleted

    def copies_of(self, uid: str) -> list[StoredCollection]:
        """What was staged of a collection."""
        return [each for each in self.copies if each.metadata.get(COPY_OF) == uid]

    def replaced_of(self, uid: str) -> list[StoredCollection]:
        """Its earlier generations."""
        return [each for each in self.replaced if from_stored(each).uid == uid]

    @property
    def left(self) -> list[StoredCollection]:
        """Everything that is of no use when no work is under way."""
        return [*self.copies, *self.dropped, *self.replaced, *self.documents[:-1]]


def sort_out(stored: Sequence[StoredCollection]) -> Listed:
    """Sorts what a store lists; what is somebody else's is left out."""
    newest: dict[str, tuple[Collection | NewerCollection, StoredCollection]] = {}
    replaced: list[StoredCollection] = []
    for each in filter(_is_whole, stored):
        collection = from_stored(each)
        other = newest.get(collection.uid)
        if other is not None and other[0].generation > collection.generation:
            replaced.append(each)
            continue
        if other is not None:
            replaced.append(other[1])
        newest[collection.uid] = (collection, each)
    aliases, documents = latest(stored)
    unmarked = [each for each in stored if not _is_whole(each)]
    return Listed(
        collections={c.name: c for c, _ in newest.values()},
        aliases=aliases,
        replaced=replaced,
        copies=[each for each in unmarked if COPY_OF in each.metadata or RESTORES in each.metadata],
        dropped=[each for each in unmarked if DROPPED in each.metadata or each.name.startswith(APART)],
        documents=documents,
        deleted=deleted.read(unmarked),
    )


def _is_whole(stored: StoredCollection) -> bool:
    return is_ours(stored) and not stored.name.startswith(APART)
