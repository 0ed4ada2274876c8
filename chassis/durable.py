"""Files that are on the disk when a call returns."""

import os
from pathlib import Path


def to_disk(path: Path) -> None:
    """Forces a file, or the names in a directory, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def replace(path: Path, content: bytes) -> None:
    """Writes a file anew: whoever reads it finds what it was, or all of this."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_bytes(content)
        to_disk(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    to_disk(path.parent)
