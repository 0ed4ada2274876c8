"""The only module that speaks to Chroma: over HTTP, whether the server is ours or somebody's cluster."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import chromadb
import httpx
import numpy as np
from chromadb import errors as chroma_errors
from chromadb.api import AsyncClientAPI
from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.config import Settings
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from chassis.vectors import Array
from indexer.changes import compare
from indexer.chroma_where import from_stored, to_where
from indexer.collections import Collection, Metric, StoredCollection, not_found
from indexer.filters import Node
from indexer.reads import Fields, Item, Row, Turnstile

# Among 20,000 clustered vectors of 512 numbers: recall 1.00 at 10 and at 100 hits, 0.92 at 1,000. Chroma's own defaults
# (ef_construction and ef_search 100) gave 0.92 at 100 hits among only 5,000. A graph with 32 neighbours gave 0.97 at
# 1,000 for three quarters of the write rate. ef_search cannot be changed later without a reload of the collection.
HNSW = {"ef_construction": 200, "max_neighbors": 16, "ef_search": 256}

# Another vector under a known id makes the index rewire itself around it, under its lock: 2,048 vectors of 512 numbers
# were added at 296 a second, replaced at 19 a second. (Deleting first would be faster, and lose the item if Chroma died
# in between.) So few at a time, lest queries wait.
_MOVED_AT_ONCE = 8

_PAGE, _OVERLAP = 1000, 50


class ChromaStore:
    """Collections and items in Chroma."""

    def __init__(self, headers: dict[str, str], timeout_s: float, turnstile: Turnstile) -> None:
        """A store that is not connected yet.

        Args:
            headers: sent with every request.
            timeout_s: longest wait for one piece of work, in seconds.
            turnstile: bounds the searches under way.
        """
        self._headers = headers
        self._timeout_s = timeout_s
        self._turnstile = turnstile
        self._client: AsyncClientAPI | None = None
        self._handles: dict[str, AsyncCollection] = {}

    async def connect(self, url: str) -> str:
        """Speaks to the server at ``url`` from now on; returns the version it names.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        parts = urlsplit(url)
        async with self._translated("connecting"):
            client = await chromadb.AsyncHttpClient(
                host=parts.hostname or "",
                port=parts.port or (443 if parts.scheme == "https" else 80),
                ssl=parts.scheme == "https",
                headers=self._headers,
                settings=Settings(anonymized_telemetry=False),
            )
            version = await client.get_version()
        self._client, self._handles = client, {}
        return version

    def disconnect(self) -> None:
        """Fails everything with STORE_UNAVAILABLE until the next ``connect``."""
        self._client, self._handles = None, {}

    async def find(self, name: str) -> StoredCollection | None:
        """The collection of that name, ours or foreign.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        async with self._translated("reading a collection") as client:
            try:
                return _stored(await client.get_collection(name, embedding_function=None))
            except chroma_errors.NotFoundError:
                return None

    async def create(self, name: str, metric: Metric, metadata: Mapping[str, Any]) -> StoredCollection | None:
        """Makes a collection; None: there is one of that name.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        async with self._translated("creating a collection") as client:
            try:
                created = await client.create_collection(
                    name,
                    configuration=cast(Any, {"hnsw": {"space": metric.value, **HNSW}}),
                    metadata=dict(metadata),
                    embedding_function=None,
                )
            except chroma_errors.ChromaError:
                # Of a name that exists, Chroma says no more than ChromaError. Whether that was it, the name tells.
                if await self.find(name) is not None:
                    return None
                raise
        return _stored(created)

    async def drop(self, name: str) -> None:
        """Deletes a collection and everything in it.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND or STORE_UNAVAILABLE.
        """
        async with self._translated("deleting a collection", name) as client:
            await client.delete_collection(name)

    async def collections(self) -> list[StoredCollection]:
        """All of them, foreign ones too, in no particular order.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        # A collection that goes while this reads shifts those behind it, so the pages overlap; a name counts once.
        found: dict[str, StoredCollection] = {}
        offset = 0
        async with self._translated("listing the collections") as client:
            while True:
                page = await client.list_collections(limit=_PAGE, offset=offset)
                found.update({c.name: _stored(c) for c in page})
                if len(page) < _PAGE:
                    return list(found.values())
                offset += _PAGE - _OVERLAP

    async def count(self, collection: Collection | str) -> int:
        """Items in a collection, given by itself or by name.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND or STORE_UNAVAILABLE.
        """
        name = collection if isinstance(collection, str) else collection.name
        async with self._translated("counting", name) as client:
            if isinstance(collection, Collection):
                return await (await self._handle(client, collection)).count()
            return await (await client.get_collection(name, embedding_function=None)).count()

    async def fetch(self, collection: Collection, ids: list[str], fields: Fields) -> dict[str, Item]:
        """The items that exist among ``ids`` (without repetitions), by id. Chroma keeps no order.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND or STORE_UNAVAILABLE.
        """
        if not ids:
            return {}
        async with self._translated("reading items", collection.name) as client:
            handle = await self._handle(client, collection)
            got = cast(dict[str, Any], await handle.get(ids=list(ids), include=_include(fields)))
        items = _items(got["ids"], got["metadatas"], got["embeddings"], fields)
        return {item.id: item for item in items}

    async def search(
        self, collection: Collection, vectors: Array, where: Node | None, k: int, fields: Fields
    ) -> list[list[Row]]:
        """The nearest neighbours: see ``reads.Reader``.

        Raises:
            LikenessError: OVERLOADED, COLLECTION_NOT_FOUND or STORE_UNAVAILABLE.
        """
        async with self._turnstile, self._translated("searching", collection.name) as client:
            handle = await self._handle(client, collection)
            got = cast(
                dict[str, Any],
                await handle.query(
                    query_embeddings=list(vectors),
                    n_results=k,
                    where=None if where is None else to_where(where),
                    include=["distances", *_include(fields)],
                ),
            )
        found: list[list[Row]] = []
        for i, ids in enumerate(got["ids"]):
            metadatas, embeddings = (got[name] and got[name][i] for name in ("metadatas", "embeddings"))
            items = _items(ids, metadatas, embeddings, fields)
            scores = _scores(np.asarray(got["distances"][i], np.float32), collection.metric)
            found.append([Row(item, float(score)) for item, score in zip(items, scores, strict=True)])
        return found

    async def upsert(self, collection: Collection, items: Sequence[Item]) -> None:
        """Writes items, each id once; what was stored under an id is replaced. What is stored already is not touched.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND or STORE_UNAVAILABLE; in that case some may have been written.
        """
        async with self._translated("writing items", collection.name) as client:
            handle = await self._handle(client, collection)
            ids = [item.id for item in items]
            got = cast(dict[str, Any], await handle.get(ids=ids, include=["metadatas", "embeddings"]))
            stored = zip(np.asarray(got["embeddings"], np.float32), got["metadatas"], strict=True)
            changes = compare(items, dict(zip(got["ids"], stored, strict=True)))
            moved = changes.moved
            for part in (changes.added, *(moved[i : i + _MOVED_AT_ONCE] for i in range(0, len(moved), _MOVED_AT_ONCE))):
                if part:
                    await handle.upsert(
                        ids=[change.item.id for change in part],
                        embeddings=cast(Any, [change.item.vector for change in part]),
                        metadatas=cast(Any, [change.metadata for change in part]),
                    )
            if changes.relabelled:
                await handle.update(
                    ids=[change.item.id for change in changes.relabelled],
                    metadatas=cast(Any, [change.metadata for change in changes.relabelled]),
                )

    async def delete(self, collection: Collection, ids: Sequence[str]) -> set[str]:
        """Deletes items, each id once; returns the ids that existed.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND or STORE_UNAVAILABLE; in that case some may be gone.
        """
        async with self._translated("deleting items", collection.name) as client:
            handle = await self._handle(client, collection)
            # Chroma's own answer counts the ids asked for.
            existing = (await handle.get(ids=list(ids), include=[]))["ids"]
            if existing:
                await handle.delete(ids=existing)
            return set(existing)

    async def _handle(self, client: AsyncClientAPI, collection: Collection) -> AsyncCollection:
        handle = self._handles.get(collection.key)
        if handle is None:
            handle = await client.get_collection(collection.name, embedding_function=None)
            if str(handle.id) != collection.key:  # deleted and made anew by somebody else
                raise not_found(collection.name)
            if self._client is client:
                self._handles[collection.key] = handle
        return handle

    @asynccontextmanager
    async def _translated(self, doing: str, collection: str = "") -> AsyncIterator[AsyncClientAPI]:
        """Gives the client, bounds the time, and turns what Chroma and httpx raise into what the contract names.

        What stays as it is (``InvalidArgumentError``, ``ValueError`` and the like) would be a fault of ours.
        """
        client = self._client
        if client is None and doing != "connecting":
            raise _unavailable(f"Chroma is away ({doing})")
        try:
            async with asyncio.timeout(self._timeout_s):
                yield cast(AsyncClientAPI, client)
        except TimeoutError as error:
            raise _unavailable(f"Chroma gave no answer in {self._timeout_s:g} s ({doing})") from error
        except chroma_errors.NotFoundError as error:
            raise not_found(collection) from error
        except (chroma_errors.AuthorizationError, chroma_errors.ChromaAuthError) as error:
            raise _unavailable(f"Chroma refuses the indexer ({doing}); see LIKENESS_CHROMA_TOKEN") from error
        except (httpx.TransportError, chroma_errors.InternalError, chroma_errors.RateLimitError) as error:
            raise _unavailable(f"Chroma failed ({doing}): {_brief(error)}") from error
        except Exception as error:
            # Chroma's client raises a bare Exception for an answer with an error that it does not know, such as a
            # proxy's 502, and a ValueError where it cannot connect.
            if type(error) is Exception or (type(error) is ValueError and doing == "connecting"):
                raise _unavailable(f"Chroma failed ({doing}): {_brief(error)}") from error
            raise


def _include(fields: Fields) -> Any:
    return [name for name, wanted in (("metadatas", fields.metadata), ("embeddings", fields.vector)) if wanted]


def _items(ids: Sequence[str], metadatas: Any, embeddings: Any, fields: Fields) -> list[Item]:
    vectors = np.asarray(embeddings, np.float32) if fields.vector and len(ids) else None
    return [
        Item(
            item_id,
            None if vectors is None else vectors[i],
            from_stored(metadatas[i]) if fields.metadata else {},
        )
        for i, item_id in enumerate(ids)
    ]


def _scores(distances: Array, metric: Metric) -> Array:
    """Chroma's distances [k] as scores: it gives 1 − cos, the squared Euclidean distance, and 1 − a·b."""
    match metric:
        case Metric.COSINE:
            return np.clip(1 - distances, -1, 1)
        case Metric.L2:
            return -np.sqrt(np.maximum(distances, 0))
        case Metric.INNER_PRODUCT:
            return 1 - distances


def _stored(collection: AsyncCollection) -> StoredCollection:
    return StoredCollection(collection.name, str(collection.id), collection.metadata or {})


def _unavailable(what: str) -> LikenessError:
    return LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, f"{what}; try again", retry_after_s=1.0)


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:300]
