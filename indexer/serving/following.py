"""Keeps a collection in memory equal to Chroma while another indexer writes to it.

The writer tells a stamp up to which everything is in Chroma, and the ids that it has deleted or read back
(``heartbeat.Published``). So from one time to the next only the ids that have a later stamp, and those ids, are read.
The collection is compared as a whole where some of that was missed, where the writer is another, and now and then
anyway.

What the writer has told is taken *before* Chroma is asked, and the watermark never passes it: a chunk that is being
written shows some of its items already. An item is taken out only after Chroma was asked for just that one, and if this
is still where the collection is kept: a generation that was replaced is emptied.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing

import structlog

from indexer.collections import not_found
from indexer.heartbeat import Published
from indexer.serving.collection import ServingCollection
from indexer.serving.loader import LoadStore, agrees, differing, pages

log = structlog.get_logger()


class Following:
    """One collection that follows its writer. One call at a time."""

    def __init__(
        self,
        store: LoadStore,
        serving: ServingCollection,
        told: Published | None,
        *,
        late_s: float,
        current: Callable[[str], Awaitable[bool]],
    ) -> None:
        """A collection that was loaded just now.

        Args:
            store: Chroma.
            serving: the collection, its watermark not beyond what the writer had told before it was loaded.
            told: what that was; None: nothing.
            late_s: how long a request without an answer may still be carried out, in seconds.
            current: asks Chroma whether that key is still the collection's.
        """
        self.serving = serving
        self._store = store
        self._told = told
        self._late = int(late_s * 1_000_000)
        self._current = current

    async def follow(self, told: Published | None, *, whole: bool) -> bool:
        """Takes over what was written.

        Args:
            told: what the writer told before this was called; None: nothing is known of it.
            whole: whether to compare everything.

        Returns:
            Whether everything was compared.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND: it was replaced or deleted; what the store raises. Nothing is missed.
        """
        again = None
        if told is not None and self._told is not None and told.epoch == self._told.epoch:
            again = told.since(self._told.count)
        if whole or (again is None and told is not None):
            await self._compare(told)
            self._told = told
            return True
        if told is not None and (again or (told.stamp or 0) > self.serving.watermark):
            newer = await self._store.newer(self.serving.collection, self.serving.watermark)
            await self._read([*newer, *(again or ())])
            self._reached(told.stamp)
            self._told = told
        return False

    async def _compare(self, told: Published | None) -> None:
        serving, collection = self.serving, self.serving.collection
        stamp = told.stamp if told is not None else None
        if stamp is None:
            # A collection's chunks are written one after another: before that of the greatest stamp, all are there.
            newest = await self._store.newest(collection, serving.watermark + 1)
            stamp = None if newest is None else newest - 1
        there = set(await self._store.ids(collection))
        newer = await self._store.newer(collection, max(0, serving.watermark - self._late))
        known = serving.table.row_of
        apart = await asyncio.to_thread(set.symmetric_difference, there, known)
        apart.update(newer, told.again if told is not None else ())
        another_writer = told is None or self._told is None or told.epoch != self._told.epoch
        if another_writer and len(known) > 0 and not await agrees(self._store, serving, apart):
            apart |= there | known.keys()
        await self._read(apart)
        self._reached(stamp)

    async def _read(self, ids: Iterable[str]) -> None:
        """Takes over these items as they are in Chroma now; those that are not there are taken out."""
        serving, key = self.serving, self.serving.collection.key
        async with aclosing(pages(self._store, serving.collection, list(dict.fromkeys(ids)))) as read:
            async for asked, records in read:
                others = sorted(await differing(serving, records), key=lambda record: record.stamp)
                there = {record.id for record in records}
                gone = [i for i in asked if i not in there and i in serving.table.row_of]
                if gone and not await self._current(key):
                    raise not_found(serving.collection.name)
                if others or gone:
                    serving.apply([record.written() for record in others], gone, serving.watermark)

    def _reached(self, stamp: int | None) -> None:
        self.serving.watermark = max(self.serving.watermark, stamp or 0)
