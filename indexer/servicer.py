# ruff: noqa: N802, ARG002 (names and signatures are the contract's)
"""Transport: each rpc reads its request, calls what does the work, and writes its response. Errors map themselves."""

import asyncio
import base64
import binascii
from typing import Any, Protocol

import grpc
from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from chassis import names
from chassis.errors import LikenessError, invalid, to_item_error
from indexer import messages, query
from indexer.collections import Collection, Collections, NewerCollection, check_fingerprint
from indexer.reads import Fields, Reader, Row
from indexer.writer import Writers

Context = grpc.aio.ServicerContext[Any, Any]

MAX_PAGE = 1000
DEFAULT_PAGE = 100
_COUNTS_AT_ONCE = 4


class ItemReader(Reader, Protocol):
    """Searches, reads and counts."""

    async def count(self, collection: Collection | str) -> int:
        """Items in a collection, given by itself or by name."""


class IndexerServicer(indexer_pb2_grpc.IndexerServiceServicer):
    """``likeness.indexer.v1.IndexerService``."""

    def __init__(self, collections: Collections, writers: Writers, reader: ItemReader) -> None:
        self._collections = collections
        self._writers = writers
        self._reader = reader

    async def CreateCollection(
        self, request: indexer_pb2.CreateCollectionRequest, context: Context
    ) -> indexer_pb2.CreateCollectionResponse:
        """Makes an empty collection."""
        created = await self._collections.create(
            names.check_collection(request.name, "name"),
            messages.fingerprint(request.fingerprint, "fingerprint"),
            messages.metric(request.metric),
        )
        return indexer_pb2.CreateCollectionResponse(collection=messages.collection_message(created, 0))

    async def GetCollection(
        self, request: indexer_pb2.GetCollectionRequest, context: Context
    ) -> indexer_pb2.GetCollectionResponse:
        """Describes one collection."""
        names.check_collection(request.name, "name")
        async with self._collections.use(request.name) as collection:
            count = await self._reader.count(collection)
        return indexer_pb2.GetCollectionResponse(collection=messages.collection_message(collection, count))

    async def ListCollections(
        self, request: indexer_pb2.ListCollectionsRequest, context: Context
    ) -> indexer_pb2.ListCollectionsResponse:
        """Describes every collection, ordered by name."""
        if request.page_size > MAX_PAGE:
            raise invalid("page_size", f"{request.page_size:,}; expected 1 to {MAX_PAGE:,}, or 0 for {DEFAULT_PAGE}")
        after = _name_behind(request.page_token)
        page, more = await self._collections.list(after, request.page_size or DEFAULT_PAGE)
        response = indexer_pb2.ListCollectionsResponse(next_page_token=_token(page[-1].name) if more else "")
        turns = asyncio.Semaphore(_COUNTS_AT_ONCE)
        for collection, count in zip(page, await asyncio.gather(*(self._count(c, turns) for c in page)), strict=True):
            if count is not None:
                response.collections.append(messages.collection_message(collection, count))
        return response

    async def DeleteCollection(
        self, request: indexer_pb2.DeleteCollectionRequest, context: Context
    ) -> indexer_pb2.DeleteCollectionResponse:
        """Deletes a collection and everything in it."""
        collection = await self._collections.find_to_delete(names.check_collection(request.name, "name"))
        await self._writers.abandon(collection.key)
        await self._collections.delete(collection)
        return indexer_pb2.DeleteCollectionResponse()

    async def UpsertItems(
        self, request: indexer_pb2.UpsertItemsRequest, context: Context
    ) -> indexer_pb2.UpsertItemsResponse:
        """Writes items."""
        names.check_collection(request.collection, "collection")
        expected = messages.expected_fingerprint(request)
        async with self._collections.use(request.collection) as collection:
            check_fingerprint(collection, expected)
            items = messages.items(request.items, collection)
            return indexer_pb2.UpsertItemsResponse(stored=await self._writers.upsert(collection, items))

    async def GetItems(self, request: indexer_pb2.GetItemsRequest, context: Context) -> indexer_pb2.GetItemsResponse:
        """Reads items by id."""
        names.check_collection(request.collection, "collection")
        ids = messages.ids(request.ids)
        wanted = messages.fields(request.fields)
        async with self._collections.use(request.collection) as collection:
            found = await self._reader.fetch(collection, list(dict.fromkeys(ids)), wanted)
        return indexer_pb2.GetItemsResponse(
            items=[messages.item_message(found[i], wanted) for i in ids if i in found],
            missing_ids=[i for i in ids if i not in found],
        )

    async def DeleteItems(
        self, request: indexer_pb2.DeleteItemsRequest, context: Context
    ) -> indexer_pb2.DeleteItemsResponse:
        """Deletes items by id."""
        names.check_collection(request.collection, "collection")
        ids = messages.ids(request.ids)
        async with self._collections.use(request.collection) as collection:
            return indexer_pb2.DeleteItemsResponse(deleted=await self._writers.delete(collection, ids))

    async def CountItems(
        self, request: indexer_pb2.CountItemsRequest, context: Context
    ) -> indexer_pb2.CountItemsResponse:
        """Counts the items of a collection."""
        names.check_collection(request.collection, "collection")
        async with self._collections.use(request.collection) as collection:
            return indexer_pb2.CountItemsResponse(count=await self._reader.count(collection))

    async def Query(self, request: indexer_pb2.QueryRequest, context: Context) -> indexer_pb2.QueryResponse:
        """Nearest neighbours."""
        names.check_collection(request.collection, "collection")
        expected = messages.expected_fingerprint(request)
        wanted = messages.fields(request.fields)
        async with self._collections.use(request.collection) as collection:
            check_fingerprint(collection, expected)
            queries = messages.queries(request.queries, collection)
            outcomes = await query.answer(self._reader, collection, queries, wanted)
        return indexer_pb2.QueryResponse(
            fingerprint=messages.fingerprint_message(collection.fingerprint),
            results=[_result(outcome, wanted) for outcome in outcomes],
        )

    async def _count(self, collection: Collection | NewerCollection, turns: asyncio.Semaphore) -> int | None:
        """None if the collection has been deleted since it was listed."""
        async with turns:
            try:
                return await self._reader.count(collection if isinstance(collection, Collection) else collection.name)
            except LikenessError as error:
                if error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND:
                    return None
                raise


def _result(outcome: list[Row] | LikenessError, wanted: Fields) -> indexer_pb2.QueryResult:
    if isinstance(outcome, LikenessError):
        return indexer_pb2.QueryResult(error=to_item_error(outcome))
    return indexer_pb2.QueryResult(hits=messages.hit_messages(outcome, wanted))


def _token(name: str) -> str:
    """A page token: the last name of the page, so that it stays good while collections come and go."""
    return base64.urlsafe_b64encode(name.encode()).decode()


def _name_behind(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        raise invalid("page_token", f"{token[:100]!r} is none that ListCollections gave") from None
