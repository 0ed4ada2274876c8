"""What of a chunk has to be written, given what is stored: repeating a write costs a read, not an insertion."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from chassis.metadata import Plain
from chassis.vectors import Array
from indexer.chroma_where import StoredMetadata, from_stored, to_stored
from indexer.reads import Item

# In cosine collections Chroma keeps direction and length apart, and gives vectors back with the last digit rounded.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Change:
    """An item to write, and the metadata to send for it; None where there is nothing to send."""

    item: Item
    metadata: StoredMetadata | None


@dataclass
class Changes:
    """Items that are new, whose vector is another, and of which only the metadata is. The rest is stored already."""

    added: list[Change] = field(default_factory=list)
    moved: list[Change] = field(default_factory=list)
    relabelled: list[Change] = field(default_factory=list)


def compare(items: Iterable[Item], stored: Mapping[str, tuple[Array, StoredMetadata | None]]) -> Changes:
    """Sorts items by what has to be written of them.

    Args:
        items: with vectors, each id once.
        stored: by id, what is stored of them: vector float32 [dimension] and metadata.
    """
    changes = Changes()
    for item in items:
        if item.id not in stored:
            changes.added.append(Change(item, to_stored(item.metadata) or None))
            continue
        vector, metadata = stored[item.id]
        change = Change(item, _replacing(metadata or {}, item.metadata) or None)
        if not _same_vector(item.vector, vector):
            changes.moved.append(change)
        elif not _same(from_stored(metadata), item.metadata):
            changes.relabelled.append(change)
    return changes


def _replacing(old: StoredMetadata, new: Mapping[str, Plain]) -> StoredMetadata:
    """Chroma merges the metadata that is sent into what is there; None deletes a key."""
    stored = to_stored(new)
    return dict.fromkeys(set(old) - set(stored)) | stored


def _same_vector(new: Array | None, old: Array) -> bool:
    assert new is not None, "an item to write has a vector"
    exact = new.astype(np.float64)
    return float(np.abs(exact - old).max()) <= _ROUNDING * float(np.linalg.norm(exact))


def _same(old: Mapping[str, Plain], new: Mapping[str, Plain]) -> bool:
    """Equal in value and type: in Python ``True == 1 == 1.0``."""
    return old.keys() == new.keys() and all(type(old[key]) is type(new[key]) and old[key] == new[key] for key in new)
