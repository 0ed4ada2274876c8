import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.metadata import to_proto
from chassis.vectors import Array
from indexer.collections import Metric
from indexer.filters import AllOf, Comparison, Kind, Node, NoneOf, Op
from indexer.reads import Fields, Row, Search
from indexer.scoring import OF_METRIC, Scoring, distances, scores
from indexer.serving import ranking
from indexer.serving.candidates import Way
from indexer.serving.graph import Graph, GraphSettings, Rows
from indexer.serving.planner import Planner, PlannerSettings
from indexer.serving.search import answer, answering
from indexer.serving.table import Table, View
from indexer.writes import Written

METRICS = list(Metric)
DIMENSION, ROWS, CLUSTERS = 32, 6000, 50
# Scoring is said to cost much, so that the graph is searched wherever it can be, and small collections will do.
GRAPH = Planner(PlannerSettings(ef_search=128, rows_per_step=2))
EXACT = Planner(PlannerSettings(rows_per_step=1e9))
NOTHING = Fields()
Numbers = npt.NDArray[Any]


def number(key: str, op: Op, value: float) -> Comparison:
    return Comparison(key, op, Kind.NUMBER, (value,))


def unit(vectors: Array) -> Array:
    found: Array = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return found


def as_asked(metric: Metric, vectors: Array) -> Array:
    """Queries come in with length 1 where the metric is the cosine."""
    return unit(vectors) if metric is Metric.COSINE else vectors


def search(vector: Array, metric: Metric, top_k: int = 10, **other: Any) -> Search:
    offset = other.get("offset", 0)
    defaults: dict[str, Any] = {
        "where": None,
        "offset": 0,
        "min_score": None,
        "scoring": OF_METRIC[metric],
        "candidates": top_k + offset,
    }
    return Search(vector, top_k=top_k, **(defaults | other))


def table(metric: Metric, dimension: int = DIMENSION) -> Table:
    return Table(dimension, metric, GraphSettings(), 1 << 24)


def absorb(table: Table, upto: int) -> None:
    view = table.view
    view.graph.build(view.tail[: upto - view.tail_from])
    table.absorbed(upto)


def write(into: Table, vectors: Array, first: int = 0, **values: Numbers) -> None:
    """Items whose ids are their numbers backwards, so that the order of ids is not that of rows."""
    into.apply(
        [
            Written.of(f"{99_999 - i:05}", vector, {key: value[i - first].item() for key, value in values.items()})
            for i, vector in enumerate(vectors, first)
        ],
        [],
    )


@dataclass
class Truth:
    """What there is, item by item, and how it is searched when nothing has to be quick."""

    ids: list[str]
    vectors: Array

    @classmethod
    def of(cls, view: View) -> "Truth":
        rows = np.flatnonzero(view.live)
        return cls([view.ids[row] for row in rows], view.originals(rows))

    def found(self, search: Search, metric: Metric, chosen: Numbers | None = None) -> list[tuple[str, float]]:
        rows = [
            row
            for row in (range(len(self.ids)) if chosen is None else np.flatnonzero(chosen).tolist())
            if self.ids[row] not in search.exclude
        ]

        def ranked(scoring: Scoring, some: list[int]) -> list[tuple[float, str, int]]:
            points = scores(scoring, search.vector, self.vectors[some])
            return sorted((-point, self.ids[row], row) for row, point in zip(some, points, strict=True))

        own = ranked(OF_METRIC[metric], rows)
        if search.scoring is not OF_METRIC[metric]:
            own = ranked(search.scoring, [row for _, _, row in own[: search.candidates]])
        least = -np.inf if search.min_score is None else search.min_score
        kept = [(item_id, -point) for point, item_id, _ in own if -point >= least]
        return kept[search.offset : search.offset + search.top_k]


def given_back(rows: Sequence[Row]) -> list[tuple[str, float]]:
    return [(row.item.id, row.score) for row in rows]


@dataclass
class Large:
    """A collection of clusters: most rows in the graph, some in the tail, some dead, all with metadata.

    ``share`` is at random in 0 … 1, and ``cluster`` the cluster's number: filters over them have nothing, or
    everything, to do with the vectors.
    """

    metric: Metric
    view: View
    truth: Truth
    share: Numbers
    cluster: Numbers
    queries: Array


@pytest.fixture(scope="module", params=METRICS, ids=lambda metric: metric.name)
def large(request: pytest.FixtureRequest) -> Large:
    random = np.random.default_rng(7)
    centres = random.standard_normal((CLUSTERS, DIMENSION))
    cluster = random.integers(CLUSTERS, size=ROWS)
    lengths = np.exp(random.uniform(np.log(0.1), np.log(10), ROWS)) if request.param is not Metric.L2 else np.ones(ROWS)
    vectors = (centres[cluster] + 0.5 * random.standard_normal((ROWS, DIMENSION))) * lengths[:, None]
    share = random.random(ROWS)
    made = table(request.param)
    write(made, vectors.astype(np.float32), share=share, cluster=cluster)
    absorb(made, ROWS * 9 // 10)
    dead = random.permutation(ROWS)[: ROWS // 10]
    made.apply([], [f"{99_999 - i:05}" for i in dead])
    live = made.view.live
    queries = centres[random.integers(CLUSTERS, size=40)] + 0.5 * random.standard_normal((40, DIMENSION))
    return Large(
        request.param,
        made.view,
        Truth.of(made.view),
        share[live],
        cluster[live],
        as_asked(request.param, queries.astype(np.float32)),
    )


def recall(large: Large, where: Node | None, chosen: Numbers | None, ways: Counter[Way] | None = None) -> float:
    searches = [search(query, large.metric, where=where) for query in large.queries]
    seen: Counter[Way] = Counter() if ways is None else ways
    answers = answer(large.view, searches, NOTHING, GRAPH, on_way=lambda way: seen.update([way]))
    expected = [large.truth.found(each, large.metric, chosen) for each in searches]
    hits = sum(len(set(a) & set(given_back(b))) for a, b in zip(expected, answers, strict=True))
    return hits / sum(map(len, expected))


def test_the_nearest_are_found_through_the_graph(large: Large) -> None:
    ways: Counter[Way] = Counter()
    assert recall(large, None, None, ways) >= 0.99
    assert ways == {Way.GRAPH: len(large.queries)}


@pytest.mark.parametrize("percent", [0.1, 2, 10, 50, 98])
def test_the_nearest_are_found_among_a_share_of_the_items(large: Large, percent: float) -> None:
    where = number("share", Op.LT, percent / 100)
    assert recall(large, where, large.share < percent / 100) >= 0.99


@pytest.mark.parametrize("percent", [2, 10, 50, 98])
def test_the_nearest_are_found_among_clusters_that_the_query_may_not_be_in(large: Large, percent: float) -> None:
    where = number("cluster", Op.LT, CLUSTERS * percent / 100)
    assert recall(large, where, large.cluster < CLUSTERS * percent / 100) >= 0.99


@pytest.mark.parametrize("percent", [50, 98])
def test_a_filter_that_leaves_out_the_querys_own_cluster_hides_nothing(large: Large, percent: float) -> None:
    nearest = [int(Counter(large.cluster[near_rows(large, query)]).most_common(1)[0][0]) for query in large.queries]
    for query, own in list(zip(large.queries, nearest, strict=True))[:8]:
        limit = int(CLUSTERS * percent / 100)
        where = AllOf((number("cluster", Op.LT, limit), NoneOf((number("cluster", Op.EQ, own),))))
        asked = search(query, large.metric, where=where)
        [found] = answer(large.view, [asked], NOTHING, GRAPH)
        chosen = (large.cluster < limit) & (large.cluster != own)
        expected = large.truth.found(asked, large.metric, chosen)
        assert len(set(expected) & set(given_back(found))) >= 9


def near_rows(large: Large, query: Array) -> Numbers:
    return np.argsort(-scores(OF_METRIC[large.metric], query, large.truth.vectors))[:20]


def test_scores_and_their_order_are_exact(large: Large) -> None:
    for query, rows in zip(
        large.queries,
        answer(large.view, [search(q, large.metric, 50) for q in large.queries], Fields(vector=True), GRAPH),
        strict=True,
    ):
        vectors = np.stack([vector for row in rows if (vector := row.item.vector) is not None])
        points = scores(OF_METRIC[large.metric], query, vectors)
        assert [row.score for row in rows] == points.tolist()
        assert [row.distance for row in rows] == distances(OF_METRIC[large.metric], points).tolist()
        assert (np.diff(points) <= 0).all()


def test_pages_put_together_are_what_one_large_page_is(large: Large) -> None:
    for where in (None, number("share", Op.LT, 0.5)):
        for query in large.queries[:10]:
            [whole] = answer(large.view, [search(query, large.metric, 300, where=where)], NOTHING, EXACT)
            pages = [search(query, large.metric, 50, offset=offset, where=where) for offset in range(0, 300, 50)]
            parts = [row for page in answer(large.view, pages, NOTHING, EXACT) for row in page]
            assert given_back(parts) == given_back(whole)
            parts = [row for page in answer(large.view, pages, NOTHING, GRAPH) for row in page]
            assert len(set(given_back(parts)) & set(given_back(whole))) >= 285


def test_searches_of_a_batch_are_answered_as_they_are_alone(large: Large) -> None:
    wheres = [None, number("share", Op.LT, 0.5), number("cluster", Op.LT, 3), number("share", Op.GT, 2)]
    batch = [
        search(query, large.metric, 1 + i, where=wheres[i % 4], offset=i % 3) for i, query in enumerate(large.queries)
    ]
    together = answer(large.view, batch, NOTHING, GRAPH)
    assert [len(rows) for rows in together[3::4]] == [0] * 10
    for each, rows in zip(batch, together, strict=True):
        assert rows == answer(large.view, [each], NOTHING, GRAPH)[0]


def test_all_of_few_matches_are_given(large: Large) -> None:
    where = number("share", Op.LT, 0.002)
    count = int((large.share < 0.002).sum())
    assert 0 < count < 100
    [rows] = answer(large.view, [search(large.queries[0], large.metric, 100, where=where)], NOTHING, GRAPH)
    assert len(rows) == count


def test_a_wide_search_gives_every_item_there_is(large: Large) -> None:
    [rows] = answer(large.view, [search(large.queries[0], large.metric, 10_000)], NOTHING, GRAPH)
    expected = large.truth.found(search(large.queries[0], large.metric, 10_000), large.metric)
    assert given_back(rows) == expected


def test_excluded_items_make_room_for_others(large: Large) -> None:
    asked = [search(query, large.metric) for query in large.queries]
    for each, rows in zip(asked, answer(large.view, asked, NOTHING, GRAPH), strict=True):
        without = replace(each, exclude=frozenset(row.item.id for row in rows[:3]))
        [others] = answer(large.view, [without], NOTHING, GRAPH)
        assert given_back(others)[:7] == given_back(rows)[3:]
        assert len(others) == 10


def test_candidates_are_scored_anew_and_nothing_else_is_found(large: Large) -> None:
    for scoring in Scoring:
        asked = [search(query, large.metric, 5, scoring=scoring, candidates=30) for query in large.queries[:10]]
        for each, rows in zip(asked, answer(large.view, asked, NOTHING, EXACT), strict=True):
            assert given_back(rows) == large.truth.found(each, large.metric)


def test_only_what_scores_enough_is_given(large: Large) -> None:
    [rows] = answer(large.view, [search(large.queries[0], large.metric)], NOTHING, GRAPH)
    asked = search(large.queries[0], large.metric, min_score=rows[4].score)
    assert answer(large.view, [asked], NOTHING, GRAPH)[0] == rows[:5]


def test_only_fields_asked_for_come_back(large: Large) -> None:
    asked = [search(large.queries[0], large.metric, 3)]
    [bare] = answer(large.view, asked, NOTHING, GRAPH)
    assert all(row.item.vector is None and row.item.packed is None for row in bare)
    [rows] = answer(large.view, asked, Fields(metadata=True, vector=True), GRAPH)
    for row in rows:
        i = 99_999 - int(row.item.id)
        assert row.item.vector is not None
        assert np.array_equal(row.item.vector, large.view.originals(np.array([i]))[0])
        assert row.item.packed == large.view.packed[i]


def test_nothing_is_asked_and_nothing_there() -> None:
    made = table(Metric.L2)
    assert answer(made.view, [], NOTHING, GRAPH) == []
    assert answer(made.view, [search(np.zeros(DIMENSION, np.float32), Metric.L2)], NOTHING, GRAPH) == [[]]
    made.apply([Written.of("a", np.zeros(DIMENSION, np.float32), {})], [])
    made.apply([], ["a"])
    assert answer(made.view, [search(np.zeros(DIMENSION, np.float32), Metric.L2)], Fields(vector=True), GRAPH) == [[]]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("copies", [30, 700])
def test_equal_items_come_in_the_order_of_their_ids_wherever_they_are(metric: Metric, copies: int) -> None:
    """More of them than the graph is asked for, too; in the graph and in the tail."""
    random = np.random.default_rng(3)
    vectors = random.standard_normal((4000, DIMENSION)).astype(np.float32)
    vectors[random.permutation(4000)[:copies]] = vectors[0]
    same = np.flatnonzero((vectors == vectors[0]).all(axis=1))
    made = table(metric)
    write(made, vectors)
    absorb(made, 3600)
    asked = search(as_asked(metric, vectors[0]) * np.float32(1), metric, 7, offset=3)
    [rows] = answer(made.view, [asked], NOTHING, GRAPH)
    expected = Truth.of(made.view).found(asked, metric)
    if metric is not Metric.INNER_PRODUCT:
        assert {item_id for item_id, _ in expected} <= {f"{99_999 - i:05}" for i in same}
    assert given_back(rows) == expected


@pytest.mark.parametrize("metric", METRICS)
def test_groups_of_equal_items_are_no_traps(metric: Metric) -> None:
    """More equal rows than a row has links may link to each other only: a search that begins there must notice."""
    random = np.random.default_rng(3)
    vectors = random.standard_normal((5000, DIMENSION)).astype(np.float32)
    queries = as_asked(metric, vectors[:30] + 0.3 * random.standard_normal((30, DIMENSION)).astype(np.float32))
    for group in random.permutation(np.arange(60, 5000))[:600].reshape(10, 60):
        vectors[group] = vectors[group[0]]
    made = table(metric)
    write(made, vectors)
    absorb(made, 5000)
    truth, asked = Truth.of(made.view), [search(query, metric) for query in queries]
    answers = answer(made.view, asked, NOTHING, GRAPH)
    hits = [
        len(set(truth.found(each, metric)) & set(given_back(rows))) for each, rows in zip(asked, answers, strict=True)
    ]
    assert min(hits) >= 5
    assert sum(hits) / 300 >= 0.97


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("noise", [0.0, 1e-4], ids=["equal", "nearly"])
def test_of_a_group_of_alike_items_all_are_given_on_one_page_or_on_many(metric: Metric, noise: float) -> None:
    """However many they are, and though the graph gives some of them and farther rows behind those."""
    random = np.random.default_rng(3)
    vectors = unit(random.standard_normal((8000, DIMENSION)).astype(np.float32))
    order, groups = random.permutation(8000), {}
    for size in (20, 33, 40, 100, 200, 377):
        groups[size], order = order[:size], order[size:]
        vectors[groups[size]] = vectors[groups[size][0]] + noise * random.standard_normal((size, DIMENSION))
    made = table(metric)
    write(made, unit(vectors))
    absorb(made, 8000)
    ways: Counter[Way] = Counter()
    for size, rows in groups.items():
        mine = {f"{99_999 - row:05}" for row in rows}
        query = made.view.originals(rows[:1])[0]
        [found] = answer(made.view, [search(query, metric, size)], NOTHING, GRAPH)
        assert {row.item.id for row in found} == mine
        pages = [search(query, metric, 20, offset=offset) for offset in range(0, size, 20)]
        answers = answer(made.view, pages, NOTHING, GRAPH, on_way=lambda way: ways.update([way]))
        assert given_back([row for page in answers for row in page])[:size] == given_back(found)
    assert ways[Way.GRAPH] > 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("alone", [False, True], ids=["among others", "alone"])
def test_an_item_that_is_edited_often_has_no_search_score_everything(metric: Metric, alone: bool) -> None:
    """Nor is it lost among its old rows."""
    random = np.random.default_rng(3)
    vectors = unit(random.standard_normal((6000, DIMENSION)).astype(np.float32))
    vectors[8:] = unit(vectors[8 + np.arange(5992) % 100] + 0.1 * vectors[8:])
    edited = 7 if alone else 4000
    made = table(metric)
    write(made, vectors)
    absorb(made, 6000)
    for _ in range(100):
        write(made, vectors[edited : edited + 1], first=edited)
    absorb(made, 6100)
    ways: Counter[Way] = Counter()
    near = unit(vectors[edited] + 0.02 * random.standard_normal((20, DIMENSION)).astype(np.float32))
    for query in (vectors[edited], *near):
        [rows] = answer(made.view, [search(query, metric)], NOTHING, GRAPH, on_way=lambda way: ways.update([way]))
        assert rows[0].item.id == f"{99_999 - edited:05}"
        assert len({row.item.id for row in rows}) == 10
    assert ways == {Way.GRAPH: 21}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("limit", [1.0, 0.5], ids=["all", "half of them"])
def test_equal_items_are_found_by_the_graph_however_many_there_are(metric: Metric, limit: float) -> None:
    """In the graph and in the tail; the dead and, where a view is too old for them, the new are left out."""
    random = np.random.default_rng(3)
    vectors, share = unit(random.standard_normal((6000, DIMENSION)).astype(np.float32)), random.random(6005)
    group = np.sort(random.permutation(6000)[:500])
    vectors[group] = vectors[group[0]]
    made = table(metric)
    write(made, vectors, share=share[:6000])
    absorb(made, 5500)
    made.apply([], [f"{99_999 - row:05}" for row in group[::7].tolist()])
    before = made.view
    write(made, vectors[group[:5]], first=6000, share=share[6000:])
    absorb(made, 6005)
    ways: Counter[Way] = Counter()
    for view in (before, made.view):
        truth, chosen = Truth.of(view), share[np.flatnonzero(view.live)] < limit
        for query in (vectors[group[0]], unit(vectors[group[0]] + 0.01 * vectors[1])):
            asked = search(query, metric, 150, where=number("share", Op.LT, limit))
            [rows] = answer(view, [asked], NOTHING, GRAPH, on_way=lambda way: ways.update([way]))
            assert given_back(rows) == truth.found(asked, metric, chosen)
    assert ways == {Way.GRAPH: 4}


def test_copies_that_came_after_a_view_are_not_in_its_answers() -> None:
    random = np.random.default_rng(3)
    vectors = unit(random.standard_normal((6000, DIMENSION)).astype(np.float32))
    made = table(Metric.COSINE)
    write(made, vectors)
    absorb(made, 6000)
    before = made.view
    write(made, vectors[:5], first=6000)
    absorb(made, 6005)
    asked = search(vectors[0], Metric.COSINE)
    for view in (before, made.view):
        [rows] = answer(view, [asked], NOTHING, GRAPH)
        assert given_back(rows)[:2] == Truth.of(view).found(asked, Metric.COSINE)[:2]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("gone", [False, True], ids=["left out", "deleted"])
def test_a_group_of_equal_items_that_may_not_be_found_makes_no_search_beside_it_wider(
    metric: Metric, gone: bool
) -> None:
    random = np.random.default_rng(3)
    vectors = unit(random.standard_normal((6000, DIMENSION)).astype(np.float32))
    group = np.sort(random.permutation(6000)[:500])
    vectors[group] = vectors[group[0]]
    outside = np.ones(6000)
    outside[group] = 0
    made = table(metric)
    write(made, vectors, outside=outside)
    absorb(made, 6000)
    where = None if gone else number("outside", Op.GT, 0)
    if gone:
        made.apply([], [f"{99_999 - row:05}" for row in group.tolist()])
    widths: list[int] = []
    view = made.view
    nearest = view.graph.nearest

    def counting(asked: Array, ef: int) -> tuple[Rows, Array]:
        widths.append(ef)
        return nearest(asked, ef)

    view.graph.nearest = counting  # type: ignore[method-assign,assignment]
    queries = unit(vectors[group[0]] + 0.02 * random.standard_normal((20, DIMENSION)).astype(np.float32))
    asked = [search(query, metric, where=where) for query in queries]
    truth, chosen = Truth.of(view), None if gone else outside > 0
    hits = 0
    for each, rows in zip(asked, answer(view, asked, NOTHING, GRAPH), strict=True):
        hits += len(set(truth.found(each, metric, chosen)) & set(given_back(rows)))
    assert hits / 200 >= 0.98
    assert len(widths) == 1


@pytest.mark.parametrize("wanted", [10, 200])
def test_many_copies_are_gathered_in_a_step_and_only_where_they_count(
    wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,500 equal items, behind a hundred others."""
    random = np.random.default_rng(3)
    query = unit(random.standard_normal(DIMENSION).astype(np.float32))
    near, far = (
        query + size * random.standard_normal((count, DIMENSION)) for size, count in ((0.01, 100), (9.0, 3000))
    )
    same = np.broadcast_to(query + 0.05 * random.standard_normal(DIMENSION), (1500, DIMENSION))
    made = table(Metric.COSINE)
    write(made, unit(np.concatenate((near, same, far)).astype(np.float32)))
    absorb(made, 4600)
    expanded: list[int] = []
    with_copies = made.view.graph.copies.with_copies

    def counting(nodes: Rows, closeness: Array) -> tuple[Rows, Array]:
        rows, close = with_copies(nodes, closeness)
        expanded.append(len(rows))
        return rows, close

    monkeypatch.setattr(made.view.graph.copies, "with_copies", counting)
    asked = search(query, Metric.COSINE, wanted)
    steps = answering(made.view, [asked], NOTHING, GRAPH)
    names: list[str] = []
    try:
        step = next(steps)
        while True:
            names.append(step.func.__name__)  # type: ignore[attr-defined]
            step = steps.send(step())
    except StopIteration as ended:
        [rows] = ended.value
    assert given_back(rows) == Truth.of(made.view).found(asked, Metric.COSINE)
    assert expanded == ([10] if wanted == 10 else [1699])
    assert "_with_copies" in names


def test_no_item_however_far_makes_exact_searches_score_more_than_they_have_to(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    vectors = random.standard_normal((3000, DIMENSION)).astype(np.float32)
    vectors[1000] *= 500
    made = table(Metric.L2)
    write(made, vectors, share=random.random(3000))
    absorb(made, 3000)
    counted: list[int] = []

    def counting(scoring: Scoring, query: Array, some: Array) -> Numbers:
        counted.append(len(some))
        return scores(scoring, query, some)

    monkeypatch.setattr(ranking, "scores", counting)
    for where, planner in ((None, EXACT), (number("share", Op.LT, 2), EXACT), (None, GRAPH)):
        asked = search(vectors[0], Metric.L2, where=where)
        [rows] = answer(made.view, [asked], NOTHING, planner)
        assert given_back(rows) == Truth.of(made.view).found(asked, Metric.L2)
    assert counted == [10, 10, 10]


def test_a_graph_that_has_grown_past_the_view_adds_nothing_to_it(large: Large) -> None:
    asked = [search(query, large.metric) for query in large.queries[:5]]
    before = answer(large.view, asked, NOTHING, EXACT)
    made = table(large.metric)
    write(made, large.truth.vectors[:500])
    absorb(made, 400)
    view = made.view
    write(made, large.truth.vectors[500:1000], first=500)
    made.view.graph.build(made.view.tail)
    assert view.graph.count == 1000
    small = Truth.of(view)
    for each, rows in zip(asked, answer(view, asked, NOTHING, EXACT), strict=True):
        assert given_back(rows) == small.found(each, large.metric)
    assert before == answer(large.view, asked, NOTHING, EXACT)


def test_views_are_answered_from_while_the_table_goes_on() -> None:
    """Every answer holds live items of its own view only, and all that the view has of them."""
    random = np.random.default_rng(5)
    vectors = random.standard_normal((3000, 8)).astype(np.float32)
    made = table(Metric.L2, dimension=8)
    write(made, vectors[:500])
    absorb(made, 500)
    ended = threading.Event()

    def read(seed: int) -> None:
        chosen, searched = np.random.default_rng(seed), 0
        while not ended.is_set() or searched < 10:
            view = made.view
            query = vectors[chosen.integers(3000)]
            [rows] = answer(view, [search(query, Metric.L2, 5)], NOTHING, GRAPH)
            live = np.flatnonzero(view.live)
            points = scores(Scoring.L2, query, view.originals(live))
            assert [row.score for row in rows][:1] == np.sort(points)[::-1][:1].tolist()
            assert {row.item.id for row in rows} <= {view.ids[row] for row in live}
            searched += 1

    with ThreadPoolExecutor(3) as threads:
        reading = [threads.submit(read, seed) for seed in range(2)]
        for first in range(500, 3000, 100):
            write(made, vectors[first : first + 100], first=first)
            made.apply([], [f"{99_999 - i:05}" for i in random.integers(first, size=20)])
            threads.submit(made.view.graph.add, made.view.tail).result()
            made.absorbed(made.view.graph.count)
        ended.set()
        for each in reading:
            each.result()


small = st.integers(-2, 2).map(float)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(METRICS), st.lists(st.tuples(small, small, small), min_size=1, max_size=40))
def test_small_collections_are_searched_exactly(
    data: st.DataObject, metric: Metric, points: list[tuple[float, float, float]]
) -> None:
    """Few different vectors, so that scores are often equal; any share in the graph and any dead."""
    vectors = np.array(points, np.float32) + (np.float32(8) if metric is Metric.COSINE else np.float32(0))
    made = table(metric, dimension=3)
    written = [
        Written(f"{i * 7 % 41:02}", vector, to_proto({"n": i % 5}).SerializeToString(), {"n": i % 5})
        for i, vector in enumerate(vectors)
    ]
    made.apply(written, [])
    absorb(made, data.draw(st.integers(0, len(points))))
    made.apply([], data.draw(st.lists(st.sampled_from([item.id for item in written]), max_size=10)))
    query = as_asked(metric, np.array(data.draw(st.tuples(small, small, small)), np.float32) + np.float32(4.5))
    offset, top_k = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 45))
    candidates = offset + top_k + data.draw(st.integers(0, 5))
    limit = data.draw(st.none() | st.integers(0, 5))
    asked = search(
        query,
        metric,
        top_k,
        offset=offset,
        candidates=candidates,
        where=None if limit is None else number("n", Op.LT, limit),
        scoring=data.draw(st.sampled_from(Scoring)),
        min_score=data.draw(st.none() | st.floats(-3, 3)),
        exclude=frozenset(data.draw(st.lists(st.sampled_from([item.id for item in written]), max_size=5))),
    )
    view = made.view
    numbers = np.array([item.metadata["n"] for item in written])[view.live]
    chosen = None if limit is None else numbers < limit
    [rows] = answer(view, [asked], NOTHING, data.draw(st.sampled_from([GRAPH, EXACT])))
    assert given_back(rows) == Truth.of(view).found(asked, metric, chosen)


OWN = 30  # items of a cluster
DEEP = Planner(PlannerSettings(ef_search=32, rows_per_step=0.1))


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How wide the graph has been searched."""
    found: list[int] = []
    nearest = Graph.nearest

    def watched(graph: Graph, vectors: Array, ef: int) -> Any:
        found.append(ef)
        return nearest(graph, vectors, ef)

    monkeypatch.setattr(Graph, "nearest", watched)
    return found


def clustered(clusters: int = 100) -> tuple[Table, Array]:
    """Items in clusters, with the number of their cluster as ``c``, and of every second one within it as ``half``."""
    rng = np.random.default_rng(8)
    which = np.repeat(np.arange(clusters), OWN)
    spread = 0.3 * rng.standard_normal((len(which), DIMENSION))
    vectors = unit((rng.standard_normal((clusters, DIMENSION))[which] + spread).astype(np.float32))
    made = table(Metric.COSINE)
    write(made, vectors, c=which, half=np.arange(len(which)) % 2)
    absorb(made, len(vectors))
    return made, vectors


def test_behind_a_filter_that_leaves_out_what_is_nearest_the_search_is_made_wider(widths: list[int]) -> None:
    made, vectors = clustered()
    truth, right = Truth.of(made.view), 0
    for row in range(0, 50 * OWN, OWN):  # of clusters that are left out
        asked = search(vectors[row], Metric.COSINE, where=number("c", Op.GE, 50))
        widths.clear()
        [found] = answer(made.view, [asked], NOTHING, DEEP)
        assert len(widths) > 1, "the ten nearest lie behind a cluster"
        assert widths[-1] > max(widths[0], OWN)
        best = {item_id for item_id, _ in truth.found(asked, Metric.COSINE, np.arange(len(vectors)) >= 50 * OWN)}
        right += len(best & {item_id for item_id, _ in given_back(found)})
    assert right >= 0.99 * 500


def test_a_filter_that_has_nothing_to_do_with_the_vectors_takes_one_search(widths: list[int]) -> None:
    made, vectors = clustered()
    for row in range(0, 50 * OWN, OWN):
        answer(made.view, [search(vectors[row], Metric.COSINE, where=number("half", Op.EQ, 1))], NOTHING, DEEP)
    assert len(widths) <= 52


@pytest.mark.parametrize("where", [None, number("c", Op.LT, 99)])
def test_rows_that_were_replaced_hide_nothing(widths: list[int], where: Node | None) -> None:
    made, vectors = clustered()
    for _ in range(12):  # one item is labelled again and again: its rows all lie where it does
        made.apply([Written.of("99999", vectors[0], {"c": 0})], [])
    absorb(made, made.view.count)
    [found] = answer(made.view, [search(vectors[0], Metric.COSINE, where=where)], NOTHING, DEEP)
    assert found[0].item.id == "99999"
    assert len(widths) == 1


# So wide that where a cluster is gone enough rows of others are given to be taken for the nearest.
THROUGH = Planner(PlannerSettings(ef_search=64, rows_per_step=0.1))


def found_at(made: Table, places: Array) -> float:
    """The share of the ten nearest that is found at each place."""
    truth, right = Truth.of(made.view), 0
    for place in places:
        asked = search(place, Metric.COSINE)
        [rows] = answer(made.view, [asked], NOTHING, THROUGH)
        best = {item_id for item_id, _ in truth.found(asked, Metric.COSINE)}
        right += len(best & {item_id for item_id, _ in given_back(rows)})
    return right / (10 * len(places))


def ids_of(rows: Iterable[int]) -> list[str]:
    return [f"{99_999 - row:05}" for row in rows]


def test_where_a_cluster_was_deleted_the_search_is_made_wider(widths: list[int]) -> None:
    made, vectors = clustered()
    made.apply([], ids_of(range(3 * OWN)))
    assert found_at(made, vectors[: 3 * OWN]) >= 0.99
    assert len(widths) > 1.9 * 3 * OWN, "nearly each of them once more"
    assert max(widths) > 3 * widths[0]


def test_where_a_cluster_was_moved_away_the_search_is_made_wider(widths: list[int]) -> None:
    made, vectors = clustered()
    others = vectors[20 * OWN : 23 * OWN] + np.float32(0.001)
    made.apply([Written.of(i, v, {}) for i, v in zip(ids_of(range(3 * OWN)), others, strict=True)], [])
    absorb(made, made.view.count)
    assert found_at(made, vectors[: 3 * OWN]) >= 0.99
    assert len(widths) > 1.9 * 3 * OWN, "nearly each of them once more"
    assert max(widths) > 3 * widths[0]


def test_where_a_cluster_was_labelled_anew_one_search_is_enough(widths: list[int]) -> None:
    made, vectors = clustered()
    made.apply([Written.of(i, v, {}) for i, v in zip(ids_of(range(OWN)), vectors[:OWN], strict=True)], [])
    for _ in range(2):  # in the tail, then in the graph
        widths.clear()
        found_at(made, vectors[:OWN])
        assert widths == [64] * OWN
        absorb(made, made.view.count)


def test_dead_rows_here_and_there_take_one_search_nearly_always(widths: list[int]) -> None:
    made, vectors = clustered()
    made.apply([], ids_of(range(0, len(vectors), 3)))
    found_at(made, vectors[:: OWN // 3])
    assert len(widths) <= 1.02 * 3 * 100
