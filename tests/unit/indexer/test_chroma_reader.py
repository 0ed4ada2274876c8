"""Reads that Chroma answers, against the contract's words written down in Python."""

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from likeness.common.v1 import error_pb2, metadata_pb2

from chassis.errors import LikenessError
from chassis.metadata import Plain, from_proto
from chassis.vectors import Array
from indexer import chroma_reader, chroma_rows, listing
from indexer.chroma_reader import ChromaReader
from indexer.collections import Collection, Metric
from indexer.commit import Committer
from indexer.filters import AllOf, AnyOf, Comparison, Kind, Node, NoneOf, Op
from indexer.reads import After, Fields, Item, Listing, Search
from indexer.scoring import OF_METRIC, Scoring, distances, scores
from indexer.surroundings import Surroundings
from indexer.turnstile import Turnstile
from tests.unit.indexer.conftest import Connected
from tests.unit.indexer.model import facets, ordered, page, true_for
from tests.unit.indexer.strategies import KEYS, nodes

COUNT, DIMENSION = 150, 8
VALUES: list[Plain] = [0, 1, 1.0, -1, 0.5, -0.0, 1e300, 5e-324, 0.1, 2**53, 0.30000000000000004, True, False]
VALUES += ["", "1", "true", "red", "Red", "\x00", "é", "𝄞", "\uffff", ["red"], ["red", "1", "red"], ["é"]]

slow = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class Pool:
    """A collection, its reader, and what is in it."""

    def __init__(self, connected: Connected, metric: Metric) -> None:
        rng = random.Random(11)
        vectors = np.random.default_rng(11).normal(size=(COUNT, DIMENSION)).astype(np.float32)
        vectors[10:20] = vectors[0]
        self.items = {
            f"i{n:03}": Item(f"i{n:03}", v, {key: rng.choice(VALUES) for key in KEYS if rng.random() < 0.7})
            for n, v in enumerate(vectors)
        }
        self.connected = connected
        self.collection = connected.collection(f"reader-{metric.value}", metric, DIMENSION)
        connected.upsert(self.collection, *self.items.values())
        self.reader = ChromaReader(connected.store, Turnstile(4, 128, "A_SETTING"))

    @property
    def metadata(self) -> dict[str, dict[str, Plain]]:
        return {i: dict(item.metadata) for i, item in self.items.items()}


@pytest.fixture(scope="module")
def pools(connected: Connected) -> dict[Metric, Pool]:
    return {metric: Pool(connected, metric) for metric in Metric}


@pytest.fixture(scope="module")
def pool(pools: dict[Metric, Pool]) -> Pool:
    return pools[Metric.COSINE]


def exact(node: Node) -> bool:
    """Whether it keeps to whole numbers that the contract tells apart."""
    match node:
        case AllOf(children) | AnyOf(children) | NoneOf(children):
            return all(map(exact, children))
        case Comparison():
            return all(not isinstance(value, int) or abs(value) <= 2**53 for value in node.values)


@slow
@given(node=nodes.filter(exact))
def test_count_and_matching_follow_the_filter(pool: Pool, node: Node) -> None:
    wanted = {i for i, metadata in pool.metadata.items() if true_for(node, metadata)}
    assert set(pool.connected.loop.run(pool.reader.matching(pool.collection, node))) == wanted
    assert pool.connected.loop.run(pool.reader.count(pool.collection, node)) == len(wanted)


def test_without_a_filter_all_are_counted(pool: Pool) -> None:
    assert pool.connected.loop.run(pool.reader.count(pool.collection, None)) == COUNT


@slow
@given(node=st.none() | nodes.filter(exact), limit=st.integers(1, 12))
def test_facets_count_what_the_filter_leaves(pool: Pool, node: Node | None, limit: int) -> None:
    left = [metadata for metadata in pool.metadata.values() if true_for(node, metadata)]
    wanted = dict.fromkeys([*KEYS, "absent"], limit)
    total, found = pool.connected.loop.run(pool.reader.facets(pool.collection, node, wanted))
    assert total == len(left)
    assert repr(found) == repr(facets(left, wanted))


@slow
@given(
    node=st.none() | nodes.filter(exact),
    order_by=st.sampled_from(["", *KEYS, "absent"]),
    descending=st.booleans(),
    size=st.integers(20, 200),
)
def test_pages_follow_each_other_in_the_order_asked_for(
    pool: Pool, node: Node | None, order_by: str, descending: bool, size: int
) -> None:
    after: After | None = None
    while True:
        listing = Listing(node, order_by, descending, size, after)
        found = pool.connected.loop.run(pool.reader.page(pool.collection, listing, Fields(metadata=True)))
        ids, behind = page(pool.metadata, listing)
        assert [item.id for item in found.items] == ids
        for item in found.items:
            message = metadata_pb2.Metadata.FromString(item.packed or b"")
            assert from_proto(message, "") == pool.metadata[item.id]
        assert (found.next and found.next.id) == (behind and behind.id)
        after = found.next
        if after is None:
            return


@pytest.mark.parametrize("order_by", ["", KEYS[0]])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("at_once", [7, 250])
def test_a_page_ends_where_a_message_is_full(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, order_by: str, descending: bool, at_once: int
) -> None:
    monkeypatch.setattr(listing, "PAGE_BYTES", 10 * (4 * DIMENSION + len("i000")))
    monkeypatch.setattr(chroma_reader, "_FETCHED_AT_ONCE", at_once)
    found: list[list[str]] = []
    after: After | None = None
    while not found or after is not None:
        asked = Listing(None, order_by, descending, 100, after)
        read = pool.connected.loop.run(pool.reader.page(pool.collection, asked, Fields(vector=True)))
        found.append([item.id for item in read.items])
        after = read.next
    assert [len(ids) for ids in found] == [10] * (COUNT // 10)
    assert [item_id for ids in found for item_id in ids] == ordered(pool.metadata, order_by, descending)


@pytest.mark.parametrize(
    "fields", [Fields(), Fields(metadata=True), Fields(vector=True)], ids=["ids", "all", "vectors"]
)
@pytest.mark.parametrize("order_by", ["", "n"])
def test_what_does_not_match_any_more_since_it_was_listed_is_in_no_page_and_in_no_facet(
    connected: Connected, monkeypatch: pytest.MonkeyPatch, order_by: str, fields: Fields
) -> None:
    name = f"changing-{order_by}-{fields.metadata:d}{fields.vector:d}"
    collection, vectors = connected.collection(name, Metric.L2, 2), np.eye(10, 2, dtype=np.float32)
    items = [Item(f"i{n}", vector, {"n": n}) for n, vector in enumerate(vectors)]
    connected.upsert(collection, *items)
    reader, matching = ChromaReader(connected.store, Turnstile(4, 128, "A_SETTING")), connected.store.matching
    lost: list[Item] = []

    async def then_changed(of: Collection, where: Node, most: int | None = None) -> list[str]:
        found = await matching(of, where, most)
        await Committer(of, connected.store, Surroundings()).upsert([Item(lost[0].id, lost[0].vector, {"n": -1})])
        return found

    monkeypatch.setattr(connected.store, "matching", then_changed)
    where = Comparison("n", Op.GE, Kind.NUMBER, (5,))
    lost.append(items[7])
    page = connected.loop.run(reader.page(collection, Listing(where, order_by, False, 100, None), fields))
    assert [item.id for item in page.items] == ["i5", "i6", "i8", "i9"]
    assert [(item.packed is not None, item.vector is not None) for item in page.items] == [
        (fields.metadata, fields.vector)
    ] * 4
    lost.insert(0, items[9])
    total, [facet] = connected.loop.run(reader.facets(collection, where, {"n": 9}))
    assert (total, facet.values) == (3, [(5, 1), (6, 1), (8, 1)])


def searched(pool: Pool, search: Search) -> list[tuple[str, float]]:
    """What the contract says, by looking at every item."""
    ids = [i for i in pool.items if true_for(search.where, pool.metadata[i]) and i not in search.exclude]
    if not ids:
        return []
    vectors = np.stack([pool.items[i].vector for i in ids])

    def ranked(scoring: Scoring, rows: list[int]) -> list[tuple[float, str, int]]:
        of_all = scores(scoring, search.vector, vectors)
        return sorted((-round(float(of_all[row]), 5), ids[row], row) for row in rows)

    near = ranked(OF_METRIC[pool.collection.metric], list(range(len(ids))))[: search.candidates]
    rows = ranked(search.scoring, [row for _, _, row in near])
    least = search.min_score
    kept = [(item_id, -negated) for negated, item_id, _ in rows if least is None or -negated >= least]
    return kept[search.offset : search.offset + search.top_k]


def test_inner_products_of_short_vectors_are_those_of_the_vectors(connected: Connected) -> None:
    """Chroma gives 1 - a·b in single precision: of these, 1 for every one."""
    collection = connected.collection("short", Metric.INNER_PRODUCT, 2)
    items = [Item(f"i{n}", np.array([1e-5 * (1 + n), 0], np.float32)) for n in range(5)]
    connected.upsert(collection, *items)
    reader = ChromaReader(connected.store, Turnstile(4, 128, "A_SETTING"))
    query = np.array([1e-4, 0], np.float32)
    search = Search(query, None, 5, 0, None, Scoring.INNER_PRODUCT, 5)
    [rows] = connected.loop.run(reader.search(collection, [search], Fields()))
    assert [row.item.id for row in rows] == ["i4", "i3", "i2", "i1", "i0"]
    assert [row.score for row in rows] == [float(item.vector @ query) for item in reversed(items)]
    assert all(row.item.vector is None for row in rows)


def unit(vector: Array) -> Array:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@slow
@given(data=st.data(), metric=st.sampled_from(Metric), scoring=st.none() | st.sampled_from(Scoring))
def test_searches_find_what_looking_at_every_item_finds(
    pools: dict[Metric, Pool], data: st.DataObject, metric: Metric, scoring: Scoring | None
) -> None:
    pool = pools[metric]
    searches: list[Search] = []
    for _ in range(data.draw(st.integers(1, 3))):
        near = data.draw(st.sampled_from(sorted(pool.items)))
        top_k, offset = data.draw(st.integers(1, 30)), data.draw(st.integers(0, 20))
        searches.append(
            Search(
                vector=unit(pool.items[near].vector + np.float32(0.05)),
                where=data.draw(st.none() | nodes.filter(exact)),
                top_k=top_k,
                offset=offset,
                min_score=data.draw(st.sampled_from([None, -1.2345, 0.12345])),
                scoring=scoring or OF_METRIC[metric],
                candidates=top_k + offset + data.draw(st.integers(0, 60)),
                exclude=frozenset({near} if data.draw(st.booleans()) else ()),
            )
        )
    fields = Fields(vector=data.draw(st.booleans()))
    found = pool.connected.loop.run(pool.reader.search(pool.collection, searches, fields))
    for search, rows in zip(searches, found, strict=True):
        wanted = searched(pool, search)
        assert [row.item.id for row in rows] == [item_id for item_id, _ in wanted]
        of_rows = np.array([row.score for row in rows])
        np.testing.assert_allclose(of_rows, [score for _, score in wanted], atol=2e-5)
        np.testing.assert_allclose([row.distance for row in rows], distances(search.scoring, of_rows), atol=1e-12)
        for row in rows:
            assert row.item.packed is None
            assert (row.item.vector is not None) is fields.vector


def test_what_is_equal_scores_enough_for_the_greatest_least_score(pool: Pool) -> None:
    """Of many stored vectors Chroma says that they are nearly like themselves."""
    asked = [
        Search(unit(item.vector), None, 1, 0, 1.0, Scoring.COSINE, 1) for i, item in pool.items.items() if i >= "i020"
    ]
    found = pool.connected.loop.run(pool.reader.search(pool.collection, asked, Fields()))
    assert [[(row.item.id, row.score) for row in rows] for rows in found] == [
        [(i, 1.0)] for i in pool.items if i >= "i020"
    ]


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.INNER_PRODUCT])
def test_distances_of_chroma_that_make_one_score_as_it_is_sent_are_equal(metric: Metric) -> None:
    away = np.float32(0.01)
    near = np.nextafter(away, np.float32(0))
    one, other = chroma_rows.scores([away, near], metric)
    assert one == other == np.float32(0.99)


def test_items_are_fetched_with_what_is_asked_for(pool: Pool) -> None:
    fetched = pool.connected.loop.run(pool.reader.fetch(pool.collection, ["i001", "none"], Fields(vector=True)))
    assert list(fetched) == ["i001"]
    assert fetched["i001"].packed is None
    vector = fetched["i001"].vector
    assert vector is not None
    np.testing.assert_allclose(vector, pool.items["i001"].vector, rtol=1e-6)
    assert pool.connected.loop.run(pool.reader.fetch(pool.collection, [], Fields())) == {}


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chroma_reader, "MOST_READ", 20)
    monkeypatch.setattr(chroma_reader, "MOST_LISTED", 100)


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("where", [None, NoneOf((Comparison("absent", Op.EXISTS, Kind.NONE, ()),))])
def test_what_would_read_too_much_is_refused_with_a_way_out(pool: Pool, where: Node | None) -> None:
    loop, reader = pool.connected.loop, pool.reader
    for work in (
        reader.facets(pool.collection, where, {"a": 1}),
        reader.page(pool.collection, Listing(where, "a", False, 10, None), Fields()),
        reader.page(pool.collection, Listing(where, "", False, 10, None), Fields()),
    ):
        with pytest.raises(LikenessError) as caught:
            loop.run(work)
        assert caught.value.reason == error_pb2.REASON_FILTER_INVALID
        assert "serve the collection from memory" in caught.value.message


def test_a_filter_that_chroma_cannot_answer_is_refused_by_name(pool: Pool) -> None:
    node = Comparison("a", Op.IN, Kind.STRING, ())
    search = Search(np.ones(DIMENSION, np.float32), node, 1, 0, None, Scoring.COSINE, 1)
    reader = pool.reader
    for work in (reader.matching(pool.collection, node), reader.search(pool.collection, [search], Fields())):
        with pytest.raises(LikenessError) as caught:
            pool.connected.loop.run(work)
        assert caught.value.reason == error_pb2.REASON_FILTER_INVALID
        assert "Chroma cannot answer it" in caught.value.message


def test_a_collection_that_is_gone_is_said_to_be(connected: Connected) -> None:
    gone: Collection = connected.collection("reader-gone", Metric.L2, 2)
    connected.loop.run(connected.store.drop("reader-gone"))
    reader = ChromaReader(connected.store, Turnstile(4, 128, "A_SETTING"))
    search = Search(np.ones(2, np.float32), None, 1, 0, None, Scoring.L2, 1)
    for work in (reader.search(gone, [search], Fields()), reader.count(gone, None)):
        with pytest.raises(LikenessError) as caught:
            connected.loop.run(work)
        assert caught.value.reason == error_pb2.REASON_COLLECTION_NOT_FOUND
