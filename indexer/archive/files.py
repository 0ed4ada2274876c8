"""Where backups are: a directory, or whatever else fsspec has a URL for. All of it blocks; for threads."""

import errno
import hashlib
import os
import posixpath
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from likeness.common.v1 import error_pb2

from chassis.durable import to_disk
from chassis.errors import LikenessError

_READ_AT_ONCE = 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PARTIAL = ".partial"


class Sink:
    """A file being written: it counts and hashes what goes into it.

    Attributes:
        size: bytes written so far.
    """

    closed = False  # asked for by pyarrow, which is not to close it

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._discarding = False
        self.size = 0

    @property
    def sha256(self) -> str:
        """Of what was written, as hexadecimal digits."""
        return self._sha256.hexdigest()

    def write(self, data: Any) -> int:
        """Writes bytes, or what has them."""
        count = memoryview(data).nbytes
        if not self._discarding:
            self._file.write(data)
            self._sha256.update(data)
            self.size += count
        return count

    def discard(self) -> None:
        """Takes what follows and does nothing with it: the file has failed."""
        self._discarding = True

    def flush(self) -> None:
        """See ``io.IOBase``."""
        if not self._discarding:
            self._file.flush()

    def close(self) -> None:
        """Nothing: whoever opened the file closes it."""


class Storage:
    """Files by paths relative to a root, ``/`` between their parts."""

    def __init__(self, where: str, min_free_bytes: int = 0) -> None:
        """Touches nothing yet.

        Args:
            where: a directory, or a URL such as ``s3://bucket/backups``.
            min_free_bytes: what has to stay free of a local disk.

        Raises:
            ValueError: no such kind of URL.
            ImportError: the package that it needs is not installed.
        """
        self._fs, root = url_to_fs(where if "://" in where else str(Path(where).absolute()))
        self._root = str(root).rstrip("/")
        self._min_free_bytes = min_free_bytes
        self._local = isinstance(self._fs, LocalFileSystem)

    @property
    def shown(self) -> str:
        """Where it is, for people."""
        return self._root if self._local else self._fs.unstrip_protocol(self._root)

    def folders(self, path: str = "") -> list[str]:
        """The names of the folders in a folder, which may not be there."""
        return [name for name, entry in self._entries(path).items() if entry["type"] == "directory"]

    def sizes(self, path: str) -> dict[str, int]:
        """The files in a folder, which may not be there: their bytes by name."""
        return {name: entry["size"] for name, entry in self._entries(path).items() if entry["type"] == "file"}

    def read(self, path: str) -> bytes:
        """A file's bytes.

        Raises:
            FileNotFoundError: there is none.
            LikenessError: STORE_UNAVAILABLE.
        """
        with self.reading(path) as file:
            return file.read()

    @contextmanager
    def reading(self, path: str) -> Iterator[BinaryIO]:
        """A file to read.

        Raises:
            FileNotFoundError: there is none.
            LikenessError: STORE_UNAVAILABLE.
        """
        with self.translated("reading"), self._fs.open(self._path(path), "rb") as file:
            yield cast(BinaryIO, file)

    def sha256(self, path: str) -> str:
        """Of a file's bytes, as hexadecimal digits.

        Raises:
            FileNotFoundError: there is none.
            LikenessError: STORE_UNAVAILABLE.
        """
        found = hashlib.sha256()
        with self.reading(path) as file:
            while block := file.read(_READ_AT_ONCE):
                found.update(block)
        return found.hexdigest()

    def make(self, path: str) -> None:
        """Makes a folder.

        Raises:
            LikenessError: STORE_FULL or STORE_UNAVAILABLE.
        """
        with self.translated("writing"):
            self._fs.makedirs(self._path(path), exist_ok=True)

    @contextmanager
    def writing(self, path: str) -> Iterator[Sink]:
        """A new file; on the disk when the block ends.

        Raises:
            LikenessError: STORE_FULL or STORE_UNAVAILABLE.
        """
        with self.translated("writing"):
            file = self._fs.open(self._path(path), "wb")
            try:
                yield Sink(cast(BinaryIO, file))
                file.flush()
                if self._local:
                    os.fsync(file.fileno())
            except BaseException:
                with suppress(OSError):  # that it failed is known
                    file.close()
                raise
            file.close()

    def put(self, path: str, data: bytes) -> None:
        """Writes a file, which is whole or not there; with it all there is in its folder is on the disk.

        Raises:
            LikenessError: STORE_FULL or STORE_UNAVAILABLE.
        """
        # What an object store has, it has as a whole.
        partial = path + _PARTIAL if self._local else path
        with self.writing(partial) as sink:
            sink.write(data)
        if self._local:
            with self.translated("writing"):
                there = Path(self._path(path))
                Path(self._path(partial)).rename(there)
                for folder in (there.parent, there.parent.parent):
                    to_disk(folder)

    def remove(self, path: str, first: str) -> None:
        """Removes a folder and what is in it, which may be nothing; the folder around it too, if that is empty then.

        Args:
            path: the folder.
            first: a file in it that goes before all others.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        with self.translated("deleting"):
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._path(f"{path}/{first}"))
            with suppress(FileNotFoundError):
                self._fs.rm(self._path(path), recursive=True)
            if self._local:
                with suppress(OSError):  # mostly it is not empty
                    Path(self._path(posixpath.dirname(path))).rmdir()

    def require_room(self, size: int) -> None:
        """Makes sure that there is room on a local disk for so many bytes more.

        Raises:
            LikenessError: STORE_FULL.
        """
        if not self._local:
            return
        there = next(path for path in (Path(self._root), *Path(self._root).parents) if path.exists())
        free = shutil.disk_usage(there).free
        if free < size + self._min_free_bytes:
            message = (
                f"the disk under {self.shown} has {free >> 20:,} MiB free; {size >> 20:,} MiB more are needed, and "
                f"{self._min_free_bytes >> 20:,} MiB have to stay free (LIKENESS_MIN_FREE_DISK_MB); make room, delete "
                "backups, or keep them elsewhere (LIKENESS_SNAPSHOTS)"
            )
            raise LikenessError(error_pb2.REASON_STORE_FULL, message)

    @contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Fails in the contract's words; a file that is not there stays a FileNotFoundError.

        Raises:
            LikenessError: STORE_FULL or STORE_UNAVAILABLE.
        """
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            why = f"{doing} below {self.shown} failed: {error}"
            if error.errno in _FULL:
                message = f"{why}; make room there, delete backups, or keep them elsewhere (LIKENESS_SNAPSHOTS)"
                raise LikenessError(error_pb2.REASON_STORE_FULL, message) from error
            message = f"{why}; see LIKENESS_SNAPSHOTS, and try again"
            raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, message) from error

    def _entries(self, path: str) -> dict[str, Any]:
        with self.translated("listing"):
            self._fs.invalidate_cache()
            try:
                entries = self._fs.ls(self._path(path), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
            return {posixpath.basename(entry["name"].rstrip("/")): entry for entry in entries}

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root
