"""What of a chunk has to be written, given what is stored: repeating a write costs a comparison, not an insertion."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from chassis.metadata import Plain
from chassis.vectors import Array
from indexer.collections import Metric
from indexer.reads import Item

# In cosine collections Chroma keeps direction and length apart, and gives each number back with its last digit rounded.
_ROUNDING = 4e-6

NOTHING: Mapping[str, Plain] = {}


@dataclass(frozen=True, slots=True)
class Change:
    """New metadata for an item that is stored, and what they replace."""

    id: str
    new: Mapping[str, Plain]
    old: Mapping[str, Plain]


@dataclass(frozen=True, slots=True)
class Move:
    """An item to write with its vector, and the metadata it had; none if it is new."""

    item: Item
    old: Mapping[str, Plain]


@dataclass
class Changes:
    """Items that are new, whose vector is another, and of which only the metadata are. The rest is stored already."""

    added: list[Item] = field(default_factory=list)
    moved: list[Move] = field(default_factory=list)
    relabelled: list[Item] = field(default_factory=list)
    labels: list[Change] = field(default_factory=list)

    @property
    def items(self) -> list[Item]:
        """Everything there is to write."""
        return [*self.added, *(move.item for move in self.moved), *self.relabelled]


def compare(items: Iterable[Item], stored: Mapping[str, tuple[Array, Mapping[str, Plain]]], metric: Metric) -> Changes:
    """Sorts items by what has to be written of them.

    Args:
        items: each id once.
        stored: by id, what is stored of them: vector float32 [dimension] and metadata.
        metric: of the collection; vectors of a cosine collection come back rounded.
    """
    changes = Changes()
    for item in items:
        if item.id not in stored:
            changes.added.append(item)
            continue
        vector, metadata = stored[item.id]
        if not _same_vector(item.vector, vector, metric):
            changes.moved.append(Move(item, metadata))
        elif not same(metadata, item.metadata):
            changes.relabelled.append(item)
            changes.labels.append(Change(item.id, item.metadata, metadata))
    return changes


def same(old: Mapping[str, Plain], new: Mapping[str, Plain]) -> bool:
    """Equal in value and type: in Python ``True == 1 == 1.0``."""
    return old.keys() == new.keys() and all(_exactly(old[key], new[key]) for key in new)


def _exactly(old: Plain, new: Plain) -> bool:
    return type(old) is type(new) and old == new


def _same_vector(new: Array, old: Array, metric: Metric) -> bool:
    if metric is not Metric.COSINE:
        return np.array_equal(new, old)
    return bool((np.abs(new - old) <= _ROUNDING * np.abs(new)).all())
