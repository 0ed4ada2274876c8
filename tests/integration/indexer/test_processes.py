"""What happens to the indexer's process and to Chroma's."""

import itertools
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from chassis.errors import LikenessError, from_status
from chassis.health import serving
from tests.integration.indexer.calls import (
    FINGERPRINT,
    PORT,
    Start,
    Stub,
    chroma_of,
    connect,
    create,
    ids,
    item,
    like,
    query,
    refusal,
    unit,
    upsert,
)
from tests.processes import START_S, Service, eventually, free_port, launch, metric, start_chroma


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
    service = start(LIKENESS_READS="chroma")
    health = watch_health(service)
    assert next(health).status == health_pb2.HealthCheckResponse.SERVING
    acknowledged: list[int] = []
    begun_after_return: list[int] = []  # of those that are acknowledged
    failures: list[LikenessError] = []
    warm, back = threading.Event(), threading.Event()

    def write() -> None:
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
                if len(acknowledged) == 5:
                    warm.set()
                if began_after_return:
                    begun_after_return.append(n)
                if len(begun_after_return) == 3:
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
    assert len(begun_after_return) == 3, "writes that Chroma takes again"
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
        assert second.process.wait(START_S) == 1
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
    service = start(LIKENESS_READS="chroma")
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
    service = start(LIKENESS_STORE_TIMEOUT_S="1", LIKENESS_READS="chroma")
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
        service = start(LIKENESS_CHROMA_URL=url, LIKENESS_READS="chroma")
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


def test_reads_go_on_from_memory_while_chroma_is_away(start: Start) -> None:
    service = start(LIKENESS_READS="memory")
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "remembered")
        upsert(stub, "remembered", *(item(n, width=n) for n in range(20)))
        chroma = chroma_of(service)
        chroma.suspend()
        try:
            assert query(stub, "remembered", like(unit(7), 1)).results[0].hits[0].id == "i7"
            assert stub.CountItems(pb.CountItemsRequest(collection="remembered")).count == 20
            assert len(stub.ListItems(pb.ListItemsRequest(collection="remembered")).items) == 20
        finally:
            chroma.resume()
        assert upsert(stub, "remembered", item(20)) == 1
        assert query(stub, "remembered", like(unit(20), 1)).results[0].hits[0].id == "i20"


def test_a_stream_under_way_ends_when_the_indexer_stops(start: Start) -> None:
    service = start()
    begun = threading.Event()

    def parts() -> Iterator[pb.UpsertItemsStreamRequest]:
        yield pb.UpsertItemsStreamRequest(collection="cut", items=[item(1)])
        begun.set()
        threading.Event().wait(60)

    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "cut")
        upload = stub.UpsertItemsStream.future(parts())
        assert begun.wait(30)
        assert service.stop() == 0
        assert upload.code() is grpc.StatusCode.UNAVAILABLE


def test_items_of_a_collection_that_chroma_serves_are_in_a_metric(start: Start) -> None:
    service = start(LIKENESS_READS="chroma")
    with connect(service) as channel:
        name = create(Stub(channel), "counted")
        upsert(Stub(channel), name, *(item(n) for n in range(3)))
    service.stop()
    port = free_port()
    start(LIKENESS_READS="chroma", LIKENESS_INDEXER_METRICS_PORT=str(port))
    assert eventually(lambda: metric(port, "likeness_indexer_items", collection=name) == 3)
