"""A store that the test holds in its hand, and a mirror of it."""

import asyncio
from collections.abc import Mapping, Sequence

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from chassis.metadata import Plain
from chassis.vectors import Array
from indexer.changes import Change, Changes
from indexer.collections import Collection
from indexer.filters import Node
from indexer.reads import Item
from indexer.writes import StoredRecord, Written
from tests.unit.indexer.model import true_for


class HeldStore:
    """Remembers what it is told to write, and answers when the gate is open."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.stamps: dict[str, int] = {}
        self.chunks: list[tuple[str, list[str]]] = []
        self.reads: list[list[str]] = []
        # Chunks with one of these ids fail; those with one of the others have been written when they do, and the store
        # may go with them.
        self.poison: set[str] = set()
        self.poison_after: set[str] = set()
        self.dies = False
        self.away = False
        self.asked = asyncio.Event()
        self.greatest: int | None = None
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()

    async def newest(self, collection: Collection, at_least: int) -> int | None:
        self._answer()
        return self.greatest

    async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
        self.reads.append(list(ids))
        self._answer()
        found = [self.items[i] for i in ids if i in self.items]
        return [StoredRecord(item.id, item.vector, dict(item.metadata), self.stamps[item.id]) for item in found]

    async def metadata(self, collection: Collection, ids: Sequence[str]) -> dict[str, dict[str, Plain]]:
        self._answer()
        return {i: dict(self.items[i].metadata) for i in ids if i in self.items}

    async def existing(self, collection: Collection, ids: Sequence[str]) -> set[str]:
        self._answer()
        return set(ids) & self.items.keys()

    async def matching(self, collection: Collection, where: Node) -> list[str]:
        self._answer()
        return [item.id for item in self.items.values() if true_for(where, item.metadata)]

    async def write(self, collection: Collection, changes: Changes, stamp: int) -> None:
        ids = [item.id for item in changes.items]
        await self._enter("upsert", ids)
        self.items.update({item.id: item for item in changes.items})
        self.stamps.update(dict.fromkeys(ids, stamp))
        self._leave(ids)

    async def relabel(self, collection: Collection, labels: Sequence[Change], stamp: int) -> None:
        ids = [change.id for change in labels]
        await self._enter("update", ids)
        for change in labels:
            assert self.items[change.id].metadata == change.old
            self.items[change.id] = Item(change.id, self.items[change.id].vector, change.new)
        self.stamps.update(dict.fromkeys(ids, stamp))
        self._leave(ids)

    async def delete(self, collection: Collection, ids: Sequence[str]) -> None:
        await self._enter("delete", list(ids))
        for item_id in ids:
            self.items.pop(item_id, None)
        self._leave(ids)

    async def _enter(self, kind: str, ids: list[str]) -> None:
        assert len(ids) == len(set(ids)), "Chroma refuses repeated ids"
        self.chunks.append((kind, ids))
        self.entered.set()
        await self.gate.wait()
        self._answer()
        if self.poison & set(ids):
            raise _failure("poison")

    def _leave(self, ids: Sequence[str]) -> None:
        if self.poison_after & set(ids):
            self.away = self.dies
            raise _failure("poison, afterwards")

    def _answer(self) -> None:
        self.asked.set()
        if self.away:
            raise _failure("away")


class DictMirror:
    """Items by id."""

    def __init__(self) -> None:
        self.items: dict[str, tuple[Array, Mapping[str, Plain]]] = {}
        self.watermark = 0
        self.applied = asyncio.Event()

    async def stored(self, ids: Sequence[str]) -> dict[str, tuple[Array, Mapping[str, Plain]]]:
        return {i: self.items[i] for i in ids if i in self.items}

    def existing(self, ids: Sequence[str]) -> set[str]:
        return self.items.keys() & set(ids)

    def metadata(self, ids: Sequence[str]) -> dict[str, Mapping[str, Plain]]:
        return {i: self.items[i][1] for i in ids if i in self.items}

    async def matching(self, where: Node) -> list[str]:
        return [i for i, (_, metadata) in self.items.items() if true_for(where, metadata)]

    def apply(self, written: Sequence[Written], deleted: Sequence[str], stamp: int) -> None:
        assert stamp >= self.watermark
        self.watermark = stamp
        self.items.update({item.id: (item.vector, item.metadata) for item in written})
        for item_id in deleted:
            self.items.pop(item_id, None)
        self.applied.set()


def _failure(why: str) -> LikenessError:
    return LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, why)
