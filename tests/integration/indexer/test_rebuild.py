"""Storing a collection anew: under load, with other parameters, and when the indexer is killed in between."""

import itertools
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import chromadb
import grpc
import psutil
import pytest
from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from indexer.disk_usage import folder_bytes
from tests.integration.indexer.calls import (
    PORT,
    Start,
    Stub,
    chroma_of,
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
from tests.processes import Service, eventually, start_chroma, start_service


def fill(stub: Stub, name: str, first: int, behind: int) -> None:
    for begin in range(first, behind, 200):
        upsert(stub, name, *(item(n, width=n, tags=[f"tag {n}"]) for n in range(begin, min(begin + 200, behind))))


def rebuild(stub: Stub, name: str) -> pb.RebuildCollectionResponse:
    *_, last = stub.RebuildCollection(pb.RebuildCollectionRequest(collection=name), timeout=120)
    assert last.HasField("collection")
    return last


def stored(data: Path) -> dict[str, str]:
    """Chroma's collections, by id their names."""
    with closing(sqlite3.connect(f"file:{data}/chroma/chroma.sqlite3?mode=ro", uri=True)) as database:
        return dict(database.execute("SELECT id, name FROM collections").fetchall())


def copies(data: Path) -> list[str]:
    return [name for name in stored(data).values() if name.startswith("Likeness.Copy.")]


def directories(data: Path) -> set[str]:
    """The indexes on the disk."""
    return {path.name for path in (data / "chroma").iterdir() if path.is_dir()}


class Load:
    """Writes, deletions and queries all the while; each is checked."""

    def __init__(self, service: Service, name: str) -> None:
        self._service, self._name = service, name
        self.acknowledged: dict[str, bool] = {}  # id → whether it is there
        self.failures: list[BaseException] = []
        self.queries = 0
        self._stopping = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._guarded, args=(work,)) for work in (self._write, self._ask)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join(60)

    def _guarded(self, work: Callable[[Stub, int], None]) -> None:
        with connect(self._service) as channel:
            for n in itertools.count():
                if self._stopping.is_set():
                    return
                try:
                    work(Stub(channel), n)
                except Exception as error:
                    self.failures.append(error)
                    return

    def _write(self, stub: Stub, n: int) -> None:
        upsert(stub, self._name, *(item(100_000 + 3 * n + i, width=n) for i in range(3)))
        self.acknowledged |= {f"i{100_000 + 3 * n + i}": True for i in range(3)}
        if n % 3 == 2:
            gone = f"i{100_000 + 3 * (n - 1)}"
            del self.acknowledged[gone]  # a deletion that is cut off may have been made or not
            stub.DeleteItems(pb.DeleteItemsRequest(collection=self._name, ids=[gone]))
            self.acknowledged[gone] = False

    def _ask(self, stub: Stub, n: int) -> None:
        asked = n % 50
        assert query(stub, self._name, like(unit(asked), 1)).results[0].hits[0].id == f"i{asked}"
        self.queries += 1


def check(stub: Stub, name: str, load: Load, filled: int) -> None:
    """Nothing lost, nothing doubled."""
    there = {item_id for item_id, is_there in load.acknowledged.items() if is_there}
    asked = list(load.acknowledged)
    found = {i for begin in range(0, len(asked), 1000) for i in ids(stub, name, *asked[begin : begin + 1000])}
    assert found == there
    assert count(stub, name) == filled + len(there)


@pytest.mark.parametrize("reads", ["memory", "chroma"])
def test_no_call_fails_while_a_collection_is_stored_anew(start: Start, tmp_path: Path, reads: str) -> None:
    service = start(LIKENESS_READS=reads)
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "photos")
        fill(stub, "photos", 0, 1200)
        uid = stub.GetCollection(pb.GetCollectionRequest(name="photos")).collection.uid
        (key,) = stored(tmp_path / "data")
        load = Load(service, "photos")
        with load.running():
            assert eventually(lambda: load.queries > 0 and len(load.acknowledged) > 3)
            answer = rebuild(stub, "photos")
        assert load.failures == []
        assert load.acknowledged
        check(stub, "photos", load, 1200)
        assert answer.collection.uid == uid
        (now,) = stored(tmp_path / "data")
        assert now != key, "it is another collection in Chroma"
    service.stop()

    service = start(LIKENESS_READS=reads)
    with connect(service) as channel:
        check(Stub(channel), "photos", load, 1200)


def test_a_rebuild_applies_the_parameters_and_gives_the_space_of_what_was_deleted_back(
    start: Start, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    service = start()
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "photos")
        fill(stub, "photos", 0, 3000)
        stub.DeleteItems(pb.DeleteItemsRequest(collection="photos", ids=[f"i{n}" for n in range(1000)]))
        stub.DeleteItems(pb.DeleteItemsRequest(collection="photos", ids=[f"i{n}" for n in range(1000, 2000)]))
        wanted = pb.HnswParameters(max_neighbors=8, ef_construction=40, ef_search=50)
        updated = stub.UpdateCollection(pb.UpdateCollectionRequest(name="photos", hnsw=wanted))
        assert updated.needs_rebuild
        answer = rebuild(stub, "photos")
        assert answer.collection.hnsw == wanted
        assert answer.collection.count == 1000
        assert 0 < answer.bytes_after < answer.bytes_before
        assert abs(folder_bytes(data) - answer.bytes_after) < answer.bytes_after / 2
        status = stub.GetCollection(pb.GetCollectionRequest(name="photos")).status
        assert (status.rows, status.dead_rows) == (1000, 0)
        assert not stub.UpdateCollection(pb.UpdateCollectionRequest(name="photos", hnsw=wanted)).needs_rebuild
        assert copies(data) == list(stored(data).values())
    service.stop()
    process, url = start_chroma(data / "chroma")
    try:
        (collection,) = chromadb.HttpClient(host="127.0.0.1", port=int(url.rsplit(":", 1)[1])).list_collections()
        hnsw = collection.configuration_json["hnsw"]
        assert (hnsw["max_neighbors"], hnsw["ef_construction"], hnsw["ef_search"]) == (8, 40, 50)
    finally:
        process.kill()
        process.wait(10)


def kill_when(service: Service, stub: Stub, reached: Callable[[str], bool]) -> str:
    """Asks for a rebuild and kills the indexer in the stage that is waited for; returns the stage."""
    stage = ""
    try:
        for message in stub.RebuildCollection(pb.RebuildCollectionRequest(collection="photos"), timeout=120):
            stage = message.progress.stage
            if reached(stage):
                service.kill()
                return stage
    except grpc.RpcError:
        return stage
    return "ended"


@pytest.mark.parametrize("stage", ["copying", "dropping what was replaced"])
def test_a_rebuild_that_is_killed_leaves_one_whole_collection(start: Start, tmp_path: Path, stage: str) -> None:
    data = tmp_path / "data"
    service = start()
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "photos")
        fill(stub, "photos", 0, 1500)
        load = Load(service, "photos")
        with load.running():
            kill_when(service, stub, lambda reached: reached == stage)
            service.kill()
        assert all(isinstance(error, grpc.RpcError) for error in load.failures)

    service = start()
    with connect(service) as channel:
        stub = Stub(channel)
        # What was under way when it was killed may be there or not.
        missing = {i for i, there in load.acknowledged.items() if there} - {
            i
            for begin in range(0, len(load.acknowledged), 1000)
            for i in ids(stub, "photos", *list(load.acknowledged)[begin : begin + 1000])
        }
        assert missing == set()
        assert ids(stub, "photos", *(f"i{n}" for n in range(1000))) == [f"i{n}" for n in range(1000)]
        listed = [i.id for i in stub.ListItems(pb.ListItemsRequest(collection="photos", page_size=1000)).items]
        assert len(listed) == len(set(listed))
        assert eventually(lambda: len(stored(data)) == 1), stored(data)
        assert eventually(lambda: len(directories(data)) == 1)
        assert eventually(lambda: not list((data / "unfinished").glob("*")))
        upsert(stub, "photos", item(7, width=7))
        assert rebuild(stub, "photos").collection.count == count(stub, "photos")


def test_one_rebuild_at_a_time_and_a_caller_that_goes_away_ends_nothing(start: Start, tmp_path: Path) -> None:
    service = start()
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "photos")
        fill(stub, "photos", 0, 1500)
        (key,) = stored(tmp_path / "data")
        call = stub.RebuildCollection(pb.RebuildCollectionRequest(collection="photos"))
        assert next(call).HasField("progress")
        error = refusal(lambda: list(stub.RebuildCollection(pb.RebuildCollectionRequest(collection="photos"))))
        assert error.reason == error_pb2.REASON_COLLECTION_BUSY
        assert "rebuild of 'photos' is under way" in error.message
        call.cancel()
        assert eventually(lambda: key not in stored(tmp_path / "data"))
        assert count(stub, "photos") == 1500


def test_a_stop_undoes_a_rebuild_that_copies(start: Start, tmp_path: Path) -> None:
    service = start()
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "photos")
        fill(stub, "photos", 0, 1500)
        (key,) = stored(tmp_path / "data")
        call = stub.RebuildCollection(pb.RebuildCollectionRequest(collection="photos"))
        assert any(message.progress.stage == "copying" for message in call)
        assert service.stop() == 0
        assert refusal(lambda: list(call)).reason == error_pb2.REASON_SHUTTING_DOWN
    assert len(copies(tmp_path / "data")) == 1, "it is not waited for until it is emptied"
    service = start()
    with connect(service) as channel:
        assert count(Stub(channel), "photos") == 1500
        assert eventually(lambda: list(stored(tmp_path / "data")) == [key])


def test_deleting_a_collection_gives_its_disk_space_back_and_leaves_nothing_to_others(
    start: Start, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    service = start()
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "kept")
        fill(stub, "kept", 0, 100)
        before, indexes = folder_bytes(data / "chroma"), directories(data)
        create(stub, "gone")
        fill(stub, "gone", 0, 1500)
        assert len(directories(data)) == len(indexes) + 1
        stub.DeleteCollection(pb.DeleteCollectionRequest(name="gone"))
        assert eventually(lambda: directories(data) == indexes)
        # Chroma gives row numbers anew; lists of the items that had them must not come with them.
        upsert(stub, "kept", *(item(n) for n in range(500, 600)))
    service.stop()
    service = start(LIKENESS_READS="chroma")
    with connect(service) as channel:
        wanted = pb.GetItemsRequest(collection="kept", ids=[f"i{n}" for n in range(500, 600)])
        wanted.fields.metadata = True
        items = Stub(channel).GetItems(wanted).items
        assert len(items) == 100
        assert not any(each.metadata.fields for each in items)
        assert rebuild(Stub(channel), "kept").bytes_after < 4 * before


def test_writes_wait_while_chroma_is_paused_and_health_stays(start: Start) -> None:
    service = start()
    chroma = chroma_of(service)
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "photos")
        fill(stub, "photos", 0, 300)
        load = Load(service, "photos")
        with load.running():
            rebuild(stub, "photos")
        assert load.failures == []
    psutil.wait_procs([chroma], timeout=10)
    assert chroma_of(service).pid != chroma.pid
    assert '"serving": false' not in service.log.split("warmed up")[1]


def test_a_collection_in_somebody_elses_chroma_is_stored_anew(tmp_path: Path) -> None:
    process, url = start_chroma(tmp_path / "elsewhere")
    service = None
    try:
        env = {"LIKENESS_DATA_DIR": str(tmp_path / "data"), "LIKENESS_CHROMA_URL": url}
        service = start_service("indexer", env, PORT, tmp_path)
        with connect(service) as channel:
            stub = Stub(channel)
            create(stub, "photos")
            fill(stub, "photos", 0, 300)
            answer = rebuild(stub, "photos")
            assert (answer.collection.count, answer.bytes_before, answer.bytes_after) == (300, 0, 0)
            assert query(stub, "photos", like(unit(7), 1)).results[0].hits[0].id == "i7"
    finally:
        if service is not None:
            service.kill()
        process.kill()
        process.wait(10)
