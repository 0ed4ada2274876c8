import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import cast

import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.aliases import Aliases
from indexer.catalog import Collections
from indexer.collections import Collection, Fingerprint, Metric, NewerCollection, StoredCollection, to_metadata
from indexer.follower import Follower
from indexer.heartbeat import Heartbeat, Holder, Published
from indexer.registry import Registry
from indexer.serving.collection import ServingCollection
from indexer.store import ChromaStore
from indexer.writes import StoredRecord
from tests.unit.indexer.serving.tables import DIMENSION, empty, vectors

WRITER = Holder("owner", "place", "host", 7, "here:1", 15.0)


def made(name: str, key: str = "", generation: int = 0, uid: str = "") -> Collection:
    key = key or f"key of {name}"
    store_name = name if generation == 0 else f"Likeness.Copy.{key}"
    fingerprint = Fingerprint("m", "a1" * 32, DIMENSION)
    return Collection(
        name,
        key,
        fingerprint,
        Metric.COSINE,
        datetime(2026, 1, 1, tzinfo=UTC),
        uid=uid or f"uid of {name}",
        store_name=store_name,
        generation=generation,
    )


class Shared:
    """Chroma, with items by the key of their collection."""

    connected = True

    def __init__(self) -> None:
        self.collections_: dict[str, Collection] = {}
        self.items: dict[str, dict[str, StoredRecord]] = {}
        self.aliases = Aliases()
        self.published: dict[str, Published] = {}
        self.term = 1
        self.beat = 0
        self.homes: dict[str, Collection] = {}
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    def make(self, collection: Collection, items: int = 1) -> None:
        self.collections_[collection.key] = collection
        self.items[collection.key] = {}
        self.write(collection, *(f"id{i}" for i in range(items)))

    def write(self, collection: Collection, *ids: str) -> None:
        stamp = (self.published[collection.uid].stamp or 0) + 1 if collection.uid in self.published else 1
        for item_id, vector in zip(ids, vectors(len(ids), seed=stamp), strict=True):
            self.items[collection.key][item_id] = StoredRecord(item_id, vector, {}, stamp)
        self.published[collection.uid] = Published("epoch", stamp)

    def drop(self, collection: Collection) -> None:
        del self.collections_[collection.key], self.items[collection.key]

    def move(self, alias: str, name: str) -> None:
        self.aliases = self.aliases.moved(alias, name)

    async def collections(self) -> list[StoredCollection]:
        if self.away:
            raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, "away")
        self.beat += 1
        heard = Heartbeat(self.term, WRITER, self.beat, False, dict(self.published))
        found = [StoredCollection(c.store_name, c.key, to_metadata(c)) for c in self.collections_.values()]
        found.append(StoredCollection(heard.name, "w", heard.to_metadata()))
        if self.aliases.version:
            found.append(StoredCollection(self.aliases.store_name, "a", self.aliases.metadata))
        return found

    def moved(self, collection: Collection) -> None:
        self.homes[collection.uid] = collection

    async def ids(self, collection: Collection) -> list[str]:
        return list(self._items(collection))

    async def newer(self, collection: Collection, stamp: int) -> list[str]:
        await self.gate.wait()
        return [record.id for record in self._items(collection).values() if record.stamp > stamp]

    async def newest(self, collection: Collection, at_least: int) -> int | None:
        return max((record.stamp for record in self._items(collection).values()), default=None)

    async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
        there = self._items(collection)
        return [there[item_id] for item_id in ids if item_id in there]

    def _items(self, collection: Collection) -> dict[str, StoredRecord]:
        home = self.homes.get(collection.uid, collection)
        if home.key not in self.items:
            raise LikenessError(error_pb2.REASON_COLLECTION_NOT_FOUND, home.name)
        return self.items[home.key]


@dataclass
class Served:
    """What is in memory, as a registry has it; loading waits for the gate."""

    there: dict[str, ServingCollection | None] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    renewed: list[str] = field(default_factory=list)
    renewal: asyncio.Event = field(default_factory=asyncio.Event)
    told: object = None

    @property
    def uids(self) -> set[str]:
        return set(self.there)

    async def load(self, collections: Sequence[Collection | NewerCollection]) -> None:
        for collection in collections:
            assert isinstance(collection, Collection)
            await self.add(collection)

    async def add(self, collection: Collection) -> None:
        self.there[collection.uid] = None
        self.names[collection.uid] = collection.name
        await self.follower.told(collection)
        await self.gate.wait()
        if collection.uid in self.there:
            self.there[collection.uid] = ServingCollection(collection, empty(), 0)

    def serving(self, uid: str) -> ServingCollection | None:
        return self.there.get(uid)

    def loading(self, uid: str) -> bool:
        return uid in self.there and self.there[uid] is None

    def updated(self, collection: Collection) -> None:
        if (serving := self.there[collection.uid]) is not None:
            serving.collection = collection

    async def renew(self, collection: Collection) -> None:
        self.renewed.append(collection.key)
        await self.renewal.wait()

    def deleted(self, uid: str) -> None:
        self.there.pop(uid, None)

    follower: Follower = None  # type: ignore[assignment]

    def ids(self, name: str) -> set[str]:
        (uid,) = [uid for uid in self.there if self.names[uid] == name]
        serving = self.there[uid]
        assert serving is not None
        return set(serving.table.row_of)


@dataclass
class Reader:
    """A follower and what it keeps up to date; it looks when the test says so."""

    store: Shared
    served: Served = field(default_factory=Served)

    def __post_init__(self) -> None:
        self.served.gate.set()
        self.catalogue = Collections(cast(ChromaStore, self.store), follows=True)
        store, registry = cast(ChromaStore, self.store), cast(Registry, self.served)
        self.follower = Follower(store, self.catalogue, registry, follow_s=3600, late_s=1)
        self.served.follower = self.follower

    async def start(self) -> "Reader":
        await self.follower.start()
        return self

    async def look(self) -> None:
        looking = asyncio.create_task(self.follower.look())
        for _ in range(200):  # what does not wait for a gate is done by then
            await asyncio.sleep(0.001)
        if not looking.done():
            looking.cancel()
            await asyncio.wait({looking})

    async def target(self, name: str) -> str:
        """What collection a name stands for, for whoever asks now."""
        async with self.catalogue.use(name) as collection:
            return collection.name


async def test_items_and_collections_are_followed() -> None:
    store = Shared()
    first = made("first")
    store.make(first, 3)
    reader = await Reader(store).start()
    assert reader.served.ids("first") == {"id0", "id1", "id2"}
    store.write(first, "id1", "new")
    second = made("second")
    store.make(second, 2)
    await reader.look()
    assert reader.served.ids("first") == {"id0", "id1", "id2", "new"}
    assert reader.served.ids("second") == {"id0", "id1"}
    store.drop(first)
    await reader.look()
    assert reader.served.uids == {second.uid}
    with pytest.raises(LikenessError, match="COLLECTION_NOT_FOUND"):
        await reader.target("first")
    await reader.follower.stop()


async def test_an_alias_moves_only_when_its_target_is_in_memory_and_the_one_before_stays_until_then() -> None:
    store = Shared()
    old, new = made("old"), made("new")
    store.make(old)
    store.move("library", "old")
    reader = await Reader(store).start()
    assert await reader.target("library") == "old"
    reader.served.gate.clear()
    store.make(new)
    store.move("library", "new")
    store.drop(old)
    for _ in range(2):
        await reader.look()
        assert await reader.target("library") == "old"
        assert old.uid in reader.served.uids
        assert await reader.target("new") == "new", "by its name it can be used: Chroma answers"
    reader.served.gate.set()
    await reader.look()
    await reader.look()
    assert await reader.target("library") == "new"
    assert reader.served.uids == {new.uid}
    await reader.follower.stop()


async def test_an_alias_moves_only_when_its_target_has_what_was_written_before() -> None:
    store = Shared()
    old, new = made("old"), made("new")
    store.make(old)
    store.make(new)
    store.move("library", "old")
    reader = await Reader(store).start()
    store.gate.clear()
    store.write(new, "more")
    store.move("library", "new")
    await reader.look()
    assert await reader.target("library") == "old"
    store.gate.set()
    await reader.look()
    assert await reader.target("library") == "new"
    assert "more" in reader.served.ids("new")
    await reader.follower.stop()


async def test_an_alias_of_nothing_does_not_hold_up_the_others() -> None:
    store = Shared()
    store.make(made("there"))
    reader = await Reader(store).start()
    store.move("dangling", "gone")
    store.move("library", "there")
    await reader.look()
    assert await reader.target("library") == "there"
    await reader.follower.stop()


async def test_a_new_generation_is_read_from_then_on_and_nothing_is_loaded_anew() -> None:
    store = Shared()
    before = made("rebuilt", "first key", uid="uid")
    store.make(before, 5)
    reader = await Reader(store).start()
    serving = reader.served.serving("uid")
    assert serving is not None
    rows = serving.view.count
    after = made("rebuilt", "second key", generation=1, uid="uid")
    store.collections_[after.key] = after
    store.items[after.key] = dict(store.items[before.key])
    await reader.look()
    store.drop(before)
    store.write(after, "new")
    await reader.look()
    assert reader.served.serving("uid") is serving
    assert serving.view.count == rows + 1
    assert serving.collection.key == "second key"
    await reader.follower.stop()


async def test_what_a_rebuild_took_out_is_cleared_once_it_was_compared() -> None:
    store = Shared()
    before = made("rebuilt", "first key", uid="uid")
    store.make(before, 5)
    reader = await Reader(store).start()
    await reader.look()
    assert reader.served.renewed == []
    after = made("rebuilt", "second key", generation=1, uid="uid")
    store.drop(before)
    store.collections_[after.key] = after
    store.items[after.key] = {}
    store.write(after, "id1", "id2")
    await reader.look()
    assert reader.served.ids("rebuilt") == {"id1", "id2"}
    assert reader.served.renewed == ["second key"]
    store.write(after, "new")
    await reader.look()
    assert reader.served.ids("rebuilt") == {"id1", "id2", "new"}, "a table that is being built holds nothing up"
    assert reader.served.renewed == ["second key"], "once for a generation"
    await reader.follower.stop()
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_a_generation_that_is_emptied_before_the_next_look_takes_nothing_away() -> None:
    store = Shared()
    before = made("rebuilt", "first key", uid="uid")
    store.make(before, 5)
    reader = await Reader(store).start()
    listing = await store.collections()
    after = made("rebuilt", "second key", generation=1, uid="uid")
    store.collections_[after.key] = after
    store.items[after.key] = dict(store.items[before.key])
    store.items[before.key] = {}
    store.published["uid"] = replace(store.published["uid"], count=1, again=("id1",))
    store.write(after, "new")
    store.published["uid"] = replace(store.published["uid"], epoch="another: compare everything")
    # This look still has the list from before the rebuild, but for the writer's document.
    fresh = [each for each in await store.collections() if each.key == "w"]
    lists = iter([[each for each in listing if each.key != "w"] + fresh])

    async def stale_once() -> list[StoredCollection]:
        return next(lists, None) or await Shared.collections(store)

    store.collections = stale_once  # type: ignore[method-assign]
    await reader.look()
    assert reader.served.ids("rebuilt") >= {f"id{i}" for i in range(5)}
    await reader.look()
    assert reader.served.ids("rebuilt") == {"new", *(f"id{i}" for i in range(5))}
    await reader.follower.stop()


async def test_what_a_writer_wrote_last_is_read_also_where_its_successor_says_nothing_of_it() -> None:
    store = Shared()
    first = made("first")
    store.make(first, 3)
    reader = await Reader(store).start()
    await reader.look()

    def as_of() -> float:
        return time.monotonic() - reader.follower.lag_s

    written = time.monotonic()
    store.write(first, "last")
    store.term, store.published = 2, {}
    store.gate.clear()
    for _ in range(2):
        await reader.look()
    assert as_of() < written, "it is not compared yet"
    store.gate.set()
    for _ in range(2):
        await reader.look()
    assert reader.served.ids("first") == {"id0", "id1", "id2", "last"}
    assert max(as_of() for _ in range(3)) > written
    await reader.follower.stop()


async def test_the_lag_grows_while_chroma_is_away() -> None:
    store = Shared()
    store.make(made("first"))
    reader = await Reader(store).start()
    await reader.look()
    before = reader.follower.lag_s
    store.away = True
    with pytest.raises(LikenessError):
        await reader.follower.look()
    assert reader.follower.lag_s > before
    store.away = False
    await reader.look()
    await reader.look()
    assert reader.follower.lag_s < 2.0
    assert reader.follower.writer is not None
    assert reader.follower.writer.holder == WRITER
    await reader.follower.stop()
