"""An indexer in memory, on a free loopback port: keeps what it is given, refuses what it is told to, can break off.

It knows filters of one EQ comparison, and orders by id alone.
"""

import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from google.rpc import status_pb2
from likeness.common.v1 import error_pb2, metadata_pb2
from likeness.indexer.v1 import indexer_pb2 as pb
from likeness.indexer.v1 import indexer_pb2_grpc

from tests.unit.client.fake_gateway import abort, status

BATCH = 64
MESSAGE_BYTES = 256 * 1024


class FakeIndexer(indexer_pb2_grpc.IndexerServiceServicer):
    """Collections by name, each with its items by id.

    Attributes:
        failures: what the next calls of an rpc end with, by the rpc's name; None: with nothing out of the ordinary.
        export_breaks: after how many items the next exports break off.
        bad_ids: items that it refuses.
        page: items of a page or of an export's message.
        upserts: the number of items of each call that it took in.
    """

    def __init__(self) -> None:
        self.collections: dict[str, pb.Collection] = {}
        self.items: dict[str, dict[str, pb.Item]] = {}
        self.aliases: dict[str, str] = {}
        self.snapshots: dict[str, tuple[pb.Collection, dict[str, pb.Item]]] = {}
        self.failures: dict[str, deque[status_pb2.Status | None]] = {}
        self.export_breaks: deque[int] = deque()
        self.export_requests: list[pb.ExportItemsRequest] = []
        self.bad_ids: set[str] = set()
        self.page = 10
        self.upserts: list[int] = []
        self.report = pb.ErasureReport(files_searched=3, bytes_searched=1000, traces=6)
        self._lock = threading.Lock()

    def CreateCollection(  # noqa: N802
        self, request: pb.CreateCollectionRequest, context: grpc.ServicerContext
    ) -> pb.CreateCollectionResponse:
        if request.name in self.collections:
            abort(context, status(grpc.StatusCode.ALREADY_EXISTS, "COLLECTION_EXISTS", f"{request.name} exists"))
        return pb.CreateCollectionResponse(collection=self.make(request))

    def make(self, request: pb.CreateCollectionRequest, uid: str = "") -> pb.Collection:
        """A collection as asked for."""
        made = pb.Collection(
            name=request.name,
            uid=uid or f"uid of {request.name}",
            earlier_uids=request.earlier_uids,
            fingerprint=request.fingerprint,
            metric=request.metric or 1,  # type: ignore[arg-type]
            hnsw=request.hnsw,
            description=request.description,
        )
        made.create_time.FromSeconds(1_790_000_000)
        self.collections[request.name] = made
        self.items[request.name] = {}
        return made

    def GetCollection(  # noqa: N802
        self, request: pb.GetCollectionRequest, context: grpc.ServicerContext
    ) -> pb.GetCollectionResponse:
        collection = self._shown(self._name(request.name, context))
        told = pb.CollectionStatus(name=collection.name, mode=pb.SERVING_MODE_MEMORY, rows=5, dead_rows=1)
        told.dead_share, told.memory_bytes, told.disk_bytes = 0.2, 2048, 4096
        return pb.GetCollectionResponse(collection=collection, status=told)

    def ListCollections(  # noqa: N802
        self, request: pb.ListCollectionsRequest, context: grpc.ServicerContext
    ) -> pb.ListCollectionsResponse:
        names = sorted(name for name in self.collections if name > request.page_token)
        page = names[: self.page]
        token = page[-1] if len(names) > len(page) else ""
        return pb.ListCollectionsResponse(collections=map(self._shown, page), next_page_token=token)

    def UpdateCollection(  # noqa: N802
        self, request: pb.UpdateCollectionRequest, context: grpc.ServicerContext
    ) -> pb.UpdateCollectionResponse:
        collection = self.collections[self._name(request.name, context)]
        if request.HasField("description"):
            collection.description = request.description
        if request.HasField("hnsw"):
            collection.hnsw.CopyFrom(request.hnsw)
        return pb.UpdateCollectionResponse(collection=collection, needs_rebuild=request.HasField("hnsw"))

    def DeleteCollection(  # noqa: N802
        self, request: pb.DeleteCollectionRequest, context: grpc.ServicerContext
    ) -> pb.DeleteCollectionResponse:
        name = self._name(request.name, context)
        if name in self.aliases.values():
            abort(context, status(grpc.StatusCode.FAILED_PRECONDITION, "COLLECTION_ALIASED", f"{name} has aliases"))
        del self.collections[name], self.items[name]
        return pb.DeleteCollectionResponse()

    def SetAlias(self, request: pb.SetAliasRequest, context: grpc.ServicerContext) -> pb.SetAliasResponse:  # noqa: N802
        previous = self.aliases.get(request.alias, "")
        if request.HasField("expected_collection") and request.expected_collection != previous:
            abort(context, status(grpc.StatusCode.FAILED_PRECONDITION, "ALIAS_MOVED", f"it stands for {previous!r}"))
        self.aliases[request.alias] = request.collection
        self._fail_if_told("SetAlias", context)
        return pb.SetAliasResponse(previous_collection=previous)

    def DeleteAlias(self, request: pb.DeleteAliasRequest, context: grpc.ServicerContext) -> pb.DeleteAliasResponse:  # noqa: N802
        if request.alias not in self.aliases:
            abort(context, status(grpc.StatusCode.NOT_FOUND, "ALIAS_NOT_FOUND", f"no alias {request.alias}"))
        return pb.DeleteAliasResponse(collection=self.aliases.pop(request.alias))

    def ListAliases(self, request: pb.ListAliasesRequest, context: grpc.ServicerContext) -> pb.ListAliasesResponse:  # noqa: N802
        found = [pb.Alias(name=name, collection=self.aliases[name]) for name in sorted(self.aliases)]
        return pb.ListAliasesResponse(aliases=found)

    def UpsertItems(self, request: pb.UpsertItemsRequest, context: grpc.ServicerContext) -> pb.UpsertItemsResponse:  # noqa: N802
        self._fail_if_told("UpsertItems", context)
        name = self._name(request.collection, context, request.expected_fingerprint)
        assert len(request.items) <= BATCH
        assert request.ByteSize() <= MESSAGE_BYTES
        for index, item in enumerate(request.items):
            if why := self._fault(name, item):
                abort(context, status(grpc.StatusCode.INVALID_ARGUMENT, "VECTOR_INVALID", why, f"items[{index}]"))
        with self._lock:
            self.upserts.append(len(request.items))
            for item in request.items:
                self.items[name][item.id] = item
        return pb.UpsertItemsResponse(stored=len({item.id for item in request.items}))

    def UpsertItemsStream(  # noqa: N802
        self, request_iterator: Iterator[pb.UpsertItemsStreamRequest], context: grpc.ServicerContext
    ) -> pb.UpsertItemsStreamResponse:
        self._fail_if_told("UpsertItemsStream", context)
        answer = pb.UpsertItemsStreamResponse()
        seen = 0
        for request in request_iterator:
            name = self._name(request.collection, context, request.expected_fingerprint)
            for index, item in enumerate(request.items, start=seen):
                if why := self._fault(name, item):
                    told = status(grpc.StatusCode.INVALID_ARGUMENT, "VECTOR_INVALID", why)
                    error = error_pb2.ItemError(status=told, reason=error_pb2.REASON_VECTOR_INVALID)
                    answer.refused += 1
                    if len(answer.refusals) < 100:
                        answer.refusals.add(index=index, id=item.id, error=error)
                else:
                    self.items[name][item.id] = item
                    answer.stored += 1
            seen += len(request.items)
        return answer

    def GetItems(self, request: pb.GetItemsRequest, context: grpc.ServicerContext) -> pb.GetItemsResponse:  # noqa: N802
        items = self.items[self._name(request.collection, context)]
        found = [_fields(items[i], request.fields.vector) for i in request.ids if i in items]
        return pb.GetItemsResponse(items=found, missing_ids=[i for i in request.ids if i not in items])

    def DeleteItems(self, request: pb.DeleteItemsRequest, context: grpc.ServicerContext) -> pb.DeleteItemsResponse:  # noqa: N802
        name = self._name(request.collection, context, request.expected_fingerprint)
        wanted = set(request.ids)
        if request.HasField("filter"):
            wanted = {item.id for item in self._matching(name, request.filter)}
        return pb.DeleteItemsResponse(deleted=sum(self.items[name].pop(i, None) is not None for i in wanted))

    def ListItems(self, request: pb.ListItemsRequest, context: grpc.ServicerContext) -> pb.ListItemsResponse:  # noqa: N802
        name = self._name(request.collection, context)
        found = [item for item in self._matching(name, _filter(request)) if item.id > request.page_token]
        page = found[: min(self.page, request.page_size)]
        token = page[-1].id if len(found) > len(page) else ""
        return pb.ListItemsResponse(items=[_fields(i, request.fields.vector) for i in page], next_page_token=token)

    def CountItems(self, request: pb.CountItemsRequest, context: grpc.ServicerContext) -> pb.CountItemsResponse:  # noqa: N802
        name = self._name(request.collection, context)
        return pb.CountItemsResponse(count=len(self._matching(name, _filter(request))))

    def GetFacets(self, request: pb.GetFacetsRequest, context: grpc.ServicerContext) -> pb.GetFacetsResponse:  # noqa: N802
        found = self._matching(self._name(request.collection, context), _filter(request))
        answer = pb.GetFacetsResponse(count=len(found))
        for asked in request.facets:
            values = Counter(i.metadata.fields[asked.key].string_value for i in found if asked.key in i.metadata.fields)
            facet = answer.facets.add(key=asked.key, distinct=len(values), missing=len(found) - values.total())
            for text, number in values.most_common(asked.limit or 10):
                facet.values.add(value=metadata_pb2.Value(string_value=text), count=number)
        return answer

    def UpdateMetadata(  # noqa: N802
        self, request: pb.UpdateMetadataRequest, context: grpc.ServicerContext
    ) -> pb.UpdateMetadataResponse:
        abort(context, status(grpc.StatusCode.UNIMPLEMENTED, "", "the client does not call it"))

    def Query(self, request: pb.QueryRequest, context: grpc.ServicerContext) -> pb.QueryResponse:  # noqa: N802
        name = self._name(request.collection, context, request.expected_fingerprint)
        answer = pb.QueryResponse(fingerprint=self.collections[name].fingerprint)
        result = answer.results.add()
        for example in request.queries[0].examples:
            if example.id and example.id not in self.items[name]:
                told = status(grpc.StatusCode.NOT_FOUND, "ITEM_NOT_FOUND", f"no item {example.id}")
                result.error.CopyFrom(error_pb2.ItemError(status=told, reason=error_pb2.REASON_ITEM_NOT_FOUND))
                return answer
        for item in self._matching(name, None)[: request.queries[0].top_k]:
            result.hits.add(id=item.id, score=0.5, metadata=item.metadata)
        return answer

    def ExportItems(  # noqa: N802
        self, request: pb.ExportItemsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ExportItemsResponse]:
        self.export_requests.append(request)
        self._fail_if_told("ExportItems", context)
        name = self._name(request.collection, context)
        found = [item for item in self._matching(name, _filter(request)) if item.id > request.after_id]
        yield pb.ExportItemsResponse(total=len(found), collection=self._shown(name))
        most = self.export_breaks.popleft() if self.export_breaks else None
        for start in range(0, len(found) if most is None else most, self.page):
            part = found[start : start + self.page if most is None else min(start + self.page, most)]
            yield pb.ExportItemsResponse(items=[_fields(item, request.fields.vector) for item in part])
        if most is not None:
            abort(context, status(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "stopping", retry_after_s=0.01))

    def CreateSnapshot(  # noqa: N802
        self, request: pb.CreateSnapshotRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.CreateSnapshotResponse]:
        name = self._name(request.collection, context)
        yield pb.CreateSnapshotResponse(progress=pb.Progress(stage="copying", done=1, total=2))
        self._fail_if_told("CreateSnapshot", context)
        called = f"{name}/{len(self.snapshots)}"
        self.snapshots[called] = (self._shown(name), dict(self.items[name]))
        yield pb.CreateSnapshotResponse(snapshot=self._snapshot(called), deleted=[f"{name}/old"])

    def ListSnapshots(  # noqa: N802
        self, request: pb.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> pb.ListSnapshotsResponse:
        names = [n for n in self.snapshots if not request.collection or n.startswith(f"{request.collection}/")]
        return pb.ListSnapshotsResponse(snapshots=map(self._snapshot, reversed(names)))

    def DeleteSnapshot(  # noqa: N802
        self, request: pb.DeleteSnapshotRequest, context: grpc.ServicerContext
    ) -> pb.DeleteSnapshotResponse:
        if self.snapshots.pop(request.name, None) is None:
            abort(context, status(grpc.StatusCode.NOT_FOUND, "SNAPSHOT_NOT_FOUND", f"no backup {request.name}"))
        return pb.DeleteSnapshotResponse()

    def RestoreSnapshot(  # noqa: N802
        self, request: pb.RestoreSnapshotRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.RestoreSnapshotResponse]:
        collection, items = self.snapshots[request.snapshot]
        yield pb.RestoreSnapshotResponse(progress=pb.Progress(stage="restoring", done=1, total=2))
        name = request.collection or collection.name
        self.make(pb.CreateCollectionRequest(name=name, fingerprint=collection.fingerprint), uid="a new one")
        self.items[name] = dict(items)
        yield pb.RestoreSnapshotResponse(collection=self._shown(name))

    def RebuildCollection(  # noqa: N802
        self, request: pb.RebuildCollectionRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.RebuildCollectionResponse]:
        name = self._name(request.collection, context)
        yield pb.RebuildCollectionResponse(progress=pb.Progress(stage="copying", done=1, total=2))
        yield pb.RebuildCollectionResponse(collection=self._shown(name), bytes_before=2000, bytes_after=1000)

    def EraseItems(  # noqa: N802
        self, request: pb.EraseItemsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.EraseItemsResponse]:
        name = self._name(request.collection, context)
        yield pb.EraseItemsResponse(progress=pb.Progress(stage="searching"))
        report = pb.ErasureReport()
        report.CopyFrom(self.report)
        report.deleted = sum(self.items[name].pop(i, None) is not None for i in request.ids)
        if request.delete_snapshots:
            report.deleted_snapshots.extend(report.snapshots)
            del report.snapshots[:]
        yield pb.EraseItemsResponse(report=report)

    def GetStatus(self, request: pb.GetStatusRequest, context: grpc.ServicerContext) -> pb.GetStatusResponse:  # noqa: N802
        limits = pb.Limits(batch=BATCH, message_bytes=MESSAGE_BYTES, dimension=4096, page_size=1000)
        return pb.GetStatusResponse(store_available=True, role=pb.ROLE_WRITER, limits=limits)

    def _name(self, asked: str, context: grpc.ServicerContext, expected: object = None) -> str:
        name = self.aliases.get(asked, asked)
        if name not in self.collections:
            abort(context, status(grpc.StatusCode.NOT_FOUND, "COLLECTION_NOT_FOUND", f"no collection {asked!r}"))
        digest = getattr(expected, "digest", "")
        if digest and digest != self.collections[name].fingerprint.digest:
            abort(context, status(grpc.StatusCode.FAILED_PRECONDITION, "MODEL_MISMATCH", "of another model"))
        return name

    def _shown(self, name: str) -> pb.Collection:
        shown = pb.Collection()
        shown.CopyFrom(self.collections[name])
        shown.count = len(self.items[name])
        shown.aliases.extend(sorted(alias for alias, of in self.aliases.items() if of == name))
        return shown

    def _snapshot(self, name: str) -> pb.Snapshot:
        return pb.Snapshot(name=name, collection=self.snapshots[name][0], bytes=1234)

    def _fault(self, name: str, item: pb.Item) -> str:
        expected = 4 * self.collections[name].fingerprint.dimension
        if len(item.vector.f32) != expected:
            return f"vector: {len(item.vector.f32)} bytes; expected {expected}"
        return "told to refuse it" if item.id in self.bad_ids else ""

    def _matching(self, name: str, only: metadata_pb2.Filter | None) -> list[pb.Item]:
        found = [self.items[name][item_id] for item_id in sorted(self.items[name])]
        if only is None:
            return found
        comparison = only.comparison
        assert comparison.op == metadata_pb2.OPERATOR_EQ
        return [item for item in found if item.metadata.fields.get(comparison.key) == comparison.values[0]]

    def _fail_if_told(self, rpc: str, context: grpc.ServicerContext) -> None:
        with self._lock:
            told = self.failures.get(rpc, deque())
            failure = told.popleft() if told else None
        if failure is not None:
            abort(context, failure)


@contextmanager
def serving(servicer: FakeIndexer) -> Iterator[str]:
    """Serves on a free port; yields the address."""
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    indexer_pb2_grpc.add_IndexerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def _filter(
    request: pb.ListItemsRequest | pb.CountItemsRequest | pb.GetFacetsRequest | pb.ExportItemsRequest,
) -> metadata_pb2.Filter | None:
    return request.filter if request.HasField("filter") else None


def _fields(item: pb.Item, vector: bool) -> pb.Item:
    shown = pb.Item(id=item.id, metadata=item.metadata)
    if vector:
        shown.vector.CopyFrom(item.vector)
    return shown
