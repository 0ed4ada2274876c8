# ruff: noqa: N802, ARG002 (names and signatures are the contract's)
"""Transport: the rpcs of collections and of their aliases."""

import asyncio
from collections.abc import Sequence

from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis import names
from chassis.errors import LikenessError
from indexer import messages, tokens
from indexer.collections import Collection, Fingerprint, Hnsw, Metric, NewerCollection
from indexer.servicing import Context, Servicing
from indexer.status import Mode

_COUNTS_AT_ONCE = 4


class CollectionRpcs(Servicing):
    """Collections and aliases."""

    async def CreateCollection(
        self, request: indexer_pb2.CreateCollectionRequest, context: Context
    ) -> indexer_pb2.CreateCollectionResponse:
        """Makes an empty collection."""
        self._lease.require()
        name = names.check_collection(request.name, "name")
        fingerprint = messages.fingerprint(request.fingerprint, "fingerprint")
        metric, hnsw = messages.metric(request.metric), messages.hnsw(request.hnsw)
        description, earlier_uids = (
            messages.description(request.description),
            messages.earlier_uids(request.earlier_uids),
        )
        creating = self._create(name, fingerprint, metric, hnsw, description, earlier_uids=earlier_uids)
        created = await self._finish(creating)
        return indexer_pb2.CreateCollectionResponse(collection=messages.collection_message(created, 0))

    async def UpdateCollection(
        self, request: indexer_pb2.UpdateCollectionRequest, context: Context
    ) -> indexer_pb2.UpdateCollectionResponse:
        """Changes what can be changed of a collection."""
        self._lease.require()
        name = names.check_collection(request.name, "name")
        hnsw = messages.hnsw(request.hnsw) if request.HasField("hnsw") else None
        description = messages.description(request.description) if request.HasField("description") else None
        await self._finish(self._update(name, hnsw, description))
        async with self._collections.use(name) as collection:
            return indexer_pb2.UpdateCollectionResponse(
                collection=await self._described(collection), needs_rebuild=self._needs_rebuild(collection)
            )

    async def GetCollection(
        self, request: indexer_pb2.GetCollectionRequest, context: Context
    ) -> indexer_pb2.GetCollectionResponse:
        """Describes one collection."""
        names.check_collection(request.name, "name")
        async with self._collections.use(request.name) as collection:
            (size,) = await self._disk.of([(collection.uid, collection.key)])
            return indexer_pb2.GetCollectionResponse(
                collection=await self._described(collection),
                status=messages.collection_status(self._readers.status_of(collection), size),
            )

    async def ListCollections(
        self, request: indexer_pb2.ListCollectionsRequest, context: Context
    ) -> indexer_pb2.ListCollectionsResponse:
        """Describes every collection, ordered by name."""
        size = messages.page_size(request.page_size)
        page, more = await self._collections.list(tokens.collections_behind(request), size)
        response = indexer_pb2.ListCollectionsResponse(
            next_page_token=tokens.of_collections(page[-1].name) if more else "",
            deleted_uids=() if more else self._collections.deleted_uids,
        )
        turns = asyncio.Semaphore(_COUNTS_AT_ONCE)
        for collection, count in zip(page, await asyncio.gather(*(self._count(c, turns) for c in page)), strict=True):
            if count is not None:
                aliases = self._collections.aliases_of(collection.name)
                response.collections.append(messages.collection_message(collection, count, aliases))
        return response

    async def DeleteCollection(
        self, request: indexer_pb2.DeleteCollectionRequest, context: Context
    ) -> indexer_pb2.DeleteCollectionResponse:
        """Deletes a collection and everything in it."""
        self._lease.require()
        await self._finish(self._delete(names.check_collection(request.name, "name")))
        return indexer_pb2.DeleteCollectionResponse()

    async def SetAlias(self, request: indexer_pb2.SetAliasRequest, context: Context) -> indexer_pb2.SetAliasResponse:
        """Makes an alias, or moves it to another collection."""
        self._lease.require()
        alias = names.check_collection(request.alias, "alias")
        name = names.check_collection(request.collection, "collection")
        expected = request.expected_collection if request.HasField("expected_collection") else None
        before = await self._finish(self._collections.set_alias(alias, name, expected))
        return indexer_pb2.SetAliasResponse(previous_collection=before)

    async def DeleteAlias(
        self, request: indexer_pb2.DeleteAliasRequest, context: Context
    ) -> indexer_pb2.DeleteAliasResponse:
        """Deletes an alias; the collection stays."""
        self._lease.require()
        alias = names.check_collection(request.alias, "alias")
        before = await self._finish(self._collections.delete_alias(alias))
        return indexer_pb2.DeleteAliasResponse(collection=before)

    async def ListAliases(
        self, request: indexer_pb2.ListAliasesRequest, context: Context
    ) -> indexer_pb2.ListAliasesResponse:
        """All aliases, ordered by name."""
        aliases = await self._collections.list_aliases()
        return indexer_pb2.ListAliasesResponse(
            aliases=(indexer_pb2.Alias(name=alias, collection=name) for alias, name in aliases)
        )

    async def _create(
        self,
        name: str,
        fingerprint: Fingerprint,
        metric: Metric,
        hnsw: Hnsw,
        description: str,
        *,
        earlier_uids: Sequence[str],
    ) -> Collection:
        created = await self._collections.create(
            name, fingerprint, metric, hnsw, description, earlier_uids=earlier_uids
        )
        self._readers.created(created)
        return created

    async def _update(self, name: str, hnsw: Hnsw | None, description: str | None) -> None:
        self._readers.updated(await self._collections.update(name, hnsw, description))

    async def _delete(self, name: str) -> None:
        try:
            async with self._collections.leaving(name) as collection:
                try:
                    async with self._writers.deleting(collection):
                        await self._collections.delete(collection)
                except LikenessError as error:
                    if error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND:
                        self._readers.deleted(collection.uid)
                    raise
                self._readers.deleted(collection.uid)
        except LikenessError as error:
            if error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND and not self._collections.knows(name):
                self._readers.forget(name)
            raise

    async def _described(self, collection: Collection) -> indexer_pb2.Collection:
        count = await self._readers.reader(collection).count(collection, None)
        return messages.collection_message(collection, count, self._collections.aliases_of(collection.name))

    def _needs_rebuild(self, collection: Collection) -> bool:
        """Whether it would be stored or searched differently after a rebuild."""
        wanted, built = collection.hnsw, collection.built
        if (wanted.max_neighbors, wanted.ef_construction) != (built.max_neighbors, built.ef_construction):
            return True
        in_memory = self._readers.status_of(collection).mode is Mode.MEMORY
        return wanted.ef_search != built.ef_search and not in_memory

    async def _count(self, collection: Collection | NewerCollection, turns: asyncio.Semaphore) -> int | None:
        """None if the collection has been deleted since it was listed."""
        async with turns:
            try:
                if isinstance(collection, NewerCollection):
                    return await self._readers.count_newer(collection)
                return await self._readers.reader(collection).count(collection, None)
            except LikenessError as error:
                if error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND:
                    return None
                raise
