"""DeleteItems: items go with their thumbnails and originals.

Items go first: what the indexer refuses takes no files away. By ids a call that breaks in between can be repeated, and
then deletes the files; by filter the items would not be found again, so files have to be within reach before they go,
and what has been begun is done to its end, though its caller goes or its time is over.

Of a collection that was restored from a backup, files go from where the one before had them, too: as far as no other
collection that looks for files there has the items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from likeness.common.v1.types_pb2 import ItemFields
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis import calls
from chassis.deadline import Deadline
from chassis.unbroken import unbroken
from gateway.backends import Indexer
from gateway.media import Media
from gateway.requests import collection_name
from gateway.uids import forgettable, sharing

# Items of a filter that go together: what is done to its end should not take long.
_PAGE = 256


@dataclass(frozen=True)
class Deletion:
    """Deletes items, by ids or by filter."""

    indexer: Indexer
    media: Media

    async def __call__(
        self, request: gateway_pb2.DeleteItemsRequest, deadline: Deadline
    ) -> gateway_pb2.DeleteItemsResponse:
        """Deletes items, then their files; by filter page after page, each of the items that it was true for when read.

        Raises:
            LikenessError: the request is refused, a service or (MEDIA_UNAVAILABLE) the files cannot be reached.
        """
        collection = collection_name(request.collection)
        by_filter = request.HasField("filter")
        if by_filter == bool(request.ids) or len(request.ids) > 1024:  # for the indexer to refuse, before anything goes
            return await self._delete(
                indexer_pb2.DeleteItemsRequest(
                    collection=collection, ids=request.ids, filter=request.filter if by_filter else None
                ),
                deadline,
            )
        found = await self.indexer.collection(collection, deadline.left())
        shared = await sharing(self.indexer, found, deadline.left)
        # By the collection's own name from here on: an alias may be moved meanwhile.
        if not by_filter:
            return await self._remove(found, request.ids, shared, deadline)
        deleted = 0
        listing = indexer_pb2.ListItemsRequest(
            collection=found.name, filter=request.filter, page_size=_PAGE, fields=ItemFields()
        )
        while True:
            page = await self.indexer.list(listing, deadline.left())
            ids = [item.id for item in page.items]
            if ids:
                await self.media.check(found.uid)
                deleted += (await self._remove(found, ids, shared, deadline)).deleted
                calls.touch(deleted=deleted)
            if not page.next_page_token:
                return gateway_pb2.DeleteItemsResponse(deleted=deleted)
            listing.page_token = page.next_page_token

    async def _remove(
        self, found: indexer_pb2.Collection, ids: Sequence[str], shared: Mapping[str, Sequence[str]], deadline: Deadline
    ) -> gateway_pb2.DeleteItemsResponse:
        elsewhere = await forgettable(self.indexer, ids, shared, deadline.left)

        async def remove() -> gateway_pb2.DeleteItemsResponse:
            answer = await self._delete(indexer_pb2.DeleteItemsRequest(collection=found.name, ids=ids), deadline)
            for uid, theirs in [(found.uid, ids), *elsewhere]:
                await self.media.forget(uid, theirs)
            return answer

        async with self.media.leaving(found.uid, ids):
            return await unbroken(remove())

    async def _delete(
        self, request: indexer_pb2.DeleteItemsRequest, deadline: Deadline
    ) -> gateway_pb2.DeleteItemsResponse:
        return gateway_pb2.DeleteItemsResponse(deleted=(await self.indexer.delete(request, deadline.left())).deleted)
