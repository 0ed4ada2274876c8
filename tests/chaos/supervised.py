"""A process that is started again whenever it ends, as an orchestrator does."""

import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import psutil

from tests.processes import Process

_PAUSE_S = 0.3


class Supervised:
    """One process after another, until told to stop."""

    def __init__(self, name: str, launch: Callable[[], Process]) -> None:
        """Not running yet.

        Args:
            name: for the thread.
            launch: starts it.
        """
        self.exits: list[int] = []
        self._launch = launch
        self._changing = threading.Lock()
        self._stopping = threading.Event()
        self._process: Process | None = None
        self._thread = threading.Thread(target=self._run, name=f"supervision of {name}")

    def __enter__(self) -> Self:
        self._process = self._launch()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def process(self) -> psutil.Process:
        """The one that runs now, or did just now."""
        assert self._process is not None, "not started"
        return psutil.Process(self._process.pid)

    def kill(self) -> None:
        """SIGKILL; another follows."""
        assert self._process is not None
        with self._changing:
            self._process.kill()

    def pause(self) -> psutil.Process:
        """SIGSTOP; returns the process, to be resumed."""
        process = self.process
        process.suspend()
        return process

    def abandon(self) -> None:
        """No other follows the one that runs now, whose exit code is the only one from now on."""
        self.exits.clear()
        self._stopping.set()

    def end(self) -> None:
        """SIGKILL, and no other follows."""
        self._stopping.set()
        with self._changing:
            if self._process is not None and self._process.poll() is None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(self._process.pid).resume()
                self._process.kill()
        if self._thread.ident is not None:
            self._thread.join(30)

    def _run(self) -> None:
        while True:
            assert self._process is not None
            self.exits.append(self._process.wait())
            if self._stopping.wait(_PAUSE_S):
                return
            with self._changing:
                if self._stopping.is_set():
                    return
                self._process = self._launch()
