"""The three services as processes on this machine: ``python -m deploy.local up|down``, and ``running`` for the demo.

``up`` returns when all three say SERVING and leaves them in the background; ``down`` stops them. Ports, addresses and
everything else come from the services' own variables (``LIKENESS_*``).
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from chassis.health import wait_until_serving

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / "data" / "local"
# In the order of starting: the gateway waits for the other two.
PORTS = {
    "embedder": ("LIKENESS_EMBEDDER_PORT", 50051),
    "indexer": ("LIKENESS_INDEXER_PORT", 50052),
    "gateway": ("LIKENESS_GATEWAY_PORT", 50050),
}
START_S, STOP_S = 180.0, 40.0


class StartError(Exception):
    """A service did not come up; the message holds the end of its log."""


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(environment: Mapping[str, str], logs: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Starts the three services and waits until all say SERVING.

    Args:
        environment: the variables for all three; ports that it does not set are the default ones.
        logs: the directory for one log file a service.

    Returns:
        The addresses (``host:port``) and the process ids, by service.

    Raises:
        StartError: one of them did not come up; the others were stopped again.
    """
    logs.mkdir(parents=True, exist_ok=True)
    ports = {name: environment.get(variable, str(default)) for name, (variable, default) in PORTS.items()}
    addresses = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    variables = {
        "LIKENESS_EMBEDDER_ADDRESS": addresses["embedder"],
        "LIKENESS_INDEXER_ADDRESS": addresses["indexer"],
        **environment,
    }
    processes = {}
    for name in PORTS:
        with (logs / f"{name}.log").open("wb") as log:
            processes[name] = psutil.Popen(
                [sys.executable, "-m", name],
                cwd=ROOT,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    pids = {name: process.pid for name, process in processes.items()}
    for name, process in processes.items():
        why = _wait(process, addresses[name])
        if why is not None:
            stop(pids)
            tail = "\n".join((logs / f"{name}.log").read_text(errors="replace").splitlines()[-15:])
            raise StartError(f"the {name} did not come up ({why}); its log, {logs / f'{name}.log'}, ends:\n{tail}")
    return addresses, pids


def _wait(process: psutil.Popen, address: str) -> str | None:
    """Waits for SERVING, but not for a process that has ended; returns None, or what went wrong."""
    deadline = time.monotonic() + START_S
    why: str | None = "no answer"
    while why is not None and time.monotonic() < deadline:
        why = wait_until_serving(address, 1.0)
        if why is not None and process.poll() is not None:
            return f"exit code {process.returncode}"
    return why


def stop(pids: Mapping[str, int]) -> None:
    """Asks the services to stop, the gateway first, and kills what has not stopped after 40 seconds."""
    alive = []
    for name in reversed(PORTS):
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            process = psutil.Process(pids[name])
            if process.cmdline()[1:3] == ["-m", name]:  # the number may be another process's by now
                process.terminate()
                alive.append(process)
    _, left = psutil.wait_procs(alive, timeout=STOP_S)
    for process in left:
        process.kill()
    psutil.wait_procs(left)


@contextlib.contextmanager
def running(directory: Path) -> Iterator[str]:
    """The three services on free ports over ``directory``, for as long as the context lasts; gives the address."""
    ports = {variable: str(free_port()) for variable, _ in PORTS.values()}
    environment = {**os.environ, **ports, "LIKENESS_DATA_DIR": str(directory / "indexer")}
    addresses, pids = start(environment, directory / "logs")
    try:
        yield addresses["gateway"]
    finally:
        stop(pids)


def up() -> int:
    """Starts the services in the background."""
    file = STATE / "processes.json"
    if file.exists() and any(psutil.pid_exists(pid) for pid in json.loads(file.read_text())["pids"].values()):
        print("Already up (or half up): `make down` stops it.")
        return 0
    print("Starting embedder, indexer and gateway …", flush=True)
    try:
        addresses, pids = start(os.environ, STATE / "logs")
    except StartError as error:
        print(error, file=sys.stderr)
        return 1
    file.write_text(json.dumps({"addresses": addresses, "pids": pids}))
    print(
        f"All three are SERVING.\n  gateway   {addresses['gateway']}  (gRPC; HTTP on 8080 is reserved)\n"
        f"  embedder  {addresses['embedder']}\n  indexer   {addresses['indexer']}\n  logs      {STATE / 'logs'}"
    )
    return 0


def down() -> int:
    """Stops what ``up`` started."""
    file = STATE / "processes.json"
    if not file.exists():
        print("Nothing to stop.")
        return 0
    stop(json.loads(file.read_text())["pids"])
    file.unlink()
    print("Stopped.")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    parser.add_argument("action", choices=["up", "down"])
    sys.exit({"up": up, "down": down}[parser.parse_args().action]())
