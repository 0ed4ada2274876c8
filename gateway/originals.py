"""The pictures behind stored items: the kept original, else what is behind the item's uri, if it still is the same."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis.errors import LikenessError
from gateway.fetch import Fetch
from gateway.items import URI
from gateway.media import Media


@dataclass(frozen=True)
class Originals:
    """Reads pictures as they were taken in.

    Attributes:
        media: keeps originals.
        fetch: gives what is behind a uri; None: uris are not to be used.
        uid: the collection's.
        max_bytes: largest picture read from a uri.
        earlier_uids: of what the collection was restored from.
    """

    media: Media
    fetch: Fetch | None
    uid: str
    max_bytes: int
    earlier_uids: Sequence[str] = ()

    async def read(self, item: indexer_pb2.Item, timeout_s: float) -> bytes:
        """The picture's bytes.

        Args:
            item: with its metadata.
            timeout_s: how long a fetch may take.

        Raises:
            LikenessError: ORIGINAL_MISSING, ORIGINAL_CHANGED, MEDIA_UNAVAILABLE, or why the uri cannot be fetched.
        """
        sha256, uri = text(item, "sha256"), text(item, URI)
        if sha256:
            kept = await self.media.original(self.uid, item.id, sha256, self.earlier_uids)
            if kept is not None:
                return kept
        if not sha256 or not uri or self.fetch is None:
            raise _missing(item.id, sha256, uri)
        fetched = await self.fetch(uri, "uri", timeout_s, min(size(item) or self.max_bytes, self.max_bytes))
        if hashlib.sha256(fetched).hexdigest() != sha256:
            message = "uri: what is there now is another picture than was taken in; take the new one in"
            raise LikenessError(error_pb2.REASON_ORIGINAL_CHANGED, message)
        return fetched


def text(item: indexer_pb2.Item, key: str) -> str:
    """A text of an item's metadata; empty if there is none."""
    return item.metadata.fields[key].string_value if key in item.metadata.fields else ""


def size(item: indexer_pb2.Item) -> int:
    """How many bytes its picture has; 0 if that is not known."""
    return max(0, item.metadata.fields["bytes"].int_value) if "bytes" in item.metadata.fields else 0


def _missing(item_id: str, sha256: str, uri: str) -> LikenessError:
    if not sha256:
        why = "it was not taken in by a gateway"
    elif uri:
        why = "its original was not kept; fetch_uris has it fetched from its uri"
    else:
        why = "its original was not kept, and it has no uri"
    message = (
        f"there is no picture of item {item_id[:200]!r} to embed: {why}; take it in again, with keep_originals and the "
        "labels and metadata that it is to have"
    )
    return LikenessError(error_pb2.REASON_ORIGINAL_MISSING, message)
