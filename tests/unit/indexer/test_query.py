"""The arithmetic of queries, against numpy and a real Chroma."""

from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from chassis.vectors import Array
from indexer import query
from indexer.collections import Collection, Fingerprint, Metric
from indexer.filters import Comparison, Kind, Node, Op
from indexer.query import Example, Query
from indexer.reads import Fields, Item, Row
from tests.unit.indexer.conftest import DIGEST, Connected

DIMENSION = 16
COUNT = 200


def collection_of(metric: Metric) -> Collection:
    return Collection("c", "k", Fingerprint("m", DIGEST, DIMENSION), metric, datetime.now(UTC))


def ask(*examples: Example, top_k: int = 10, where: Node | None = None, least: float | None = None) -> Query:
    return Query("queries[0]", examples, where, least, top_k)


def score(metric: Metric, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    match metric:
        case Metric.COSINE:
            return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        case Metric.L2:
            return -float(np.linalg.norm(a - b))
        case Metric.INNER_PRODUCT:
            return float(a @ b)


@pytest.fixture(scope="module")
def vectors() -> Array:
    rng = np.random.default_rng(3)
    return rng.normal(size=(COUNT, DIMENSION)).astype(np.float32) * 3


@pytest.fixture(scope="module", params=list(Metric))
def filled(connected: Connected, vectors: Array, request: pytest.FixtureRequest) -> Collection:
    metric: Metric = request.param
    collection = connected.collection(f"query-{metric.value}", metric, DIMENSION)
    items = [Item(f"i{n:03}", v, {"even": n % 2 == 0}) for n, v in enumerate(vectors)]
    for start in range(0, COUNT, 64):
        connected.loop.run(connected.store.upsert(collection, items[start : start + 64]))
    return collection


def answer(connected: Connected, collection: Collection, *queries: Query | LikenessError) -> list[list[Row]]:
    outcomes = connected.loop.run(query.answer(connected.store, collection, queries, Fields()))
    rows: list[list[Row]] = []
    for outcome in outcomes:
        assert isinstance(outcome, list), outcome
        rows.append(outcome)
    return rows


def expected(metric: Metric, target: npt.NDArray[np.float64], vectors: Array, without: set[int]) -> list[str]:
    scores = {n: score(metric, target, v.astype(np.float64)) for n, v in enumerate(vectors) if n not in without}
    return [f"i{n:03}" for n in sorted(scores, key=lambda n: -scores[n])]


def test_hits_and_scores_are_those_of_a_linear_scan(connected: Connected, filled: Collection, vectors: Array) -> None:
    target = np.random.default_rng(5).normal(size=DIMENSION).astype(np.float32)
    (rows,) = answer(connected, filled, ask(Example(1, target), top_k=20))
    assert [r.item.id for r in rows] == expected(filled.metric, target.astype(np.float64), vectors, set())[:20]
    for row in rows:
        stored = vectors[int(row.item.id[1:])].astype(np.float64)
        assert row.score == pytest.approx(score(filled.metric, target.astype(np.float64), stored), abs=2e-5)


def test_more_hits_than_items_gives_all_items(connected: Connected, filled: Collection, vectors: Array) -> None:
    (rows,) = answer(connected, filled, ask(Example(1, vectors[0]), top_k=1000))
    assert len(rows) == COUNT
    assert [r.score for r in rows] == sorted((r.score for r in rows), reverse=True)


def test_weighted_examples_combine_as_the_contract_says(
    connected: Connected, filled: Collection, vectors: Array
) -> None:
    other = np.random.default_rng(6).normal(size=DIMENSION).astype(np.float32)
    (rows,) = answer(connected, filled, ask(Example(2, other), Example(1, id="i003"), Example(-0.5, id="i007")))
    parts = [other.astype(np.float64), vectors[3].astype(np.float64), vectors[7].astype(np.float64)]
    if filled.metric is Metric.COSINE:
        parts = [p / np.linalg.norm(p) for p in parts]
    target = 2 * parts[0] + parts[1] - 0.5 * parts[2]
    if filled.metric is not Metric.COSINE:
        target /= 3.5
    assert [r.item.id for r in rows] == expected(filled.metric, target, vectors, {3, 7})[:10]


def test_an_item_used_as_example_is_left_out_and_replaced_by_the_next(
    connected: Connected, filled: Collection, vectors: Array
) -> None:
    (rows,) = answer(connected, filled, ask(Example(1, id="i010"), top_k=COUNT - 1))
    assert len(rows) == COUNT - 1
    assert "i010" not in {r.item.id for r in rows}


def test_an_unknown_id_fails_its_own_query_only(connected: Connected, filled: Collection, vectors: Array) -> None:
    good, bad = ask(Example(1, vectors[0])), ask(Example(1, id="nobody"))
    outcomes = connected.loop.run(query.answer(connected.store, filled, [good, bad, good], Fields()))
    assert isinstance(outcomes[0], list)
    assert isinstance(outcomes[1], LikenessError)
    assert outcomes[1].reason == error_pb2.REASON_ITEM_NOT_FOUND
    assert "'nobody'" in outcomes[1].message
    assert outcomes[2] == outcomes[0]


def test_min_score_cuts_the_tail(connected: Connected, filled: Collection, vectors: Array) -> None:
    (everything,) = answer(connected, filled, ask(Example(1, vectors[0]), top_k=50))
    (some,) = answer(connected, filled, ask(Example(1, vectors[0]), top_k=50, least=everything[9].score))
    assert some == everything[:10]


def test_queries_of_one_call_are_answered_in_order(connected: Connected, filled: Collection, vectors: Array) -> None:
    even = Comparison("even", Op.EQ, Kind.BOOL, (True,))
    queries = [ask(Example(1, vectors[n]), top_k=3, where=even if n % 3 else None) for n in range(30)]
    together = answer(connected, filled, *queries)
    assert together == [answer(connected, filled, q)[0] for q in queries]
    assert all(int(r.item.id[1:]) % 2 == 0 for n, rows in enumerate(together) if n % 3 for r in rows)


class CountingReader:
    """Counts the searches it is asked for; finds what it is told to."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.searches: list[tuple[int, Node | None, int]] = []
        self.fetches: list[list[str]] = []

    async def search(
        self, collection: Collection, vectors: Array, where: Node | None, k: int, fields: Fields
    ) -> list[list[Row]]:
        self.searches.append((len(vectors), where, k))
        return [self.rows for _ in vectors]

    async def fetch(self, collection: Collection, ids: list[str], fields: Fields) -> dict[str, Item]:
        self.fetches.append(ids)
        return {i: Item(i, np.ones(DIMENSION, np.float32)) for i in ids}


async def test_equal_searches_reach_the_store_as_one_and_ids_as_one_read() -> None:
    reader = CountingReader([])
    number, truth = Comparison("a", Op.EQ, Kind.NUMBER, (1,)), Comparison("a", Op.EQ, Kind.BOOL, (True,))
    queries = [ask(Example(1, id=name), where=where) for name in ("x", "y") for where in (number, truth, None)]
    await query.answer(reader, collection_of(Metric.COSINE), queries, Fields())
    assert reader.fetches == [["x", "y"]]
    assert sorted((n, k) for n, _, k in reader.searches) == [(2, 11)] * 3
    assert {repr(where) for _, where, _ in reader.searches} == {repr(number), repr(truth), "None"}


async def test_equal_scores_stand_in_the_order_of_their_ids() -> None:
    rows = [Row(Item(i), s) for i, s in (("c", 0.5), ("a", 0.5), ("d", 0.9), ("b", 0.5))]
    reader = CountingReader(rows)
    (hits,) = await query.answer(reader, collection_of(Metric.L2), [ask(Example(1, np.ones(16, np.float32)))], Fields())
    assert isinstance(hits, list)
    assert [r.item.id for r in hits] == ["d", "a", "b", "c"]


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_examples_that_cancel_out_are_refused(metric: Metric, scale: float) -> None:
    vector = (np.random.default_rng(1).normal(size=DIMENSION) * scale).astype(np.float32)
    with pytest.raises(LikenessError) as caught:
        query.combine(ask(Example(1, vector), Example(-1, vector)), {}, collection_of(metric))
    assert caught.value.reason == error_pb2.REASON_QUERY_CANCELS_OUT
    assert caught.value.violations[0].field == "queries[0].examples"


def test_a_cosine_query_is_of_length_one_whatever_its_examples() -> None:
    vector = np.full(DIMENSION, 1e15, np.float32)
    combined = query.combine(ask(Example(100, vector), Example(0.001, vector)), {}, collection_of(Metric.COSINE))
    assert np.linalg.norm(combined) == pytest.approx(1)
