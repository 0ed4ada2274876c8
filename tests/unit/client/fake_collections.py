"""What a fake gateway keeps of collections: names, models, aliases; and how it embeds one anew."""

from collections.abc import Callable, Iterator

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_status import rpc_status
from likeness.common.v1 import error_pb2, types_pb2
from likeness.gateway.v1 import gateway_pb2 as pb
from likeness.gateway.v1 import gateway_pb2_grpc


class FakeCollections(gateway_pb2_grpc.SearchServiceServicer):
    """The part of ``FakeGateway`` that makes collections and moves aliases.

    Attributes:
        requests: what these calls were asked.
        collections: those that there are.
        aliases: what each stands for.
        alias_breaks: what the next moves of an alias end with, once it is moved.
        on_create: answers instead, when a collection is to be made.
        reembedding: what a re-embedding answers with.
        reembeddings: what the next ones answer with instead; all but the last of them break behind that.
        reembedding_breaks: what the next re-embeddings end with, after their first message.
    """

    def __init__(self) -> None:
        self.requests: list[Message] = []
        self.collections: dict[str, pb.Collection] = {}
        self.aliases: dict[str, str] = {}
        self.alias_breaks: list[status_pb2.Status] = []
        self.on_create: (
            Callable[[pb.CreateCollectionRequest, grpc.ServicerContext], pb.CreateCollectionResponse] | None
        ) = None
        self.reembedding: list[pb.ReembedCollectionResponse] = []
        self.reembeddings: list[list[pb.ReembedCollectionResponse]] = []
        self.reembedding_breaks: list[status_pb2.Status] = []

    def requests_of(self, kind: type[Message]) -> int:
        """How many calls of a kind there were."""
        return sum(isinstance(request, kind) for request in self.requests)

    def CreateCollection(  # noqa: N802
        self, request: pb.CreateCollectionRequest, context: grpc.ServicerContext
    ) -> pb.CreateCollectionResponse:
        if self.on_create is not None:
            return self.on_create(request, context)
        self.requests.append(request)
        made = pb.Collection(name=request.name or "images", uid="u", metric=request.metric or types_pb2.METRIC_COSINE)
        made.fingerprint.model = "starter"
        made.description = request.description
        self.collections[made.name] = made
        return pb.CreateCollectionResponse(collection=made)

    def GetCollection(  # noqa: N802
        self, request: pb.GetCollectionRequest, context: grpc.ServicerContext
    ) -> pb.GetCollectionResponse:
        self.requests.append(request)
        return pb.GetCollectionResponse(collection=self.collections[request.name or "images"])

    def ListCollections(  # noqa: N802
        self, request: pb.ListCollectionsRequest, context: grpc.ServicerContext
    ) -> pb.ListCollectionsResponse:
        self.requests.append(pb.ListCollectionsRequest.FromString(request.SerializeToString()))
        names = [name for name in sorted(self.collections) if name > request.page_token]
        token = names[0] if len(names) > 1 else ""
        return pb.ListCollectionsResponse(
            collections=[self.collections[names[0]]] if names else [], next_page_token=token
        )

    def UpdateCollection(  # noqa: N802
        self, request: pb.UpdateCollectionRequest, context: grpc.ServicerContext
    ) -> pb.UpdateCollectionResponse:
        self.requests.append(request)
        found = self.collections[request.name or "images"]
        if request.HasField("description"):
            found.description = request.description
        return pb.UpdateCollectionResponse(collection=found)

    def DeleteCollection(  # noqa: N802
        self, request: pb.DeleteCollectionRequest, context: grpc.ServicerContext
    ) -> pb.DeleteCollectionResponse:
        self.requests.append(request)
        del self.collections[request.name]
        return pb.DeleteCollectionResponse()

    def SetAlias(self, request: pb.SetAliasRequest, context: grpc.ServicerContext) -> pb.SetAliasResponse:  # noqa: N802
        self.requests.append(request)
        previous = self.aliases.get(request.alias, "")
        self.aliases[request.alias] = request.collection
        if self.alias_breaks:
            context.abort_with_status(rpc_status.to_status(self.alias_breaks.pop(0)))
        return pb.SetAliasResponse(previous_collection=previous)

    def DeleteAlias(  # noqa: N802
        self, request: pb.DeleteAliasRequest, context: grpc.ServicerContext
    ) -> pb.DeleteAliasResponse:
        self.requests.append(request)
        return pb.DeleteAliasResponse(collection=self.aliases.pop(request.alias))

    def ListAliases(  # noqa: N802
        self, request: pb.ListAliasesRequest, context: grpc.ServicerContext
    ) -> pb.ListAliasesResponse:
        found = [pb.Alias(name=name, collection=self.aliases[name]) for name in sorted(self.aliases)]
        return pb.ListAliasesResponse(aliases=found)

    def ReembedCollection(  # noqa: N802
        self, request: pb.ReembedCollectionRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ReembedCollectionResponse]:
        self.requests.append(pb.ReembedCollectionRequest.FromString(request.SerializeToString()))
        for message in self.reembeddings.pop(0) if self.reembeddings else self.reembedding:
            yield message
            if self.reembedding_breaks:
                context.abort_with_status(rpc_status.to_status(self.reembedding_breaks.pop(0)))
        if self.reembeddings:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")


def failure(item_id: str, reason: error_pb2.Reason.ValueType, message: str) -> pb.ReembedFailure:
    """An item that could not be embedded anew."""
    status = status_pb2.Status(code=grpc.StatusCode.FAILED_PRECONDITION.value[0], message=message)
    return pb.ReembedFailure(id=item_id, error=error_pb2.ItemError(status=status, reason=reason))
