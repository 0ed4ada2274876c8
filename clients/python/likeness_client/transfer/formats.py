"""The formats that a collection can be exported in."""

from enum import StrEnum
from pathlib import Path


class FileFormat(StrEnum):
    """How items are written."""

    PARQUET = "parquet"
    JSONL = "jsonl"


_BY_SUFFIX = {".parquet": FileFormat.PARQUET, ".jsonl": FileFormat.JSONL, ".ndjson": FileFormat.JSONL}


def format_of(path: Path) -> FileFormat | None:
    """The format that a file's extension names, if it names one."""
    return _BY_SUFFIX.get(path.suffix.lower())
