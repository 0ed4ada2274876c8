"""What takes a list takes no text, which Python would read letter by letter."""

from typing import TypeVar

_T = TypeVar("_T")


def listed(values: _T, what: str, *, such_as: str = "{!r}") -> _T:
    """The values as they are.

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
