"""Page tokens: where a list goes on, and which list. Opaque to clients, and of no use to any other list."""

import base64
import hashlib
import json
import math
from typing import NoReturn

from likeness.indexer.v1 import indexer_pb2

from chassis.errors import LikenessError
from indexer.messages import refused_page_token
from indexer.reads import After

# An id of 512 bytes and a string of 4,096 take less, even where JSON escapes every character.
_MAX_CHARACTERS = 64 * 1024
_INT64 = 2**63


def of_collections(name: str) -> str:
    """The token of the page of collections behind ``name``."""
    return _encode({"collections": name})


def collections_behind(request: indexer_pb2.ListCollectionsRequest) -> str:
    """The name behind which the page begins; empty: from the beginning.

    Raises:
        LikenessError: FIELD_INVALID.
    """
    if not request.page_token:
        return ""
    name = _decode(request.page_token, "ListCollections").get("collections")
    if not isinstance(name, str):
        raise refused_page_token(request.page_token, "ListCollections")
    return name


def of_items(request: indexer_pb2.ListItemsRequest, uid: str, after: After) -> str:
    """The token of the page behind ``after`` of the list that ``request`` asks for.

    Args:
        request: what was asked for.
        uid: of the collection that its name stood for.
        after: the last item of the page before.
    """
    return _encode({"list": _digest(request, uid), "id": after.id, "value": after.value})


def items_behind(request: indexer_pb2.ListItemsRequest, uid: str) -> After | None:
    """The item behind which the page begins; None: from the beginning.

    Args:
        request: what is asked for.
        uid: of the collection that its name stands for now.

    Raises:
        LikenessError: FIELD_INVALID: no token, or of a list in another order, with another filter, or of another
            collection: another name of the same one will do, but not an alias that has moved.
    """
    if not request.page_token:
        return None
    token = _decode(request.page_token, "ListItems")
    item_id, value = token.get("id"), token.get("value")
    if token.get("list") != _digest(request, uid) or not isinstance(item_id, str) or not _is_value(value):
        raise refused_page_token(request.page_token, "ListItems")
    assert value is None or isinstance(value, (str, int, float))
    return After(item_id, value)


def _is_value(value: object) -> bool:
    match value:
        case None | bool() | str():
            return True
        case int():
            return -_INT64 <= value < _INT64
        case float():
            return math.isfinite(value)
        case _:
            return False


def _digest(request: indexer_pb2.ListItemsRequest, uid: str) -> str:
    listing = indexer_pb2.ListItemsRequest(
        collection=uid,
        filter=request.filter if request.HasField("filter") else None,
        order_by=request.order_by,
        descending=request.descending,
    )
    return hashlib.sha256(listing.SerializeToString(deterministic=True)).hexdigest()[:16]


def _encode(content: dict[str, str | int | float | bool | None]) -> str:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode(token: str, rpc: str) -> dict[str, object]:
    refused: LikenessError = refused_page_token(token, rpc)
    if len(token) > _MAX_CHARACTERS:
        raise refused
    try:
        text = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise refused from None
    if not isinstance(content, dict):
        raise refused
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
