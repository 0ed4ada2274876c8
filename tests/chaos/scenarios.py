"""Kills at moments of interest: while a serving snapshot is written, and while an index is built anew."""

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from functools import partial
from itertools import islice
from pathlib import Path

import grpc
import numpy as np

from tests.chaos.base import contents, copied
from tests.chaos.client import Client
from tests.chaos.indexer import Indexer
from tests.chaos.items import Source
from tests.chaos.ledger import Content, Ledger, State
from tests.chaos.rounds import Outcome, back

# Enough for a snapshot and a rebuild to take long enough to be hit.
BASE = 8_000
_WAIT_S = 60.0
_TRIES = 3
_CHUNK = 256
# The setting's default, and the fewest dead rows that count.
_DEAD_SHARE, _FEWEST_DEAD = 0.2, 1_000


def during_snapshot(folder: Path, logs: Path, seed: int) -> Generator[Outcome, None, None]:
    """Kills the indexer as soon as the name of a half-written snapshot appears: on SIGTERM, and while it serves."""
    for number in range(_TRIES):
        for how in ("stopping", "serving"):
            rng = np.random.default_rng((seed, number))
            outcome = Outcome(f"snapshot, {how} {number + 1}", aim=f"snapshot, {how}")
            ledger = _ledger()
            # A share that a few seconds of writes pass; the other condition is 2,000 rows.
            settings = {"LIKENESS_SNAPSHOT_SHARE": "0.05"}
            with Indexer(copied(BASE, folder), logs, **settings) as indexer:
                indexer.start()
                before = _partial(indexer)
                writes = threading.Thread(target=_relabel_until_killed, args=(indexer.client, ledger, rng, outcome))
                if how == "stopping":
                    _relabel(indexer.client, ledger, 1_000, rng, outcome)
                    indexer.terminate()
                else:
                    writes.start()
                _watch(partial(_appeared, indexer, before), _WAIT_S)
                time.sleep(float(rng.uniform(0, 0.05)))
                killed = _kill(indexer, outcome, partial(_appeared, indexer, set()))
                if how == "serving":
                    writes.join()
                _look(indexer, ledger, outcome, seed, killed)
            yield outcome


def during_rebuild(folder: Path, logs: Path, seed: int) -> Generator[Outcome, None, None]:
    """Kills the indexer once enough rows are dead for a rebuild, and before that has cleared them away."""
    for number in range(_TRIES):
        rng = np.random.default_rng((seed, number))
        outcome, ledger = Outcome(f"rebuild {number + 1}", aim="rebuild"), _ledger()
        with Indexer(copied(BASE, folder), logs) as indexer:
            indexer.start()
            _relabel(indexer.client, ledger, 2_600, rng, outcome)
            indexer.wait("dead rows", partial(_much_is_dead, indexer), _WAIT_S)
            time.sleep(float(rng.uniform(0.1, 1.5)))
            under_way = _much_is_dead(indexer)
            _look(indexer, ledger, outcome, seed, _kill(indexer, outcome, partial(bool, under_way)))
            # And one that is left alone comes to its end.
            _relabel(indexer.client, ledger, 2_600, rng, outcome)
            indexer.wait("end of the rebuild", partial(_little_is_dead, indexer), _WAIT_S, 0.2)
            outcome.look(indexer, ledger, seed + 1)
        yield outcome


def _kill(indexer: Indexer, outcome: Outcome, hit: Callable[[], bool]) -> float:
    """Kills it and says whether the moment was the right one; returns when."""
    killed = time.monotonic()
    indexer.kill()
    outcome.hit = hit()
    outcome.note = "hit" if outcome.hit else "missed: it was over already"
    return killed


def _look(indexer: Indexer, ledger: Ledger, outcome: Outcome, seed: int, killed: float) -> None:
    indexer.start()
    back(indexer, killed, ledger, outcome, seed)
    outcome.look(indexer, ledger, seed)


def _ledger() -> Ledger:
    ledger = Ledger()
    ledger.preload(contents(BASE))
    return ledger


def _relabel_until_killed(client: Client, ledger: Ledger, rng: np.random.Generator, outcome: Outcome) -> None:
    with contextlib.suppress(grpc.RpcError):
        while True:
            _relabel(client, ledger, 2_500, rng, outcome)


def _relabel(client: Client, ledger: Ledger, n: int, rng: np.random.Generator, outcome: Outcome) -> None:
    """Updates the metadata of so many items, which leaves as many dead rows, and adds a few new ones."""
    ids = sorted(item_id for item_id, _ in ledger.items())
    chosen = iter([ids[i] for i in rng.choice(len(ids), n, replace=False)])
    while chunk := list(islice(chosen, _CHUNK)):
        changed: dict[str, State] = {}
        for item_id in chunk:
            (state,) = ledger.possible(item_id)  # nobody else writes
            assert state is not None
            changed[item_id] = Content(state.vector, {**state.metadata, "n": float(rng.uniform(0, 1000))})
        ledger.sending(changed, time.monotonic())
        missing = client.update({i: {"n": s.metadata["n"]} for i, s in changed.items() if s is not None})
        assert not missing, missing
        ledger.acknowledged(changed, time.monotonic())
        outcome.written += len(changed)
    added: dict[str, State] = {
        f"w1-{int(rng.integers(2**31)):08x}-{i:06d}": content
        for i, content in enumerate(Source((int(rng.integers(2**31)),)).contents(16))
    }
    ledger.sending(added, time.monotonic())
    client.upsert({item_id: state for item_id, state in added.items() if state is not None})
    ledger.acknowledged(added, time.monotonic())
    outcome.written += len(added)


def _much_is_dead(indexer: Indexer) -> bool:
    status = indexer.client.status()
    assert status is not None
    return bool(status.dead_rows >= max(_FEWEST_DEAD, _DEAD_SHARE * status.rows))


def _little_is_dead(indexer: Indexer) -> bool:
    return not _much_is_dead(indexer)


def _partial(indexer: Indexer) -> set[Path]:
    """The snapshots that are being written."""
    return set(indexer.serving.rglob("*.partial"))


def _appeared(indexer: Indexer, before: set[Path]) -> bool:
    return bool(_partial(indexer) - before)


def _watch(holds: Callable[[], bool], limit_s: float) -> None:
    """Looks as often as it can, since what it waits for lasts fractions of a second; gives up quietly."""
    deadline = time.monotonic() + limit_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.001)
