"""Services as real processes for tests: started on a free port, waited for, ended, their log shown on failure."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Protocol

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from chassis.health import wait_until_serving
from tests.nursery import Nursery

ROOT = Path(__file__).resolve().parent.parent
START_S = 240.0
STOP_S = 40.0
# Those whose imports take longest. An embedder's model is in another process, which imports by itself.
_NURSED = ("indexer", "gateway")


class Process(Protocol):
    """What tests ask of a process that they have started: of ``subprocess.Popen``, and of ``nursery.Forked``."""

    pid: int

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int, /) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


def eventually(true: Callable[[], bool], within_s: float = 60) -> bool:
    """Whether something that another process does comes about."""
    deadline = time.monotonic() + within_s
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.02)  # a pace for looking; the deadline only ends a failure
    return found


def free_port() -> int:
    """A port on loopback that nobody listens on just now, of those that no system hands out by itself meanwhile."""
    while True:
        # Not the seeded generator: hypothesis sets it, in every process of a parallel run alike.
        port = random.SystemRandom().randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class Service:
    """A running service.

    Attributes:
        address: ``host:port`` of its gRPC server.
        process: the process.
        log_file: its standard output and error; what earlier processes of this test wrote stands before.
    """

    address: str
    process: Process
    log_file: Path

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self.log_file.read_text(errors="replace")

    def wait_until_serving(self, timeout_s: float = START_S) -> None:
        """Waits for its health check to say SERVING; fails with its log if that does not come or it has ended."""
        deadline = time.monotonic() + timeout_s
        while (why := wait_until_serving(self.address, 5.0)) is not None:
            assert self.process.poll() is None, f"ended with {self.process.returncode}; it wrote:\n{self.log}"
            assert time.monotonic() < deadline, f"{self.address}: {why}; it wrote:\n{self.log}"

    def stop(self) -> int:
        """SIGTERM; returns the exit code once it has ended (again, if it had ended before)."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not stop within {STOP_S:g} s; it wrote:\n{self.log}") from None

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        self.process.kill()
        self.process.wait(STOP_S)


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without settings of its own, and with these.

    Converted models are kept from one run of the tests to the next, in the checkout and not in the user's cache.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("LIKENESS_")}
    ours = {
        "PYTHONUNBUFFERED": "1",
        "LIKENESS_LOG_STYLE": "json",
        "LIKENESS_CACHE_DIR": str(ROOT / "build" / "converted"),
    }
    return inherited | ours | dict(variables)


_ENVIRONMENT = environment({})  # before any test changes its own


def launch(module: str, env: Mapping[str, str], port_variable: str, tmp_path: Path) -> Service:
    """Starts ``python -m MODULE`` on a free port (or the one that ``env`` names) and does not wait for it."""

    def begin(told: Mapping[str, str], log: IO[bytes]) -> Process:
        command = [sys.executable, "-m", module]
        return subprocess.Popen(
            command, cwd=ROOT, env=told, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )

    return _begun(begin, module, env, port_variable, tmp_path)


def start_service(module: str, env: Mapping[str, str], port_variable: str, tmp_path: Path) -> Service:
    """Starts a service on a free port (or the one that ``env`` names) and waits for SERVING.

    It may be a fork of a process that has done its imports (see ``tests.nursery``).

    Args:
        module: such as ``indexer``.
        env: its settings; ``LIKENESS_*`` of the surrounding environment do not reach it.
        port_variable: the setting of its port, such as ``LIKENESS_INDEXER_PORT``.
        tmp_path: where its log goes.
    """
    if module in _NURSED:
        service = _begun(
            lambda told, log: _nursery(module).fork(told, log.fileno()), module, env, port_variable, tmp_path
        )
    else:
        service = launch(module, env, port_variable, tmp_path)
    try:
        service.wait_until_serving()
    except BaseException:
        service.kill()
        raise
    return service


def _begun(
    begin: Callable[[Mapping[str, str], IO[bytes]], Process],
    module: str,
    env: Mapping[str, str],
    port_variable: str,
    tmp_path: Path,
) -> Service:
    port = env.get(port_variable) or str(free_port())
    log_file = tmp_path / f"{module}-{port}.log"
    with log_file.open("ab") as log:
        process = begin(environment({**env, port_variable: port}), log)
    return Service(f"127.0.0.1:{port}", process, log_file)


@cache
def _nursery(module: str) -> Nursery:
    return Nursery(module, _ENVIRONMENT)


def run_to_end(
    module: str, env: Mapping[str, str], arguments: Sequence[str] = (), timeout_s: float = START_S
) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m MODULE ARGUMENTS…`` until it ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def metric(port: int, name: str, **labels: str) -> float:
    """A sample of a service's /metrics on loopback; 0 if there is none of these labels."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=10).raise_for_status().text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return 0.0


def forget_peak(process: psutil.Process) -> int:
    """Makes ``peak_memory`` count from now; returns the memory that the process holds, in bytes."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return int(process.memory_info().rss)


def peak_memory(process: psutil.Process) -> int:
    """The most memory that a process held since ``forget_peak``, in bytes."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def start_chroma(path: Path, port: int = 0) -> tuple[subprocess.Popen[bytes], str]:
    """A Chroma server over a directory, beside an indexer, and its URL; returns once it answers."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    path.mkdir(parents=True, exist_ok=True)
    told = ["--path", str(path), "--names", str(path / "names"), "--port", str(port)]
    with (path.parent / f"{path.name}-{port}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "indexer.chroma_process", *told],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + START_S
    with httpx.Client(trust_env=False, timeout=1.0) as http:
        while time.monotonic() < deadline:
            try:
                if http.get(f"{url}/api/v2/heartbeat").is_success:
                    return process, url
            except httpx.TransportError:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(0.05)
                    raise AssertionError(f"Chroma ended with exit code {code}") from None
    process.kill()
    raise AssertionError(f"no Chroma at {url} within {START_S:g} s")
