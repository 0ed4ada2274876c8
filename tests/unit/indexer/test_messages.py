"""Messages of the contract ↔ values, and what is refused on the way."""

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from likeness.common.v1 import error_pb2, metadata_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from chassis import metadata
from chassis.errors import LikenessError
from indexer import item_messages, messages, query_messages, vector_messages
from indexer.collections import Collection, Fingerprint, Metric
from indexer.limits import limits as published
from indexer.query import Query
from indexer.reads import Facet, Item, Row, StoredItem
from indexer.scoring import Scoring
from indexer.status import CollectionStatus, Mode, Status

DIMENSION = 4


def collection_of(metric: Metric = Metric.COSINE) -> Collection:
    return Collection("c", "k", Fingerprint("m", "a1" * 32, DIMENSION), metric, datetime.now(UTC))


def numbers(*values: float) -> types_pb2.Vector:
    return types_pb2.Vector(f32=np.array(values, "<f4").tobytes())


GOOD = numbers(1, 2, 3, 4)


def refused(call: Callable[[], object]) -> LikenessError:
    with pytest.raises(LikenessError) as caught:
        call()
    return caught.value


def write(*items: pb.Item) -> list[Item]:
    return asyncio.run(item_messages.items(items, collection_of()))


# --- vectors --------------------------------------------------------------------------------------------------------

FLOATS = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, 1e-19, 1e-18, 1e-17, 2e-18, 5e17, 1e18, 1.1e18, 1e19, 3e38, float("inf"), float("nan")]),
)
ENCODED = st.one_of(
    st.lists(FLOATS, min_size=DIMENSION, max_size=DIMENSION).map(lambda v: np.array(v, np.float32).tobytes()),
    st.binary(max_size=20),
)


@given(st.lists(ENCODED, max_size=8), st.sampled_from(list(Metric)))
def test_vectors_read_together_are_those_read_one_by_one(encoded: list[bytes], metric: Metric) -> None:
    received = [types_pb2.Vector(f32=numbers) for numbers in encoded]
    collection = collection_of(metric)

    def show(vector: object) -> object:
        return str(vector) if isinstance(vector, LikenessError) else np.asarray(vector).tolist()

    together = vector_messages.read(received, collection, lambda i: f"v[{i}]")
    alone = [vector_messages.read([v], collection, lambda _, i=i: f"v[{i}]")[0] for i, v in enumerate(received)]  # type: ignore[misc]
    assert [show(v) for v in together] == [show(v) for v in alone]
    for vector, sent in zip(together, encoded, strict=True):
        length = float(np.linalg.norm(np.frombuffer(sent, "<f4").astype(np.float64))) if len(sent) == 16 else None
        fits = length is not None and length <= 1e18 and (metric is not Metric.COSINE or length >= 1e-18)
        assert isinstance(vector, LikenessError) != fits


# --- items ----------------------------------------------------------------------------------------------------------


def test_items_keep_their_order_over_several_slices() -> None:
    sent = [pb.Item(id=f"i{n}", vector=numbers(n, 1, 0, 0)) for n in range(200)]
    read = write(*sent)
    assert [item.id for item in read] == [item.id for item in sent]
    assert [item.vector[0] for item in read] == list(range(200))


def test_a_bad_item_far_behind_is_named_by_its_place_in_the_call() -> None:
    error = refused(lambda: write(*[pb.Item(id="i", vector=GOOD)] * 150, pb.Item(id="\n", vector=numbers(1))))
    assert [v.field for v in error.violations] == ["items[150].id", "items[150].vector"]


def test_each_item_is_refused_by_itself_with_all_that_is_wrong() -> None:
    bad = pb.Item(id="")
    bad.metadata.fields["no good"].int_value = 1
    first, second = item_messages.each_item([pb.Item(id="a", vector=GOOD), bad], collection_of(), 10)
    assert isinstance(first, Item)
    assert isinstance(second, list)
    assert [error.violations[0].field for error in second] == [
        "items[11].id",
        "items[11].vector",
        "items[11].metadata.fields",
    ]


def test_metadata_is_sent_from_its_bytes_and_only_if_read() -> None:
    plain: dict[str, metadata.Plain] = {"a": "x", "n": 1, "f": 1.0, "b": True, "l": ["p", "q"]}
    packed = metadata.to_proto(plain).SerializeToString()
    vector = np.arange(DIMENSION, dtype=np.float32)
    full = item_messages.item_message(StoredItem("i", vector, packed))
    assert full.metadata == metadata.to_proto(plain)
    assert np.array_equal(np.frombuffer(full.vector.f32, "<f4"), vector)
    assert item_messages.item_message(StoredItem("i")) == pb.Item(id="i")
    assert item_messages.item_message(StoredItem("i", packed=b"")).HasField("metadata"), "asked for, and empty"


# --- updates of metadata --------------------------------------------------------------------------------------------


def change(item_id: str = "i", remove: tuple[str, ...] = (), **keys: metadata.Plain) -> pb.MetadataUpdate:
    return pb.MetadataUpdate(id=item_id, set=metadata.to_proto(keys), remove_keys=remove)


def test_an_update_sets_and_removes_and_a_key_of_both_is_set() -> None:
    message = change(remove=("old", "width", "old"), width=3)
    (update,) = item_messages.updates([message])
    assert (update.id, dict(update.set), tuple(update.remove), update.replace) == ("i", {"width": 3}, ("old",), False)
    message.replace = True
    assert item_messages.updates([message])[0].replace


def test_a_key_set_to_an_empty_list_is_removed() -> None:
    message = change(width=3)
    message.set.fields["labels"].strings_value.SetInParent()
    (update,) = item_messages.updates([message])
    assert (dict(update.set), tuple(update.remove)) == ({"width": 3}, ("labels",))


def test_what_the_store_keeps_for_itself_cannot_be_removed() -> None:
    error = refused(lambda: item_messages.updates([change(remove=("fine", "_seq"))]))
    assert (error.reason_name, error.violations[0].field) == ("FIELD_INVALID", "updates[0].remove_keys[1]")


def test_updates_name_every_bad_one_and_each_item_once() -> None:
    updates = [change("a"), change(""), change("a"), change("b")]
    updates[3].set.fields["likeness.x"].int_value = 1
    error = refused(lambda: item_messages.updates(updates))
    assert [v.field for v in error.violations] == ["updates[1].id", "updates[2].id", "updates[3].set.fields"]
    assert refused(lambda: item_messages.updates([])).violations[0].field == "updates"
    too_many = refused(lambda: item_messages.updates([change(f"i{n}") for n in range(1025)]))
    assert too_many.reason == error_pb2.REASON_BATCH_TOO_LARGE


# --- queries --------------------------------------------------------------------------------------------------------


def asked(**changes: object) -> pb.Query:
    return pb.Query(examples=[pb.Example(vector=GOOD)], **changes)  # type: ignore[arg-type]


def read_query(message: pb.Query) -> Query:
    (query,) = query_messages.queries([message], collection_of())
    if isinstance(query, LikenessError):
        raise query
    return query


def test_what_a_query_leaves_out_has_its_default() -> None:
    query = read_query(asked())
    assert (query.top_k, query.offset, query.min_score, query.where, query.rescore) == (10, 0, None, None, None)
    assert query.examples[0].weight == 1


@pytest.mark.parametrize(
    ("top_k", "offset", "given", "candidates"),
    [(10, 0, 0, 100), (10, 20, 0, 300), (1, 0, 0, 100), (10, 0, 5, 10), (10, 0, 500, 500), (1000, 9000, 0, 10_000)],
)
def test_rescoring_scores_as_many_candidates_as_the_contract_says(
    top_k: int, offset: int, given: int, candidates: int
) -> None:
    rescore = pb.Rescore(metric=types_pb2.METRIC_L1, candidates=given)
    read = read_query(asked(top_k=top_k, offset=offset, rescore=rescore)).rescore
    assert read is not None
    assert (read.scoring, read.candidates) == (Scoring.L1, candidates)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (asked(top_k=1001), "top_k"),
        (asked(offset=9991), "offset"),
        (asked(top_k=1000, offset=9001), "offset"),
        (asked(min_score=float("nan")), "min_score"),
        (asked(rescore=pb.Rescore(metric=types_pb2.Metric.ValueType(99))), "rescore.metric"),
        (asked(rescore=pb.Rescore(metric=types_pb2.METRIC_L1, candidates=10_001)), "rescore.candidates"),
        (asked(filter=metadata_pb2.Filter()), "filter"),
        (pb.Query(), "examples"),
        (pb.Query(examples=[pb.Example(vector=GOOD)] * 65), "examples"),
        (pb.Query(examples=[pb.Example(vector=GOOD), pb.Example()]), "examples[1]"),
        (pb.Query(examples=[pb.Example(vector=GOOD), pb.Example(id="\n")]), "examples[1].id"),
        (pb.Query(examples=[pb.Example(vector=GOOD), pb.Example(vector=numbers(1))]), "examples[1].vector"),
        (pb.Query(examples=[pb.Example(vector=GOOD, weight=101)]), "examples[0].weight"),
        (pb.Query(examples=[pb.Example(vector=GOOD, weight=float("nan"))]), "examples[0].weight"),
    ],
)
def test_a_bad_query_is_refused_by_itself_and_by_name(message: pb.Query, field: str) -> None:
    before, bad, after = query_messages.queries([asked(), message, asked()], collection_of())
    assert isinstance(bad, LikenessError)
    assert bad.violations[0].field == f"queries[1].{field}"
    assert isinstance(before, Query)
    assert isinstance(after, Query)


def test_hits_left_out_by_offsets_count_towards_the_limit_of_a_call() -> None:
    within = [asked(top_k=500, offset=4500)] * 2
    assert len(query_messages.queries(within, collection_of())) == 2
    error = refused(lambda: query_messages.queries([*within, asked(top_k=1)], collection_of()))
    assert (error.reason_name, error.violations[0].field) == ("BATCH_TOO_LARGE", "queries")


def test_answers_stand_in_order_with_hits_or_an_error() -> None:
    packed = metadata.to_proto({"a": 1}).SerializeToString()
    rows = [Row(StoredItem("x", None, packed), 0.75, 0.25), Row(StoredItem("y"), 0.5, 0.5)]
    error = LikenessError(error_pb2.REASON_ITEM_NOT_FOUND, "gone")
    response = query_messages.response(collection_of(), [rows, error, []])
    assert response.fingerprint.digest == "a1" * 32
    found, failed, empty = response.results
    assert [(h.id, h.score, h.distance) for h in found.hits] == [("x", 0.75, 0.25), ("y", 0.5, 0.5)]
    assert found.hits[0].metadata == metadata.to_proto({"a": 1})
    assert not found.hits[1].HasField("metadata")
    assert failed.error.reason == error_pb2.REASON_ITEM_NOT_FOUND
    assert not failed.hits
    assert empty == pb.QueryResult()


# --- large answers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def built_in(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads in which answers have been put together."""
    threads: list[threading.Thread] = []

    def watch(module: Any, name: str) -> None:
        build = getattr(module, name)

        def watched(*args: Any) -> Any:
            threads.append(threading.current_thread())
            return build(*args)

        monkeypatch.setattr(module, name, watched)

    watch(query_messages, "response")
    watch(item_messages, "found_response")
    return threads


SMALL = StoredItem("x", None, metadata.to_proto({"a": "b" * 50}).SerializeToString())
BIG = StoredItem("x", None, metadata.to_proto({"a": "b" * 60_000}).SerializeToString())


@pytest.mark.parametrize(("item", "count", "aside"), [(SMALL, 10, False), (SMALL, 600, True), (BIG, 10, True)])
async def test_a_large_answer_is_put_together_in_a_thread_and_a_usual_one_at_once(
    built_in: list[threading.Thread], item: StoredItem, count: int, aside: bool
) -> None:
    row, failed = Row(item, 0.5, 0.5), LikenessError(error_pb2.REASON_ITEM_NOT_FOUND, "gone")
    hits = await query_messages.respond(collection_of(), [[row] * (count - 5), failed, [row] * 5])
    assert hits == query_messages.response(collection_of(), [[row] * (count - 5), failed, [row] * 5])
    found = await item_messages.respond_found(["x"] * count, {"x": item})
    assert (len(found.items), found.items[-1].metadata) == (count, item_messages.item_message(item).metadata)
    assert [thread is not threading.current_thread() for thread in built_in] == [aside, False, aside]


@pytest.mark.usefixtures("built_in")
async def test_a_large_answer_that_fits_no_message_is_refused_all_the_same() -> None:
    with pytest.raises(LikenessError) as caught:
        await item_messages.respond_found(["x"] * 900, {"x": BIG})
    assert caught.value.reason == error_pb2.REASON_BATCH_TOO_LARGE


# --- answers too large for a message --------------------------------------------------------------------------------

LARGE = StoredItem("x", np.zeros(DIMENSION, np.float32), b"")
LARGE_BYTES = 1 + 4 * DIMENSION


@pytest.fixture
def room_for_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_ANSWER_BYTES", 10 * LARGE_BYTES)


@pytest.mark.usefixtures("room_for_ten")
def test_items_that_fit_no_message_are_refused_and_count_as_often_as_they_are_asked_for() -> None:
    response = item_messages.found_response(["x", "y"] * 10, {"x": LARGE})
    assert (len(response.items), list(response.missing_ids)) == (10, ["y"] * 10)
    error = refused(lambda: item_messages.found_response(["x"] * 11, {"x": LARGE}))
    assert (error.reason, error.violations[0].field) == (error_pb2.REASON_BATCH_TOO_LARGE, "ids")
    assert "fewer ids" in error.message
    assert "(fields)" in error.message


@pytest.mark.usefixtures("room_for_ten")
def test_hits_that_fit_no_message_are_refused_over_all_queries_of_a_call() -> None:
    row, failed = Row(LARGE, 0.5, 0.5), LikenessError(error_pb2.REASON_ITEM_NOT_FOUND, "gone")
    response = query_messages.response(collection_of(), [[row] * 5, failed, [row] * 5])
    assert [len(result.hits) for result in response.results] == [5, 0, 5]
    error = refused(lambda: query_messages.response(collection_of(), [[row] * 5, failed, [row] * 6]))
    assert (error.reason, error.violations[0].field) == (error_pb2.REASON_BATCH_TOO_LARGE, "queries")
    assert "(top_k)" in error.message
    assert "(fields)" in error.message


@pytest.mark.usefixtures("room_for_ten")
def test_facets_that_fit_no_message_are_refused_by_the_bytes_of_their_texts() -> None:
    fits = Facet("fits", [("é" * 42, 1), ("a" * 86, 1), (7, 1), (True, 1)], 4, 0)
    assert len(messages.facets_response(2, [fits]).facets[0].values) == 4
    error = refused(lambda: messages.facets_response(2, [fits, Facet("more", [("b", 1)], 1, 0)]))
    assert (error.reason, error.violations[0].field) == (error_pb2.REASON_BATCH_TOO_LARGE, "facets")
    assert "lower limits" in error.message


def test_the_limit_is_named_in_mebibytes() -> None:
    error = refused(lambda: messages.check_answer([48 * 2**20, 1], "ids", "ask for less"))
    assert error.message == "ids: the answer would be larger than 48 MiB, the most that one takes; ask for less"


# --- the rest -------------------------------------------------------------------------------------------------------


def test_facets_are_read_in_order_with_their_limits() -> None:
    wanted = messages.facets([pb.FacetRequest(key="b", limit=3), pb.FacetRequest(key="a")])
    assert list(wanted.items()) == [("b", 3), ("a", 10)]


def test_bad_facets_are_all_named() -> None:
    bad = [pb.FacetRequest(key=k, limit=n) for k, n in (("a", 1), ("_seq", 1), ("a", 2), ("c", 1001))]
    error = refused(lambda: messages.facets(bad))
    assert [v.field for v in error.violations] == ["facets[1].key", "facets[2].key", "facets[3].limit"]
    assert refused(lambda: messages.facets([])).violations[0].field == "facets"
    many = refused(lambda: messages.facets([pb.FacetRequest(key=f"k{n}") for n in range(33)]))
    assert many.reason == error_pb2.REASON_BATCH_TOO_LARGE


@pytest.mark.parametrize(
    ("value", "kind", "sent"),
    [
        ("x", "string_value", "x"),
        (True, "bool_value", True),
        (3, "int_value", 3),
        (3.0, "int_value", 3),
        (-0.0, "int_value", 0),
        (2.5, "double_value", 2.5),
        (2**53 - 1, "int_value", 2**53 - 1),
        (2**53, "double_value", 2.0**53),
        (1e300, "double_value", 1e300),
    ],
)
def test_a_value_counted_is_sent_as_the_contract_says(value: str | float, kind: str, sent: object) -> None:
    message = messages.facet_message(Facet("key", [(value, 7)], 1, 2))
    assert (message.key, message.distinct, message.missing, message.values[0].count) == ("key", 1, 2, 7)
    assert message.values[0].value.WhichOneof("kind") == kind
    assert getattr(message.values[0].value, kind) == sent


def test_the_status_stands_by_name_and_says_nothing_of_a_recall_not_measured() -> None:
    probed = CollectionStatus("a", Mode.MEMORY, rows=5, dead_rows=1, unindexed_rows=2, memory_bytes=9, recall=0.5)
    loading = CollectionStatus("b", Mode.LOADING, "being read", loaded=1, total=3)
    message = messages.status_message(Status(True, 9, 99, [loading, probed]), [None, 7])
    assert (message.store_available, message.memory_bytes, message.memory_budget_bytes) == (True, 9, 99)
    first, second = message.collections
    assert (first.name, first.mode, first.rows, first.recall) == ("a", pb.SERVING_MODE_MEMORY, 5, 0.5)
    assert (second.name, second.mode, second.reason) == ("b", pb.SERVING_MODE_LOADING, "being read")
    assert not second.HasField("recall")
    assert (second.loaded, second.total) == (1, 3)


def test_the_status_has_the_share_of_dead_rows_the_disk_and_the_last_write_where_they_are_known() -> None:
    status = CollectionStatus("a", Mode.MEMORY, rows=8, dead_rows=2, last_write=1_700_000_000_000_001)
    message = messages.collection_status(status, 7)
    assert (message.dead_share, message.disk_bytes) == (0.25, 7)
    assert message.last_write_time.ToMicroseconds() == 1_700_000_000_000_001
    message = messages.collection_status(CollectionStatus("a", Mode.CHROMA), None)
    assert message.dead_share == 0
    assert not message.HasField("disk_bytes")
    assert not message.HasField("last_write_time")


@pytest.mark.parametrize(("name", "least", "most"), [(n, *r) for n, r in messages.HNSW_RANGES.items()])
def test_parameters_of_an_index_are_checked(name: str, least: int, most: int) -> None:
    for value in (0, least, most):
        assert getattr(messages.hnsw(pb.HnswParameters(**{name: value})), name) == value
    for value in (least - 1, most + 1):
        error = refused(lambda v=value: messages.hnsw(pb.HnswParameters(**{name: v})))  # type: ignore[misc]
        assert error.violations[0].field == f"hnsw.{name}"
        assert f"expected {least:,} to {most:,}, or 0" in error.message


def test_every_bad_parameter_is_named() -> None:
    error = refused(lambda: messages.hnsw(pb.HnswParameters(max_neighbors=1, ef_construction=3000, ef_search=64)))
    assert [v.field for v in error.violations] == ["hnsw.max_neighbors", "hnsw.ef_construction"]


def test_a_description_has_at_most_a_kilobyte() -> None:
    assert messages.description("é" * 512) == "é" * 512
    assert refused(lambda: messages.description("é" * 512 + "x")).violations[0].field == "description"


def test_the_limits_published_are_those_that_are_checked() -> None:
    limits = published(2**26)
    for field in pb.Limits.DESCRIPTOR.fields:
        assert getattr(limits, field.name) > 0, field.name
    assert refused(lambda: messages.page_size(limits.page_size + 1)).reason == error_pb2.REASON_FIELD_INVALID
    assert messages.page_size(limits.page_size) == limits.page_size
    assert refused(lambda: messages.ids(["i"] * (limits.batch + 1))).reason == error_pb2.REASON_BATCH_TOO_LARGE
    assert len(messages.ids(["i" * limits.id_bytes] * limits.batch)) == limits.batch
    assert refused(lambda: messages.ids(["i" * (limits.id_bytes + 1)])).reason == error_pb2.REASON_FIELD_INVALID


def test_a_collection_is_not_made_with_a_metric_for_rescoring() -> None:
    assert messages.metric(types_pb2.METRIC_UNSPECIFIED) is Metric.COSINE
    for number in (types_pb2.METRIC_L1, types_pb2.METRIC_CORRELATION, 99):
        assert refused(lambda n=number: messages.metric(n)).violations[0].field == "metric"  # type: ignore[misc]
