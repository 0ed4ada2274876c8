# ruff: noqa: N802, ARG002 (names and signatures are the contract's)
"""Transport: the rpc that reads a collection as a stream, and those of its backups."""

import asyncio
from contextlib import aclosing

from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis import names
from chassis.errors import LikenessError
from indexer import item_messages, messages
from indexer.archive.archive import Archive
from indexer.archive.backup import Made
from indexer.archive.restore import Restored
from indexer.archive.snapshots import Snapshot, check_name
from indexer.jobs import stream
from indexer.servicing import Context, Servicing

# So long a part of an export waits for its reader, in seconds; then what is held for the stream is free again.
STALLED_S = 300.0


class ArchiveRpcs(Servicing):
    """Exports and backups."""

    _archive: Archive
    _exports_end = False

    # Coroutines that write: see the interceptor.
    async def ExportItems(self, request: indexer_pb2.ExportItemsRequest, context: Context) -> None:
        """Reads the items of a collection."""
        names.check_collection(request.collection, "collection")
        if request.after_id:
            names.check_item_id(request.after_id, "after_id")
        where, fields = messages.where(request), messages.fields(request.fields)
        async with self._collections.use(request.collection) as collection:
            reader = self._readers.reader(collection)
            count = await reader.count(collection, None)
            scan = await reader.scan(collection, where, request.after_id, fields)
        described = messages.collection_message(collection, count, self._collections.aliases_of(collection.name))
        async with aclosing(scan.batches) as batches:
            await self._send(context, indexer_pb2.ExportItemsResponse(total=scan.total, collection=described))
            async for batch in batches:
                await self._send(context, await asyncio.to_thread(item_messages.export_message, batch))

    async def CreateSnapshot(self, request: indexer_pb2.CreateSnapshotRequest, context: Context) -> None:
        """Writes a backup."""
        self._lease.require()
        names.check_collection(request.collection, "collection")
        async with self._collections.use(request.collection) as collection:
            job = self._archive.create(collection)

        def of_result(made: Made) -> indexer_pb2.CreateSnapshotResponse:
            return indexer_pb2.CreateSnapshotResponse(snapshot=_snapshot(made.snapshot), deleted=made.deleted)

        await stream(context, job, lambda progress: indexer_pb2.CreateSnapshotResponse(progress=progress), of_result)

    async def ListSnapshots(
        self, request: indexer_pb2.ListSnapshotsRequest, context: Context
    ) -> indexer_pb2.ListSnapshotsResponse:
        """The backups there are."""
        if request.collection:
            names.check_collection(request.collection, "collection")
        name = self._collections.resolve(request.collection)
        return indexer_pb2.ListSnapshotsResponse(snapshots=map(_snapshot, await self._archive.list(name)))

    async def DeleteSnapshot(
        self, request: indexer_pb2.DeleteSnapshotRequest, context: Context
    ) -> indexer_pb2.DeleteSnapshotResponse:
        """Deletes a backup."""
        self._lease.require()
        await self._finish(self._archive.delete(check_name(request.name, "name")))
        return indexer_pb2.DeleteSnapshotResponse()

    async def RestoreSnapshot(self, request: indexer_pb2.RestoreSnapshotRequest, context: Context) -> None:
        """Makes a collection from a backup."""
        self._lease.require()
        name = check_name(request.snapshot, "snapshot")
        if request.collection:
            names.check_collection(request.collection, "collection")
        job = await self._archive.restore(name, request.collection)

        def of_result(restored: Restored) -> indexer_pb2.RestoreSnapshotResponse:
            collection = messages.collection_message(restored.collection, restored.count)
            return indexer_pb2.RestoreSnapshotResponse(collection=collection)

        await stream(context, job, lambda progress: indexer_pb2.RestoreSnapshotResponse(progress=progress), of_result)

    def end_exports(self) -> None:
        """Ends every export, now and in future: the indexer stops."""
        self._exports_end = True

    async def _send(self, context: Context, message: indexer_pb2.ExportItemsResponse) -> None:
        """Sends a part of an export; returns when there is room for the next.

        Raises:
            LikenessError: SHUTTING_DOWN; DEADLINE_EXCEEDED: nobody takes it.
        """
        if self._exports_end:
            text = "the indexer is stopping; go on with the last id that came as after_id"
            raise LikenessError(error_pb2.REASON_SHUTTING_DOWN, text, retry_after_s=1.0)
        try:
            async with asyncio.timeout(STALLED_S):
                await context.write(message)
        except TimeoutError:
            text = f"nobody has read from the stream for {STALLED_S:g} s; go on with the last id that came as after_id"
            raise LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, text) from None


def _snapshot(snapshot: Snapshot) -> indexer_pb2.Snapshot:
    manifest = snapshot.manifest
    if manifest is None:
        described = indexer_pb2.Collection(name=snapshot.collection)
    else:
        described = messages.collection_message(manifest.collection, manifest.rows)
    message = indexer_pb2.Snapshot(name=snapshot.name, collection=described, bytes=snapshot.size, fault=snapshot.fault)
    message.create_time.FromDatetime(snapshot.created)
    return message
