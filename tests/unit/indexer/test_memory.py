"""How much memory an indexer counts on: what its container leaves it, if that is less than the machine has."""

import platform
from pathlib import Path

import psutil
import pytest

from indexer.memory import memory_bytes, release
from tests.unit.chassis import fake_cgroups as groups

MACHINE = memory_bytes(Path("/nowhere"))


@pytest.mark.parametrize(
    ("kind", "files", "expected"),
    [
        (groups.OWN_TOP, {"memory.max": "1000000"}, 1_000_000),
        (groups.OWN_TOP, {"memory.max": "max"}, MACHINE),
        (groups.BELOW, {"pods.slice/pod1/main/memory.max": "max", "pods.slice/memory.max": "2000000"}, 2_000_000),
        (groups.FIRST, {"memory/memory.limit_in_bytes": "3000000"}, 3_000_000),
        (groups.FIRST, {"memory/memory.limit_in_bytes": "9223372036854771712"}, MACHINE),
        (groups.BOTH, {"memory/one/two/memory.limit_in_bytes": "4000000"}, 4_000_000),
    ],
)
def test_the_least_limit_of_the_groups_around_it_counts(
    kind: tuple[str, str], files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    assert memory_bytes(groups.file_system(tmp_path, *kind, files)) == expected


def test_without_limits_it_is_what_the_machine_has() -> None:
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    assert pytest.approx(MACHINE, rel=0.01) == int(total.split()[1]) * 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are not told")
def test_freed_memory_is_given_back_to_the_system() -> None:
    """Blocks that are too small to be mapped by themselves, and one behind them that stays."""
    blocks = [bytearray(b"x" * 50_000) for _ in range(4000)]
    del blocks[:-1]
    before = psutil.Process().memory_info().rss
    release()
    assert psutil.Process().memory_info().rss < before - 150_000_000
