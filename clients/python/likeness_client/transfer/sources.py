"""Files that can be imported, by their extension."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from likeness_client.errors import FILE_INVALID, FILE_UNREADABLE, LikenessError
from likeness_client.transfer.facts import Facts
from likeness_client.transfer.rows import Row


class Source(Protocol):
    """A file of items.

    Attributes:
        path: the file.
        unit: what its rows are called, ``"row"`` or ``"line"``.
        total: rows in it; None: unknown until it is read.
        dimension: of its vectors; None: unknown until it is read.
        facts: what it says of the collection that it was exported from, if it was.
    """

    path: Path
    unit: str
    total: int | None
    dimension: int | None
    facts: Facts | None

    def rows(self, after: int) -> Iterator[Row]:
        """The rows whose number is greater than ``after``."""

    def close(self) -> None:
        """Closes the file."""


def open_source(path: Path, csv: Path | None = None) -> Source:
    """Opens ``.parquet``, ``.jsonl`` (``.ndjson``), or ``.npy`` with its CSV.

    Raises:
        LikenessError: the file cannot be read, or is none of these.
    """
    if not path.is_file():
        raise LikenessError("NOT_FOUND", FILE_UNREADABLE, f"{path}: there is no such file")
    suffix = path.suffix.lower()
    if (suffix == ".npy") != (csv is not None):
        message = f"{path}: an array (.npy) needs a CSV of the ids beside it (--csv), and nothing else does"
        raise LikenessError("INVALID_ARGUMENT", FILE_INVALID, message)
    # pyarrow takes 0.2 s to import: the others need not wait for it.
    if csv is not None:
        from likeness_client.transfer.arrays import ArraySource  # noqa: PLC0415

        return ArraySource(path, csv)
    if suffix == ".parquet":
        from likeness_client.transfer.parquet import ParquetSource  # noqa: PLC0415

        return ParquetSource(path)
    if suffix in (".jsonl", ".ndjson"):
        from likeness_client.transfer.jsonl import JsonLinesSource  # noqa: PLC0415

        return JsonLinesSource(path)
    message = f"{path}: expected a name that ends in .parquet, .jsonl or .npy"
    raise LikenessError("INVALID_ARGUMENT", FILE_INVALID, message)
