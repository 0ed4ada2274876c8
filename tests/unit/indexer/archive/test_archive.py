"""Backups and what becomes of them, with files in memory and on the disk."""

import asyncio
import errno
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from likeness.common.v1 import error_pb2
from structlog.testing import capture_logs

from chassis.errors import LikenessError
from indexer.archive import files, parts, snapshots
from indexer.archive import manifest as manifests
from indexer.archive.backup import Made
from indexer.archive.restore import Restored
from indexer.archive.snapshots import check_name
from indexer.collections import Collection, Hnsw, Metric
from indexer.jobs import Job
from indexer.reads import Reader
from indexer.scan import Batch, Scan
from tests.unit.indexer.archive.backups import World, some

numbers = itertools.count()


@pytest.fixture(params=["memory", "directory", "file"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of each kind that has nothing in it."""
    match request.param:
        case "memory":
            return f"memory://backups{next(numbers)}/deep"
        case "directory":
            return str(tmp_path / "a b" / "snapshots")
    return f"file://{tmp_path}/snapshots"


@pytest.fixture
async def world(where: str) -> AsyncIterator[World]:
    made = World(where, keep=2)
    yield made
    await made.jobs.stop()
    made.archive.close()
    made.threads.shutdown()


async def back_up(world: World, collection: Collection) -> Made:
    return await world.archive.create(collection).result()


async def restore(world: World, name: str, collection: str = "") -> Restored:
    return await (await world.archive.restore(name, collection)).result()


async def reason(work: Any) -> error_pb2.Reason.ValueType:
    with pytest.raises(LikenessError) as caught:
        await work
    return caught.value.reason


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("count", [0, 1, 50])
async def test_what_was_backed_up_comes_back_bit_by_bit(
    world: World, monkeypatch: pytest.MonkeyPatch, metric: Metric, count: int
) -> None:
    monkeypatch.setattr("indexer.scan.MOST_ITEMS", 3)
    monkeypatch.setattr(parts, "GROUP_BYTES", 300)
    monkeypatch.setattr(parts, "PART_BYTES", 1500)
    there = world.add("photos", some(count), metric, description="holidays", hnsw=Hnsw(8, 16, 32))
    made = await back_up(world, there)
    assert made.snapshot.manifest is not None
    assert (len(made.snapshot.manifest.parts) > 1) == (count == 50)
    restored = await restore(world, made.snapshot.name, "again")
    again = restored.collection
    assert (again.name, again.metric, again.fingerprint) == ("again", metric, there.fingerprint)
    assert (again.description, again.hnsw, restored.count) == ("holidays", Hnsw(8, 16, 32), count)
    assert again.earlier_uids == (there.uid,)
    old, new = world.view(there), world.view(again)
    assert new.ids == sorted(old.ids)
    rows = np.array([old.ids.index(item_id) for item_id in new.ids], np.int64)
    everything = np.arange(count)
    assert new.packed == [old.packed[row] for row in rows]
    assert np.array_equal(new.vectors(everything), old.vectors(rows))
    originals = new.originals(everything)
    assert np.array_equal(originals, old.originals(rows))
    stored = world.items.get(again.uid, {})
    assert list(stored) == new.ids
    assert all(np.array_equal(stored[i].vector, original) for i, original in zip(new.ids, originals, strict=True))
    assert world.held == 0
    assert world.calls == [("backup", True), ("restored", True)]


async def test_a_collection_that_chroma_serves_is_kept_still(world: World) -> None:
    await back_up(world, world.add("chroma", some(3)))
    assert world.held == 1


async def test_backups_are_listed_the_newest_first_and_only_so_many_kept(world: World) -> None:
    photos, others = world.add("photos", some(3)), world.add("others", some(2))
    first = await back_up(world, photos)
    other = await back_up(world, others)
    second = await back_up(world, photos)
    assert [first.deleted, other.deleted, second.deleted] == [[], [], []]
    third = await back_up(world, photos)
    assert third.deleted == [first.snapshot.name]
    newest = [third.snapshot.name, second.snapshot.name]
    assert [s.name for s in await world.archive.list("photos")] == newest
    assert {s.name for s in await world.archive.list()} == {*newest, other.snapshot.name}
    assert await world.archive.list("none") == []
    (listed,) = await world.archive.list("others")
    assert (listed.name, listed.size, listed.fault) == (other.snapshot.name, other.snapshot.size, "")
    assert listed.manifest is not None
    assert other.snapshot.manifest is not None
    assert listed.manifest.parts == other.snapshot.manifest.parts
    assert listed.created == listed.manifest.created == other.snapshot.created
    await world.archive.delete(other.snapshot.name)
    assert await world.archive.list("others") == []
    assert await reason(world.archive.delete(other.snapshot.name)) == error_pb2.REASON_SNAPSHOT_NOT_FOUND
    assert await reason(world.archive.restore(other.snapshot.name)) == error_pb2.REASON_SNAPSHOT_NOT_FOUND


async def test_after_the_clock_was_set_back_the_next_backup_is_the_newest_all_the_same(
    world: World, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, ahead = world.add("photos", some(3)), datetime(2035, 1, 2, 3, 4, 5, 678_901, UTC)
    monkeypatch.setattr(snapshots, "datetime", Clock)
    Clock.times = [ahead, ahead + timedelta(milliseconds=0.5), ahead - timedelta(days=365)]
    made = [await back_up(world, photos) for _ in range(3)]
    names = [each.snapshot.name for each in made]
    assert names == [f"photos/20350102T030405.{ms}Z" for ms in (678, 679, 680)]
    assert [each.deleted for each in made] == [[], [], [names[0]]]
    assert [each.name for each in await world.archive.list("photos")] == [names[2], names[1]]


class Clock(datetime):
    """Tells the times that a test sets, one after another."""

    times: list[datetime]

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.times.pop(0)


async def test_a_backup_that_cannot_be_restored_counts_for_none_that_is_kept(world: World, where: str) -> None:
    photos = world.add("photos", some(3))
    first, second = await back_up(world, photos), await back_up(world, photos)
    harm(where, f"{second.snapshot.name}/part-00000.parquet", b"")
    third = await back_up(world, photos)
    assert third.deleted == []
    found = {s.name: s.fault for s in await world.archive.list()}
    assert found.keys() == {first.snapshot.name, second.snapshot.name, third.snapshot.name}
    assert [name for name, fault in found.items() if fault] == [second.snapshot.name]
    assert "0 bytes" in found[second.snapshot.name]


async def test_what_an_unfinished_backup_left_goes_with_the_next(world: World, where: str) -> None:
    photos = world.add("photos", some(3))
    harm(where, "photos/20200101T000000.000Z/part-00000.parquet", b"PAR1")
    harm(where, "photos/20200101T000001.000Z/manifest.json.partial", b"{")
    harm(where, "others/20200101T000001.000Z/part-00000.parquet", b"PAR1")
    harm(where, "photos/notes/mine.txt", b"not ours")
    assert await world.archive.list() == []
    made = await back_up(world, photos)
    assert [s.name for s in await world.archive.list()] == [made.snapshot.name]
    left = files.Storage(where)
    assert sorted(left.folders("photos")) == sorted([made.snapshot.name.partition("/")[2], "notes"])
    assert left.folders("others") == ["20200101T000001.000Z"]


class Halting(World):
    """Of one collection, a scan stands still behind its first batch."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.halted, self.go_on = asyncio.Event(), asyncio.Event()
        self.halts: Collection | None = None

    def reader(self, collection: Collection) -> Reader:
        reader = super().reader(collection)
        return cast(Reader, HaltingReader(reader, self)) if collection is self.halts else reader


class HaltingReader:
    def __init__(self, reader: Reader, world: Halting) -> None:
        self.reader, self.world = reader, world

    async def scan(self, *asked: Any) -> Scan:
        scan = await self.reader.scan(*asked)

        async def batches() -> AsyncGenerator[Batch, None]:
            async for batch in scan.batches:
                yield batch
                self.world.halted.set()
                await self.world.go_on.wait()

        return Scan(scan.total, batches())


async def test_a_backup_under_way_of_a_collection_that_had_the_name_before_is_left_alone(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "GROUP_BYTES", 100)
    monkeypatch.setattr(parts, "PART_BYTES", 100)
    monkeypatch.setattr("indexer.scan.MOST_ITEMS", 5)
    world = Halting(where)
    first = world.halts = world.add("photos", some(20), uid="first")
    under_way = world.archive.create(first)
    await world.halted.wait()
    # It is deleted, and made anew.
    made = await back_up(world, world.add("photos", some(3), uid="second"))
    world.go_on.set()
    slow = (await under_way.result()).snapshot
    assert [(s.name, s.fault) for s in await world.archive.list()] == [(made.snapshot.name, ""), (slow.name, "")]
    assert (await restore(world, slow.name, "again")).count == 20
    world.archive.close()
    world.threads.shutdown()


async def test_what_a_backup_that_failed_could_not_remove_goes_with_the_next(
    world: World, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(*_: object, **__: object) -> None:
        raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, "stuck")

    photos = world.add("photos", some(3))
    with monkeypatch.context() as patch, capture_logs():
        patch.setattr(parts.PartsWriter, "finish", stuck)
        patch.setattr(files.Storage, "remove", stuck)
        assert await reason(back_up(world, photos)) == error_pb2.REASON_STORE_UNAVAILABLE
    made = await back_up(world, photos)
    assert files.Storage(where).folders("photos") == [made.snapshot.name.partition("/")[2]]


async def test_a_damaged_backup_makes_nothing(world: World, where: str) -> None:
    made = (await back_up(world, world.add("photos", some(9)))).snapshot.name
    there = files.Storage(where)
    for name in there.sizes(made):
        whole = there.read(f"{made}/{name}")
        for bad in (whole[:-1], whole[1:], b"", whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
            harm(where, f"{made}/{name}", bad)
            assert await reason(restore(world, made, "again")) == error_pb2.REASON_SNAPSHOT_DAMAGED
        harm(where, f"{made}/{name}", whole)
    assert await reason(restore(world, made)) == error_pb2.REASON_COLLECTION_EXISTS
    assert (world.names, world.items) == (["photos"], {})
    assert (await restore(world, made, "again")).count == 9


async def test_a_backup_of_a_newer_release_is_refused_as_such(world: World, where: str) -> None:
    made = (await back_up(world, world.add("photos", some(2)))).snapshot.name
    harm(where, f"{made}/manifest.json", b'{"format": 2}')
    assert await reason(restore(world, made, "again")) == error_pb2.REASON_SCHEMA_UNSUPPORTED
    (listed,) = await world.archive.list()
    assert listed.manifest is None
    assert "format 2" in listed.fault


async def test_what_is_restored_again_and_again_names_all_that_it_comes_from(world: World, where: str) -> None:
    first = world.add("photos", some(1))
    second = (await restore(world, (await back_up(world, first)).snapshot.name, "second")).collection
    made = (await back_up(world, second)).snapshot
    third = (await restore(world, made.name, "third")).collection
    assert third.earlier_uids == (second.uid, first.uid)
    (listed,) = await world.archive.list("second")
    assert listed.manifest is not None
    assert listed.manifest.collection.earlier_uids == (first.uid,)


async def test_a_manifest_that_an_older_release_wrote_names_none_but_its_collection(world: World, where: str) -> None:
    photos = world.add("photos", some(2))
    made = (await back_up(world, photos)).snapshot.name
    rewrite(where, made, lambda of: of.pop("earlier_uids"))
    assert (await restore(world, made, "again")).collection.earlier_uids == (photos.uid,)


@pytest.mark.parametrize("uids", [["../elsewhere"], [""], [7], "no list", None])
async def test_what_is_no_uid_in_a_manifest_is_damage(world: World, where: str, uids: Any) -> None:
    made = (await back_up(world, world.add("photos", some(2)))).snapshot.name
    rewrite(where, made, lambda of: of.update(earlier_uids=uids))
    assert await reason(restore(world, made, "again")) == error_pb2.REASON_SNAPSHOT_DAMAGED


@pytest.mark.parametrize("harm_", ["full", "lost", "commit"])
async def test_a_restore_that_fails_leaves_nothing(world: World, harm_: str) -> None:
    made = (await back_up(world, world.add("photos", some(9)))).snapshot.name
    match harm_:
        case "full":
            world.full_after, expected = 4, error_pb2.REASON_STORE_FULL
        case "lost":
            world.lost, expected = {"é0003𝄞"}, error_pb2.REASON_SNAPSHOT_DAMAGED
        case _:
            world.catalog.fails_to_commit, expected = True, error_pb2.REASON_STORE_UNAVAILABLE
    assert await reason(restore(world, made, "again")) == expected
    assert world.names == ["photos"]
    assert world.serving.keys() == {"key-of-photos"}
    assert world.calls == [("backup", True), ("restored", False)]


class SmallDisk(MemoryFileSystem):  # type: ignore[misc]  # it has no types
    """Has room for so many bytes a file."""

    protocol = "small"
    room = 0
    error = errno.ENOSPC
    store: dict[str, Any] = {}  # noqa: RUF012 (as its base class has it)
    pseudo_dirs = [""]  # noqa: RUF012

    def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        opened = super()._open(path, mode, **more)
        if mode == "wb":
            write = opened.write

            def limited(data: Any) -> int:
                if opened.tell() + len(memoryview(data).cast("B")) > SmallDisk.room:
                    raise OSError(SmallDisk.error, "no room")
                return int(write(data))

            opened.write = limited
        return opened


@pytest.mark.parametrize("room", [0, 100, 3000, 6000])
async def test_a_disk_that_fills_up_is_named_and_nothing_is_left(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("small", SmallDisk, clobber=True)
    monkeypatch.setattr(parts, "GROUP_BYTES", 1000)
    where = f"small://backups{next(numbers)}"
    world = World(where)
    photos = world.add("photos", some(300))
    SmallDisk.room, SmallDisk.error = room, errno.ENOSPC
    with pytest.raises(LikenessError, match=r"no room.*LIKENESS_SNAPSHOTS") as caught:
        await back_up(world, photos)
    assert caught.value.reason == error_pb2.REASON_STORE_FULL
    SmallDisk.error = errno.EIO
    assert await reason(back_up(world, photos)) == error_pb2.REASON_STORE_UNAVAILABLE
    assert files.Storage(where).folders("photos") == []
    SmallDisk.room = 10**6
    assert (await back_up(world, photos)).snapshot.fault == ""
    world.archive.close()
    world.threads.shutdown()


async def test_a_local_disk_with_too_little_room_is_not_begun_to_be_filled(tmp_path: Path) -> None:
    storage = files.Storage(str(tmp_path / "not" / "there"), 2**60)
    with pytest.raises(LikenessError, match="LIKENESS_MIN_FREE_DISK_MB") as caught:
        storage.require_room(1)
    assert caught.value.reason == error_pb2.REASON_STORE_FULL


async def test_what_a_backup_is_of_is_known_to_be_needed_while_the_backup_is_checked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = world.add("photos", some(9))
    made = (await back_up(world, photos)).snapshot.name
    needed: list[tuple[str, tuple[str, ...]]] = []
    check = snapshots.Snapshots.check

    def noting(*asked: Any) -> None:
        needed.extend((name, staged.earlier_uids) for name, staged in world.catalog.staged.items())
        check(*asked)

    monkeypatch.setattr(snapshots.Snapshots, "check", noting)
    assert await reason(restore(world, made)) == error_pb2.REASON_COLLECTION_EXISTS
    assert needed == [], "that is known before anything is read"
    await restore(world, made, "again")
    assert needed == [("again", (photos.uid,))]


async def test_a_backup_that_is_stopped_leaves_nothing(
    world: World, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "GROUP_BYTES", 100)
    monkeypatch.setattr("indexer.scan.MOST_ITEMS", 5)
    job = world.archive.create(world.add("photos", some(200)))
    while not 0 < job.look().done < 200:
        await job.further(10)
    await world.jobs.stop()
    assert await reason(job.result()) == error_pb2.REASON_SHUTTING_DOWN
    assert files.Storage(where).folders("photos") == []


async def test_a_restore_that_is_stopped_leaves_nothing(world: World) -> None:
    made = (await back_up(world, world.add("photos", some(200)))).snapshot.name
    job = await world.archive.restore(made, "again")
    while job.look().stage != "restoring" or not 0 < job.look().done < 200:
        await job.further(10)
    await world.jobs.stop()
    assert await reason(job.result()) == error_pb2.REASON_SHUTTING_DOWN
    assert world.names == ["photos"]
    assert world.serving.keys() == {"key-of-photos"}


async def test_one_at_a_time_and_none_is_deleted_while_it_is_restored(world: World) -> None:
    photos = world.add("photos", some(50))
    made = (await back_up(world, photos)).snapshot.name
    job: Job[Made] = world.archive.create(photos)
    with pytest.raises(LikenessError) as caught:
        world.archive.create(photos)
    assert caught.value.reason == error_pb2.REASON_COLLECTION_BUSY
    await job.result()
    restoring = await world.archive.restore(made, "again")
    assert await reason(world.archive.delete(made)) == error_pb2.REASON_COLLECTION_BUSY
    assert await reason(world.archive.restore(made, "again")) == error_pb2.REASON_COLLECTION_BUSY
    await restoring.result()
    await asyncio.sleep(0)
    await world.archive.delete(made)


async def test_backups_that_hold_an_item_are_found(world: World, where: str) -> None:
    photos = world.add("photos", some(5))
    first = (await back_up(world, photos)).snapshot.name
    world.serving[photos.uid].apply([], ["é0001𝄞"], 2)
    second = (await back_up(world, photos)).snapshot.name
    harm(where, "photos/20200101T000000.000Z/part-00000.parquet", b"PAR1")
    assert await world.archive.holding("photos", ["é0001𝄞", "absent"]) == ([first], [])
    assert await world.archive.holding("photos", ["é0002𝄞"]) == ([second, first], [])
    assert await world.archive.holding("photos", ["absent"]) == ([], [])
    assert await world.archive.holding("others", ["é0002𝄞"]) == ([], [second, first]), "restored from them, maybe"
    assert len(files.Storage(where).folders("photos")) == 2, "an unfinished one may hold it too"
    # It may be in what cannot be read.
    harm(where, f"{second}/manifest.json", b"{}")
    assert await world.archive.holding("photos", ["absent"]) == ([second], [])
    size = files.Storage(where).sizes(first)["part-00000.parquet"]
    harm(where, f"{first}/part-00000.parquet", b"x" * size)
    assert await world.archive.holding("photos", ["absent"]) == ([second, first], [])


async def test_a_backup_whose_bytes_were_altered_holds_whatever_is_sought_and_a_disk_that_fails_is_said(
    world: World, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (await back_up(world, world.add("photos", some(50)))).snapshot.name
    path = f"{made}/part-00000.parquet"
    whole = files.Storage(where).read(path)
    unreadable = 0
    for at in range(0, len(whole), 16):
        harm(where, path, whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            list(parts.ids(files.Storage(where), path))
        except LikenessError:
            unreadable += 1
            assert await world.archive.holding("photos", ["absent"]) == ([made], [])
        except (ValueError, KeyError, pa.ArrowException):
            continue
    assert unreadable, "pyarrow says of none what it says of a disk"
    harm(where, path, whole)

    def failing(*_: object) -> None:
        raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, "a disk that fails")

    monkeypatch.setattr(parts, "ids", failing)
    assert await reason(world.archive.holding("photos", ["absent"])) == error_pb2.REASON_STORE_UNAVAILABLE


async def test_what_cannot_be_removed_is_logged_and_keeps_no_backup_from_being_made(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "not yours")

    photos = world.add("photos", some(2))
    for _ in range(2):
        await back_up(world, photos)
    monkeypatch.setattr(fsspec.AbstractFileSystem, "rm_file", stuck)
    monkeypatch.setattr(MemoryFileSystem, "rm_file", stuck, raising=False)
    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.rm_file", stuck, raising=False)
    with capture_logs() as logs:
        made = await back_up(world, photos)
    assert made.deleted == []
    assert [entry["log_level"] for entry in logs if "cannot be deleted" in entry["event"]] == ["warning"]


@pytest.mark.parametrize(
    "name",
    [
        "", "photos", "photos/", "/20261122T101500.123Z", "../20261122T101500.123Z", "a..b/20261122T101500.123Z",
        "photos/../20261122T101500.123Z", "photos/20261122T101500.123Z/..", "photos/20261322T101500.123Z",
        "photos/2026-11-22", "Photos/20261122T101500.123Z", "photos/20261122T101500.123Z\n",
    ],
)  # fmt: skip
def test_what_is_no_name_of_a_backup_is_refused(name: str) -> None:
    with pytest.raises(LikenessError) as caught:
        check_name(name, "snapshot")
    assert [violation.field for violation in caught.value.violations] == ["snapshot"]


def test_a_name_of_a_backup_passes() -> None:
    assert check_name("my.photos-2/20261122T101500.123Z", "snapshot") == "my.photos-2/20261122T101500.123Z"


def harm(where: str, path: str, data: bytes) -> None:
    """Puts a file there behind the archive's back."""
    fs, root = fsspec.core.url_to_fs(where)
    full = f"{root}/{path}"
    fs.makedirs(full.rpartition("/")[0], exist_ok=True)
    fs.pipe_file(full, data)


def rewrite(where: str, backup: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes what a manifest says of its collection, as a release that says something else would have written it."""
    manifest = json.loads(files.Storage(where).read(f"{backup}/manifest.json"))
    del manifest["sha256_of_the_rest"]
    change(manifest["collection"])
    harm(where, f"{backup}/manifest.json", manifests._signed(manifest))
