"""Section 3: more calls than it can take, and interactive calls beside bulk that takes all it has."""

from typing import Any

from benchmarks.desk import Answer
from benchmarks.embedder.contenders import Clients, Field
from benchmarks.embedder.figures import median
from benchmarks.embedder.methods import PICTURE
from benchmarks.embedder.processes import FailedError, Service
from benchmarks.embedder.scope import Scope
from benchmarks.embedder.turns import Row, row

LOADS = (0.5, 0.8, 1.0, 2.0, 5.0)
QUICK_LOADS = (0.8, 5.0)
_CONCURRENCY = 32
_BULK_CONCURRENCY = 64


def run(scope: Scope) -> dict[str, Any]:
    """Measures capacity, then arrivals at multiples of it, then interactive latency beside bulk."""
    with Field(scope) as field:
        service, clients = field.service(), field.clients()
        capacity_of = clients.closed(service, PICTURE, _CONCURRENCY, scope, scope.load_s / 2)
        capacities = [capacity_of()["per_s"]]
        steps: dict[float, list[Answer]] = {load: [] for load in (QUICK_LOADS if scope.quick else LOADS)}
        for number in range(scope.load_rounds):
            for load, answers in steps.items():
                # The machine's speed drifts: each step is a multiple of what was measured last, and is compared with
                # what was measured before and after it.
                before = capacities[-1]
                answer = clients.ask(
                    service,
                    how="open",
                    kind=PICTURE,
                    per_s=load * before,
                    ramp_s=2 * scope.ramp_s,
                    seconds=scope.load_s,
                    seed=number,
                )
                capacities.append(capacity_of()["per_s"])
                around = (before + capacities[-1]) / 2
                answers.append({"capacity_per_s": around, "goodput": answer["per_s"] / around, **answer})
                print(f"  load × {load:g}: {_said(answers[-1])}", flush=True)
        rows = [_over_rounds(load, answers) for load, answers in steps.items()]
        embed = _beside("embed", service, clients, scope, None)
        # Streams' answers do not tell how long a batch took.
        beside = [embed, _beside("stream", service, clients, scope, embed.get("batch_s"))]
    return {"capacity_per_s": median(capacities), "capacities": capacities, "open": rows, "beside_bulk": beside}


def _beside(bulk: str, service: Service, clients: Clients, scope: Scope, batch_s: float | None) -> Row:
    """Interactive latency beside one way of sending bulk, in units of the forward pass of such a batch of bulk.

    Args:
        bulk: "embed" or "stream".
        service: the embedder.
        clients: one of them sends.
        scope: for how long.
        batch_s: what a batch takes, where the answers do not tell.
    """
    try:
        answer: Answer = clients.ask(
            service,
            how="beside_bulk",
            bulk=bulk,
            kind=PICTURE,
            concurrency=_BULK_CONCURRENCY,
            ramp_s=2 * scope.ramp_s,
            seconds=scope.load_s * 1.5,
            pause_s=0.2,
            seed=1,
        )
    except FailedError as error:
        print(f"  interactive beside bulk {bulk}: {error}", flush=True)
        return {"bulk": bulk, "error": str(error)}
    batch_s = answer["batch_s"] or batch_s
    in_batches = answer["p99_ms"] / 1000 / batch_s if answer["p99_ms"] and batch_s else None
    print(f"  interactive beside bulk {bulk}: p99 {answer['p99_ms']} ms, a batch {batch_s} s", flush=True)
    return {"bulk": bulk, **answer, "batch_s": batch_s, "p99_in_batches": in_batches}


def _over_rounds(load: float, answers: list[Answer]) -> Row:
    """Medians, and the figures of each round from which the summary makes its ratios."""
    each = {f"{key}_rounds": [answer[key] for answer in answers] for key in ("goodput", "p99_ms")}
    refused = {"refused_p50_ms": median([answer["refused_p50_ms"] for answer in answers])}
    return {"load": load, **row(f"load {load:g}", answers), **refused, **each}


def _said(answer: Answer) -> str:
    return (
        f"goodput {answer['goodput']:.2f} of capacity {answer['capacity_per_s']:.1f}/s, p99 {answer['p99_ms']} ms, "
        f"{answer['refused']} of {answer['arrivals']} refused in {answer['refused_p50_ms']} ms"
    )
