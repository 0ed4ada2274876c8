"""An ingest in this process, over an embedder and an indexer that are small and true to the contract."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from likeness.common.v1 import types_pb2
from likeness.gateway.v1 import gateway_pb2
from prometheus_client import CollectorRegistry

from chassis.deadline import Deadline
from chassis.errors import LikenessError
from gateway.fetch import Fetch
from gateway.ingest import Ingest, Patience
from gateway.ingest_batch import IngestBatch
from gateway.ingest_target import Services
from gateway.media import Media
from gateway.metrics import Metrics
from gateway.picture_facts import content_hash
from gateway.settings import GatewaySettings
from tests.pictures import noise
from tests.unit.gateway.behind import Behind, behind

UID = "uid-images"
WAIT_S = 30.0
PATIENCE = Patience()


def item(sequence: int, item_id: str = "", picture: bytes | None = None, uri: str = "") -> gateway_pb2.IndexItem:
    """An item; its picture is another for each sequence unless one is given."""
    made = gateway_pb2.IndexItem(sequence=sequence, id=item_id)
    if uri:
        made.image.uri = uri
    else:
        made.image.encoded = noise(sequence) if picture is None else picture
    return made


def sha256(picture: bytes) -> str:
    """Its hash."""
    return content_hash(types_pb2.Image(encoded=picture))


@dataclass
class Told:
    """What a stream has written.

    Attributes:
        answers: in order.
        error: what it ended with.
    """

    answers: list[gateway_pb2.IndexImagesResponse] = field(default_factory=list)
    error: LikenessError | None = None
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def started(self) -> gateway_pb2.IndexStarted:
        """The first answer."""
        return self.answers[0].started

    @property
    def results(self) -> dict[int, gateway_pb2.IndexResult]:
        """By sequence; each has come once."""
        found = [a.result for a in self.answers if a.WhichOneof("message") == "result"]
        by_sequence = {result.sequence: result for result in found}
        assert len(by_sequence) == len(found)
        return by_sequence

    @property
    def checkpoints(self) -> list[gateway_pb2.IndexCheckpoint]:
        """All of them."""
        return [a.checkpoint for a in self.answers if a.WhichOneof("message") == "checkpoint"]

    @property
    def backoffs(self) -> list[float]:
        """Their delays, in seconds."""
        found = [a.backoff for a in self.answers if a.WhichOneof("message") == "backoff"]
        return [backoff.delay.ToMilliseconds() / 1000 for backoff in found]

    async def until(self, come: "Callable[[Told], object]") -> None:
        """Waits for something to be told."""
        async with asyncio.timeout(WAIT_S), self.changed:
            await self.changed.wait_for(lambda: come(self))

    async def write(self, answer: gateway_pb2.IndexImagesResponse) -> None:
        """As a transport does."""
        async with self.changed:
            self.answers.append(answer)
            self.changed.notify_all()


class OpenStream:
    """A stream that a test feeds by hand."""

    def __init__(self, ingest: Ingest) -> None:
        self.told = Told()
        self.sent = 0
        self.taken = 0
        self._requests: asyncio.Queue[gateway_pb2.IndexImagesRequest | None] = asyncio.Queue()
        self._serving = asyncio.create_task(self._serve(ingest))

    def start(self, collection: str = "images", token: str = "", **options: object) -> Self:
        """Sends the first message."""
        start = gateway_pb2.IndexStart(
            collection=collection,
            resume_token=token,
            options=gateway_pb2.IngestOptions(**options),  # type: ignore[arg-type]
        )
        self._requests.put_nowait(gateway_pb2.IndexImagesRequest(start=start))
        return self

    def send(self, *items: gateway_pb2.IndexItem) -> Self:
        """Sends items."""
        for each in items:
            self._requests.put_nowait(gateway_pb2.IndexImagesRequest(item=each))
        return self

    def half_close(self) -> Self:
        """Sends no more."""
        self._requests.put_nowait(None)
        return self

    async def ended(self) -> Told:
        """Waits for the end, and returns what was told."""
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait({self._serving})
        return self.told

    async def close(self) -> None:
        """Ends it, whatever it is doing."""
        self._serving.cancel()
        await asyncio.wait({self._serving})

    async def _serve(self, ingest: Ingest) -> None:
        try:
            await ingest(self._each(), self.told.write)
        except LikenessError as error:
            self.told.error = error

    async def _each(self) -> AsyncIterator[gateway_pb2.IndexImagesRequest]:
        while (request := await self._requests.get()) is not None:
            self.taken += request.HasField("item")
            yield request


@dataclass
class Desk:
    """An ingest and what is behind it."""

    services: Behind
    ingest: Ingest
    media: Media
    stopping: asyncio.Event
    streams: list[OpenStream] = field(default_factory=list)

    def open(self) -> OpenStream:
        """A stream to feed by hand."""
        self.streams.append(OpenStream(self.ingest))
        return self.streams[-1]

    async def index(self, items: Iterable[gateway_pb2.IndexItem], **options: object) -> Told:
        """Sends items in a stream of their own, and returns what was told."""
        return await self.open().start(**options).send(*items).half_close().ended()  # type: ignore[arg-type]

    async def batch(self, items: Iterable[gateway_pb2.IndexItem], **options: object) -> gateway_pb2.IndexBatchResponse:
        """Sends items in one call."""
        request = gateway_pb2.IndexBatchRequest(
            items=items,
            options=gateway_pb2.IngestOptions(**options),  # type: ignore[arg-type]
        )
        return await IngestBatch(self.ingest)(request, Deadline(WAIT_S))


@asynccontextmanager
async def ingesting(where: Path, patience: Patience = PATIENCE, **settings: object) -> AsyncIterator[Desk]:
    """An ingest whose media are kept somewhere."""
    async with behind() as (services, embedder, indexer):
        # The limits of a real embedder.
        services.max_encoded_bytes, services.max_pixels = 2**25, 50_000_000
        told = GatewaySettings(media_url=str(where), **settings)  # type: ignore[arg-type]
        media, metrics, stopping = Media(told.media_url), Metrics(CollectorRegistry()), asyncio.Event()
        fetch = Fetch(told, metrics)
        parts = Services(embedder, indexer, media, told, metrics, fetch)
        desk = Desk(services, Ingest(parts, stopping, patience), media, stopping)
        try:
            yield desk
        finally:
            for stream in desk.streams:
                await stream.close()
            await fetch.close()
            media.close()
