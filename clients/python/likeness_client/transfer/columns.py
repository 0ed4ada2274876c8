"""Columns as metadata: the name is the key, the type that of each value; an empty cell is no value."""

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from likeness_client.errors import FILE_INVALID, LikenessError
from likeness_client.items import MetadataValue

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")


def check_keys(path: object, names: Sequence[str]) -> None:
    """Refuses column names that are no metadata keys, rather than every row for them.

    Raises:
        LikenessError: FILE_INVALID.
    """
    for name in names:
        if not _KEY.fullmatch(name) or name.startswith("likeness."):
            message = (
                f"{path}: column {name!r} cannot be a metadata key; rename it: a letter, then letters, digits, '_', "
                "'.' and '-', at most 128, not beginning with 'likeness.'"
            )
            raise LikenessError("INVALID_ARGUMENT", FILE_INVALID, message)


def sort_of(path: object, name: str, kind: Any) -> None:
    """Refuses a column of a type that metadata does not know.

    Raises:
        LikenessError: FILE_INVALID.
    """
    types = pa.types
    listed = types.is_list(kind) or types.is_large_list(kind)
    known = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind)
    texts = types.is_string(kind) or types.is_large_string(kind)
    if not (known or texts or (listed and types.is_string(kind.value_type))):
        message = f"{path}: column {name!r} is {kind}; expected strings, numbers, bools or lists of strings"
        raise LikenessError("INVALID_ARGUMENT", FILE_INVALID, message)


def metadata_of(batch: pa.RecordBatch, names: Sequence[str]) -> list[dict[str, MetadataValue]]:
    """A mapping for each row of a batch."""
    rows: list[dict[str, MetadataValue]] = [{} for _ in range(batch.num_rows)]
    for name in names:
        for row, value in zip(rows, batch.column(name).to_pylist(), strict=True):
            if value is not None:
                row[name] = value
    return rows
