"""Services whose imports are done when they begin: forks of a process that has imported their modules and run nothing.

What a service imports takes seconds of a processor, most of them in Chroma's client, and the tests start some hundreds.
Each test process has a nursery for each kind of service, which lives until the test process ends.

``python -m tests.nursery MODULE FD`` is such a process. It takes requests from a socket: the service's environment as
JSON, with where its output goes and where its process number and its exit code are told.

What a fork has in common with its siblings, and a command of its own would not: the order of sets of strings, and what
libraries read of the environment when they are loaded (``OMP_…``, ``GRPC_…``). ``tests.processes.launch`` starts the
command itself; so do ``deploy.local`` and the chaos tests.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

# What is imported from here on may set variables for libraries, and a service has them too.
_BEFORE = set(os.environ)

from chassis import starting  # noqa: E402


class Forked:
    """A process that somebody else is the parent of, to be handled as a ``subprocess.Popen``."""

    def __init__(self, reports: socket.socket) -> None:
        """It runs already.

        Args:
            reports: tells its number and, once it has ended, its exit code.
        """
        self.returncode: int | None = None
        self._reports = reports
        self._lines = reports.makefile("r")
        self._looking = threading.Lock()
        born = self._lines.readline()
        if not born:
            self._close()
            raise ChildProcessError("a nursery has ended; what it wrote says why")
        self.pid = int(born)

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended.

        Args:
            timeout: in seconds.

        Raises:
            subprocess.TimeoutExpired: it has not within that time.
        """
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Signals it, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ends just now
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> int | None:
        waiting = select.poll()
        with self._looking:
            if self.returncode is None:
                waiting.register(self._reports, select.POLLIN)
        # Not under the lock: another thread may look, or end it, while this one waits.
        if self.returncode is None and waiting.poll(None if timeout is None else timeout * 1000):
            with self._looking:
                if self.returncode is None:
                    self._end(self._lines.readline())
        return self.returncode

    def _end(self, told: str) -> None:
        self._close()
        if not told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.returncode = int(told) if told else -signal.SIGKILL

    def _close(self) -> None:
        self._lines.close()
        self._reports.close()


class Nursery:
    """Where services of one kind come from."""

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        """Begins to import; nobody waits for it here.

        Args:
            module: such as ``indexer``.
            environment: what is imported there is imported under it.
        """
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.nursery", module, str(theirs.fileno())]
            root = Path(__file__).resolve().parent.parent
            self._process = subprocess.Popen(command, cwd=root, env=environment, pass_fds=[theirs.fileno()])

    def fork(self, environment: Mapping[str, str], output: int) -> Forked:
        """A service with this environment, whose output goes to this descriptor."""
        reports, theirs = socket.socketpair()
        with theirs, contextlib.suppress(BrokenPipeError):  # then nothing is told either
            socket.send_fds(self._requests, [json.dumps(dict(environment)).encode()], [theirs.fileno(), output])
        return Forked(reports)


def main() -> None:
    """Imports, and forks until the test process is gone; in a fork, runs the service."""
    name, requests = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted test run ends it, by closing the socket
    module = importlib.import_module(f"{name}.__main__")
    run = module.main
    added = {variable: value for variable, value in os.environ.items() if variable not in _BEFORE}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, 2**20, 2)
        if not request:
            return
        if not os.fork():
            break
        for descriptor in descriptors:
            os.close(descriptor)
    requests.close()
    reports, output = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        os.close(output)
        _tell(pid, reports)
    os.close(reports)
    _become_a_service(output, added | json.loads(request))
    sys.argv = [str(module.__file__)]
    run()


def _tell(pid: int, reports: int) -> NoReturn:
    """What a parent does: tells of the birth and of the end, and kills what nobody listens for any more."""
    try:
        with Path(os.devnull).open("r+b") as nothing:
            for descriptor in range(3):
                os.dup2(nothing.fileno(), descriptor)
        os.write(reports, f"{pid}\n".encode())
        ended, waiting = os.pidfd_open(pid), select.poll()
        waiting.register(ended, select.POLLIN)
        waiting.register(reports, 0)  # a hang-up is told anyway
        if ended not in (ready for ready, _ in waiting.poll()):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.write(reports, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    finally:
        os._exit(0)  # nothing of the nursery's is to be ended here, nor told to a test process that is gone


def _become_a_service(output: int, environment: Mapping[str, str]) -> None:
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    starting.end_when_told()


if __name__ == "__main__":
    main()
