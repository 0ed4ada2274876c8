"""The indexer as a process of its own, with the Chroma it starts, through its gRPC contract."""

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from likeness.common.v1 import error_pb2, metadata_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2 as pb
from likeness.indexer.v1 import indexer_pb2_grpc

from chassis.errors import LikenessError, from_status
from chassis.health import serving
from tests.processes import Service, launch, run_to_end, start_chroma, start_service

PORT = "LIKENESS_INDEXER_PORT"
DIMENSION = 8
FINGERPRINT = types_pb2.ModelFingerprint(model="starter", digest="a1" * 32, dimension=DIMENSION)
OTHER_MODEL = types_pb2.ModelFingerprint(model="ViT-B-32", digest="b2" * 32, dimension=512)
EVERYTHING = types_pb2.ItemFields(metadata=True, vector=True)

Stub = indexer_pb2_grpc.IndexerServiceStub
Start = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts indexers over one data directory; whatever still runs is killed afterwards."""
    started: list[Service] = []

    def start_one(**env: str) -> Service:
        service = start_service("indexer", {"LIKENESS_DATA_DIR": str(tmp_path / "data"), **env}, PORT, tmp_path)
        started.append(service)
        return service

    yield start_one
    for service in started:
        service.kill()


@pytest.fixture(scope="module")
def indexer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One indexer for the tests that do it no harm."""
    tmp_path = tmp_path_factory.mktemp("indexer")
    # A proxy in the environment must not come between the indexer and its Chroma.
    env = {"LIKENESS_DATA_DIR": str(tmp_path / "data"), "HTTP_PROXY": "http://127.0.0.1:9"}
    service = start_service("indexer", env, PORT, tmp_path)
    yield service
    service.stop()


@pytest.fixture(scope="module")
def stub(indexer: Service) -> Iterator[Stub]:
    with connect(indexer) as channel:
        yield Stub(channel)


def connect(service: Service) -> grpc.Channel:
    return grpc.insecure_channel(
        service.address, options=[("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 200)]
    )


def unit(n: int) -> types_pb2.Vector:
    """One of as many directions as one likes."""
    vector = np.random.default_rng(n).normal(size=DIMENSION).astype("<f4")
    return types_pb2.Vector(f32=vector.tobytes())


def item(n: int, **metadata: str | int | list[str]) -> pb.Item:
    message = pb.Item(id=f"i{n}", vector=unit(n))
    for key, value in metadata.items():
        field = message.metadata.fields[key]
        match value:
            case str():
                field.string_value = value
            case int():
                field.int_value = value
            case list():
                field.strings_value.values.extend(value)
    return message


def create(stub: Stub, name: str, metric: types_pb2.Metric.ValueType = types_pb2.METRIC_COSINE) -> str:
    stub.CreateCollection(pb.CreateCollectionRequest(name=name, fingerprint=FINGERPRINT, metric=metric))
    return name


def upsert(stub: Stub, name: str, *items: pb.Item) -> int:
    return stub.UpsertItems(pb.UpsertItemsRequest(collection=name, items=items)).stored


def like(vector: types_pb2.Vector, top_k: int = 10, where: metadata_pb2.Filter | None = None) -> pb.Query:
    return pb.Query(examples=[pb.Example(vector=vector)], top_k=top_k, filter=where)


def query(stub: Stub, name: str, *queries: pb.Query) -> pb.QueryResponse:
    return stub.Query(pb.QueryRequest(collection=name, queries=queries))


def ids(stub: Stub, name: str, *wanted: str) -> list[str]:
    return [i.id for i in stub.GetItems(pb.GetItemsRequest(collection=name, ids=wanted)).items]


def refusal(call: Callable[[], object]) -> LikenessError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert status is not None, caught.value
    error = from_status(status)
    assert caught.value.code() is error.code
    return error


def failure(result: pb.QueryResult) -> LikenessError:
    status = status_pb2.Status()
    status.CopyFrom(result.error.status)
    error = from_status(status)
    assert result.error.reason == error.reason
    assert not result.hits
    return error


def chroma_of(service: Service) -> psutil.Process:
    (child,) = psutil.Process(service.process.pid).children()
    assert "chroma" in " ".join(child.cmdline())
    return child


# --- what each rpc does ---------------------------------------------------------------------------------------------


def test_collections_are_made_described_listed_and_deleted(stub: Stub) -> None:
    made = stub.CreateCollection(
        pb.CreateCollectionRequest(name="col.one", fingerprint=FINGERPRINT, metric=types_pb2.METRIC_L2)
    ).collection
    assert (made.name, made.metric, made.schema_version, made.count) == ("col.one", types_pb2.METRIC_L2, 1, 0)
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


def test_a_call_of_many_queries_answers_each_by_itself(stub: Stub) -> None:
    name = create(stub, "many")
    upsert(stub, name, *(item(n, width=n) for n in range(100)))
    narrow = metadata_pb2.Comparison(key="width", op=metadata_pb2.OPERATOR_LT)
    narrow.values.add(int_value=5)
    bad = metadata_pb2.Filter()
    bad.all_of.filters.add(comparison=narrow)
    bad.all_of.filters.add(comparison=metadata_pb2.Comparison(key="a", op=metadata_pb2.OPERATOR_EQ))
    opposite = pb.Query(examples=[pb.Example(id="i1"), pb.Example(id="i1", weight=-1)])
    answer = query(
        stub,
        name,
        like(unit(7), 3),
        like(unit(7), 1000, metadata_pb2.Filter(comparison=narrow)),
        like(unit(7), where=bad),
        pb.Query(examples=[pb.Example(id="nobody")]),
        like(types_pb2.Vector(f32=b"1234")),
        opposite,
        pb.Query(examples=[pb.Example(id="i7")], top_k=2),
        like(unit(7), 1001),
        pb.Query(examples=[pb.Example(vector=unit(1), weight=0)]),
        like(types_pb2.Vector(f32=bytes(4 * DIMENSION))),
    )
    assert answer.fingerprint == FINGERPRINT
    results = answer.results
    assert len(results[0].hits) == 3
    assert results[0].hits[0].id == "i7"
    assert results[0].hits[0].score == pytest.approx(1, abs=1e-6)
    assert {h.id for h in results[1].hits} == {"i0", "i1", "i2", "i3", "i4"}
    failed = {n: failure(results[n]) for n in (2, 3, 4, 5, 7, 8, 9)}
    assert {n: (e.reason_name, e.violations[0].field if e.violations else "") for n, e in failed.items()} == {
        2: ("FILTER_INVALID", "queries[2].filter.all_of.filters[1].comparison.values"),
        3: ("ITEM_NOT_FOUND", ""),
        4: ("VECTOR_INVALID", "queries[4].examples[0].vector"),
        5: ("QUERY_CANCELS_OUT", "queries[5].examples"),
        7: ("FIELD_INVALID", "queries[7].top_k"),
        8: ("FIELD_INVALID", "queries[8].examples[0].weight"),
        9: ("VECTOR_INVALID", "queries[9].examples[0].vector"),
    }
    assert [h.id for h in results[6].hits] == [h.id for h in results[0].hits][1:3]


def test_hits_carry_what_was_asked_for(stub: Stub) -> None:
    name = create(stub, "fields")
    upsert(stub, name, item(1, label="x"))
    bare = query(stub, name, like(unit(1))).results[0].hits[0]
    assert not bare.HasField("metadata")
    assert not bare.HasField("vector")
    full = stub.Query(pb.QueryRequest(collection=name, queries=[like(unit(1))], fields=EVERYTHING)).results[0].hits[0]
    assert full.metadata == item(1, label="x").metadata
    assert len(full.vector.f32) == 4 * DIMENSION


def test_a_query_of_an_empty_collection_finds_nothing(stub: Stub) -> None:
    name = create(stub, "empty")
    result = query(stub, name, like(unit(1))).results[0]
    assert list(result.hits) == []
    assert not result.HasField("error")


# --- what is refused ------------------------------------------------------------------------------------------------


def numbers(*values: float) -> types_pb2.Vector:
    return types_pb2.Vector(f32=np.array(values, "<f4").tobytes())


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


def test_an_unknown_collection_is_refused_by_every_rpc(stub: Stub) -> None:
    for call in (
        lambda: stub.GetCollection(pb.GetCollectionRequest(name="nowhere")),
        lambda: stub.DeleteCollection(pb.DeleteCollectionRequest(name="nowhere")),
        lambda: upsert(stub, "nowhere", item(1)),
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


def test_a_collection_is_made_once(stub: Stub) -> None:
    create(stub, "twice")
    assert refusal(lambda: create(stub, "twice")).reason == error_pb2.REASON_COLLECTION_EXISTS


# --- what happens to processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_everything_acknowledged_survives_the_end_of_the_indexer(start: Start, ending: str) -> None:
    service = start()
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "lasting")
        upsert(stub, "lasting", *(item(n, width=n) for n in range(300)))
        stub.DeleteItems(pb.DeleteItemsRequest(collection="lasting", ids=["i0"]))
    chroma = chroma_of(service)
    getattr(service, ending)()
    assert service.process.returncode == (0 if ending == "stop" else -signal.SIGKILL)
    psutil.wait_procs([chroma], timeout=10)
    assert not chroma.is_running(), "Chroma must not outlive the indexer"

    service = start()
    with connect(service) as channel:
        stub = Stub(channel)
        described = stub.GetCollection(pb.GetCollectionRequest(name="lasting")).collection
        assert (described.count, described.fingerprint) == (299, FINGERPRINT)
        assert query(stub, "lasting", like(unit(7))).results[0].hits[0].id == "i7"
        assert ids(stub, "lasting", "i0", "i299") == ["i299"]


def watch_health(service: Service) -> Iterator[health_pb2.HealthCheckResponse]:
    channel = connect(service)
    watch = health_pb2_grpc.HealthStub(channel).Watch(  # type: ignore[attr-defined]
        health_pb2.HealthCheckRequest(service="likeness.indexer.v1.IndexerService"), timeout=60
    )
    with channel:
        yield from watch


def test_chroma_killed_under_the_indexer_comes_back_with_everything_acknowledged(start: Start) -> None:
    service = start()
    health = watch_health(service)
    assert next(health).status == health_pb2.HealthCheckResponse.SERVING
    acknowledged: list[int] = []
    failures: list[LikenessError] = []
    warm, back = threading.Event(), threading.Event()

    def write() -> None:
        wanted_after_return = 3
        with connect(service) as channel:
            for n in itertools.count(0, 10):
                began_after_return = back.is_set()
                try:
                    upsert(Stub(channel), "shaken", *(item(i) for i in range(n, n + 10)))
                except grpc.RpcError as error:
                    status = rpc_status.from_call(error)  # type: ignore[arg-type]
                    assert status is not None
                    failures.append(from_status(status))
                    continue
                acknowledged.append(n)
                wanted_after_return -= began_after_return
                if len(acknowledged) == 5:
                    warm.set()
                if wanted_after_return == 0:
                    return

    with connect(service) as channel:
        create(Stub(channel), "shaken")
    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    assert warm.wait(60)
    old = chroma_of(service)
    old.kill()
    assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert next(health).status == health_pb2.HealthCheckResponse.SERVING
    back.set()
    writer.join(60)
    assert not writer.is_alive()
    health.close()  # type: ignore[attr-defined]
    assert chroma_of(service).pid != old.pid
    assert {e.reason for e in failures} <= {error_pb2.REASON_STORE_UNAVAILABLE}
    assert all(e.retry_after_s for e in failures)
    with connect(service) as channel:
        for n in acknowledged:
            wanted = [f"i{i}" for i in range(n, n + 10)]
            assert ids(Stub(channel), "shaken", *wanted) == wanted


def test_a_second_indexer_on_one_directory_is_refused(start: Start, tmp_path: Path) -> None:
    first = start()
    second = launch("indexer", {"LIKENESS_DATA_DIR": str(tmp_path / "data")}, PORT, tmp_path)
    try:
        assert second.process.wait(30) == 1
    finally:
        second.kill()
    assert str(tmp_path / "data") in second.log
    assert f"indexer {first.process.pid}, chroma {chroma_of(first).pid}" in second.log
    assert serving(first.address, 5) is None


def test_sigterm_during_writes_loses_nothing_acknowledged(start: Start) -> None:
    service = start()
    acknowledged: list[int] = []
    endings: list[grpc.StatusCode] = []
    enough = threading.Event()

    def write(lane: int) -> None:
        with connect(service) as channel:
            for n in itertools.count(lane * 10_000, 20):
                try:
                    upsert(Stub(channel), "ending", *(item(i) for i in range(n, n + 20)))
                except grpc.RpcError as error:
                    endings.append(error.code())
                    return
                acknowledged.append(n)
                if len(acknowledged) > 10:
                    enough.set()

    with connect(service) as channel:
        create(Stub(channel), "ending")
    lanes = [threading.Thread(target=write, args=(lane,)) for lane in range(4)]
    for lane in lanes:
        lane.start()
    assert enough.wait(60)
    assert service.stop() == 0
    for lane in lanes:
        lane.join(30)
    assert len(endings) == 4
    assert set(endings) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    service = start()
    with connect(service) as channel:
        for n in acknowledged:
            wanted = [f"i{i}" for i in range(n, n + 20)]
            assert ids(Stub(channel), "ending", *wanted) == wanted


def test_a_deadline_that_passes_ends_the_call_and_the_indexer_goes_on(start: Start) -> None:
    service = start()
    chroma = chroma_of(service)
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "slow")
        upsert(stub, "slow", item(1))
        chroma.suspend()
        try:
            with pytest.raises(grpc.RpcError) as caught:
                stub.Query(pb.QueryRequest(collection="slow", queries=[like(unit(1))]), timeout=0.5)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            with pytest.raises(grpc.RpcError) as caught:
                stub.UpsertItems(pb.UpsertItemsRequest(collection="slow", items=[item(2)]), timeout=0.5)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        finally:
            chroma.resume()
        assert query(stub, "slow", like(unit(1))).results[0].hits[0].id == "i1"
        assert upsert(stub, "slow", item(3)) == 1


def test_a_chroma_that_does_not_answer_counts_as_away(start: Start) -> None:
    service = start(LIKENESS_STORE_TIMEOUT_S="1")
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "stuck")
        chroma = chroma_of(service)
        chroma.suspend()
        try:
            error = refusal(lambda: stub.CountItems(pb.CountItemsRequest(collection="stuck")))
        finally:
            chroma.resume()
        assert error.reason == error_pb2.REASON_STORE_UNAVAILABLE
        assert error.retry_after_s


def test_a_chroma_of_somebody_else_is_used_and_watched(start: Start, tmp_path: Path) -> None:
    process, url = start_chroma(tmp_path / "elsewhere")
    try:
        service = start(LIKENESS_CHROMA_URL=url)
        assert psutil.Process(service.process.pid).children() == []
        health = watch_health(service)
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        with connect(service) as channel:
            stub = Stub(channel)
            create(stub, "remote")
            upsert(stub, "remote", item(1))
            process.kill()
            process.wait(10)
            assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
            error = refusal(lambda: query(stub, "remote", like(unit(1))))
            assert error.reason == error_pb2.REASON_STORE_UNAVAILABLE
            process, _ = start_chroma(tmp_path / "elsewhere", int(url.rsplit(":", 1)[1]))
            assert next(health).status == health_pb2.HealthCheckResponse.SERVING
            assert query(stub, "remote", like(unit(1))).results[0].hits[0].id == "i1"
        health.close()  # type: ignore[attr-defined]
        assert service.stop() == 0
        assert process.poll() is None, "somebody else's Chroma is not ours to end"
    finally:
        process.kill()
        process.wait(10)


def test_help_prints_every_setting() -> None:
    done = run_to_end("indexer", {}, ["--help"])
    assert done.returncode == 0
    for name in ("INDEXER_PORT", "DATA_DIR", "CHROMA_URL", "CHROMA_TOKEN", "WRITE_CHUNK", "WRITE_QUEUE", "DRAIN_S"):
        assert f"LIKENESS_{name}" in done.stdout
    assert "50052" in done.stdout


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (PORT, "70000"),
        ("LIKENESS_WRITE_CHUNK", "65"),
        ("LIKENESS_CHROMA_URL", "chroma:8000"),
        ("LIKENESS_CHROMA_URL", "http://host:99999"),
    ],
)
def test_a_bad_setting_is_named_and_ends_with_2(name: str, value: str) -> None:
    done = run_to_end("indexer", {name: value})
    assert done.returncode == 2
    assert name in done.stderr
    assert value in done.stderr


def test_a_chroma_that_cannot_be_found_ends_with_1(tmp_path: Path) -> None:
    env = {PORT: "0", "LIKENESS_CHROMA_URL": "http://127.0.0.1:9", "LIKENESS_CHROMA_START_S": "0.1"}
    done = run_to_end("indexer", env)
    assert done.returncode == 1
    assert "http://127.0.0.1:9" in done.stderr


def test_a_stop_while_starting_ends_with_0(tmp_path: Path) -> None:
    # Nobody answers there, so it goes on starting for as long as the test looks.
    env = {"LIKENESS_CHROMA_URL": "http://127.0.0.1:9", "LIKENESS_CHROMA_START_S": "120"}
    service = launch("indexer", env, PORT, tmp_path)
    assert serving(service.address, 30) == "NOT_SERVING"
    assert service.stop() == 0


def test_a_damaged_data_directory_ends_with_1_and_chromas_own_words(tmp_path: Path) -> None:
    (tmp_path / "chroma").mkdir()
    (tmp_path / "chroma" / "chroma.sqlite3").write_text("not a database")
    done = run_to_end("indexer", {PORT: "0", "LIKENESS_DATA_DIR": str(tmp_path), "LIKENESS_CHROMA_START_S": "20"})
    assert done.returncode == 1
    assert str(tmp_path / "chroma") in done.stderr
    assert "not a database" in done.stderr
