"""DeleteItems: items go with their thumbnails and originals.

Items go first: what the indexer refuses takes no files away. By ids a call that breaks in between can be repeated, and
then deletes the files; by filter the items would not be found again, so files have to be within reach before they go,
and what has been begun is done to its end, though its caller goes or its time is over.

Of a collection that was restored from a backup, files go from where the one before had them, too: as far as no other
collection that looks for files there has the items.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from likeness.common.v1.types_pb2 import ItemFields
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis import calls
from chassis.deadline import Deadline
from chassis.errors import LikenessError
from chassis.unbroken import unbroken
from gateway.backends import Indexer
from gateway.media import Media
from gateway.requests import at_token, collection_name
from gateway.uids import existing, forgettable, sharing

# Items of a filter that go together: what is done to its end should not take long.
_PAGE = 256
# Failures after which the items may be there or not.
_UNKNOWN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True)
class Deletion:
    """Deletes items, by ids or by filter.

    Attributes:
        indexer: has the items.
        media: has their files.
        limit_s: how long one step may take that is done to its end.
    """

    indexer: Indexer
    media: Media
    limit_s: float
    _begun: set[asyncio.Task[Any]] = field(default_factory=set)

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
            return await self._remove(found, request.ids, deadline)
        deleted = 0
        listing = indexer_pb2.ListItemsRequest(
            collection=found.name, filter=request.filter, page_size=_PAGE, fields=ItemFields()
        )
        while True:
            with at_token(listing.page_token, "", "DeleteItems"):
                page = await self.indexer.list(listing, deadline.left())
            ids = [item.id for item in page.items]
            if ids:
                await self.media.check(found.uid)
                deleted += (await self._remove(found, ids, deadline)).deleted
                calls.touch(deleted=deleted)
            if not page.next_page_token:
                return gateway_pb2.DeleteItemsResponse(deleted=deleted)
            listing.page_token = page.next_page_token

    async def finish(self) -> None:
        """Returns when nothing that was begun is under way any more."""
        if self._begun:
            await asyncio.wait(self._begun)

    async def _remove(
        self, found: indexer_pb2.Collection, ids: Sequence[str], deadline: Deadline
    ) -> gateway_pb2.DeleteItemsResponse:
        shared = await sharing(self.indexer, found, deadline.left)
        async with self.media.leaving([found.uid, *shared], ids):
            elsewhere = await forgettable(self.indexer, ids, shared, deadline.left)
            deadline.left()
            return await unbroken(self._removed(found, ids, elsewhere))

    async def _removed(
        self, found: indexer_pb2.Collection, ids: Sequence[str], elsewhere: Sequence[tuple[str, Sequence[str]]]
    ) -> gateway_pb2.DeleteItemsResponse:
        """Has a time limit of its own: to its caller's, what was begun would be left half done."""
        task = asyncio.current_task()
        assert task is not None
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)
        deleting = indexer_pb2.DeleteItemsRequest(collection=found.name, ids=ids)
        gone, failed = set(ids), None
        try:
            answer = await self._delete(deleting, Deadline(self.limit_s))
        except LikenessError as error:
            if error.code not in _UNKNOWN:
                raise
            # It may have been done all the same, and by filter these would not be found again.
            gone, failed = gone - await existing(self.indexer, found.name, ids, self.limit_s), error
        for uid, theirs in [(found.uid, ids), *elsewhere]:
            await self.media.forget(uid, [each for each in theirs if each in gone])
        if failed is not None:
            raise failed
        return answer

    async def _delete(
        self, request: indexer_pb2.DeleteItemsRequest, deadline: Deadline
    ) -> gateway_pb2.DeleteItemsResponse:
        return gateway_pb2.DeleteItemsResponse(deleted=(await self.indexer.delete(request, deadline.left())).deleted)
