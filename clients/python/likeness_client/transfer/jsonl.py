"""JSON Lines: what the export is of, then an item a line.

{"likeness": {"export": 1, "collection": {…}, "where": "", "vectors": true}}
{"id": "a", "vector": [0.1, 0.25], "metadata": {"width": 640, "score": 1.0}}
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from likeness_client.errors import FILE_INVALID, FILE_UNREADABLE, LikenessError
from likeness_client.indexer.types import Batch
from likeness_client.transfer.facts import KEY, Facts, facts_from_json
from likeness_client.transfer.rows import Row, metadata_from_json, refuse_constant


class JsonLinesWriter:
    """Writes batches to ``items.jsonl`` of a folder; a checkpoint is a length in bytes."""

    checkpoint_rows = 10_000

    def __init__(self, folder: Path, *, vectors: bool, about: str, offset: int = 0) -> None:
        """Goes on at ``offset``, or begins with the line that says what the export is of."""
        self._path = folder / "items.jsonl"
        self._file = self._path.open("ab" if offset else "wb")
        self._vectors = vectors
        self._offset = offset
        if not offset:
            self._file.write(f'{{"{KEY}": {about}}}\n'.encode())

    def write(self, batch: Batch) -> None:
        """Adds items."""
        numbers = _numbers(batch) if self._vectors else None
        lines = []
        for index, (item_id, metadata) in enumerate(zip(batch.ids, batch.metadata, strict=True)):
            vector = f', "vector": [{numbers[index]}]' if numbers is not None else ""
            told = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
            lines.append(f'{{"id": {json.dumps(item_id, ensure_ascii=False)}{vector}, "metadata": {told}}}\n')
        self._file.write("".join(lines).encode())

    def checkpoint(self) -> dict[str, int]:
        """Forces what was written to disk; returns what ``__init__`` and ``cut`` need to go on behind it."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._offset = self._file.tell()
        return {"offset": self._offset}

    @staticmethod
    def cut(folder: Path, told: dict[str, int]) -> dict[str, int]:
        """Removes what was written behind a checkpoint."""
        os.truncate(folder / "items.jsonl", told["offset"])
        return told

    def finish(self) -> Path:
        """Closes the file and returns it."""
        self.checkpoint()
        self._file.close()
        return self._path


def _numbers(batch: Batch) -> list[str]:
    """Each vector as text: the fewest digits that read back as the same float32, joined by commas."""
    assert batch.vectors is not None
    rows, dimension = batch.vectors.shape
    texts = pa.array(np.ascontiguousarray(batch.vectors, dtype=np.float32).reshape(-1)).cast(pa.string())
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * dimension)
    joined: list[str] = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), ", ").to_pylist()
    return joined


class JsonLinesSource:
    """A JSON Lines file; the first line may say what the export is of."""

    unit = "line"

    def __init__(self, path: Path) -> None:
        """Reads the first line.

        Raises:
            LikenessError: the file cannot be read, or its first line is of another release.
        """
        self.path = path
        self.total: int | None = None
        self.dimension: int | None = None
        self.facts: Facts | None = None
        try:
            self._file: IO[bytes] = path.open("rb")
            told = _about(self._file.readline())
        except OSError as error:
            raise _unreadable(path, error) from None
        if told is not None:
            self.facts = facts_from_json(told, path)
            self.dimension = self.facts.collection.fingerprint.dimension
            if not self.facts.vectors:
                message = f"{path} was exported without vectors; an import needs them"
                raise LikenessError("INVALID_ARGUMENT", FILE_INVALID, message)

    def rows(self, after: int) -> Iterator[Row]:
        """The items behind line ``after``; empty lines are passed over.

        Raises:
            LikenessError: FILE_UNREADABLE; the file cannot be read to its end.
        """
        try:
            self._file.seek(0)
            for number, line in enumerate(self._file, start=1):
                if number > after and line.strip() and not (number == 1 and self.facts is not None):
                    yield _row(number, line)
        except OSError as error:
            raise _unreadable(self.path, error) from None

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _unreadable(path: Path, error: OSError) -> LikenessError:
    return LikenessError("INVALID_ARGUMENT", FILE_UNREADABLE, f"{path}: {error.strerror or error}")


def _about(line: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):  # a bad row like any other, told when its turn comes
        return None
    about = told.get(KEY) if isinstance(told, dict) else None
    return about if isinstance(about, dict) else None


def _row(number: int, line: bytes) -> Row:
    item_id = ""
    try:
        told = json.loads(line, parse_constant=refuse_constant)
        if not isinstance(told, dict):
            raise TypeError("expected an object with id, vector and metadata")
        if not isinstance(told.get("id"), str):
            raise TypeError("id is missing or no string")
        item_id = told["id"]
        if unknown := sorted(told.keys() - {"id", "vector", "metadata"}):
            raise ValueError(f"unknown key {unknown[0]!r}; expected id, vector and metadata")
        vector = told.get("vector")
        if not isinstance(vector, list) or not set(map(type, vector)) <= {int, float}:
            raise ValueError("vector is missing or no list of numbers")
        # A number beyond float32 becomes infinite, which the indexer refuses by row.
        with np.errstate(over="ignore"):
            f32 = np.array(vector, "<f4").tobytes()
        metadata = metadata_from_json(told.get("metadata"))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        return Row(number, item_id, fault=str(error))
    return Row(number, item_id, f32, metadata)
