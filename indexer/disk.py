"""Refuses writes before the disk under Chroma is full: SQLite on a full disk fails reads as well."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError

_LOOK_S = 0.5
_MIB = 2**20
# Of what has to stay free, deletions may not touch so much: Chroma writes down a thousand rows at a time (16 MiB of
# 4,096 numbers each, at most), in files of its index that it leaves torn where there is no room for them.
_DELETING_BYTES = 32 * _MIB


class DiskGuard:
    """The free space of one disk."""

    def __init__(
        self, path: Path, min_free_bytes: int, free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    ) -> None:
        """Guards the disk under ``path``.

        Args:
            path: a directory that exists when ``check`` is called.
            min_free_bytes: what has to stay free.
            free: tells how many bytes are.
        """
        self._path = path
        self._min_free_bytes = min_free_bytes
        self._free = free
        self._looked: float | None = None
        self._found = 0

    def require(self, needed: int, what: str) -> None:
        """Lets something pass that will take so many bytes, or refuses it.

        Args:
            needed: bytes, beside those that have to stay free.
            what: it, for the error.

        Raises:
            LikenessError: STORE_FULL.
        """
        free = self._free(self._path)
        if free < needed + self._min_free_bytes:
            message = (
                f"the disk under {self._path} has {free // _MIB:,} MiB free; {what} takes up to {needed // _MIB:,} for "
                f"a while, and {self._min_free_bytes // _MIB:,} have to stay free (LIKENESS_MIN_FREE_DISK_MB); make "
                "room, then try again"
            )
            raise LikenessError(error_pb2.REASON_STORE_FULL, message)

    def check(self, *, deleting: bool = False) -> None:
        """Lets a write pass, or refuses it; a deletion may take most of what has to stay free.

        Raises:
            LikenessError: STORE_FULL.
        """
        least = min(self._min_free_bytes, _DELETING_BYTES) if deleting else self._min_free_bytes
        now = time.monotonic()
        if self._looked is None or now - self._looked >= _LOOK_S:
            self._found, self._looked = self._free(self._path), now
        if self._found < least:
            message = (
                f"the disk under {self._path} has {self._found // _MIB:,} MiB free, of which {least // _MIB:,} have to "
                f"stay free for {'deletions' if deleting else 'writes'} (LIKENESS_MIN_FREE_DISK_MB); make room, then "
                "try again"
            )
            raise LikenessError(error_pb2.REASON_STORE_FULL, message)
