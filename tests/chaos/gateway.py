"""A gateway under mixed load while what is behind it is killed, and the networks to it and its clients' are harmed."""

import shutil
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from likeness.gateway.v1 import gateway_pb2, gateway_pb2_grpc

from tests.chaos.checker import Kind, Violation
from tests.chaos.gateway_load import OWN_DEADLINE, OWN_NETWORK, Load
from tests.chaos.gateway_rig import BEHIND, COLLECTION, Harm, Rig
from tests.chaos.gateway_workers import WORKERS, not_as_edited
from tests.chaos.rounds import Outcome
from tests.processes import eventually

# From the moment when everything is mended until an answer comes that needs all of it.
_READY_S = 30.0
# How long a harm may last: some calls' deadlines pass meanwhile.
_LONGEST_S = 12.0
# Until a harm has hit, and has been seen by a caller where that is certain to come.
_HIT_S = 30.0
# The gateway's memory after the first rounds may grow by so much, and likewise its peak: what it holds for streams
# comes and goes.
_GROWTH_MB = 64.0
_WARM_ROUNDS = 2
_CHUNK = 1_000

HARMS = (
    *(Harm("kill", whom) for whom in (*BEHIND, "chroma")),
    *(Harm(how, whom) for how in ("refuse", "silence", "delay", "tear") for whom in (*BEHIND, "all", "client")),
)


@dataclass
class Suffered(Outcome):
    """What came of a round.

    Attributes:
        hits: how often the harm was really done, to whom it was done the least: connections reset, refused or cut off
            midway, blocks of bytes lost or held up, processes killed.
        touched: calls that were under way when it began, or began while it lasted.
        failures: of those that began while it lasted, why, and how many.
        done: calls that were answered, by what they were.
    """

    hits: int = 0
    touched: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)


@dataclass
class _Kept:
    """What was acknowledged in all rounds: stored, deleted, and set to a number."""

    stored: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    edited: dict[str, int] = field(default_factory=dict)


def expected(harm: Harm) -> set[str]:
    """What some caller is certain to be told while it lasts, one of these; none: all may go well."""
    if harm.whom == "client":
        return {"silence": {OWN_DEADLINE}, "refuse": {OWN_NETWORK}, "tear": {OWN_NETWORK}}.get(harm.how, set())
    away = {f"{name.upper()}_UNAVAILABLE" for name in (BEHIND if harm.whom == "all" else (harm.whom,))}
    if harm.how == "refuse" or (harm.how == "kill" and harm.whom in BEHIND):
        return away
    return {OWN_DEADLINE, "DEADLINE_EXCEEDED"} if harm.how == "silence" else set()


def rounds(folder: Path, logs: Path, seed: int, n: int) -> Generator[Outcome, None, None]:
    """So many rounds, each harm once in as many as there are, in an order of chance."""
    shutil.rmtree(folder, ignore_errors=True)
    with rig(folder, logs / "gateway") as started:
        orders = (np.random.default_rng((seed, turn)).permutation(len(HARMS)) for turn in range(n))
        harms = [HARMS[i] for order in orders for i in order][:n]
        yield from suffer(started, harms, seed, _LONGEST_S)


@contextmanager
def rig(folder: Path, logs: Path) -> Iterator[Rig]:
    """The services, with a collection in which there is something to find."""
    with Rig(folder, logs) as started:
        load = Load(started, 0, [])
        with grpc.insecure_channel(started.address) as channel:
            start = gateway_pb2.IndexStart(collection=COLLECTION, create_collection=True)
            messages = [gateway_pb2.IndexImagesRequest(start=start)]
            for number in range(8):
                messages.append(gateway_pb2.IndexImagesRequest(item=load.item(number, load.new_id(99, number))))
            for answer in gateway_pb2_grpc.SearchServiceStub(channel).IndexImages(iter(messages), timeout=60):
                if answer.HasField("result"):
                    load.take(answer.result)
        assert len(load.stored) == 8, load.violations
        yield started


def suffer(rig: Rig, harms: list[Harm], seed: int, longest_s: float) -> Generator[Suffered, None, None]:
    """A round for each harm; what was acknowledged in any of them has to be so afterwards.

    Args:
        rig: the services.
        harms: what is done.
        seed: of everything that is random.
        longest_s: a harm lasts up to so long, and longer until it has hit, and a call has failed that is certain to.
    """
    kept = _Kept()
    warm_mb = warm_peak_mb = 0.0
    rig.peak_mb()
    for number, harm in enumerate(harms):
        rng = np.random.default_rng((seed, number, 5))
        outcome = Suffered(f"gateway {number + 1}: {harm}")
        load = Load(rig, int(rng.integers(1, 2**31)), list(WORKERS))
        load.start()
        try:
            eventually(load.at_work, _HIT_S)
            time.sleep(float(rng.uniform(0, 0.5)))  # the random moment
            _harm(rig, harm, load, outcome, rng, longest_s=longest_s)
            rig.mend()
            mended = time.monotonic()
            rig.wait_until_answering()
            outcome.ready_s = time.monotonic() - mended
        finally:
            load.stop()
        outcome.written, outcome.queries, outcome.done = len(load.stored), load.done["search"], load.done
        outcome.violations += load.violations
        kept.stored |= load.stored
        kept.deleted |= load.deleted
        kept.edited |= load.edited
        outcome.items = len(kept.stored)
        outcome.violations += _not_kept(rig, kept)
        if outcome.ready_s > _READY_S:
            outcome.violations.append(Violation(Kind.LATE, f"answers again after {outcome.ready_s:.1f} s"))
        memory, peak = rig.rss_mb(), rig.peak_mb()
        if number < _WARM_ROUNDS:
            warm_mb, warm_peak_mb = max(warm_mb, memory), max(warm_peak_mb, peak)
        elif memory > warm_mb + _GROWTH_MB or peak > warm_peak_mb + _GROWTH_MB:
            what = f"from {warm_mb:.0f} to {memory:.0f} MB, its peak from {warm_peak_mb:.0f} to {peak:.0f} MB"
            outcome.violations.append(Violation(Kind.UNAVAILABLE, f"the gateway's memory went {what}"))
        reasons = ", ".join(f"{n} {why}" for why, n in sorted(load.failed_since(0).items())) or "no errors"
        met = f"{outcome.hits} hits, {outcome.touched} calls met it"
        outcome.note = f"{memory:.0f} MB, peak {peak:.0f}; {met}; {reasons}"
        yield outcome


def _harm(rig: Rig, harm: Harm, load: Load, outcome: Suffered, rng: np.random.Generator, *, longest_s: float) -> None:
    """Does it, until it has hit and been seen; counts what it met."""
    before, certain = rig.hits(harm), expected(harm)
    outcome.touched = load.under_way() - load.begun
    began = time.monotonic()
    rig.do(harm, rng)

    def hits() -> int:
        return min(now - then for now, then in zip(rig.hits(harm), before, strict=True))

    time.sleep(float(rng.uniform(0.5, longest_s)))
    if not eventually(lambda: hits() > 0, _HIT_S):
        outcome.violations.append(Violation(Kind.UNAVAILABLE, "the harm has hit nothing"))
    if certain and not eventually(lambda: not certain.isdisjoint(load.failed_since(began)), _HIT_S):
        seen = dict(load.failed_since(began))
        outcome.violations.append(Violation(Kind.UNAVAILABLE, f"no call was told any of {certain}, but {seen}"))
    outcome.hits, outcome.failures = hits(), load.failed_since(began)
    outcome.touched += load.begun


def _not_kept(rig: Rig, kept: _Kept) -> Iterator[Violation]:
    """What was acknowledged, and is not so."""
    found = {item.id: item for item in _found(rig, {*kept.stored, *kept.deleted})}
    for item_id in sorted(kept.stored - found.keys()):
        yield Violation(Kind.LOST, f"{item_id} was acknowledged and is gone")
    for item_id in sorted(kept.deleted & found.keys()):
        yield Violation(Kind.UNDELETED, f"{item_id} was deleted and is there")
    for item_id, number in kept.edited.items():
        if item_id in found and (why := not_as_edited(found[item_id], number)):
            yield Violation(Kind.ALTERED, why)


def _found(rig: Rig, ids: Iterable[str]) -> Iterator[gateway_pb2.Item]:
    every = sorted(ids)
    with grpc.insecure_channel(rig.address) as channel:
        stub = gateway_pb2_grpc.SearchServiceStub(channel)
        for begin in range(0, len(every), _CHUNK):
            request = gateway_pb2.GetItemsRequest(collection=COLLECTION, ids=every[begin : begin + _CHUNK])
            yield from stub.GetItems(request, timeout=60).items
