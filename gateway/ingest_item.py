"""One item of an ingest on its way in: what the caller says of it, and what its bytes say."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from likeness.common.v1 import error_pb2
from likeness.common.v1.metadata_pb2 import Metadata
from likeness.gateway.v1 import gateway_pb2

from chassis import metadata, names
from chassis.errors import LikenessError, incident, invalid
from chassis.metadata import MAX_KEYS, MAX_LIST_LENGTH, MAX_STRING_BYTES, Plain
from chassis.pictures import PictureLimits
from gateway import items, picture_facts

Fetch = Callable[[str], Awaitable[bytes]]

# Above this, hashing a picture takes longer than handing it to a thread (0.5 ms at 2 GB/s).
_HASH_IN_THREAD_BYTES = 2**20


@dataclass(eq=False)
class Item:
    """An item under way.

    Attributes:
        place: how many items were sent before it.
        message: as it came; a picture that was given by a uri holds what was fetched.
        id: its id; empty if it is the hash of a picture that could not be fetched.
        sha256: of the picture.
        size: bytes that it holds.
        refused: why it is not taken, if that is known already.
        done: set when it is answered.
        twins: items of the same picture that wait for what becomes of this one.
        stored_metadata: what is stored beside its vector.
    """

    place: int
    message: gateway_pb2.IndexItem
    id: str
    sha256: str
    size: int
    refused: LikenessError | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    twins: list["Item"] = field(default_factory=list)
    stored_metadata: Metadata = field(default_factory=Metadata)


async def arrive(message: gateway_pb2.IndexItem, place: int, fetch: Fetch) -> Item:
    """An item with its id and its picture, which is fetched if it is given by a uri.

    Args:
        message: as it came.
        place: how many items were sent before it.
        fetch: gives the bytes behind a uri; what it raises is why the item is refused.
    """
    image = message.image
    if image.WhichOneof("source") == "uri":
        message.uri = message.uri or image.uri
        try:
            image.encoded = await fetch(image.uri)
        except Exception as error:
            return Item(place, message, message.id, "", message.ByteSize(), failed_alone(error))
    size = message.ByteSize()
    if size > _HASH_IN_THREAD_BYTES:
        sha256 = await asyncio.to_thread(picture_facts.content_hash, image)
    else:
        sha256 = picture_facts.content_hash(image)
    return Item(place, message, message.id or sha256, sha256, size)


def describe(item: Item, limits: PictureLimits) -> Metadata:
    """What is to be stored of an item besides its vector. For a thread: it reads the picture's header.

    Raises:
        LikenessError: the item is refused; fields are named from ``item``.
    """
    if item.refused is not None:
        raise item.refused
    message = item.message
    names.check_item_id(item.id, "item.id")
    theirs = _their_metadata(message)
    own: dict[str, Plain] = picture_facts.read(message.image, limits, "item.image")
    stored = items.to_stored({**own, "sha256": item.sha256}, message.uri, message.labels, theirs)
    if (count := len(stored.fields)) > MAX_KEYS:
        added = count - len(theirs)
        description = f"{len(theirs)} keys, and {added} that the gateway adds; at most {MAX_KEYS} are taken together"
        raise invalid("item.metadata", description, error_pb2.REASON_METADATA_INVALID)
    metadata.from_proto(stored, "item.metadata")  # all of it together must keep the rules too
    return stored


def failed_alone(error: Exception) -> LikenessError:
    """Why one item is not taken; a fault of ours, which is logged, costs no other item either."""
    return error if isinstance(error, LikenessError) else incident("unexpected error at one item of an ingest", error)


def _their_metadata(message: gateway_pb2.IndexItem) -> dict[str, Plain]:
    """The caller's metadata, after it and the labels and uri were checked."""
    if len(message.uri.encode()) > MAX_STRING_BYTES:
        raise invalid("item.uri", f"{len(message.uri.encode())} bytes; at most {MAX_STRING_BYTES} are taken")
    if len(message.labels) > MAX_LIST_LENGTH:
        raise invalid("item.labels", f"{len(message.labels)} labels; at most {MAX_LIST_LENGTH} are taken")
    for i, label in enumerate(message.labels):
        if not 0 < len(label.encode()) <= MAX_STRING_BYTES:
            raise invalid(f"item.labels[{i}]", f"{len(label.encode())} bytes; expected 1 to {MAX_STRING_BYTES}")
    theirs = metadata.from_proto(message.metadata, "item.metadata")
    for key in items.OWN_KEYS & theirs.keys():
        description = f"key {key!r} is written by the gateway; use another name, or the item's own field"
        raise invalid("item.metadata.fields", description, error_pb2.REASON_METADATA_INVALID)
    return theirs
