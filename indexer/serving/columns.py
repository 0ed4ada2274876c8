"""The metadata of a collection's rows by key: append-only, and as large as the values that there are.

1. Every value is an entry of one log in the order of the rows: (key and kind, row, value). A key costs nothing beyond
   its entries, so a collection whose every item brings keys of its own is no larger than another.
2. A key that is asked for is read out of the log into a column of its own, and from then on only what is new.

The event loop appends, worker threads read; a row's values never change.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from chassis.metadata import Plain
from indexer.serving.growing import Growing
from indexer.serving.texts import Texts, translated

Rows: TypeAlias = npt.NDArray[np.int32]
Values: TypeAlias = npt.NDArray[Any]


class Kind(IntEnum):
    """What the values of a column are."""

    STRING = 0
    """Codes of strings."""
    ELEMENT = 1
    """Codes of the distinct strings of lists: an entry each."""
    NUMBER = 2
    BOOL = 3


Dumped: TypeAlias = tuple[str, Kind, Rows, Values]

_DTYPES: dict[Kind, type[np.generic]] = {
    Kind.STRING: np.int32,
    Kind.ELEMENT: np.int32,
    Kind.NUMBER: np.float64,
    Kind.BOOL: np.int8,
}


class _Log(NamedTuple):
    """Entries in the order of their rows.

    Attributes:
        columns: int32 [n], 4 × the number of the key + the kind.
        rows: int32 [n], ascending.
        values: float64 [n], a number, a code or a bool.
        covered: rows, those without metadata included.
    """

    columns: Rows
    rows: Rows
    values: npt.NDArray[np.float64]
    covered: int


class _Column:
    """One key's values of one kind, as far as the log has been read."""

    def __init__(self, kind: Kind) -> None:
        self.rows = Growing(np.int32)
        self.values = Growing(_DTYPES[kind])
        self.entries = 0
        self.read: tuple[Rows, Values, int] = self.rows.values, self.values.values, 0


class Columns:
    """Metadata of rows, which are numbered from 0."""

    def __init__(self) -> None:
        self._keys = Texts()
        self._words = Texts()
        self._present = bytearray()
        self._log_columns, self._log_rows, self._log_values = Growing(np.int32), Growing(np.int32), Growing(np.float64)
        self._log = _Log(self._log_columns.values, self._log_rows.values, self._log_values.values, 0)
        self._columns: dict[int, _Column] = {}
        self._column_bytes = 0
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Rows there are."""
        return self._log.covered

    @property
    def words(self) -> Sequence[str]:
        """The strings by code; only ever appended to."""
        return self._words.texts

    @property
    def nbytes(self) -> int:
        """Memory held, an estimate for the strings."""
        log = self._log_columns.nbytes + self._log_rows.nbytes + self._log_values.nbytes
        return log + self._column_bytes + self._words.nbytes + self._keys.nbytes + len(self._present)

    def keys(self) -> list[str]:
        """Every key that a row has, in the order in which they came."""
        return self._keys.texts[:]

    def code(self, text: str) -> int | None:
        """The code of a string; None: no row has it."""
        return self._words.codes.get(text)

    def column(self, key: str, kind: Kind, count: int) -> tuple[Rows, Values]:
        """One key's values of one kind.

        Args:
            key: the key.
            kind: of which kind.
            count: only of rows below this.

        Returns:
            The rows, int32 [n], ascending (those of ELEMENT repeat), and their values [n]: codes as int32, numbers as
            float64, bools as int8.
        """
        number = self._keys.codes.get(key)
        # A key has its number a moment before it is marked as present.
        if number is None or number >= len(self._present) or not self._present[number] >> kind & 1:
            return np.empty(0, np.int32), np.empty(0, _DTYPES[kind])
        column = self._columns.get(4 * number + kind)
        rows, values, read = (None, None, 0) if column is None else column.read
        if rows is None or values is None or read < count:
            rows, values, read = self._read(number, kind)
        stop = len(rows) if read == count else int(np.searchsorted(rows, count))
        return rows[:stop], values[:stop]

    def extend(self, first_row: int, metadata: Sequence[Mapping[str, Plain]]) -> None:
        """Appends rows.

        Args:
            first_row: the number of the first; how many rows there are.
            metadata: of each.

        Raises:
            ValueError: ``first_row`` is another.
        """
        self._check_next(first_row)
        columns: list[int] = []
        rows: list[int] = []
        values: list[float] = []
        key_of, word_of = self._keys.code, self._words.code
        for row, plain in enumerate(metadata, first_row):
            for key, value in plain.items():
                column = 4 * key_of(key)
                if isinstance(value, str):
                    columns.append(column + Kind.STRING)
                    values.append(word_of(value))
                elif isinstance(value, list):
                    distinct = dict.fromkeys(value)
                    columns.extend([column + Kind.ELEMENT] * len(distinct))
                    values.extend(map(word_of, distinct))
                    rows.extend([row] * (len(distinct) - 1))
                    if not distinct:
                        continue
                else:
                    columns.append(column + (Kind.BOOL if isinstance(value, bool) else Kind.NUMBER))
                    values.append(value)
                rows.append(row)
        self._publish(
            np.array(columns, np.int32),
            np.array(rows, np.int32),
            np.array(values, np.float64),
            first_row + len(metadata),
        )

    def kept(self, rows: npt.NDArray[np.int64]) -> "Columns":
        """These rows alone, numbered from 0, with their own keys and strings. For a worker thread.

        Args:
            rows: int64 [n], ascending, among those that there are.
        """
        log = self._log
        numbers = np.full(log.covered, -1, np.int32)
        numbers[rows] = np.arange(len(rows), dtype=np.int32)
        at = numbers[log.rows]
        entries = np.flatnonzero(at >= 0)
        kept = Columns()
        kept._adopt(self, log.columns[entries], at[entries], log.values[entries], len(rows))
        return kept

    def copy_from(self, other: "Columns", first: int, stop: int, at: int) -> None:
        """Appends rows of others.

        Args:
            other: whose.
            first: the first of the rows.
            stop: the row behind the last.
            at: the number of the first here; how many rows there are.

        Raises:
            ValueError: ``at`` is another, or ``other`` has not all of these rows.
        """
        self._check_next(at)
        log = other._log
        if not 0 <= first <= stop <= log.covered:
            raise ValueError(f"rows {first} to {stop} of {log.covered}")
        low, high = np.searchsorted(log.rows, [first, stop])
        entries = slice(int(low), int(high))
        rows = log.rows[entries] + np.int32(at - first)
        self._adopt(other, log.columns[entries], rows, log.values[entries], at + stop - first)

    def dump(self) -> tuple[list[str], Iterator[Dumped]]:
        """What ``load`` takes, of the rows that there are now. Quick: the work is left to whoever iterates.

        Returns:
            The strings by code, and every column: key, kind, rows and values as ``column`` gives them.
        """
        log = self._log
        return self._words.texts[:], _by_column(log, self._keys.texts)

    @classmethod
    def load(cls, words: Iterable[str], columns: Iterable[Dumped], count: int) -> "Columns":
        """From what ``dump`` gave, and how many rows there are."""
        loaded = cls()
        for word in words:
            loaded._words.code(word)
        numbers: list[Rows] = [np.empty(0, np.int32)]
        rows: list[Rows] = [np.empty(0, np.int32)]
        values: list[Values] = [np.empty(0)]
        for key, kind, of_rows, of_values in columns:
            numbers.append(np.full(len(of_rows), 4 * loaded._keys.code(key) + kind, np.int32))
            rows.append(of_rows)
            values.append(of_values)
        all_rows = np.concatenate(rows)
        order = np.argsort(all_rows, kind="stable")
        all_values = np.concatenate(values, dtype=np.float64)
        loaded._publish(np.concatenate(numbers)[order], all_rows[order], all_values[order], count)
        return loaded

    def _check_next(self, row: int) -> None:
        if row != self._log.covered:
            raise ValueError(f"row {row} cannot be the next: there are {self._log.covered}")

    def _read(self, number: int, kind: Kind) -> tuple[Rows, Values, int]:
        with self._lock:
            log = self._log
            column = self._columns.get(4 * number + kind)
            if column is None:
                column = self._columns[4 * number + kind] = _Column(kind)
            before = column.rows.nbytes + column.values.nbytes
            new = np.flatnonzero(log.columns[column.entries :] == 4 * number + kind) + column.entries
            _extend_all((column.rows, log.rows[new]), (column.values, log.values[new]))
            column.entries = len(log.columns)
            column.read = column.rows.values, column.values.values, log.covered
            self._column_bytes += column.rows.nbytes + column.values.nbytes - before
            return column.read

    def _adopt(self, other: "Columns", columns: Rows, rows: Rows, values: npt.NDArray[np.float64], count: int) -> None:
        columns = 4 * translated(columns >> 2, other._keys, self._keys) + (columns & 3)
        texts = np.flatnonzero((columns & 3) <= Kind.ELEMENT)
        values = values.copy()
        values[texts] = translated(values[texts].astype(np.int32), other._words, self._words)
        self._publish(columns, rows, values, count)

    def _publish(self, columns: Rows, rows: Rows, values: Values, count: int) -> None:
        self._present.extend(bytes(len(self._keys.texts) - len(self._present)))
        for column in np.unique(columns).tolist():
            self._present[column >> 2] |= 1 << (column & 3)
        _extend_all((self._log_columns, columns), (self._log_rows, rows), (self._log_values, values))
        self._log = _Log(self._log_columns.values, self._log_rows.values, self._log_values.values, count)


def number(value: float) -> int | float:
    """A number of a column as it is given back: whole ones below 2^53 as int."""
    return int(value) if abs(value) < 2**53 and value == int(value) else value


def _extend_all(*added: tuple[Growing[Any], Values]) -> None:
    """Appends to all arrays or, when memory runs out, to none."""
    for growing, values in added:
        growing.make_room(len(values))
    for growing, values in added:
        growing.extend(values)


def _by_column(log: _Log, keys: Sequence[str]) -> Iterator[Dumped]:
    order = np.argsort(log.columns, kind="stable")
    columns, rows, values = log.columns[order], log.rows[order], log.values[order]
    bounds = [0, *(np.flatnonzero(np.diff(columns)) + 1).tolist(), len(columns)]
    for begin, end in pairwise(bounds):
        if begin < end:
            key, kind = keys[columns[begin] >> 2], Kind(columns[begin] & 3)
            yield key, kind, rows[begin:end], values[begin:end].astype(_DTYPES[kind])
