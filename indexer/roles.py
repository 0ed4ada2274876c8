# ruff: noqa: ARG002 (not every role needs all that it is told)
"""What an indexer is to Chroma: its only client, the one that writes of several, or one that reads and follows.

Alone with the Chroma that it starts itself, the lock of the data directory is enough. Over somebody else's Chroma
(``LIKENESS_CHROMA_URL``) the writer holds a lease (``lease``), and readers (``LIKENESS_ROLE=reader``) follow it
(``follower``).
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from indexer import aftermath
from indexer.catalog import Collections
from indexer.collections import Collection
from indexer.fenced_store import FencedStore
from indexer.follower import Follower
from indexer.heartbeat import Journal, Published
from indexer.lease import Lease, ReadOnly, this_process
from indexer.lock import DirectoryLock
from indexer.patience import patiently
from indexer.registry import Registry
from indexer.servicing import Lease as AnyLease
from indexer.servicing import Sole
from indexer.serving.collection import ServingCollection
from indexer.settings import IndexerSettings
from indexer.status import Role
from indexer.store import ChromaStore
from indexer.writers import Writers

_PATIENCE_S = 5.0
# How long readers may take to learn that a collection is kept elsewhere: what was replaced is left alone for so long.
LINGER_S = 10.0

Lost = Callable[[str], Awaitable[None]]


class Standing(Protocol):
    """What an indexer is to Chroma."""

    @property
    def store(self) -> ChromaStore:
        """Chroma, as far as it may use it."""

    @property
    def lease(self) -> AnyLease:
        """Whether it may change anything."""

    @property
    def linger_s(self) -> float:
        """How long what was replaced in Chroma is left alone, in seconds."""

    @property
    def unsettled(self) -> bool:
        """See ``surroundings.Surroundings.unsettled``."""

    def done(self, collection: Collection, stamp: int, again: Sequence[str]) -> None:
        """See ``surroundings.Surroundings.done``."""

    async def begin(self, lost: Lost) -> None:
        """Called once Chroma answers; returns when this indexer may do what its role is.

        Args:
            lost: called when it may not any more.

        Raises:
            LikenessError: it may not; the message says why.
        """

    async def load(self, collections: Collections, registry: Registry, writers: Writers) -> None:
        """Brings into memory what there is, and keeps it as Chroma has it."""

    async def rest(self) -> None:
        """Stops what it does by itself."""

    async def end(self, *, in_doubt: bool = False) -> None:
        """Called once nothing is written any more; IN_DOUBT: something that was asked of Chroma may still be done."""


class Alone:
    """Its Chroma is its own."""

    linger_s = 0.0
    unsettled = False

    def __init__(self, settings: IndexerSettings) -> None:
        self.store = ChromaStore(settings.chroma_headers, settings.store_timeout_s)
        self.lease = Sole()

    def done(self, collection: Collection, stamp: int, again: Sequence[str]) -> None:
        """Nobody needs to know."""

    async def begin(self, lost: Lost) -> None:
        """Whoever started Chroma holds the lock."""

    async def load(self, collections: Collections, registry: Registry, writers: Writers) -> None:
        """See ``Standing``."""
        await _load(collections, registry)

    async def rest(self) -> None:
        """It does nothing by itself."""

    async def end(self, *, in_doubt: bool = False) -> None:
        """Whoever started Chroma lets the lock go."""


class Writer:
    """The one that writes, of several over somebody else's Chroma."""

    linger_s = LINGER_S

    def __init__(self, settings: IndexerSettings) -> None:
        self._settings = settings
        self._lock = DirectoryLock(settings.data_dir)
        self._journal = Journal()
        self._present: Callable[[], set[str]] = set
        self._aftermath: asyncio.Task[None] | None = None
        self._clean = True  # whether nothing of a writer before can reach Chroma any more
        self._lost: Lost | None = None
        self.store = FencedStore(settings.chroma_headers, settings.store_timeout_s, self._permit, settings.chroma_ca)
        self.lease = Lease(self.store, self._published, self._on_lost)

    @property
    def unsettled(self) -> bool:
        """See ``Standing``."""
        return self._aftermath is not None and not self._aftermath.done()

    def done(self, collection: Collection, stamp: int, again: Sequence[str]) -> None:
        """Readers must know."""
        self._journal.wrote(collection.uid, stamp, again)

    async def begin(self, lost: Lost) -> None:
        """See ``Standing``."""
        await self._lock.acquire(_PATIENCE_S)
        self._lost = lost
        settings = self._settings
        self._clean = await self.lease.acquire(this_process(settings.data_dir, settings.address, settings.lease_s))

    async def load(self, collections: Collections, registry: Registry, writers: Writers) -> None:
        """See ``Standing``."""
        await _load(collections, registry)
        self._present = lambda: registry.uids
        loaded = {}
        for uid in registry.uids:
            if (serving := registry.serving(uid)) is not None:
                self._journal.wrote(uid, serving.watermark)
                loaded[uid] = aftermath.oldest(serving.watermark, self._settings.store_timeout_s)
        if not self._clean:
            work = self._look_again(loaded, registry, writers)
            self._aftermath = asyncio.create_task(work, name="looking for late writes")

    async def rest(self) -> None:
        """See ``Standing``."""
        if self._aftermath is not None:
            self._aftermath.cancel()
            await asyncio.wait({self._aftermath})

    async def end(self, *, in_doubt: bool = False) -> None:
        """See ``Standing``."""
        await self.lease.release(in_doubt=in_doubt or not self._clean)
        self._lock.release()

    def _published(self) -> Mapping[str, Published]:
        present = self._present()
        published = self._journal.published()
        for uid in published.keys() - present:
            self._journal.forget(uid)
        return {uid: each for uid, each in published.items() if uid in present}

    async def _permit(self) -> None:
        await self.lease.permit()

    async def _on_lost(self, why: str) -> None:
        assert self._lost is not None, "a lease that was never begun"
        await self._lost(why)

    async def _look_again(self, loaded: dict[str, int], registry: Registry, writers: Writers) -> None:
        settled_at = time.monotonic() + self._settings.store_timeout_s

        def serving() -> list[ServingCollection]:
            return [found for uid in registry.uids if (found := registry.serving(uid)) is not None]

        self._clean = await aftermath.look_until(settled_at, self.store, loaded, serving, writers.review)


class Reader:
    """One that reads, and follows the writer."""

    linger_s = LINGER_S
    unsettled = False

    def __init__(self, settings: IndexerSettings) -> None:
        self._settings = settings
        self._lock = DirectoryLock(settings.data_dir)
        self._follower: Follower | None = None
        self.lease = ReadOnly(
            lambda: self._follower.writer if self._follower is not None else None,
            lambda: self._follower.lag_s if self._follower is not None else 0.0,
        )
        self.store = FencedStore(
            settings.chroma_headers, settings.store_timeout_s, self.lease.permit, settings.chroma_ca
        )

    def done(self, collection: Collection, stamp: int, again: Sequence[str]) -> None:
        """Nothing is written here."""

    async def begin(self, lost: Lost) -> None:
        """See ``Standing``."""
        await self._lock.acquire(_PATIENCE_S)

    async def load(self, collections: Collections, registry: Registry, writers: Writers) -> None:
        """See ``Standing``."""
        self._follower = Follower(
            self.store,
            collections,
            registry,
            follow_s=self._settings.follow_s,
            late_s=self._settings.store_timeout_s,
        )
        registry.told = self._follower.told
        await self._follower.start()

    async def rest(self) -> None:
        """See ``Standing``."""
        if self._follower is not None:
            await self._follower.stop()

    async def end(self, *, in_doubt: bool = False) -> None:
        """See ``Standing``."""
        self._lock.release()


def standing(settings: IndexerSettings) -> Standing:
    """What the settings say that this indexer is."""
    if settings.role is Role.READER:
        return Reader(settings)
    return Writer(settings) if settings.chroma_url else Alone(settings)


async def _load(collections: Collections, registry: Registry) -> None:
    listed, _ = await patiently(lambda: collections.list("", sys.maxsize))
    await registry.load(listed)
