"""The files in which Chroma 1.5.9 keeps the HNSW index of a collection: hnswlib's, and a pickle that names the rows.

``header.bin``: how many rows there are and how they are laid out. ``data_level0.bin``: the rows, each of them its links
on the lowest level, its vector and its label. ``length.bin``: the length of each row's vector. ``link_lists.bin``: for
each row how many bytes of links it has on the levels above, and these. ``index_metadata.pickle``: the ids, by label. A
row that was deleted is marked and stays.
"""

import io
import mmap
import os
import pickle
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

HEADER, ROWS, LENGTHS, UPPER, NAMES = (
    "header.bin",
    "data_level0.bin",
    "length.bin",
    "link_lists.bin",
    "index_metadata.pickle",
)
LENGTH_BYTES = 4
DELETED = 1

_HEADER = struct.Struct("<i6Q2i3QdQ")
_VERSION, _NUMBER_BYTES, _LABEL_BYTES = 1, 4, 8
# Of the keys of the pickle, those that are needed; Chroma reads the others too.
_TOTAL, _LABELS, _IDS = "total_elements_added", "id_to_label", "label_to_id"

Numbers = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Header:
    """What ``header.bin`` says.

    Attributes:
        version: of the format.
        offset: of the links in a row.
        room: rows that memory had room for.
        rows: how many there are, with those that were deleted.
        row_bytes: bytes of a row.
        label_at: offset of the label in a row.
        vector_at: offset of the vector in a row.
        top_level: the greatest level of a row.
        entry: the row at which a search begins.
        most_upper: the most links of a row on a level above the lowest.
        most: the most links of a row on the lowest level.
        links: how many a new row is given.
        scale: of the levels' distribution.
        ef_construction: how thoroughly neighbours of a new row are looked for.
    """

    version: int
    offset: int
    room: int
    rows: int
    row_bytes: int
    label_at: int
    vector_at: int
    top_level: int
    entry: int
    most_upper: int
    most: int
    links: int
    scale: float
    ef_construction: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """The header of an index.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not one.
        """
        packed = (path / HEADER).read_bytes()
        if len(packed) != _HEADER.size:
            raise ValueError(f"a header of {len(packed)} bytes; expected {_HEADER.size}")
        header = cls(*_HEADER.unpack(packed))
        if (
            header.version != _VERSION
            or header.offset != 0
            or header.vector_at != _NUMBER_BYTES * (1 + header.most)
            or header.row_bytes != header.label_at + _LABEL_BYTES
            or not header.vector_at < header.label_at
            or (header.label_at - header.vector_at) % 4
            or header.rows > header.room
        ):
            raise ValueError(f"{header} is not of the expected format")
        return header

    def packed(self) -> bytes:
        """As ``header.bin`` has it."""
        return _HEADER.pack(*(getattr(self, name) for name in self.__dataclass_fields__))

    @property
    def row(self) -> np.dtype[Any]:
        """A row: degree and mark (uint16), links (uint32 [most]), vector (float32 [dimension]), label (uint64)."""
        dimension = (self.label_at - self.vector_at) // 4
        return np.dtype(
            {
                "names": ["degree", "mark", "links", "vector", "label"],
                "formats": ["<u2", "<u2", ("<u4", (self.most,)), ("<f4", (dimension,)), "<u8"],
                "offsets": [0, 2, _NUMBER_BYTES, self.vector_at, self.label_at],
                "itemsize": self.row_bytes,
            }
        )

    def open_rows(self, path: Path, rows: int, *, writable: bool = False) -> npt.NDArray[Any]:
        """The first ``rows`` rows of an index, at least one, as they are on the disk.

        Raises:
            OSError: they cannot be read.
            ValueError: there are not so many.
        """
        size = (path / ROWS).stat().st_size
        if size < rows * self.row_bytes:
            raise ValueError(f"{ROWS} ends after {size} bytes; {rows} rows of {self.row_bytes} were expected")
        return np.memmap(path / ROWS, self.row, "r+" if writable else "r", shape=(rows,))


@dataclass(frozen=True)
class Upper:
    """The links above the lowest level.

    Attributes:
        levels: int64 [rows], the greatest level of each row.
        row: int64 [lists], whose list it is.
        level: int64 [lists], the level of it, from 1.
        lists: uint32 [lists, 1 + most_upper], how many links, and these.
        readable: rows until the file ended, or made no sense; those after it have level 0 here.
    """

    levels: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    level: npt.NDArray[np.int64]
    lists: Numbers
    readable: int

    @classmethod
    def read(cls, path: Path, rows: int, most_upper: int) -> Self:
        """Those of the first ``rows`` rows of an index.

        Raises:
            OSError: they cannot be read.
        """
        levels, each = np.zeros(rows, np.int64), 1 + most_upper
        starts: list[int] = []
        at = readable = 0
        with _numbers(path / UPPER) as numbers:
            for row in range(rows):
                if at >= len(numbers):
                    break
                count, rest = divmod(numbers[at], each * _NUMBER_BYTES)
                if rest or at + 1 + count * each > len(numbers):
                    break
                if count:
                    levels[row] = count
                    starts.extend(range(at + 1, at + 1 + count * each, each))
                at += 1 + count * each
                readable = row + 1
            used = np.array(numbers[:at], np.uint32)
        lists = used[np.asarray(starts, np.int64)[:, None] + np.arange(each)]
        return cls(levels, *_whose(levels), lists, readable)

    def packed(self) -> bytes:
        """As ``link_lists.bin`` has it."""
        each = self.lists.shape[1]
        starts = np.arange(len(self.levels)) + each * (np.cumsum(self.levels) - self.levels)
        packed = np.zeros(len(self.levels) + each * int(self.levels.sum()), "<u4")
        packed[starts] = self.levels * each * _NUMBER_BYTES
        places = starts[self.row] + 1 + each * (self.level - 1)
        packed[places[:, None] + np.arange(each)] = self.lists
        return packed.tobytes()


def _whose(levels: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The row and the level of each list, in the order of the file."""
    row = np.repeat(np.arange(len(levels)), levels)
    before = np.repeat(np.cumsum(levels) - levels, levels)
    return row, np.arange(len(row)) - before + 1


@contextmanager
def _numbers(path: Path) -> Iterator["memoryview[int]"]:
    """A file of uint32; what is left at its end is not seen."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size // _NUMBER_BYTES * _NUMBER_BYTES
        if not size:
            yield memoryview(b"").cast("I")
            return
        with (
            mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
            view.cast("I") as numbers,
        ):
            yield numbers


class ForeignError(Exception):
    """A pickle that is not made of dictionaries, numbers and texts alone."""


@dataclass(frozen=True)
class Names:
    """What ``index_metadata.pickle`` says.

    Attributes:
        total: labels given so far, from 1; as many rows there are.
        labels: of the items that exist, by id.
    """

    total: int
    labels: dict[str, int]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Those of an index.

        Raises:
            OSError: there are none, or they cannot be read.
            ValueError: it was cut off, or is not what Chroma writes.
            ForeignError: it is what other versions of Chroma write.
        """
        return cls.read_file(path / NAMES)

    @classmethod
    def read_file(cls, path: Path) -> Self:
        """Those of a file with such a pickle.

        Raises:
            OSError, ValueError, ForeignError: as ``read``.
        """
        try:
            found = _Plain(io.BytesIO(path.read_bytes())).load()
            total, labels, ids = found[_TOTAL], found[_LABELS], found[_IDS]
            sound = len(ids) == len(labels) and all(
                isinstance(label, int) and 0 < label <= total and ids.get(label) == item_id
                for item_id, label in labels.items()
            )
        except (pickle.UnpicklingError, EOFError, LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{NAMES} cannot be read: {error!r}") from error
        if not sound or not isinstance(total, int) or total < 0:
            raise ValueError(f"the ids and the labels of {NAMES} do not fit together")
        return cls(total, labels)

    def packed(self) -> bytes:
        """As Chroma reads it."""
        ids = {label: item_id for item_id, label in self.labels.items()}
        found = {
            "dimensionality": None,
            _TOTAL: self.total,
            "max_seq_id": None,
            _LABELS: self.labels,
            _IDS: ids,
            "id_to_seq_id": {},
        }
        return pickle.dumps(found, protocol=3)


class _Plain(pickle.Unpickler):
    """Dictionaries, numbers and texts; whatever else a pickle may do is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise ForeignError(f"{NAMES} names {module}.{name}")
