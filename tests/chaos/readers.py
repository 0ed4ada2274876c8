"""One writer and two readers: killed, stopped for a while and cut off from Chroma, under load.

After each round nothing acknowledged is lost, and both readers are equal to the writer within a bound.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from tests.chaos.base import contents
from tests.chaos.checker import Found, Kind, Violation, alike, check_items
from tests.chaos.client import Client
from tests.chaos.fleet import LEASE_S, STORE_TIMEOUT_S, Fleet
from tests.chaos.indexer import DownError
from tests.chaos.inspection import inspect
from tests.chaos.items import Source
from tests.chaos.ledger import Content, Ledger, State
from tests.chaos.load import EXPECTED, Load
from tests.chaos.rounds import Outcome
from tests.chaos.supervised import Supervised

# A look of a reader, a beat of the writer, and a comparison of everything if the writer is another.
WITHIN_S = 20.0
LAG_S = 10.0
# A request that was cut off may be carried out until then; and then the writer has to have a look.
_LATE_S = STORE_TIMEOUT_S + 10.0
# Readers that are cut off answer as before.
_BEHIND_S = 120.0
_BACK_S = 90.0
_FENCED = {"READ_ONLY"}


@dataclass(frozen=True)
class Harm:
    """What is done in a round.

    Attributes:
        how: kill, pause or cut.
        whom: writer, reader or chroma.
        long: longer than the lease, so that another writer takes over.
    """

    how: str
    whom: str
    long: bool = False

    def __str__(self) -> str:
        return f"{self.how} {self.whom}" + (", long" if self.long else "")


HARMS = (
    *(Harm("kill", whom) for whom in ("writer", "reader", "chroma")),
    *(Harm(how, whom) for how in ("pause", "cut") for whom in ("writer", "reader", "chroma")),
    Harm("pause", "writer", long=True),
    Harm("cut", "writer", long=True),
)


def follow(folder: Path, logs: Path, seed: int, rounds: int, base: int) -> Generator[Outcome, None, None]:
    """The rounds, each harm once in as many as there are, in an order of chance."""
    ledger = Ledger()
    ledger.preload(contents(base))
    latest = ""
    with Fleet(base, folder, logs) as fleet:
        for number in range(rounds):
            order = np.random.default_rng((seed, number // len(HARMS), 2)).permutation(len(HARMS))
            harm = HARMS[order[number % len(HARMS)]]
            outcome = Outcome(f"readers {number + 1}: {harm}")
            _round(fleet, ledger, harm, outcome, np.random.default_rng((seed, number, 3)))
            latest = _change_collections(fleet, number, latest)
            _compare(fleet, ledger, outcome, seed + number)
            yield outcome


def _round(fleet: Fleet, ledger: Ledger, harm: Harm, outcome: Outcome, rng: np.random.Generator) -> None:
    load = Load(
        fleet.writer.client,
        ledger,
        int(rng.integers(2**31)),
        readers=[reader.client for reader in fleet.readers],
        behind_s=_BEHIND_S,
        expected=EXPECTED | _FENCED,
    )
    load.start()
    try:
        time.sleep(float(rng.uniform(0.5, 3.0)))  # the random moment
        began = time.monotonic()
        fenced = _do(fleet, harm, load, rng)
        _write_again(fleet, ledger, load.seed, began, outcome)
        if fenced is not None:
            _ended(fenced, outcome)
        time.sleep(float(rng.uniform(0.2, 1.0)))
    finally:
        load.stop()
    outcome.took(load.done)
    outcome.violations += load.violations
    outcome.note = ", ".join(f"{n} {why}" for why, n in sorted(load.failed.items()))


def _do(fleet: Fleet, harm: Harm, load: Load, rng: np.random.Generator) -> Supervised | None:
    """Does it and undoes it; returns the writer that another has taken over from, if one has."""
    members = {"writer": [fleet.writer], "reader": [fleet.readers[int(rng.integers(2))]], "chroma": fleet.members}
    victims = members[harm.whom]
    supervised = fleet.chroma if harm.whom == "chroma" else victims[0].supervised
    if harm.how == "kill":
        supervised.kill()
        return None
    if harm.how == "pause":
        process = supervised.pause()
        undo: Callable[[], None] = process.resume
    else:
        silent = bool(rng.integers(2))
        for victim in victims:
            victim.proxy.cut(silent=silent)

        def undo() -> None:
            for victim in victims:
                victim.proxy.mend()

    if not harm.long:
        time.sleep(float(rng.uniform(0.3, 0.8 * LEASE_S)))
        undo()
        return None
    before = fleet.writer.leave()
    before.abandon()
    try:
        fleet.writer, fleet.standby = fleet.standby, fleet.writer
        fleet.writer.start()
        load.client = fleet.writer.client
        fleet.wait("take-over", lambda: _writes(fleet.writer.client), _BACK_S)
    finally:
        undo()
    return before


def _writes(client: Client) -> bool:
    try:
        client.update({"nobody": {"n": 1.0}})
    except grpc.RpcError:
        return False
    return True


def _ended(before: Supervised, outcome: Outcome) -> None:
    """The one that was taken over from notices, and exits with 1."""
    deadline = time.monotonic() + _BACK_S
    while not before.exits and time.monotonic() < deadline:
        time.sleep(0.05)
    if before.exits[:1] != [1]:
        outcome.violations.append(
            Violation(Kind.UNAVAILABLE, f"the writer before ended with {before.exits[:1]}, not 1")
        )
    before.end()


def _write_again(fleet: Fleet, ledger: Ledger, seed: int, began: float, outcome: Outcome) -> None:
    """Waits until a write is acknowledged; an id of nobody else's."""
    query = Source((seed, 3000)).vectors(1)
    states: dict[str, State] = {f"w0-{seed:08x}-probe": Content(query[0], {"n": 1.5})}
    ledger.sending(states, time.monotonic())

    def acknowledged() -> bool:
        try:
            fleet.writer.client.upsert({i: s for i, s in states.items() if s is not None})
        except grpc.RpcError:
            return False
        return True

    fleet.wait("acknowledged write", acknowledged, _BACK_S)
    ledger.acknowledged(states, time.monotonic())
    outcome.writes_s = time.monotonic() - began


def _change_collections(fleet: Fleet, number: int, before: str) -> str:
    """Makes a collection, moves the alias there, and deletes the one before; returns its name."""
    name = f"latest-{number}"
    fleet.writer.client.make_latest(name, before, {f"i{i}": c for i, c in enumerate(Source((number, 9)).contents(20))})
    return name


def _compare(fleet: Fleet, ledger: Ledger, outcome: Outcome, seed: int) -> None:
    outcome.doubtful += len(ledger.doubtful())
    writer = fleet.writer.client
    since = time.monotonic() - _LATE_S
    wrong, recall = inspect(writer, ledger, seed, since)
    outcome.violations += wrong
    outcome.recall.add(recall)
    truth = [(writer.list_all(), writer.standing())]
    outcome.items = len(truth[0][0])
    began = time.monotonic()
    lags: list[float] = []
    for reader in fleet.readers:
        differences = ["it does not answer"]

        def equal(client: Client = reader.client, differences: list[str] = differences) -> bool:
            differences[:] = _differences(client, *truth[0])
            if differences and ledger.sent_after(since):  # readers see first what comes late
                truth[0] = writer.list_all(), writer.standing()
            return not differences

        try:
            fleet.wait("equality", equal, WITHIN_S)
            fleet.wait("small lag", lambda client=reader.client: client.lag_s() < LAG_S, WITHIN_S)  # type: ignore[misc]
            lags.append(reader.client.lag_s())
        except DownError as error:
            outcome.violations.append(Violation(Kind.LATE, f"{reader.name}: {error}: {'; '.join(differences[:3])}"))
    outcome.ready_s = time.monotonic() - began
    outcome.violations += check_items(ledger, truth[0][0], len(truth[0][0]))[0]  # it may have been listed again
    equal_after = f"readers equal after {outcome.ready_s:.1f} s, lag {max(lags, default=-1):.1f} s"
    outcome.note = ", ".join(filter(None, [equal_after, outcome.note]))


def _differences(client: Client, truth: list[Found], standing: object) -> list[str]:
    """What a reader has otherwise than the writer."""
    try:
        found, there = client.list_all(), client.standing()
    except grpc.RpcError as error:
        return [f"it does not answer: {error}"]
    differences = [] if there == standing else [f"{there} instead of {standing}"]
    if [item.id for item in found] != [item.id for item in truth]:
        missing = {item.id for item in truth} - {item.id for item in found}
        more = {item.id for item in found} - {item.id for item in truth}
        return [*differences, f"{len(missing)} items are missing, {len(more)} too many: {sorted(missing | more)[:5]}"]
    pairs = zip(found, truth, strict=True)
    return differences + [f"{mine.id} is otherwise" for mine, other in pairs if not alike(mine.content, other.content)]
