"""A store of collections that the test holds in its hand."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.catalog import Collections
from indexer.collections import DEFAULT_HNSW, Collection, Hnsw, Metric, StoredCollection, not_found

NO_ANSWER = LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, "no answer")


class Shelf:
    """Collections by name; what it has done, it answers when the gate is open, or fails.

    Attributes:
        kept: what there is.
        log: what was done, as verb and name.
        lost: so many changes are made and get no answer.
        missed: so many changes, before those, are not made and get no answer.
        away: whether nothing is heard or answered.
        failure: what every change ends with, once it is made.
    """

    def __init__(self) -> None:
        self.kept: dict[str, StoredCollection] = {}
        self.log: list[tuple[str, str]] = []
        self.homes: dict[str, Collection] = {}
        self.hnsw: dict[str, Hnsw] = {}
        self.made = 0
        self.listings = 0
        self.lost = 0
        self.missed = 0
        self.away = False
        self.failure: LikenessError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.dropped = asyncio.Event()
        self.quiet = asyncio.Event()
        self.quiet.set()

    @property
    def connected(self) -> bool:
        return not self.away

    async def create(
        self, name: str, metric: Metric, metadata: Mapping[str, Any], hnsw: Hnsw = DEFAULT_HNSW, /
    ) -> StoredCollection | None:
        self._hear()
        if name in self.kept:
            return None
        self.made += 1
        stored = self.kept[name] = StoredCollection(name, f"key{self.made}", dict(metadata))
        self.hnsw[name] = hnsw
        await self._answer("create", name)
        return stored

    async def describe(self, collection: Collection, metadata: Mapping[str, Any], /) -> None:
        self._hear()
        there = self.kept.get(collection.store_name)
        if there is None or there.key != collection.key:
            raise not_found(collection.name)
        self.kept[there.name] = StoredCollection(there.name, there.key, dict(metadata))
        await self._answer("describe", there.name)

    async def set_apart(self, name: str, key: str, /) -> str:
        self._hear()
        apart = f"Likeness.Dropped.{key}"
        if name in self.kept and self.kept[name].key == key:
            del self.kept[name]
            self.kept[apart] = StoredCollection(apart, key, {"likeness.dropped": key})
            await self._answer("set apart", name)
        return apart

    async def drop(self, name: str, key: str, /) -> None:
        self._hear()
        apart = f"Likeness.Dropped.{key}"
        name = apart if apart in self.kept else name
        if name not in self.kept or self.kept[name].key != key:
            raise not_found(name)
        del self.kept[name]
        self.dropped.set()
        await self._answer("drop", name)

    async def collections(self) -> list[StoredCollection]:
        if self.away:
            raise NO_ANSWER
        self.listings += 1
        return list(self.kept.values())

    def moved(self, collection: Collection, /) -> None:
        self.homes[collection.uid] = collection

    async def idle(self, collection: Collection, /) -> None:
        await self.quiet.wait()

    def _hear(self) -> None:
        if self.away:
            raise NO_ANSWER
        if self.missed:
            self.missed -= 1
            raise NO_ANSWER

    async def _answer(self, verb: str, name: str) -> None:
        self.log.append((verb, name))
        self.entered.set()
        await self.gate.wait()
        if self.lost:
            self.lost -= 1
            raise NO_ANSWER
        if self.failure is not None:
            raise self.failure


async def use(collections: Collections, name: str = "col") -> Collection:
    """The collection of that name."""
    async with collections.use(name) as collection:
        return collection


async def refusal(work: Any) -> LikenessError:
    """What it fails with."""
    with pytest.raises(LikenessError) as caught:
        await work
    return caught.value
