"""The collections there are, by the names that callers use."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer import deleted
from indexer.alias_changes import AliasChanges
from indexer.collections import (
    DEFAULT_HNSW,
    PREFIX,
    SCHEMA_VERSION,
    STAMPED_SCHEMA,
    Collection,
    Fingerprint,
    Hnsw,
    Metric,
    NewerCollection,
    StoredCollection,
    made_anew,
    not_found,
    readable,
    to_metadata,
)
from indexer.generations import Generations
from indexer.listed import DROPPED
from indexer.namespace import copy_name, exists, new

log = structlog.get_logger()


# Of what is addressed without being a collection that this release reads.
_NOTHING = Fingerprint("", "", 0)
_NEVER = datetime.fromtimestamp(0, UTC)


class Collections(AliasChanges, Generations):
    """The collections of one store, remembered once read."""

    @asynccontextmanager
    async def use(self, name: str, uid: str = "") -> AsyncIterator[Collection]:
        """The collection of that name or alias, for as long as something is done with it.

        It is not deleted meanwhile, unless that takes long. If the store says that there is no such collection
        (somebody deleted it there), it is forgotten.

        Args:
            name: it.
            uid: of the collection that is meant; empty: whichever has the name.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND, SCHEMA_UNSUPPORTED or STORE_UNAVAILABLE.
        """
        found = await self._look_up(name)
        if found is None or found.uid in self._leaving:
            raise self._not_found(name)
        collection = readable(found)
        if uid not in ("", collection.uid):
            raise made_anew(collection)
        self._users[collection.uid] += 1
        try:
            yield collection
        except LikenessError as error:
            known = self._known.get(collection.name)
            gone = error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND and not self._follows
            if gone and known is not None and known.key == collection.key:
                del self._known[collection.name]
            raise
        finally:
            self._users[collection.uid] -= 1
            if not self._users[collection.uid]:
                del self._users[collection.uid]
                if (waiting := self._unused.get(collection.uid)) is not None:
                    waiting.set()

    async def create(
        self,
        name: str,
        fingerprint: Fingerprint,
        metric: Metric,
        hnsw: Hnsw = DEFAULT_HNSW,
        description: str = "",
        *,
        earlier_uids: Iterable[str] = (),
    ) -> Collection:
        """Makes an empty collection.

        Raises:
            LikenessError: COLLECTION_EXISTS, also for an alias, or STORE_UNAVAILABLE.
        """
        async with self._fresh() as listed:
            self._check_free(name)
            wanted = new(name, fingerprint, metric, hnsw, description, earlier_uids=earlier_uids)
            if name in {left.name for left in listed.left}:  # of one that was deleted, and is not gone yet
                wanted = replace(wanted, store_name=copy_name(), schema_version=SCHEMA_VERSION)
            stored = await self._until_known(f"creating {name!r}", lambda: self._made(wanted))
            made = self._known[name] = replace(wanted, key=stored.key)
            return made

    async def update(self, name: str, hnsw: Hnsw | None, description: str | None) -> Collection:
        """Changes what can be changed; None: that stays. An index is made anew by a rebuild only.

        Returns:
            The collection as it is stored now.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND, SCHEMA_UNSUPPORTED or STORE_UNAVAILABLE.
        """
        async with self._fresh():
            found = self._lookup(name)
            if found is None or found.uid in self._leaving:
                raise self._not_found(name)
            collection = readable(found)
            changed = replace(
                collection,
                hnsw=collection.hnsw if hnsw is None else hnsw,
                description=collection.description if description is None else description,
            )
            if changed != collection:
                changed = await self._describe(changed)
            return changed

    async def upgrade(self, collection: Collection) -> None:
        """Marks a collection as of the present layout, before the first write in it; older releases refuse it then.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND or STORE_UNAVAILABLE.
        """
        if collection.schema_version >= STAMPED_SCHEMA:
            return
        async with self._settled():
            known = self._known.get(collection.name, collection)
            if isinstance(known, NewerCollection) or known.uid != collection.uid:
                raise not_found(collection.name)
            if known.schema_version < STAMPED_SCHEMA:
                await self._describe(known)

    @asynccontextmanager
    async def leaving(self, name: str) -> AsyncIterator[Collection | NewerCollection]:
        """A collection that is to be deleted, also one of a newer release: nobody uses it in the block.

        Whoever does must be done within ``leave_s``, else the block begins all the same.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND, COLLECTION_ALIASED, FIELD_INVALID (an alias) or STORE_UNAVAILABLE;
                COLLECTION_BUSY: it is being deleted already, a job is under way, or its backup is being restored; what
                the block raises.
        """
        async with self._fresh():
            collection = self._own_name(name, "name")
            if aliases := self._aliases.standing_for(name):
                shown = ", ".join(map(repr, aliases[:10])) + (" …" if len(aliases) > 10 else "")
                message = f"collection {name!r} has aliases ({shown}); delete or move them first"
                raise LikenessError(error_pb2.REASON_COLLECTION_ALIASED, message)
            if collection.uid in self._leaving:
                message = f"collection {name!r} is being deleted already; wait for that"
                raise LikenessError(error_pb2.REASON_COLLECTION_BUSY, message)
            if any(collection.uid in staged.earlier_uids for staged in self._staged.values()):
                message = f"a backup of collection {name!r} is being restored, which needs its pictures; wait for that"
                raise LikenessError(error_pb2.REASON_COLLECTION_BUSY, message)
            self.require_no_job(collection.uid)
            # In the same turn: from now on ``use`` lets nobody in, so that no job begins either.
            self._leaving.add(collection.uid)
        try:
            await self._wait_for_users(collection)
            yield collection
        finally:
            self._leaving.discard(collection.uid)

    async def delete(self, collection: Collection | NewerCollection) -> None:
        """Deletes a collection, but not another one that has its name meanwhile.

        It is no collection any more at once, and forever; what was in it goes behind that.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND or STORE_UNAVAILABLE.
        """
        async with self._fresh() as listed:
            if (there := self._known.get(collection.name)) is None or there.uid != collection.uid:
                raise not_found(collection.name)
            # The collection itself comes last: without it, an earlier generation would be the collection again.
            # All are marked here, and emptied later: everybody waits for this.
            dropped, doing = {DROPPED: there.uid}, f"deleting {there.name!r}"
            with self._deciding(there.uid):
                for left in listed.replaced_of(there.uid):
                    await self._until_known(doing, partial(self._store.set_apart, left.name, left.key))
                await self._until_known(doing, lambda: self._store.describe(_addressed(there), dropped))
            del self._known[collection.name]
            await self._remember_deleted(there)
        itself = StoredCollection(there.store_name, there.key, {})
        self._drop_later(itself, *listed.copies_of(there.uid), *listed.replaced_of(there.uid))

    async def list(self, after: str, size: int) -> tuple[list[Collection | NewerCollection], bool]:
        """A page of the collections, ordered by name.

        Args:
            after: only names behind this one; empty: from the beginning.
            size: most collections in the page.

        Returns:
            The page, and whether there is more behind it.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        if not self._follows:
            async with self._fresh():
                pass
        behind = [self._known[name] for name in sorted(self._known) if name > after]
        return behind[:size], len(behind) > size

    @property
    def deleted_uids(self) -> Sequence[str]:
        """Of collections that were deleted, by what is known, the last first; see ``deleted``."""
        return self._deleted.uids

    async def _remember_deleted(self, collection: Collection | NewerCollection) -> None:
        """Remembers that a collection was deleted, and what it was restored from, where no other collection is of that.

        Where that fails nothing but the disk space of its files elsewhere is lost.
        """
        others = [*self._known.values(), *self._staged.values()]
        needed = {uid for other in others for uid in (other.uid, *other.earlier_uids)}
        gone = [uid for uid in (collection.uid, *collection.earlier_uids) if uid not in needed]
        remembered = self._deleted.with_more(gone)
        try:
            if remembered.key:
                document = Collection(deleted.STORE_NAME, remembered.key, _NOTHING, Metric.COSINE, _NEVER)
                await self._store.describe(document, remembered.metadata)
            else:
                await self._store.create(deleted.STORE_NAME, Metric.COSINE, remembered.metadata)
        except LikenessError as error:
            log.warning("it is not remembered that a collection was deleted", uids=gone, why=error.message)
            return
        self._deleted = remembered

    async def _made(self, wanted: Collection) -> StoredCollection:
        """Makes a collection in the store, unless an earlier attempt, whose answer was lost, has made it."""
        name, metadata = wanted.store_name, to_metadata(wanted)
        if (made := await self._store.create(name, wanted.metric, metadata, wanted.hnsw)) is not None:
            return made
        for there in await self._store.collections():
            if there.name == name and there.metadata.get(f"{PREFIX}uid") == wanted.uid:
                return there
        raise exists(wanted.name, "exists in the store, and it is not one of Likeness's")

    async def _wait_for_users(self, collection: Collection | NewerCollection) -> None:
        if not self._users[collection.uid]:
            return
        unused = self._unused[collection.uid] = asyncio.Event()
        try:
            async with asyncio.timeout(self._leave_s):
                await unused.wait()
        except TimeoutError:
            users = self._users[collection.uid]
            log.warning("deleting a collection in use", collection=collection.name, users=users, waited_s=self._leave_s)
        finally:
            del self._unused[collection.uid]


def _addressed(collection: Collection | NewerCollection) -> Collection:
    """What the store needs to find a collection."""
    if isinstance(collection, Collection):
        return collection
    return Collection(
        collection.name,
        collection.key,
        _NOTHING,
        Metric.COSINE,
        _NEVER,
        uid=collection.uid,
        store_name=collection.store_name,
        generation=collection.generation,
    )
