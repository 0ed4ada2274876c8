"""Items in Chroma: the only module, with ``chroma_collections`` and ``chroma``, that speaks to it."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np
from chromadb import errors as chroma_errors
from chromadb.api.models.AsyncCollection import AsyncCollection
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, invalid
from chassis.metadata import Plain
from chassis.vectors import Array
from indexer import chroma_rows
from indexer.changes import NOTHING, Change, Changes, Move
from indexer.chroma_collections import ChromaCollections
from indexer.chroma_where import STAMP, Where, from_stored, replacing, stamp_of, to_where
from indexer.collections import Collection
from indexer.filters import Node, true_of
from indexer.reads import Fields, Row, StoredItem
from indexer.scoring import OF_METRIC, distances
from indexer.writes import StoredRecord

T = TypeVar("T")

# Another vector under a known id makes the index rewire itself around it, under its lock: 2,048 vectors of 512 numbers
# were added at 296 a second, replaced at 19 a second. (Deleting first would be faster, and lose the item if Chroma died
# in between.) So few at a time, lest queries wait.
_MOVED_AT_ONCE = 8
# Of a request, as JSON; a larger one Chroma (1.5.9) refuses, or it closes the connection before it has read it.
_MOST_BYTES = 40 * 2**20
# What stands in a request beside a filter and vectors, from above.
_BESIDE_BYTES = 64 * 2**10
# Of a request that writes, as JSON, estimated from above.
_REQUEST_BYTES = 16 * 2**20
# Of a number in JSON, and of a character, which may be escaped.
_NUMBER_BYTES, _CHARACTER_BYTES = 24, 6

# SQLite under Chroma takes 32,766 parameters a statement: ids in one request.
_IDS_AT_ONCE = 10_000
# Metadata of one request, at most 64 KiB an item.
_METADATA_AT_ONCE = 1024
# Of items of which some are deleted meanwhile.
_MOST_READS = 3


class _Numbers(Array):
    """A vector, float32 [dimension], whose numbers Chroma's client takes one by one in half the time.

    ``struct.pack(*vector)`` in its ``pack_embedding_safely``: 512 numbers in 18 to 26 µs, numpy's own in 49 to 51.
    """

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())


class ChromaStore(ChromaCollections):
    """Collections and items in Chroma; its errors are those of ``ChromaCollections``."""

    async def count(self, collection: Collection | str) -> int:
        """Items in a collection, given by itself or by the name that Chroma has for it."""
        if isinstance(collection, Collection):
            async with self._chroma.handle("counting", collection) as handle:
                return await handle.count()
        async with self._chroma.client("counting", collection) as client:
            return await (await client.get_collection(collection, embedding_function=None)).count()

    async def ids(self, collection: Collection) -> list[str]:
        """The ids of all items, as they are at one moment, in no particular order (200,000 a second)."""
        async with self._chroma.handle("listing items", collection) as handle:
            return (await handle.get(include=[]))["ids"]

    async def matching(self, collection: Collection, where: Node, most: int | None = None) -> list[str]:
        """The ids of the items for which the filter is true, or ``most`` of them, in no particular order.

        Raises:
            LikenessError: FILTER_INVALID: Chroma cannot answer it.
        """
        asked = _where(where)
        async with self._chroma.handle("filtering", collection) as handle:
            try:
                return (await handle.get(where=asked, limit=most, include=[]))["ids"]
            except (chroma_errors.InvalidArgumentError, ValueError) as error:
                raise _inexpressible(str(error)) from error

    async def newer(self, collection: Collection, stamp: int) -> list[str]:
        """The ids of the items that were written later than a stamp, in no particular order."""
        async with self._chroma.handle("looking for what is newer", collection) as handle:
            return (await handle.get(where=cast(Any, {STAMP: {"$gt": stamp}}), include=[]))["ids"]

    async def newest(self, collection: Collection, at_least: int) -> int | None:
        """The greatest stamp, if it is ``at_least`` that; None if none is."""
        # Mostly none is. Otherwise the clock was set back, and the greatest lies between ``greatest`` and ``beyond``.
        async with self._chroma.handle("looking for the newest item", collection) as handle:
            greatest = await _beyond(handle, at_least - 1)
            if greatest is None:
                return None
            low, step = greatest, 1
            while (found := await _beyond(handle, low + step)) is not None:
                low, step = found, step * 2
            beyond = low + step
            while low < beyond:
                middle = (low + beyond) // 2
                found = await _beyond(handle, middle)
                low, beyond = (low, middle) if found is None else (found, beyond)
            return low

    async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
        """Everything about the items that exist among ``ids`` (without repetitions), in no particular order."""
        records: list[StoredRecord] = []
        for part in _parts(ids, _METADATA_AT_ONCE):
            async with self._chroma.handle("reading items", collection) as handle:
                got = await _whole(handle, part)
            vectors = np.asarray(got["embeddings"], np.float32)
            records += [
                StoredRecord(item_id, vector, from_stored(metadata), stamp_of(metadata))
                for item_id, vector, metadata in zip(got["ids"], vectors, got["metadatas"], strict=True)
            ]
        return records

    async def metadata(
        self, collection: Collection, ids: Sequence[str], where: Node | None = None
    ) -> dict[str, dict[str, Plain]]:
        """The metadata of the items among ``ids`` (without repetitions) that exist and pass a filter, by id."""
        found: dict[str, dict[str, Plain]] = {}
        for part in _parts(ids, _METADATA_AT_ONCE):
            async with self._chroma.handle("reading metadata", collection) as handle:
                got = cast(dict[str, Any], await handle.get(ids=part, include=["metadatas"]))
            metadata, passes = await _passing(got["metadatas"], where)
            read = zip(got["ids"], metadata, passes, strict=True)
            found.update((item_id, each) for item_id, each, passed in read if passed)
        return found

    async def existing(self, collection: Collection, ids: Sequence[str]) -> set[str]:
        """Which of ``ids`` (without repetitions) exist."""
        found: set[str] = set()
        for part in _parts(ids, _IDS_AT_ONCE):
            async with self._chroma.handle("looking for items", collection) as handle:
                found.update((await handle.get(ids=part, include=[]))["ids"])
        return found

    async def fetch(
        self, collection: Collection, ids: Sequence[str], fields: Fields, where: Node | None = None
    ) -> dict[str, StoredItem]:
        """The items among ``ids`` (without repetitions) that exist and pass a filter, by id.

        Whether they do is seen here: Chroma compares each of the ids with each item of the whole collection that
        passes, for 1,000 of them and 6,000 of those 5 s.
        """
        found: dict[str, StoredItem] = {}
        wanted = chroma_rows.include(replace(fields, metadata=fields.metadata or where is not None))
        for part in _parts(ids, _METADATA_AT_ONCE):
            async with self._chroma.handle("reading items", collection) as handle:
                got = cast(dict[str, Any], await handle.get(ids=part, include=wanted))
            items = chroma_rows.items(got["ids"], got["metadatas"], got["embeddings"], fields)
            if where is not None:
                _, passes = await _passing(got["metadatas"], where)
                items = [item for item, passed in zip(items, passes, strict=True) if passed]
            found.update((item.id, item) for item in items)
        return found

    async def search(
        self, collection: Collection, vectors: Array, where: Node | None, k: int, fields: Fields
    ) -> list[list[Row]]:
        """The nearest neighbours by the collection's metric.

        Args:
            collection: where to search.
            vectors: float32 [n, dimension].
            where: only items for which it is true; None: all.
            k: most rows a vector, at least 1.
            fields: what comes back of each item.

        Returns:
            n lists of at most k rows, in no particular order.

        Raises:
            LikenessError: FILTER_INVALID: Chroma cannot answer it.
        """
        asked = None if where is None else _where(where, _NUMBER_BYTES * vectors.size)
        async with self._chroma.handle("searching", collection) as handle:
            try:
                answer = await handle.query(
                    query_embeddings=list(vectors),
                    n_results=k,
                    where=asked,
                    include=["distances", *chroma_rows.include(fields)],
                )
            except (chroma_errors.InvalidArgumentError, ValueError) as error:
                if where is None:
                    raise
                raise _inexpressible(str(error)) from error
        got = cast(dict[str, Any], answer)
        found: list[list[Row]] = []
        for i, ids in enumerate(got["ids"]):
            metadatas, embeddings = (got[name] and got[name][i] for name in ("metadatas", "embeddings"))
            items = chroma_rows.items(ids, metadatas, embeddings, fields)
            points = chroma_rows.scores(got["distances"][i], collection.metric)
            away = distances(OF_METRIC[collection.metric], points)
            found.append([Row(*row) for row in zip(items, points.tolist(), away.tolist(), strict=True)])
        return found

    async def write(self, collection: Collection, changes: Changes, stamp: int | Mapping[str, int]) -> None:
        """Writes what has changed; each id once. The stamp is one for all, or each id has its own.

        Raises:
            LikenessError: STORE_FULL; whatever it raises, some may have been written.
        """
        added = _fitting([Move(item, NOTHING) for item in changes.added], _weight)
        async with self._chroma.handle("writing items", collection) as handle:
            for part in (*added, *_parts(changes.moved, _MOVED_AT_ONCE)):
                await self._before_request()
                await handle.upsert(
                    ids=[move.item.id for move in part],
                    embeddings=cast(Any, [move.item.vector.view(_Numbers) for move in part]),
                    metadatas=cast(Any, [_replacing(m.item.id, m.old, m.item.metadata, stamp) for m in part]),
                )
        await self.relabel(collection, changes.labels, stamp)

    async def relabel(self, collection: Collection, labels: Sequence[Change], stamp: int | Mapping[str, int]) -> None:
        """Replaces the metadata of items that exist; each id once. The stamp as for ``write``.

        Raises:
            LikenessError: STORE_FULL; whatever it raises, some may have been written.
        """
        if not labels:
            return
        async with self._chroma.handle("writing metadata", collection) as handle:
            for part in _fitting(labels, lambda change: _metadata_weight(change.new)):
                await self._before_request()
                await handle.update(
                    ids=[change.id for change in part],
                    metadatas=cast(Any, [_replacing(change.id, change.old, change.new, stamp) for change in part]),
                )

    async def delete(self, collection: Collection, ids: Sequence[str]) -> None:
        """Deletes items, each id once; at least one, and what does not exist is no error.

        If it fails, some may be gone.
        """
        async with self._chroma.handle("deleting items", collection) as handle:
            await self._before_request()
            await handle.delete(ids=list(ids))


def _replacing(
    item_id: str, old: Mapping[str, Plain], new: Mapping[str, Plain], stamp: int | Mapping[str, int]
) -> dict[str, Any]:
    return replacing(old, new, stamp if isinstance(stamp, int) else stamp[item_id])


def _fitting(sequence: Sequence[T], weight: Callable[[T], int]) -> Iterator[list[T]]:
    """Parts that fit a request each; one alone always does."""
    part: list[T] = []
    size = 0
    for each in sequence:
        more = weight(each)
        if part and size + more > _REQUEST_BYTES:
            yield part
            part, size = [], 0
        part.append(each)
        size += more
    if part:
        yield part


def _weight(move: Move) -> int:
    return _NUMBER_BYTES * len(move.item.vector) + _metadata_weight(move.item.metadata)


def _metadata_weight(metadata: Mapping[str, Plain]) -> int:
    texts = 0
    for key, value in metadata.items():
        texts += 2 * len(key)  # also in the list of keys
        if isinstance(value, str):
            texts += len(value)
        elif isinstance(value, list):
            texts += sum(map(len, value)) + len(value)
        else:
            texts += _NUMBER_BYTES
    return _CHARACTER_BYTES * texts


async def _passing(stored: Sequence[Any], where: Node | None) -> tuple[list[dict[str, Plain]], list[bool]]:
    """The metadata of items as Chroma has them, and for which of them a filter is true.

    Large filters take some 0.1 ms an item: they are not for the event loop.
    """
    metadata = list(map(from_stored, stored))
    if where is None:
        return metadata, [True] * len(metadata)
    return metadata, await asyncio.to_thread(lambda: [true_of(where, each) for each in metadata])


async def _whole(handle: AsyncCollection, ids: list[str]) -> dict[str, Any]:
    """Metadata and vectors of the items that exist, in Chroma's words.

    Chroma 1.5.9 finds the items first, then the vector of each, and fails for all of them ("Error finding id") where
    one is deleted in between: while items were deleted one after another, 58 of 1,048 reads of 256.
    """
    for reads in range(1, _MOST_READS + 1):
        try:
            return cast(dict[str, Any], await handle.get(ids=ids, include=["metadatas", "embeddings"]))
        except chroma_errors.InternalError:
            if reads == _MOST_READS:
                raise
        ids = (await handle.get(ids=ids, include=[]))["ids"]
        if not ids:  # of which Chroma would not take a list
            break
    return {"ids": [], "metadatas": [], "embeddings": []}


async def _beyond(handle: AsyncCollection, stamp: int) -> int | None:
    """Some stamp that is greater; None if none is."""
    got = await handle.get(where=cast(Any, {STAMP: {"$gt": stamp}}), limit=1, include=["metadatas"])
    return stamp_of(cast(Any, got["metadatas"])[0]) if got["ids"] else None


def _parts(sequence: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(sequence), size):
        yield list(sequence[start : start + size])


def _where(node: Node, beside: int = 0) -> Where:
    """A filter in Chroma's words, for a request with so many bytes beside it.

    Raises:
        LikenessError: FILTER_INVALID: Chroma would not take the request.
    """
    where = to_where(node)
    size, room = len(json.dumps(where, ensure_ascii=False).encode()), _MOST_BYTES - _BESIDE_BYTES - beside
    if size > room:
        why = f"written out it has {size:,} bytes, and a request to Chroma has room for {room:,}"
        raise _inexpressible(
            f"{why}; give fewer or shorter values, or serve the collection from memory (LIKENESS_READS)"
        )
    return where


def _inexpressible(why: str) -> LikenessError:
    return invalid("filter", f"Chroma cannot answer it: {why[:300]}", error_pb2.REASON_FILTER_INVALID)
