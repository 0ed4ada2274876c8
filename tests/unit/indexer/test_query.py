"""The arithmetic of queries, and what a reader is asked for, over a reader that scans."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from chassis.vectors import Array
from indexer import query, scoring
from indexer.collections import Collection, Fingerprint, Metric
from indexer.filters import Comparison, Kind, Node, Op
from indexer.query import Example, Query, Rescore
from indexer.reads import Facet, Fields, Listing, Page, Row, Search, StoredItem
from indexer.scan import Scan
from indexer.scoring import OF_METRIC, Scoring

DIMENSION = 16
COUNT = 200
EVEN = Comparison("even", Op.EQ, Kind.BOOL, (True,))


class ScanReader:
    """Compares with every vector there is; understands one filter, ``EVEN``. Notes what it is asked for."""

    compares_all = True

    def __init__(self, vectors: Array) -> None:
        self.vectors = {f"i{n:03}": v for n, v in enumerate(vectors)}
        self.searches: list[list[Search]] = []
        self.fetches: list[list[str]] = []
        self.deleted_by_search: set[str] = set()

    async def search(self, collection: Collection, searches: Sequence[Search], fields: Fields) -> list[list[Row]]:
        self.searches.append(list(searches))
        found = [self._scan(collection, search) for search in searches]
        for item_id in self.deleted_by_search:
            del self.vectors[item_id]
        return found

    def _scan(self, collection: Collection, search: Search) -> list[Row]:
        left = [i for i in self.vectors if i not in search.exclude and (search.where is None or int(i[1:]) % 2 == 0)]
        nearest = self._ranked(OF_METRIC[collection.metric], search.vector, left)[: search.candidates]
        rows = self._ranked(search.scoring, search.vector, [row.item.id for row in nearest])
        rows = [row for row in rows if search.min_score is None or row.score >= search.min_score]
        return rows[search.offset : search.offset + search.top_k]

    def _ranked(self, by: Scoring, vector: Array, ids: list[str]) -> list[Row]:
        scores = scoring.scores(by, vector, np.stack([self.vectors[i] for i in ids]))
        distances = scoring.distances(by, scores)
        rows = [Row(StoredItem(i), float(s), float(d)) for i, s, d in zip(ids, scores, distances, strict=True)]
        return sorted(rows, key=lambda row: (-row.score, row.item.id))

    async def fetch(self, collection: Collection, ids: Sequence[str], fields: Fields) -> dict[str, StoredItem]:
        self.fetches.append(list(ids))
        return {i: StoredItem(i, self.vectors[i] if fields.vector else None) for i in ids if i in self.vectors}

    async def count(self, collection: Collection, where: Node | None) -> int:
        raise NotImplementedError

    async def matching(self, collection: Collection, where: Node) -> list[str]:
        raise NotImplementedError

    async def facets(
        self, collection: Collection, where: Node | None, wanted: Mapping[str, int]
    ) -> tuple[int, list[Facet]]:
        raise NotImplementedError

    async def scan(self, collection: Collection, where: Node | None, after: str, fields: Fields) -> Scan:
        raise NotImplementedError

    async def page(self, collection: Collection, listing: Listing, fields: Fields) -> Page:
        raise NotImplementedError


def collection_of(metric: Metric) -> Collection:
    return Collection("c", "k", Fingerprint("m", "a1" * 32, DIMENSION), metric, datetime.now(UTC))


@pytest.fixture(scope="module")
def vectors() -> Array:
    return np.random.default_rng(3).normal(size=(COUNT, DIMENSION)).astype(np.float32) * 3


@pytest.fixture
def reader(vectors: Array) -> ScanReader:
    return ScanReader(vectors)


@pytest.fixture(params=list(Metric))
def collection(request: pytest.FixtureRequest) -> Collection:
    return collection_of(request.param)


async def answer(reader: ScanReader, collection: Collection, *queries: Query | LikenessError) -> list[list[Row]]:
    rows: list[list[Row]] = []
    for outcome in await query.answer(reader, collection, queries, Fields()):
        assert isinstance(outcome, list), outcome
        rows.append(outcome)
    return rows


def ask(*examples: Example, top_k: int = 10, where: Node | None = None, least: float | None = None) -> Query:
    return Query("queries[0]", examples, where, least, top_k)


def ids(rows: list[Row]) -> list[str]:
    return [row.item.id for row in rows]


def expected(metric: Metric, target: npt.NDArray[np.float64], vectors: Array, without: set[int]) -> list[str]:
    def score(v: npt.NDArray[np.float64]) -> float:
        match metric:
            case Metric.COSINE:
                return float(target @ v / np.linalg.norm(target) / np.linalg.norm(v))
            case Metric.L2:
                return -float(np.linalg.norm(target - v))
            case Metric.INNER_PRODUCT:
                return float(target @ v)

    scores = {n: score(v.astype(np.float64)) for n, v in enumerate(vectors) if n not in without}
    return [f"i{n:03}" for n in sorted(scores, key=lambda n: -scores[n])]


async def test_weighted_examples_combine_as_the_contract_says(
    reader: ScanReader, collection: Collection, vectors: Array
) -> None:
    other = np.random.default_rng(6).normal(size=DIMENSION).astype(np.float32)
    (rows,) = await answer(reader, collection, ask(Example(2, other), Example(1, id="i003"), Example(-0.5, id="i007")))
    parts = [other.astype(np.float64), vectors[3].astype(np.float64), vectors[7].astype(np.float64)]
    if collection.metric is Metric.COSINE:
        parts = [p / np.linalg.norm(p) for p in parts]
    target = 2 * parts[0] + parts[1] - 0.5 * parts[2]
    if collection.metric is not Metric.COSINE:
        target /= 3.5
    assert ids(rows) == expected(collection.metric, target, vectors, {3, 7})[:10]


@pytest.mark.parametrize("weight", [2.5, -2.5])
async def test_one_example_is_combined_like_several(collection: Collection, vectors: Array, weight: float) -> None:
    alone = query.combine(ask(Example(weight, vectors[0])), {}, collection)
    split = query.combine(ask(Example(weight / 2, vectors[0]), Example(weight / 2, vectors[0])), {}, collection)
    np.testing.assert_allclose(alone, split, rtol=1e-6)
    assert alone.dtype == np.float32
    assert np.array_equal(
        vectors[0], np.random.default_rng(3).normal(size=(COUNT, DIMENSION)).astype(np.float32)[0] * 3
    )


async def test_an_item_used_as_example_is_left_out_and_replaced_by_the_next(
    reader: ScanReader, collection: Collection
) -> None:
    (rows,) = await answer(reader, collection, ask(Example(1, id="i010"), top_k=COUNT - 1))
    assert len(rows) == COUNT - 1
    assert "i010" not in ids(rows)


async def test_an_unknown_id_fails_its_own_query_only(
    reader: ScanReader, collection: Collection, vectors: Array
) -> None:
    good, bad = ask(Example(1, vectors[0])), ask(Example(1, id="nobody"))
    outcomes = await query.answer(reader, collection, [good, bad, good], Fields())
    assert isinstance(outcomes[0], list)
    assert isinstance(outcomes[1], LikenessError)
    assert outcomes[1].reason == error_pb2.REASON_ITEM_NOT_FOUND
    assert "'nobody'" in outcomes[1].message
    assert outcomes[2] == outcomes[0]


async def test_an_example_deleted_while_the_search_ran_is_reported(
    reader: ScanReader, collection: Collection, vectors: Array
) -> None:
    reader.deleted_by_search = {"i004"}
    queries = [ask(Example(1, id=i)) for i in ("i003", "i004")] + [ask(Example(1, vectors[0]))]
    kept, gone, other = await query.answer(reader, collection, queries, Fields())
    assert isinstance(kept, list)
    assert isinstance(other, list)
    assert isinstance(gone, LikenessError)
    assert gone.reason == error_pb2.REASON_ITEM_NOT_FOUND
    assert "'i004'" in gone.message


async def test_pages_by_offset_are_the_parts_of_one_answer(
    reader: ScanReader, collection: Collection, vectors: Array
) -> None:
    examples = (Example(1, vectors[0]),)
    (whole,) = await answer(reader, collection, Query("queries[0]", examples, top_k=30))
    pages = await answer(reader, collection, *(Query("queries[0]", examples, top_k=10, offset=o) for o in (0, 10, 20)))
    assert [row for page in pages for row in page] == whole


async def test_min_score_cuts_the_tail(reader: ScanReader, collection: Collection, vectors: Array) -> None:
    (everything,) = await answer(reader, collection, ask(Example(1, vectors[0]), top_k=50))
    (some,) = await answer(reader, collection, ask(Example(1, vectors[0]), top_k=50, least=everything[9].score))
    assert some == everything[:10]


@pytest.mark.parametrize("by", list(Scoring))
async def test_rescoring_asks_for_its_formula_and_its_candidates(
    reader: ScanReader, collection: Collection, vectors: Array, by: Scoring
) -> None:
    wanted = Query("queries[0]", (Example(1, vectors[0]),), top_k=5, offset=3, rescore=Rescore(by, 40))
    (rows,) = await answer(reader, collection, wanted)
    (search,) = reader.searches[0]
    assert (search.scoring, search.candidates, search.top_k, search.offset) == (by, 40, 5, 3)
    scores = scoring.scores(by, search.vector, np.stack([vectors[int(row.item.id[1:])] for row in rows]))
    assert [row.score for row in rows] == scores.tolist()


async def test_candidates_are_never_fewer_than_the_hits_wanted(
    reader: ScanReader, collection: Collection, vectors: Array
) -> None:
    few = Query("queries[0]", (Example(1, vectors[0]),), top_k=5, offset=30, rescore=Rescore(Scoring.L1, 1))
    plain = Query("queries[1]", (Example(1, vectors[0]),), top_k=5, offset=30)
    await answer(reader, collection, few, plain)
    assert [(s.candidates, s.scoring) for s in reader.searches[0]] == [
        (35, Scoring.L1),
        (35, OF_METRIC[collection.metric]),
    ]


async def test_all_queries_of_a_call_reach_the_reader_as_one_and_stay_in_order(
    reader: ScanReader, collection: Collection, vectors: Array
) -> None:
    queries: list[Query | LikenessError] = [
        ask(Example(1, vectors[n]), Example(0.1, id="i001"), top_k=3, where=EVEN if n % 3 else None) for n in range(30)
    ]
    refused = LikenessError(error_pb2.REASON_FIELD_INVALID, "bad")
    together = await query.answer(reader, collection, [*queries[:7], refused, *queries[7:]], Fields())
    assert len(reader.searches) == 1
    assert reader.fetches == [["i001"], ["i001"]]
    assert together.pop(7) is refused
    assert together == [(await answer(reader, collection, q))[0] for q in queries]
    for n, rows in enumerate(together):
        assert isinstance(rows, list)
        assert n % 3 == 0 or all(int(i[1:]) % 2 == 0 for i in ids(rows))


async def test_queries_that_all_fail_ask_the_reader_for_nothing(reader: ScanReader, collection: Collection) -> None:
    refused = LikenessError(error_pb2.REASON_FIELD_INVALID, "bad")
    assert await query.answer(reader, collection, [refused], Fields()) == [refused]
    assert reader.searches == []
    assert reader.fetches == []


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_examples_that_cancel_out_are_refused(collection: Collection, scale: float) -> None:
    vector = (np.random.default_rng(1).normal(size=DIMENSION) * scale).astype(np.float32)
    with pytest.raises(LikenessError) as caught:
        query.combine(ask(Example(1, vector), Example(-1, vector)), {}, collection)
    assert caught.value.reason == error_pb2.REASON_QUERY_CANCELS_OUT
    assert caught.value.violations[0].field == "queries[0].examples"


def test_one_example_of_length_zero_is_refused(collection: Collection) -> None:
    with pytest.raises(LikenessError) as caught:
        query.combine(ask(Example(1, np.zeros(DIMENSION, np.float32))), {}, collection)
    assert caught.value.reason == error_pb2.REASON_QUERY_CANCELS_OUT


def test_a_cosine_query_is_of_length_one_whatever_its_examples() -> None:
    vector = np.full(DIMENSION, 1e15, np.float32)
    for examples in ((Example(100, vector), Example(0.001, vector)), (Example(-3, vector),)):
        combined = query.combine(ask(*examples), {}, collection_of(Metric.COSINE))
        assert np.linalg.norm(combined) == pytest.approx(1)
