"""The indexer as the chassis runs it: what it is made of, and the order of start and stop."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import structlog
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc
from prometheus_client import CollectorRegistry
from prometheus_client.registry import REGISTRY

from chassis.calls import Calls
from chassis.readiness import Readiness
from indexer.archive.archive import Archive
from indexer.archive.files import Storage
from indexer.audit import RECORDS
from indexer.catalog import Collections
from indexer.chroma_reader import ChromaReader
from indexer.chroma_remote import RemoteChroma
from indexer.chroma_server import ChromaServer, LocalChroma
from indexer.collections import Collection
from indexer.disk import DiskGuard
from indexer.disk_usage import DiskUsage
from indexer.erase import Erasure
from indexer.figures import Figures
from indexer.jobs import Jobs
from indexer.metrics import Metrics
from indexer.patience import patiently
from indexer.rebuild import Rebuild
from indexer.registry import Registry
from indexer.roles import standing
from indexer.servicer import IndexerServicer
from indexer.settings import IndexerSettings
from indexer.status import Role
from indexer.surroundings import Surroundings
from indexer.turnstile import Turnstile
from indexer.upkeep import OwnFiles, Upkeep
from indexer.writers import Writers

log = structlog.get_logger()


class IndexerService:
    """Collections, a writer each, what serves them, and the Chroma server behind them."""

    def __init__(self, settings: IndexerSettings, registry: CollectorRegistry = REGISTRY) -> None:
        """Starts nothing yet.

        Args:
            settings: all of them.
            registry: where its figures are counted.
        """
        self._settings = settings
        self._standing = standing(settings)
        self._store = self._standing.store
        self._collections = Collections(
            self._store, follows=settings.role is Role.READER, linger_s=self._standing.linger_s
        )
        metrics = self._metrics = Metrics(registry)

        def searched(count: int, waited_s: float, seconds: float) -> None:
            metrics.searched({"chroma": count}, seconds)
            metrics.searched_stage("queue", waited_s)
            metrics.searched_stage("chroma", seconds)

        self._registry = Registry(
            settings,
            self._store,
            ChromaReader(
                self._store, Turnstile(settings.searches, settings.search_queue, "LIKENESS_SEARCH_QUEUE"), searched
            ),
            metrics,
            settings.data_dir / "serving",
            self._collections.upgrade,
        )
        surroundings = Surroundings(
            mirror_of=self._registry.mirror_of,
            prepare=self._collections.upgrade,
            admit=self._admit,
            admit_deletion=self._admit_deletion,
            wrote=metrics.wrote,
            done=self._standing.done,
            settle_s=settings.store_timeout_s,
            unsettled=lambda: self._standing.unsettled,
        )
        self._writers = Writers(self._store, settings.write_chunk, settings.write_queue, surroundings)
        self._jobs = Jobs()
        self._archive = Archive(
            Storage(settings.snapshots, settings.min_free_disk_mb * 2**20),
            keep=settings.snapshot_keep,
            chunk=settings.write_chunk,
            jobs=self._jobs,
            collections=self._collections,
            store=self._store,
            serving=self._registry,
            hold=self._writers.holding,
            admit=self._admit,
            observer=metrics,
        )
        # Where Chroma's own disk is, is not known of somebody else's.
        self._disk = None if settings.chroma_url else DiskGuard(settings.data_dir, settings.min_free_disk_mb * 2**20)
        self._upkeep = self._make_upkeep()
        self._collections.dropping = self._dropping
        self._collections.require_no_job = lambda uid: self._jobs.require_none(uid, "deletion")
        usage = DiskUsage(None if settings.chroma_url else settings.data_dir / "chroma", settings.data_dir / "serving")
        self._servicer = IndexerServicer(
            self._collections,
            self._writers,
            self._registry,
            self._standing.lease,
            archive=self._archive,
            upkeep=self._upkeep,
            disk=usage,
            message_bytes=settings.max_message_mb * 2**20,
            stream_ahead=min(3 * settings.write_chunk, settings.write_queue // 8),
        )
        self._figures = Figures(
            metrics, self._registry, usage, lambda: self._writers.queues, lambda: self._standing.lease.lag_s
        )
        self._chroma: ChromaServer | None = None

    @property
    def name(self) -> str:
        """Its full name in the contract."""
        return indexer_pb2.DESCRIPTOR.services_by_name["IndexerService"].full_name

    def calls(self, readiness: Readiness) -> Calls:
        """What is done around its calls."""
        return Calls.of(self._settings, readiness, observe=self._metrics.calls.called, records=RECORDS)

    def register(self, server: grpc.aio.Server) -> None:
        """Adds its servicer to the server."""
        indexer_pb2_grpc.add_IndexerServiceServicer_to_server(self._servicer, server)

    async def start(self, readiness: Readiness) -> None:
        """Brings Chroma up and the collections into memory. Later readiness follows what reads need.

        Raises:
            LikenessError: the data directory is in use, Chroma cannot be had, or another indexer is the writer.
        """
        started = False

        async def up(url: str) -> None:
            version = await self._store.connect(url)
            log.info("connected to Chroma", url=url, version=version)
            if started:
                self._metrics.store_back()
                await readiness.set(True, "Chroma is back")

        async def down(why: str) -> None:
            self._store.disconnect()
            if started and not self._registry.needs_store:
                log.warning("writes fail until Chroma is back; reads go on", why=why)
            else:
                await readiness.set(False, why)

        settings = self._settings
        if settings.chroma_url:
            self._chroma = RemoteChroma(
                settings.chroma_url,
                settings.chroma_headers,
                settings.chroma_start_s,
                up,
                down,
                ca_file=settings.chroma_ca,
            )
        else:
            self._chroma = LocalChroma(settings.data_dir, settings.chroma_start_s, up, down)
        readiness.on_stop(self._servicer.end_streams)
        readiness.on_stop(self._end)
        await self._chroma.start()
        await self._standing.begin(readiness.give_up)
        if settings.role is Role.WRITER:
            await patiently(self._collections.recover)
        await self._standing.load(self._collections, self._registry, self._writers)
        started = True
        self._figures.start()
        if settings.role is Role.WRITER:
            self._collections.drop_left()
            await self._upkeep.resume()

    async def stop(self) -> None:
        """Writes what waits, keeps what is in memory for the next start, then ends Chroma."""
        self._end()
        await self._jobs.stop()
        await self._collections.stop()  # what it drops has the space reclaimed
        await self._upkeep.stop()
        await self._standing.rest()
        await self._writers.drain()
        await self._figures.stop()
        await self._registry.stop()
        self._archive.close()
        await self._standing.end(in_doubt=self._collections.in_doubt or self._writers.in_doubt)
        if self._chroma is not None:
            await self._chroma.stop()

    def _end(self) -> None:
        """Begins no long work any more, and has an end of what might wait for Chroma for long."""
        if self._chroma is not None:
            self._chroma.hurry()
        self._collections.end()
        self._jobs.end()

    def _make_upkeep(self) -> Upkeep:
        settings, lease = self._settings, self._standing.lease
        files = None if self._disk is None else OwnFiles(settings.data_dir, self._disk, self._without_chroma)

        async def everything() -> list[Collection]:
            return [c for c in (await self._collections.list("", sys.maxsize))[0] if isinstance(c, Collection)]

        return Upkeep(
            jobs=self._jobs,
            collections=self._collections,
            rebuild=Rebuild(
                self._store,
                self._writers,
                self._collections,
                may_commit=lease.require,
                committed=self._registry.updated,
            ),
            erasure=Erasure(
                self._store,
                self._writers,
                self._registry.reader,
                self._archive,
                everything,
                None if files is None else settings.data_dir,
            ),
            serving=self._registry,
            files=files,
            unfinished=settings.data_dir / "unfinished",
            waiting=lambda: sum(self._writers.waiting.values()),
            observer=self._metrics,
        )

    @asynccontextmanager
    async def _without_chroma(self) -> AsyncIterator[None]:
        """Chroma is stopped during the block; what is asked of it waits."""
        assert isinstance(self._chroma, LocalChroma), "somebody else's is not ours to stop"
        async with self._store.quiet(), self._chroma.paused():
            yield

    @asynccontextmanager
    async def _dropping(self, _: str) -> AsyncIterator[None]:
        yield
        self._upkeep.deleted()

    def _admit_deletion(self) -> None:
        """Refuses a chunk of deletions that there is no room for, or that might be of no effect."""
        self._collections.require_decided()
        if self._disk is not None:
            self._disk.check(deleting=True)

    def _admit(self, collection: Collection, items: int) -> None:
        """Refuses a chunk of writes that there is no room for, or that might be lost."""
        self._collections.require_decided(collection)
        if self._disk is not None:
            self._disk.check()
        self._registry.admit(collection, items)
