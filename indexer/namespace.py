"""The names of collections and of their aliases, and how they are changed.

What Chroma lists is sorted by its metadata (``listed``). It is remembered, so that reads from memory need no Chroma;
whatever changes a name begins with a fresh list, under one lock. The indexer is the only one that changes anything; one
that only reads is told of changes (``follows``).

A change whose answer is lost may have been made or not. So it is repeated until Chroma says so; meanwhile others fail
at once, and the caller may go. A stop leaves it after a while: the next start lists what there is.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, invalid
from indexer.aliases import Aliases
from indexer.collections import (
    PREFIX,
    Collection,
    Fingerprint,
    Hnsw,
    Metric,
    NewerCollection,
    StoredCollection,
    not_found,
    to_metadata,
)
from indexer.deleted import Deleted
from indexer.listed import Listed, sort_out

log = structlog.get_logger()

T = TypeVar("T")

LEAVE_S = 30.0
_TRY_AGAIN_S = 0.2
# So much longer Chroma is asked for an answer when the indexer stops: less than it may take until it is killed.
_LAST_S = 5.0
_MISSING_S, _MOST_MISSING = 1.0, 1024


class CollectionStore(Protocol):
    """Where collections are kept."""

    @property
    def connected(self) -> bool:
        """Whether there is a server to speak to."""

    async def create(
        self, name: str, metric: Metric, metadata: Mapping[str, Any], hnsw: Hnsw = ..., /
    ) -> StoredCollection | None:
        """Makes a collection; None: there is one of that name."""

    async def describe(self, collection: Collection, metadata: Mapping[str, Any], /) -> None:
        """Replaces the metadata of a collection itself."""

    async def set_apart(self, name: str, key: str, /) -> str:
        """Gives what is to be dropped another name, and takes all marks from it, if it has this id."""

    async def drop(self, name: str, key: str, /) -> None:
        """Deletes what the store has under a name, and everything in it, if it has this id."""

    async def collections(self) -> list[StoredCollection]:
        """All of them, in no particular order."""

    def moved(self, collection: Collection, /) -> None:
        """Whoever names an earlier generation of the collection means this one from now on."""

    async def idle(self, collection: Collection, /) -> None:
        """Returns when no request to just this generation is under way."""


class Namespace:
    """What every part of ``catalog.Collections`` has.

    Attributes:
        dropping: surrounds the moment in which a collection is dropped, given the store's id of it.
        require_no_job: asked before a collection is deleted, given its uid; raises COLLECTION_BUSY beside a job.
            Whoever begins one does so in the same turn in which ``use`` lets it in.
    """

    def __init__(
        self, store: CollectionStore, *, follows: bool = False, leave_s: float = LEAVE_S, linger_s: float = 0
    ) -> None:
        """Nothing is read yet.

        Args:
            store: where they are.
            follows: whether it is another indexer that changes them. Then only ``refresh`` says what there is.
            leave_s: longest wait of a deletion for those who use the collection, in seconds.
            linger_s: how long a generation that was replaced stays for other indexers that read it, in seconds.
        """
        self.dropping: Callable[[str], AbstractAsyncContextManager[None]] = lambda _: nullcontext()
        self.require_no_job: Callable[[str], None] = lambda _: None
        self._store = store
        self._follows = follows
        self._leave_s = leave_s
        self._linger_s = linger_s
        self._known: dict[str, Collection | NewerCollection] = {}
        self._aliases = Aliases()
        self._deleted = Deleted()
        self._lock = asyncio.Lock()
        # Names that the store did not have, and until when that is believed, in seconds of the monotonic clock; and the
        # turn of those that ask it for one.
        self._missing: dict[str, float] = {}
        self._asking = asyncio.Lock()
        self._unsettled = ""  # what is repeated until Chroma answers, or was when that was given up
        self._limit: asyncio.Timeout | None = None  # of what is being asked until it answers
        self._ending = False
        self._users: Counter[str] = Counter()  # by uid
        self._unused: dict[str, asyncio.Event] = {}  # who waits until there are none, by uid
        self._leaving: set[str] = set()  # uids of those being deleted
        self._staged: dict[str, Collection] = {}  # what is being restored, by its key
        self._undecided: set[str] = set()  # uids of those whose commit or deletion was given up at a stop
        self._discarded: list[asyncio.Task[bool]] = []  # what is dropped of what was staged, but for what is gone
        self._behind: set[asyncio.Task[bool]] = set()  # what is dropped behind the callers
        self._left: list[StoredCollection] = []  # by an earlier run
        self._dropping_left: asyncio.Task[bool] | None = None

    def refresh(self, stored: Sequence[StoredCollection]) -> list[Collection | NewerCollection]:
        """Takes over what the store lists.

        Returns:
            The collections, ordered by name.
        """
        return self._take(sort_out(stored))

    def end(self) -> None:
        """The indexer stops: of what Chroma does not answer soon, the next start finds out whether it was done."""
        if not self._ending and self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + _LAST_S)
        self._ending = True

    def knows(self, name: str) -> bool:
        """Whether there is a collection of that name, by what is known."""
        return name in self._known

    def resolve(self, name: str) -> str:
        """The name of the collection that an alias stands for, by what is known; any other name: itself."""
        return name if name in self._known else self._aliases.targets.get(name, name)

    def _lookup(self, name: str) -> Collection | NewerCollection | None:
        return self._known.get(self.resolve(name))

    async def _look_up(self, name: str) -> Collection | NewerCollection | None:
        """The collection of that name or alias, also one that somebody else has made in the store.

        That it is not there is believed for a second: asking takes as long as there are collections, and holds up all
        that change one.
        """
        found = self._lookup(name)
        if found is not None or self._follows:
            return found
        async with self._asking:
            if (found := self._lookup(name)) is None and self._missing.get(name, 0.0) <= time.monotonic():
                async with self._fresh():
                    found = self._lookup(name)
                if found is None:
                    self._miss(name)
        return found

    def _miss(self, name: str) -> None:
        now = time.monotonic()
        if len(self._missing) >= _MOST_MISSING:
            self._missing = {missing: until for missing, until in self._missing.items() if until > now}
        if len(self._missing) < _MOST_MISSING:
            self._missing[name] = now + _MISSING_S

    def _take(self, listed: Listed) -> list[Collection | NewerCollection]:
        self._known = listed.collections
        self._aliases = listed.aliases
        self._deleted = listed.deleted
        for collection in listed.collections.values():
            if isinstance(collection, Collection) and collection.generation:
                self._store.moved(collection)
        return [self._known[name] for name in sorted(self._known)]

    @asynccontextmanager
    async def _settled(self) -> AsyncIterator[None]:
        """Time to change something, with nothing in doubt."""
        self._require_settled()
        async with self._lock:
            self._require_settled()
            yield

    def _require_settled(self) -> None:
        if self._unsettled:
            message = f"Chroma has not answered yet ({self._unsettled}); try again"
            raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, message, retry_after_s=1.0)

    @asynccontextmanager
    async def _fresh(self) -> AsyncIterator[Listed]:
        """As ``_settled``, with what the store lists now."""
        async with self._settled():
            listed = sort_out(await self._store.collections())
            self._take(listed)
            yield listed

    @property
    def in_doubt(self) -> bool:
        """Whether Chroma may still do what was asked of it: it has not answered."""
        return bool(self._unsettled)

    @contextmanager
    def _deciding(self, uid: str) -> Iterator[None]:
        """What is asked in the block decides what the next start finds of a collection."""
        try:
            yield
        except LikenessError as error:
            if error.reason == error_pb2.REASON_SHUTTING_DOWN:
                self._undecided.add(uid)
            raise

    async def _until_known(self, doing: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeats what does no harm when repeated, until it is certain that it was done, or that it was not.

        Raises:
            LikenessError: STORE_UNAVAILABLE: nothing was sent; SHUTTING_DOWN: the indexer stops, and it may have been
                done, or be done yet; another reason: it was not done.
        """
        try:
            async with asyncio.timeout(_LAST_S if self._ending else None) as self._limit:
                return await self._repeated(doing, attempt)
        except TimeoutError as error:
            self._unsettled = doing
            message = f"the indexer is stopping, and Chroma has not answered ({doing}); its next start finds out"
            raise LikenessError(error_pb2.REASON_SHUTTING_DOWN, message, retry_after_s=1.0) from error
        finally:
            self._limit = None

    async def _repeated(self, doing: str, attempt: Callable[[], Awaitable[T]]) -> T:
        try:
            while True:
                if not (self._store.connected or self._unsettled):
                    return await attempt()
                try:
                    return await attempt()
                except LikenessError as error:
                    if error.reason != error_pb2.REASON_STORE_UNAVAILABLE:
                        raise
                    if not self._unsettled:
                        log.warning("asking Chroma until it answers", doing=doing, why=error.message)
                    self._unsettled = doing
                await asyncio.sleep(_TRY_AGAIN_S)
        finally:
            self._unsettled = ""

    async def _describe(self, collection: Collection) -> Collection:
        """Stores what a collection is, and remembers it."""
        metadata = to_metadata(collection)
        doing = f"describing {collection.name!r}"
        await self._until_known(doing, lambda: self._store.describe(collection, metadata))
        collection = replace(collection, schema_version=metadata[f"{PREFIX}schema"])
        self._known[collection.name] = collection
        self._store.moved(collection)
        return collection

    def _own_name(self, name: str, field: str) -> Collection | NewerCollection:
        """The collection of that name, which is no alias."""
        found = self._known.get(name)
        if found is None and name in self._aliases.targets:
            raise invalid(field, f"{name!r} is an alias (of {self._aliases.targets[name]!r}); expected a collection")
        if found is None:
            raise not_found(name)
        return found

    def _not_found(self, name: str) -> LikenessError:
        target = self._aliases.targets.get(name)
        if target is None:
            return not_found(name)
        message = f"alias {name!r} stands for {target!r}, and there is no such collection; move the alias"
        return LikenessError(error_pb2.REASON_COLLECTION_NOT_FOUND, message)

    def _is_staged(self, name: str) -> bool:
        return any(staged.name == name for staged in self._staged.values())

    def _check_free(self, name: str) -> None:
        if name in self._known:
            raise exists(name, "exists in the store")
        if self._is_staged(name):
            raise exists(name, "is being restored")
        if (target := self._aliases.targets.get(name)) is not None:
            raise exists(name, f"is an alias of {target!r}")

    async def _drop(self, store_name: str, key: str) -> None:
        """Drops what may be gone already."""
        try:
            async with self.dropping(key):
                await self._store.drop(store_name, key)
        except LikenessError as error:
            if error.reason != error_pb2.REASON_COLLECTION_NOT_FOUND:
                raise


def new(
    name: str, fingerprint: Fingerprint, metric: Metric, hnsw: Hnsw, description: str, *, earlier_uids: Iterable[str]
) -> Collection:
    """A collection to make; its key is not known yet."""
    return Collection(
        name,
        "",
        fingerprint,
        metric,
        datetime.now(UTC),
        uid=uuid.uuid4().hex,
        hnsw=hnsw,
        built=hnsw,
        description=description,
        earlier_uids=tuple(earlier_uids),
    )


def copy_name() -> str:
    """A name in the store for what cannot have its own."""
    return f"Likeness.Copy.{uuid.uuid4().hex}"


def exists(what: str, why: str) -> LikenessError:
    """COLLECTION_EXISTS."""
    return LikenessError(error_pb2.REASON_COLLECTION_EXISTS, f"{what!r} {why}; choose another name")
