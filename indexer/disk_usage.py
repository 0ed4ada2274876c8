"""What collections take on the disk."""

import asyncio
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from indexer.reclaim import index_directory


@dataclass(frozen=True)
class DiskUsage:
    """Measures files; each measurement runs in a thread.

    Attributes:
        chroma: Chroma's directory; None: it is somebody else's.
        serving: the folder of the serving snapshots.
    """

    chroma: Path | None = None
    serving: Path | None = None

    async def of(self, collections: Sequence[tuple[str, str]]) -> list[int | None]:
        """Bytes of the files of collections, each given by uid and key.

        None: Chroma is somebody else's, or has been killed and left a file that cannot be read before it is back.
        """
        return await asyncio.to_thread(lambda: [self._of(uid, key) for uid, key in collections])

    async def store(self) -> int | None:
        """Bytes of all of Chroma's files; None: Chroma is somebody else's."""
        return None if self.chroma is None else await asyncio.to_thread(folder_bytes, self.chroma)

    def _of(self, uid: str, key: str) -> int | None:
        if self.chroma is None:
            return None
        served = 0 if self.serving is None else folder_bytes(self.serving / uid)
        try:
            index = index_directory(self.chroma, key)
        except sqlite3.OperationalError:
            return None
        return served + (0 if index is None else folder_bytes(index))


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; what goes meanwhile does not count."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(path) / name).lstat().st_size
            except FileNotFoundError:  # written anew, or removed, just now
                continue
    return total
