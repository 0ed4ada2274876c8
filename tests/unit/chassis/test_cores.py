"""How many threads make sense in a container: by its quota, whatever the machine has."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chassis import cores, server
from chassis.cores import Found, quota
from chassis.settings import ServiceSettings
from embedder.settings import EmbedderSettings
from gateway.media import Media
from tests.processes import ROOT
from tests.unit.chassis import fake_cgroups as groups
from tests.unit.chassis.test_server import Idle


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores, a container with a quota of 4."""
    monkeypatch.setattr("chassis.cores.found", lambda: Found(machine=64, affinity=64, quota=4.0))


@pytest.mark.parametrize(
    ("kind", "files", "expected"),
    [
        (groups.OWN_TOP, {"cpu.max": "400000 100000"}, 4.0),
        (groups.OWN_TOP, {"cpu.max": "max 100000"}, None),
        (groups.OWN_TOP, {"cpu.max": "25000 50000"}, 0.5),
        (groups.BELOW, {"pods.slice/pod1/main/cpu.max": "200000 100000"}, 2.0),
        (
            groups.BELOW,
            {
                "pods.slice/pod1/main/cpu.max": "max 100000",
                "pods.slice/pod1/cpu.max": "150000 100000",
                "pods.slice/cpu.max": "800000 100000",
            },
            1.5,
        ),
        (groups.BELOW, {"pods.slice/pod2/cpu.max": "100000 100000"}, None),
        (
            groups.FIRST,
            {"cpu,cpuacct/cpu.cfs_quota_us": "250000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        (groups.FIRST, {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, None),
        (groups.FIRST, {"cpuset/cpu.cfs_quota_us": "100000", "cpuset/cpu.cfs_period_us": "100000"}, None),
        (groups.BOTH, {"cpu/one/cpu.cfs_quota_us": "-1", "cpu/one/cpu.cfs_period_us": "100000"}, None),
        (groups.BOTH, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0),
        (groups.OUTSIDE, {"cpu.max": "700000 100000", "other/cpu.max": "100000 100000"}, 7.0),
        (groups.STRANGE, {"of c/c/cpu.max": "600000 100000"}, 6.0),
    ],
)
def test_the_quota_is_the_least_of_the_own_group_and_those_around_it(
    kind: tuple[str, str], files: dict[str, str], expected: float | None, tmp_path: Path
) -> None:
    assert quota(groups.file_system(tmp_path, *kind, files)) == expected


@pytest.mark.parametrize("text", ["", "many", "100000", "-1 100000", "100000 0", "1e5 100000", "400000 100000 1"])
def test_what_is_no_quota_limits_nothing(text: str, tmp_path: Path) -> None:
    assert quota(groups.file_system(tmp_path, *groups.OWN_TOP, {"cpu.max": text})) is None


@pytest.mark.parametrize(
    ("cgroup", "mounts"), [("", ""), ("nonsense", "non - sense"), ("0::/", "- cgroup2"), ("", "x")]
)
def test_without_control_groups_there_is_no_quota(cgroup: str, mounts: str, tmp_path: Path) -> None:
    assert quota(groups.file_system(tmp_path, cgroup, mounts, {"cpu.max": "100000 100000"})) is None
    assert quota(tmp_path / "not Linux") is None


@pytest.mark.parametrize(
    ("found", "usable"),
    [
        (Found(64, 64, None), 64),
        (Found(64, 8, None), 8),
        (Found(64, 64, 4.0), 4),
        (Found(64, 64, 2.1), 3),
        (Found(64, 64, 0.1), 1),
        (Found(64, 2, 4.0), 2),
        (Found(64, 64, 0.0), 1),
    ],
)
def test_the_least_counts_and_a_part_of_a_core_as_one(found: Found, usable: int) -> None:
    assert found.usable == usable


def test_it_never_has_more_than_it_may_run_on() -> None:
    assert 1 <= cores.cores() <= len(os.sched_getaffinity(0))
    assert cores.found().affinity == len(os.sched_getaffinity(0))


@pytest.mark.usefixtures("limited")
def test_threads_of_model_decoding_and_thumbnails_follow_the_quota() -> None:
    alone, four, told = EmbedderSettings(), EmbedderSettings(workers=4), EmbedderSettings(model_threads=9)
    assert (alone.model_thread_count, alone.decode_thread_count) == (4, 4)
    assert (four.model_thread_count, four.decode_thread_count) == (1, 1)
    assert told.model_thread_count == 9
    media = Media("memory://cores")
    assert media._cpu._max_workers == 4
    media.close()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Found(64, 64, 4.0), {"usable": 4, "machine": 64, "affinity": 64, "quota": 4.0}),
        (Found(64, 2, None), {"usable": 2, "machine": 64, "affinity": 2, "quota": None}),
        (Found(64, 64, 100.0), None),
        (Found(64, 64, None), None),
    ],
)
@pytest.mark.usefixtures("own_logs")
def test_the_start_tells_what_was_found_where_the_machine_has_more(
    found: Found,
    expected: dict[str, float] | None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("chassis.cores.found", lambda: found)
    role = server.Role(ready=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        server.run(ServiceSettings(port=0, log_style="json"), Idle(), role)

    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"event": "cores"' in line]
    told = [{name: line[name] for name in ("usable", "machine", "affinity", "quota")} for line in lines]
    assert told == ([] if expected is None else [expected])


# Before anything of the service is imported, the machine is a large one and the container small.
PROGRAM = """
import json, os, sys
from chassis import cores
cores.found = lambda: cores.Found(machine=int(sys.argv[1]), affinity=64, quota=3.0)
{start}
print(json.dumps([os.environ.get(name) for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")]))
"""


@pytest.mark.parametrize(
    ("start", "machine", "told", "expected"),
    [
        ("import embedder", 64, {}, ["3", "3"]),
        ("import embedder", 64, {"OMP_NUM_THREADS": "7"}, ["7", "3"]),
        ("import embedder", 3, {}, [None, None]),
        ("import indexer", 64, {}, ["3", None]),
        ("import gateway", 64, {}, ["3", None]),
    ],
)
def test_libraries_that_count_cores_themselves_are_told_before_they_are_loaded(
    start: str, machine: int, told: dict[str, str], expected: list[str | None]
) -> None:
    inherited = {k: v for k, v in os.environ.items() if not k.endswith("_THREADS")}
    command = [sys.executable, "-c", PROGRAM.format(start=start), str(machine)]
    done = subprocess.run(command, env=inherited | told, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_openmp_and_arrow_have_as_many_threads_as_the_indexer_may_use() -> None:
    start = "import indexer.serving.graph, faiss, pyarrow\n"
    start += "assert (faiss.omp_get_max_threads(), pyarrow.cpu_count()) == (3, 3)"
    command = [sys.executable, "-c", PROGRAM.format(start=start), "64"]
    inherited = {k: v for k, v in os.environ.items() if not k.endswith("_THREADS")}
    done = subprocess.run(command, env=inherited, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
