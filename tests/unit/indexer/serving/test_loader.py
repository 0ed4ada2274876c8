import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from chassis.metadata import Plain
from chassis.vectors import Array
from indexer.collections import Collection, Metric
from indexer.reads import Item
from indexer.serving import snapshot
from indexer.serving.loader import Loaded, LoadStore, load
from indexer.serving.snapshot import MANIFEST, Snapshot
from indexer.serving.snapshot_files import FILES
from indexer.serving.table import Table
from indexer.writes import StoredRecord
from tests.unit.indexer.conftest import Connected
from tests.unit.indexer.serving.tables import (
    DIMENSION,
    GRAPH,
    MASK_BYTES,
    absorb,
    assert_same_items,
    collection,
    empty,
    items,
    metadata,
    vectors,
    written,
)

SECOND = 1_000_000
COLLECTION = collection()


class Kept:
    """What Chroma would have, in a dictionary: the plain model."""

    def __init__(self) -> None:
        self.records: dict[str, StoredRecord] = {}
        self.stamp = 1_000 * SECOND
        self.asked: list[list[str]] = []
        self.under_way = self.most_under_way = 0

    def put(self, item_id: str, vector: Array, values: Mapping[str, Plain], later: int = 10 * SECOND) -> None:
        self.stamp += later
        self.records[item_id] = StoredRecord(item_id, vector, dict(values), self.stamp)

    async def ids(self, collection: Collection) -> list[str]:
        return list(self.records)

    async def newer(self, collection: Collection, stamp: int) -> list[str]:
        return [record.id for record in self.records.values() if record.stamp > stamp]

    async def newest(self, collection: Collection, at_least: int) -> int | None:
        greatest = max((record.stamp for record in self.records.values()), default=0)
        return greatest if greatest >= at_least else None

    async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
        self.asked.append(list(ids))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        return [self.records[item_id] for item_id in reversed(ids) if item_id in self.records]


def kept(count: int) -> Kept:
    store = Kept()
    for i, vector in enumerate(vectors(count)):
        store.put(f"id{i}", vector, metadata(i))
    return store


async def loaded(store: LoadStore, folder: Path, of: Collection = COLLECTION) -> Loaded:
    return await load(
        store,
        of,
        folder=folder,
        graph=GRAPH,
        mask_bytes=MASK_BYTES,
        progress=lambda *_: None,
        may_read=lambda *_: True,
    )


async def save(store: LoadStore, folder: Path, of: Collection = COLLECTION) -> None:
    serving = (await loaded(store, folder / "nothing", of)).serving
    absorb(serving.table, serving.view.count // 2)
    snapshot.write(folder, of, GRAPH, Snapshot(serving.watermark, serving.table.state()))


def assert_equal(found: Loaded, store: Kept) -> None:
    there = items(found.serving.view)
    assert there.keys() == store.records.keys()
    for item_id, (packed, _, vector) in there.items():
        record = store.records[item_id]
        assert packed == record.written().packed
        assert np.allclose(vector, record.vector, rtol=1e-5, atol=1e-6)
    assert found.serving.watermark == max((record.stamp for record in store.records.values()), default=0)


async def test_without_a_snapshot_everything_is_read(tmp_path: Path) -> None:
    store = kept(1000)
    steps: list[tuple[int, int, int]] = []
    found = await load(
        store,
        COLLECTION,
        folder=tmp_path,
        graph=GRAPH,
        mask_bytes=MASK_BYTES,
        progress=lambda loaded, total, table: steps.append((loaded, total, table.view.live_count)),
        may_read=lambda *_: True,
    )
    assert_equal(found, store)
    assert (found.from_snapshot, found.read, found.serving.changed_rows) == (False, 1000, 1000)
    assert len(found.serving.view.tail) == 1000
    assert steps[0] == (0, 1000, 0)
    assert steps[-1] == (1000, 1000, 1000 - 128)  # the newest come last
    assert steps == sorted(steps)
    assert store.most_under_way == 2


async def test_an_empty_collection_is_loaded(tmp_path: Path) -> None:
    found = await loaded(Kept(), tmp_path)
    assert found.serving.view.count == 0


async def test_with_a_snapshot_only_what_is_newer_is_read(tmp_path: Path) -> None:
    store = kept(600)
    await save(store, tmp_path)
    moved, labelled, again = vectors(3, seed=1)
    store.put("id3", moved, metadata(3))
    store.put("id4", store.records["id4"].vector, {"name": "another"})
    del store.records["id5"], store.records["id6"]
    store.put("id6", again, {"name": "again"})
    store.put("new", labelled, {"name": "new"})
    store.asked.clear()
    found = await loaded(store, tmp_path)
    assert_equal(found, store)
    assert found.from_snapshot
    assert found.serving.changed_rows == 5  # three, the new one, and the one that is gone
    assert {*store.asked[-1]} >= {"id3", "id4", "id6", "new"}
    assert len(store.asked[-1]) == 5  # and the last before the snapshot, in case it was late


async def test_what_was_written_late_under_an_older_stamp_is_found(tmp_path: Path) -> None:
    store = kept(300)
    await save(store, tmp_path)
    # A request that was under way when the indexer was killed, carried out after the snapshot.
    late = store.stamp - 2 * SECOND
    store.records["id9"] = StoredRecord("id9", vectors(1, seed=5)[0], {"late": True}, late)
    found = await loaded(store, tmp_path)
    assert found.from_snapshot
    there = items(found.serving.view)["id9"]
    assert there[0] == store.records["id9"].written().packed


async def test_nothing_changed_leaves_no_dead_rows(tmp_path: Path) -> None:
    store = kept(300)
    await save(store, tmp_path)
    found = await loaded(store, tmp_path)
    assert found.from_snapshot
    assert (found.serving.view.count, found.serving.changed_rows) == (300, 0)


@given(
    before=st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 4)), max_size=15),
    after=st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 4)), max_size=15),
    metric=st.sampled_from(Metric),
)
@settings(max_examples=40, deadline=None)
def test_a_stale_snapshot_and_what_changed_since_are_as_a_full_load(
    before: list[tuple[int, int]],
    after: list[tuple[int, int]],
    metric: Metric,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder, of = tmp_path_factory.mktemp("snapshots"), collection(metric)
    store = Kept()

    def change(changes: list[tuple[int, int]]) -> None:
        for seed, (i, version) in enumerate(changes):
            if version < 0:
                store.records.pop(f"id{i}", None)
            else:
                store.put(f"id{i}", vectors(1, seed)[0], metadata(version))

    async def both() -> tuple[Loaded, Loaded]:
        change(before)
        await save(store, folder, of)
        change(after)
        return await loaded(store, folder, of), await loaded(store, folder / "nothing", of)

    stale, full = asyncio.run(both())
    assert stale.from_snapshot
    assert not full.from_snapshot
    assert_same_items(stale.serving.view, full.serving.view)


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
async def test_a_damaged_snapshot_means_a_full_load(name: str, tmp_path: Path) -> None:
    store = kept(20)
    await save(store, tmp_path)
    damage(tmp_path / "00000001" / name)
    found = await loaded(store, tmp_path)
    assert not found.from_snapshot
    assert_equal(found, store)


@pytest.mark.parametrize("other", [collection(key="made anew"), collection(digest="b2")])
async def test_a_snapshot_of_another_collection_means_a_full_load(other: Collection, tmp_path: Path) -> None:
    store = kept(20)
    await save(store, tmp_path, other)
    found = await loaded(store, tmp_path)
    assert not found.from_snapshot
    assert_equal(found, store)


@pytest.mark.parametrize("deleted", [[], ["id2"], ["id0", "id1", "id2", "id998", "id999"]])
async def test_a_chroma_that_was_set_back_behind_the_snapshot_means_a_full_load(
    deleted: list[str], tmp_path: Path
) -> None:
    store = kept(1000)
    backup = dict(store.records)
    for i in range(3):
        store.put(f"id{i}", vectors(1, seed=i + 1)[0], metadata(1))
    await save(store, tmp_path)
    # No stamp in the backup is newer than the snapshot, and all but three items are the same.
    store.records = {item_id: record for item_id, record in backup.items() if item_id not in deleted}
    found = await loaded(store, tmp_path)
    assert found.from_snapshot == (len(deleted) == 5)  # of these the snapshot has nothing that is wrong
    there = items(found.serving.view)
    assert there.keys() == store.records.keys()
    assert all(there[item_id][0] == record.written().packed for item_id, record in store.records.items())


async def test_a_store_that_fails_fails_the_load_and_leaves_no_request_behind(tmp_path: Path) -> None:
    store = kept(2000)
    away = LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, "away")
    read = store.read

    async def fail(collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
        if len(store.asked) == 3:
            raise away
        return await read(collection, ids)

    store.read = fail  # type: ignore[method-assign]
    with pytest.raises(LikenessError) as raised:
        await loaded(store, tmp_path)
    assert raised.value is away
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_snapshot_is_read_only_by_leave(tmp_path: Path) -> None:
    store = kept(300)
    await save(store, tmp_path)
    asked: list[tuple[int, int]] = []

    def refuse(nbytes: int, rows: int) -> bool:
        asked.append((nbytes, rows))
        return False

    found = await load(
        store,
        COLLECTION,
        folder=tmp_path,
        graph=GRAPH,
        mask_bytes=MASK_BYTES,
        progress=lambda *_: None,
        may_read=refuse,
    )
    assert_equal(found, store)
    assert not found.from_snapshot
    files = sum((tmp_path / "00000001" / name).stat().st_size for name in FILES)
    assert asked == [(files, 300)]
    for other in (collection(key="made anew"), collection(digest="b2")):
        assert snapshot.size(tmp_path, other, GRAPH) is None
    damage(tmp_path / "00000001" / MANIFEST)
    assert snapshot.size(tmp_path, COLLECTION, GRAPH) is None


async def test_whoever_is_told_of_the_progress_may_end_the_load(tmp_path: Path) -> None:
    full = LikenessError(error_pb2.REASON_MEMORY_FULL, "too large")

    def check(done: int, total: int, table: Table) -> None:
        if done > 500:
            raise full

    with pytest.raises(LikenessError) as raised:
        await load(
            kept(1000),
            COLLECTION,
            folder=tmp_path,
            graph=GRAPH,
            mask_bytes=MASK_BYTES,
            progress=check,
            may_read=lambda *_: True,
        )
    assert raised.value is full
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("metric", Metric)
def test_from_chroma_itself_a_stale_snapshot_is_as_a_full_load(
    metric: Metric, connected: Connected, tmp_path: Path
) -> None:
    of = connected.collection(f"loaded-{metric}", metric, DIMENSION)

    def put(ids: range, seed: int) -> None:
        made = zip(ids, vectors(len(ids), seed), strict=True)
        connected.upsert(of, *(Item(f"id{i}", vector, metadata(i)) for i, vector in made))

    put(range(300), 0)
    connected.loop.run(save(connected.store, tmp_path, of))
    put(range(250, 330), 1)
    connected.loop.run(connected.store.delete(of, ["id0", "id1", "id300"]))
    put(range(1, 2), 2)
    stale = connected.loop.run(loaded(connected.store, tmp_path, of))
    full = connected.loop.run(loaded(connected.store, tmp_path / "nothing", of))
    assert stale.from_snapshot
    assert stale.serving.view.live_count == 328
    assert_same_items(stale.serving.view, full.serving.view)
    assert stale.serving.watermark == full.serving.watermark


@pytest.mark.parametrize("metric", Metric)
def test_what_the_writer_gave_memory_is_what_chroma_gives_back(
    metric: Metric, connected: Connected, tmp_path: Path
) -> None:
    of, table = connected.collection(f"kept-{metric}", metric, DIMENSION), empty(metric)
    items_written = written(range(300))
    connected.upsert(of, *(Item(item.id, item.vector, item.metadata) for item in items_written))
    table.apply(items_written, [])
    watermark = connected.loop.run(connected.store.newest(of, 0))
    assert watermark is not None
    snapshot.write(tmp_path, of, GRAPH, Snapshot(watermark, table.state()))
    found = connected.loop.run(loaded(connected.store, tmp_path, of))
    assert (found.from_snapshot, found.read, found.serving.changed_rows) == (
        True,
        300,
        0,
    )  # 300: within the last seconds
