"""Erasing: what was there is found in the files before, and nowhere in the data directory afterwards."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from likeness.common.v1 import error_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from chassis import metadata
from chassis.metadata import Plain
from tests.integration.indexer.calls import Start, Stub, connect, count, ids, refusal, upsert
from tests.processes import eventually

DIMENSION = 32
FINGERPRINT = types_pb2.ModelFingerprint(model="starter", digest="a1" * 32, dimension=DIMENSION)
VICTIMS = [3, 700, 1104]
SHARED = "a string that many have"


def vector(n: int) -> np.ndarray:
    return (3 * np.random.default_rng(n).normal(size=DIMENSION)).astype("<f4")


def secret(n: int) -> pb.Item:
    values: dict[str, Plain] = {
        "title": f"secret title {n:06} — né à Paris",
        "note": f"a long note of {n:06}, " + "which goes on and on, " * 150 + f"until {n:06} is at its end",
        "tags": [f"secret-tag-{n:06}", SHARED],
        "kind": SHARED,
        "width": n,
    }
    return pb.Item(
        id=f"picture-{n:06}",
        vector=types_pb2.Vector(f32=vector(n).tobytes()),
        metadata=metadata.to_proto({key: value for key, value in values.items() if key != "note" or n in VICTIMS}),
    )


def needles(n: int) -> dict[str, bytes]:
    """What an item leaves: texts, and parts of its vector, as it was given and of length 1."""
    raw = vector(n)
    found = {
        "id": f"picture-{n:06}".encode(),
        "title": f"secret title {n:06} — né à Paris".encode(),
        "note": f"a long note of {n:06}".encode(),
        "end of the note": f"until {n:06} is at its end".encode(),
        "tag": f"secret-tag-{n:06}".encode(),
    }
    forms = [("raw", raw)]
    # Chroma sums and divides in its own way: the length is this one, or one of its neighbours.
    exact = np.float32(np.sqrt(np.sum(raw.astype(np.float64) ** 2)))
    lengths = {exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(1e9))}
    forms += [("unit", raw / length) for length in lengths]
    forms += [("unit", raw * (np.float32(1) / length)) for length in lengths]
    for number, (name, numbers) in enumerate(forms):
        for begin in range(0, DIMENSION - 1, 4):
            found[f"{name} numbers {begin}, {number}"] = numbers[begin : begin + 2].astype("<f4").tobytes()
    return found


def traces(data: Path, numbers: list[int]) -> dict[str, list[str]]:
    """In which files each thing of an item is found."""
    files = {path: path.read_bytes() for path in data.rglob("*") if path.is_file() and path.name != "lock"}
    found: dict[str, list[str]] = {}
    for n in numbers:
        for name, needle in needles(n).items():
            for path, content in files.items():
                if needle in content:
                    found.setdefault(f"{n}: {name}", []).append(str(path.relative_to(data)))
    return found


def make(stub: Stub, name: str, metric: types_pb2.Metric.ValueType, items: int, without: Collection[int] = ()) -> None:
    stub.CreateCollection(pb.CreateCollectionRequest(name=name, fingerprint=FINGERPRINT, metric=metric))
    for begin in range(0, items, 100):
        upsert(stub, name, *(secret(n) for n in range(begin, min(items, begin + 100)) if n not in without))


@contextmanager
def two_collections(start: Start) -> Iterator[Stub]:
    """Of which one has some of the other's items too."""
    with connect(start()) as channel:
        stub = Stub(channel)
        make(stub, "photos", types_pb2.METRIC_COSINE, 300)
        make(stub, "others", types_pb2.METRIC_COSINE, 10)
        yield stub


def erase(stub: Stub, name: str, *numbers: int, delete_snapshots: bool = False) -> pb.ErasureReport:
    wanted = [f"picture-{n:06}" for n in numbers]
    request = pb.EraseItemsRequest(collection=name, ids=wanted, delete_snapshots=delete_snapshots)
    *_, last = stub.EraseItems(request, timeout=120)
    assert last.HasField("report")
    return last.report


def all_vectors(stub: Stub, name: str) -> dict[str, np.ndarray]:
    """By id."""
    request = pb.ExportItemsRequest(collection=name, fields=types_pb2.ItemFields(vector=True))
    items = [item for part in stub.ExportItems(request, timeout=60) for item in part.items]
    return {item.id: np.frombuffer(item.vector.f32, "<f4") for item in items}


def nearest(stub: Stub, name: str, of: np.ndarray) -> str:
    example = pb.Example(vector=types_pb2.Vector(f32=of.tobytes()))
    answer = stub.Query(pb.QueryRequest(collection=name, queries=[pb.Query(examples=[example], top_k=1)]), timeout=60)
    found: str = answer.results[0].hits[0].id
    return found


@pytest.mark.parametrize(
    ("metric", "reads"),
    [(types_pb2.METRIC_COSINE, "memory"), (types_pb2.METRIC_L2, "memory"), (types_pb2.METRIC_COSINE, "chroma")],
)
def test_nothing_of_erased_items_is_left_on_the_disk(
    start: Start, tmp_path: Path, metric: types_pb2.Metric.ValueType, reads: str
) -> None:
    data = tmp_path / "data"
    service = start(LIKENESS_READS=reads)
    with connect(service) as channel:
        stub = Stub(channel)
        make(stub, "photos", metric, 1150)
        make(stub, "untouched", metric, 1150, without=VICTIMS)
        untouched = all_vectors(stub, "untouched")
    service.stop()  # and a serving snapshot is written
    service = start(LIKENESS_READS=reads)
    with connect(service) as channel:
        stub = Stub(channel)
        before = traces(data, VICTIMS)
        for n in VICTIMS:
            for name in ("id", "title", "note", "end of the note", "tag"):
                assert f"{n}: {name}" in before, before.keys()
            assert any(f"{n}: raw" in key or f"{n}: unit" in key for key in before), before.keys()
        report = erase(stub, "photos", *VICTIMS)
        assert report.deleted == 3
        assert list(report.found_in) == []
        assert report.files_searched > 0
        assert report.bytes_searched > 0
        assert report.traces >= 3 * 4
        assert report.strings_left_out == 1  # the shared one
        assert report.HasField("end_time")
        assert traces(data, VICTIMS) == {}
        assert ids(stub, "photos", *(f"picture-{n:06}" for n in (*VICTIMS, 4))) == ["picture-000004"]
        assert count(stub, "photos") == 1147
        upsert(stub, "photos", *(secret(n) for n in range(5000, 5100)))
        assert traces(data, VICTIMS) == {}
    service.stop()
    assert traces(data, VICTIMS) == {}
    assert traces(data, [4]) != {}
    if reads == "memory":
        assert list((data / "serving").rglob("rows.arrow")), "a new snapshot was written, and searched"
    service = start(LIKENESS_READS=reads)
    with connect(service) as channel:
        assert count(Stub(channel), "photos") == 1247
        assert traces(data, VICTIMS) == {}
    service.stop()
    service = start(LIKENESS_READS="chroma")  # which reads the files of the indexes
    with connect(service) as channel:
        stub = Stub(channel)
        now = all_vectors(stub, "untouched")
        assert now.keys() == untouched.keys()
        assert all(np.allclose(now[i], untouched[i], rtol=1e-5) for i in now), "the last digit is Chroma's"
        for n in (0, 4, 701, 1149):
            assert nearest(stub, "photos", vector(n)) == nearest(stub, "untouched", vector(n)) == f"picture-{n:06}"


def test_what_is_left_of_items_deleted_earlier_goes_too_and_others_are_named(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with two_collections(start) as stub:
        stub.DeleteItems(pb.DeleteItemsRequest(collection="photos", ids=["picture-000200"]))
        assert traces(data, [200])
        report = erase(stub, "photos", 200, 3)
        assert report.deleted == 1
        assert list(report.found_in) == []
        assert list(report.other_collections) == ["others"]
        assert report.strings_left_out > 0, "the other collection has all of item 3 as well"
        assert traces(data, [200]) == {}
        assert ids(stub, "others", "picture-000003") == ["picture-000003"]
        again = erase(stub, "photos", 200)
        assert (again.deleted, list(again.found_in)) == (0, [])


def test_what_chroma_had_in_memory_when_it_made_an_index_goes_too(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with two_collections(start) as stub:
        files = (data / "chroma").glob
        assert eventually(lambda: len(list(files("*/data_level0.bin"))) == 2)
        for path in files("*/data_level0.bin"):  # of small collections: no rows are there yet
            with path.open("r+b") as file:
                file.seek(-1000, os.SEEK_END)
                file.write(vector(200).tobytes())
        assert traces(data, [200])
        assert list(erase(stub, "photos", 200).found_in) == []
        assert traces(data, [200]) == {}
        assert count(stub, "others") == 10


def test_a_backup_that_holds_an_erased_item_is_named_or_deleted(start: Start, tmp_path: Path) -> None:
    service = start(LIKENESS_SNAPSHOTS=str(tmp_path / "backups"))
    with connect(service) as channel:
        stub = Stub(channel)
        make(stub, "photos", types_pb2.METRIC_COSINE, 100)
        *_, made = stub.CreateSnapshot(pb.CreateSnapshotRequest(collection="photos"))
        report = erase(stub, "photos", 3)
        assert list(report.snapshots) == [made.snapshot.name]
        assert list(report.deleted_snapshots) == []
        report = erase(stub, "photos", 3, delete_snapshots=True)
        assert list(report.snapshots) == []
        assert list(report.deleted_snapshots) == [made.snapshot.name]
        assert list(stub.ListSnapshots(pb.ListSnapshotsRequest()).snapshots) == []


def test_an_item_that_is_being_erased_cannot_be_written(start: Start) -> None:
    service = start()
    with connect(service) as channel:
        stub = Stub(channel)
        make(stub, "photos", types_pb2.METRIC_COSINE, 800)
        call = stub.EraseItems(pb.EraseItemsRequest(collection="photos", ids=["picture-000003"]))
        stages = (message.progress.stage for message in call)
        assert any(stage == "copying" for stage in stages)
        assert refusal(lambda: upsert(stub, "photos", secret(3))).reason == error_pb2.REASON_COLLECTION_BUSY
        assert upsert(stub, "photos", secret(4)) == 1
        *_, _end = stages
        assert upsert(stub, "photos", secret(3)) == 1


@pytest.mark.parametrize("stage", ["copying", "clearing Chroma's files"])
def test_an_erasure_that_is_killed_is_finished_by_the_next_start(start: Start, tmp_path: Path, stage: str) -> None:
    data = tmp_path / "data"
    service = start()
    with connect(service) as channel:
        stub = Stub(channel)
        make(stub, "photos", types_pb2.METRIC_COSINE, 1150)
        for message in stub.EraseItems(
            pb.EraseItemsRequest(collection="photos", ids=[f"picture-{n:06}" for n in VICTIMS])
        ):
            if message.progress.stage == stage:
                break
    service.kill()
    service = start()
    with connect(service) as channel:
        assert count(Stub(channel), "photos") == 1147
        assert eventually(lambda: not list((data / "unfinished").glob("*")))
        assert traces(data, VICTIMS) == {}
