"""Storing a collection anew over a store that fails at each step in turn, or in which others write meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.changes import Changes
from indexer.collections import Collection, Fingerprint, Hnsw, Metric
from indexer.jobs import Job
from indexer.rebuild import Rebuild
from indexer.writes import StoredRecord

OLD = Collection("photos", "old", Fingerprint("m", "d" * 64, 2), Metric.L2, datetime.now(UTC), uid="uid")


def record(item_id: str, value: float = 1, stamp: int = 1) -> StoredRecord:
    return StoredRecord(item_id, np.full(2, value, np.float32), {"v": value}, stamp)


class World:
    """A store, its writers and its generations at once; the step of a number fails."""

    def __init__(self, failing: int = -1) -> None:
        self.items: dict[str, dict[str, StoredRecord]] = {"old": {f"i{n}": record(f"i{n}", n) for n in range(600)}}
        self.live = "old"
        self.held = False
        self.steps = 0
        self.recorded: set[str] | None = None
        self.meanwhile: dict[int, StoredRecord | str] = {}
        self._failing = failing

    def _step(self) -> None:
        if self.steps == self._failing:
            self.steps += 1
            raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, "as the test wants it")
        change = self.meanwhile.pop(self.steps, None)
        self.steps += 1
        if change is not None and not self.held and self.live == "old":
            item_id = change if isinstance(change, str) else change.id
            if self.recorded is not None:
                self.recorded.add(item_id)
            if isinstance(change, str):
                self.items["old"].pop(item_id, None)
            else:
                self.items["old"][item_id] = change

    async def count(self, collection: Collection, /) -> int:
        self._step()
        return len(self.items[collection.key])

    async def ids(self, collection: Collection) -> list[str]:
        self._step()
        return list(self.items[collection.key])

    async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
        self._step()
        return [self.items[collection.key][i] for i in ids if i in self.items[collection.key]]

    async def write(self, collection: Collection, changes: Changes, stamp: Mapping[str, int]) -> None:
        self._step()
        there = self.items[collection.key]
        for item in (*changes.added, *(move.item for move in changes.moved)):
            there[item.id] = StoredRecord(item.id, item.vector, dict(item.metadata), stamp[item.id])
        for change in changes.labels:
            assert there[change.id].metadata == change.old
            there[change.id] = StoredRecord(change.id, there[change.id].vector, dict(change.new), stamp[change.id])

    async def delete(self, collection: Collection, ids: Sequence[str]) -> None:
        self._step()
        for item_id in ids:
            self.items[collection.key].pop(item_id, None)

    @asynccontextmanager
    async def recording(self, collection: Collection) -> AsyncIterator[set[str]]:
        self.recorded = set()
        yield self.recorded
        self.recorded = None

    @asynccontextmanager
    async def holding(self, collection: Collection) -> AsyncIterator[None]:
        self.held = True
        try:
            yield
        finally:
            self.held = False

    async def stage_copy(self, collection: Collection, hnsw: Hnsw) -> Collection:
        self._step()
        self.items["copy"] = {}
        return replace(collection, key="copy", store_name="Likeness.Copy.1", generation=1)

    async def commit(self, copy: Collection) -> Collection:
        assert self.held
        self._step()
        self.live = copy.key
        return copy

    def discard(self, copy: Collection) -> None:
        assert self.live == "old"
        del self.items["copy"]

    async def drop_generation(self, old: Collection) -> None:
        self._step()
        del self.items[old.key]

    async def rebuild(self) -> Collection:
        async def remember() -> None:
            return

        rebuild = Rebuild(self, self, self, may_commit=lambda: None, committed=lambda _: None)

        async def work(job: Job[Collection]) -> Collection:
            now = await rebuild(job, OLD, remember)
            await rebuild.drop(OLD)
            return now

        return await Job("rebuild", "photos", work).result()


def test_the_copy_has_everything_with_its_stamps() -> None:
    world = World()
    before = dict(world.items["old"])
    assert asyncio.run(world.rebuild()).key == "copy"
    assert world.items == {"copy": world.items["copy"]}
    assert {i: (r.metadata, r.stamp) for i, r in world.items["copy"].items()} == {
        i: (r.metadata, r.stamp) for i, r in before.items()
    }


def test_a_failure_at_any_step_leaves_one_whole_collection() -> None:
    world = World()
    asyncio.run(world.rebuild())
    for failing in range(world.steps):
        broken = World(failing)
        before = dict(broken.items["old"])
        failed = False
        with suppress(LikenessError):
            failed = True
            asyncio.run(broken.rebuild())
            failed = False
        if failed:
            assert (broken.live, broken.items) == ("old", {"old": before}), "no copy is left behind"
        else:  # only dropping failed, which the next start does
            assert broken.live == "copy"
            assert set(broken.items["copy"]) == set(before)
        assert not broken.held


@pytest.mark.parametrize("step", range(2, 9))
def test_an_item_that_was_changed_and_changed_back_meanwhile_has_its_last_stamp_in_the_copy(step: int) -> None:
    world = World()
    world.meanwhile = {step: record("i3", 9, 1000), step + 1: record("i3", 3, 2000)}
    asyncio.run(world.rebuild())
    assert world.items["copy"]["i3"].metadata == {"v": 3}
    assert world.items["copy"]["i3"].stamp == 2000


@pytest.mark.parametrize("seed", range(20))
def test_what_is_written_meanwhile_is_in_the_copy(seed: int) -> None:
    world = World()
    world.meanwhile = _changes(seed)
    asyncio.run(world.rebuild())
    # The old generation took every write until it was held; a twin that nobody rebuilds says what must be there.
    twin = World()
    for step, change in sorted(_changes(seed).items()):
        if step < _held_at(seed):
            if isinstance(change, str):
                twin.items["old"].pop(change, None)
            else:
                twin.items["old"][change.id] = change
    assert {i: (r.metadata, r.stamp) for i, r in world.items["copy"].items()} == {
        i: (r.metadata, r.stamp) for i, r in twin.items["old"].items()
    }


def _changes(seed: int) -> dict[int, StoredRecord | str]:
    random = np.random.default_rng(seed)
    changes: dict[int, StoredRecord | str] = {}
    for step in range(2, 60):
        n = int(random.integers(0, 900))
        gone = random.random() < 0.4
        changes[step] = f"i{n}" if gone else record(f"i{n}", float(random.integers(0, 9)), step)
    return changes


def _held_at(seed: int) -> int:
    """The step at which the writer was held: what came later was refused by the world."""
    world = World()
    world.meanwhile = _changes(seed)
    held: list[int] = []
    holding = world.holding

    @asynccontextmanager
    async def noting(collection: Collection) -> AsyncIterator[None]:
        held.append(world.steps)
        async with holding(collection):
            yield

    world.holding = noting  # type: ignore[method-assign]
    asyncio.run(world.rebuild())
    return held[0]
