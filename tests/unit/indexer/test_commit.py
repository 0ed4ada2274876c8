"""What becomes of a write on its way to Chroma and into the mirror, when something fails in between."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import pytest

from chassis.errors import LikenessError
from chassis.metadata import MAX_KEYS, Plain
from indexer import commit
from indexer.changes import Change
from indexer.collections import Collection, Fingerprint, Metric
from indexer.commit import Committer
from indexer.filters import Comparison, Kind, Op
from indexer.reads import Item
from indexer.surroundings import Surroundings
from indexer.writer import CollectionWriter
from indexer.writes import Mirror, Update, Written, pack
from tests.unit.indexer.held_store import DictMirror, HeldStore

COLLECTION = Collection("c", "key", Fingerprint("m", "d" * 64, 2), Metric.COSINE, datetime.now(UTC))


class Pair:
    """A writer with its store, which answers at once, and its mirror."""

    def __init__(self, settle_s: float = 60.0, *, unsettled: bool = False) -> None:
        self.store = HeldStore()
        self.store.gate.set()
        self.mirror = DictMirror()
        surroundings = Surroundings(mirror_of=self._mirror_of, settle_s=settle_s, unsettled=lambda: unsettled)
        self.writer = CollectionWriter(COLLECTION, self.store, 64, 1024, surroundings)

    def _mirror_of(self, _: Collection) -> Mirror | None:
        return self.mirror

    async def upsert(self, *ids: str, **metadata: int) -> int:
        return await self.writer.write({i: Item(i, np.ones(2, np.float32), dict(metadata)) for i in ids})

    async def carried_out_late(self, item_id: str, **metadata: int) -> None:
        """An upsert that was sent before the last acknowledged call takes effect after it, and is read back."""
        self.store.items[item_id] = Item(item_id, np.ones(2, np.float32), dict(metadata))
        self.store.stamps[item_id] = self.mirror.watermark
        await self.writer.review([item_id])

    def agrees(self) -> bool:
        """Whether the mirror has what the store has."""
        kept = {i: item.metadata for i, item in self.store.items.items()}
        return kept == {i: metadata for i, (_, metadata) in self.mirror.items.items()}


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    yield pair
    await pair.writer.drain()


async def test_the_mirror_has_a_write_once_the_store_has_it_and_before_it_is_acknowledged(pair: Pair) -> None:
    pair.store.gate.clear()
    call = asyncio.create_task(pair.upsert("a", n=1))
    await pair.store.entered.wait()
    assert pair.mirror.items == {}
    pair.store.gate.set()
    await call
    assert pair.agrees()
    assert pair.mirror.watermark == pair.store.stamps["a"]


async def test_with_a_mirror_nothing_is_read_from_the_store(pair: Pair) -> None:
    await pair.upsert("a", "b", n=1)
    await pair.upsert("b", n=2)
    assert await pair.writer.update([Update("a", {"m": 3}), Update("x", {})]) == (1, ["x"])
    assert await pair.writer.write({"b": None, "x": None}) == 1
    assert await pair.writer.delete_matching(Comparison("m", Op.EXISTS, Kind.NONE, ())) == 1
    assert pair.agrees()
    assert pair.store.reads == []
    assert [kind for kind, _ in pair.store.chunks] == ["upsert", "upsert", "update", "delete", "delete"]


@pytest.mark.parametrize("written", [True, False])
async def test_a_failed_write_is_read_back_before_the_next(pair: Pair, written: bool) -> None:
    await pair.upsert("a", "b", n=1)
    poison = pair.store.poison_after if written else pair.store.poison
    poison.add("a")
    for failing in (pair.upsert("a", "new", n=2), pair.writer.update([Update("a", {"m": 1})])):
        with pytest.raises(LikenessError, match="poison"):
            await failing
    with pytest.raises(LikenessError, match="poison"):
        await pair.writer.write({"a": None})
    poison.clear()
    await pair.upsert("c")
    assert pair.agrees()
    assert ("a" in pair.mirror.items) is not written
    assert pair.mirror.watermark == pair.store.stamps["c"]


async def test_while_the_store_is_away_nothing_new_is_written(pair: Pair) -> None:
    await pair.upsert("a", n=1)
    pair.store.poison_after, pair.store.dies = {"a"}, True
    with pytest.raises(LikenessError, match="poison"):
        await pair.upsert("a", n=2)
    chunks = len(pair.store.chunks)
    with pytest.raises(LikenessError, match="away"):
        await pair.upsert("b")
    assert len(pair.store.chunks) == chunks
    assert pair.mirror.items["a"][1] == {"n": 1}


async def test_a_failed_write_is_read_back_without_another_write() -> None:
    pair = Pair()
    await pair.upsert("a", n=1)
    pair.mirror.applied.clear()
    pair.store.poison_after = {"a"}
    with pytest.raises(LikenessError, match="poison"):
        await pair.upsert("a", n=2)
    await pair.mirror.applied.wait()
    assert pair.agrees()
    assert pair.mirror.items["a"][1] == {"n": 2}
    await pair.writer.drain()


async def unanswered(pair: Pair) -> None:
    """A write of ``a`` with n=2 after n=1 fails, and has been read back."""
    await pair.upsert("a", n=1)
    pair.mirror.applied.clear()
    pair.store.poison = {"a"}
    with pytest.raises(LikenessError, match="poison"):
        await pair.upsert("a", n=2)
    await pair.mirror.applied.wait()


async def test_what_is_carried_out_late_is_seen_in_the_end() -> None:
    pair = Pair(settle_s=0.2)
    await unanswered(pair)
    assert pair.mirror.items["a"][1] == {"n": 1}

    pair.mirror.applied.clear()
    pair.store.items["a"] = Item("a", np.ones(2, np.float32), {"n": 2})
    await pair.mirror.applied.wait()
    assert pair.agrees()
    await pair.writer.drain()


async def test_it_is_looked_for_again_and_again_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "LOOK_S", 0.05)
    pair = Pair(settle_s=600.0)
    await unanswered(pair)
    for n in (2, 3):
        pair.store.items["a"] = Item("a", np.ones(2, np.float32), {"n": n})
        async with asyncio.timeout(30):
            while pair.mirror.items["a"][1] != {"n": n}:
                pair.mirror.applied.clear()
                await pair.mirror.applied.wait()
    await pair.writer.drain()


LATE_ONES = pytest.mark.parametrize("unsettled", [False, True], ids=["of its own", "of the writer before"])


@LATE_ONES
async def test_a_deletion_that_found_nothing_is_not_undone_by_a_late_write(unsettled: bool) -> None:
    pair = Pair(unsettled=unsettled)
    await pair.upsert("b")
    if not unsettled:
        pair.store.poison = {"a"}
        with pytest.raises(LikenessError, match="poison"):
            await pair.upsert("a", n=1)
        pair.store.poison = set()
    assert await pair.writer.write({"a": None, "b": None}) == 1
    await pair.carried_out_late("a", n=1)
    assert pair.agrees()
    assert pair.mirror.items == {}
    await pair.writer.drain()


@LATE_ONES
async def test_an_update_that_found_nothing_to_change_is_not_undone_by_a_late_write(unsettled: bool) -> None:
    pair = Pair(unsettled=unsettled)
    await pair.upsert("a", "b", n=0)
    if not unsettled:
        pair.store.poison = {"a"}
        with pytest.raises(LikenessError, match="poison"):
            await pair.writer.update([Update("a", {"n": 1})])
        pair.store.poison = set()
    assert await pair.writer.update([Update("a", {"n": 0}), Update("b", {"n": 2}), Update("x", {})]) == (2, ["x"])
    await pair.carried_out_late("a", n=1)
    assert pair.agrees()
    assert {i: values for i, (_, values) in pair.mirror.items.items()} == {"a": {"n": 0}, "b": {"n": 2}}
    await pair.writer.drain()


async def test_a_late_write_is_taken_over_after_an_update_that_was_refused() -> None:
    pair = Pair()
    await pair.upsert("a", n=0)
    pair.store.poison = {"a"}
    with pytest.raises(LikenessError, match="poison"):
        await pair.upsert("a", n=1)
    pair.store.poison = set()
    with pytest.raises(LikenessError, match="keys"):
        await pair.writer.update([Update("a", {f"key{n}": n for n in range(MAX_KEYS)})])
    await pair.carried_out_late("a", n=1)
    assert pair.agrees()
    assert pair.mirror.items["a"][1] == {"n": 1}
    await pair.writer.drain()


class Late:
    """A committer, and a write of ``a`` with n=1 that got no answer and was read back as not carried out."""

    def __init__(self) -> None:
        self.store = HeldStore()
        self.store.gate.set()
        self.mirror = DictMirror()
        self.committer = Committer(COLLECTION, self.store, Surroundings(mirror_of=lambda _: self.mirror))
        self.stamp = 0

    async def upsert(self, n: int) -> None:
        await self.committer.upsert([Item("a", np.ones(2, np.float32), {"n": n})])

    async def begun(self) -> "Late":
        self.store.poison = {"a"}
        with pytest.raises(LikenessError, match="poison"):
            await self.upsert(1)
        self.store.poison = set()
        await self.committer.heal()
        self.stamp = self.mirror.watermark
        return self

    def carried_out(self) -> None:
        self.store.items["a"] = Item("a", np.ones(2, np.float32), {"n": 1})
        self.store.stamps["a"] = self.stamp

    async def healed(self) -> Mapping[str, Plain] | None:
        """The item's metadata, of which the store and the mirror have the same."""
        await self.committer.heal()
        there = {i: item.metadata for i, item in self.store.items.items()}
        assert there == {i: metadata for i, (_, metadata) in self.mirror.items.items()}
        return there.get("a")


async def test_a_write_that_a_late_one_has_overwritten_is_written_again() -> None:
    late = await Late().begun()
    await late.upsert(2)
    acknowledged = late.store.stamps["a"]
    late.carried_out()
    assert await late.healed() == {"n": 2}
    assert late.store.stamps["a"] > acknowledged
    late.carried_out()
    late.store.poison = {"a"}
    with pytest.raises(LikenessError, match="poison"):
        await late.committer.heal()
    late.store.poison = set()
    assert await late.healed() == {"n": 2}


async def test_what_was_found_stored_already_is_written_again_after_a_late_write() -> None:
    late = Late()
    await late.upsert(0)
    await late.begun()
    await late.upsert(0)
    late.carried_out()
    assert await late.healed() == {"n": 0}


async def test_what_was_relabelled_is_written_again_after_a_late_write() -> None:
    late = Late()
    await late.upsert(0)
    await late.begun()
    await late.committer.relabel([Change("a", {"n": 2}, {"n": 0})])
    late.carried_out()
    assert await late.healed() == {"n": 2}


async def test_what_was_deleted_is_deleted_again_after_a_late_write() -> None:
    late = await Late().begun()
    await late.upsert(2)
    await late.committer.delete(["a"])
    late.carried_out()
    late.store.poison = {"a"}
    with pytest.raises(LikenessError, match="poison"):
        await late.committer.heal()
    late.store.poison = set()
    assert await late.healed() is None


async def test_what_was_written_is_written_again_after_a_late_deletion() -> None:
    late = await Late().begun()
    await late.upsert(2)
    del late.store.items["a"]
    assert await late.healed() == {"n": 2}


@pytest.mark.parametrize("deletes", [False, True])
async def test_whoever_copies_the_collection_learns_of_what_a_late_request_has_changed(deletes: bool) -> None:
    late = Late()
    await late.upsert(0)
    await late.begun()
    recorded = late.committer.record()
    recorded.clear()  # it has been copied
    await late.committer.heal()
    assert recorded == set(), "nothing has changed"
    if deletes:
        del late.store.items["a"]
    else:
        late.carried_out()
    await late.committer.heal()
    assert recorded == {"a"}


async def test_an_item_that_somebody_else_may_have_written_is_in_doubt_no_less_long_for_it() -> None:
    late = Late()
    await late.upsert(0)
    await late.begun()
    await late.committer.review(["a"])
    late.carried_out()
    assert await late.healed() == {"n": 1}


@pytest.mark.parametrize("deletes", [False, True])
async def test_a_write_that_failed_after_the_acknowledged_one_is_taken_over_if_it_is_there(deletes: bool) -> None:
    late = await Late().begun()
    await late.upsert(2)
    late.store.poison_after = {"a"}
    with pytest.raises(LikenessError, match="poison"):
        await (late.committer.delete(["a"]) if deletes else late.upsert(3))
    assert await late.healed() == (None if deletes else {"n": 3})


class Successor(Late):
    """A committer that follows one whose last requests may still be carried out; ``a`` has n=0."""

    def __init__(self) -> None:
        super().__init__()
        self.unsettled = True
        surroundings = Surroundings(mirror_of=lambda _: self.mirror, unsettled=lambda: self.unsettled)
        self.committer = Committer(COLLECTION, self.store, surroundings)

    async def begun(self) -> "Successor":
        await self.upsert(0)
        self.stamp = self.mirror.watermark
        return self

    async def reviewed(self) -> Mapping[str, Plain] | None:
        await self.committer.review(["a"])
        return await self.healed()


async def test_a_write_that_one_of_the_writer_before_has_overwritten_is_written_again() -> None:
    late = await Successor().begun()
    for n in (2, 3):
        await late.upsert(n)
        late.carried_out()
        assert await late.reviewed() == {"n": n}
    late.carried_out()  # once more: what was written again is as good as any other write
    assert await late.reviewed() == {"n": 3}
    await late.committer.delete(["a"])
    late.carried_out()
    assert await late.reviewed() is None


async def test_a_write_that_a_deletion_of_the_writer_before_has_undone_is_written_again() -> None:
    late = await Successor().begun()
    await late.committer.relabel([Change("a", {"n": 2}, {"n": 0})])
    del late.store.items["a"]
    assert await late.reviewed() == {"n": 2}


async def test_what_nobody_has_written_since_is_taken_over_from_the_writer_before() -> None:
    late = await Successor().begun()
    late.store.items["b"] = Item("b", np.ones(2, np.float32), {"n": 1})
    late.store.stamps["b"] = late.stamp
    await late.committer.review(["b"])
    assert late.mirror.items["b"][1] == {"n": 1}


async def test_once_nothing_of_it_can_come_no_write_is_remembered() -> None:
    late = await Successor().begun()
    await late.upsert(2)
    late.unsettled = False
    await late.upsert(3)
    late.carried_out()
    assert await late.reviewed() == {"n": 1}, "somebody else has written it"


async def test_a_mirror_that_fails_is_put_right() -> None:
    class Failing(DictMirror):
        failures = 1

        def apply(self, written: Sequence[Written], deleted: Sequence[str], stamp: int) -> None:
            if self.failures:
                self.failures -= 1
                raise MemoryError
            super().apply(written, deleted, stamp)

    pair = Pair()
    pair.mirror = Failing()
    with pytest.raises(MemoryError):
        await pair.upsert("a", n=1)
    await pair.upsert("b", n=1)
    assert pair.agrees()
    await pair.writer.drain()


async def test_only_the_last_failures_are_read_once_more() -> None:
    store = HeldStore()
    store.gate.set()
    mirror = DictMirror()
    committer = Committer(COLLECTION, store, Surroundings(mirror_of=lambda _: mirror))
    store.poison = {f"n{n}" for n in range(5000)}
    for first in range(0, 5000, 50):
        with pytest.raises(LikenessError, match="poison"):
            await committer.upsert([Item(f"n{n}", np.ones(2, np.float32)) for n in range(first, first + 50)])
    await committer.heal()
    assert set(store.reads[-1]) == {f"n{n}" for n in range(5000 - 1024, 5000)}


async def test_a_mirror_that_comes_later_is_used_from_then_on() -> None:
    store = HeldStore()
    store.gate.set()
    mirror: DictMirror | None = None
    writer = CollectionWriter(COLLECTION, store, 64, 1024, Surroundings(mirror_of=lambda _: mirror))
    await writer.write({"a": Item("a", np.ones(2, np.float32))})
    mirror = DictMirror()
    mirror.items["a"] = (np.ones(2, np.float32), {})
    await writer.write({"a": Item("a", np.ones(2, np.float32), {"n": 1})})
    assert mirror.items["a"][1] == {"n": 1}
    await writer.drain()


def test_equal_metadata_have_equal_bytes() -> None:
    one: dict[str, Plain] = {"b": 1, "a": "x", "c": ["y"]}
    assert pack(one) == pack({key: one[key] for key in reversed(one)})
    assert pack({}) == b""


@pytest.mark.parametrize(("settle_s", "in_doubt"), [(60.0, True), (0.0, False)])
async def test_a_write_that_failed_is_in_doubt_as_long_as_it_may_be_carried_out(
    settle_s: float, in_doubt: bool
) -> None:
    pair = Pair(settle_s)
    assert not pair.writer.in_doubt
    pair.store.poison_after, pair.store.dies = {"a"}, True
    with pytest.raises(LikenessError):
        await pair.upsert("a")
    await pair.writer.drain()
    assert pair.writer.in_doubt is in_doubt
