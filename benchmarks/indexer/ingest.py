"""How fast items are taken in, and what queries notice of it."""

import itertools
from functools import partial
from typing import Any

from benchmarks.embedder.turns import Measure, in_turn
from benchmarks.indexer.field import CHROMA, OURS, Field

CALLERS = 8
BESIDE = (1, 8)
_SEEDS = itertools.count(10)
# Ids that the stored items do not have.
_FIRST = 10_000_000
_LEAD_S = 1.0


def run(field: Field) -> dict[str, Any]:
    """The rate into new collections, in turn; then queries on the large one, idle and while it takes items in."""
    scope = field.scope
    measures: dict[str, Measure] = {}
    variants = {"chroma http defaults": (CHROMA, False), CHROMA: (CHROMA, True), OURS: (OURS, False)}
    for row, (name, alike) in variants.items():
        measures[row] = partial(_rate, field, name, alike=alike, stream=False)
    measures["ours stream"] = partial(_rate, field, OURS, alike=False, stream=True)
    rate = in_turn(measures, scope.ingest_rounds, f"ingest, {field.size}")
    beside = [_beside(field, name, concurrency) for name in (CHROMA, OURS) for concurrency in BESIDE]
    return {"items": scope.ingest_items, "callers": CALLERS, "rows": rate, "beside": beside}


def _rate(field: Field, name: str, *, alike: bool, stream: bool) -> dict[str, Any]:
    seed = next(_SEEDS)
    told = {"how": "ingest", "collection": f"ingest-{seed}", "items": field.scope.ingest_items, "seed": seed}
    callers = 1 if stream else CALLERS
    return field.ask_writer(name, **told, concurrency=callers, alike=alike, stream=stream)


def _beside(field: Field, name: str, concurrency: int) -> dict[str, Any]:
    scope = field.scope
    rounds = []
    for _ in range(scope.ingest_rounds):
        window = {"ramp_s": scope.ramp_s, "seconds": scope.beside_s}
        idle = field.window(name, concurrency, 1, None, window)()
        seconds = _LEAD_S + scope.ramp_s + scope.beside_s + 0.5
        seed = next(_SEEDS)
        told = {"how": "ingest_for", "first": _FIRST + seed * 100_000, "seed": seed, "seconds": seconds}
        field.send_to_writer(name, **told, concurrency=CALLERS)
        window["ramp_s"] += _LEAD_S  # until the writer has made its vectors and is at full rate
        busy = field.window(name, concurrency, 1, None, window)()
        wrote = field.writer.answer()
        rounds.append((idle, busy, wrote))
        print(
            f"  {name} {concurrency} beside ingest: p99 {idle['p99_ms']} → {busy['p99_ms']} ms, p50 {idle['p50_ms']} → "
            f"{busy['p50_ms']} ms, {wrote['per_s']:.0f} items/s",
            flush=True,
        )
    figures = ("per_s", "p50_ms", "p99_ms")
    rows = {
        f"{when}_{figure}_rounds": [each[at][figure] for each in rounds]
        for at, when in enumerate(("idle", "busy"))
        for figure in figures
    }
    failed = next((each["error"] for all_three in rounds for each in all_three if each.get("error")), None)
    ingest = [wrote["per_s"] for _, _, wrote in rounds]
    return {"name": f"{name} {concurrency}", **rows, "ingest_per_s_rounds": ingest, "error": failed}
