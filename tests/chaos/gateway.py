"""A gateway under mixed load while what is behind it is killed, and the networks to it are cut, slow or torn."""

import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from likeness.gateway.v1 import gateway_pb2, gateway_pb2_grpc

from tests.chaos.checker import Kind, Violation
from tests.chaos.gateway_load import Load
from tests.chaos.gateway_rig import BEHIND, COLLECTION, Rig
from tests.chaos.rounds import Outcome
from tests.proxy import random_sizes

# From the moment when everything is mended until an answer comes that needs all of it.
_READY_S = 30.0
# How long a harm may last: some calls' deadlines pass meanwhile.
_LONGEST_S = 12.0
# The gateway's memory after the first rounds may grow by so much; what it holds for streams comes and goes.
_GROWTH_MB = 64.0
_WARM_ROUNDS = 2
_CHUNK = 1_000


@dataclass(frozen=True)
class Harm:
    """What is done in a round.

    Attributes:
        how: kill, refuse (connections are reset and refused), silence (what is sent is lost), delay, or tear
            (connections are cut off after random numbers of bytes).
        whom: embedder, indexer, chroma, or all: both networks.
    """

    how: str
    whom: str

    def __str__(self) -> str:
        return f"{self.how} {self.whom}"


HARMS = (
    *(Harm("kill", whom) for whom in (*BEHIND, "chroma")),
    *(Harm(how, whom) for how in ("refuse", "silence", "delay", "tear") for whom in (*BEHIND, "all")),
)


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
        load = Load(started.address, 0)
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


def suffer(rig: Rig, harms: list[Harm], seed: int, longest_s: float) -> Generator[Outcome, None, None]:
    """A round for each harm; nothing acknowledged in any of them may be missing afterwards.

    Args:
        rig: the services.
        harms: what is done.
        seed: of everything that is random.
        longest_s: after that at the latest the harm is undone.
    """
    stored: set[str] = set()
    warm_mb = 0.0
    for number, harm in enumerate(harms):
        rng = np.random.default_rng((seed, number, 5))
        outcome = Outcome(f"gateway {number + 1}: {harm}")
        load = Load(rig.address, int(rng.integers(1, 2**31)))
        load.start()
        try:
            time.sleep(float(rng.uniform(0.3, 1.0)))  # the random moment
            _do(rig, harm, rng)
            time.sleep(float(rng.uniform(0.5, longest_s)))
            rig.mend()
            mended = time.monotonic()
            rig.wait_until_answering()
            outcome.ready_s = time.monotonic() - mended
        finally:
            load.stop()
        outcome.written, outcome.queries = len(load.stored), load.done["search"]
        outcome.violations += load.violations
        stored |= load.stored
        outcome.items = len(stored)
        outcome.violations += [Violation(Kind.LOST, f"{i} was acknowledged and is gone") for i in _missing(rig, stored)]
        if outcome.ready_s > _READY_S:
            outcome.violations.append(Violation(Kind.LATE, f"answers again after {outcome.ready_s:.1f} s"))
        memory = rig.rss_mb()
        if number < _WARM_ROUNDS:
            warm_mb = max(warm_mb, memory)
        elif memory > warm_mb + _GROWTH_MB:
            what = f"the gateway's memory went from {warm_mb:.0f} to {memory:.0f} MB"
            outcome.violations.append(Violation(Kind.UNAVAILABLE, what))
        reasons = ", ".join(f"{n} {why}" for why, n in sorted(load.failed.items()))
        outcome.note = f"{memory:.0f} MB; {reasons or 'no errors'}"
        yield outcome


def _do(rig: Rig, harm: Harm, rng: np.random.Generator) -> None:
    if harm.how == "kill":
        rig.kill(harm.whom)
        return
    for name in BEHIND if harm.whom == "all" else (harm.whom,):
        network = rig.networks[name]
        if harm.how == "delay":
            network.delay(float(rng.uniform(0.1, 0.6)))
        elif harm.how == "tear":
            network.cut_after(random_sizes(int(rng.integers(2**31)), 20, 100_000))
        else:
            network.cut(silent=harm.how == "silence")


def _missing(rig: Rig, stored: set[str]) -> list[str]:
    ids = sorted(stored)
    missing: list[str] = []
    with grpc.insecure_channel(rig.address) as channel:
        stub = gateway_pb2_grpc.SearchServiceStub(channel)
        for begin in range(0, len(ids), _CHUNK):
            request = gateway_pb2.GetItemsRequest(collection=COLLECTION, ids=ids[begin : begin + _CHUNK])
            missing += stub.GetItems(request, timeout=60).missing_ids
    return missing
