"""What a collection is, and the collections there are.

Everything about a collection is kept in the metadata of the Chroma collection itself, under keys that begin with
``likeness.``, so a data directory explains itself. Chroma collections without them are somebody else's and are not
seen.
"""

import asyncio
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError

SCHEMA_VERSION = 1
PREFIX = "likeness."


class Metric(StrEnum):
    """How likeness is measured; the value is Chroma's name of the space."""

    COSINE = "cosine"
    L2 = "l2"
    INNER_PRODUCT = "ip"


@dataclass(frozen=True)
class Fingerprint:
    """The identity of a model; the digest is what is compared."""

    model: str
    digest: str
    dimension: int


@dataclass(frozen=True)
class Collection:
    """A collection that this release can read and write.

    Attributes:
        name: unique.
        key: Chroma's own id of it: another collection of the same name, made later, has another.
        fingerprint: the model whose vectors it holds.
        metric: how likeness is measured.
        created: when it was made, UTC.
        schema_version: of the layout in which it was stored.
    """

    name: str
    key: str
    fingerprint: Fingerprint
    metric: Metric
    created: datetime
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class NewerCollection:
    """A collection that a newer release wrote: all that is known for sure."""

    name: str
    key: str
    schema_version: int


@dataclass(frozen=True)
class StoredCollection:
    """A collection as the store knows it: foreign ones too."""

    name: str
    key: str
    metadata: Mapping[str, Any]


class CollectionStore(Protocol):
    """Where collections are kept."""

    async def find(self, name: str) -> StoredCollection | None:
        """The collection of that name."""

    async def create(self, name: str, metric: Metric, metadata: Mapping[str, Any]) -> StoredCollection | None:
        """Makes a collection; None: there is one of that name."""

    async def drop(self, name: str) -> None:
        """Deletes a collection and everything in it."""

    async def collections(self) -> list[StoredCollection]:
        """All of them, in no particular order."""


class Collections:
    """The collections of one store, remembered once read. The indexer is the store's only client."""

    def __init__(self, store: CollectionStore) -> None:
        self._store = store
        self._known: dict[str, Collection] = {}
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Collection]:
        """The collection, for as long as something is done with it.

        If the store says meanwhile that there is no such collection (somebody deleted it there), it is forgotten.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND, SCHEMA_UNSUPPORTED or STORE_UNAVAILABLE.
        """
        collection = self._known.get(name)
        if collection is None:
            collection = _readable(await self._find(name))
            self._known[name] = collection
        try:
            yield collection
        except LikenessError as error:
            if error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND and self._known.get(name) is collection:
                del self._known[name]
            raise

    async def create(self, name: str, fingerprint: Fingerprint, metric: Metric) -> Collection:
        """Makes an empty collection.

        Raises:
            LikenessError: COLLECTION_EXISTS or STORE_UNAVAILABLE.
        """
        created = datetime.now(UTC)
        async with self._lock(name):
            stored = await self._store.create(name, metric, _to_metadata(fingerprint, metric, created))
            if stored is None:
                existing = await self._store.find(name)
                whose = "" if existing is None or _is_ours(existing) else ", and it is not one of Likeness's"
                message = f"a collection named {name!r} exists in the store{whose}; choose another name"
                raise LikenessError(error_pb2.REASON_COLLECTION_EXISTS, message)
            self._known[name] = _readable(_read(stored))
            return self._known[name]

    async def find_to_delete(self, name: str) -> Collection | NewerCollection:
        """The collection, read anew from the store, also if a newer release wrote it.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND or STORE_UNAVAILABLE.
        """
        return await self._find(name)

    async def delete(self, collection: Collection | NewerCollection) -> None:
        """Deletes a collection and everything in it.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND or STORE_UNAVAILABLE.
        """
        async with self._lock(collection.name):
            self._known.pop(collection.name, None)
            await self._store.drop(collection.name)

    async def list(self, after: str, size: int) -> tuple[list[Collection | NewerCollection], bool]:
        """A page of the collections, ordered by name.

        Args:
            after: only names behind this one; empty: from the beginning.
            size: most collections in the page.

        Returns:
            The page, and whether there is more behind it.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        ours = sorted((c for c in await self._store.collections() if _is_ours(c)), key=lambda c: c.name)
        behind = [c for c in ours if c.name > after]
        return [_read(c) for c in behind[:size]], len(behind) > size

    async def _find(self, name: str) -> Collection | NewerCollection:
        stored = await self._store.find(name)
        if stored is None or not _is_ours(stored):
            raise not_found(name)
        return _read(stored)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())


def check_fingerprint(collection: Collection, expected: Fingerprint | None) -> None:
    """Refuses vectors of another model than the collection's.

    Raises:
        LikenessError: MODEL_MISMATCH, naming both models.
    """
    if expected is None or expected.digest == collection.fingerprint.digest:
        return
    holds = collection.fingerprint
    raise LikenessError(
        error_pb2.REASON_MODEL_MISMATCH,
        f"collection {collection.name!r} holds vectors of model {holds.model!r} (digest {holds.digest[:12]}…, "
        f"{holds.dimension} numbers), the call brings vectors of {expected.model!r} (digest {expected.digest[:12]}…, "
        f"{expected.dimension} numbers); use an embedder with the collection's model, or another collection",
    )


def not_found(name: str) -> LikenessError:
    """COLLECTION_NOT_FOUND."""
    message = f"there is no collection {name!r}; create it first, or list the collections to find its name"
    return LikenessError(error_pb2.REASON_COLLECTION_NOT_FOUND, message)


def _to_metadata(fingerprint: Fingerprint, metric: Metric, created: datetime) -> dict[str, Any]:
    return {
        f"{PREFIX}schema": SCHEMA_VERSION,
        f"{PREFIX}model": fingerprint.model,
        f"{PREFIX}digest": fingerprint.digest,
        f"{PREFIX}dimension": fingerprint.dimension,
        f"{PREFIX}metric": metric.value,
        f"{PREFIX}created": created.isoformat(),
    }


def _is_ours(stored: StoredCollection) -> bool:
    return isinstance(stored.metadata.get(f"{PREFIX}schema"), int)


def _read(stored: StoredCollection) -> Collection | NewerCollection:
    values = {key.removeprefix(PREFIX): value for key, value in stored.metadata.items() if key.startswith(PREFIX)}
    if values["schema"] > SCHEMA_VERSION:
        return NewerCollection(stored.name, stored.key, values["schema"])
    return Collection(
        stored.name,
        stored.key,
        Fingerprint(values["model"], values["digest"], values["dimension"]),
        Metric(values["metric"]),
        datetime.fromisoformat(values["created"]),
        values["schema"],
    )


def _readable(collection: Collection | NewerCollection) -> Collection:
    if isinstance(collection, NewerCollection):
        raise LikenessError(
            error_pb2.REASON_SCHEMA_UNSUPPORTED,
            f"collection {collection.name!r} has layout {collection.schema_version}, this release reads up to "
            f"{SCHEMA_VERSION}; use the release that wrote it, or a newer one",
        )
    return collection
