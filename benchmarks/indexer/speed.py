"""Queries a second and their latency, by everybody in turn."""

from typing import Any

from benchmarks.embedder.turns import Measure, in_turn
from benchmarks.indexer.field import CHROMA, EMBEDDED, FAISS, OURS, Field
from benchmarks.indexer.scope import BATCH, CONCURRENCY, SELECTIVITIES, UNFILTERED

# In process one caller's batch takes all cores, and eight callers' batches one each.
_CALLERS_OF_BATCHES = (1, 8)
# The clusters' numbers and the vectors go together: half of the clusters.
CORRELATED = ("c", 500.0)
FILTER_CALLERS = 1


def single(name: str, concurrency: int) -> str:
    """The row of calls of one query."""
    return f"{name} {concurrency}"


def batched(name: str, concurrency: int) -> str:
    """The row of calls of BATCH queries."""
    return f"{name} {concurrency}, calls of {BATCH}"


def plain(name: str) -> str:
    """The row without a filter that filters are compared with."""
    return f"{name} plain"


def filtered(name: str, per_cent: float) -> str:
    """The row of a filter that leaves so many per cent."""
    return f"{name} {per_cent:g} %"


def run(field: Field) -> dict[str, Any]:
    """Plain queries."""
    quick = field.scope.quick
    measures: dict[str, Measure] = {}
    for name in (*field.libraries, *field.servers):
        few = quick and name not in (OURS, CHROMA, FAISS, EMBEDDED)
        for concurrency in CONCURRENCY:
            if not (few and concurrency != 8):
                measures[single(name, concurrency)] = field.queries(name, concurrency)
        for concurrency in _CALLERS_OF_BATCHES if name in (OURS, CHROMA, FAISS) else _CALLERS_OF_BATCHES[:1]:
            measures[batched(name, concurrency)] = field.queries(name, concurrency, BATCH)
    return {"about": field.about(), "rows": in_turn(measures, field.scope.rounds, f"speed, {field.size}")}


def run_filters(field: Field) -> dict[str, Any]:
    """Queries with filters, one at a time; the limit is another in each, so no mask is a remembered one."""
    measures: dict[str, Measure] = {}
    quick = field.scope.quick
    asked = (CHROMA, OURS) if quick else (*(n for n in field.libraries if n not in UNFILTERED), CHROMA, OURS)
    for name in asked:
        measures[plain(name)] = field.queries(name, FILTER_CALLERS)
        for per_cent in SELECTIVITIES:
            where = ("n", 10 * per_cent)
            measures[filtered(name, per_cent)] = field.queries(name, FILTER_CALLERS, 1, where)
        measures[f"{name} half of the clusters"] = field.queries(name, FILTER_CALLERS, 1, CORRELATED)
    return {"rows": in_turn(measures, field.scope.rounds, f"filters, {field.size}")}
