"""Transport of collections and aliases."""

from dataclasses import dataclass

from likeness.gateway.v1 import gateway_pb2

from chassis.calls import CallContext
from chassis.deadline import Deadline
from gateway.collections import Collections


@dataclass(frozen=True)
class CollectionRpcs:
    """Hands calls about collections to ``gateway.collections``."""

    collections: Collections
    default_deadline_s: float

    async def CreateCollection(  # noqa: N802
        self, request: gateway_pb2.CreateCollectionRequest, context: CallContext
    ) -> gateway_pb2.CreateCollectionResponse:
        """Makes a collection."""
        made = await self.collections.create(request, Deadline.of(context, self.default_deadline_s))
        return gateway_pb2.CreateCollectionResponse(collection=made)

    async def GetCollection(  # noqa: N802
        self, request: gateway_pb2.GetCollectionRequest, context: CallContext
    ) -> gateway_pb2.GetCollectionResponse:
        """Describes one."""
        found = await self.collections.get(request, Deadline.of(context, self.default_deadline_s))
        return gateway_pb2.GetCollectionResponse(collection=found)

    async def ListCollections(  # noqa: N802
        self, request: gateway_pb2.ListCollectionsRequest, context: CallContext
    ) -> gateway_pb2.ListCollectionsResponse:
        """A page of them."""
        return await self.collections.list(request, Deadline.of(context, self.default_deadline_s))

    async def UpdateCollection(  # noqa: N802
        self, request: gateway_pb2.UpdateCollectionRequest, context: CallContext
    ) -> gateway_pb2.UpdateCollectionResponse:
        """Changes one."""
        changed = await self.collections.update(request, Deadline.of(context, self.default_deadline_s))
        return gateway_pb2.UpdateCollectionResponse(collection=changed)

    async def DeleteCollection(  # noqa: N802
        self, request: gateway_pb2.DeleteCollectionRequest, context: CallContext
    ) -> gateway_pb2.DeleteCollectionResponse:
        """Deletes one."""
        await self.collections.delete(request, Deadline.of(context, self.default_deadline_s))
        return gateway_pb2.DeleteCollectionResponse()

    async def SetAlias(  # noqa: N802
        self, request: gateway_pb2.SetAliasRequest, context: CallContext
    ) -> gateway_pb2.SetAliasResponse:
        """Makes or moves an alias."""
        return await self.collections.set_alias(request, Deadline.of(context, self.default_deadline_s))

    async def DeleteAlias(  # noqa: N802
        self, request: gateway_pb2.DeleteAliasRequest, context: CallContext
    ) -> gateway_pb2.DeleteAliasResponse:
        """Deletes an alias."""
        return await self.collections.delete_alias(request, Deadline.of(context, self.default_deadline_s))

    async def ListAliases(  # noqa: N802
        self, _request: gateway_pb2.ListAliasesRequest, context: CallContext
    ) -> gateway_pb2.ListAliasesResponse:
        """All aliases."""
        found = await self.collections.aliases(Deadline.of(context, self.default_deadline_s))
        return gateway_pb2.ListAliasesResponse(aliases=found)
