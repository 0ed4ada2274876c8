"""Tables with something in them, and what two of them have to have in common to be the same."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from chassis.metadata import Plain
from chassis.vectors import Array
from indexer.collections import Collection, Fingerprint, Metric
from indexer.serving.columns import Columns
from indexer.serving.graph import GraphSettings
from indexer.serving.table import Table, View
from indexer.writes import Written

GRAPH = GraphSettings(neighbors=8, ef_construction=40)
MASK_BYTES = 1 << 20
DIMENSION = 6


def collection(
    metric: Metric = Metric.COSINE, key: str = "key", digest: str = "a1", dimension: int = DIMENSION
) -> Collection:
    return Collection("pictures", key, Fingerprint("m", digest * 32, dimension), metric, datetime.now(UTC))


def vectors(count: int, seed: int = 0, dimension: int = DIMENSION) -> Array:
    return (3 * np.random.default_rng(seed).standard_normal((count, dimension))).astype(np.float32)


def metadata(i: int) -> dict[str, Plain]:
    """Every type, awkward values, keys that not every item has, and items without any."""
    values: list[dict[str, Plain]] = [
        {},
        {"name": f"picture {i}", "width": i, "share": i / 7, "new": i % 2 == 0, "tags": ["sea", f"é{i}", "sea"]},
        {"name": "", "width": 2**63 - 1 - i, "share": -0.0},
        {"name": "a\x00b", "width": -(2**63), "new": False, f"own{i}": "𝄞"},
        {"name": ["a list", "where others", "have a string"], "width": "wide", "tags": "sea"},
    ]
    return values[i % len(values)]


def written(ids: range, seed: int = 0, values: Callable[[int], Mapping[str, Plain]] = metadata) -> list[Written]:
    return [Written.of(f"id{i}", vector, values(i)) for i, vector in zip(ids, vectors(len(ids), seed), strict=True)]


def empty(metric: Metric = Metric.COSINE) -> Table:
    return Table(DIMENSION, metric, GRAPH, MASK_BYTES)


def absorb(table: Table, upto: int) -> None:
    """Moves the rows before ``upto`` from the tail into the graph."""
    view = table.view
    view.graph.add(view.tail[: upto - view.tail_from])
    table.absorbed(upto)


def filled(metric: Metric = Metric.COSINE) -> Table:
    """40 rows written, most of them in the graph; some replaced, some deleted, in the graph and in the tail."""
    table = empty(metric)
    table.apply(written(range(30)), [])
    absorb(table, 25)
    table.apply(written(range(5, 15), seed=1), ["id0", "id1", "id29"])
    table.apply([], ["id14"])
    return table


def columns(of: Columns) -> set[tuple[Any, ...]]:
    words, dumped = of.dump()
    return {
        (key, kind.name, row, words[int(value)] if kind.name in ("STRING", "ELEMENT") else float(value))
        for key, kind, rows, values in dumped
        for row, value in zip(rows.tolist(), values.tolist(), strict=True)
    }


def assert_same(one: View, other: View) -> None:
    """Equal row by row."""
    assert one.count == other.count
    assert one.ids[: one.count] == other.ids[: one.count]
    assert one.packed[: one.count] == other.packed[: one.count]
    assert one.live.tolist() == other.live.tolist()
    assert one.tail_from == other.tail_from
    everything = np.arange(one.count)
    assert np.array_equal(one.originals(everything), other.originals(everything))
    assert columns(one.columns) == columns(other.columns)


def items(view: View) -> dict[str, tuple[bytes, set[tuple[Any, ...]], Array]]:
    """What is alive: by id its packed metadata, its values in the columns, and its vector."""
    rows = np.flatnonzero(view.live)
    values: dict[int, set[tuple[Any, ...]]] = {row: set() for row in range(view.columns.count)}
    for key, kind, row, value in columns(view.columns):
        values[row].add((key, kind, value))
    originals = view.originals(rows)
    return {
        view.ids[row]: (view.packed[row], values[row], vector)
        for row, vector in zip(rows.tolist(), originals, strict=True)
    }


def assert_same_items(one: View, other: View) -> None:
    """Equal to whoever reads, in whatever rows."""
    these, those = items(one), items(other)
    assert these.keys() == those.keys()
    for item_id, (packed, values, vector) in these.items():
        assert (packed, values) == those[item_id][:2], item_id
        assert np.allclose(vector, those[item_id][2], rtol=1e-5, atol=1e-6), item_id
