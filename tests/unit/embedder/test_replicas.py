"""LIKENESS_WORKERS: a parent that keeps processes alive. The processes here are small programs, not embedders."""

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from embedder import replica_metrics
from embedder.replicas import Pauses, Replicas, reserve
from embedder.settings import EmbedderSettings
from tests.processes import ROOT

# Says that it serves, to its parent and to the test, then waits to be told to stop; or does what its file says.
PROGRAM = """
import os, signal, socket, sys
# Signals wait until they are waited for: no gap between the two. Before the imports, which start threads (OpenBLAS):
# they have to block them as well, or the kernel gives one to one of them and the process dies.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
from pathlib import Path
from embedder.replicas import Replica
replica = Replica.of_this_process()
folder, port = Path(sys.argv[1]), int(sys.argv[2])
todo = folder / f"todo-{replica.index}"
what = todo.read_text() if todo.exists() else ""
with (folder / "started").open("a") as file:
    file.write(f"{replica.index}\\n")
if what.startswith("exit"):
    sys.exit(int(what.split()[1]))
if what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
replica.ready()
if what == "serve and exit 1":
    todo.unlink()
    sys.exit(1)
def tell():
    with socket.create_connection(("127.0.0.1", port)) as test:
        test.sendall(f"{replica.index} {os.getpid()} {int(replica.late)}".encode())
tell()
signal.sigwait({signal.SIGUSR2 if what == "deaf" else signal.SIGTERM})
if what == "take calls":
    tell()
    signal.sigwait({signal.SIGUSR1})
"""

QUICK = Pauses(first=0.01, longest=0.05, healthy=60)


class Stage:
    """Where replicas are started, and what they tell the test."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.command = [sys.executable, "-c", PROGRAM, str(folder), str(port)]
        self.environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}"}
        self.served: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        self.late: list[bool] = []
        self.died: asyncio.Queue[int] = asyncio.Queue()

    def replicas(self, count: int, stop_s: float = 60, pauses: Pauses = QUICK) -> Replicas:
        return Replicas(count, stop_s, self.environment, command=self.command, pauses=pauses, died=self.died.put_nowait)

    def tell(self, index: int, what: str) -> None:
        """What a replica does when it is started from now on; nothing: serve."""
        (self.folder / f"todo-{index}").write_text(what)

    @property
    def started(self) -> list[int]:
        """The index of every replica started so far."""
        return [int(line) for line in (self.folder / "started").read_text().split()]

    async def serving(self, count: int) -> list[tuple[int, int]]:
        """Index and process id of the next so many that serve."""
        return [await asyncio.wait_for(self.served.get(), 60) for _ in range(count)]

    async def dead(self, count: int) -> list[int]:
        """The index of the next so many that die."""
        return [await asyncio.wait_for(self.died.get(), 60) for _ in range(count)]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        index, pid, late = (await reader.read()).split()
        made.late.append(late == b"1")
        made.served.put_nowait((int(index), int(pid)))
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    made = Stage(tmp_path, server.sockets[0].getsockname()[1])
    async with server:
        yield made
    assert [p.pid for p in psutil.Process().children() if str(tmp_path) in p.cmdline()] == []


async def test_all_serve_until_told_to_stop_and_none_is_left(stage: Stage) -> None:
    replicas = stage.replicas(3)
    running = asyncio.create_task(replicas.run())

    found = await stage.serving(3)
    replicas.stop()

    assert await running == 0
    assert sorted(index for index, _ in found) == [0, 1, 2]
    assert stage.late == [False, True, True]
    assert not any(psutil.pid_exists(pid) for _, pid in found)


async def test_the_others_start_when_the_first_serves(stage: Stage) -> None:
    stage.tell(0, "exit 2")

    assert await stage.replicas(3).run() == 2

    assert stage.started == [0]


async def test_one_that_is_killed_is_started_anew(stage: Stage) -> None:
    replicas = stage.replicas(2)
    running = asyncio.create_task(replicas.run())
    _, (index, pid) = await stage.serving(2)

    os.kill(pid, signal.SIGKILL)
    [(new_index, new_pid)] = await stage.serving(1)
    replicas.stop()

    assert await running == 0
    assert new_index == index
    assert new_pid != pid
    assert await stage.dead(1) == [index]


@pytest.mark.parametrize("code", [1, 2])
async def test_one_that_cannot_start_ends_all_with_its_exit_code(stage: Stage, code: int) -> None:
    stage.tell(1, f"exit {code}")

    assert await stage.replicas(2).run() == code

    assert stage.started == [0, 1]


async def test_one_that_served_and_fails_later_is_started_anew(stage: Stage) -> None:
    stage.tell(0, "serve and exit 1")
    replicas = stage.replicas(1)
    running = asyncio.create_task(replicas.run())

    await stage.serving(1)
    replicas.stop()

    assert await running == 0
    assert stage.started == [0, 0]


async def test_one_that_is_killed_while_it_starts_is_tried_again(stage: Stage) -> None:
    stage.tell(0, "die")
    replicas = stage.replicas(2)
    running = asyncio.create_task(replicas.run())
    await stage.dead(2)

    stage.tell(0, "")
    await stage.serving(2)
    replicas.stop()

    assert await running == 0


@pytest.mark.parametrize("call", ["os.pipe", "asyncio.create_subprocess_exec"])
async def test_one_that_finds_no_handle_or_process_to_be_had_is_tried_again_and_the_others_serve_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    pauses: list[float] = []

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    def note(_event: str, **told: Any) -> None:
        pauses.append(told["again_in_s"])
        if len(pauses) == 3:
            working.undo()

    monkeypatch.setattr("embedder.replicas.log", SimpleNamespace(info=lambda *_args, **_told: None, error=note))
    replicas = stage.replicas(2)
    running = asyncio.create_task(replicas.run())
    (_, other), (index, pid) = await stage.serving(2)
    with pytest.MonkeyPatch.context() as working:
        working.setattr(f"embedder.replicas.{call}", fail)
        os.kill(pid, signal.SIGKILL)
        [(new_index, _)] = await stage.serving(1)
    assert psutil.pid_exists(other)
    replicas.stop()

    assert await running == 0
    assert new_index == index
    assert pauses == [0.01, 0.02, 0.04]


async def test_one_that_keeps_dying_is_started_more_and_more_rarely(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    log = SimpleNamespace(error=lambda _event, **told: pauses.append(told["again_in_s"]))
    monkeypatch.setattr("embedder.replicas.log", log)
    stage.tell(0, "die")
    replicas = stage.replicas(1)
    running = asyncio.create_task(replicas.run())
    await stage.dead(5)
    replicas.stop()

    assert await running == 0
    assert pauses == [0.01, 0.02, 0.04, 0.05, 0.05]


async def test_one_that_does_not_stop_is_killed_and_told_of_by_the_exit_code(stage: Stage) -> None:
    stage.tell(1, "deaf")
    replicas = stage.replicas(2, stop_s=0.2)
    running = asyncio.create_task(replicas.run())
    await stage.serving(2)

    replicas.stop()

    assert await running == 1


async def test_all_are_hurried_by_a_second_stop_alone(stage: Stage) -> None:
    stage.tell(0, "take calls")
    stage.tell(1, "take calls")
    replicas = stage.replicas(2)
    running = asyncio.create_task(replicas.run())
    found = await stage.serving(2)

    replicas.stop()
    assert sorted(await stage.serving(2)) == sorted(found)  # they have been told, and go on
    assert not running.done()
    replicas.stop()

    assert await running == 0


async def test_one_that_is_hurried_and_does_not_stop_is_killed(stage: Stage) -> None:
    stage.tell(0, "deaf")
    replicas = stage.replicas(1, stop_s=0.2)
    running = asyncio.create_task(replicas.run())
    await stage.serving(1)

    replicas.stop()
    replicas.stop()

    assert await running == 1


async def test_a_stop_during_a_pause_is_heeded_at_once(stage: Stage) -> None:
    stage.tell(0, "die")
    replicas = stage.replicas(1, pauses=Pauses(first=3600, longest=3600))
    running = asyncio.create_task(replicas.run())
    await stage.dead(1)

    replicas.stop()

    assert await asyncio.wait_for(running, 60) == 0


async def test_replicas_die_with_their_parent(stage: Stage) -> None:
    program = f"""
import asyncio, os
from embedder.replicas import Replicas
asyncio.run(Replicas(2, 60, os.environ, command={stage.command!r}).run())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=stage.environment)
    children = [psutil.Process(pid) for _, pid in await stage.serving(2)]

    parent.kill()
    await parent.wait()

    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 60)
    assert alive == []


def test_a_replica_started_anew_counts_on_where_the_one_before_was_killed(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from embedder.replica_metrics import write_as
write_as(int(sys.argv[1]))
from embedder.metrics import Metrics
metrics = Metrics()
metrics.cache_hit()
metrics.decoded("text", 1.0)
metrics.model_up(True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
    }

    def lives_and_dies(index: int) -> set[str]:
        """Which files there are then."""
        done = subprocess.run([sys.executable, "-c", program, str(index)], env=environment, timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
        return {path.name for path in tmp_path.iterdir()}

    first = lives_and_dies(0)
    assert {name.removesuffix("_replica-0.db") for name in first} == {
        *("counter", "histogram", "gauge_livesum", "gauge_livemax", "gauge_livemin")
    }
    assert lives_and_dies(0) == first
    assert len(lives_and_dies(1)) == 2 * len(first)

    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))  # type: ignore[no-untyped-call]

    def shown(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"likeness_embedder_{name}", labels)

    assert shown("cache_hits_total", kind="text") == 3
    assert shown("decode_seconds_count", kind="text") == 3
    assert shown("model_up") == 2


def test_a_dead_replicas_gauges_are_shown_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(replica_metrics.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr("prometheus_client.Counter", lambda *_: SimpleNamespace(inc=lambda: None))
    for name in ("counter_replica-1.db", "gauge_livesum_replica-1.db", "gauge_livesum_replica-11.db"):
        (tmp_path / name).touch()

    with ExitStack() as held:
        died = replica_metrics.show(EmbedderSettings(metrics_port=0), str(tmp_path), held)
        died(1)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["counter_replica-1.db", "gauge_livesum_replica-11.db"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_that_is_held_is_for_listeners_that_share_it_and_for_nobody_else(host: str) -> None:
    with reserve(host, 0) as held:
        port = held.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            reserve(host, port)

        with listener(port) as first, listener(port) as second:
            assert {first.getsockname(), second.getsockname()} == {("127.0.0.1", port)}
            socket.create_connection(("127.0.0.1", port)).close()
            with pytest.raises(OSError, match="in use"):
                reserve(host, port)


def test_a_port_on_which_somebody_listens_is_not_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        reserve("127.0.0.1", other.getsockname()[1])


def test_a_port_is_free_again_after_its_connections_were_closed() -> None:
    with reserve("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with listener(port) as ours:
            client = socket.create_connection(("127.0.0.1", port))
            ours.accept()[0].close()  # the side that closes first keeps the port busy for a minute
            client.close()

    reserve("127.0.0.1", port).close()


def listener(port: int) -> socket.socket:
    """As gRPC listens when it shares a port."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.listen()
    return made
