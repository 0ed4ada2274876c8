"""What the chassis runs: the gateway's parts, put together."""

import asyncio

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from likeness.common.v1 import error_pb2
from likeness.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from prometheus_client import CollectorRegistry
from prometheus_client.registry import REGISTRY

from chassis.calls import Calls
from chassis.errors import LikenessError
from chassis.guard import Guard
from chassis.keys import Keys
from chassis.names import is_loopback
from chassis.readiness import Readiness
from gateway.audit import RECORDS
from gateway.backends import Embedder, Indexer, Readers
from gateway.batch import BatchSearch
from gateway.classify import Classify
from gateway.collections import Collections
from gateway.deletion import Deletion
from gateway.duplicates import FindDuplicates
from gateway.embedding import Embedding
from gateway.fetch import Fetch
from gateway.http.app import application
from gateway.http.messages import Messages
from gateway.http.server import HttpServer, Limits
from gateway.indexer_reads import IndexerReads
from gateway.ingest import Ingest
from gateway.ingest_batch import IngestBatch
from gateway.ingest_target import Services
from gateway.labelling import LabelVectors
from gateway.labels import Labels
from gateway.media import Media
from gateway.media_files import MediaFiles
from gateway.media_sweep import MediaSweep
from gateway.metrics import Metrics
from gateway.reembed import Reembed
from gateway.scopes import RPCS
from gateway.search import Search
from gateway.servicer import SearchServicer
from gateway.settings import GatewaySettings
from gateway.status import Status
from gateway.vector_cache import VectorCache

log = structlog.get_logger()


class GatewayService:
    """The gateway. Ready once it has seen the services ready; later failures of theirs are told call by call.

    Attributes:
        http_port: where it listens by HTTP, once it does.
    """

    name = "likeness.gateway.v1.SearchService"

    def __init__(self, settings: GatewaySettings, registry: CollectorRegistry = REGISTRY) -> None:
        """Starts nothing yet.

        Args:
            settings: all of them.
            registry: where its figures are counted.
        """
        self._settings = settings
        self._guard = (
            Guard(Keys(settings.api_keys_file, settings.api_keys.get_secret_value()), RPCS) if settings.keyed else None
        )
        self._stopping = asyncio.Event()
        self._metrics = Metrics(registry)
        self._sweeping: asyncio.Task[None] | None = None
        self.http_port = -1

    def calls(self, readiness: Readiness) -> Calls:
        """What is done around its calls."""
        settings = self._settings
        if settings.listen_host != settings.host:
            why = "there are no API keys; see LIKENESS_API_KEYS_FILE, or LIKENESS_ANONYMOUS"
            log.warning("listening on loopback only", host=settings.listen_host, instead_of=settings.host, why=why)
        if not settings.keyed and not is_loopback(settings.listen_host):
            why = "LIKENESS_ANONYMOUS is set and there are no API keys; see LIKENESS_API_KEYS_FILE"
            log.warning("everybody who reaches this address may do everything", host=settings.listen_host, why=why)
        if settings.keyed and settings.tls is None and not is_loopback(settings.listen_host):
            log.warning("API keys come unencrypted, unless something in front speaks TLS; see LIKENESS_TLS_CERT")
        self._calls = Calls.of(self._settings, readiness, self._guard, self._metrics.calls.called, records=RECORDS)
        return self._calls

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to the server."""
        self._embedder, self._indexer = Embedder(self._settings), Indexer(self._settings)
        settings, embedder, indexer, stopping = self._settings, self._embedder, self._indexer, self._stopping
        self._readers = Readers(settings) if settings.indexer_read_address else None
        # For what may be a little behind; all else is asked of the one that writes.
        reads: IndexerReads = self._readers or indexer
        self._media = Media(settings.media_url)
        self._deletion = Deletion(indexer, self._media, settings.ingest_call_s)
        self._sweep = MediaSweep(indexer, MediaFiles(settings.media_url), stopping, settings.default_deadline_s)
        self._fetch = Fetch(settings, self._metrics)
        self._messages = Messages(settings.max_message_mb * 2**20)
        services = Services(embedder, indexer, self._media, settings, self._metrics, self._fetch)
        ingest = Ingest(services, stopping)
        cache = VectorCache(settings.vector_cache, self._metrics)
        embedding = Embedding(
            embedder, self._fetch, cache, settings.max_message_mb * 2**20, throttled=self._metrics.throttled
        )
        search = Search(embedding, reads)
        vectors = LabelVectors(embedder, settings.label_cache, self._metrics)
        servicer = SearchServicer(
            indexer=indexer,
            reads=reads,
            collections=Collections(embedder, indexer, self._media),
            reembed=Reembed(embedder, indexer, self._media, self._fetch, settings, stopping),
            default_deadline_s=settings.default_deadline_s,
            deletion=self._deletion,
            search=search,
            batch_search=BatchSearch(search),
            ingest=ingest,
            ingest_batch=IngestBatch(ingest),
            labels=Labels(indexer),
            classify=Classify(
                embedding,
                reads,
                vectors,
                stopping,
                settings.default_deadline_s,
                asyncio.Semaphore(settings.suggestion_streams),
            ),
            find_duplicates=FindDuplicates(
                reads, stopping, settings.default_deadline_s, asyncio.Semaphore(settings.duplicate_streams)
            ),
            status=Status(embedder, indexer, self._readers, _limits(settings)),
            metrics=self._metrics,
        )
        gateway_pb2_grpc.add_SearchServiceServicer_to_server(servicer, server)
        self._http = HttpServer(
            application(
                settings,
                servicer=servicer,
                calls=self._calls,
                metrics=self._metrics,
                indexer=reads,
                media=self._media,
                messages=self._messages,
            ),
            Limits(settings.http_connections, settings.http_headers_s, settings.drain_s),
            None if settings.tls is None else settings.tls.context(),
            self._metrics.http_connections,
        )

    async def start(self, readiness: Readiness) -> None:
        """Listens by HTTP too, and waits for an embedder, the indexer, and a reader of it where reads go to readers."""
        readiness.on_stop(self._stopping.set)
        readiness.on_stop(self._http.begin_stop)
        await self._listen_by_http()
        await self._embedder.wait_until_serving()
        await self._indexer.wait_until_serving()
        if self._readers is not None:
            await self._readers.wait_until_serving()
        self._sweeping = asyncio.create_task(self._sweep.run())

    async def stop(self) -> None:
        """Answers what is under way by HTTP, closes the connections to the services, and ends the threads."""
        await self._http.stop()
        await self._deletion.finish()
        if self._sweeping is not None:
            await self._sweeping
        await self._embedder.close()
        await self._indexer.close()
        if self._readers is not None:
            await self._readers.close()
        await self._fetch.close()
        self._media.close()
        self._messages.close()

    async def _listen_by_http(self) -> None:
        host, port = self._settings.listen_host, self._settings.http_port
        if port < 0:
            return
        try:
            self.http_port = await self._http.start(host, port)
        except OSError as error:
            message = (
                f"cannot listen at {host}, port {port}: {error.strerror}; set LIKENESS_HTTP_PORT, or to -1 for none"
            )
            raise LikenessError(error_pb2.REASON_FIELD_INVALID, message) from error


def _limits(settings: GatewaySettings) -> gateway_pb2.GatewayLimits:
    deadline = Duration()
    deadline.FromMilliseconds(round(settings.default_deadline_s * 1000))
    return gateway_pb2.GatewayLimits(
        default_deadline=deadline, max_message_bytes=settings.max_message_mb * 2**20, fetches_uris=settings.fetch
    )
