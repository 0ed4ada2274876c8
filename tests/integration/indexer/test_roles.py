"""One writer and its readers over one Chroma server."""

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from likeness.common.v1 import error_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from chassis.health import serving
from tests.integration.indexer.calls import (
    EVERYTHING,
    PORT,
    Start,
    Stub,
    compared,
    connect,
    count,
    create,
    ids,
    item,
    like,
    query,
    refusal,
    unit,
    upsert,
)
from tests.integration.indexer.test_erase import erase, make, traces
from tests.processes import START_S, Service, free_port, launch, metric, run_to_end, start_chroma

LEASE_S = 4.0
WITHIN_S = 30.0
METRICS = "LIKENESS_INDEXER_METRICS_PORT"


def seen(holds: Callable[[], bool], within_s: float = WITHIN_S) -> float:
    """Waits until something can be seen; returns after how many seconds it was."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within_s, f"not within {within_s:g} s"
        time.sleep(0.05)
    return time.monotonic() - began


def served_from_memory(stub: Stub, name: str) -> bool:
    """Whether reads of the collection are answered from memory by now."""
    status = stub.GetCollection(pb.GetCollectionRequest(name=name)).status
    return status.mode == pb.SERVING_MODE_MEMORY


@pytest.fixture
def chroma(tmp_path: Path) -> Iterator[str]:
    process, url = start_chroma(tmp_path / "chroma")
    yield url
    process.kill()
    process.wait(10)


@pytest.fixture
def indexer(start: Start, chroma: str, tmp_path: Path) -> Start:
    """Starts one over the Chroma, with a data directory of its own name."""

    def start_one(name: str = "writer", **env: str) -> Service:
        role = "writer" if name.startswith("writer") else "reader"
        ours = {"LIKENESS_DATA_DIR": str(tmp_path / name), "LIKENESS_ROLE": role, "LIKENESS_LEASE_S": str(LEASE_S)}
        return start(**({"LIKENESS_CHROMA_URL": chroma} | ours | env))

    return start_one


@contextmanager
def stubs(*services: Service) -> Iterator[list[Stub]]:
    channels = [connect(service) for service in services]
    yield [Stub(channel) for channel in channels]
    for channel in channels:
        channel.close()


def same(one: Stub, other: Stub, name: str) -> bool:
    """Whether both hold the same items; vectors may differ in the last digit."""
    request = pb.ListItemsRequest(collection=name, page_size=1000, fields=EVERYTHING)
    try:
        pages = [stub.ListItems(request).items for stub in (one, other)]
    except grpc.RpcError:
        return False
    told = [[(i.id, i.metadata.SerializeToString(deterministic=True)) for i in page] for page in pages]
    if told[0] != told[1]:
        return False
    mine, others = (np.array([np.frombuffer(i.vector.f32, "<f4") for i in page]) for page in pages)
    return np.allclose(mine, others, rtol=1e-5, atol=1e-6)


def test_what_the_writer_erases_leaves_the_files_of_a_reader_too(indexer: Start, tmp_path: Path) -> None:
    writer, reader = indexer(), indexer("reader-1")
    with stubs(writer, reader) as (write, read):
        make(write, "photos", types_pb2.METRIC_COSINE, 300)
        seen(lambda: same(write, read, "photos"))
        seen(lambda: served_from_memory(read, "photos"))  # until then Chroma answered, and there was nothing to save
        seen(lambda: same(write, read, "photos"))
        reader.stop()  # and a snapshot is written
        before = traces(tmp_path / "reader-1", [7])
        assert "7: id" in before, before.keys()
        reader = indexer("reader-1")
        assert erase(write, "photos", 7).deleted == 1
        seen(lambda: traces(tmp_path / "reader-1", [7]) == {}, 60)
    reader.stop()
    assert traces(tmp_path / "reader-1", [7]) == {}
    assert traces(tmp_path / "reader-1", [8]) != {}, "a new snapshot was written"


def test_readers_follow_and_refuse_writes(indexer: Start, tmp_path: Path) -> None:
    port = free_port()
    writer, first = indexer(), indexer("reader-1", **{METRICS: str(port)})
    with stubs(writer, first) as (write, read):
        create(write, "before")
        upsert(write, "before", *(item(n, width=n) for n in range(300)))
        assert seen(lambda: same(write, read, "before")) < 10
        late = indexer("reader-2")
        with stubs(late) as (read_late,):
            assert same(write, read_late, "before"), "it is ready when it has everything"
            # Every kind of write, and more deletions than the writer's document holds.
            upsert(write, "before", *(item(n, width=n) for n in range(300, 900)))
            write.UpdateMetadata(
                pb.UpdateMetadataRequest(
                    collection="before",
                    updates=[pb.MetadataUpdate(id=f"i{n}", remove_keys=["width"]) for n in range(20)],
                )
            )
            moved = [pb.Item(id=f"i{n}", vector=unit(n + 5000)) for n in range(20, 30)]
            write.UpsertItems(pb.UpsertItemsRequest(collection="before", items=moved))
            write.DeleteItems(pb.DeleteItemsRequest(collection="before", ids=["i40", "i41"]))
            write.DeleteItems(pb.DeleteItemsRequest(collection="before", filter=compared("width", "GE", 500)))
            for reader in (read, read_late):
                seen(partial(same, write, reader, "before"))
                assert count(reader, "before") == 498
                assert query(reader, "before", like(unit(5025), 1)).results[0].hits[0].id == "i25"
        status = read.GetStatus(pb.GetStatusRequest())
        assert status.role == pb.ROLE_READER
        assert 0 < status.lag_seconds < 10
        assert 0 < metric(port, "likeness_indexer_reader_lag_seconds") < 10
        for stage in ("queue", "filter", "nearest", "score", "rows"):
            assert metric(port, "likeness_indexer_search_stage_seconds_count", stage=stage) > 0
        assert [c.mode for c in status.collections] == [pb.SERVING_MODE_MEMORY]
        assert write.GetStatus(pb.GetStatusRequest()).role == pb.ROLE_WRITER

        one, update = item(1), pb.MetadataUpdate(id="i1")
        refused: list[Callable[[], object]] = [
            lambda: create(read, "new"),
            lambda: upsert(read, "before", one),
            lambda: read.UpsertItemsStream(iter([pb.UpsertItemsStreamRequest(collection="before", items=[one])])),
            lambda: read.DeleteItems(pb.DeleteItemsRequest(collection="before", ids=["i1"])),
            lambda: read.DeleteCollection(pb.DeleteCollectionRequest(name="before")),
            lambda: read.SetAlias(pb.SetAliasRequest(alias="alias", collection="before")),
            lambda: read.DeleteAlias(pb.DeleteAliasRequest(alias="alias")),
            lambda: read.UpdateCollection(pb.UpdateCollectionRequest(name="before", description="mine")),
            lambda: read.UpdateMetadata(pb.UpdateMetadataRequest(collection="before", updates=[update])),
            lambda: list(read.RebuildCollection(pb.RebuildCollectionRequest(collection="before"))),
            lambda: list(read.EraseItems(pb.EraseItemsRequest(collection="before", ids=["i1"]))),
        ]
        for call in refused:
            error = refusal(call)
            assert error.reason == error_pb2.REASON_READ_ONLY
            assert "LIKENESS_ROLE=reader" in error.message
            assert f"process {writer.process.pid} on " in error.message


def test_collections_and_aliases_come_move_and_go(indexer: Start) -> None:
    writer, reader = indexer(), indexer("reader")
    with stubs(writer, reader) as (write, read):
        create(write, "old")
        upsert(write, "old", *(item(n) for n in range(100)))
        write.SetAlias(pb.SetAliasRequest(alias="library", collection="old"))
        seen(lambda: _answered(read, "library") == 100)
        create(write, "new")
        failures: list[str] = []
        moved, enough = threading.Event(), threading.Event()

        def ask() -> None:
            with stubs(reader) as (stub,):
                while not enough.is_set():
                    try:
                        found = count(stub, "library")
                        hits = len(query(stub, "library", like(unit(7), 300)).results[0].hits)
                    except grpc.RpcError as error:
                        failures.append(str(error))
                        continue
                    if not {found, hits} <= {100, 200}:
                        failures.append(f"{found} items, {hits} hits")
                    if found == 200:
                        moved.set()

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            upsert(write, "new", *(item(n) for n in range(200)))
            write.SetAlias(pb.SetAliasRequest(alias="library", collection="new", expected_collection="old"))
            write.DeleteCollection(pb.DeleteCollectionRequest(name="old"))
            assert moved.wait(WITHIN_S)
        finally:
            enough.set()
            asking.join()
        assert failures == []
        seen(lambda: _names(read) == ["new"])
        assert [(a.name, a.collection) for a in read.ListAliases(pb.ListAliasesRequest()).aliases] == [
            ("library", "new")
        ]
        assert refusal(lambda: count(read, "old")).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
        # One of the same name is another.
        create(write, "old")
        upsert(write, "old", item(1))
        seen(lambda: _answered(read, "old") == 1)


def _names(stub: Stub) -> list[str]:
    return [c.name for c in stub.ListCollections(pb.ListCollectionsRequest()).collections]


def _answered(stub: Stub, name: str) -> int:
    try:
        return count(stub, name)
    except grpc.RpcError:
        return -1


@pytest.mark.parametrize("reads", ["memory", "chroma"])
def test_a_rebuild_is_not_seen_by_readers(indexer: Start, reads: str) -> None:
    writer, reader = indexer(), indexer("reader", LIKENESS_READS=reads)
    with stubs(writer, reader) as (write, read):
        create(write, "rebuilt")
        upsert(write, "rebuilt", *(item(n, width=n) for n in range(500)))
        write.DeleteItems(pb.DeleteItemsRequest(collection="rebuilt", ids=[f"i{n}" for n in range(100)]))
        seen(lambda: same(write, read, "rebuilt"))
        if reads == "memory":
            seen(lambda: served_from_memory(read, "rebuilt"))
        before = read.GetCollection(pb.GetCollectionRequest(name="rebuilt"))
        counts, enough = set[int](), threading.Event()

        def ask() -> None:
            with stubs(reader) as (stub,):
                while not enough.is_set():
                    counts.add(_answered(stub, "rebuilt"))

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            list(write.RebuildCollection(pb.RebuildCollectionRequest(collection="rebuilt")))
            upsert(write, "rebuilt", item(1000))
            seen(lambda: same(write, read, "rebuilt"))
        finally:
            enough.set()
            asking.join()
        assert counts <= {400, 401}
        after = read.GetCollection(pb.GetCollectionRequest(name="rebuilt"))
        assert after.collection.uid == before.collection.uid
        if reads == "memory":
            assert after.status.rows <= before.status.rows + 1, "nothing was loaded anew"


def test_a_second_writer_is_refused_and_one_that_stopped_is_followed(
    indexer: Start, chroma: str, tmp_path: Path
) -> None:
    lease = {"LIKENESS_LEASE_S": "300"}  # longer than a start may take: whoever waited for it would be too late
    writer = indexer(**lease)
    env = {"LIKENESS_DATA_DIR": str(tmp_path / "writer-2"), "LIKENESS_CHROMA_URL": chroma, **lease}
    second = launch("indexer", env, PORT, tmp_path)
    try:
        assert second.process.wait(START_S) == 1
    finally:
        second.kill()
    assert f"process {writer.process.pid} on " in second.log
    assert "LIKENESS_ROLE=reader" in second.log
    assert serving(writer.address, 5) is None
    assert writer.stop() == 0
    with stubs(indexer("writer-2", **lease)) as (write,):
        create(write, "mine")


def test_a_writer_that_was_killed_comes_back_at_once_at_its_place_and_later_elsewhere(indexer: Start) -> None:
    writer, reader = indexer(), indexer("reader")
    with stubs(writer) as (write,):
        create(write, "lasting")
        upsert(write, "lasting", *(item(n) for n in range(50)))
    writer.kill()
    again = indexer()
    with stubs(again, reader) as (write, read):
        upsert(write, "lasting", item(100))
        write.DeleteItems(pb.DeleteItemsRequest(collection="lasting", ids=["i3"]))
        seen(lambda: _names(read) == ["lasting"])
        seen(lambda: ids(read, "lasting", "i0", "i3", "i100") == ["i0", "i100"])
    again.kill()
    with stubs(indexer("writer-elsewhere"), reader) as (write, read):
        upsert(write, "lasting", item(200))
        seen(lambda: ids(read, "lasting", "i100", "i200") == ["i100", "i200"])


def test_a_writer_that_was_stopped_for_longer_than_its_lease_gives_up_and_nothing_is_lost(indexer: Start) -> None:
    writer, reader = indexer(), indexer("reader")
    acknowledged: list[int] = []
    enough = threading.Event()

    def load(first: int, service: Service) -> None:
        with stubs(service) as (stub,):
            for n in itertools.count(first):
                try:
                    upsert(stub, "fenced", item(n))
                except grpc.RpcError:
                    return
                acknowledged.append(n)
                if len(acknowledged) % 50 == 0:
                    enough.set()

    with stubs(writer) as (stub,):
        create(stub, "fenced")
    threads = [threading.Thread(target=load, args=(0, writer))]
    threads[0].start()
    assert enough.wait(30)
    writer.process.send_signal(signal.SIGSTOP)
    try:
        enough.clear()
        second = indexer("writer-2")
        threads.append(threading.Thread(target=load, args=(1_000_000, second)))
        threads[1].start()
        assert enough.wait(30)
    finally:
        writer.process.send_signal(signal.SIGCONT)
    assert writer.process.wait(30) == 1
    assert f"process {second.process.pid} on " in writer.log
    threads[0].join(30)
    with stubs(second, reader) as (write, read):
        second_count = len(acknowledged)
        seen(lambda: len(acknowledged) > second_count, 10)
        second.stop()
        threads[1].join(30)
    with stubs(indexer("writer-2"), reader) as (write, read):
        wanted = [f"i{n}" for n in acknowledged]
        for stub in (write, read):
            seen(partial(_holds, stub, "fenced", wanted))
        seen(lambda: _ids(write, "fenced") == _ids(read, "fenced"))


def _holds(stub: Stub, name: str, wanted: Sequence[str]) -> bool:
    return set(_ids(stub, name)) >= set(wanted)


def _ids(stub: Stub, name: str) -> list[str]:
    found: list[str] = []
    request = pb.ListItemsRequest(collection=name, page_size=1000)
    while True:
        page = stub.ListItems(request)
        found += [each.id for each in page.items]
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def test_while_chroma_is_away_readers_answer_and_say_how_far_they_are_behind(
    indexer: Start, chroma: str, tmp_path: Path
) -> None:
    writer, reader = indexer(), indexer("reader")
    with stubs(writer, reader) as (write, read):
        create(write, "kept")
        upsert(write, "kept", *(item(n) for n in range(20)))
        seen(lambda: same(write, read, "kept"))
        seen(lambda: served_from_memory(read, "kept"))
        (server,) = [
            p for p in psutil.process_iter(["cmdline"]) if str(tmp_path / "chroma") in (p.info["cmdline"] or [])
        ]
        server.suspend()
        try:
            behind = read.GetStatus(pb.GetStatusRequest()).lag_seconds
            seen(lambda: read.GetStatus(pb.GetStatusRequest()).lag_seconds > behind + 3)
            assert write.GetStatus(pb.GetStatusRequest()).role == pb.ROLE_WRITER
            for stub in (write, read):
                assert count(stub, "kept") == 20
        finally:
            server.resume()
        seen(lambda: read.GetStatus(pb.GetStatusRequest()).lag_seconds < 5)
        seen(lambda: _wrote(write, "kept", 100))
        seen(lambda: ids(read, "kept", "i100") == ["i100"])


def _wrote(stub: Stub, name: str, n: int) -> bool:
    try:
        return upsert(stub, name, item(n)) == 1
    except grpc.RpcError:
        return False


def test_a_reader_needs_somebody_to_follow() -> None:
    ended = run_to_end("indexer", {"LIKENESS_ROLE": "reader"})
    assert ended.returncode == 2
    assert "LIKENESS_CHROMA_URL" in ended.stderr


def test_an_indexer_over_chroma_alone_needs_no_memory(indexer: Start) -> None:
    writer, reader = indexer(), indexer("reader", LIKENESS_READS="chroma")
    with stubs(writer, reader) as (write, read):
        create(write, "large", types_pb2.METRIC_L2)
        upsert(write, "large", *(item(n) for n in range(100)))
        seen(lambda: _answered(read, "large") == 100)
        assert query(read, "large", like(unit(7), 1)).results[0].hits[0].id == "i7"
        write.DeleteItems(pb.DeleteItemsRequest(collection="large", ids=["i7"]))
        assert ids(read, "large", "i7") == []
