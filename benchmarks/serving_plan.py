"""What the choices of ``indexer.serving.planner`` come from: ``python -m benchmarks.serving_plan``.

Times are of the processor that the calling thread had, in milliseconds, medians of several searches: a busy machine
changes them little. Recall is the share of the 10 nearest that were found, against numpy.

1. What scoring a row costs, alone and for 16 queries at once.
2. What a step of the graph's width costs, what recall it buys, and how many rows are scored in that time
   (``PlannerSettings.rows_per_step``).
3. What searches cost in all, by the share of the items that a filter leaves, and their recall.
4. How long adding keeps searches out.

The vectors: 100 items a cluster, or no clusters and variances that fall as 1, 1/2, 1/3 …, which is harder than what
models of pictures make.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from chassis.vectors import Array
from indexer.collections import Metric
from indexer.filters import Comparison, Kind, Node, Op
from indexer.reads import Fields, Search
from indexer.scoring import OF_METRIC
from indexer.serving.graph import Graph, GraphSettings, Rows
from indexer.serving.planner import Planner, PlannerSettings
from indexer.serving.search import answer
from indexer.serving.table import Table, View
from indexer.writes import Written

Shares = npt.NDArray[np.float64]

DIMENSION = 512
QUERIES = 64
PERCENTS = (0.1, 2, 10, 25, 50, 98)


def clustered(count: int, random: np.random.Generator) -> Array:
    """Unit vectors [count + QUERIES, DIMENSION] around centres, 100 each."""
    centres = _unit(random.standard_normal((max(1, count // 100), DIMENSION), np.float32))
    which = random.integers(len(centres), size=count + QUERIES)
    noise = random.standard_normal((count + QUERIES, DIMENSION), np.float32) / np.float32(DIMENSION**0.5)
    return _unit(centres[which] + np.float32(0.6) * noise)


def spread(count: int, random: np.random.Generator) -> Array:
    """Unit vectors [count + QUERIES, DIMENSION] without clusters."""
    weights = np.arange(1, DIMENSION + 1, dtype=np.float32) ** np.float32(-0.5)
    return _unit(random.standard_normal((count + QUERIES, DIMENSION), np.float32) * weights)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    arguments = parser.parse_args()
    random = np.random.default_rng(1)
    for name, made in (("clusters", clustered), ("no clusters", spread)):
        vectors = made(arguments.rows, random)
        rows, queries = vectors[:-QUERIES], vectors[-QUERIES:]
        print(f"\n{arguments.rows:,} × {DIMENSION}, {name}")
        table, share = _table(rows, random)
        graph = table.view.graph
        row_ms = scoring(graph, queries)
        width(graph, rows, queries, row_ms)
        filtered(table.view, share, rows, queries)
        holds(graph, rows[:500])


def scoring(graph: Graph, queries: Array) -> float:
    """Prints what scoring given rows costs, and returns it for one row of 5,000."""
    print("  rows scored    1 query, ms   µs a row     16 queries, ms   µs a row and query")
    a_row = 0.0
    for count in (100, 1000, 5000, graph.count):
        rows = np.sort(np.random.default_rng(2).permutation(graph.count)[:count])
        one = _ms(lambda: graph.closeness(queries[:1], rows))  # noqa: B023
        many = _ms(lambda: graph.closeness(queries[:16], rows), 5)  # noqa: B023
        print(f"  {count:11,} {one:14.3f} {one * 1e3 / count:10.3f} {many:18.3f} {many * 1e3 / count / 16:20.3f}")
        if count == 5000:
            a_row = one / count
    return a_row


def width(graph: Graph, rows: Array, queries: Array, row_ms: float) -> None:
    """Prints what searching the graph costs and finds."""
    near = np.argsort(-(queries @ rows.T), axis=1)[:, :100]
    print("  width    ms     rows scored in a step's time    recall of the nearest 10     20     50    100")
    for ef in (64, 96, 128, 192, 256, 512):
        ms = _ms_of([partial(graph.nearest, query[None], ef) for query in queries])
        found = graph.nearest(queries, ef)[0].tolist()
        recalls = [
            np.mean([len(set(a) & set(b[:k])) / k for a, b in zip(found, near.tolist(), strict=True)])
            for k in (10, 20, 50, 100)
            if k <= ef
        ]
        texts = "".join(f"{recall:7.3f}" for recall in recalls)
        print(f"  {ef:5} {ms:6.3f} {ms / ef / row_ms:26.0f} {'':29}{texts}")


def filtered(view: View, share: Shares, rows: Array, queries: Array) -> None:
    """Prints what whole searches cost and find, by the share of the items that may be found."""
    planner = Planner(PlannerSettings())
    alike = queries @ rows.T
    print("  items that may be found    ms    ms a search of 16    recall    ways")
    for percent in (100, *PERCENTS):
        where = None if percent == 100 else Comparison("share", Op.LT, Kind.NUMBER, (percent / 100,))
        searches = [_search(query, where) for query in queries]
        ways: Counter[str] = Counter()
        answers = answer(view, searches, Fields(), planner, on_way=lambda way: ways.update([way.value]))  # noqa: B023
        members = share < percent / 100 if where else np.ones(len(rows), np.bool_)
        best = np.argsort(np.where(members, -alike, np.inf), axis=1)[:, :10]
        most = min(10, int(members.sum()))
        hits = sum(
            len({int(row.item.id) for row in found} & set(near[:most]))
            for found, near in zip(answers, best, strict=True)
        )
        ms = _ms_of([partial(answer, view, [each], Fields(), planner) for each in searches])
        batch = _ms(lambda: answer(view, searches[:16], Fields(), planner), 7) / 16  # noqa: B023
        recall = hits / most / len(queries)
        print(f"  {percent:21} % {ms:7.3f} {batch:15.3f} {recall:12.3f}    {dict(ways)}")


def holds(graph: Graph, vectors: Array) -> None:
    """Prints how long adding rows keeps searches out, by wall clock."""
    held: list[float] = []
    append = graph._append

    def timed(some: Array, of: Rows) -> None:
        began = time.perf_counter()
        append(some, of)
        held.append(time.perf_counter() - began)

    graph._append = timed  # type: ignore[method-assign,assignment]
    began = time.process_time()
    graph.add(vectors)
    took = time.process_time() - began
    low, middle, high = np.quantile(held, [0.5, 0.99, 1]) * 1e3
    print(
        f"  adding {len(vectors)}: {took / len(vectors) * 1e3:.2f} ms a row; searches kept out {len(held)} times, "
        f"median {low:.1f}, 99 % {middle:.1f}, longest {high:.1f} ms"
    )


def _table(rows: Array, random: np.random.Generator) -> tuple[Table, Shares]:
    table = Table(DIMENSION, Metric.COSINE, GraphSettings(), 1 << 26)
    share = random.random(len(rows))
    table.apply(
        [
            Written(str(i), row, b"", {"share": value})
            for i, (row, value) in enumerate(zip(rows, share.tolist(), strict=True))
        ],
        [],
    )
    began = time.process_time()
    table.view.graph.build(table.view.tail)
    print(f"  building: {len(rows) / (time.process_time() - began):,.0f} rows a second and core")
    table.absorbed(len(rows))
    return table, share


def _search(query: Array, where: Node | None) -> Search:
    return Search(query, where, 10, 0, None, OF_METRIC[Metric.COSINE], 10)


def _ms(run: Callable[[], object], times: int = 15) -> float:
    return _ms_of([run] * times)


def _ms_of(runs: Sequence[Callable[[], object]]) -> float:
    took = []
    for run in runs:
        began = time.process_time()
        run()
        took.append(time.process_time() - began)
    return float(np.median(took)) * 1e3


def _unit(vectors: Array) -> Array:
    found: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


if __name__ == "__main__":
    main()
