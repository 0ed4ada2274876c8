"""A stored picture as clients see it, and as the indexer keeps it: labels and uri live in its metadata."""

from collections.abc import Sequence
from typing import Any, Protocol

from likeness.common.v1.metadata_pb2 import Metadata
from likeness.common.v1.types_pb2 import ItemFields
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis import metadata
from chassis.metadata import Plain

LABELS, URI = "labels", "uri"

# What the gateway itself writes; callers' metadata cannot hold these.
OWN_KEYS = frozenset(
    {LABELS, URI, "format", "width", "height", "bytes", "sha256", "taken_at", "camera", "latitude", "longitude"}
)


class ShowsItems(Protocol):
    """A request that says what its client wants to get back of items."""

    @property
    def fields(self) -> ItemFields:
        """What."""

    def HasField(self, field_name: Any, /) -> bool:  # noqa: N802  (protobuf's)
        """Whether the field is set."""


def to_stored(own: dict[str, Plain], uri: str, labels: Sequence[str], theirs: dict[str, Plain]) -> Metadata:
    """The metadata under which the indexer keeps an item.

    Args:
        own: what the gateway read from the picture.
        uri: where it came from; may be empty.
        labels: what the caller calls it; repeated ones count once.
        theirs: the caller's metadata.
    """
    plain: dict[str, Plain] = {**theirs, **own}
    if uri:
        plain[URI] = uri
    if labels:
        plain[LABELS] = list(dict.fromkeys(labels))
    return metadata.to_proto(plain)


def from_stored(item: indexer_pb2.Item | indexer_pb2.Hit, fields: ItemFields) -> gateway_pb2.Item:
    """The item that a client gets, from one that was read with its metadata."""
    shown = gateway_pb2.Item(id=item.id)
    for key, value in item.metadata.fields.items():
        if key == LABELS:
            shown.labels.extend(value.strings_value.values)
        elif key == URI:
            shown.uri = value.string_value
        elif fields.metadata:
            shown.metadata.fields[key].CopyFrom(value)
    if fields.vector:
        shown.vector.CopyFrom(item.vector)
    return shown


def wanted(message: ShowsItems) -> ItemFields:
    """What the client asked to get back; unset: metadata, no vector."""
    return message.fields if message.HasField("fields") else ItemFields(metadata=True)


def to_read(fields: ItemFields) -> ItemFields:
    """What to ask the indexer for: labels and uri are metadata there, and always shown."""
    return ItemFields(metadata=True, vector=fields.vector)
