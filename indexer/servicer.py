# ruff: noqa: N802, ARG002 (names and signatures are the contract's)
"""Transport: each rpc reads its request, calls what does the work, and writes its response. Errors map themselves."""

from collections.abc import AsyncIterator
from dataclasses import replace

from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from chassis import calls, names
from chassis.errors import invalid
from indexer import item_messages, limits, messages, query, query_messages, tokens
from indexer.archive.archive import Archive
from indexer.archive_servicer import ArchiveRpcs
from indexer.bulk import BulkUpsert
from indexer.catalog import Collections
from indexer.collection_servicer import CollectionRpcs
from indexer.collections import check_fingerprint
from indexer.disk_usage import DiskUsage
from indexer.reads import Listing
from indexer.servicing import NOT_MEASURED, Context, Lease, Readers, Writes
from indexer.upkeep import Upkeep
from indexer.upkeep_servicer import UpkeepRpcs


class IndexerServicer(  # type: ignore[misc]  # streams are coroutines that write: see the interceptor
    CollectionRpcs, UpkeepRpcs, ArchiveRpcs, indexer_pb2_grpc.IndexerServiceServicer
):
    """``likeness.indexer.v1.IndexerService``: here items, queries and the status; the rest in its other parts."""

    def __init__(
        self,
        collections: Collections,
        writers: Writes,
        readers: Readers,
        lease: Lease,
        *,
        archive: Archive,
        upkeep: Upkeep,
        disk: DiskUsage = NOT_MEASURED,
        message_bytes: int = limits.MESSAGE_BYTES,
        stream_ahead: int = 512,
    ) -> None:
        """The parts of the indexer, as in ``servicing``.

        Args:
            collections: by name.
            writers: what takes writes.
            readers: what answers reads.
            lease: whether anything may be changed.
            archive: the backups.
            upkeep: stores collections anew.
            disk: measures files.
            message_bytes: of the largest message, for whoever asks.
            stream_ahead: most items of a stream that wait to be written.
        """
        super().__init__(collections, writers, readers, lease, disk=disk)
        self._message_bytes = message_bytes
        self._bulk = BulkUpsert(collections, writers, stream_ahead)
        self._archive = archive
        self._upkeep = upkeep

    def end_streams(self) -> None:
        """Ends every stream, now and in future: the indexer stops."""
        self._bulk.stop()
        self.end_exports()

    async def UpsertItems(
        self, request: indexer_pb2.UpsertItemsRequest, context: Context
    ) -> indexer_pb2.UpsertItemsResponse:
        """Writes items."""
        self._lease.require()
        names.check_collection(request.collection, "collection")
        expected = messages.expected_fingerprint(request)
        async with self._collections.use(request.collection, request.expected_uid) as collection:
            check_fingerprint(collection, expected)
            items = await item_messages.items(request.items, collection)
            return indexer_pb2.UpsertItemsResponse(stored=await self._writers.upsert(collection, items))

    async def UpsertItemsStream(
        self, requests: AsyncIterator[indexer_pb2.UpsertItemsStreamRequest], context: Context
    ) -> indexer_pb2.UpsertItemsStreamResponse:
        """Writes a stream of items."""
        self._lease.require()
        return await self._bulk(requests)

    async def UpdateMetadata(
        self, request: indexer_pb2.UpdateMetadataRequest, context: Context
    ) -> indexer_pb2.UpdateMetadataResponse:
        """Changes metadata and leaves vectors alone."""
        self._lease.require()
        names.check_collection(request.collection, "collection")
        expected = messages.expected_fingerprint(request)
        updates = item_messages.updates(request.updates)
        async with self._collections.use(request.collection) as collection:
            check_fingerprint(collection, expected)
            updated, missing = await self._writers.update_metadata(collection, updates)
        return indexer_pb2.UpdateMetadataResponse(updated=updated, missing_ids=missing)

    async def GetItems(self, request: indexer_pb2.GetItemsRequest, context: Context) -> indexer_pb2.GetItemsResponse:
        """Reads items by id."""
        names.check_collection(request.collection, "collection")
        ids = messages.ids(request.ids)
        wanted = messages.fields(request.fields)
        async with self._collections.use(request.collection) as collection:
            found = await self._readers.reader(collection).fetch(collection, list(dict.fromkeys(ids)), wanted)
        return await item_messages.respond_found(ids, found)

    async def DeleteItems(
        self, request: indexer_pb2.DeleteItemsRequest, context: Context
    ) -> indexer_pb2.DeleteItemsResponse:
        """Deletes items by id or by filter."""
        self._lease.require()
        names.check_collection(request.collection, "collection")
        expected = messages.expected_fingerprint(request)
        where = messages.where(request)
        if where is not None and request.ids:
            raise invalid("filter", "set beside ids; expected one of them")
        ids = messages.ids(request.ids) if where is None else []
        async with self._collections.use(request.collection) as collection:
            check_fingerprint(collection, expected)
            if where is None:
                deleted = await self._writers.delete(collection, ids)
            else:
                deleted = await self._writers.delete_matching(collection, where)
                calls.touch(deleted=deleted)
        return indexer_pb2.DeleteItemsResponse(deleted=deleted)

    async def ListItems(self, request: indexer_pb2.ListItemsRequest, context: Context) -> indexer_pb2.ListItemsResponse:
        """Reads items page by page, in an order."""
        names.check_collection(request.collection, "collection")
        listing = Listing(
            where=messages.where(request),
            order_by=messages.key(request.order_by, "order_by") if request.order_by else "",
            descending=request.descending,
            size=messages.page_size(request.page_size),
            after=None,
        )
        wanted = messages.fields(request.fields)
        async with self._collections.use(request.collection) as collection:
            listing = replace(listing, after=tokens.items_behind(request, collection.uid))
            page = await self._readers.reader(collection).page(collection, listing, wanted)
        return indexer_pb2.ListItemsResponse(
            items=map(item_messages.item_message, page.items),
            next_page_token="" if page.next is None else tokens.of_items(request, collection.uid, page.next),
        )

    async def CountItems(
        self, request: indexer_pb2.CountItemsRequest, context: Context
    ) -> indexer_pb2.CountItemsResponse:
        """Counts the items of a collection, or those that a filter leaves."""
        names.check_collection(request.collection, "collection")
        where = messages.where(request)
        async with self._collections.use(request.collection) as collection:
            count = await self._readers.reader(collection).count(collection, where)
        return indexer_pb2.CountItemsResponse(count=count)

    async def GetFacets(self, request: indexer_pb2.GetFacetsRequest, context: Context) -> indexer_pb2.GetFacetsResponse:
        """Counts items by the values of their metadata."""
        names.check_collection(request.collection, "collection")
        where, wanted = messages.where(request), messages.facets(request.facets)
        async with self._collections.use(request.collection) as collection:
            count, facets = await self._readers.reader(collection).facets(collection, where, wanted)
        return messages.facets_response(count, facets)

    async def Query(self, request: indexer_pb2.QueryRequest, context: Context) -> indexer_pb2.QueryResponse:
        """Nearest neighbours."""
        names.check_collection(request.collection, "collection")
        expected = messages.expected_fingerprint(request)
        wanted = messages.fields(request.fields)
        async with self._collections.use(request.collection) as collection:
            check_fingerprint(collection, expected)
            queries = query_messages.queries(request.queries, collection)
            outcomes = await query.answer(self._readers.reader(collection), collection, queries, wanted)
        return await query_messages.respond(collection, outcomes)

    async def GetStatus(self, request: indexer_pb2.GetStatusRequest, context: Context) -> indexer_pb2.GetStatusResponse:
        """What the indexer is doing."""
        status = self._readers.status()
        sizes = await self._disk.of([(each.uid, each.key) for each in status.collections])
        response = messages.status_message(status, sizes)
        response.limits.CopyFrom(limits.limits(self._message_bytes))
        response.role, response.lag_seconds = messages.ROLES[self._lease.role], self._lease.lag_s
        if (store_bytes := await self._disk.store()) is not None:
            response.store_bytes = store_bytes
        return response
