"""What is written, as it passes between the writer, Chroma and the serving index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from chassis.metadata import Plain, to_proto
from chassis.vectors import Array
from indexer.filters import Node


@dataclass(frozen=True, slots=True)
class Written:
    """An item as Chroma has it now.

    Attributes:
        id: unique in its collection.
        vector: float32 [dimension], as it was written (not normalised).
        packed: the serialised likeness.common.v1.Metadata, keys in order: equal metadata, equal bytes.
        metadata: key to value, as in ``packed``.
        length: where it is not None, ``vector`` is a direction, with which the serving index of a cosine collection
            searches as it is, and the vector that was written had this length.
    """

    id: str
    vector: Array
    packed: bytes
    metadata: Mapping[str, Plain]
    length: float | None = None

    @classmethod
    def of(cls, item_id: str, vector: Array, metadata: Mapping[str, Plain]) -> "Written":
        """An item with its metadata packed."""
        return cls(item_id, vector, pack(metadata), metadata)


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """An item as it was read from Chroma.

    Attributes:
        id: unique in its collection.
        vector: float32 [dimension].
        metadata: key to value, without what is reserved.
        stamp: when it was written last, as ``stamps.Stamps`` counts; 0: by a release that gave none.
    """

    id: str
    vector: Array
    metadata: dict[str, Plain]
    stamp: int

    def written(self) -> Written:
        """The item for the serving index."""
        return Written.of(self.id, self.vector, self.metadata)


@dataclass(frozen=True, slots=True)
class Update:
    """A change of one item's metadata.

    Attributes:
        id: the item's.
        set: keys and their new values.
        remove: keys to remove, before anything is set.
        replace: whether all that the item had is removed first.
    """

    id: str
    set: Mapping[str, Plain] = field(default_factory=dict)
    remove: Sequence[str] = ()
    replace: bool = False

    def applied(self, metadata: Mapping[str, Plain]) -> dict[str, Plain]:
        """The metadata after the change."""
        kept = {} if self.replace else {key: value for key, value in metadata.items() if key not in self.remove}
        return kept | dict(self.set)


class Mirror(Protocol):
    """What the writer keeps equal to Chroma: a collection's serving index."""

    async def stored(self, ids: Sequence[str]) -> dict[str, tuple[Array, Mapping[str, Plain]]]:
        """Vector (as written) and metadata of those of ``ids`` that exist."""

    def existing(self, ids: Sequence[str]) -> set[str]:
        """Those of ``ids`` that exist."""

    def metadata(self, ids: Sequence[str]) -> dict[str, Mapping[str, Plain]]:
        """The metadata alone."""

    async def matching(self, where: Node) -> list[str]:
        """The ids of the items for which the filter is true, in no particular order."""

    def apply(self, written: Sequence[Written], deleted: Sequence[str], stamp: int) -> None:
        """Takes in what Chroma has taken, no id twice; an id that is deleted may be unknown.

        ``stamp``: the greatest that Chroma holds of this collection now.
        """


def pack(metadata: Mapping[str, Plain]) -> bytes:
    """The serialised likeness.common.v1.Metadata, keys in order."""
    return to_proto(metadata).SerializeToString(deterministic=True)
