"""Collections and aliases: the indexer's, made with the embedder's model."""

from collections.abc import Sequence
from dataclasses import dataclass

from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import METRIC_COSINE, Metric, ModelFingerprint
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis.deadline import Deadline
from chassis.errors import LikenessError, invalid
from gateway.backends import Embedder, Indexer
from gateway.media import Media
from gateway.requests import collection_name, expected_fingerprint, mismatch, of_collection
from gateway.uids import listing


@dataclass(frozen=True)
class Collections:
    """Makes, describes, changes and deletes collections, and moves aliases."""

    embedder: Embedder
    indexer: Indexer
    media: Media

    async def create(self, request: gateway_pb2.CreateCollectionRequest, deadline: Deadline) -> gateway_pb2.Collection:
        """Makes a collection for the embedder's model.

        Raises:
            LikenessError: COLLECTION_EXISTS; MODEL_MISMATCH: the embedder's model is not the one expected.
        """
        name = collection_name(request.name, "name")
        expected = expected_fingerprint(request)
        fingerprint = (await self.embedder.model(deadline.left())).fingerprint
        if expected is not None and expected.digest != fingerprint.digest:
            raise mismatch(fingerprint, expected, "the model that the request expects")
        making = indexer_pb2.CreateCollectionRequest(
            name=name, fingerprint=fingerprint, metric=request.metric, description=request.description
        )
        return shown(await self.indexer.create_collection(making, deadline.left()))

    async def get(self, request: gateway_pb2.GetCollectionRequest, deadline: Deadline) -> gateway_pb2.Collection:
        """Describes one."""
        return shown(await self.indexer.collection(collection_name(request.name, "name"), deadline.left()))

    async def list(
        self, request: gateway_pb2.ListCollectionsRequest, deadline: Deadline
    ) -> gateway_pb2.ListCollectionsResponse:
        """A page of them."""
        listing = indexer_pb2.ListCollectionsRequest(page_size=request.page_size, page_token=request.page_token)
        page = await self.indexer.list_collections(listing, deadline.left())
        return gateway_pb2.ListCollectionsResponse(
            collections=map(shown, page.collections), next_page_token=page.next_page_token
        )

    async def update(self, request: gateway_pb2.UpdateCollectionRequest, deadline: Deadline) -> gateway_pb2.Collection:
        """Changes what it is for."""
        change = indexer_pb2.UpdateCollectionRequest(
            name=collection_name(request.name, "name"),
            description=request.description if request.HasField("description") else None,
        )
        return shown(await self.indexer.update_collection(change, deadline.left()))

    async def delete(self, request: gateway_pb2.DeleteCollectionRequest, deadline: Deadline) -> None:
        """Deletes one with everything in it. There is no default: nobody deletes "images" by leaving out a name.

        Raises:
            LikenessError: MEDIA_UNAVAILABLE, or the indexer answers no more: it is deleted, but not its thumbnails and
                originals: a sweep does that.
        """
        if not request.name:
            raise invalid("name", "is empty; expected the name of the collection to delete")
        name = collection_name(request.name, "name")
        uid = ""
        try:
            uid = (await self.indexer.collection(name, deadline.left())).uid
        except LikenessError as error:
            if error.reason != error_pb2.REASON_SCHEMA_UNSUPPORTED:  # of a newer release: it can be deleted, no more
                raise
        await self.indexer.delete_collection(name, deadline.left())
        # What was restored from it needs its files, and those of what it was restored from itself a sweep sees to.
        if uid and uid not in (await listing(self.indexer, deadline.left)).needed_beside(uid):
            await self.media.forget_collection(uid)

    async def set_alias(self, request: gateway_pb2.SetAliasRequest, deadline: Deadline) -> gateway_pb2.SetAliasResponse:
        """Makes or moves an alias."""
        moving = indexer_pb2.SetAliasRequest(
            alias=request.alias,
            collection=request.collection,
            expected_collection=request.expected_collection if request.HasField("expected_collection") else None,
        )
        previous = await self.indexer.set_alias(moving, deadline.left())
        return gateway_pb2.SetAliasResponse(previous_collection=previous)

    async def delete_alias(
        self, request: gateway_pb2.DeleteAliasRequest, deadline: Deadline
    ) -> gateway_pb2.DeleteAliasResponse:
        """Deletes an alias; its collection stays."""
        return gateway_pb2.DeleteAliasResponse(
            collection=await self.indexer.delete_alias(request.alias, deadline.left())
        )

    async def aliases(self, deadline: Deadline) -> Sequence[gateway_pb2.Alias]:
        """All of them, ordered by name."""
        found = await self.indexer.aliases(deadline.left())
        return [gateway_pb2.Alias(name=alias.name, collection=alias.collection) for alias in found]


async def find_or_create(
    indexer: Indexer,
    name: str,
    fingerprint: ModelFingerprint,
    timeout_s: float,
    *,
    create: bool,
    metric: Metric.ValueType = METRIC_COSINE,
) -> tuple[indexer_pb2.Collection, bool]:
    """The collection of this name and model, and whether it was made now.

    Raises:
        LikenessError: COLLECTION_NOT_FOUND: there is none, and none is to be made. MODEL_MISMATCH: it is of another
            model.
    """
    deadline, created = Deadline(timeout_s), False
    try:
        found = await indexer.collection(name, deadline.left())
    except LikenessError as error:
        if error.reason != error_pb2.REASON_COLLECTION_NOT_FOUND or not create:
            raise
        making = indexer_pb2.CreateCollectionRequest(name=name, fingerprint=fingerprint, metric=metric)
        try:
            found, created = await indexer.create_collection(making, deadline.left()), True
        except LikenessError as race:
            if race.reason != error_pb2.REASON_COLLECTION_EXISTS:
                raise
            found = await indexer.collection(name, deadline.left())
    if found.fingerprint.digest != fingerprint.digest:
        raise mismatch(fingerprint, found.fingerprint, of_collection(name))
    return found, created


def shown(found: indexer_pb2.Collection) -> gateway_pb2.Collection:
    """A collection as clients of the gateway see it."""
    return gateway_pb2.Collection(
        name=found.name,
        uid=found.uid,
        fingerprint=found.fingerprint,
        metric=found.metric,
        create_time=found.create_time if found.HasField("create_time") else None,
        description=found.description,
        aliases=found.aliases,
        count=found.count,
    )
