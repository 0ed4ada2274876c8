"""Generations: how a collection is stored anew, or from a backup, without being seen before it is complete.

1. What is to become a collection is staged: a Chroma collection of another name, without the marks of one.
2. Once it is complete, it is committed: one change of its metadata gives it all marks, with the next generation.
   Before, it is dropped if anything fails, behind the caller; after it, there is no way back.
3. The generation before is dropped, at once or after the next start (``leftovers``).

A stop waits for nothing to be emptied: what is not dropped by then, the next start finds by its marks.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.collections import (
    DEFAULT_HNSW,
    Collection,
    Fingerprint,
    Hnsw,
    Metric,
    StoredCollection,
    not_found,
    readable,
)
from indexer.leftovers import Leftovers
from indexer.listed import COPY_OF, RESTORES
from indexer.namespace import copy_name, new


class Generations(Leftovers):
    """Storing collections anew, as a part of ``catalog.Collections``."""

    async def stage_copy(self, collection: Collection, hnsw: Hnsw) -> Collection:
        """Makes an empty next generation of a collection, which nobody sees before ``commit``.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND or STORE_UNAVAILABLE.
        """
        there = self._present(collection)
        copy = replace(there, generation=there.generation + 1, hnsw=hnsw, built=hnsw)
        return await self._stage(copy, {COPY_OF: copy.uid})

    async def stage_new(
        self,
        name: str,
        fingerprint: Fingerprint,
        metric: Metric,
        hnsw: Hnsw = DEFAULT_HNSW,
        description: str = "",
        *,
        earlier_uids: Iterable[str] = (),
    ) -> Collection:
        """Makes an empty collection that nobody sees before ``commit``; until then nobody else gets its name.

        Raises:
            LikenessError: COLLECTION_EXISTS, also for an alias, or STORE_UNAVAILABLE.
        """
        async with self._fresh():
            self._check_free(name)
            staged = await self._stage(
                new(name, fingerprint, metric, hnsw, description, earlier_uids=earlier_uids), {RESTORES: name}
            )
            self._staged[staged.key] = staged
            return staged

    async def commit(self, copy: Collection) -> Collection:
        """Makes what was staged the collection of its name; there is no way back.

        Nothing may be written to the collection meanwhile. If Chroma's answer is lost, it is asked until it gives one:
        call it shielded from cancellation.

        Returns:
            The collection as ``use`` gives it from now on: what was changed of it since it was staged is taken over.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND: it was deleted meanwhile; STORE_UNAVAILABLE, STORE_FULL: nothing was
                done, and the copy is still a copy; SHUTTING_DOWN: it is not known which of both is the collection, and
                ``require_decided`` refuses writes from now on.
        """
        async with self._settled():
            if copy.key not in self._staged:
                there = self._present(copy)
                copy = replace(copy, hnsw=there.hnsw, description=there.description)
            with self._deciding(copy.uid):
                committed = await self._describe(copy)
            self._staged.pop(copy.key, None)
            return committed

    def require_decided(self, collection: Collection | None = None) -> None:
        """Refuses a write where the next start may find another generation in its place, or no collection.

        Args:
            collection: to which is written; None: to any.

        Raises:
            LikenessError: SHUTTING_DOWN.
        """
        if self._undecided and (collection is None or collection.uid in self._undecided):
            message = "the indexer is stopping, and Chroma has not answered what becomes of the collection"
            raise LikenessError(error_pb2.REASON_SHUTTING_DOWN, f"{message}; try again", retry_after_s=1.0)

    def discard(self, copy: Collection) -> None:
        """Has what was staged and not committed dropped, behind the caller; at a stop, by the next start."""
        self._staged.pop(copy.key, None)
        if self._ending:
            return
        self._require_unused(copy)
        dropping = self._drop_later(StoredCollection(copy.store_name, copy.key, {}))
        self._discarded = [*filter(_not_gone, self._discarded), dropping]

    async def left_dropped(self) -> bool:
        """Returns once what an earlier run left is dropped, and what was discarded; whether all of it is gone."""
        discarded = list(self._discarded)
        gone = await super().left_dropped()
        if discarded:
            await asyncio.wait(discarded)
        return gone and not any(map(_not_gone, discarded))

    async def drop_generation(self, old: Collection) -> None:
        """Drops a generation that another has replaced, once no request to it is under way, nor another indexer's.

        Not fatal if it fails: the next start does it.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        await asyncio.sleep(self._linger_s)
        await self._store.idle(old)
        self._require_unused(old)
        await self._drop(old.store_name, old.key)

    async def _stage(self, copy: Collection, marks: Mapping[str, str]) -> Collection:
        name = copy_name()
        stored = await self._store.create(name, copy.metric, marks, copy.built)
        assert stored is not None, "a name that nobody else has"
        return replace(copy, key=stored.key, store_name=name)

    def _present(self, collection: Collection) -> Collection:
        there = self._known.get(collection.name)
        if there is None or there.uid != collection.uid or there.uid in self._leaving:
            raise not_found(collection.name)
        return readable(there)

    def _require_unused(self, copy: Collection) -> None:
        there = self._known.get(copy.name)
        assert there is None or there.key != copy.key, "this generation is the collection"


def _not_gone(dropping: asyncio.Task[bool]) -> bool:
    return not dropping.done() or dropping.cancelled() or not dropping.result()
