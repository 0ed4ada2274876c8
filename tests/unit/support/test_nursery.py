"""Services from a nursery: as processes of their own, with an environment of their own."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from tests.nursery import Nursery
from tests.processes import environment, eventually, free_port

NOBODY = {"LIKENESS_CHROMA_URL": "http://127.0.0.1:9", "LIKENESS_CHROMA_START_S": "240"}


@pytest.fixture(scope="module")
def nursery() -> Nursery:
    return Nursery("indexer", environment({}))


@pytest.fixture
def output(tmp_path: Path) -> Iterator[IO[bytes]]:
    with (tmp_path / "log").open("wb") as file:
        yield file


def starting(tmp_path: Path, **more: str) -> dict[str, str]:
    """An indexer that goes on starting."""
    ours = {"LIKENESS_DATA_DIR": str(tmp_path), "LIKENESS_INDEXER_PORT": str(free_port())}
    return environment(NOBODY | ours | more)


@pytest.mark.parametrize("module", ["indexer", "gateway"])
def test_a_service_starts_and_stops(module: str, tmp_path: Path, output: IO[bytes]) -> None:
    ports = {f"LIKENESS_{name}_PORT": str(free_port()) for name in ("GATEWAY", "HTTP")}
    env = starting(tmp_path) if module == "indexer" else environment(ports)
    service = Nursery(module, environment({})).fork(env, output.fileno())
    assert eventually(lambda: b"listening" in (tmp_path / "log").read_bytes()), (tmp_path / "log").read_text()
    assert service.poll() is None
    service.terminate()
    assert service.wait(60) == 0
    assert not psutil.pid_exists(service.pid)


def test_a_refused_setting_ends_it_with_its_code_and_reaches_no_other(
    nursery: Nursery, tmp_path: Path, output: IO[bytes]
) -> None:
    refused = nursery.fork(starting(tmp_path, LIKENESS_LEASE_S="many"), output.fileno())
    assert refused.wait(60) == 2
    assert b"LIKENESS_LEASE_S" in (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(b"")
    other = nursery.fork(starting(tmp_path), output.fileno())
    assert eventually(lambda: b"listening" in (tmp_path / "log").read_bytes())
    assert b"LIKENESS_LEASE_S" not in (tmp_path / "log").read_bytes()
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(0.01)
    other.kill()
    assert other.wait(60) == -signal.SIGKILL
    other.kill()  # it has ended: nobody else is hit


def test_a_nursery_ends_with_its_test_process_and_so_do_its_services(tmp_path: Path) -> None:
    code = (
        "import os, sys; from tests.nursery import Nursery; from tests.processes import environment\n"
        "nursery = Nursery('indexer', environment({}))\n"
        "forked = nursery.fork(dict(os.environ), sys.stdout.fileno())\n"
        "print(forked.pid, nursery._process.pid, flush=True); sys.stdin.read()"
    )
    log = tmp_path / "log"
    with log.open("wb") as output:
        tester = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=output, env=starting(tmp_path)
        )
    assert eventually(lambda: b"\n" in log.read_bytes())
    pids = [int(word) for word in log.read_text().splitlines()[0].split() if word.isdigit()]
    tester.kill()
    tester.wait(60)
    assert len(pids) == 2
    assert eventually(lambda: not any(map(psutil.pid_exists, pids)))


def test_a_nursery_that_has_ended_says_so(output: IO[bytes]) -> None:
    ended = Nursery("tests.never_made", environment({}))
    ended._process.wait(60)
    with pytest.raises(ChildProcessError, match="nursery has ended"):
        ended.fork({}, output.fileno())
