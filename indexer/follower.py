"""A reader: follows what another indexer, the writer, does to Chroma.

Every ``LIKENESS_FOLLOW_S`` seconds it lists Chroma's collections, in one request. That says what collections and
aliases there are, and, with the writer's document (``heartbeat``), which collections were written to; only those are
read, by ``serving.following``. New collections are read into memory, one after another; meanwhile Chroma answers.

An alias moves only when what it moves to is in memory and equal to what the writer had when it moved it. Until then the
one before is served, also where the writer has deleted it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer import heartbeat
from indexer.aliases import Aliases, latest
from indexer.catalog import Collections
from indexer.clock import clock
from indexer.collections import Collection, StoredCollection
from indexer.heartbeat import Heartbeat, Published
from indexer.lease import BEAT_S
from indexer.listed import sort_out
from indexer.patience import patiently
from indexer.registry import Registry
from indexer.serving.collection import ServingCollection
from indexer.serving.following import Following
from indexer.store import ChromaStore

log = structlog.get_logger()

# Between two comparisons of everything, in seconds: in any case, and while nothing is heard of a writer.
_WHOLE_S, _UNHEARD_S = 300.0, 10.0
_LISTING_S = 10.0


@dataclass(eq=False)
class _Followed:
    """A collection in memory.

    Attributes:
        following: what keeps it equal to Chroma.
        as_of: it is as the writer had it then or later, in seconds of ``clock``.
        compared: when all of it was compared last.
        key: of the generation that it was compared with.
        term: of the writer when it was compared, or loaded. A writer that has just begun need not know what the one
            before wrote last; so all is compared once with what Chroma has.
        tick: the last one whose writes it has.
        step: taking over writes.
    """

    following: Following
    as_of: float
    compared: float
    key: str
    term: int
    tick: int = 0
    step: asyncio.Task[None] | None = None


class Follower:
    """Keeps a reader's collections, aliases and items equal to the writer's."""

    def __init__(
        self, store: ChromaStore, collections: Collections, registry: Registry, *, follow_s: float, late_s: float
    ) -> None:
        """Not following yet.

        Args:
            store: Chroma.
            collections: told what there is.
            registry: what serves them.
            follow_s: time between two looks, in seconds.
            late_s: how long a request without an answer may still be carried out, in seconds.
        """
        self._store = store
        self._collections = collections
        self._registry = registry
        self._follow_s = follow_s
        self._late_s = late_s
        self._followed: dict[str, _Followed] = {}  # by uid
        # What was told before it was loaded, as of when, and in which term, by uid.
        self._told: dict[str, tuple[Published | None, float, int]] = {}
        self._stored: dict[str, StoredCollection] = {}  # of the collections known, by uid
        self._documents: list[StoredCollection] = []  # of the aliases in use
        self._awaited: tuple[Aliases, int] | None = None  # aliases that are not in use yet, since which tick
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._clearing: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._heard: Heartbeat | None = None
        # When the writer's document was seen to have changed last, and since when what it says may have been so.
        self._moved_at = self._as_of = clock()
        self._looked_at = clock()
        self._tick = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def writer(self) -> Heartbeat | None:
        """What the writer said last; None: nothing is known of one."""
        return self._heard

    @property
    def lag_s(self) -> float:
        """By how many seconds what is served may be behind the writer."""
        return clock() - min([self._looked_at, *(each.as_of for each in self._followed.values())])

    async def told(self, collection: Collection) -> int:
        """A stamp up to which everything is in Chroma; called before a collection is loaded.

        Raises:
            LikenessError: what the store raises.
        """
        told = self._heard.collections.get(collection.uid) if self._heard is not None else None
        self._told[collection.uid] = (told, self._as_of, self._term)
        if told is not None and told.stamp is not None:
            return told.stamp
        # A collection's chunks are written one after another: before that of the greatest stamp, all are there.
        newest = await self._store.newest(collection, 0)
        return 0 if newest is None else newest - 1

    async def start(self) -> None:
        """Loads what there is, and follows it from then on."""
        stored = await patiently(self._store.collections)
        self._hear(stored)
        self._documents = [each for each in stored if _is_of_aliases(each)]
        await self._registry.load(self._refresh(stored))
        await patiently(self.look)
        self._task = asyncio.create_task(self._run(), name="following the writer")

    async def stop(self) -> None:
        """Follows no longer."""
        tasks = [*self._under_way(), *self._clearing, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def look(self) -> None:
        """Takes over what has happened since the last look, but for what takes longer than ``follow_s``.

        Raises:
            LikenessError: what the store raises.
        """
        began = clock()
        stored = await self._listed()
        self._tick += 1
        self._hear(stored)
        self._looked_at = began
        self._refresh(stored)
        self._follow(began)
        if under_way := self._under_way():
            await asyncio.wait(under_way, timeout=self._follow_s)
        self._follow(began)  # what was loaded just now
        if self._awaited is not None:
            self._refresh(stored)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._follow_s)
            try:
                await self.look()
            except LikenessError as error:
                log.warning("cannot follow the writer just now", why=error.message, lag_s=round(self.lag_s, 1))
            except Exception as error:  # which must not end the following
                log.error("cannot follow the writer", exc_info=error)

    async def _listed(self) -> list[StoredCollection]:
        try:
            # Whoever is cut off learns it from a request that is as old as the cut only after a minute.
            async with asyncio.timeout(_LISTING_S):
                return await self._store.collections()
        except TimeoutError as error:
            message = f"Chroma has not listed its collections in {_LISTING_S:g} s"
            raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, message, retry_after_s=1.0) from error

    def _under_way(self) -> list[asyncio.Task[None]]:
        steps = [each.step for each in self._followed.values() if each.step is not None]
        return [*self._loading.values(), *steps]

    def _hear(self, stored: Sequence[StoredCollection]) -> None:
        """Takes what the writer says, and since when that may have been so."""
        found = heartbeat.read(stored)
        before, self._heard = self._heard, found[-1][0] if found else None
        now = clock()
        if self._heard is None:
            return
        if before is None or (before.term, before.beat) != (self._heard.term, self._heard.beat):
            self._moved_at = now
            # It was written after the last look, which did not find it.
            self._as_of = self._looked_at if before is not None else now - BEAT_S

    @property
    def _term(self) -> int:
        return self._heard.term if self._heard is not None else 0

    def _unheard(self) -> bool:
        """Whether the writer has stopped, or is dead, for all that is known."""
        heard = self._heard
        return heard is None or heard.released or clock() - self._moved_at > heard.holder.lease_s

    def _refresh(self, stored: Sequence[StoredCollection]) -> list[Collection]:
        """Has the catalogue and the registry know what there is; returns what can be served."""
        listed = sort_out(stored)
        documents = [each for each in stored if _is_of_aliases(each)]
        rest = [each for each in stored if not _is_of_aliases(each)]
        there = {c.uid: c for c in listed.collections.values()}
        by_key = {each.key: each for each in rest}
        if self._may_move(listed.aliases, {c.name: uid for uid, c in there.items()}):
            self._documents, held = documents, []
        else:
            # What the aliases in use stand for stays, if the writer has deleted it meanwhile.
            targets = set(latest(self._documents)[0].targets.values()) - listed.collections.keys()
            held = [self._stored[uid] for uid in self._stored.keys() - there.keys() if self._name_of(uid) in targets]
        found = self._collections.refresh([*rest, *held, *self._documents])
        self._stored = {uid: by_key[c.key] for uid, c in there.items()} | {
            uid: each for uid, each in self._stored.items() if each in held
        }
        ours = [collection for collection in found if isinstance(collection, Collection)]
        if self._tick:
            self._serve(ours)
        return ours

    def _serve(self, collections: Sequence[Collection]) -> None:
        known = self._registry.uids
        for collection in collections:
            if collection.uid in known:
                self._registry.updated(collection)
            elif collection.uid not in self._loading:
                task = asyncio.create_task(self._load(collection), name=f"loading {collection.name}")
                self._loading[collection.uid] = task
        for uid in known - {collection.uid for collection in collections}:
            self._forget(uid)

    def _forget(self, uid: str) -> None:
        followed, loading = self._followed.pop(uid, None), self._loading.get(uid)
        for task in (loading, followed.step if followed is not None else None):
            if task is not None:
                task.cancel()
        self._told.pop(uid, None)
        self._registry.deleted(uid)

    async def _load(self, collection: Collection) -> None:
        try:
            async with self._one_at_a_time:
                await self._registry.add(collection)
        except LikenessError as error:
            log.error("cannot load a collection", collection=collection.name, why=error.message)
        finally:
            del self._loading[collection.uid]

    def _may_move(self, aliases: Aliases, uids: dict[str, str]) -> bool:
        """Whether all that these aliases stand for can be served as the writer had it when it made them."""
        if aliases == latest(self._documents)[0]:
            self._awaited = None
            return True
        if self._awaited is None or self._awaited[0] != aliases:
            self._awaited = (aliases, self._tick)
        since = self._awaited[1]
        for name in set(aliases.targets.values()):
            uid = uids.get(name, "")
            followed = self._followed.get(uid)
            new = bool(uid) and uid not in self._registry.uids
            if new or self._registry.loading(uid):
                return False
            if self._registry.serving(uid) is not None and (followed is None or followed.tick < since):
                return False
        self._awaited = None
        return True

    def _name_of(self, uid: str) -> str:
        return next(iter(sort_out([self._stored[uid]]).collections))

    def _follow(self, began: float) -> None:
        """Has every collection in memory take over what was written, if it is not still at it."""
        for uid in self._registry.uids:
            serving, followed = self._registry.serving(uid), self._followed.get(uid)
            if serving is None:
                self._followed.pop(uid, None)
                continue
            if followed is None or followed.following.serving is not serving:
                told, as_of, term = self._told.pop(uid, (None, began, self._term))
                following = Following(self._store, serving, told, late_s=self._late_s, current=self._current(serving))
                followed = self._followed[uid] = _Followed(following, as_of, began, serving.collection.key, term)
            if followed.tick < self._tick and (followed.step is None or followed.step.done()):
                followed.step = asyncio.create_task(self._step(uid, followed, began), name="taking over writes")

    async def _step(self, uid: str, followed: _Followed, began: float) -> None:
        tick, as_of, unheard = self._tick, self._as_of, self._unheard()
        told = self._heard.collections.get(uid) if self._heard is not None else None
        key, term = followed.following.serving.collection.key, self._term
        due = began - followed.compared >= (_UNHEARD_S if unheard else _WHOLE_S)
        due = due or key != followed.key or term > followed.term
        try:
            whole = await followed.following.follow(told, whole=due)
        except LikenessError as error:
            # The collection has gone, or was replaced: the next look tells. Or Chroma is away.
            gone = error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND
            (log.debug if gone else log.warning)("cannot take over writes just now", why=error.message)
            return
        except Exception as error:  # the registry serves it from Chroma, if memory is to blame
            log.error("cannot take over writes", uid=uid, exc_info=error)
            return
        if whole:
            if key != followed.key:
                task = asyncio.create_task(self._clear(followed.following.serving.collection), name="clearing")
                self._clearing.add(task)
                task.add_done_callback(self._clearing.discard)
            followed.compared, followed.key, followed.term = began, key, term
        # What nobody writes to is as it was found.
        followed.as_of = max(followed.as_of, began if whole and unheard else as_of)
        followed.tick = tick

    async def _clear(self, collection: Collection) -> None:
        """Has what a rebuild or an erasure took out of Chroma leave memory and the snapshots; builds the table anew."""
        try:
            await self._registry.renew(collection)
        except Exception as error:  # it is served as it is
            log.error("cannot clear what was taken out", collection=collection.name, exc_info=error)

    def _current(self, serving: ServingCollection) -> Callable[[str], Awaitable[bool]]:
        async def current(key: str) -> bool:
            listed = sort_out(await self._store.collections())
            there = listed.collections.get(serving.collection.name)
            return there is not None and there.key == key

        return current


def _is_of_aliases(stored: StoredCollection) -> bool:
    return latest([stored])[0].version > 0
