"""The disk under the data directory fills up, and is given room again."""

import contextlib
import os
import subprocess
import time
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path

import grpc

from tests.chaos.checker import Kind, Violation
from tests.chaos.client import reason
from tests.chaos.indexer import Indexer, free_bytes
from tests.chaos.inspection import inspect
from tests.chaos.items import Source
from tests.chaos.ledger import Ledger, State
from tests.chaos.rounds import Outcome

SIZE_MB, LEAST_FREE_MB = 320, 64
_ITEMS, _CALL = 1_200, 64
_MIB = 2**20
_RECOVERED_S = 60.0


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A disk of SIZE_MB in memory, mounted on a folder; None where it cannot be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        # Lazily, if something still looks at it: it must not outlive this process.
        if subprocess.run(["umount", folder], capture_output=True, check=False).returncode != 0:
            subprocess.run(["umount", "--lazy", folder], check=True)


def fills_up(folder: Path, logs: Path, seed: int) -> Generator[Outcome, None, None]:
    """Little room left, and none at all: writes are refused, reads go on, room brings the writes back."""
    with small_disk(folder) as disk:
        if disk is None:
            yield Outcome("disk full", skipped="no tmpfs can be mounted here (needs root)")
            return
        ledger = Ledger()
        writes = _Writes(ledger, seed)
        settings = {"LIKENESS_MIN_FREE_DISK_MB": str(LEAST_FREE_MB)}
        with Indexer(disk / "data", logs, **settings) as indexer:
            indexer.start()
            indexer.client.create()
            for _ in range(_ITEMS // _CALL):
                writes.one(indexer)
            filler = disk / "filler"
            for name, left_mb in (("disk nearly full", LEAST_FREE_MB * 3 // 4), ("disk full to the brim", 0)):
                outcome, before = Outcome(name), writes.acknowledged
                # The indexer has just looked at the free space: its next write may run into the end of the disk.
                writes.one(indexer)
                _fill(filler, free_bytes(disk) - left_mb * _MIB)
                _refused(indexer, writes, outcome)
                # Reads go on, and none of what was refused is seen.
                outcome.look(indexer, ledger, seed)
                outcome.violations += _deletes(indexer, ledger, taken=left_mb > 0)
                filler.unlink()
                freed = time.monotonic()
                indexer.wait("acknowledged write", partial(_taken, indexer, writes), _RECOVERED_S, pause_s=0.1)
                outcome.writes_s = time.monotonic() - freed
                outcome.written = writes.acknowledged - before
                outcome.look(indexer, ledger, seed + 1)
                yield outcome
            outcome = Outcome("restart after a full disk")
            indexer.stop()
            indexer.forget_snapshots()
            outcome.ready_s = indexer.start()
            wrong, outcome.recall = inspect(indexer.client, ledger, seed + 2)
            outcome.violations += wrong
            yield outcome


class _Writes:
    """New items, a call at a time."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self._ledger, self._seed = ledger, seed
        self._source = Source((seed, 4000))
        self._made = 0
        self.acknowledged = 0

    def one(self, indexer: Indexer) -> None:
        """Writes a call's worth; raises grpc.RpcError, and then the items are in doubt."""
        contents = self._source.contents(_CALL)
        states: dict[str, State] = {f"disk-{self._made + i:06d}": content for i, content in enumerate(contents)}
        self._made += len(contents)
        self._ledger.sending(states, time.monotonic())
        indexer.client.upsert({item_id: state for item_id, state in states.items() if state is not None})
        self._ledger.acknowledged(states, time.monotonic())
        self.acknowledged += len(states)


def _refused(indexer: Indexer, writes: _Writes, outcome: Outcome) -> None:
    """Every write is refused as STORE_FULL, at once or, where the disk filled up under a write, after that one."""
    reasons = []
    for _ in range(5):
        try:
            writes.one(indexer)
            reasons.append("taken")
        except grpc.RpcError as error:
            reasons.append(reason(error))
        time.sleep(0.3)  # free space is looked at twice a second at most
    outcome.note = ", ".join(reasons)
    if reasons[-3:] != ["STORE_FULL"] * 3:
        outcome.violations.append(Violation(Kind.UNAVAILABLE, f"writes to a full disk: {outcome.note}"))


def _taken(indexer: Indexer, writes: _Writes) -> bool:
    try:
        writes.one(indexer)
    except grpc.RpcError:
        return False
    return True


def _deletes(indexer: Indexer, ledger: Ledger, *, taken: bool) -> list[Violation]:
    """Deletions are taken for a while after writes are refused, and then refused as well."""
    states: dict[str, State] = dict.fromkeys([item_id for item_id, _ in ledger.items()][:8])
    ledger.sending(states, time.monotonic())
    try:
        indexer.client.delete(states)
    except grpc.RpcError as error:
        if not taken and reason(error) == "STORE_FULL":
            return []
        return [Violation(Kind.UNAVAILABLE, f"a deletion was refused with {reason(error)}")]
    ledger.acknowledged(states, time.monotonic())
    return [] if taken else [Violation(Kind.UNAVAILABLE, "a deletion was taken with no room at all")]


def _fill(filler: Path, size: int) -> None:
    """A file of so many bytes, or of as many as there is room for."""
    with filler.open("wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(size, 1))
        return
    with filler.open("ab") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(_MIB))
            file.flush()
