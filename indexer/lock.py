"""The data directory's lock: one indexer a directory, since two processes on one Chroma directory corrupt reads.

The Chroma server that the indexer starts inherits the lock, so it is held for as long as either of the two lives.
"""

import asyncio
import fcntl
import os
import threading
from pathlib import Path

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError


class DirectoryLock:
    """An exclusive ``flock`` on ``DIRECTORY/lock``; the file names its holders, for people."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd: int | None = None

    @property
    def fileno(self) -> int:
        """The open lock file, to be inherited by a child process that shall hold the lock too."""
        assert self._fd is not None, "not acquired"
        return self._fd

    async def acquire(self, patience_s: float) -> None:
        """Takes the lock.

        Args:
            patience_s: how long to wait for a holder that is just going away (killed a moment ago), in seconds.

        Raises:
            LikenessError: STORE_UNAVAILABLE: somebody else keeps it, or the directory cannot be used.
        """
        path = self._directory / "lock"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            message = f"the data directory {self._directory} cannot be used ({error}); see LIKENESS_DATA_DIR"
            raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, message) from error
        if not _try(fd):
            # A blocking flock cannot be given a time limit, so it waits in a daemon thread, left behind when it takes
            # too long. Whoever comes first to `decided` decides: the thread takes the lock, or nobody waits any more.
            decided = threading.Lock()
            waiter = threading.Thread(target=_wait, args=(fd, decided), daemon=True)
            waiter.start()
            await asyncio.to_thread(waiter.join, patience_s)
            if decided.acquire(blocking=False):
                raise LikenessError(
                    error_pb2.REASON_STORE_UNAVAILABLE,
                    f"the data directory {self._directory} is in use by {_holders(path)}; stop that process, or set "
                    "LIKENESS_DATA_DIR to another directory",
                )
        self._fd = fd
        self.name_holders()

    def name_holders(self, chroma_pid: int | None = None) -> None:
        """Writes into the file who holds the lock."""
        text = f"indexer {os.getpid()}" + (f", chroma {chroma_pid}" if chroma_pid else "")
        os.ftruncate(self.fileno, 0)
        os.pwrite(self.fileno, text.encode(), 0)

    def release(self) -> None:
        """Lets the lock go, unless a child that inherited it still lives. Harmless when it is not held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(fd: int, decided: threading.Lock) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX)
    if not decided.acquire(blocking=False):
        os.close(fd)


def _holders(path: Path) -> str:
    return path.read_text(errors="replace").strip() or "a process that did not leave its id"
