"""A round: load, a kill at a random moment of it, and, once the indexer is back, a look at everything."""

import time
from collections import Counter
from dataclasses import dataclass, field

import grpc
import numpy as np

from chassis.vectors import Array
from tests.chaos.checker import Kind, Recall, Violation
from tests.chaos.client import Client
from tests.chaos.indexer import DownError, Indexer
from tests.chaos.inspection import inspect
from tests.chaos.items import Source
from tests.chaos.ledger import Content, Ledger, State
from tests.chaos.load import Load

VICTIMS = ("indexer", "chroma", "both")
READY_S = 10.0
_LIMIT_S = 60.0


@dataclass
class Outcome:
    """What came of a round or a scenario.

    Attributes:
        name: which.
        ready_s: from the kill until the health check said SERVING and a query was answered; None: nothing was killed.
        writes_s: from the kill until a write was acknowledged.
        written: items in writes that were acknowledged.
        queries: queries answered under load.
        doubtful: items with more than one possible state, before the check.
        items: items there were in the end.
        recall: of the queries of the check.
        violations: promises that were not kept.
        note: what else there is to say.
        aim: what a kill was aimed at, such as a rebuild; empty: at no moment in particular.
        hit: whether it came while that was under way.
        skipped: why this could not be tried here; empty: it was.
    """

    name: str
    ready_s: float | None = None
    writes_s: float | None = None
    written: int = 0
    queries: int = 0
    doubtful: int = 0
    items: int = 0
    recall: Recall = field(default_factory=Recall)
    violations: list[Violation] = field(default_factory=list)
    note: str = ""
    aim: str = ""
    hit: bool = False
    skipped: str = ""

    def took(self, done: Counter[str]) -> None:
        """Takes a load's counts."""
        self.written += sum(n for what, n in done.items() if what not in ("query", "read back"))
        self.queries += done["query"]

    def look(self, indexer: Indexer, ledger: Ledger, seed: int) -> None:
        """Compares everything with the ledger."""
        self.doubtful += len(ledger.doubtful())
        wrong, recall = inspect(indexer.client, ledger, seed)
        self.violations += wrong
        self.recall.add(recall)
        self.items = sum(1 for _ in ledger.items())


def kill_round(number: int, indexer: Indexer, ledger: Ledger, seed: int, ready_s: float = READY_S) -> Outcome:
    """One round of kill -9.

    Raises:
        DownError: the indexer did not come back.
    """
    rng = np.random.default_rng((seed, number))
    # Each of them once in three rounds, in an order of chance.
    order = np.random.default_rng((seed, number // len(VICTIMS), 1)).permutation(VICTIMS)
    victim = str(order[number % len(VICTIMS)])
    outcome = Outcome(f"{number + 1}: {victim}")
    load = Load(indexer.client, ledger, int(rng.integers(2**31)))
    load.start()
    try:
        time.sleep(float(rng.uniform(0.3, 4.0)))  # the random moment
        killed = time.monotonic()
        kill(indexer, victim)
        back(indexer, killed, ledger, outcome, load.seed)
        time.sleep(float(rng.uniform(0.0, 1.0)))
    finally:
        load.stop()
    outcome.took(load.done)
    outcome.violations += load.violations
    if outcome.ready_s is not None and outcome.ready_s > ready_s:
        outcome.violations.append(Violation(Kind.LATE, f"ready again after {outcome.ready_s:.1f} s"))
    outcome.look(indexer, ledger, load.seed)
    outcome.note = ", ".join(f"{n} {why}" for why, n in sorted(load.failed.items()))
    return outcome


def kill(indexer: Indexer, victim: str) -> None:
    """Kills it, and starts the indexer again where it was killed."""
    if victim == "chroma":
        if not indexer.kill_chroma():
            raise DownError("no process of Chroma was there to be killed")
        return
    if victim == "both":
        indexer.kill_both()
    else:
        indexer.kill()
    indexer.start()


def back(indexer: Indexer, killed: float, ledger: Ledger, outcome: Outcome, seed: int) -> None:
    """Waits until queries are answered and writes are acknowledged again; both times go into the outcome."""
    query = Source((seed, 3000)).vectors(1)
    indexer.wait_until_serving()
    indexer.wait("answered query", lambda: _answered(indexer.client, query), _LIMIT_S)
    outcome.ready_s = time.monotonic() - killed
    # An id of nobody else's.
    states: dict[str, State] = {f"w0-{seed:08x}-probe": Content(query[0], {"n": 1.5})}
    ledger.sending(states, time.monotonic())
    indexer.wait("acknowledged write", lambda: _acknowledged(indexer.client, states), _LIMIT_S)
    ledger.acknowledged(states, time.monotonic())
    outcome.writes_s = time.monotonic() - killed


def _answered(client: Client, query: Array) -> bool:
    try:
        return bool(client.query(list(query), None, 1)[0])
    except grpc.RpcError:
        return False


def _acknowledged(client: Client, states: dict[str, State]) -> bool:
    try:
        client.upsert({item_id: state for item_id, state in states.items() if state is not None})
    except grpc.RpcError:
        return False
    return True
