"""DeleteItems: items go with their thumbnails and originals.

Items go first: what the indexer refuses takes no files away. By ids a call that breaks in between can be repeated, and
then deletes the files; by filter the items would not be found again, so files have to be within reach before they go.
"""

from dataclasses import dataclass

from likeness.common.v1.types_pb2 import ItemFields
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis.deadline import Deadline
from gateway.backends import Indexer
from gateway.media import Media
from gateway.requests import collection_name

# The most that the indexer takes in one call are 1,024.
_PAGE = 1000


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
        # By the collection's own name from here on: an alias may be moved meanwhile.
        if not by_filter:
            deleting = indexer_pb2.DeleteItemsRequest(collection=found.name, ids=request.ids)
            answer = await self._delete(deleting, deadline)
            await self.media.forget(found.uid, request.ids)
            return answer
        deleted = 0
        listing = indexer_pb2.ListItemsRequest(
            collection=found.name, filter=request.filter, page_size=_PAGE, fields=ItemFields()
        )
        while True:
            page = await self.indexer.list(listing, deadline.left())
            ids = [item.id for item in page.items]
            if ids:
                await self.media.check(found.uid)
                gone = await self._delete(indexer_pb2.DeleteItemsRequest(collection=found.name, ids=ids), deadline)
                deleted += gone.deleted
                await self.media.forget(found.uid, ids)
            if not page.next_page_token:
                return gateway_pb2.DeleteItemsResponse(deleted=deleted)
            listing.page_token = page.next_page_token

    async def _delete(
        self, request: indexer_pb2.DeleteItemsRequest, deadline: Deadline
    ) -> gateway_pb2.DeleteItemsResponse:
        return gateway_pb2.DeleteItemsResponse(deleted=(await self.indexer.delete(request, deadline.left())).deleted)
