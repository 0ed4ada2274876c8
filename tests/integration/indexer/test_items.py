"""Items: written, read, changed and deleted."""

from collections.abc import Iterator, Mapping

import grpc
import numpy as np
from likeness.common.v1 import error_pb2, metadata_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from chassis import metadata
from chassis.metadata import Plain
from tests.integration.indexer.calls import (
    DIMENSION,
    EVERYTHING,
    FINGERPRINT,
    LABELLED,
    OTHER_MODEL,
    Stub,
    compared,
    count,
    create,
    ids,
    item,
    like,
    negated,
    numbers,
    query,
    refusal,
    unit,
    upsert,
)


def test_items_are_written_read_counted_and_deleted(stub: Stub) -> None:
    name = create(stub, "items")
    first, second = item(1, label="x", width=3, labels=["a", "b"]), item(2)
    assert upsert(stub, name, first, second, item(1, label="y")) == 2, "of several with one id the last counts"
    upsert(stub, name, first)
    answer = stub.GetItems(pb.GetItemsRequest(collection=name, ids=["i2", "none", "i1", "i2"], fields=EVERYTHING))
    assert [i.id for i in answer.items] == ["i2", "i1", "i2"]
    assert answer.missing_ids == ["none"]
    assert answer.items[1].metadata == first.metadata
    for got, sent in ((answer.items[1], first), (answer.items[0], second)):
        np.testing.assert_allclose(
            np.frombuffer(got.vector.f32, "<f4"), np.frombuffer(sent.vector.f32, "<f4"), rtol=1e-6
        )
    bare = stub.GetItems(pb.GetItemsRequest(collection=name, ids=["i1"])).items[0]
    assert bare == pb.Item(id="i1")
    assert stub.CountItems(pb.CountItemsRequest(collection=name)).count == 2
    assert stub.DeleteItems(pb.DeleteItemsRequest(collection=name, ids=["i1", "none", "i1"])).deleted == 1
    assert ids(stub, name, "i1", "i2") == ["i2"]


def test_a_collection_made_anew_takes_nothing_that_was_meant_for_the_one_before(stub: Stub) -> None:
    name = create(stub, "anew")
    uid = stub.GetCollection(pb.GetCollectionRequest(name=name)).collection.uid
    meant = pb.UpsertItemsRequest(collection=name, items=[item(1)], expected_uid=uid)
    assert stub.UpsertItems(meant).stored == 1
    stub.DeleteCollection(pb.DeleteCollectionRequest(name=name))
    stub.CreateCollection(pb.CreateCollectionRequest(name=name, fingerprint=FINGERPRINT))
    assert refusal(lambda: stub.UpsertItems(meant)).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert count(stub, name) == 0
    meant.expected_uid = ""
    assert stub.UpsertItems(meant).stored == 1


def test_replaced_metadata_leaves_no_old_key(stub: Stub) -> None:
    name = create(stub, "replaced")
    upsert(stub, name, item(1, label="x", width=3, labels=["a"]))
    upsert(stub, name, item(1, width=4))
    got = stub.GetItems(pb.GetItemsRequest(collection=name, ids=["i1"], fields=EVERYTHING)).items[0]
    assert got.metadata == item(1, width=4).metadata
    exists = metadata_pb2.Comparison(key="label", op=metadata_pb2.OPERATOR_EXISTS)
    result = query(stub, name, like(unit(1), where=metadata_pb2.Filter(comparison=exists))).results[0]
    assert list(result.hits) == []
    upsert(stub, name, item(1))
    got = stub.GetItems(pb.GetItemsRequest(collection=name, ids=["i1"], fields=EVERYTHING)).items[0]
    assert not got.metadata.fields


def test_one_bad_item_refuses_the_call_and_every_bad_field_is_named(stub: Stub) -> None:
    name = create(stub, "bad-items")
    long_key = item(4)
    long_key.metadata.fields["bad key"].int_value = 1
    unset = item(5)
    unset.metadata.fields["unset"].SetInParent()
    bad = [
        item(0),
        pb.Item(id="i1", vector=numbers(1, 2, 3)),
        pb.Item(id="i2", vector=numbers(*[float("nan")] * DIMENSION)),
        pb.Item(id="", vector=unit(3)),
        long_key,
        unset,
        pb.Item(id="i6", vector=numbers(*[0.0] * DIMENSION)),
        pb.Item(id="i7"),
        pb.Item(id="i8", vector=numbers(*[3e38] * DIMENSION)),
    ]
    error = refusal(lambda: upsert(stub, name, *bad))
    assert error.reason == error_pb2.REASON_VECTOR_INVALID
    assert [v.field for v in error.violations] == [
        "items[1].vector",
        "items[2].vector",
        "items[3].id",
        "items[4].metadata.fields",
        "items[5].metadata.fields['unset']",
        "items[6].vector",
        "items[7].vector",
        "items[8].vector",
    ]
    assert "expected 8, the collection's dimension" in error.violations[0].description
    assert "NaN" in error.violations[1].description
    assert stub.CountItems(pb.CountItemsRequest(collection=name)).count == 0


def test_a_call_of_1024_bad_items_still_gets_an_answer_that_fits(stub: Stub) -> None:
    name = create(stub, "all-bad")
    error = refusal(lambda: upsert(stub, name, *(pb.Item(id="\n" * 400, vector=numbers(1)) for _ in range(1024))))
    assert error.violations[0].field == "items[0].id"
    assert "more bad fields" in error.violations[-1].description


def test_zero_vectors_are_refused_only_where_they_have_no_meaning(stub: Stub) -> None:
    zero = pb.Item(id="zero", vector=numbers(*[0.0] * DIMENSION))
    name = create(stub, "l2-zero", types_pb2.METRIC_L2)
    assert upsert(stub, name, zero, item(1)) == 2


def test_another_model_is_refused_at_write_and_at_query(stub: Stub) -> None:
    name = create(stub, "guarded")
    for call in (
        lambda: stub.UpsertItems(
            pb.UpsertItemsRequest(collection=name, expected_fingerprint=OTHER_MODEL, items=[item(1)])
        ),
        lambda: stub.Query(pb.QueryRequest(collection=name, expected_fingerprint=OTHER_MODEL, queries=[like(unit(1))])),
    ):
        error = refusal(call)
        assert error.code is grpc.StatusCode.FAILED_PRECONDITION
        assert error.reason == error_pb2.REASON_MODEL_MISMATCH
        assert "'starter'" in error.message
        assert "'ViT-B-32'" in error.message
    stub.UpsertItems(pb.UpsertItemsRequest(collection=name, expected_fingerprint=FINGERPRINT, items=[item(1)]))


def stored(stub: Stub, name: str, *wanted: str) -> dict[str, dict[str, Plain]]:
    """The metadata of items, by id."""
    found = stub.GetItems(pb.GetItemsRequest(collection=name, ids=wanted, fields=LABELLED)).items
    return {i.id: metadata.from_proto(i.metadata, i.id) for i in found}


def change(item_id: str, keys: Mapping[str, Plain], *remove: str, replace: bool = False) -> pb.MetadataUpdate:
    return pb.MetadataUpdate(id=item_id, set=metadata.to_proto(keys), remove_keys=remove, replace=replace)


def update(stub: Stub, name: str, *updates: pb.MetadataUpdate) -> pb.UpdateMetadataResponse:
    return stub.UpdateMetadata(pb.UpdateMetadataRequest(collection=name, updates=updates))


def test_a_stream_of_items_is_stored_without_its_bad_ones(stub: Stub) -> None:
    name = create(stub, "streamed")
    sent = [item(n, width=n) for n in range(500)]
    sent[123].vector.f32 = b"bad"
    sent[400].id = ""

    def parts() -> Iterator[pb.UpsertItemsStreamRequest]:
        yield pb.UpsertItemsStreamRequest(collection=name, expected_fingerprint=FINGERPRINT, items=sent[:100])
        for n in range(100, 500, 150):
            yield pb.UpsertItemsStreamRequest(items=sent[n : n + 150])
        yield pb.UpsertItemsStreamRequest(collection=name, items=[item(7, width=70)])

    answer = stub.UpsertItemsStream(parts())
    assert (answer.stored, answer.refused) == (499, 2)
    assert [(r.index, r.error.reason) for r in answer.refusals] == [
        (123, error_pb2.REASON_VECTOR_INVALID),
        (400, error_pb2.REASON_FIELD_INVALID),
    ]
    assert count(stub, name) == 498
    assert stored(stub, name, "i7") == {"i7": {"width": 70}}, "the last of one id counts"
    assert query(stub, name, like(unit(7))).results[0].hits[0].id == "i7"


def test_a_stream_of_another_model_or_of_two_collections_is_refused(stub: Stub) -> None:
    name = create(stub, "streamed-guarded")
    other = pb.UpsertItemsStreamRequest(collection=name, expected_fingerprint=OTHER_MODEL, items=[item(1)])
    assert refusal(lambda: stub.UpsertItemsStream(iter([other]))).reason == error_pb2.REASON_MODEL_MISMATCH
    assert count(stub, name) == 0
    parts = [pb.UpsertItemsStreamRequest(collection=name), pb.UpsertItemsStreamRequest(collection="elsewhere")]
    error = refusal(lambda: stub.UpsertItemsStream(iter(parts)))
    assert error.violations[0].field == "collection"


def test_metadata_is_changed_without_the_vector(stub: Stub) -> None:
    name = create(stub, "updated")
    upsert(stub, name, *(item(n, label="x", width=n, labels=["a", "b"]) for n in range(4)))
    answer = update(
        stub,
        name,
        change("i0", {"width": 10, "new": True}),
        change("nobody", {"width": 1}),
        change("i1", {}, "label", "none"),
        change("i2", {"only": 1.5}, replace=True),
        change("nobody-else", {}, "label"),
    )
    assert (answer.updated, list(answer.missing_ids)) == (3, ["nobody", "nobody-else"])
    assert stored(stub, name, "i0", "i1", "i2", "i3") == {
        "i0": {"label": "x", "width": 10, "labels": ["a", "b"], "new": True},
        "i1": {"width": 1, "labels": ["a", "b"]},
        "i2": {"only": 1.5},
        "i3": {"label": "x", "width": 3, "labels": ["a", "b"]},
    }
    assert count(stub, name, compared("label", "EXISTS")) == 2
    best = (
        stub.Query(
            pb.QueryRequest(collection=name, queries=[like(unit(2), 1, compared("only", "EQ", 1.5))], fields=EVERYTHING)
        )
        .results[0]
        .hits[0]
    )
    assert best.id == "i2"
    np.testing.assert_allclose(np.frombuffer(best.vector.f32, "<f4"), np.frombuffer(unit(2).f32, "<f4"), rtol=1e-6)


def test_an_update_that_breaks_a_limit_changes_nothing_of_its_call(stub: Stub) -> None:
    name = create(stub, "update-limits")
    upsert(stub, name, item(0, **{f"k{n}": n for n in range(60)}), item(1))
    error = refusal(lambda: update(stub, name, change("i1", {"a": 1}), change("i0", {f"new{n}": n for n in range(5)})))
    assert error.reason == error_pb2.REASON_METADATA_INVALID
    assert error.violations[0].field.startswith("updates[1]")
    assert stored(stub, name, "i1") == {"i1": {}}
    assert update(stub, name, change("i0", {"a": 1}, *(f"k{n}" for n in range(60)))).updated == 1
    assert stored(stub, name, "i0") == {"i0": {"a": 1}}


def test_items_are_deleted_by_filter(stub: Stub) -> None:
    name = create(stub, "deleted")
    upsert(stub, name, *(item(n, width=n, label="even" if n % 2 == 0 else "odd") for n in range(200)))
    small_and_even = metadata_pb2.Filter(
        all_of=metadata_pb2.FilterList(filters=[compared("width", "LT", 150), compared("label", "EQ", "even")])
    )
    assert stub.DeleteItems(pb.DeleteItemsRequest(collection=name, filter=small_and_even)).deleted == 75
    assert stub.DeleteItems(pb.DeleteItemsRequest(collection=name, filter=small_and_even)).deleted == 0
    assert count(stub, name) == 125
    assert ids(stub, name, "i0", "i1", "i150") == ["i1", "i150"]
    assert stub.DeleteItems(pb.DeleteItemsRequest(collection=name, filter=negated(small_and_even))).deleted == 125
    assert count(stub, name) == 0
