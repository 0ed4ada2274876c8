from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np
import pytest

from chassis.errors import LikenessError
from chassis.metadata import Plain
from chassis.vectors import Array
from indexer.collections import Collection
from indexer.heartbeat import Journal, Published
from indexer.serving.collection import ServingCollection
from indexer.serving.following import Following
from indexer.writes import StoredRecord
from tests.unit.indexer.serving.tables import collection, empty, items, metadata, vectors

COLLECTION = collection()
LATE_S = 1.0
SECOND = 1_000_000


class Shared:
    """Chroma, written to by another indexer, which may go on in the middle of a reader's work."""

    def __init__(self) -> None:
        self.records: dict[str, StoredRecord] = {}
        self.stamp = 1_000 * SECOND
        self.journal = Journal()
        self.asked: list[str] = []
        self.whole = 0
        self.meanwhile: dict[str, Callable[[], None]] = {}

    @property
    def told(self) -> Published | None:
        """What the writer's document says of the collection."""
        return self.journal.published().get(COLLECTION.uid)

    def put(
        self, item_id: str, vector: Array, values: Mapping[str, Plain], *, stamp: int = 0, acknowledged: bool = True
    ) -> None:
        self.stamp = stamp or self.stamp + SECOND
        self.records[item_id] = StoredRecord(item_id, vector, dict(values), self.stamp)
        if acknowledged:
            self.journal.wrote(COLLECTION.uid, self.stamp)

    def delete(self, *ids: str) -> None:
        for item_id in ids:
            del self.records[item_id]
        self.journal.wrote(COLLECTION.uid, self.stamp, ids)

    def restarted(self) -> None:
        """Another writer."""
        self.journal = Journal()
        self.journal.wrote(COLLECTION.uid, self.stamp)

    async def ids(self, collection: Collection) -> list[str]:
        self.whole += 1
        found = list(self.records)
        self._goes_on("ids")
        return found

    async def newer(self, collection: Collection, stamp: int) -> list[str]:
        found = [record.id for record in self.records.values() if record.stamp > stamp]
        self._goes_on("newer")
        return found

    async def newest(self, collection: Collection, at_least: int) -> int | None:
        greatest = max((record.stamp for record in self.records.values()), default=0)
        return greatest if greatest >= at_least else None

    async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
        assert len(ids) == len(set(ids)), "Chroma refuses repeated ids"
        self.asked += ids
        found = [self.records[item_id] for item_id in ids if item_id in self.records]
        self._goes_on("read")
        return found

    def _goes_on(self, after: str) -> None:
        self.meanwhile.pop(after, lambda: None)()


async def _always(_: str) -> bool:
    return True


async def following(
    store: Shared, current: Callable[[str], Awaitable[bool]] = _always, told: Published | None = None
) -> Following:
    """A reader that has everything."""
    serving = ServingCollection(COLLECTION, empty(), 0)
    made = Following(store, serving, told, late_s=LATE_S, current=current)
    await made.follow(store.told, whole=True)
    assert_equal(made, store)
    store.asked.clear()
    store.whole = 0
    return made


def filled(count: int = 300) -> Shared:
    store = Shared()
    for i, vector in enumerate(vectors(count)):
        store.put(f"id{i}", vector, metadata(i))
    return store


def assert_equal(reader: Following, store: Shared) -> None:
    there = items(reader.serving.view)
    assert there.keys() == store.records.keys()
    for item_id, (packed, _, vector) in there.items():
        assert packed == store.records[item_id].written().packed
        assert np.allclose(vector, store.records[item_id].vector, rtol=1e-5, atol=1e-6)


async def test_only_what_was_written_is_read() -> None:
    store = filled()
    reader = await following(store)
    moved, new = vectors(2, seed=1)
    store.put("id3", moved, metadata(3))
    store.put("new", new, {"name": "new"})
    store.delete("id4", "id5")
    assert await reader.follow(store.told, whole=False) is False
    assert_equal(reader, store)
    assert sorted(store.asked) == ["id3", "id4", "id5", "new"]
    assert store.whole == 0
    store.asked.clear()
    await reader.follow(store.told, whole=False)
    assert store.asked == []


async def test_a_chunk_that_is_being_written_is_not_passed_over() -> None:
    store = filled()
    reader = await following(store)
    one, other, third = vectors(3, seed=1)
    stamp = store.stamp + 10 * SECOND
    store.put("half", one, {}, stamp=stamp, acknowledged=False)
    store.put("id3", third, {"name": "acknowledged before"}, stamp=stamp - SECOND)
    told = store.told
    store.put("other half", other, {}, stamp=stamp, acknowledged=False)
    await reader.follow(told, whole=False)
    assert reader.serving.watermark < stamp
    store.put("other half", other, {"name": "now"}, stamp=stamp)
    await reader.follow(store.told, whole=False)
    assert_equal(reader, store)


async def test_what_is_written_while_stamps_are_listed_comes_the_next_time() -> None:
    store = filled()
    reader = await following(store)
    first, second = vectors(2, seed=1)
    store.put("id1", first, {})
    store.meanwhile["newer"] = lambda: store.put("id2", second, {})
    await reader.follow(store.told, whole=False)
    await reader.follow(store.told, whole=False)
    assert_equal(reader, store)


async def test_what_is_written_while_ids_are_listed_is_not_taken_out() -> None:
    store = filled()
    reader = await following(store)
    again, new = vectors(2, seed=1)
    store.delete("id7")

    def write() -> None:
        store.put("id7", again, {"name": "again"})
        store.put("new", new, {})

    store.meanwhile["ids"] = write
    await reader.follow(store.told, whole=True)
    assert_equal(reader, store)


async def test_an_item_that_goes_between_the_list_and_the_reading_is_taken_out() -> None:
    store = filled()
    reader = await following(store)
    store.put("id1", vectors(1, seed=1)[0], {})
    store.meanwhile["newer"] = lambda: store.delete("id1")
    await reader.follow(store.told, whole=False)
    assert_equal(reader, store)
    await reader.follow(store.told, whole=False)
    assert_equal(reader, store)


async def test_an_item_that_is_deleted_and_made_again_is_there() -> None:
    store = filled()
    reader = await following(store)
    store.delete("id1")
    store.put("id1", vectors(1, seed=1)[0], {"name": "again"})
    await reader.follow(store.told, whole=False)
    assert_equal(reader, store)


async def test_more_deletions_than_the_writer_tells_mean_a_comparison() -> None:
    store = filled(600)
    reader = await following(store)
    store.delete(*[f"id{i}" for i in range(400)])
    assert await reader.follow(store.told, whole=False) is True
    assert_equal(reader, store)
    assert store.whole == 1


async def test_another_writer_means_a_comparison() -> None:
    store = filled()
    reader = await following(store)
    del store.records["id9"]  # which nobody has told
    store.restarted()
    assert await reader.follow(store.told, whole=False) is True
    assert_equal(reader, store)
    assert await reader.follow(store.told, whole=False) is False


async def test_a_late_chunk_under_an_old_stamp_is_found_when_the_writer_has_read_it_back() -> None:
    store = filled()
    reader = await following(store)
    late, later = vectors(2, seed=1)
    old = store.stamp - 100 * SECOND
    store.put("id1", later, {})
    await reader.follow(store.told, whole=False)
    store.records["id2"] = StoredRecord("id2", late, {"name": "late"}, old)
    await reader.follow(store.told, whole=False)
    assert items(reader.serving.view)["id2"][0] != store.records["id2"].written().packed
    store.journal.wrote(COLLECTION.uid, store.stamp, ["id2", "never there"])
    await reader.follow(store.told, whole=False)
    assert_equal(reader, store)


async def test_a_chroma_that_was_set_back_is_read_anew() -> None:
    store = filled()
    backup = dict(store.records)
    for i in range(100):
        store.put(f"id{i}", vectors(1, seed=i + 1)[0], {"name": "later"})
    reader = await following(store)
    store.records = backup
    store.restarted()
    await reader.follow(store.told, whole=False)
    assert_equal(reader, store)


async def test_nothing_is_taken_out_where_the_collection_is_kept_elsewhere_by_now() -> None:
    store, elsewhere = filled(), [False]

    async def current(key: str) -> bool:
        assert key == COLLECTION.key
        return not elsewhere[0]

    reader = await following(store, current)
    elsewhere[0] = True
    emptied, store.records = store.records, {}
    for whole in (True, False):
        store.journal.wrote(COLLECTION.uid, store.stamp, ["id1"])
        with pytest.raises(LikenessError, match="COLLECTION_NOT_FOUND"):
            await reader.follow(store.told, whole=whole)
    assert reader.serving.view.live_count == 300
    store.records, elsewhere[0] = emptied, False
    store.delete("id1")
    await reader.follow(store.told, whole=False)
    assert_equal(reader, store)


async def test_a_failure_is_made_up_for() -> None:
    store = filled()
    reader = await following(store)
    store.put("id1", vectors(1, seed=1)[0], {})
    store.delete("id2")

    def fail() -> None:
        raise ConnectionError

    for at in ("newer", "read"):
        store.meanwhile[at] = fail
        with pytest.raises(ConnectionError):
            await reader.follow(store.told, whole=False)
    await reader.follow(store.told, whole=False)
    assert_equal(reader, store)


async def test_without_a_writer_a_comparison_finds_what_is_new_and_what_is_half_written_stays_new() -> None:
    store = filled()
    reader = await following(store)
    one, other = vectors(2, seed=1)
    stamp = store.stamp + 100 * SECOND
    store.put("one", one, {}, stamp=stamp, acknowledged=False)
    await reader.follow(None, whole=True)
    assert_equal(reader, store)
    assert reader.serving.watermark == stamp - 1
    assert await reader.follow(None, whole=False) is False
    store.put("other", other, {}, stamp=stamp, acknowledged=False)
    await reader.follow(None, whole=True)
    assert_equal(reader, store)


async def test_a_reader_that_was_loaded_under_writes_needs_no_comparison_if_the_writer_had_told_before() -> None:
    store = filled()
    told = store.told
    assert told is not None
    assert told.stamp is not None
    serving = ServingCollection(COLLECTION, empty(), 0)
    serving.apply([record.written() for record in store.records.values()], [], told.stamp)
    reader = Following(store, serving, told, late_s=LATE_S, current=_always)
    store.put("id1", vectors(1, seed=1)[0], {})
    store.delete("id2")
    assert await reader.follow(store.told, whole=False) is False
    assert_equal(reader, store)
    assert store.whole == 0
