"""Chroma that several indexers use: only the one that holds the lease changes anything in it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.changes import Change, Changes
from indexer.collections import DEFAULT_HNSW, Collection, Fingerprint, Hnsw, Metric, StoredCollection
from indexer.store import ChromaStore

# A document holds no vectors; Chroma has collections only.
_NOTHING = Fingerprint("", "", 0)
_NEVER = datetime.fromtimestamp(0, UTC)


class FencedStore(ChromaStore):
    """``ChromaStore``, where whatever changes something asks before, and again before it says that it is done.

    What takes several requests asks before each of them: a process may stand still in between, and be followed.

    What another indexer may have undone or overwritten meanwhile must not be acknowledged. Beside what ``ChromaStore``
    raises, such a method raises what ``permit`` does.
    """

    def __init__(
        self, headers: dict[str, str], timeout_s: float, permit: Callable[[], Awaitable[None]], ca_file: str = ""
    ) -> None:
        """A store that is not connected yet.

        Args:
            headers: sent with every request.
            timeout_s: longest wait for one piece of work, in seconds.
            permit: raises where this indexer may not change anything.
            ca_file: of the authority that has signed the server's certificate; empty: the usual ones.
        """
        super().__init__(headers, timeout_s, ca_file)
        self._permit = permit

    async def _before_request(self) -> None:
        await self._permit()

    async def create(
        self, name: str, metric: Metric, metadata: Mapping[str, Any], hnsw: Hnsw = DEFAULT_HNSW
    ) -> StoredCollection | None:
        """See ``ChromaStore``."""
        await self._permit()
        created = await super().create(name, metric, metadata, hnsw)
        await self._permit()
        return created

    async def describe(self, collection: Collection, metadata: Mapping[str, Any]) -> None:
        """See ``ChromaStore``."""
        await self._permit()
        await super().describe(collection, metadata)
        await self._permit()

    async def set_apart(self, name: str, key: str) -> str:
        """See ``ChromaStore``."""
        apart = await super().set_apart(name, key)
        await self._permit()
        return apart

    async def drop(self, name: str, key: str | None = None) -> None:
        """See ``ChromaStore``."""
        await super().drop(name, key)
        await self._permit()

    async def write(self, collection: Collection, changes: Changes, stamp: int | Mapping[str, int]) -> None:
        """See ``ChromaStore``."""
        await super().write(collection, changes, stamp)
        await self._permit()

    async def relabel(self, collection: Collection, labels: Sequence[Change], stamp: int | Mapping[str, int]) -> None:
        """See ``ChromaStore``."""
        await super().relabel(collection, labels, stamp)
        await self._permit()

    async def delete(self, collection: Collection, ids: Sequence[str]) -> None:
        """See ``ChromaStore``."""
        await super().delete(collection, ids)
        await self._permit()

    # The documents of the lease, which go before all permission: see ``lease.LeaseStore``.

    async def make_document(self, name: str, metadata: Mapping[str, Any]) -> bool:
        """Makes an empty collection; False: there is one of that name."""
        return await super().create(name, Metric.COSINE, metadata) is not None

    async def rewrite_document(self, name: str, key: str, metadata: Mapping[str, Any]) -> None:
        """Replaces a collection's own metadata.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND: there is no such collection; STORE_UNAVAILABLE.
        """
        await super().describe(Collection(name, key, _NOTHING, Metric.COSINE, _NEVER), metadata)

    async def drop_document(self, name: str) -> None:
        """Deletes a collection; one that does not exist is no error."""
        try:
            await self._drop(name, _always)
        except LikenessError as error:
            if error.reason != error_pb2.REASON_COLLECTION_NOT_FOUND:
                raise


async def _always() -> None:
    """Of what needs no permission."""
