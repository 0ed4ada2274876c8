"""A numpy array with a CSV beside it: row n of the one is row n of the other.

The array is read by memory map. The CSV is read twice, in blocks: once to find each column's type from all of its
cells, once for the rows. A column is whole numbers, else numbers, else bools, if each of its cells is one, and else
strings.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.lib.format import open_memmap

from likeness_client.errors import FILE_INVALID, LikenessError
from likeness_client.transfer.columns import check_keys, metadata_of
from likeness_client.transfer.facts import Facts
from likeness_client.transfer.rows import Row

BLOCK_BYTES = 4 * 2**20
# As JSON writes them: 007 is a string, and so is what has more digits than 64 bits hold.
_WHOLE = r"^-?(0|[1-9][0-9]{0,17})$"
_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_BOOL = r"^(true|false|True|False)$"
_TYPES = ((_WHOLE, pa.int64()), (_NUMBER, pa.float64()), (_BOOL, pa.bool_()))


class ArraySource:
    """``vectors.npy`` [n, dimension] and a CSV of n rows with a header, a column ``id`` and a column for each key."""

    unit = "row"
    facts: Facts | None = None

    def __init__(self, path: Path, csv: Path) -> None:
        """Checks shapes and types, and finds the types of the CSV's columns.

        Raises:
            LikenessError: FILE_INVALID; the files do not fit each other, or one cannot be read.
        """
        self.path = path
        self._csv = csv
        self._vectors = _open_array(path)
        self.dimension: int | None = self._vectors.shape[1]
        self._types, count = self._scan()
        if count != len(self._vectors):
            raise _invalid(
                f"{csv} has {count:,} rows and {path} {len(self._vectors):,}; expected a row for each vector"
            )
        self.total: int | None = count
        self._keys = [name for name in self._types if name != "id"]
        check_keys(csv, self._keys)

    def rows(self, after: int) -> Iterator[Row]:
        """The rows behind the first ``after``."""
        number = 0
        for batch in self._read(self._types):
            if number + batch.num_rows > after:
                yield from self._rows(batch, number, after)
            number += batch.num_rows

    def close(self) -> None:
        """Lets the array go."""
        del self._vectors

    def _rows(self, batch: pa.RecordBatch, before: int, after: int) -> Iterator[Row]:
        ids = batch.column("id").to_pylist()
        keyed = metadata_of(batch, self._keys)
        for index, item_id in enumerate(ids):
            number = before + index + 1
            if number <= after:
                continue
            if item_id is None:
                yield Row(number, fault="id is empty")
                continue
            with np.errstate(over="ignore"):
                f32 = self._vectors[number - 1].astype("<f4").tobytes()
            yield Row(number, item_id, f32, keyed[index])

    def _scan(self) -> tuple[dict[str, Any], int]:
        found: dict[str, list[tuple[str, Any]]] = {}
        count = 0
        for batch in self._read(None):
            count += batch.num_rows
            for name in batch.schema.names:
                left = found.setdefault(name, list(_TYPES))
                cells = batch.column(name)
                left[:] = [(pattern, kind) for pattern, kind in left if _all_match(cells, pattern)]
        types = {name: left[0][1] if left else pa.string() for name, left in found.items()}
        if found and "id" not in types:
            raise _invalid(f"{self._csv} has no column 'id' (columns: {', '.join(types)})")
        return types | ({"id": pa.string()} if found else {}), count

    def _read(self, types: dict[str, Any] | None) -> Iterator[pa.RecordBatch]:
        # Without types, everything is text: what the header names is known only once it is read.
        names = types or dict.fromkeys(_header(self._csv), pa.string())
        convert = pacsv.ConvertOptions(
            column_types=names, null_values=[""], strings_can_be_null=True, true_values=["true", "True"],
            false_values=["false", "False"],
        )  # fmt: skip
        reading = pacsv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False)
        parsing = pacsv.ParseOptions(newlines_in_values=True)
        try:
            with self._csv.open("rb") as file, pacsv.open_csv(file, reading, parsing, convert) as reader:
                yield from reader
        except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
            raise _invalid(f"{self._csv} cannot be read as CSV: {error}") from None


def _header(csv: Path) -> list[str]:
    try:
        reading = pacsv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False)
        parsing = pacsv.ParseOptions(newlines_in_values=True)
        # As a file: pyarrow takes no path that is no UTF-8.
        with csv.open("rb") as file, pacsv.open_csv(file, reading, parsing) as reader:
            names: list[str] = reader.schema.names
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise _invalid(f"{csv} cannot be read as CSV: {error}") from None
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise _invalid(f"{csv} has two columns {twice[0]!r}")
    return names


def _all_match(cells: pa.Array, pattern: str) -> bool:
    matching = pc.all(pc.match_substring_regex(cells, pattern), skip_nulls=True)
    return bool(matching.as_py())


def _open_array(path: Path) -> Any:
    try:
        vectors = open_memmap(path, mode="r")  # which takes arrays alone: np.load reads archives of them too
    except (OSError, ValueError) as error:
        raise _invalid(f"{path} cannot be read as a numpy array: {error}") from None
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise _invalid(f"{path} holds {vectors.dtype} {list(vectors.shape)}; expected float [n, dimension]")
    return vectors


def _invalid(message: str) -> LikenessError:
    return LikenessError("INVALID_ARGUMENT", FILE_INVALID, message)
