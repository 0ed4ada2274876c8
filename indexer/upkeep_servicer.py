# ruff: noqa: N802 (names and signatures are the contract's)
"""Transport: the rpcs that store a collection anew."""

from google.protobuf.timestamp_pb2 import Timestamp
from likeness.indexer.v1 import indexer_pb2

from chassis import names
from indexer import messages
from indexer.erase import Erased
from indexer.jobs import stream
from indexer.servicing import Context, Servicing
from indexer.upkeep import Rebuilt, Upkeep


class UpkeepRpcs(Servicing):
    """Rebuilding and erasing."""

    _upkeep: Upkeep

    async def RebuildCollection(self, request: indexer_pb2.RebuildCollectionRequest, context: Context) -> None:
        """Stores a collection anew."""
        self._lease.require()
        names.check_collection(request.collection, "collection")
        async with self._collections.use(request.collection) as collection:
            job = self._upkeep.rebuild(collection)

        def result(rebuilt: Rebuilt) -> indexer_pb2.RebuildCollectionResponse:
            aliases = self._collections.aliases_of(rebuilt.collection.name)
            return indexer_pb2.RebuildCollectionResponse(
                collection=messages.collection_message(rebuilt.collection, rebuilt.count, aliases),
                bytes_before=rebuilt.bytes_before,
                bytes_after=rebuilt.bytes_after,
            )

        await stream(context, job, lambda p: indexer_pb2.RebuildCollectionResponse(progress=p), result)

    async def EraseItems(self, request: indexer_pb2.EraseItemsRequest, context: Context) -> None:
        """Deletes items, and what is left of them."""
        self._lease.require()
        names.check_collection(request.collection, "collection")
        ids = list(dict.fromkeys(messages.ids(request.ids)))
        async with self._collections.use(request.collection) as collection:
            job = self._upkeep.erase(collection, ids, request.delete_snapshots)

        def result(erased: Erased) -> indexer_pb2.EraseItemsResponse:
            return indexer_pb2.EraseItemsResponse(report=_report(erased))

        await stream(context, job, lambda p: indexer_pb2.EraseItemsResponse(progress=p), result)


def _report(erased: Erased) -> indexer_pb2.ErasureReport:
    ended = Timestamp()
    ended.FromDatetime(erased.ended)
    return indexer_pb2.ErasureReport(
        deleted=erased.deleted,
        files_searched=erased.files,
        bytes_searched=erased.size,
        found_in=erased.found_in,
        traces=erased.traces,
        strings_left_out=erased.left_out,
        other_collections=erased.other_collections,
        snapshots=erased.backups,
        deleted_snapshots=erased.deleted_backups,
        end_time=ended,
    )
