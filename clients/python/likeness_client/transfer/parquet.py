"""Parquet: written in parts that are joined at the end, read row group by row group."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from likeness_client.errors import FILE_INVALID, LikenessError
from likeness_client.indexer.types import Batch
from likeness_client.transfer.columns import check_keys, metadata_of, sort_of
from likeness_client.transfer.durable import to_disk
from likeness_client.transfer.facts import KEY, Facts, facts_from_json
from likeness_client.transfer.rows import Row, metadata_from_json, refuse_constant

ROW_GROUP_ROWS = 8192
READ_ROWS = 1024
READ_BYTES = 2**20
JOINED = "joined.parquet"


class ParquetWriter:
    """Writes batches as files ``0000.parquet``, ``0001.parquet`` … of a folder.

    A Parquet file can be read only once it is closed, and cannot be added to then. So each checkpoint closes one; what
    is not interrupted before its first checkpoint is one file, which only needs another name.
    """

    checkpoint_rows = 250_000

    def __init__(self, folder: Path, dimension: int, *, vectors: bool, about: str, parts: int = 0) -> None:
        """Goes on behind ``parts`` closed parts.

        Args:
            folder: where the parts go.
            dimension: of the vectors.
            vectors: whether there is a column of them.
            about: what the file says of itself, as JSON.
            parts: how many parts are there already.
        """
        self.parts = parts
        self._folder = folder
        columns = [pa.field("id", pa.string(), nullable=False)]
        if vectors:
            numbers = pa.list_(pa.float32(), dimension)
            columns.append(pa.field("vector", numbers, nullable=False))
        columns.append(pa.field("metadata", pa.string(), nullable=False))
        self._schema = pa.schema(columns, metadata={KEY: about})
        self._vectors = vectors
        self._waiting: list[pa.RecordBatch] = []
        self._writer: pq.ParquetWriter | None = None

    def write(self, batch: Batch) -> None:
        """Adds items; a row group is written when enough wait."""
        texts = [json.dumps(metadata, ensure_ascii=False, allow_nan=False) for metadata in batch.metadata]
        columns = [pa.array(batch.ids, pa.string()), pa.array(texts, pa.string())]
        if self._vectors:
            assert batch.vectors is not None
            flat = pa.array(np.ascontiguousarray(batch.vectors, dtype=np.float32).reshape(-1))
            columns.insert(1, pa.FixedSizeListArray.from_arrays(flat, batch.vectors.shape[1]))
        self._waiting.append(pa.record_batch(columns, schema=self._schema))
        if sum(map(len, self._waiting)) >= ROW_GROUP_ROWS:
            self._write_waiting()

    def checkpoint(self) -> dict[str, int]:
        """Closes the part, if it has rows, and forces it to disk.

        Returns:
            What ``__init__`` and ``cut`` need to go on behind it.
        """
        self._write_waiting()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            to_disk(self._part(self.parts))
            to_disk(self._folder)
            self.parts += 1
        return {"parts": self.parts}

    @staticmethod
    def cut(folder: Path, told: dict[str, int]) -> dict[str, int]:
        """Removes what was written behind a checkpoint."""
        (folder / JOINED).unlink(missing_ok=True)
        for part in folder.glob("*.parquet"):
            if int(part.stem) >= told["parts"]:
                part.unlink()
        return told

    def finish(self) -> Path:
        """Closes and joins the parts; returns the one file."""
        self.checkpoint()
        if not self.parts:  # a collection without items is a file without rows
            _open(self._part(0), self._schema).close()
            self.parts = 1
        if self.parts == 1:
            return self._part(0)
        joined = self._folder / JOINED
        with _open(joined, self._schema) as writer:
            for number in range(self.parts):
                with pq.ParquetFile(self._part(number)) as part:
                    for group in range(part.num_row_groups):
                        writer.write_table(part.read_row_group(group).cast(self._schema))
        return joined

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            self._writer = _open(self._part(self.parts), self._schema)
        self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema))
        self._waiting.clear()

    def _part(self, number: int) -> Path:
        return self._folder / f"{number:04}.parquet"


def _open(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    # Vectors do not compress, and a dictionary of what is all different is in the way.
    compression = {"id": "zstd", "metadata": "zstd", "vector.list.element": "none"}
    return pq.ParquetWriter(path, schema, compression=compression, use_dictionary=["metadata"])


class ParquetSource:
    """A Parquet file with columns ``id`` and ``vector``, and ``metadata`` (JSON) or a column for each key, or both."""

    unit = "row"

    def __init__(self, path: Path) -> None:
        """Reads the schema.

        Raises:
            LikenessError: FILE_INVALID; it is no such file.
        """
        self.path = path
        try:
            # Read ahead, a file would be in memory as a whole in the end.
            self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=READ_BYTES)
        except (pa.ArrowInvalid, OSError) as error:
            raise _invalid(f"{path} cannot be read as Parquet: {error}") from None
        schema = self._file.schema_arrow
        self.total: int | None = self._file.metadata.num_rows
        self.facts: Facts | None = None
        about = (schema.metadata or {}).get(KEY.encode())
        if about is not None:
            self.facts = facts_from_json(_json(about), path)
        self._check(schema)
        kind = schema.field("vector").type
        self.dimension: int | None = kind.list_size if pa.types.is_fixed_size_list(kind) else None
        self._has_metadata = "metadata" in schema.names
        self._keys = [name for name in schema.names if name not in ("id", "vector", "metadata")]
        check_keys(path, self._keys)
        for key in self._keys:
            sort_of(path, key, schema.field(key).type)

    def rows(self, after: int) -> Iterator[Row]:
        """The rows behind the first ``after``."""
        groups = self._file.metadata.num_row_groups
        first, number = 0, 0
        while first < groups and number + self._file.metadata.row_group(first).num_rows <= after:
            number += self._file.metadata.row_group(first).num_rows
            first += 1
        if first == groups:
            return
        try:
            for group in range(first, groups):
                # One after another: an iterator over several keeps what it has read of each.
                for batch in self._file.iter_batches(READ_ROWS, row_groups=[group]):
                    yield from (row for row in self._read(batch, number) if row.number > after)
                    number += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise _invalid(f"{self.path} is damaged behind row {number:,}: {error}") from None

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _read(self, batch: pa.RecordBatch, before: int) -> Iterator[Row]:
        ids = batch.column("id").to_pylist()
        texts = batch.column("metadata").to_pylist() if self._has_metadata else [None] * len(ids)
        keyed = metadata_of(batch, self._keys)
        vectors = batch.column("vector")
        # Null vectors have no numbers; numbers that are null become NaN, which the indexer refuses by row.
        flat = pc.list_flatten(vectors).cast(pa.float32()).to_numpy(zero_copy_only=False).astype("<f4", copy=False)
        start = 0
        lengths = pc.list_value_length(vectors).to_pylist()
        for offset, (item_id, text, length) in enumerate(zip(ids, texts, lengths, strict=True), start=1):
            f32 = flat[start : start + (length or 0)].tobytes()
            start += length or 0
            try:
                if item_id is None:
                    raise ValueError("id is null; expected a text")
                told = json.loads(text, parse_constant=refuse_constant) if text else None
                metadata = {**keyed[offset - 1], **metadata_from_json(told)}
            except (ValueError, TypeError, RecursionError) as error:
                yield Row(before + offset, item_id or "", fault=str(error))
            else:
                yield Row(before + offset, item_id, f32, metadata)

    def _check(self, schema: pa.Schema) -> None:
        expected = {"id": _is_text, "vector": _is_vector, "metadata": _is_text}
        words = {"id": "a column of strings", "vector": "a list of numbers a row", "metadata": "JSON as strings"}
        for name, fits in expected.items():
            if name not in schema.names:
                if name != "metadata":
                    without = name == "vector" and self.facts is not None and not self.facts.vectors
                    why = "it was exported without vectors" if without else f"columns: {', '.join(schema.names)}"
                    raise _invalid(f"{self.path} has no column {name!r} ({why}); expected {words[name]}")
            elif not fits(schema.field(name).type):
                raise _invalid(f"{self.path}: column {name!r} is {schema.field(name).type}; expected {words[name]}")


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_vector(kind: Any) -> bool:
    listed = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(listed and pa.types.is_floating(kind.value_type))


def _json(about: bytes) -> object:
    try:
        return json.loads(about)
    except (ValueError, RecursionError):
        return None


def _invalid(message: str) -> LikenessError:
    return LikenessError("INVALID_ARGUMENT", FILE_INVALID, message)
