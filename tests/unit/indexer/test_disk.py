import time
from pathlib import Path

import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.disk import DiskGuard

MIB = 2**20


def test_a_disk_with_room_lets_writes_pass(tmp_path: Path) -> None:
    DiskGuard(tmp_path, 1).check()


def test_an_almost_full_disk_is_refused_with_what_to_do_and_taken_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, free = [100.0], [99 * MIB]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    guard = DiskGuard(tmp_path, 100 * MIB, lambda path: free[0])
    with pytest.raises(LikenessError) as caught:
        guard.check()
    assert caught.value.reason == error_pb2.REASON_STORE_FULL
    for part in (str(tmp_path), "99 MiB", "100", "LIKENESS_MIN_FREE_DISK_MB"):
        assert part in caught.value.message
    free[0] = 100 * MIB
    clock[0] += 0.5
    guard.check()


def test_deletions_are_taken_for_longer_than_writes(tmp_path: Path) -> None:
    guard = DiskGuard(tmp_path, 100 * MIB, lambda path: 40 * MIB)
    with pytest.raises(LikenessError):
        guard.check()
    guard.check(deleting=True)
    with pytest.raises(LikenessError, match="31 MiB free, of which 32 have to stay free for deletions"):
        DiskGuard(tmp_path, 100 * MIB, lambda path: 31 * MIB).check(deleting=True)
    DiskGuard(tmp_path, 8 * MIB, lambda path: 9 * MIB).check(deleting=True)
    with pytest.raises(LikenessError, match="8 have to stay free"):
        DiskGuard(tmp_path, 8 * MIB, lambda path: 7 * MIB).check(deleting=True)
    DiskGuard(tmp_path, 0, lambda path: 0).check(deleting=True)


def test_the_disk_is_looked_at_at_most_twice_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks = [100.0], [0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def free(_: Path) -> int:
        looks[0] += 1
        return MIB

    guard = DiskGuard(tmp_path, MIB, free)
    for _ in range(100):
        guard.check()
        clock[0] += 0.01
    assert looks[0] == 2
