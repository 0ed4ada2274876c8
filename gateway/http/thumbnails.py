"""``/thumbnails``: the small picture of an item, for pages that show hits.

The item is asked for first, by the same rules as GetItems: one that was deleted has no thumbnail, and what was left
behind of it is not shown.
"""

from dataclasses import dataclass

from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import ItemFields
from likeness.indexer.v1 import indexer_pb2
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from chassis import metadata
from chassis.calls import Calls
from chassis.deadline import Deadline
from chassis.errors import LikenessError, invalid
from chassis.trace import TRACE_ID
from gateway.indexer_reads import IndexerReads
from gateway.media import Media
from gateway.requests import collection_name

# The rpc that the caller needs the scope of, and that it is counted as.
_METHOD = "/likeness.gateway.v1.SearchService/GetItems"


@dataclass(frozen=True)
class Thumbnails:
    """Reads thumbnails.

    Attributes:
        calls: what is done around each request, as around an rpc.
        indexer: knows the items.
        media: holds the files.
        elsewhere: whether pages of other origins may show them.
    """

    calls: Calls
    indexer: IndexerReads
    media: Media
    elsewhere: bool

    def routes(self) -> list[BaseRoute]:
        """The id is the rest of the path, slashes included, or for ids that no path can hold, a parameter."""
        return [
            Route("/thumbnails/{collection}", self.show),
            Route("/thumbnails/{collection}/{id:path}", self.show),
        ]

    async def show(self, request: Request) -> Response:
        """The thumbnail, or that the client has it already.

        Raises:
            LikenessError: as GetItems, and ITEM_NOT_FOUND: there is no such item, or no thumbnail of it.
        """
        call = self.calls.admit(_METHOD, request.headers.items(), "http")
        try:
            async with call.under_way(None):
                shown = await self._show(request)
                shown.headers[TRACE_ID] = call.trace.id
                return shown
        finally:
            call.end()

    async def _show(self, request: Request) -> Response:
        item_id = request.path_params.get("id") or request.query_params.get("id", "")
        if not item_id:
            raise invalid("id", "is missing; expected it behind the collection, or as the parameter id")
        deadline = Deadline(self.calls.default_deadline_s)
        found = await self.indexer.collection(collection_name(request.path_params["collection"]), deadline.left())
        # By the collection's own name from here on: an alias may be moved meanwhile.
        wanted = indexer_pb2.GetItemsRequest(collection=found.name, ids=[item_id], fields=ItemFields(metadata=True))
        items = (await self.indexer.get(wanted, deadline.left())).items
        sha256 = metadata.from_proto(items[0].metadata, "metadata").get("sha256") if items else None
        shown = {
            "cache-control": "private, no-cache",
            "content-security-policy": "default-src 'none'; sandbox",
            "cross-origin-resource-policy": "cross-origin" if self.elsewhere else "same-origin",
            "etag": f'W/"{sha256}"',
        }
        thumbnail = None
        if isinstance(sha256, str):
            thumbnail = await self.media.thumbnail(found.uid, item_id, sha256, found.earlier_uids)
        if thumbnail is None:
            raise LikenessError(error_pb2.REASON_ITEM_NOT_FOUND, "there is no such item, or no thumbnail of it")
        if shown["etag"] in (each.strip() for each in request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=shown)
        return Response(thumbnail, media_type="image/webp", headers=shown)
