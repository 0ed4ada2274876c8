"""A rebuild beside the real writers, over a store whose writes take effect a while after they were asked for."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from chassis.metadata import Plain
from chassis.vectors import Array
from indexer.changes import Change, Changes
from indexer.collections import Collection, Fingerprint, Hnsw, Metric
from indexer.jobs import Job
from indexer.reads import Item
from indexer.rebuild import Rebuild
from indexer.writers import Writers
from indexer.writes import StoredRecord

OLD = Collection("photos", "old", Fingerprint("m", "d", 2), Metric.L2, datetime.now(UTC), uid="u", store_name="photos")
NEW = replace(OLD, key="new", generation=1)
ITEMS = 300


class SlowStore:
    """Items by generation. A write to the old one takes effect after others have had many turns."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, StoredRecord]] = {"old": {}, "new": {}}

    async def newest(self, collection: Collection, at_least: int) -> int | None:
        return None

    async def ids(self, collection: Collection) -> list[str]:
        await asyncio.sleep(0)
        return list(self.kept[collection.key])

    async def count(self, collection: Collection) -> int:
        return len(self.kept[collection.key])

    async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
        await asyncio.sleep(0)
        there = self.kept[collection.key]
        return [there[item_id] for item_id in ids if item_id in there]

    async def existing(self, collection: Collection, ids: Sequence[str]) -> set[str]:
        return self.kept[collection.key].keys() & set(ids)

    async def write(self, collection: Collection, changes: Changes, stamp: int | Mapping[str, int]) -> None:
        for _ in range(40 if collection is OLD else 1):
            await asyncio.sleep(0)
        for item in changes.items:
            at = stamp if isinstance(stamp, int) else stamp[item.id]
            self.kept[collection.key][item.id] = StoredRecord(item.id, item.vector, dict(item.metadata), at)

    async def relabel(self, collection: Collection, labels: Sequence[Change], stamp: int) -> None:
        raise AssertionError("nothing is relabelled here")

    async def delete(self, collection: Collection, ids: Sequence[str]) -> None:
        for _ in range(40 if collection is OLD else 1):
            await asyncio.sleep(0)
        for item_id in ids:
            self.kept[collection.key].pop(item_id, None)


class Generations:
    """One copy, which becomes the collection."""

    async def stage_copy(self, collection: Collection, hnsw: Hnsw) -> Collection:
        return NEW

    async def commit(self, copy: Collection) -> Collection:
        return copy

    def discard(self, copy: Collection) -> None:
        raise AssertionError("it was committed")

    async def drop_generation(self, old: Collection) -> None:
        raise AssertionError("nobody asked for it")


def vector(n: int) -> Array:
    return np.array([1, n], np.float32)


async def test_what_is_written_while_a_pass_reads_it_is_in_the_copy() -> None:
    store = SlowStore()
    writers = Writers(cast(Any, store), 64, 100_000)
    await writers.upsert(OLD, [Item(f"i{n}", vector(n)) for n in range(ITEMS)])
    differing: list[str] = []
    acknowledged = 0
    enough = asyncio.Event()

    def committed(_: Collection) -> None:
        def plain(key: str) -> dict[str, tuple[list[float], Mapping[str, Plain]]]:
            return {item_id: (r.vector.tolist(), r.metadata) for item_id, r in store.kept[key].items()}

        old, new = plain("old"), plain("new")
        differing.extend(item_id for item_id in old.keys() | new.keys() if old.get(item_id) != new.get(item_id))

    async def load(first: int) -> None:
        nonlocal acknowledged
        turn = first
        while not enough.is_set():
            turn += 1
            item_id = f"i{turn * 7 % ITEMS}"
            if turn % 5 == 0:
                await writers.delete(OLD, [item_id])
            else:
                await writers.upsert(OLD, [Item(item_id, vector(1000 + turn))])
            acknowledged += 1

    rebuild = Rebuild(cast(Any, store), writers, Generations(), may_commit=lambda: None, committed=committed)
    job = cast("Job[Any]", SimpleNamespace(report=lambda *_: None, no_return=lambda: None))

    async def remember() -> None:
        return

    loads = [asyncio.create_task(load(first)) for first in (0, 101, 202)]
    for _ in range(200):
        await asyncio.sleep(0)
    await rebuild(job, OLD, remember)
    enough.set()
    await asyncio.gather(*loads)

    assert acknowledged > 10
    assert differing == []
