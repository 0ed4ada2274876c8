"""Collections in Chroma: made, found, described and dropped. Items are ``store``'s."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

from chromadb import errors as chroma_errors
from chromadb.api.models.AsyncCollection import AsyncCollection

from indexer.chroma import ChromaConnection
from indexer.collections import DEFAULT_HNSW, Collection, Hnsw, Metric, StoredCollection
from indexer.listed import APART, DROPPED

# Among 20,000 clustered vectors of 512 numbers: recall 1.00 at 10 and at 100 hits, 0.92 at 1,000. Chroma's own defaults
# (ef_construction and ef_search 100) gave 0.92 at 100 hits among only 5,000. A graph with 32 neighbours gave 0.97 at
# 1,000 for three quarters of the write rate. ef_search cannot be changed later without a reload of the collection.
HNSW = {"ef_construction": 200, "max_neighbors": 16, "ef_search": 256}

_PAGE, _OVERLAP = 1000, 50
# Deleted while others write: 60 ms.
_DROPPED_AT_ONCE = 256


class ChromaCollections:
    """What there is in Chroma, but for what is in it.

    Every method raises STORE_UNAVAILABLE while Chroma is away, and COLLECTION_NOT_FOUND where there is no collection.
    """

    def __init__(self, headers: dict[str, str], timeout_s: float, ca_file: str = "") -> None:
        """A store that is not connected yet; for the arguments see ``ChromaConnection``."""
        self._chroma = ChromaConnection(headers, timeout_s, ca_file)

    @property
    def connected(self) -> bool:
        """Whether there is a server to speak to."""
        return self._chroma.connected

    async def connect(self, url: str) -> str:
        """Speaks to the server at ``url`` from now on; returns the version it names."""
        return await self._chroma.connect(url)

    def quiet(self) -> AbstractAsyncContextManager[None]:
        """Holds back what is asked of Chroma while the block restarts it; nothing is under way then."""
        return self._chroma.quiet()

    def disconnect(self) -> None:
        """Fails everything with STORE_UNAVAILABLE until the next ``connect``."""
        self._chroma.disconnect()

    async def _before_request(self) -> None:
        """Called before each request of those that write or delete: between two of them, much may have happened."""

    async def find(self, name: str) -> StoredCollection | None:
        """The collection of that name, ours or foreign."""
        async with self._chroma.client("reading a collection") as client:
            try:
                return _stored(await client.get_collection(name, embedding_function=None))
            except chroma_errors.NotFoundError:
                return None

    async def create(
        self, name: str, metric: Metric, metadata: Mapping[str, Any], hnsw: Hnsw = DEFAULT_HNSW
    ) -> StoredCollection | None:
        """Makes a collection; None: there is one of that name."""
        refused: chroma_errors.ChromaError | None = None
        async with self._chroma.client("creating a collection") as client:
            try:
                created = await client.create_collection(
                    name,
                    configuration=cast(Any, {"hnsw": {"space": metric.value, **_configured(hnsw)}}),
                    metadata=dict(metadata),
                    embedding_function=None,
                )
            except chroma_errors.ChromaError as error:
                refused = error
        if refused is None:
            return _stored(created)
        # Of a name that exists, Chroma says no more than ChromaError. Whether that was it, the name tells.
        if await self.find(name) is not None:
            return None
        async with self._chroma.client("creating a collection"):
            raise refused

    async def describe(self, collection: Collection, metadata: Mapping[str, Any]) -> None:
        """Replaces the metadata of a collection itself."""
        async with self._chroma.handle("describing a collection", collection) as handle:
            await handle.modify(metadata=dict(metadata))

    def moved(self, collection: Collection) -> None:
        """The collection is kept under this key from now on: whoever names an earlier generation means this one."""
        self._chroma.moved(collection)

    async def idle(self, collection: Collection) -> None:
        """Returns when no request to just this generation of a collection is under way."""
        await self._chroma.idle(collection)

    async def drop(self, name: str, key: str | None = None) -> None:
        """Deletes what Chroma has under a name, and everything in it: some 5,000 items a second.

        Args:
            name: the name it has, or had before an attempt that failed.
            key: its id; what has the name and another id is left alone. None: whatever has the name.
        """
        if key is not None:
            name = await self.set_apart(name, key)
        await self._drop(name, self._before_request)

    async def _drop(self, name: str, before_request: Callable[[], Awaitable[None]]) -> None:
        # Chroma 1.5.9 leaves the lists of a deleted collection's items where they are, under row numbers that it gives
        # to items written later, which then have those lists. So the items go first.
        while True:
            async with self._chroma.client("deleting a collection's items", name) as client:
                handle = await client.get_collection(name, embedding_function=None)
                ids = (await handle.get(limit=_DROPPED_AT_ONCE, include=[]))["ids"]
                if ids:
                    await before_request()
                    await handle.delete(ids=ids)
            if len(ids) < _DROPPED_AT_ONCE:
                break
        async with self._chroma.client("deleting a collection", name) as client:
            await before_request()
            await client.delete_collection(name)

    async def set_apart(self, name: str, key: str) -> str:
        """Gives what is to be dropped a name that nothing else ever has, and takes all marks from it; returns the name.

        Chroma drops by name, and a request that is repeated, or late, must not hit what was made under it meanwhile.

        Args:
            name: the name it has, or had; what has it and another id is left alone.
            key: its id.
        """
        apart = f"{APART}{key}"
        async with self._chroma.client("deleting a collection", name) as client:
            try:
                handle = await client.get_collection(name, embedding_function=None)
            except chroma_errors.NotFoundError:
                return apart
            if str(handle.id) == key and name != apart:
                await self._before_request()
                await handle.modify(name=apart, metadata={DROPPED: key})
        return apart

    async def collections(self) -> list[StoredCollection]:
        """All of them, foreign ones too, in no particular order."""
        # A collection that goes while this reads shifts those behind it, so the pages overlap; a name counts once.
        found: dict[str, StoredCollection] = {}
        offset = 0
        async with self._chroma.client("listing the collections") as client:
            while True:
                page = await client.list_collections(limit=_PAGE, offset=offset)
                found.update({c.name: _stored(c) for c in page})
                if len(page) < _PAGE:
                    return list(found.values())
                offset += _PAGE - _OVERLAP


def _configured(hnsw: Hnsw) -> dict[str, int]:
    """What is asked for, and the defaults in place of the rest."""
    return {name: getattr(hnsw, name) or value for name, value in HNSW.items()}


def _stored(collection: AsyncCollection) -> StoredCollection:
    return StoredCollection(collection.name, str(collection.id), collection.metadata or {})
