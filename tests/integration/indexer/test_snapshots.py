"""Backups: made, kept, lost, damaged, and made collections again."""

import itertools
import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
from likeness.common.v1 import error_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from chassis import metadata
from tests.integration.indexer.calls import (
    DIMENSION,
    EVERYTHING,
    FINGERPRINT,
    Start,
    Stub,
    chroma_of,
    compared,
    connect,
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

NAME = "photos"


def back_up(stub: Stub, name: str = NAME) -> pb.CreateSnapshotResponse:
    *before, last = stub.CreateSnapshot(pb.CreateSnapshotRequest(collection=name))
    assert not any(part.HasField("snapshot") for part in before)
    assert last.HasField("snapshot")
    return last


def restore(stub: Stub, snapshot: str, name: str = "") -> pb.Collection:
    *before, last = stub.RestoreSnapshot(pb.RestoreSnapshotRequest(snapshot=snapshot, collection=name))
    assert not any(part.HasField("collection") for part in before)
    return last.collection


def backups(stub: Stub, name: str = "") -> list[str]:
    return [found.name for found in stub.ListSnapshots(pb.ListSnapshotsRequest(collection=name)).snapshots]


def collections(stub: Stub) -> list[str]:
    listed = [found.name for found in stub.ListCollections(pb.ListCollectionsRequest()).collections]
    assert [found.name for found in stub.GetStatus(pb.GetStatusRequest()).collections] == listed
    return listed


def fill(stub: Stub, name: str, size: int) -> None:
    for begin in range(0, size, 1000):
        upsert(stub, name, *(item(n, width=n) for n in range(begin, min(size, begin + 1000))))


def odd(n: int) -> pb.Item:
    """An item whose vector has any length, with metadata of every kind, or none."""
    rng = np.random.default_rng(n)
    vector = rng.normal(size=DIMENSION) * rng.uniform(0.001, 1000)
    kinds: list[dict[str, metadata.Plain]] = [
        {},
        {"width": n, "share": n / 7, "new": n % 3 == 0, "tags": ["sea", f"é{n % 5}"], "name": f"n{n % 9}"},
        {"width": 2**63 - 1 - n, "share": -0.0, "name": ""},
        {"width": float(n), "name": ["a", "list"]},
    ]
    return pb.Item(id=f"{n:x}𝄞é", vector=numbers(*vector), metadata=metadata.to_proto(kinds[n % 4]))


def questions(*, exact: bool, rescored: bool) -> list[pb.Query]:
    """500, with filters of several kinds and without."""
    filters = [
        None,
        compared("width", "LT", 600),
        compared("tags", "CONTAINS", "é3"),
        negated(compared("name", "IN", "n1", "n2")),
        compared("new", "EQ", True),
    ]
    rescores = [None, pb.Rescore(metric=types_pb2.METRIC_L1), pb.Rescore(metric=types_pb2.METRIC_L2, candidates=200)]
    found: list[pb.Query] = []
    for n in range(500):
        asked = like(unit(10_000 + n), 10, filters[n % len(filters)])
        rescore = rescores[n % len(rescores)]
        if rescored and rescore is not None:
            asked.rescore.CopyFrom(rescore)
        asked.exact = exact
        found.append(asked)
    return found


def answers(stub: Stub, name: str, asked: Sequence[pb.Query]) -> list[list[pb.Hit]]:
    found: list[list[pb.Hit]] = []
    for begin in range(0, len(asked), 100):
        request = pb.QueryRequest(collection=name, queries=asked[begin : begin + 100], fields=EVERYTHING)
        results = stub.Query(request).results
        assert not any(result.HasField("error") for result in results)
        found += [list(result.hits) for result in results]
    assert sum(map(len, found)) > 4000
    return found


@pytest.mark.parametrize(
    ("reads", "measure"),
    [
        ("memory", types_pb2.METRIC_COSINE),
        ("memory", types_pb2.METRIC_L2),
        ("chroma", types_pb2.METRIC_L2),
        ("chroma", types_pb2.METRIC_COSINE),
    ],
)
def test_a_collection_comes_back_from_its_backup_with_the_same_answers(
    start: Start, tmp_path: Path, reads: str, measure: types_pb2.Metric.ValueType
) -> None:
    service = start(LIKENESS_READS=reads)
    in_memory = reads == "memory"
    asked = questions(exact=False, rescored=in_memory) + (questions(exact=True, rescored=True) if in_memory else [])
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, NAME, measure)
        upsert(stub, NAME, *(odd(n) for n in range(900)))
        before = answers(stub, NAME, asked)
        described = stub.GetCollection(pb.GetCollectionRequest(name=NAME)).collection
        made = back_up(stub).snapshot
        assert made.collection == described
    assert service.stop() == 0
    shutil.rmtree(tmp_path / "data")
    service = start(LIKENESS_READS=reads)
    with connect(service) as channel:
        stub = Stub(channel)
        assert collections(stub) == []
        assert restore(stub, made.name).count == 900
        after = answers(stub, NAME, asked)
        again = stub.GetCollection(pb.GetCollectionRequest(name=NAME)).collection
    assert (again.fingerprint, again.metric, again.count) == (described.fingerprint, measure, 900)
    if reads == "memory" or measure != types_pb2.METRIC_COSINE:
        assert after == before
    else:  # Chroma takes the length off a vector and gives it back rounded, and does so once more
        for old, new in zip(before, after, strict=True):
            assert [hit.score for hit in new] == pytest.approx([hit.score for hit in old], rel=1e-5, abs=1e-6)
            firm = [a.id for a, b in itertools.pairwise(old) if a.score - b.score > 1e-4 * max(1, abs(a.score))]
            assert [hit.id for hit in new if hit.id in firm] == firm
            of = {hit.id: hit.metadata for hit in old}
            assert all(hit.metadata == of[hit.id] for hit in new if hit.id in of)


def test_what_was_restored_stays_and_takes_writes(start: Start) -> None:
    service = start()
    with connect(service) as channel:
        stub = Stub(channel)
        hnsw = pb.HnswParameters(max_neighbors=24, ef_construction=99, ef_search=77)
        stub.CreateCollection(
            pb.CreateCollectionRequest(name=NAME, fingerprint=FINGERPRINT, hnsw=hnsw, description="holidays")
        )
        fill(stub, NAME, 200)
        made = back_up(stub).snapshot.name
        stub.DeleteItems(pb.DeleteItemsRequest(collection=NAME, filter=compared("width", "LT", 50)))
        assert refusal(lambda: restore(stub, made)).reason == error_pb2.REASON_COLLECTION_EXISTS
        restored = restore(stub, made, "photos-2")
        assert (restored.name, restored.hnsw, restored.description) == ("photos-2", hnsw, "holidays")
        old = stub.GetCollection(pb.GetCollectionRequest(name=NAME)).collection
        assert restored.uid != old.uid
        assert list(restored.earlier_uids) == [old.uid]
        assert (count(stub, NAME), count(stub, "photos-2")) == (150, 200)
        stub.DeleteItems(pb.DeleteItemsRequest(collection="photos-2", ids=["i1"]))
        upsert(stub, "photos-2", item(500, width=500))
        assert query(stub, "photos-2", like(unit(500), 1)).results[0].hits[0].id == "i500"
    assert service.stop() == 0
    service = start()
    with connect(service) as channel:
        stub = Stub(channel)
        assert collections(stub) == [NAME, "photos-2"]
        assert ids(stub, "photos-2", "i0", "i1", "i500") == ["i0", "i500"]
        assert query(stub, "photos-2", like(unit(7), 1)).results[0].hits[0].id == "i7"
        again = stub.GetCollection(pb.GetCollectionRequest(name="photos-2")).collection
        assert (again.uid, list(again.earlier_uids)) == (restored.uid, [old.uid])
        stub.DeleteCollection(pb.DeleteCollectionRequest(name=NAME))
        listed = stub.ListCollections(pb.ListCollectionsRequest())
        assert [list(each.earlier_uids) for each in listed.collections] == [[old.uid]]
        assert list(listed.deleted_uids) == [], "its copy is there"
        stub.DeleteCollection(pb.DeleteCollectionRequest(name="photos-2"))
        assert list(stub.ListCollections(pb.ListCollectionsRequest()).deleted_uids) == [restored.uid, old.uid]


@pytest.mark.parametrize("reads", ["memory", "chroma"])
def test_a_backup_beside_writes_is_one_state(start: Start, reads: str) -> None:
    service, pairs = start(LIKENESS_READS=reads), 300
    done = threading.Event()
    written = threading.Semaphore(0)

    def pair(k: int, version: int) -> list[pb.Item]:
        labels = metadata.to_proto({"version": version})
        return [pb.Item(id=f"{side}{k:04}", vector=unit(version), metadata=labels) for side in "az"]

    def write() -> None:
        with connect(service) as own:
            for version in itertools.count(1):
                for k in range(0, pairs, 7):
                    upsert(Stub(own), NAME, *pair(k, version))
                    written.release()
                    if done.is_set():
                        return

    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, NAME)
        upsert(stub, NAME, *(each for k in range(pairs) for each in pair(k, 0)))
        writing = threading.Thread(target=write)
        writing.start()
        try:
            made = []
            for _ in range(4):
                assert all(written.acquire(timeout=60) for _ in range(3))
                made.append(back_up(stub).snapshot.name)
        finally:
            done.set()
            writing.join(60)
        seen = set()
        for n, name in enumerate(made):
            restore(stub, name, f"state-{n}")
            parts = stub.ExportItems(pb.ExportItemsRequest(collection=f"state-{n}", fields=EVERYTHING))
            versions = {each.id: each.metadata.fields["version"].int_value for part in parts for each in part.items}
            assert len(versions) == 2 * pairs
            assert all(versions[f"a{k:04}"] == versions[f"z{k:04}"] for k in range(pairs))
            seen.add(tuple(versions.values()))
        assert len(seen) == len(made), "nothing was written in between"


def test_of_more_backups_than_are_kept_the_oldest_go(start: Start) -> None:
    service = start(LIKENESS_SNAPSHOT_KEEP="2")
    with connect(service) as channel:
        stub = Stub(channel)
        for name in (NAME, "others"):
            create(stub, name)
            fill(stub, name, 10)
        other = back_up(stub, "others").snapshot.name
        first, second = back_up(stub), back_up(stub)
        assert list(first.deleted) == list(second.deleted) == []
        third = back_up(stub)
        assert list(third.deleted) == [first.snapshot.name]
        assert backups(stub) == [third.snapshot.name, second.snapshot.name, other]
        assert backups(stub, NAME) == [third.snapshot.name, second.snapshot.name]
        stub.DeleteSnapshot(pb.DeleteSnapshotRequest(name=other))
        assert backups(stub, "others") == []
        for call in (
            lambda: stub.DeleteSnapshot(pb.DeleteSnapshotRequest(name=other)),
            lambda: restore(stub, other),
        ):
            assert refusal(call).reason == error_pb2.REASON_SNAPSHOT_NOT_FOUND


def test_what_is_no_name_of_a_backup_leads_nowhere(start: Start) -> None:
    with connect(start()) as channel:
        stub = Stub(channel)
        for name in ("", "photos", "../photos/20261122T101500.123Z", "photos/..", "photos/20261399T101500.123Z"):
            for call in (
                partial(restore, stub, name),
                partial(stub.DeleteSnapshot, pb.DeleteSnapshotRequest(name=name)),
            ):
                assert refusal(call).reason == error_pb2.REASON_FIELD_INVALID, (name, call)


def flip(file: Path, at: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    file.write_bytes(data)


def cut(file: Path, at: float) -> None:
    file.write_bytes(file.read_bytes()[: int(at * file.stat().st_size)])


def newer(file: Path, at: float) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))


def test_a_backup_that_is_not_as_it_was_written_is_refused_and_nothing_is_made(start: Start, tmp_path: Path) -> None:
    service = start()
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, NAME)
        fill(stub, NAME, 300)
        made = back_up(stub).snapshot.name
        whole = tmp_path / "snapshots" / made
        kept = tmp_path / "kept"
        shutil.copytree(whole, kept)
        files = [file.name for file in kept.iterdir()]
        assert len(files) == 2
        harms = [(name, harm, at) for name in files for harm in (flip, cut) for at in (0.0, 0.3, 0.999)]
        harms += [(name, lambda file, at: file.unlink(), 0.0) for name in files if name != "manifest.json"]
        for name, harm, at in harms:
            harm(whole / name, at)
            error = refusal(lambda: restore(stub, made, "again"))
            assert error.reason == error_pb2.REASON_SNAPSHOT_DAMAGED, (name, harm, at)
            assert name in error.message
            assert collections(stub) == [NAME]
            shutil.rmtree(whole)
            shutil.copytree(kept, whole)
        newer(whole / "manifest.json", 0)
        error = refusal(lambda: restore(stub, made, "again"))
        assert error.reason == error_pb2.REASON_SCHEMA_UNSUPPORTED
        (found,) = stub.ListSnapshots(pb.ListSnapshotsRequest()).snapshots
        assert "format 2" in found.fault
        (whole / "manifest.json").unlink()
        assert backups(stub) == []
        assert refusal(lambda: restore(stub, made, "again")).reason == error_pb2.REASON_SNAPSHOT_NOT_FOUND
        assert collections(stub) == [NAME]
        shutil.rmtree(whole)
        shutil.copytree(kept, whole)
        assert restore(stub, made, "again").count == 300


def copying(parts: Iterator[pb.CreateSnapshotResponse] | Iterator[pb.RestoreSnapshotResponse], stage: str) -> None:
    """Returns when it is in the middle of a stage."""
    for part in parts:
        if part.progress.stage == stage and 0 < part.progress.done < part.progress.total:
            return
    raise AssertionError("it was never seen in the middle")


@pytest.mark.parametrize("ending", ["kill", "stop"])
def test_an_indexer_that_ends_in_the_middle_of_a_backup_leaves_none(start: Start, tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "snapshots" / NAME
    service = start(LIKENESS_READS="chroma")
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, NAME)
        fill(stub, NAME, 6000)
        chroma = chroma_of(service)
        parts = stub.CreateSnapshot(pb.CreateSnapshotRequest(collection=NAME))
        while not any(folder.rglob("*")):
            time.sleep(0.001)  # a pace for looking
        chroma.suspend()  # it takes no more than a moment: whatever Chroma has not given by now, it does not give
        getattr(service, ending)()
        with pytest.raises(grpc.RpcError) as caught:
            list(parts)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    left = list(folder.iterdir()) if folder.exists() else []
    assert len(left) == (1 if ending == "kill" else 0)
    service = start(LIKENESS_READS="chroma")
    with connect(service) as channel:
        stub = Stub(channel)
        assert backups(stub) == []
        made = back_up(stub).snapshot.name
        assert backups(stub) == [made]
        assert [found.name for found in folder.iterdir()] == [made.partition("/")[2]]


@pytest.mark.parametrize(("ending", "reads"), [("kill", "memory"), ("stop", "chroma")])
def test_an_indexer_that_ends_in_the_middle_of_a_restore_leaves_no_collection(
    start: Start, ending: str, reads: str
) -> None:
    service = start(LIKENESS_READS=reads)
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, NAME)
        fill(stub, NAME, 3000)
        made = back_up(stub).snapshot.name
        parts = stub.RestoreSnapshot(pb.RestoreSnapshotRequest(snapshot=made, collection="again"))
        copying(parts, "restoring")
        assert collections(stub) == [NAME]
        assert refusal(lambda: count(stub, "again")).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
        getattr(service, ending)()
        with pytest.raises(grpc.RpcError) as caught:
            list(parts)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    service = start(LIKENESS_READS=reads)
    with connect(service) as channel:
        stub = Stub(channel)
        assert collections(stub) == [NAME]
        assert "dropping what an earlier run left" in service.log
        assert restore(stub, made, "again").count == 3000


def test_a_restore_whose_caller_goes_away_goes_on_and_others_are_written_meanwhile(start: Start) -> None:
    service = start(LIKENESS_INDEXER_METRICS_PORT="0")
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, NAME)
        create(stub, "others")
        fill(stub, NAME, 3000)
        made = back_up(stub).snapshot.name
        with connect(service) as own:
            parts = Stub(own).RestoreSnapshot(pb.RestoreSnapshotRequest(snapshot=made, collection="again"))
            copying(parts, "restoring")
            second = pb.RestoreSnapshotRequest(snapshot=made, collection="again")
            assert refusal(lambda: list(stub.RestoreSnapshot(second))).reason == error_pb2.REASON_COLLECTION_BUSY
            deletion = pb.DeleteSnapshotRequest(name=made)
            assert refusal(lambda: stub.DeleteSnapshot(deletion)).reason == error_pb2.REASON_COLLECTION_BUSY
        written = 0
        while "again" not in [c.name for c in stub.ListCollections(pb.ListCollectionsRequest()).collections]:
            upsert(stub, "others", *(item(n) for n in range(written, written + 10)))
            written += 10
        assert written > 20
        assert (count(stub, "again"), count(stub, "others")) == (3000, written)
