"""The writers of all collections, one each, made when the first write comes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, asynccontextmanager

from indexer.collections import Collection, NewerCollection, not_found
from indexer.filters import Node
from indexer.reads import Item
from indexer.surroundings import Surroundings, WriteStore
from indexer.write_queue import stopping
from indexer.writer import CollectionWriter
from indexer.writes import Update


class Writers:
    """The writers of all collections."""

    def __init__(self, store: WriteStore, chunk: int, room: int, surroundings: Surroundings | None = None) -> None:
        """For the arguments see ``CollectionWriter``."""
        self._store = store
        self._chunk = chunk
        self._room = room
        self._surroundings = surroundings
        self._writers: dict[str, CollectionWriter] = {}
        self._deleted: set[str] = set()
        self._stopping = False

    @property
    def waiting(self) -> dict[str, int]:
        """Items that wait to be written, by collection name."""
        return {writer.collection.name: writer.waiting for writer in self._writers.values()}

    @property
    def queues(self) -> dict[str, tuple[int, float]]:
        """Items that wait to be written, and how many seconds the first of them has waited, by collection name."""
        return {writer.collection.name: (writer.waiting, writer.oldest_s) for writer in self._writers.values()}

    @property
    def in_doubt(self) -> bool:
        """Whether Chroma may still carry out a write that failed; once they have ended, too."""
        return any(writer.in_doubt for writer in self._writers.values())

    async def upsert(self, collection: Collection, items: Sequence[Item]) -> int:
        """Writes items, of several with one id the last; returns how many distinct ones, once Chroma has them.

        Raises:
            LikenessError: as ``CollectionWriter.write``.
        """
        return await self._writer(collection).write({item.id: item for item in items})

    async def delete(self, collection: Collection, ids: Sequence[str]) -> int:
        """Deletes items; returns how many of the ids existed, once Chroma has done it.

        Raises:
            LikenessError: as ``CollectionWriter.write``.
        """
        return await self._writer(collection).write(dict.fromkeys(ids))

    async def review(self, collection: Collection, ids: Sequence[str]) -> None:
        """Reads items back from Chroma, since somebody else may have written them.

        Raises:
            LikenessError: as ``CollectionWriter.review``.
        """
        await self._writer(collection).review(ids)

    async def delete_matching(self, collection: Collection, where: Node) -> int:
        """Deletes the items for which a filter is true; returns how many, once Chroma has done it.

        Raises:
            LikenessError: as ``CollectionWriter.delete_matching``.
        """
        return await self._writer(collection).delete_matching(where)

    async def update_metadata(self, collection: Collection, updates: Sequence[Update]) -> tuple[int, list[str]]:
        """Changes metadata; returns how many of the items exist, and the ids of those that do not.

        Raises:
            LikenessError: as ``CollectionWriter.update``.
        """
        return await self._writer(collection).update(updates)

    @asynccontextmanager
    async def deleting(self, collection: Collection | NewerCollection) -> AsyncIterator[None]:
        """Holds back the writes to a collection while the block deletes it; see ``CollectionWriter.deleting``.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND, SHUTTING_DOWN; what the block raises.
        """
        if isinstance(collection, NewerCollection):  # nobody writes to it
            yield
            return
        writer = self._writer(collection)
        try:
            async with writer.deleting():
                yield
        finally:
            if writer.gone and self._writers.get(collection.uid) is writer:
                del self._writers[collection.uid]
                self._deleted.add(collection.uid)  # some call that began before may still bring items

    @asynccontextmanager
    async def recording(self, collection: Collection) -> AsyncIterator[set[str]]:
        """The ids of what is written or deleted during the block; see ``CollectionWriter.recording``.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND, SHUTTING_DOWN.
        """
        async with self._writer(collection).recording() as recorded:
            yield recorded

    @asynccontextmanager
    async def holding(self, collection: Collection) -> AsyncIterator[None]:
        """Holds back the writes to a collection, with nothing in doubt; see ``CollectionWriter.holding``.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND, STORE_UNAVAILABLE, SHUTTING_DOWN.
        """
        async with self._writer(collection).holding():
            yield

    def refusing(self, collection: Collection, ids: AbstractSet[str]) -> AbstractContextManager[None]:
        """Refuses calls that would write one of the items; see ``CollectionWriter.refusing``.

        Raises:
            LikenessError: SHUTTING_DOWN.
        """
        return self._writer(collection).refusing(ids)

    async def drain(self) -> None:
        """Writes everything that waits and ends all writers."""
        self._stopping = True
        await asyncio.gather(*(writer.drain() for writer in self._writers.values()))

    def _writer(self, collection: Collection) -> CollectionWriter:
        if self._stopping:
            raise stopping()
        if collection.uid in self._deleted:
            raise not_found(collection.name)
        if collection.uid not in self._writers:
            self._writers[collection.uid] = CollectionWriter(
                collection, self._store, self._chunk, self._room, self._surroundings
            )
        return self._writers[collection.uid]
