"""What the parts of the servicer share: what they call, and work that is finished without its caller."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

import grpc
import structlog

from indexer.catalog import Collections
from indexer.collections import Collection, NewerCollection
from indexer.disk_usage import DiskUsage
from indexer.filters import Node
from indexer.reads import Item, Reader
from indexer.status import CollectionStatus, Role, Status
from indexer.writes import Update

log = structlog.get_logger()

T = TypeVar("T")

NOT_MEASURED = DiskUsage()

Context = grpc.aio.ServicerContext[Any, Any]


class Readers(Protocol):
    """What answers reads; see ``indexer.registry``."""

    def reader(self, collection: Collection) -> Reader:
        """What answers reads of a collection now."""

    async def count_newer(self, collection: NewerCollection) -> int:
        """How many items there are in a collection that a newer release wrote."""

    def status_of(self, collection: Collection) -> CollectionStatus:
        """Where a collection is served from, and what it takes."""

    def updated(self, collection: Collection) -> None:
        """What is said of a collection has changed: its parameters or its description."""

    def created(self, collection: Collection) -> None:
        """A collection was made just now, and is empty."""

    def deleted(self, uid: str) -> None:
        """A collection was deleted just now; ``uid`` is the collection's."""

    def forget(self, name: str) -> None:
        """The store has no collection of that name: what is served under it was deleted there."""

    def status(self) -> Status:
        """What the indexer is doing; answers also while it is starting."""


class Writes(Protocol):
    """What takes writes; see ``indexer.writer``. Each returns once Chroma has the write and reads see it."""

    async def upsert(self, collection: Collection, items: Sequence[Item]) -> int:
        """Writes items, of several with one id the last; returns how many distinct ones."""

    async def update_metadata(self, collection: Collection, updates: Sequence[Update]) -> tuple[int, list[str]]:
        """Changes metadata; returns how many of the items exist, and the ids of those that do not."""

    async def delete(self, collection: Collection, ids: Sequence[str]) -> int:
        """Deletes items; returns how many of the ids existed."""

    async def delete_matching(self, collection: Collection, where: Node) -> int:
        """Deletes the items for which the filter is true; returns how many."""

    def deleting(self, collection: Collection | NewerCollection) -> AbstractAsyncContextManager[None]:
        """Holds back the writes to a collection while the block deletes it; they fail once it is gone."""


class Lease(Protocol):
    """Whether this indexer may change anything."""

    @property
    def role(self) -> Role:
        """What this indexer does."""

    @property
    def lag_s(self) -> float:
        """Of a reader, seconds by which what it serves may be behind the writer; of a writer 0."""

    def require(self) -> None:
        """Called before anything is changed.

        Raises:
            LikenessError: READ_ONLY: another indexer is the writer.
        """


class Sole:
    """The lease of an indexer whose Chroma nobody else can reach."""

    role = Role.WRITER
    lag_s = 0.0

    def require(self) -> None:
        """See ``Lease``."""


class Servicing:
    """What every part of the servicer has."""

    def __init__(
        self,
        collections: Collections,
        writers: Writes,
        readers: Readers,
        lease: Lease,
        *,
        disk: DiskUsage = NOT_MEASURED,
    ) -> None:
        self._collections = collections
        self._writers = writers
        self._readers = readers
        self._lease = lease
        self._disk = disk
        self._finishing: set[asyncio.Task[Any]] = set()

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Does it to its end even if the caller goes away: who serves reads must hear of what the store has done."""
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)
            raise


def _log_failure(task: asyncio.Task[Any]) -> None:
    """Of what nobody waits for any more."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("work has failed after its caller went away", exc_info=error)
