"""The processes of the benchmark: contenders that measure when asked, services that are measured.

Whatever is started here is a session of its own, so that Ctrl-C reaches this process alone, is ended by ``close``, and
dies with this process should that be killed.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import psutil

from benchmarks.desk import Answer, Request
from benchmarks.embedder.scope import ROOT, WORK, surroundings
from chassis.health import wait_until_serving

TETHER = ROOT / "chassis" / "tether.py"
START_S, STOP_S = 600.0, 30.0
MIB = 2**20


class FailedError(Exception):
    """A process did not do its part; the message says which and ends with the last lines of its log."""


def free_port() -> int:
    """A port on loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A process with its descendants; they end with the ``with`` block."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], *, talks: bool) -> None:
        """Starts it.

        Args:
            name: for messages and the log's file name.
            command: what to run, in the repository's root; the program by its whole path.
            environment: the whole of it.
            talks: whether its standard input and output are pipes.
        """
        self.name = name
        self.log = WORK / "logs" / f"{name.replace(' ', '-')}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", TETHER, str(os.getpid()), *command],
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def tree(self) -> list[psutil.Process]:
        """The process and its descendants, as far as they run."""
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        return []

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def rss_mib(self) -> float:
        """Resident memory of the whole tree, in MiB; what its processes share counts in each."""
        return self._sum(lambda process: process.memory_info().rss) / MIB

    def cpu_s(self) -> float:
        """CPU time that the whole tree has taken, in seconds."""
        return self._sum(lambda process: sum(process.cpu_times()[:2]))

    def failed(self, what: str) -> FailedError:
        """An error that ends with the process's last words."""
        return FailedError(f"{self.name}: {what}; its log, {self.log}, ends:\n{tail(self.log)}")

    def close(self) -> None:
        """Ends the process as gently as it lets us: end of input or SIGTERM, then SIGKILL for all that is left."""
        tree = self.tree
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        elif not self.ended:
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        for process in {*tree, *self.tree}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _sum(self, figure: Callable[[psutil.Process], float]) -> float:
        total = 0.0
        for process in self.tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += figure(process)
        return total


class Contender(Process):
    """A process of ours that measures when asked: a line of JSON each way.

    Attributes:
        about: what it said of itself, once it is ready.
    """

    def __init__(
        self,
        name: str,
        module: str,
        settings: Mapping[str, str],
        arguments: Sequence[str] = (),
        python: str | Path = sys.executable,
    ) -> None:
        """Starts ``python -m module arguments``; ``ready`` waits for it."""
        command = [str(python), "-m", module, *arguments]
        self.about: Answer = {}
        super().__init__(name, command, surroundings(settings), talks=True)

    def ready(self) -> Answer:
        """Waits until it can be asked; returns what it says of itself."""
        self.about = self.answer()
        return self.about

    def ask(self, **request: Any) -> Answer:
        """Asks for a measurement and waits for it."""
        self.send(request)
        return self.answer()

    def send(self, request: Request) -> None:
        """Asks, and does not wait."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self.failed("has ended") from None

    def answer(self) -> Answer:
        """Waits for the next answer; raises FailedError if there is none or it says so itself."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            raise self.failed("has ended")
        answer: Answer = json.loads(text)
        if "fault" in answer:
            raise FailedError(f"{self.name}: {answer['fault']}")
        return answer


class Service(Process):
    """A running embedder.

    Attributes:
        address: ``host:port``.
    """

    def __init__(self, name: str, settings: Mapping[str, str], workers: int = 1) -> None:
        """Starts ``python -m embedder`` on a free port; ``ready`` waits for it."""
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        own = {"LIKENESS_EMBEDDER_PORT": str(port), "LIKENESS_WORKERS": str(workers)}
        super().__init__(name, [sys.executable, "-m", "embedder"], surroundings({**settings, **own}), talks=False)

    def ready(self) -> None:
        """Waits until it says SERVING."""
        deadline = time.monotonic() + START_S
        why: str | None = "no answer"
        while why is not None and time.monotonic() < deadline and not self.ended:
            why = wait_until_serving(self.address, 1.0)
        if why is not None:
            raise self.failed(f"not serving: {why}")


def end_on_signals() -> None:
    """Has SIGTERM and SIGINT end this process and all its descendants at once, also where SIGINT was ignored."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end_at_once)


def _end_at_once(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (what a signal handler gets)
    # Nothing is unwound: closing gently takes half a minute a process, and nobody reads their answers any more.
    for _ in range(2):  # the second for what was started while the first looked
        descendants = psutil.Process().children(recursive=True)
        for process in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(descendants, timeout=2)
    os._exit(128 + number)


def tail(path: Path, lines: int = 12) -> str:
    """The last lines of a file."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
