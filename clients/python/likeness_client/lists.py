"""Lists of ids, labels and the like: no text is one, and long ones go in several calls."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol, TypeVar

MAX_IDS = 1024
"""Ids, or changes, that one call takes."""


class Message(Protocol):
    """A protobuf message."""

    def ByteSize(self) -> int:  # noqa: N802  (protobuf's)
        """Bytes that it takes."""


_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)


def listed(values: _T, what: str, *, such_as: str = "{!r}") -> _T:
    """The values as they are; not a text, which Python would read letter by letter.

    Args:
        values: ids, labels, keys and the like; None stays None.
        what: what they are, for the message.
        such_as: how one of them is written, around the text.

    Raises:
        TypeError: they are one text.
    """
    if isinstance(values, str):
        raise TypeError(f"{values!r} is a text; expected a list of {what}, such as [{such_as.format(values)}]")
    return values


def batches(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """The values, ``size`` at a time."""
    remaining = iter(values)
    while batch := list(islice(remaining, size)):
        yield batch


def of_a_size(messages: Iterable[_M], most: int, max_bytes: int) -> Iterator[list[_M]]:
    """The messages in order, in groups of at most so many, and of so many bytes unless one alone has more."""
    group: list[_M] = []
    size = 0
    for each in messages:
        nbytes = each.ByteSize()
        if group and (len(group) == most or size + nbytes > max_bytes):
            yield group
            group, size = [], 0
        group.append(each)
        size += nbytes
    if group:
        yield group
