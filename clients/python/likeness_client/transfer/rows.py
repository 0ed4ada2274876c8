"""A row of a file that is imported, and the checks that a row of any format needs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from likeness_client.items import MetadataValue


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        number: its number in the file, from 1; of JSON Lines the line's.
        id: its id; empty if it has none.
        f32: its vector, as little-endian float32.
        metadata: by key.
        fault: why it is none; empty if it is.
    """

    number: int
    id: str = ""
    f32: bytes = b""
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    fault: str = ""


def metadata_from_json(told: Any) -> dict[str, MetadataValue]:
    """Metadata as it stands in JSON: strings, whole numbers, numbers with a point, bools, lists of strings.

    Raises:
        TypeError, ValueError: it is something else; the message says where.
    """
    if told is None:
        return {}
    if not isinstance(told, dict):
        raise TypeError(f"metadata is a {type(told).__name__}; expected an object")
    for key, value in told.items():
        match value:
            case float() if not math.isfinite(value):
                raise ValueError(f"metadata {key!r} is {value}; expected a finite number")
            case str() | bool() | int() | float():
                pass
            case list() if all(isinstance(text, str) for text in value):
                pass
            case _:
                kind = "null" if value is None else type(value).__name__
                raise ValueError(f"metadata {key!r} is a {kind}; expected a string, number, bool or list of strings")
    return told


def refuse_constant(name: str) -> float:
    """For ``json.loads(parse_constant=…)``: JSON knows no NaN and no Infinity.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{name} is no JSON number")
