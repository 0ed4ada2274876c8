"""Section "overload": more searches than the embedder behind it can take."""

from typing import Any

from benchmarks.desk import Answer
from benchmarks.embedder.figures import median
from benchmarks.embedder.turns import Row, row
from benchmarks.gateway.client import IMAGE, TEXT
from benchmarks.gateway.stack import Stack

LOADS = (0.8, 2.0, 5.0)
_CONCURRENCY = 32


def overload(stack: Stack) -> dict[str, Any]:
    """New pictures and new texts at multiples of what 32 callers were answered just before."""
    rows: list[Row] = []
    for kind in (IMAGE, TEXT):
        seen: dict[float, list[Answer]] = {load: [] for load in LOADS}
        for number in range(stack.scope.overload_rounds):
            for load, answers in seen.items():
                answers.append(_at(stack, kind, load, number))
        rows += [_over_rounds(kind, load, answers) for load, answers in seen.items()]
    return {"rows": rows}


def name_of(kind: str, load: float) -> str:
    """The row of a load."""
    return f"{kind} × {load:g}"


def _at(stack: Stack, kind: str, load: float, number: int) -> Answer:
    told = {"address": stack.addresses["gateway"], "kind": kind}
    window = {"ramp_s": 2 * stack.scope.ramp_s, "seconds": stack.scope.overload_s}
    capacity = stack.client.ask(how="search", concurrency=_CONCURRENCY, **told, **window)["per_s"]
    answer = stack.client.ask(how="arrive", per_s=load * capacity, seed=number, **told, **window)
    answer |= {"capacity_per_s": capacity, "goodput": answer["per_s"] / capacity}
    print(
        f"  overload, {name_of(kind, load)}: {answer['goodput']:.2f} of {capacity:.0f}/s, p99 {answer['p99_ms']} ms, "
        f"{answer['refused']} of {answer['arrivals']} refused in {answer['refused_p50_ms']} ms",
        flush=True,
    )
    return answer


def _over_rounds(kind: str, load: float, answers: list[Answer]) -> Row:
    each = {key: median([answer[key] for answer in answers]) for key in ("goodput", "refused_p50_ms")}
    return {**row(name_of(kind, load), answers), **each}
