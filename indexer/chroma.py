"""The connection to Chroma: over HTTP, whether the server is ours or somebody's cluster."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

import chromadb
import httpx
import structlog
from chromadb import errors as chroma_errors
from chromadb.api import AsyncClientAPI
from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.config import Settings
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.collections import Collection, not_found
from indexer.gate import Gate

log = structlog.get_logger()

# What SQLite and the kernel say through Chroma.
_DISK_FULL = ("disk is full", "No space left on device")
# What Chroma says when it could not write the files of an index down. It goes on with what it has in memory, and does
# not write again what it has failed to: started over such files it would lack that, or not start. A rebuild makes new
# ones.
_TORN = "hnsw segment writer"
_REBUILD = "make room, then rebuild the collection before Chroma or the indexer is started anew"


class ChromaConnection:
    """A client that comes and goes with its server, and what its errors mean in the contract's words."""

    def __init__(self, headers: dict[str, str], timeout_s: float, ca_file: str = "") -> None:
        """A connection that is not made yet.

        Args:
            headers: sent with every request.
            timeout_s: longest wait for one piece of work, in seconds.
            ca_file: of the authority that has signed the server's certificate; empty: the usual ones.
        """
        self._headers = headers
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        self._client: AsyncClientAPI | None = None
        self._limits: set[asyncio.Timeout] = set()  # of what is under way
        self._handles: dict[str, AsyncCollection] = {}  # by name; of no collection that is known to be gone
        self._homes: dict[str, Collection] = {}  # by uid: those that were rebuilt, as they are now
        self._requests: Counter[str] = Counter()  # under way, by key
        self._idle: dict[str, asyncio.Event] = {}  # who waits until there are none, by key
        self._gate = Gate()

    @property
    def connected(self) -> bool:
        """Whether there is a server to speak to."""
        return self._client is not None

    async def connect(self, url: str) -> str:
        """Speaks to the server at ``url`` from now on; returns the version it names.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        parts = urlsplit(url)
        async with self._translated("connecting"):
            client = await chromadb.AsyncHttpClient(
                host=parts.hostname or "",
                port=parts.port or (443 if parts.scheme == "https" else 80),
                ssl=parts.scheme == "https",
                headers=self._headers,
                # Without a word, Chroma's client takes any certificate.
                settings=Settings(anonymized_telemetry=False, chroma_server_ssl_verify=self._ca_file or True),
            )
            version = await client.get_version()
        self._client, self._handles = client, {}
        return version

    def quiet(self) -> AbstractAsyncContextManager[None]:
        """Work that begins meanwhile waits, its time not running, and none is under way: Chroma may be restarted."""
        return self._gate.shut()

    def disconnect(self) -> None:
        """Fails everything with STORE_UNAVAILABLE until the next ``connect``, also what is under way.

        Whoever was cut off from the server would wait for an answer on a connection that the server does not know.
        """
        self._client, self._handles = None, {}
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def client(self, doing: str, collection: str = "") -> AsyncIterator[AsyncClientAPI]:
        """The client for one piece of work, which has a time limit and fails in the contract's words.

        What stays as it is (``InvalidArgumentError``, ``ValueError`` and the like) would be a fault of ours.

        Args:
            doing: the work, for the error.
            collection: which one it is done to, such as deleting it, if it is done to one: its handle is forgotten
                afterwards. It is missing, if Chroma says that one is.
        """
        async with self._gate.passing():
            if self._client is None:
                raise _unavailable(f"Chroma is away ({doing})")
            try:
                async with self._translated(doing, collection):
                    yield self._client
            finally:
                self._handles.pop(collection, None)

    @asynccontextmanager
    async def handle(self, doing: str, collection: Collection) -> AsyncIterator[AsyncCollection]:
        """As ``client``, but of the collection itself, wherever it is by now: see ``moved``."""
        async with self._gate.passing(), self._handle(doing, collection) as handle:
            yield handle

    @asynccontextmanager
    async def _handle(self, doing: str, collection: Collection) -> AsyncIterator[AsyncCollection]:
        client = self._client
        if client is None:
            raise _unavailable(f"Chroma is away ({doing})")
        home = self._home(collection)
        self._requests[home.key] += 1
        try:
            async with self._translated(doing, collection.name):
                handle = self._handles.get(home.store_name)
                if handle is None or str(handle.id) != home.key:
                    handle = await client.get_collection(home.store_name, embedding_function=None)
                    if str(handle.id) != home.key:  # deleted and made anew by somebody else
                        raise not_found(collection.name)
                    if self._client is client:
                        self._handles[home.store_name] = handle
                yield handle
        except LikenessError as error:
            if error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND:
                self._handles.pop(home.store_name, None)
            raise
        finally:
            self._requests[home.key] -= 1
            if not self._requests[home.key]:
                del self._requests[home.key]
                if (waiting := self._idle.pop(home.key, None)) is not None:
                    waiting.set()

    def moved(self, collection: Collection) -> None:
        """The collection is kept here from now on: whoever names an earlier generation of it means this one."""
        self._homes[collection.uid] = self._home(collection)

    async def idle(self, collection: Collection) -> None:
        """Returns when no request to just this generation is under way; each has a time limit."""
        if self._requests[collection.key]:
            await self._idle.setdefault(collection.key, asyncio.Event()).wait()

    def _home(self, collection: Collection) -> Collection:
        home = self._homes.get(collection.uid)
        return collection if home is None or home.generation < collection.generation else home

    @asynccontextmanager
    async def _translated(self, doing: str, collection: str = "") -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                self._limits.add(limit)
                try:
                    yield
                finally:
                    self._limits.discard(limit)
        except TimeoutError as error:
            raise _unavailable(f"Chroma gave no answer in {self._timeout_s:g} s, or went away ({doing})") from error
        except chroma_errors.NotFoundError as error:
            raise not_found(collection) from error
        except (chroma_errors.AuthorizationError, chroma_errors.ChromaAuthError) as error:
            raise _unavailable(f"Chroma refuses the indexer ({doing}); see LIKENESS_CHROMA_TOKEN") from error
        except (httpx.TransportError, chroma_errors.InternalError, chroma_errors.RateLimitError) as error:
            raise _failed(error, doing, collection) from error
        except Exception as error:
            # Chroma's client raises a bare Exception for an answer with an error that it does not know, such as a
            # proxy's 502, and a ValueError where it cannot connect.
            if type(error) is Exception or (type(error) is ValueError and doing == "connecting"):
                raise _failed(error, doing, collection) from error
            raise


def _failed(error: Exception, doing: str, collection: str) -> LikenessError:
    if _TORN in str(error):
        log.error("Chroma could not write an index down", collection=collection, remedy=_REBUILD, why=str(error)[:300])
        why = f"Chroma could not write the index of {collection!r} down, for want of room most likely; {_REBUILD}"
        return LikenessError(error_pb2.REASON_STORE_FULL, why)
    why = f"Chroma failed ({doing}): {(str(error) or type(error).__name__)[:300]}"
    if any(words in str(error) for words in _DISK_FULL):
        return LikenessError(error_pb2.REASON_STORE_FULL, f"{why}; make room on Chroma's disk, then try again")
    return _unavailable(why)


def _unavailable(what: str) -> LikenessError:
    return LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, f"{what}; try again", retry_after_s=1.0)
