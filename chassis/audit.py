"""What a call that changes things on the level of administration has touched, for its line in the log.

A service gives a table of such methods. The line of each is logged at INFO, when it succeeds too, and says what the
table takes from the request: names, numbers and flags, never content.
"""

from collections.abc import Callable, Mapping
from typing import Any

Touched = Mapping[str, object]
# Takes it from a request; None: that one is none of those that are recorded.
Record = Callable[[Any], Touched | None]

# Of a text, in characters: the longest name that a collection can have. A request may bring anything.
_LONGEST = 512


def fields(*same: str, **renamed: str) -> Record:
    """Takes these fields of a request; of a list how many there are. What is empty is left out.

    Args:
        same: fields whose name in the log is that in the request.
        renamed: fields by the name that they have in the log.
    """
    names = {name: name for name in same} | renamed

    def take(request: Any) -> Touched:
        values = {told: _value(getattr(request, name)) for told, name in names.items()}
        return {told: value for told, value in values.items() if value}

    return take


def where_filtered(record: Record) -> Record:
    """Takes the same of requests with a filter, and says so; others are not recorded."""

    def take(request: Any) -> Touched | None:
        return {**(record(request) or {}), "filter": True} if request.HasField("filter") else None

    return take


def _value(value: Any) -> object:
    if isinstance(value, str):
        return value[:_LONGEST]
    return value if isinstance(value, bool) else len(value)
