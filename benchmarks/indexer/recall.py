"""How many of the ten nearest are found, against numpy: by everybody for the cosine, by ours for the other metrics."""

from typing import Any

from benchmarks.embedder.processes import Contender
from benchmarks.indexer import data
from benchmarks.indexer.field import CHROMA, OURS, Field
from benchmarks.indexer.filled import filled
from benchmarks.indexer.scope import SELECTIVITIES, UNFILTERED, WORK, K, Scope
from benchmarks.indexer.servers import Indexer, copied
from benchmarks.indexer.speed import CORRELATED

_FILTERS: dict[str, data.Where | None] = {
    "plain": None,
    **{f"{per_cent:g} %": ("n", 10 * per_cent) for per_cent in SELECTIVITIES},
    "half of the clusters": CORRELATED,
}


def run(field: Field) -> dict[str, Any]:
    """Everybody's recall for the cosine, and, at one size, ours for the other metrics."""
    rows = _rows(field)
    if field.size == field.scope.metrics_size:
        rows += [_other(field.scope, field.size, metric) for metric in ("euclidean", "product")]
    for row in rows:
        print(f"  recall, {field.size}: {row}", flush=True)
    return {"queries": field.scope.recall_queries, "rows": rows}


def _rows(field: Field) -> list[dict[str, Any]]:
    asked, stored = data.queries(field.scope.recall_queries), data.vectors(field.size)
    rows: dict[str, dict[str, Any]] = {}
    for kind, where in _FILTERS.items():
        right = data.nearest(stored, asked, "cosine", data.mask(field.size, where), K)
        for name in (OURS, CHROMA, *field.libraries):
            if where is None or name not in UNFILTERED:
                row = rows.setdefault(name, {"name": name, "metric": "cosine"})
                row[kind] = round(data.recall(field.answers(name, where), right), 4)
    return list(rows.values())


def _other(scope: Scope, size: int, metric: data.Metric) -> dict[str, Any]:
    asked, stored = data.queries(scope.recall_queries), data.vectors(size, metric)
    row: dict[str, Any] = {"name": OURS, "metric": metric}
    with (
        Indexer(f"indexer {metric}", copied(filled(size, metric), WORK / "recall")) as indexer,
        Contender("recall client", "benchmarks.indexer.callers", {}, ["7"]) as client,
    ):
        indexer.ready()
        indexer.graph_complete()
        client.ready()
        told = {"of": "ours", "how": "answers", "address": indexer.address, "collection": metric}
        for kind, where in _FILTERS.items():
            found = client.ask(**told, queries=len(asked), where=where)["rows"]
            right = data.nearest(stored, asked, metric, data.mask(size, where), K)
            row[kind] = round(data.recall(found, right), 4)
    return row
