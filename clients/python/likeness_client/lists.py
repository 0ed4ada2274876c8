"""Lists of ids, labels and the like: no text is one, and long ones go in several calls."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

MAX_IDS = 1024
"""Ids, or changes, that one call takes."""

_T = TypeVar("_T")


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
