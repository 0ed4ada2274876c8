"""An embedder, and an indexer of many collections and aliases, in this process: for tests that make and fill some."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from likeness.common.v1 import error_pb2, types_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from likeness.indexer.v1 import indexer_pb2 as pb
from likeness.indexer.v1 import indexer_pb2_grpc

from chassis import metadata
from chassis.errors import LikenessError, invalid
from chassis.vectors import Array, to_proto
from gateway.backends import Embedder, Indexer
from gateway.settings import GatewaySettings
from tests.unit.gateway.behind import MODEL, Behind


class Shelves(Behind):
    """Like ``Behind``, with collections that are made, filled and deleted.

    Attributes:
        found: collections by name.
        shelves: their items by id.
        aliases: what each stands for.
        deleted: uids of collections that were deleted, as the indexer tells them.
        lose_answers_of: methods whose next call is done, but answered with UNAVAILABLE.
        answers_with: the model that makes vectors, if that is not the one that GetModel names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, pb.Collection] = {}
        self.shelves: dict[str, dict[str, pb.Item]] = {}
        self.aliases: dict[str, str] = {}
        self.deleted: list[str] = []
        self.lose_answers_of: set[str] = set()
        self.answers_with: types_pb2.ModelFingerprint | None = None

    def make(self, name: str, model: types_pb2.ModelFingerprint = MODEL, metric: int = types_pb2.METRIC_COSINE) -> None:
        """Makes a collection."""
        made = pb.Collection(name=name, uid=f"uid-{name}", fingerprint=model)
        made.metric = metric or types_pb2.METRIC_COSINE  # type: ignore[assignment]
        self.found[name], self.shelves[name] = made, {}

    def store(self, collection: str, item_id: str, vector: Array, **plain: metadata.Plain) -> None:
        """Puts an item in."""
        self.shelves[collection][item_id] = pb.Item(
            id=item_id, vector=to_proto(vector), metadata=metadata.to_proto(plain)
        )

    async def Embed(self, request: Any, context: Any) -> embedder_pb2.EmbedResponse:  # noqa: N802
        answer = await super().Embed(request, context)
        answer.fingerprint.CopyFrom(self.answers_with or self.model)
        return answer

    async def CreateCollection(self, request: Any, context: Any) -> pb.CreateCollectionResponse:  # noqa: N802
        await self._begin("CreateCollection", request, context)
        if request.name in self.found:
            await self._abort(context, LikenessError(error_pb2.REASON_COLLECTION_EXISTS, "there is one"))
        if request.metric == types_pb2.METRIC_L1:
            await self._abort(context, invalid("metric", "METRIC_L1 is for re-scoring"))
        self.make(request.name, request.fingerprint, request.metric)
        self.found[request.name].description = request.description
        return pb.CreateCollectionResponse(collection=self.found[request.name])

    async def GetCollection(self, request: Any, context: Any) -> pb.GetCollectionResponse:  # noqa: N802
        name = await self._resolve("GetCollection", request, context, request.name)
        return pb.GetCollectionResponse(collection=self._described(name))

    async def ListCollections(self, request: Any, context: Any) -> pb.ListCollectionsResponse:  # noqa: N802
        await self._begin("ListCollections", request, context)
        names = [name for name in sorted(self.found) if name > request.page_token]
        page = names[: request.page_size or 100]
        token = page[-1] if len(page) < len(names) else ""
        return pb.ListCollectionsResponse(
            collections=map(self._described, page), next_page_token=token, deleted_uids=() if token else self.deleted
        )

    async def UpdateCollection(self, request: Any, context: Any) -> pb.UpdateCollectionResponse:  # noqa: N802
        name = await self._resolve("UpdateCollection", request, context, request.name)
        if request.HasField("description"):
            self.found[name].description = request.description
        return pb.UpdateCollectionResponse(collection=self._described(name))

    async def DeleteCollection(self, request: Any, context: Any) -> pb.DeleteCollectionResponse:  # noqa: N802
        name = await self._resolve("DeleteCollection", request, context, request.name)
        if name in self.aliases.values():
            await self._abort(context, LikenessError(error_pb2.REASON_COLLECTION_ALIASED, "it has aliases"))
        self.deleted.append(self.found[name].uid)
        del self.found[name], self.shelves[name]
        return pb.DeleteCollectionResponse()

    async def SetAlias(self, request: Any, context: Any) -> pb.SetAliasResponse:  # noqa: N802
        await self._begin("SetAlias", request, context)
        present = self.aliases.get(request.alias, "")
        if request.HasField("expected_collection") and request.expected_collection != present:
            await self._abort(context, LikenessError(error_pb2.REASON_ALIAS_MOVED, f"it stands for {present!r}"))
        self.aliases[request.alias] = request.collection
        if "SetAlias" in self.lose_answers_of:
            self.lose_answers_of.remove("SetAlias")
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
        return pb.SetAliasResponse(previous_collection=present)

    async def DeleteAlias(self, request: Any, context: Any) -> pb.DeleteAliasResponse:  # noqa: N802
        await self._begin("DeleteAlias", request, context)
        if request.alias not in self.aliases:
            await self._abort(context, LikenessError(error_pb2.REASON_ALIAS_NOT_FOUND, "no such alias"))
        return pb.DeleteAliasResponse(collection=self.aliases.pop(request.alias))

    async def ListAliases(self, request: Any, context: Any) -> pb.ListAliasesResponse:  # noqa: N802
        await self._begin("ListAliases", request, context)
        found = [pb.Alias(name=name, collection=self.aliases[name]) for name in sorted(self.aliases)]
        return pb.ListAliasesResponse(aliases=found)

    async def GetItems(self, request: Any, context: Any) -> pb.GetItemsResponse:  # noqa: N802
        shelf = self.shelves[await self._resolve("GetItems", request, context, request.collection)]
        return pb.GetItemsResponse(
            items=[shelf[i] for i in request.ids if i in shelf], missing_ids=[i for i in request.ids if i not in shelf]
        )

    async def ListItems(self, request: Any, context: Any) -> pb.ListItemsResponse:  # noqa: N802
        shelf = self.shelves[await self._resolve("ListItems", request, context, request.collection)]
        ids = [item_id for item_id in sorted(shelf) if item_id > request.page_token]
        page = ids[: request.page_size or 100]
        token = page[-1] if len(page) < len(ids) else ""
        return pb.ListItemsResponse(items=[shelf[i] for i in page], next_page_token=token)

    async def CountItems(self, request: Any, context: Any) -> pb.CountItemsResponse:  # noqa: N802
        name = await self._resolve("CountItems", request, context, request.collection)
        return pb.CountItemsResponse(count=len(self.shelves[name]))

    async def UpsertItems(self, request: Any, context: Any) -> pb.UpsertItemsResponse:  # noqa: N802
        name = await self._resolve("UpsertItems", request, context, request.collection)
        if request.expected_fingerprint.digest not in ("", self.found[name].fingerprint.digest):
            await self._abort(context, LikenessError(error_pb2.REASON_MODEL_MISMATCH, "two models"))
        for item in request.items:
            self.shelves[name][item.id] = item
        return pb.UpsertItemsResponse(stored=len(request.items))

    async def DeleteItems(self, request: Any, context: Any) -> pb.DeleteItemsResponse:  # noqa: N802
        shelf = self.shelves[await self._resolve("DeleteItems", request, context, request.collection)]
        return pb.DeleteItemsResponse(deleted=sum(shelf.pop(i, None) is not None for i in request.ids))

    def _described(self, name: str) -> pb.Collection:
        described = pb.Collection()
        described.CopyFrom(self.found[name])
        described.aliases[:] = sorted(alias for alias in self.aliases if self.aliases[alias] == name)
        described.count = len(self.shelves[name])
        return described

    async def _resolve(self, method: str, request: Any, context: Any, name: str) -> str:
        """The collection that a name or an alias stands for."""
        await self._begin(method, request, context)
        name = self.aliases.get(name, name)
        if name not in self.found:
            await self._abort(context, LikenessError(error_pb2.REASON_COLLECTION_NOT_FOUND, f"no {name!r}"))
        return name


@asynccontextmanager
async def shelves(**settings: Any) -> AsyncIterator[tuple[Shelves, Embedder, Indexer]]:
    """Both services, and the gateway's connections to them."""
    services = Shelves()  # type: ignore[abstract]  # only what the gateway calls
    server = grpc.aio.server()
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(services, server)
    indexer_pb2_grpc.add_IndexerServiceServicer_to_server(services, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    told = GatewaySettings(embedder_address=address, indexer_address=address, **settings)
    embedder, indexer = Embedder(told), Indexer(told)
    try:
        yield services, embedder, indexer
    finally:
        await embedder.close()
        await indexer.close()
        await server.stop(0)
