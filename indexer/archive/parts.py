"""The files of a backup: Parquet, rows in the order of the items' ids over all files.

Columns: ``id``; ``vector``, float32 [dimension]; ``length``; ``metadata``, the serialised likeness.common.v1.Metadata.

Where ``length`` is not null, the vector is a direction, and the vector that was written is the two multiplied. So a
cosine collection that was in memory comes back to the last digit; dividing by the length once more would round again.
"""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chassis.errors import LikenessError
from indexer.archive.files import Sink, Storage
from indexer.archive.manifest import Part
from indexer.scan import Batch

# Of a file, and of a row group: what is read at once by whoever else reads it.
PART_BYTES, GROUP_BYTES = 128 * 2**20, 8 * 2**20
_IDS_AT_ONCE = 65_536
_COMPRESSION = {"id": "zstd", "vector": "none", "length": "zstd", "metadata": "zstd"}


def schema(dimension: int) -> pa.Schema:
    """The columns."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.field("item", pa.float32(), nullable=False), dimension), nullable=False),
            pa.field("length", pa.float32()),
            pa.field("metadata", pa.binary(), nullable=False),
        ]
    )


@dataclass
class _OpenPart:
    """A file being written."""

    name: str
    sink: Sink
    parquet: pq.ParquetWriter
    closing: ExitStack
    rows: int = 0


class PartsWriter:
    """Writes the files of a backup, one after another."""

    def __init__(self, storage: Storage, folder: str, dimension: int) -> None:
        """Writes nothing yet.

        Args:
            storage: where the backup goes.
            folder: its folder, which is there.
            dimension: of the vectors.
        """
        self._storage = storage
        self._folder = folder
        self._schema = schema(dimension)
        self._group: list[pa.RecordBatch] = []
        self._group_bytes = 0
        self._part: _OpenPart | None = None
        self._parts: list[Part] = []

    def add(self, batch: Batch) -> None:
        """Writes items, vectors and metadata included.

        Raises:
            LikenessError: STORE_FULL or STORE_UNAVAILABLE.
        """
        record = _record(batch, self._schema)
        self._group.append(record)
        self._group_bytes += record.nbytes
        if self._group_bytes >= GROUP_BYTES:
            self._write_group()

    def finish(self) -> list[Part]:
        """Writes what is left; returns the files.

        Raises:
            LikenessError: STORE_FULL or STORE_UNAVAILABLE.
        """
        self._write_group()
        self._end_part()
        return self._parts

    def abandon(self) -> None:
        """Lets go of the file that is open: it is not wanted any more."""
        if self._part is not None:
            part, self._part = self._part, None
            part.sink.discard()
            with suppress(OSError, LikenessError):
                part.parquet.close()
                part.closing.close()

    def _write_group(self) -> None:
        if not self._group:
            return
        part = self._part or self._begin_part()
        table = pa.Table.from_batches(self._group, self._schema)
        self._group, self._group_bytes = [], 0
        with self._storage.translated("writing"):
            part.parquet.write_table(table, row_group_size=table.num_rows)
        part.rows += table.num_rows
        if part.sink.size >= PART_BYTES:
            self._end_part()

    def _begin_part(self) -> _OpenPart:
        self._storage.require_room(PART_BYTES)
        name = f"part-{len(self._parts):05}.parquet"
        closing = ExitStack()
        sink = closing.enter_context(self._storage.writing(f"{self._folder}/{name}"))
        with self._storage.translated("writing"):
            parquet = pq.ParquetWriter(
                pa.PythonFile(sink, "w"),
                self._schema,
                compression=_COMPRESSION,
                use_dictionary=False,
                write_statistics=False,
            )
        self._part = _OpenPart(name, sink, parquet, closing)
        return self._part

    def _end_part(self) -> None:
        if self._part is None:
            return
        part = self._part
        with self._storage.translated("writing"):
            part.parquet.close()
        part.closing.close()
        self._part = None
        self._parts.append(Part(part.name, part.rows, part.sink.size, part.sink.sha256))


def read(storage: Storage, path: str, dimension: int, size: int) -> Iterator[Batch]:
    """The items of a file.

    Args:
        storage: where it is.
        path: the file.
        dimension: of the vectors.
        size: most items of a batch.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has other columns.
        pyarrow.ArrowException: it is no Parquet file.
        LikenessError: STORE_UNAVAILABLE.
    """
    with storage.reading(path) as file, pq.ParquetFile(file) as parquet:
        if not parquet.schema_arrow.equals(schema(dimension)):
            raise ValueError(f"{path} has other columns: {parquet.schema_arrow.to_string(show_metadata=False)}")
        for record in parquet.iter_batches(size):
            lengths = record.column("length")
            vectors = record.column("vector").flatten().to_numpy().reshape(-1, dimension)
            yield Batch(
                record.column("id").to_pylist(),
                vectors,
                None if lengths.null_count else lengths.to_numpy(),
                record.column("metadata").to_pylist(),
            )


def ids(storage: Storage, path: str) -> Iterator[pa.Array]:
    """The ids in a file, batch by batch; errors as of ``read``."""
    with storage.reading(path) as file, pq.ParquetFile(file) as parquet:
        for record in parquet.iter_batches(_IDS_AT_ONCE, columns=["id"]):
            yield record.column("id")


def _record(batch: Batch, columns: pa.Schema) -> pa.RecordBatch:
    assert batch.vectors is not None
    assert batch.packed is not None
    numbers = pa.array(np.ascontiguousarray(batch.vectors).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(numbers, type=columns.field("vector").type)
    lengths = pa.nulls(len(batch.ids), pa.float32()) if batch.lengths is None else pa.array(batch.lengths)
    packed = pa.array(batch.packed, pa.binary())
    return pa.RecordBatch.from_arrays([pa.array(batch.ids, pa.string()), vectors, lengths, packed], schema=columns)
