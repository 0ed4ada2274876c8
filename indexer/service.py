"""The indexer as the chassis runs it: what it is made of, and the order of start and stop."""

import grpc
import structlog
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from chassis.readiness import Readiness
from indexer.chroma_server import ChromaServer, LocalChroma, RemoteChroma
from indexer.collections import Collections
from indexer.reads import Turnstile
from indexer.servicer import IndexerServicer
from indexer.settings import IndexerSettings
from indexer.store import ChromaStore
from indexer.writer import Writers

log = structlog.get_logger()


class IndexerService:
    """Collections, a writer each, and the Chroma server behind them."""

    def __init__(self, settings: IndexerSettings) -> None:
        self._settings = settings
        turnstile = Turnstile(settings.searches, settings.search_queue)
        self._store = ChromaStore(settings.chroma_headers, settings.store_timeout_s, turnstile)
        self._writers = Writers(self._store, settings.write_chunk, settings.write_queue)
        self._servicer = IndexerServicer(Collections(self._store), self._writers, self._store)
        self._chroma: ChromaServer | None = None

    @property
    def name(self) -> str:
        """Its full name in the contract."""
        return indexer_pb2.DESCRIPTOR.services_by_name["IndexerService"].full_name

    def register(self, server: grpc.aio.Server) -> None:
        """Adds its servicer to the server."""
        indexer_pb2_grpc.add_IndexerServiceServicer_to_server(self._servicer, server)

    async def start(self, readiness: Readiness) -> None:
        """Brings Chroma up; from then on readiness follows it.

        Raises:
            LikenessError: the data directory is in use, or Chroma cannot be had.
        """
        started = False

        async def up(url: str) -> None:
            version = await self._store.connect(url)
            log.info("connected to Chroma", url=url, version=version)
            if started:
                await readiness.set(True, "Chroma is back")

        async def down(why: str) -> None:
            self._store.disconnect()
            await readiness.set(False, why)

        settings = self._settings
        if settings.chroma_url:
            self._chroma = RemoteChroma(settings.chroma_url, settings.chroma_headers, settings.chroma_start_s, up, down)
        else:
            self._chroma = LocalChroma(settings.data_dir, settings.chroma_start_s, up, down)
        await self._chroma.start()
        started = True

    async def stop(self) -> None:
        """Writes what waits, then ends Chroma."""
        await self._writers.drain()
        if self._chroma is not None:
            await self._chroma.stop()
