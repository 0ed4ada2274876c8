"""The indexer under test: a process over a directory that can be killed, with its Chroma, and started again."""

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from chassis.health import serving
from tests.chaos.client import Client
from tests.processes import Service, free_port, launch

START_S = 120.0


class DownError(Exception):
    """The indexer did not come up, or not in time; the message ends with its log."""


class Indexer:
    """The indexer and the one connection that this test speaks to it through.

    Attributes:
        directory: its data directory.
        serving: where it keeps its serving snapshots.
    """

    def __init__(self, directory: Path, logs: Path, **settings: str) -> None:
        self.directory = directory
        self.serving = directory / "serving"
        self._logs = logs
        self._settings = {
            "LIKENESS_DATA_DIR": str(directory),
            "LIKENESS_INDEXER_PORT": str(free_port()),
            "LIKENESS_LOG_LEVEL": "INFO",
            **settings,
        }
        self._service: Service | None = None
        self.client = Client(f"127.0.0.1:{self._settings['LIKENESS_INDEXER_PORT']}")

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        if self._service is not None and self._service.process.poll() is None:
            self.kill()

    def start(self) -> float:
        """Starts it; returns the seconds until it says SERVING."""
        began = time.monotonic()
        self._service = launch("indexer", self._settings, "LIKENESS_INDEXER_PORT", self._logs)
        self.wait_until_serving()
        return time.monotonic() - began

    def wait_until_serving(self) -> None:
        """Returns as soon as its health check says SERVING."""
        service = self._running
        # gRPC waits a second after a refused connection; the port tells sooner.
        self.wait("SERVING", lambda: _listens(service.address) and serving(service.address, 1.0) is None, START_S)

    def wait(self, what: str, holds: Callable[[], bool], limit_s: float, pause_s: float = 0.02) -> None:
        """Returns as soon as something holds.

        Raises:
            DownError: it does not within the limit, or the indexer ends by itself.
        """
        deadline = time.monotonic() + limit_s
        while not holds():
            if self._running.process.poll() is not None:
                raise DownError(f"ended with {self._running.process.returncode}; it wrote:\n{self._tail()}")
            if time.monotonic() > deadline:
                raise DownError(f"no {what} within {limit_s:.0f} s; it wrote:\n{self._tail()}")
            time.sleep(pause_s)

    def stop(self) -> None:
        """SIGTERM, and waits for the end."""
        code = self._running.stop()
        if code != 0:
            raise DownError(f"ended with {code} on SIGTERM; it wrote:\n{self._tail()}")

    def terminate(self) -> None:
        """SIGTERM, and does not wait."""
        self._running.process.terminate()

    def kill(self) -> None:
        """SIGKILL; its Chroma dies with it. Returns when both are gone."""
        children = self.chroma()
        self._running.kill()
        psutil.wait_procs(children, timeout=10)

    def kill_chroma(self) -> int:
        """SIGKILL for its Chroma alone; returns how many processes that were."""
        children = self.chroma()
        for process in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(children, timeout=10)
        return len(children)

    def kill_both(self) -> None:
        """SIGKILL for Chroma and, at the same moment, for the indexer."""
        children = self.chroma()
        for process in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.kill()

    def chroma(self) -> list[psutil.Process]:
        """The processes of its Chroma."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._running.process.pid).children(recursive=True)
        return []

    def forget_snapshots(self) -> None:
        """Removes the serving snapshots: the next start reads everything from Chroma."""
        shutil.rmtree(self.serving, ignore_errors=True)

    @property
    def _running(self) -> Service:
        assert self._service is not None, "not started"
        return self._service

    def _tail(self) -> str:
        return "\n".join(self._running.log.splitlines()[-15:])


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:
        return False


def free_bytes(path: Path) -> int:
    """What is free on the disk under a path, for anybody."""
    told = os.statvfs(path)
    return told.f_bavail * told.f_frsize
