"""Small files by path below a root: a directory, or whatever else fsspec has a URL for. All of it blocks; for threads.

A file is whole or not there: where the file system is local, it is written under another name first.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import structlog
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from likeness.common.v1 import error_pb2

from chassis import durable
from chassis.errors import LikenessError

log = structlog.get_logger()

PARTIAL = ".partial"
_AGAIN_S = 5.0


class MediaFiles:
    """The files below ``root``. Every failure but a missing file is MEDIA_UNAVAILABLE."""

    def __init__(self, where: str) -> None:
        """Touches nothing yet.

        Args:
            where: a directory, or a URL such as ``s3://bucket/media``.

        Raises:
            ValueError: no such kind of URL.
            ImportError: the package that it needs is not installed.
        """
        self._fs, root = url_to_fs(where if "://" in where else str(Path(where).absolute()))
        self._root = str(root).rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    def write(self, path: str, content: bytes, *, to_disk: bool = False) -> None:
        """Writes a file, or writes it anew.

        Args:
            path: where.
            content: what.
            to_disk: whether it has to outlive a power failure, where the file system is local.
        """
        with self._told("written"):
            if not self._local:
                self._fs.pipe_file(self._path(path), content)  # what an object store has, it has as a whole
                return
            there = Path(self._path(path))
            partial = there.with_name(f"{uuid4().hex}{PARTIAL}")
            try:
                try:
                    partial.write_bytes(content)
                except FileNotFoundError:  # the first of its folder, or the folder has just been removed
                    partial.parent.mkdir(parents=True, exist_ok=True)
                    partial.write_bytes(content)
                if to_disk:
                    durable.to_disk(partial)
                partial.replace(there)
                if to_disk:
                    durable.to_disk(there.parent)
            except BaseException:
                with suppress(OSError):  # that it failed is known
                    partial.unlink(missing_ok=True)
                raise

    def read(self, path: str) -> bytes | None:
        """A file's bytes; None if there is none."""
        with self._told("read"):
            try:
                if self._local:
                    return Path(self._path(path)).read_bytes()
                return bytes(self._fs.cat_file(self._path(path)))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def names(self, folder: str) -> list[str]:
        """The names of what is in a folder, which may not be there."""
        with self._told("listed"):
            try:
                if self._local:
                    return os.listdir(self._path(folder))  # noqa: PTH208  (half the time of Path.iterdir)
                self._fs.invalidate_cache(self._path(folder))
                try:
                    found = self._fs.ls(self._path(folder), detail=False)
                finally:
                    self._fs.invalidate_cache(self._path(folder))  # it would be kept, of each of millions of folders
                return [name.rstrip("/").rsplit("/", 1)[1] for name in found]
            except (FileNotFoundError, NotADirectoryError):
                return []

    def remove(self, path: str) -> None:
        """Removes a file, which may not be there."""
        with self._told("deleted"), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(path))

    def remove_folder(self, path: str) -> None:
        """Removes a folder and what is in it, which may be nothing."""
        with self._told("deleted"), suppress(FileNotFoundError):
            if self._local:
                _remove_tree(self._path(path))
            else:
                self._fs.invalidate_cache(self._path(path))
                self._fs.rm(self._path(path), recursive=True)

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}"

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every file system of fsspec has errors of its own
            log.warning("media not available", doing=doing, where=self._root, why=repr(error))
            message = (
                f"thumbnails and originals cannot be {doing} at the moment ({type(error).__name__}); try again later"
            )
            raise LikenessError(error_pb2.REASON_MEDIA_UNAVAILABLE, message, retry_after_s=_AGAIN_S) from error


def _remove_tree(path: str) -> None:
    """Removes a folder of which others may be removing parts: the rest goes though some of it has vanished."""

    def failed(_function: object, _path: object, error: Any) -> None:
        why = error if isinstance(error, BaseException) else error[1]
        if not isinstance(why, FileNotFoundError):
            raise why

    if sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=failed)
    else:
        shutil.rmtree(path, onerror=failed)
