"""The rules for the names of collections and the ids of items, and which hosts are this machine alone."""

import ipaddress
import re

from chassis.errors import invalid

_COLLECTION = re.compile(r"[a-z0-9][a-z0-9._-]{1,126}[a-z0-9]")
MAX_ID_BYTES = 512
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_collection(name: str, field: str) -> str:
    """The name, if it is one that a collection can have.

    Raises:
        LikenessError: FIELD_INVALID, naming the field.
    """
    if not _COLLECTION.fullmatch(name) or ".." in name or _is_address(name):
        raise invalid(
            field,
            f"{name[:200]!r} is no collection name; expected 3 to 128 characters of [a-z0-9._-], beginning and ending "
            "with a letter or a digit, without two dots in a row, and no IPv4 address",
        )
    return name


def _is_address(name: str) -> bool:
    """Chroma takes no such name."""
    if name.count(".") != 3:  # asked of every call, most of which would raise
        return False
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


def check_item_id(item_id: str, field: str) -> str:
    """The id, if it is one that an item can have.

    Raises:
        LikenessError: FIELD_INVALID, naming the field.
    """
    size = len(item_id.encode())
    if not 1 <= size <= MAX_ID_BYTES:
        raise invalid(field, f"an id of {size} bytes; expected 1 to {MAX_ID_BYTES}")
    if _CONTROL.search(item_id):
        raise invalid(field, f"{item_id[:200]!r} holds a control character; expected none")
    return item_id


def is_loopback(host: str) -> bool:
    """Whether what listens on this host, an address or a name, can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
