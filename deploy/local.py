"""The three services as processes on this machine: ``python -m deploy.local up|down``, and ``running`` for the demo.

``up`` returns when all three say SERVING and leaves them in the background; ``down`` stops them. Ports, addresses and
everything else come from the services' own variables (``LIKENESS_*``). LIKENESS_HOST is where the gateway listens:
embedder and indexer, which ask for no key, listen there with mTLS (LIKENESS_TLS_CLIENT_CA), else on loopback.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import psutil

from chassis.health import wait_until_serving
from chassis.names import is_loopback
from chassis.tls import of_this_host

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / "data" / "local"
PIDS = STATE / "pids.json"
# In the order of starting: the gateway waits for the other two.
PORTS = {
    "embedder": ("LIKENESS_EMBEDDER_PORT", 50051),
    "indexer": ("LIKENESS_INDEXER_PORT", 50052),
    "gateway": ("LIKENESS_GATEWAY_PORT", 50050),
}
# What the gateway listens on besides.
HTTP_VARIABLE, HTTP_PORT = "LIKENESS_HTTP_PORT", 8080
LOOPBACK = "127.0.0.1"
EVERY_INTERFACE = ("0.0.0.0", "::")  # noqa: S104  (loopback among them)
# With any of them the gateway listens on more than loopback.
OPENERS = ("LIKENESS_API_KEYS_FILE", "LIKENESS_API_KEYS", "LIKENESS_ANONYMOUS")
# The first start of a model that is downloaded takes as long as the download.
START_S, STOP_S = 900.0, 40.0


class StartError(Exception):
    """A service did not come up; the message holds the end of its log."""


class Services:
    """The three services, each one a process that can be started, killed and started again at the same address.

    Attributes:
        hosts: what each listens on, by service.
        addresses: ``host:port`` by service, as this machine reaches it.
        http: ``host:port`` of the gateway's HTTP; None: it has none, or chooses a port itself.
        environment: the variables of all three; embedder and indexer have a LIKENESS_HOST of their own beside it.
        processes: the running ones, by service.
    """

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        """Prepares, but starts nothing.

        Args:
            environment: the variables for all three; ports that it does not set are the default ones.
            logs: the directory for one log file a service.
        """
        self._logs = logs
        ports = {name: environment.get(variable) or str(default) for name, (variable, default) in PORTS.items()}
        self.hosts = _hosts(environment)
        self.addresses = {name: _address(self.hosts[name], port) for name, port in ports.items()}
        port = environment.get(HTTP_VARIABLE) or str(HTTP_PORT)
        gateway = self.addresses["gateway"].rpartition(":")[0]
        self.http = None if port in ("-1", "0") else f"{gateway}:{port}"
        self.environment = {
            "LIKENESS_EMBEDDER_ADDRESS": self.addresses["embedder"],
            "LIKENESS_INDEXER_ADDRESS": self.addresses["indexer"],
            **environment,
        }
        self.processes: dict[str, psutil.Popen] = {}

    def start(self, *names: str) -> None:
        """Starts services, all three if none is named, and waits until they say SERVING.

        Raises:
            StartError: one of them did not come up; everything was stopped again.
        """
        names = names or tuple(PORTS)
        self._logs.mkdir(parents=True, exist_ok=True)
        needed = [(PORTS[name][0], self.addresses[name]) for name in names]
        if "gateway" in names and self.http is not None:
            needed.append((HTTP_VARIABLE, self.http))
        for variable, address in needed:
            if _taken(address):
                raise StartError(f"{address} is taken: stop what listens there, or set {variable}")
        try:
            self._start(names)
        except BaseException:
            self.stop()
            raise

    def _start(self, names: Iterable[str]) -> None:
        for name in names:
            with self.log(name).open("ab") as log:
                self.processes[name] = psutil.Popen(
                    [sys.executable, "-m", name],
                    cwd=ROOT,
                    env=self._environment_of(name),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        for name in names:
            why = self._wait(name)
            if why is not None:
                tail = "\n".join(self.log(name).read_text(errors="replace").splitlines()[-15:])
                raise StartError(f"the {name} did not come up ({why}); its log, {self.log(name)}, ends:\n{tail}")

    def stop(self) -> None:
        """Stops all that run, the gateway first: what it has read, it answers with the help of the others."""
        _stop([self.processes.pop(name) for name in reversed(PORTS) if name in self.processes])

    def log(self, name: str) -> Path:
        """A service's log file."""
        return self._logs / f"{name}.log"

    def _environment_of(self, name: str) -> dict[str, str]:
        if name == "gateway":  # it knows by itself where it may listen, and its log says so
            return self.environment
        return {**self.environment, "LIKENESS_HOST": self.hosts[name]}

    def _wait(self, name: str) -> str | None:
        """Waits for SERVING, but not for a process that has ended; returns None, or what went wrong."""
        deadline = time.monotonic() + START_S
        why: str | None = "no answer"
        while why is not None and time.monotonic() < deadline:
            why = wait_until_serving(self.addresses[name], 1.0, of_this_host(self.environment))
            if self.processes[name].poll() is not None:
                return f"exit code {self.processes[name].returncode}"
        return why


def _hosts(environment: Mapping[str, str]) -> dict[str, str]:
    """What each service listens on."""
    host = (environment.get("LIKENESS_HOST") or LOOPBACK).strip("[]")
    near = host if is_loopback(host) else LOOPBACK
    private = host if environment.get("LIKENESS_TLS_CLIENT_CA") else near
    opened = any(environment.get(variable) for variable in OPENERS)
    return {"embedder": private, "indexer": private, "gateway": host if opened else near}


def _address(host: str, port: str) -> str:
    host = LOOPBACK if host in EVERY_INTERFACE else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _stop(processes: Iterable[psutil.Process]) -> None:
    """Stops processes, one after another: asks each, and kills it if it has not stopped after 40 seconds."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
        _, left = psutil.wait_procs([process], timeout=STOP_S)
        for stuck in left:
            stuck.kill()
        psutil.wait_procs(left)


def _taken(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except OSError:
        return False


def free_ports() -> dict[str, str]:
    """The port variables of all three services, each with a TCP port on loopback that was free a moment ago."""
    with contextlib.ExitStack() as open_until_all_are_chosen:
        ports = {}
        for variable in (*(variable for variable, _ in PORTS.values()), HTTP_VARIABLE):
            probe = open_until_all_are_chosen.enter_context(socket.socket())
            probe.bind((LOOPBACK, 0))
            ports[variable] = str(probe.getsockname()[1])
    return ports


def with_http_port(environment: Mapping[str, str]) -> dict[str, str]:
    """The same variables, with another HTTP port, which is printed, where none is set and the usual one is taken."""
    if environment.get(HTTP_VARIABLE) or not _taken(f"{LOOPBACK}:{HTTP_PORT}"):
        return dict(environment)
    instead = free_ports()[HTTP_VARIABLE]
    print(f"Port {HTTP_PORT} is taken: HTTP is at port {instead} this time; {HTTP_VARIABLE} sets another.")
    return {**environment, HTTP_VARIABLE: instead}


@contextlib.contextmanager
def running(directory: Path, environment: Mapping[str, str] = os.environ) -> Iterator[Services]:
    """The three services on free ports over ``directory``, for as long as the context lasts."""
    # Whatever the caller's own services are told must not lead these to other people's data.
    addresses = {f"LIKENESS_{name}_ADDRESS" for name in ("EMBEDDER", "INDEXER", "INDEXER_READ")}
    theirs = addresses | {"LIKENESS_HOST", "LIKENESS_CHROMA_URL"}
    kept = {name: value for name, value in environment.items() if name not in theirs}
    data = {"LIKENESS_DATA_DIR": str(directory / "indexer"), "LIKENESS_MEDIA_URL": str(directory / "media")}
    services = Services({**kept, **free_ports(), **data}, directory / "logs")
    try:
        services.start()
        yield services
    finally:
        services.stop()


def up() -> int:
    """Starts the services in the background."""
    if recorded := _recorded():
        whole = len(recorded) == len(PORTS)
        print("Already up: `make down` stops it." if whole else "Half up: `make down` first.")
        return int(not whole)
    print("Starting embedder, indexer and gateway …", flush=True)
    environment = with_http_port(os.environ)
    try:
        services = Services(environment, STATE / "logs")
        services.start()
    except StartError as error:
        print(error, file=sys.stderr)
        return 1
    PIDS.write_text(json.dumps({name: process.pid for name, process in services.processes.items()}))
    scheme = "https" if environment.get("LIKENESS_TLS_CERT") else "http"
    http = (
        f"{HTTP_VARIABLE}={environment.get(HTTP_VARIABLE)}" if services.http is None else f"{scheme}://{services.http}"
    )
    print("All three are SERVING.")
    for name, besides in (("gateway", f"  (gRPC) and {http}"), ("embedder", ""), ("indexer", "")):
        print(f"  {name:8}  {services.addresses[name]}{besides}{_beyond(services.hosts[name])}")
    print(f"  logs      {STATE / 'logs'}")
    return 0


def _beyond(host: str) -> str:
    """What an address does not tell of where a service listens."""
    return f", and on every interface (LIKENESS_HOST={host})" if host in EVERY_INTERFACE else ""


def down() -> int:
    """Stops what ``up`` started."""
    recorded = _recorded()
    _stop(recorded)
    PIDS.unlink(missing_ok=True)
    print("Stopped." if recorded else "Nothing to stop.")
    return 0


def _recorded() -> list[psutil.Process]:
    """The processes that ``up`` started and that still run, the gateway first."""
    pids = json.loads(PIDS.read_text()) if PIDS.exists() else {}
    found = []
    for name in reversed(PORTS):
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            process = psutil.Process(pids[name])
            if process.cmdline()[1:3] == ["-m", name]:  # the number may be another process's by now
                found.append(process)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    parser.add_argument("action", choices=["up", "down"])
    sys.exit({"up": up, "down": down}[parser.parse_args().action]())
