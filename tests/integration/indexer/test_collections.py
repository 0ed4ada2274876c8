"""Collections, and what every rpc refuses."""

import time
from collections.abc import Callable

import grpc
import pytest
from likeness.common.v1 import error_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from tests.integration.indexer.calls import (
    FINGERPRINT,
    Stub,
    compared,
    create,
    failure,
    ids,
    item,
    like,
    query,
    refusal,
    unit,
    upsert,
)


def test_collections_are_made_described_listed_and_deleted(stub: Stub) -> None:
    made = stub.CreateCollection(
        pb.CreateCollectionRequest(name="col.one", fingerprint=FINGERPRINT, metric=types_pb2.METRIC_L2)
    ).collection
    assert (made.name, made.metric, made.schema_version, made.count) == ("col.one", types_pb2.METRIC_L2, 2, 0)
    assert made.fingerprint == FINGERPRINT
    assert abs(made.create_time.ToSeconds() - time.time()) < 60
    for name in ("col.two", "col.three"):
        create(stub, name)
    upsert(stub, "col.one", item(1), item(2))
    assert stub.GetCollection(pb.GetCollectionRequest(name="col.one")).collection.count == 2

    pages, token = [], ""
    while True:
        page = stub.ListCollections(pb.ListCollectionsRequest(page_size=1, page_token=token))
        pages.append([c.name for c in page.collections])
        token = page.next_page_token
        if not token:
            break
    listed = [name for page_names in pages for name in page_names]
    assert listed == sorted(listed)
    assert {"col.one", "col.two", "col.three"} <= set(listed)
    assert all(len(page_names) == 1 for page_names in pages)

    stub.DeleteCollection(pb.DeleteCollectionRequest(name="col.one"))
    error = refusal(lambda: stub.GetCollection(pb.GetCollectionRequest(name="col.one")))
    assert error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    create(stub, "col.one")
    assert stub.CountItems(pb.CountItemsRequest(collection="col.one")).count == 0


def test_an_unset_metric_is_the_cosine(stub: Stub) -> None:
    create(stub, "default-metric", types_pb2.METRIC_UNSPECIFIED)
    described = stub.GetCollection(pb.GetCollectionRequest(name="default-metric")).collection
    assert described.metric == types_pb2.METRIC_COSINE


def test_parameters_and_description_are_stored_changed_and_said(stub: Stub, request: pytest.FixtureRequest) -> None:
    hnsw = pb.HnswParameters(max_neighbors=8, ef_construction=40, ef_search=50)
    made = stub.CreateCollection(
        pb.CreateCollectionRequest(name="tuned", fingerprint=FINGERPRINT, hnsw=hnsw, description="Bilder")
    ).collection
    assert (made.hnsw, made.description) == (hnsw, "Bilder")
    assert len(made.uid) == 32
    upsert(stub, "tuned", *(item(n) for n in range(50)))

    def update(**changes: object) -> pb.UpdateCollectionResponse:
        return stub.UpdateCollection(pb.UpdateCollectionRequest(name="tuned", **changes))  # type: ignore[arg-type]

    answer = update(description="Fotos")
    assert (answer.collection.description, answer.collection.hnsw, answer.needs_rebuild) == ("Fotos", hnsw, False)
    assert answer.collection.count == 50
    # A wider search needs a rebuild where Chroma answers; links need one wherever.
    wider = pb.HnswParameters(max_neighbors=8, ef_construction=40, ef_search=500)
    for _ in range(2):
        answer = update(hnsw=wider)
        assert answer.collection.hnsw == wider
        assert answer.needs_rebuild == (request.node.callspec.params["indexer"] == "chroma")
    assert update(hnsw=pb.HnswParameters(max_neighbors=16)).needs_rebuild
    assert not update(hnsw=hnsw).needs_rebuild
    assert update().collection == stub.GetCollection(pb.GetCollectionRequest(name="tuned")).collection
    assert query(stub, "tuned", like(unit(7), 1)).results[0].hits[0].id == "i7"
    refused = pb.HnswParameters(ef_search=9)
    error = refusal(lambda: update(hnsw=refused))
    assert (error.reason, error.violations[0].field) == (error_pb2.REASON_FIELD_INVALID, "hnsw.ef_search")


def test_a_collection_says_what_it_takes_and_when_it_was_written_to(stub: Stub, request: pytest.FixtureRequest) -> None:
    name = create(stub, "described")
    before = time.time()
    upsert(stub, name, *(item(n) for n in range(20)))
    stub.DeleteItems(pb.DeleteItemsRequest(collection=name, ids=[f"i{n}" for n in range(5)]))
    answer = stub.GetCollection(pb.GetCollectionRequest(name=name))
    assert (answer.collection.count, answer.status.name) == (15, name)
    assert answer.status.HasField("disk_bytes")
    if request.node.callspec.params["indexer"] == "memory":
        assert answer.status.mode == pb.SERVING_MODE_MEMORY
        assert (answer.status.rows, answer.status.dead_rows, answer.status.dead_share) == (20, 5, 0.25)
        assert before - 1 < answer.status.last_write_time.ToMicroseconds() / 1e6 < time.time() + 1
    else:
        assert answer.status.mode == pb.SERVING_MODE_CHROMA


def test_the_status_publishes_limits_role_and_disk(stub: Stub) -> None:
    status = stub.GetStatus(pb.GetStatusRequest())
    assert (status.role, status.lag_seconds) == (pb.ROLE_WRITER, 0)
    assert status.store_bytes > 0
    limits = status.limits
    assert limits.message_bytes == 64 * 2**20
    name = create(stub, "to-the-limit")
    for call, field in (
        (lambda: upsert(stub, name, *[item(1)] * (limits.batch + 1)), "items"),
        (lambda: query(stub, name, *[like(unit(1))] * (limits.queries + 1)), "queries"),
        (lambda: stub.ListItems(pb.ListItemsRequest(collection=name, page_size=limits.page_size + 1)), "page_size"),
    ):
        error = refusal(call)
        assert error.violations[0].field == field
        assert any(f"{most:,}" in error.message for most in (limits.batch, limits.queries, limits.page_size))
    error = failure(query(stub, name, like(unit(1), limits.top_k + 1)).results[0])
    assert error.violations[0].field == "queries[0].top_k"
    assert f"{limits.top_k:,}" in error.message


def test_a_collection_is_made_once(stub: Stub) -> None:
    create(stub, "twice")
    assert refusal(lambda: create(stub, "twice")).reason == error_pb2.REASON_COLLECTION_EXISTS


def test_an_unknown_collection_is_refused_by_every_rpc(stub: Stub) -> None:
    for call in (
        lambda: stub.GetCollection(pb.GetCollectionRequest(name="nowhere")),
        lambda: stub.DeleteCollection(pb.DeleteCollectionRequest(name="nowhere")),
        lambda: upsert(stub, "nowhere", item(1)),
        lambda: stub.UpsertItemsStream(iter([pb.UpsertItemsStreamRequest(collection="nowhere", items=[item(1)])])),
        lambda: stub.UpdateMetadata(
            pb.UpdateMetadataRequest(collection="nowhere", updates=[pb.MetadataUpdate(id="i1")])
        ),
        lambda: stub.ListItems(pb.ListItemsRequest(collection="nowhere")),
        lambda: stub.GetFacets(pb.GetFacetsRequest(collection="nowhere", facets=[pb.FacetRequest(key="a")])),
        lambda: ids(stub, "nowhere", "i1"),
        lambda: stub.DeleteItems(pb.DeleteItemsRequest(collection="nowhere", ids=["i1"])),
        lambda: stub.CountItems(pb.CountItemsRequest(collection="nowhere")),
        lambda: query(stub, "nowhere", like(unit(1))),
    ):
        error = refusal(call)
        assert error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND
        assert "'nowhere'" in error.message


def fingerprint(**changes: str | int) -> types_pb2.ModelFingerprint:
    changed = types_pb2.ModelFingerprint()
    changed.CopyFrom(FINGERPRINT)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


@pytest.mark.parametrize(
    ("call", "reason", "field"),
    [
        (lambda s: s.CreateCollection(pb.CreateCollectionRequest(name="X")), "FIELD_INVALID", "name"),
        (
            lambda s: s.CreateCollection(pb.CreateCollectionRequest(name="fine")),
            "FIELD_INVALID",
            "fingerprint.digest",
        ),
        (
            lambda s: s.CreateCollection(pb.CreateCollectionRequest(name="fine", fingerprint=fingerprint(dimension=0))),
            "FIELD_INVALID",
            "fingerprint.dimension",
        ),
        (
            lambda s: s.CreateCollection(
                pb.CreateCollectionRequest(name="fine", fingerprint=FINGERPRINT, metric=types_pb2.Metric.ValueType(99))
            ),
            "FIELD_INVALID",
            "metric",
        ),
        (lambda s: s.ListCollections(pb.ListCollectionsRequest(page_size=1001)), "FIELD_INVALID", "page_size"),
        (lambda s: s.ListCollections(pb.ListCollectionsRequest(page_token="é")), "FIELD_INVALID", "page_token"),
        (lambda s: upsert(s, "limits"), "FIELD_INVALID", "items"),
        (lambda s: upsert(s, "limits", *[item(1)] * 1025), "BATCH_TOO_LARGE", "items"),
        (lambda s: ids(s, "limits"), "FIELD_INVALID", "ids"),
        (lambda s: ids(s, "limits", "fine", "x" * 513), "FIELD_INVALID", "ids[1]"),
        (lambda s: s.DeleteItems(pb.DeleteItemsRequest(collection="limits")), "FIELD_INVALID", "ids"),
        (
            lambda s: s.DeleteItems(
                pb.DeleteItemsRequest(collection="limits", ids=["i1"], filter=compared("a", "EXISTS"))
            ),
            "FIELD_INVALID",
            "filter",
        ),
        (
            lambda s: s.CountItems(pb.CountItemsRequest(collection="limits", filter=compared("a", "EQ"))),
            "FILTER_INVALID",
            "filter.comparison.values",
        ),
        (
            lambda s: s.UpdateMetadata(pb.UpdateMetadataRequest(collection="limits")),
            "FIELD_INVALID",
            "updates",
        ),
        (
            lambda s: s.UpsertItemsStream(iter([pb.UpsertItemsStreamRequest(items=[item(1)])])),
            "FIELD_INVALID",
            "collection",
        ),
        (
            lambda s: s.ListItems(pb.ListItemsRequest(collection="limits", page_size=1001)),
            "FIELD_INVALID",
            "page_size",
        ),
        (
            lambda s: s.ListItems(pb.ListItemsRequest(collection="limits", page_token="no token")),
            "FIELD_INVALID",
            "page_token",
        ),
        (
            lambda s: s.ListItems(pb.ListItemsRequest(collection="limits", order_by="no key")),
            "FIELD_INVALID",
            "order_by",
        ),
        (lambda s: s.GetFacets(pb.GetFacetsRequest(collection="limits")), "FIELD_INVALID", "facets"),
        (lambda s: query(s, "limits"), "FIELD_INVALID", "queries"),
        (lambda s: query(s, "limits", *[like(unit(1))] * 129), "BATCH_TOO_LARGE", "queries"),
        (lambda s: query(s, "limits", *[like(unit(1), 1000)] * 11), "BATCH_TOO_LARGE", "queries"),
        (lambda s: query(s, "No Name", like(unit(1))), "FIELD_INVALID", "collection"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(
    stub: Stub, call: Callable[[Stub], object], reason: str, field: str
) -> None:
    if "limits" not in {c.name for c in stub.ListCollections(pb.ListCollectionsRequest(page_size=1000)).collections}:
        create(stub, "limits")
    error = refusal(lambda: call(stub))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason_name == reason
    assert error.violations[0].field == field


def test_the_status_says_where_a_collection_is_served_from(stub: Stub, request: pytest.FixtureRequest) -> None:
    name = create(stub, "status")
    upsert(stub, name, *(item(n) for n in range(5)))
    stub.DeleteItems(pb.DeleteItemsRequest(collection=name, ids=["i1"]))
    status = stub.GetStatus(pb.GetStatusRequest())
    assert status.store_available
    (found,) = [c for c in status.collections if c.name == name]
    if request.node.callspec.params["indexer"] == "memory":
        assert (found.mode, found.reason) == (pb.SERVING_MODE_MEMORY, "")
        assert found.rows - found.dead_rows == 4
        assert 0 < found.memory_bytes <= status.memory_bytes <= status.memory_budget_bytes
    else:
        assert found.mode == pb.SERVING_MODE_CHROMA
        assert "LIKENESS_READS" in found.reason
    stub.DeleteCollection(pb.DeleteCollectionRequest(name=name))
    assert name not in {c.name for c in stub.GetStatus(pb.GetStatusRequest()).collections}
