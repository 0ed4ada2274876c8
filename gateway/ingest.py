"""IndexImages: one stream of pictures into a collection.

1. the first message opens the collection
2. a reader takes items as long as the window has room, one at a time of each id
3. workers take what waits, up to a batch: facts → one Embed → one UpsertItems
4. results are written back; each gives its room in the window back
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from likeness.common.v1 import error_pb2, types_pb2
from likeness.common.v1.metadata_pb2 import Metadata
from likeness.embedder.v1 import embedder_pb2
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis import metadata, names
from chassis.errors import LikenessError, from_status, in_request, invalid, to_item_error
from chassis.metadata import MAX_LIST_LENGTH, MAX_STRING_BYTES, Plain
from chassis.pictures import PictureLimits
from gateway import items, picture_facts
from gateway.backends import Embedder, Indexer
from gateway.requests import collection_name, expected_fingerprint, mismatch, of_collection, shutting_down
from gateway.settings import GatewaySettings
from gateway.window import Window

Requests = AsyncIterator[gateway_pb2.IndexImagesRequest]
Write = Callable[[gateway_pb2.IndexImagesResponse], Awaitable[None]]

# What a batch's message holds besides the pictures.
_ENVELOPE_BYTES = 64 * 1024

# Above this, hashing a picture takes longer than handing it to a thread (0.5 ms at 2 GB/s).
_HASH_IN_THREAD_BYTES = 2**20

_SEND_AGAIN = "everything read was answered: send the rest again in a new stream"


@dataclass
class _Item:
    """An item under way."""

    message: gateway_pb2.IndexItem
    id: str
    sha256: str
    size: int
    done: asyncio.Event = field(default_factory=asyncio.Event)
    stored_metadata: Metadata | None = None


class Ingest:
    """Opens ingest streams."""

    def __init__(
        self, embedder: Embedder, indexer: Indexer, settings: GatewaySettings, stopping: asyncio.Event
    ) -> None:
        self.embedder = embedder
        self.indexer = indexer
        self.settings = settings
        self.stopping = stopping
        self._open = asyncio.Semaphore(settings.ingest_streams)

    async def __call__(self, requests: Requests, write: Write) -> None:
        """Serves one stream to its end.

        Raises:
            LikenessError: the stream cannot be opened, a message is out of order, a service behind the gateway
                cannot be reached, or (SHUTTING_DOWN) the gateway stops; everything already read was then answered.
        """
        if self._open.locked():
            message = f"{self.settings.ingest_streams} ingest streams are open already; try again in a moment"
            raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=1.0)
        async with self._open:
            opening = asyncio.ensure_future(self._start(requests))
            stopping = asyncio.ensure_future(self.stopping.wait())
            try:
                await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not opening.done():
                    raise shutting_down(_SEND_AGAIN)
                started, model = opening.result()
            finally:
                opening.cancel()
                stopping.cancel()
            await write(gateway_pb2.IndexImagesResponse(started=started))
            await _Stream(self, started.collection, model, write).run(requests)

    async def _start(self, requests: Requests) -> tuple[gateway_pb2.IndexStarted, embedder_pb2.GetModelResponse]:
        """Reads the first message, and makes sure that the collection it names fits the embedder's model."""
        start = await _read_start(requests)
        collection = collection_name(start.collection)
        expected = expected_fingerprint(start, "start.expected_fingerprint")
        model = await self.embedder.model(self.settings.default_deadline_s)
        if expected is not None and expected.digest != model.fingerprint.digest:
            raise mismatch(model.fingerprint, expected, "the model that the stream expects")
        created = await self._find_or_create(collection, model.fingerprint, create=start.create_collection)
        return (
            gateway_pb2.IndexStarted(collection=collection, fingerprint=model.fingerprint, created=created),
            model,
        )

    async def _find_or_create(self, collection: str, fingerprint: types_pb2.ModelFingerprint, *, create: bool) -> bool:
        """Makes sure that the collection exists and is of the embedder's model; returns whether it was made now."""
        timeout_s = self.settings.default_deadline_s
        created = False
        try:
            found = await self.indexer.collection(collection, timeout_s)
        except LikenessError as error:
            if error.reason != error_pb2.REASON_COLLECTION_NOT_FOUND or not create:
                raise
            request = indexer_pb2.CreateCollectionRequest(
                name=collection, fingerprint=fingerprint, metric=types_pb2.METRIC_COSINE
            )
            try:
                found = await self.indexer.create_collection(request, timeout_s)
                created = True
            except LikenessError as race:
                if race.reason != error_pb2.REASON_COLLECTION_EXISTS:
                    raise
                found = await self.indexer.collection(collection, timeout_s)
        if found.fingerprint.digest != fingerprint.digest:
            raise mismatch(fingerprint, found.fingerprint, of_collection(collection))
        return created


class _Stream:
    """One open stream."""

    def __init__(self, ingest: Ingest, collection: str, model: embedder_pb2.GetModelResponse, write: Write) -> None:
        settings = ingest.settings
        self._ingest = ingest
        self._settings = settings
        self._collection = collection
        self._limits = PictureLimits(model.limits.max_encoded_bytes, model.limits.max_pixels)
        self._batch_items = min(settings.ingest_batch_items, model.limits.max_inputs)
        largest_message = min(settings.max_message_mb * 2**20, model.limits.max_message_bytes) - _ENVELOPE_BYTES
        self._batch_bytes = min(settings.ingest_batch_mb * 2**20, largest_message)
        self._write = write
        # Twice what the workers hold, so that the next batches fill while these are under way.
        self._window = Window(2 * settings.ingest_batches * self._batch_items, settings.ingest_window_mb * 2**20)
        self._waiting: asyncio.Queue[_Item | None] = asyncio.Queue()  # bounded by the window
        self._results: asyncio.Queue[tuple[_Item, gateway_pb2.IndexResult] | None] = asyncio.Queue()  # likewise
        self._under_way: dict[str, _Item] = {}
        self._half_closed = False
        self._failure: LikenessError | None = None
        self._failed = asyncio.Event()

    async def run(self, requests: Requests) -> None:
        """Serves the stream; every item that was stored is answered before a failure is raised."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(requests))
            tasks.create_task(self._work())
            while (answered := await self._results.get()) is not None:
                item, result = answered
                await self._write(gateway_pb2.IndexImagesResponse(result=result))
                await self._window.give_back(item.size)
        if self._failure is not None:
            raise self._failure
        if not self._half_closed:
            raise shutting_down(_SEND_AGAIN)

    async def _read(self, requests: Requests) -> None:
        """Takes items until the client ends the stream, the gateway stops, or a worker has failed."""
        ends = [asyncio.ensure_future(event.wait()) for event in (self._ingest.stopping, self._failed)]
        reading: asyncio.Future[bool] | None = None
        try:
            while not any(end.done() for end in ends):
                reading = asyncio.ensure_future(self._admit_next(requests))
                await asyncio.wait({reading, *ends}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done() and not reading.result():
                    self._half_closed = True
                    return
        except LikenessError as error:  # a message out of order; what came before it is still seen through
            self._failure = self._failure or error
        finally:
            for future in (reading, *ends):
                if future is not None:
                    future.cancel()
            for _ in range(self._settings.ingest_batches):
                self._waiting.put_nowait(None)

    async def _admit_next(self, requests: Requests) -> bool:
        """Hands the next item to the workers; False at the stream's end."""
        try:
            request = await anext(requests)
        except StopAsyncIteration:
            return False
        if request.WhichOneof("message") != "item":
            raise invalid("item", "is unset; after the first message expected items only")
        message = request.item
        size = request.ByteSize()
        if size > _HASH_IN_THREAD_BYTES:
            sha256 = await asyncio.to_thread(picture_facts.content_hash, message.image)
        else:
            sha256 = picture_facts.content_hash(message.image)
        item = _Item(message, message.id or sha256, sha256, size)
        while (earlier := self._under_way.get(item.id)) is not None:
            await earlier.done.wait()  # items of one id take effect in the order sent
        await self._window.take(size)
        self._under_way[item.id] = item
        self._waiting.put_nowait(item)
        return True

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._settings.ingest_batches):
                tasks.create_task(self._batches())
        self._results.put_nowait(None)

    async def _batches(self) -> None:
        """One worker: takes what waits, up to a batch, and sees it through; ends at None, or when one has failed."""
        held: _Item | None = None  # taken, but too large for the batch before
        while not self._failed.is_set():
            first = held or await self._waiting.get()
            held = None
            if first is None:
                return
            batch, size, ended = [first], first.size, False
            while len(batch) < self._batch_items and not self._waiting.empty():
                following = self._waiting.get_nowait()
                if following is None:
                    ended = True
                    break
                if size + following.size > self._batch_bytes:
                    held = following
                    break
                batch.append(following)
                size += following.size
            try:
                await self._store(batch)
            except LikenessError as error:
                self._fail(error)
            if ended:
                return

    async def _store(self, batch: Sequence[_Item]) -> None:
        """Sees one batch through; answers every item of it, unless a whole call fails."""
        readable = [item for item in batch if await self._prepare(item)]
        if not readable:
            return
        inputs = [embedder_pb2.EmbedInput(image=item.message.image) for item in readable]
        timeout_s = self._settings.ingest_call_s
        embedded = await self._ingest.embedder.embed(inputs, timeout_s, bulk=True)
        stored: list[_Item] = []
        upsert = indexer_pb2.UpsertItemsRequest(collection=self._collection, expected_fingerprint=embedded.fingerprint)
        for item, result in zip(readable, embedded.results, strict=True):
            if result.HasField("error"):
                error = in_request(from_status(result.error.status), _item_field)
                self._answer(item, error)
            else:
                upsert.items.add(id=item.id, vector=result.vector, metadata=item.stored_metadata)
                stored.append(item)
        if stored:
            await self._ingest.indexer.upsert(upsert, timeout_s)
        for item in stored:
            self._answer(item, None)

    async def _prepare(self, item: _Item) -> bool:
        """Reads what the picture says of itself; answers the item and returns False if it is refused."""
        try:
            item.stored_metadata = await asyncio.to_thread(self._describe, item)
        except LikenessError as error:
            self._answer(item, error)
            return False
        return True

    def _describe(self, item: _Item) -> Metadata:
        message = item.message
        names.check_item_id(item.id, "item.id")
        theirs = _their_metadata(message)
        own: dict[str, Plain] = picture_facts.read(message.image, self._limits, "item.image")
        stored = items.to_stored({**own, "sha256": item.sha256}, message.uri, message.labels, theirs)
        metadata.from_proto(stored, "item.metadata")  # all of it together must keep the rules too
        return stored

    def _answer(self, item: _Item, error: LikenessError | None) -> None:
        result = gateway_pb2.IndexResult(sequence=item.message.sequence, id=item.id)
        if error is None:
            result.stored.SetInParent()
        else:
            result.error.CopyFrom(to_item_error(error))
        del self._under_way[item.id]
        item.done.set()
        self._results.put_nowait((item, result))

    def _fail(self, error: LikenessError) -> None:
        self._failure = self._failure or error
        self._failed.set()


async def _read_start(requests: Requests) -> gateway_pb2.IndexStart:
    async for request in requests:
        if request.WhichOneof("message") == "start":
            return request.start
        break
    raise invalid("start", "is unset; expected the first message of the stream to set it")


def _their_metadata(message: gateway_pb2.IndexItem) -> dict[str, Plain]:
    """The caller's metadata, after it and the labels and uri were checked."""
    if len(message.uri.encode()) > MAX_STRING_BYTES:
        raise invalid("item.uri", f"{len(message.uri.encode())} bytes; at most {MAX_STRING_BYTES} are taken")
    if len(message.labels) > MAX_LIST_LENGTH:
        raise invalid("item.labels", f"{len(message.labels)} labels; at most {MAX_LIST_LENGTH} are taken")
    for i, label in enumerate(message.labels):
        if not 0 < len(label.encode()) <= MAX_STRING_BYTES:
            raise invalid(f"item.labels[{i}]", f"{len(label.encode())} bytes; expected 1 to {MAX_STRING_BYTES}")
    theirs = metadata.from_proto(message.metadata, "item.metadata")
    for key in items.OWN_KEYS & theirs.keys():
        description = f"key {key!r} is written by the gateway; use another name, or the item's own field"
        raise invalid("item.metadata.fields", description, error_pb2.REASON_METADATA_INVALID)
    return theirs


def _item_field(name: str) -> str:
    """The name, in an IndexItem, of a field of the EmbedRequest made from it."""
    return f"item.{name.partition('.')[2]}" if name.startswith("inputs[") else name
