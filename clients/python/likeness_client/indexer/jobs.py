"""What takes minutes: backups, restoring, rebuilding, erasing. The indexer tells how far it is, then the result."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import grpc
from likeness.indexer.v1 import indexer_pb2 as pb
from likeness.indexer.v1.indexer_pb2_grpc import IndexerServiceStub

from likeness_client.errors import LikenessError
from likeness_client.indexer import wire
from likeness_client.indexer.types import Collection, ErasureReport, Progress, Rebuilt, Snapshot, SnapshotMade
from likeness_client.lists import listed
from likeness_client.rpc_errors import from_rpc_error

OnProgress = Callable[[Progress], None]


class _Told(Protocol):
    """A message of a job's stream."""

    @property
    def progress(self) -> pb.Progress: ...

    def HasField(self, field_name: Any, /) -> bool: ...  # noqa: N802


_Message = TypeVar("_Message", bound=_Told)


class Jobs:
    """The part of ``IndexerClient`` whose calls answer with a stream. If the caller goes away, the job goes on."""

    address: str
    timeout: float | None
    _stub: IndexerServiceStub

    def create_snapshot(self, collection: str, *, on_progress: OnProgress | None = None) -> SnapshotMade:
        """Writes a backup, in one state of the collection, to where the indexer keeps them."""
        answer = self._follow(
            self._stub.CreateSnapshot(pb.CreateSnapshotRequest(collection=collection)), "snapshot", on_progress
        )
        return SnapshotMade(wire.snapshot_from_proto(answer.snapshot), tuple(answer.deleted))

    def snapshots(self, collection: str = "") -> list[Snapshot]:
        """The backups there are, or those of one collection, the newest first."""
        try:
            answer = self._stub.ListSnapshots(pb.ListSnapshotsRequest(collection=collection), timeout=self.timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address, self.timeout, "indexer") from None
        return list(map(wire.snapshot_from_proto, answer.snapshots))

    def delete_snapshot(self, name: str) -> None:
        """Deletes a backup."""
        try:
            self._stub.DeleteSnapshot(pb.DeleteSnapshotRequest(name=name), timeout=self.timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address, self.timeout, "indexer") from None

    def restore_snapshot(
        self, snapshot: str, *, collection: str = "", on_progress: OnProgress | None = None
    ) -> Collection:
        """Makes a collection from a backup, by the name that it had or by another."""
        request = pb.RestoreSnapshotRequest(snapshot=snapshot, collection=collection)
        return wire.collection_from_proto(
            self._follow(self._stub.RestoreSnapshot(request), "collection", on_progress).collection
        )

    def rebuild(self, collection: str, *, on_progress: OnProgress | None = None) -> Rebuilt:
        """Stores a collection anew: with its present HNSW parameters, without traces of what was deleted before."""
        request = pb.RebuildCollectionRequest(collection=collection)
        answer = self._follow(self._stub.RebuildCollection(request), "collection", on_progress)
        return Rebuilt(wire.collection_from_proto(answer.collection), answer.bytes_before, answer.bytes_after)

    def erase(
        self,
        collection: str,
        ids: Sequence[str],
        *,
        delete_snapshots: bool = False,
        on_progress: OnProgress | None = None,
    ) -> ErasureReport:
        """Deletes 1 to 1,024 items so that nothing of them is left on the disk, and looks for what is.

        Args:
            collection: its name.
            ids: of the items; unknown ones are searched for all the same.
            delete_snapshots: whether backups of the collection that hold one of them are deleted as well.
            on_progress: called as it goes on.
        """
        request = pb.EraseItemsRequest(collection=collection, ids=listed(ids, "ids"), delete_snapshots=delete_snapshots)
        return wire.report_from_proto(self._follow(self._stub.EraseItems(request), "report", on_progress).report)

    def _follow(self, stream: Iterable[_Message], result: str, on_progress: OnProgress | None) -> _Message:
        last: _Message | None = None
        try:
            for last in stream:
                if on_progress is not None and last.progress.stage:
                    on_progress(wire.progress_from_proto(last.progress))
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address, None, "indexer") from None
        if last is None or not last.HasField(result):
            message = f"the indexer at {self.address} ended its answer without a result; look at its log"
            raise LikenessError("INTERNAL", "", message)
        return last
