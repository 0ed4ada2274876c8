"""Ingest: opens IndexImages streams, and what they have in common with IndexBatch.

1. the first message names the collection, which is found or made; its model must be the embedder's
2. a resume token says how many items are answered already
3. the stream itself: see ``gateway.ingest_stream``
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from likeness.common.v1 import error_pb2, types_pb2
from likeness.gateway.v1 import gateway_pb2

from chassis import calls
from chassis.deadline import Deadline
from chassis.errors import LikenessError, invalid
from gateway.checkpoints import Checkpoint, Progress
from gateway.collections import find_or_create
from gateway.ingest_options import read_options
from gateway.ingest_stream import SEND_AGAIN, Stream
from gateway.ingest_target import Services, Target
from gateway.requests import collection_name, duration, expected_fingerprint, mismatch
from gateway.streams import STALLED_S, patient, unless

Requests = AsyncIterator[gateway_pb2.IndexImagesRequest]
Write = Callable[[gateway_pb2.IndexImagesResponse], Awaitable[None]]

_GO_ON = "open a new stream with the last resume_token"


@dataclass(frozen=True)
class Patience:
    """How long a stream waits for its client, in seconds.

    Attributes:
        start_s: for the first message.
        idle_s: for the next item, while there is room for it.
        unread_s: for a result to be taken.
    """

    start_s: float = 10.0
    idle_s: float = 300.0
    unread_s: float = STALLED_S


@dataclass(frozen=True)
class Opened:
    """A collection that takes items.

    Attributes:
        target: it, and how they are taken.
        fingerprint: the embedder's model.
        created: whether it was made now.
    """

    target: Target
    fingerprint: types_pb2.ModelFingerprint
    created: bool


class Ingest:
    """Opens ingest streams."""

    def __init__(self, services: Services, stopping: asyncio.Event, patience: Patience = Patience()) -> None:
        self.services = services
        self.stopping = stopping
        self._patience = patience
        self.places = asyncio.Semaphore(services.settings.ingest_streams)

    async def __call__(self, requests: Requests, write: Write) -> None:
        """Serves one stream to its end.

        Raises:
            LikenessError: the stream cannot be opened, a message is out of order, a service behind the gateway
                cannot be reached or has too much to do, the client is silent for too long, or (SHUTTING_DOWN) the
                gateway stops; everything that was stored was then answered.
        """
        write = patient(write, self._patience.unread_s, _GO_ON)
        async with self.place():
            start = await unless(self.stopping, _read_start(requests, self._patience.start_s), SEND_AGAIN)
            opened, done = await unless(self.stopping, self._open(start), SEND_AGAIN)
            started = gateway_pb2.IndexStarted(
                collection=opened.target.collection,
                fingerprint=opened.fingerprint,
                created=opened.created,
                items_done=done,
            )
            await write(gateway_pb2.IndexImagesResponse(started=started))
            answers = _Written(write, Progress(opened.target.uid, done))
            stream = Stream(self.services, opened.target, self.stopping, calls.allowance())
            await stream.run(_items(requests, self._patience.idle_s), answers, done)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One of the places for streams and batches.

        Raises:
            LikenessError: OVERLOADED: none is free.
        """
        if self.places.locked():
            most = self.services.settings.ingest_streams
            message = f"{most} ingest streams and batches are open already; try again in a moment"
            raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=1.0)
        async with self.places:
            yield

    async def open(
        self,
        message: gateway_pb2.IndexStart | gateway_pb2.IndexBatchRequest,
        prefix: str,
        deadline: Deadline,
        checkpoint: Checkpoint | None = None,
    ) -> Opened:
        """Makes sure that the collection named fits the embedder's model.

        Args:
            message: names it, and how items are taken.
            prefix: what the names of its fields begin with in errors.
            deadline: by when.
            checkpoint: where an earlier stream was; then nothing is made.

        Raises:
            LikenessError: a field is refused, there is no such collection, it is another than the checkpoint's, or of
                another model than the embedder's or the one expected.
        """
        services = self.services
        collection = collection_name(message.collection, f"{prefix}collection")
        expected = expected_fingerprint(message, f"{prefix}expected_fingerprint")
        model = await services.embedder.model(deadline.left())
        if expected is not None and expected.digest != model.fingerprint.digest:
            raise mismatch(model.fingerprint, expected, "the model that the caller expects")
        try:
            create = message.create_collection and checkpoint is None
            found, created = await find_or_create(
                services.indexer, collection, model.fingerprint, deadline.left(), create=create
            )
            if created:
                calls.touch(collection=found.name, created=True)
        except LikenessError as error:
            if checkpoint is None or error.reason != error_pb2.REASON_COLLECTION_NOT_FOUND:
                raise
            raise _stale(collection) from error
        if checkpoint is not None and checkpoint.uid != found.uid:
            raise _stale(collection)
        options = read_options(
            message.options, found.metric, f"{prefix}options", thumbnails=services.settings.thumbnails
        )
        # By the collection's own name from here on: an alias may be moved meanwhile.
        target = Target(found.name, found.uid, found.metric, model.limits, options)
        return Opened(target, model.fingerprint, created)

    async def _open(self, start: gateway_pb2.IndexStart) -> tuple[Opened, int]:
        checkpoint = Checkpoint.read(start.resume_token, "start.resume_token") if start.resume_token else None
        deadline = Deadline(self.services.settings.default_deadline_s)
        opened = await self.open(start, "start.", deadline, checkpoint)
        return opened, checkpoint.items_done if checkpoint is not None else 0


@dataclass(frozen=True)
class _Written:
    """Results on their way to the client, and checkpoints between them."""

    write: Write
    progress: Progress

    async def result(self, place: int, result: gateway_pb2.IndexResult) -> None:
        await self.write(gateway_pb2.IndexImagesResponse(result=result))
        self.progress.answered(place)
        if self.progress.due_in() == 0:
            await self.checkpoint()

    async def backoff(self, seconds: float) -> None:
        told = gateway_pb2.IndexBackoff(delay=duration(seconds))
        await self.write(gateway_pb2.IndexImagesResponse(backoff=told))

    def due_in(self) -> float | None:
        return self.progress.due_in()

    async def checkpoint(self) -> None:
        now = self.progress.take()
        told = gateway_pb2.IndexCheckpoint(items_done=now.items_done, resume_token=now.token())
        await self.write(gateway_pb2.IndexImagesResponse(checkpoint=told))


async def _read_start(requests: Requests, within_s: float) -> gateway_pb2.IndexStart:
    try:
        async with asyncio.timeout(within_s):
            request = await anext(requests, None)
    except TimeoutError:
        raise _silent(f"no start came within {within_s:g} s; send it as the first message") from None
    if request is None or request.WhichOneof("message") != "start":
        raise invalid("start", "is unset; expected the first message of the stream to set it")
    return request.start


async def _items(requests: Requests, within_s: float) -> AsyncIterator[gateway_pb2.IndexItem]:
    while True:
        try:
            async with asyncio.timeout(within_s):
                request = await anext(requests, None)
        except TimeoutError:
            raise _silent(f"no item came for {within_s:g} s; half-close a stream that is done, or {_GO_ON}") from None
        if request is None:
            return
        if request.WhichOneof("message") != "item":
            raise invalid("item", "is unset; after the first message expected items only")
        yield request.item


def _silent(message: str) -> LikenessError:
    return LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, message)


def _stale(collection: str) -> LikenessError:
    message = (
        f"the resume token belongs to another collection than {collection!r}, or to one that was deleted since; "
        "send everything again without a token"
    )
    return LikenessError(error_pb2.REASON_RESUME_TOKEN_STALE, message)
