"""What an export says of itself: in a Parquet file's schema metadata, in the first line of JSON Lines."""

from collections.abc import Mapping
from dataclasses import dataclass

from likeness_client.errors import FILE_INVALID, LikenessError
from likeness_client.indexer.shapes import collection_from_json
from likeness_client.indexer.types import Collection

KEY = "likeness"
VERSION = 1


@dataclass(frozen=True)
class Facts:
    """What an export is of.

    Attributes:
        collection: the collection as it was when the export began.
        where: the condition, as it was given; empty: all items.
        vectors: whether the vectors are in it.
    """

    collection: Collection
    where: str
    vectors: bool


def facts_from_json(told: object, path: object) -> Facts:
    """Reads back what an export says of itself.

    Raises:
        LikenessError: FILE_INVALID; it was written by something else, or by a newer release.
    """
    if not isinstance(told, Mapping):
        message = f"what {path} says of its collection is no JSON object; export it again"
        raise LikenessError("INVALID_ARGUMENT", FILE_INVALID, message)
    version = told.get("export")
    if version != VERSION:
        message = (
            f"{path} is an export of layout {version!r}, this release reads {VERSION}; use the release that wrote it"
        )
        raise LikenessError("INVALID_ARGUMENT", FILE_INVALID, message)
    try:
        return Facts(collection_from_json(told["collection"]), str(told["where"]), bool(told["vectors"]))
    except (KeyError, TypeError, ValueError) as error:
        message = f"what {path} says of its collection cannot be read ({error!r}); export it again"
        raise LikenessError("INVALID_ARGUMENT", FILE_INVALID, message) from None
