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
