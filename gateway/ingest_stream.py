"""One row of pictures into a collection: that of IndexImages, or that of an IndexBatch.

1. a reader takes items as long as the window has room, and none during a back-off; pictures given by a uri are fetched
2. what has arrived goes on in the order sent, one at a time of each id
3. workers take what waits, up to a batch: facts → what is there already → one Embed → thumbnails → one UpsertItems
4. results are handed over; each gives its room in the window back

Items are stored by the collection's name, their files by its uid: the indexer stores nothing in a collection of another
uid, and nothing is told of what was found in one.

Where equal pictures are skipped, an item waits for an earlier one of the same picture that is under way.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import ModelFingerprint, Vector
from likeness.embedder.v1 import embedder_pb2
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis.errors import LikenessError, from_status, incident, invalid, to_item_error
from chassis.pictures import PictureLimits
from chassis.quota import Allowance
from gateway.backoff import Backoff
from gateway.duplicate_policy import DuplicatePolicy, Skip
from gateway.ingest_fetch import PatientFetch
from gateway.ingest_item import Item, arrive, describe, failed_alone
from gateway.ingest_target import Answers, Services, Target
from gateway.media import PictureMedia
from gateway.metrics import BackoffCause
from gateway.requests import renamed, shutting_down
from gateway.window import Window

SEND_AGAIN = "what was stored was answered: send the rest again in a new stream"

# What a batch's message holds besides the pictures.
_ENVELOPE_BYTES = 64 * 1024
# So many pictures that are still to be fetched fill the window; each may turn out larger than its share, so that for a
# while the window holds more than it should, by less than so many of the largest pictures.
_UNFETCHED = 8


@dataclass(frozen=True)
class _Answered:
    item: Item
    result: gateway_pb2.IndexResult


@dataclass(frozen=True)
class _Pause:
    seconds: float


class Stream:
    """One open stream."""

    def __init__(
        self,
        services: Services,
        target: Target,
        stopping: asyncio.Event,
        allowance: Allowance | None = None,
        fetch_s: float | None = None,
    ) -> None:
        """Holds nothing yet.

        Args:
            services: what it needs.
            target: where items go.
            stopping: set when no more is to be read.
            allowance: of which each item takes one as it is read; None: that is done already.
            fetch_s: how long a picture given by a uri is waited for; None: as long as any call.
        """
        settings, limits = services.settings, target.limits
        self._services = services
        self._target = target
        self._stopping = stopping
        self._allowance = allowance
        self._limits = PictureLimits(limits.max_encoded_bytes, limits.max_pixels)
        self._batch_items = min(settings.ingest_batch_items, limits.max_inputs)
        largest_message = min(settings.max_message_mb * 2**20, limits.max_message_bytes) - _ENVELOPE_BYTES
        self._batch_bytes = min(settings.ingest_batch_mb * 2**20, largest_message)
        self._largest_item = largest_message
        # Near duplicates of each other are seen only one batch after another.
        self._workers = settings.ingest_batches if target.options.near is None else 1
        # Twice what the workers hold, so that the next batches fill while these are under way.
        window_bytes = settings.ingest_window_mb * 2**20
        self._window = Window(2 * self._workers * self._batch_items, window_bytes)
        largest_fetched = min(settings.fetch_max_mb * 2**20, limits.max_encoded_bytes)
        self._unfetched_bytes = min(largest_fetched, window_bytes // _UNFETCHED)
        self._fetch = PatientFetch(services.fetch, fetch_s or settings.ingest_call_s, limits.max_encoded_bytes)
        self._waiting: asyncio.Queue[Item | None] = asyncio.Queue()  # bounded by the window; None: no more is read
        self._outgoing: asyncio.Queue[_Answered | _Pause | None] = asyncio.Queue()  # likewise
        self._under_way: dict[str, Item] = {}
        self._pictures: dict[str, Item] = {}  # by SHA-256, where equal pictures are skipped
        self._half_closed = False
        self._failure: LikenessError | None = None
        self._failed = asyncio.Event()
        self._backoff = Backoff(settings.ingest_call_s, stopping, self._hold_back)
        self._rate = Backoff(settings.ingest_call_s, stopping, self._hold_back)  # holds back the reader alone
        self._policy = DuplicatePolicy(
            services.indexer, target.collection, target.metric, target.options, settings.ingest_call_s, self._backoff
        )

    async def run(self, messages: AsyncIterator[gateway_pb2.IndexItem], answers: Answers, place: int = 0) -> None:
        """Serves the stream; every item that was stored is answered before a failure is raised.

        Args:
            messages: the items; raises LikenessError for what ends the stream.
            answers: where results go; raises LikenessError if nobody takes them.
            place: of the first item.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(messages, place))
                tasks.create_task(self._work())
                await self._hand_over(answers)
        except ExceptionGroup as group:
            ours, others = group.split(LikenessError)
            if ours is None:
                raise
            if others is not None:  # the client is told one thing alone
                incident("unexpected error in an ingest that ends with another", others)
            raise next(_each(ours)) from None
        if answers.due_in() is not None:
            await answers.checkpoint()
        if self._failure is not None:
            raise self._failure
        if not self._half_closed:
            raise shutting_down(SEND_AGAIN)

    async def _hand_over(self, answers: Answers) -> None:
        while True:
            try:
                async with asyncio.timeout(answers.due_in()):
                    outgoing = await self._outgoing.get()
            except TimeoutError:
                await answers.checkpoint()
                continue
            match outgoing:
                case None:
                    return
                case _Pause(seconds):
                    await answers.backoff(seconds)
                case _Answered(item, result):
                    await answers.result(item.place, result)
                    await self._window.give_back(item.size)

    async def _read(self, messages: AsyncIterator[gateway_pb2.IndexItem], place: int) -> None:
        """Takes items until the client ends the stream, the gateway stops, or a worker has failed."""
        reading = asyncio.ensure_future(self._read_all(messages, place))
        ends = [asyncio.ensure_future(event.wait()) for event in (self._stopping, self._failed)]
        try:
            await asyncio.wait({reading, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
                self._half_closed = True
        finally:
            for future in (reading, *ends):
                future.cancel()
            await asyncio.wait({reading})  # nothing more may come behind the end
            self._waiting.put_nowait(None)

    async def _read_all(self, messages: AsyncIterator[gateway_pb2.IndexItem], place: int) -> None:
        arriving: asyncio.Queue[asyncio.Task[Item] | None] = asyncio.Queue()  # bounded by the window
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._admit(arriving))
            try:
                while (message := await self._next(messages)) is not None:
                    by_uri = message.image.WhichOneof("source") == "uri"
                    size = max(message.ByteSize(), self._unfetched_bytes if by_uri else 0)
                    await self._window.take(size)
                    arriving.put_nowait(tasks.create_task(self._arrive(message, place, size)))
                    place += 1
            except LikenessError as error:  # a message out of order; what came before it is still seen through
                self._failure = self._failure or error
            arriving.put_nowait(None)

    async def _next(self, messages: AsyncIterator[gateway_pb2.IndexItem]) -> gateway_pb2.IndexItem | None:
        """The next item; None at the stream's end."""
        await self._backoff.calm()
        await self._rate.clear()
        message = await anext(messages, None)
        if message is not None and self._allowance is not None and (wait_s := self._allowance.reserve(1)) > 0:
            self._rate.pause(wait_s, "rate")
        return message

    async def _arrive(self, message: gateway_pb2.IndexItem, place: int, size: int) -> Item:
        """The item, with its picture; the window knows its size from then on, instead of the one guessed."""
        item = await arrive(message, place, self._fetch)
        if item.size != size:
            await self._window.resize(size, item.size)
        return item

    async def _admit(self, arriving: "asyncio.Queue[asyncio.Task[Item] | None]") -> None:
        """Hands items to the workers in the order sent."""
        while (arrival := await arriving.get()) is not None:
            item = await arrival
            while (earlier := self._under_way.get(item.id)) is not None:
                await earlier.done.wait()  # items of one id take effect in the order sent
            if item.refused is None:
                self._under_way[item.id] = item
                if self._target.options.skip_exact:
                    first = self._pictures.setdefault(item.sha256, item)
                    if first is not item:
                        first.twins.append(item)
                        continue
            self._waiting.put_nowait(item)

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._workers):
                tasks.create_task(self._batches())
        self._outgoing.put_nowait(None)

    async def _batches(self) -> None:
        """One worker: takes what waits, up to a batch, and sees it through, until no more comes or one has failed."""
        held: Item | None = None  # taken, but too large for the batch before
        while not self._failed.is_set():
            first = held or await self._waiting.get()
            held = None
            if first is None:
                self._waiting.put_nowait(None)  # for the others, behind items that were let go after the end
                if self._waiting.qsize() == 1:
                    return
                continue
            batch, size = [first], first.size
            while len(batch) < self._batch_items and not self._waiting.empty():
                following = self._waiting.get_nowait()
                if following is None:
                    self._waiting.put_nowait(None)
                    break
                if size + following.size > self._batch_bytes:
                    held = following
                    break
                batch.append(following)
                size += following.size
            try:
                await self._store(batch)
            except LikenessError as error:
                self._failure = self._failure or error
                self._failed.set()

    async def _store(self, batch: Sequence[Item]) -> None:
        """Sees one batch through; answers every item of it, unless a whole call fails."""
        fit = await self._described(batch)
        if fit:
            fit = await self._left(fit, await self._policy.before_embedding(fit))
        if not fit:
            return
        embedded = await self._embedded(fit)
        vectors: dict[str, Vector] = {}
        for item, result in zip(fit, embedded.results, strict=True):
            if result.HasField("error"):
                self._refuse(item, renamed(from_status(result.error.status), _item_field))
            else:
                vectors[item.id] = result.vector
        skipped = await self._policy.after_embedding(vectors, embedded.fingerprint)
        # What is near an earlier item of the batch waits until that is stored.
        waiting = {item_id: skip for item_id, skip in skipped.items() if skip.existing_id in vectors}
        left = [item for item in fit if item.id in vectors and item.id not in waiting]
        fit, twins = await self._left(left, skipped), [item for item in fit if item.id in waiting]
        refused = await self._put(fit, vectors, embedded.fingerprint) if fit else set()
        # What waited for one that was refused may be no duplicate of anything: it is seen through once more.
        for item in twins:
            if waiting[item.id].existing_id in refused:
                self._waiting.put_nowait(item)
                del waiting[item.id]
        await self._left([item for item in twins if item.id in waiting], waiting)

    async def _put(self, items: Sequence[Item], vectors: Mapping[str, Vector], model: ModelFingerprint) -> set[str]:
        """Stores items and answers them; one that is being erased just now is refused, and no other because of it.

        Returns:
            The ids of those that are refused.
        """
        refused, waiting = set[str](), [items]
        while waiting:
            part = waiting.pop()
            upsert = indexer_pb2.UpsertItemsRequest(
                collection=self._target.collection, expected_fingerprint=model, expected_uid=self._target.uid
            )
            for item in part:
                upsert.items.add(id=item.id, vector=vectors[item.id], metadata=item.stored_metadata)
            try:
                await self._upserted(part, upsert)
            except LikenessError as error:
                if error.reason != error_pb2.REASON_COLLECTION_BUSY:
                    raise
                if len(part) == 1:
                    refused.add(part[0].id)
                    self._refuse(part[0], error)
                else:
                    half = len(part) // 2
                    waiting += [part[half:], part[:half]]
                continue
            for item in part:
                self._answer(item, gateway_pb2.IndexResult(stored=gateway_pb2.IndexStored()))
        return refused

    async def _described(self, batch: Sequence[Item]) -> list[Item]:
        """Reads what the pictures say of themselves; answers those that are refused, and returns the others."""
        fit: list[Item] = []
        errors = await asyncio.to_thread(lambda: [self._describe(item) for item in batch])
        for item, error in zip(batch, errors, strict=True):
            if error is None:
                fit.append(item)
            else:
                self._refuse(item, error)
        return fit

    def _describe(self, item: Item) -> LikenessError | None:
        try:
            if item.size > self._largest_item:
                description = f"{item.size:,} bytes; the embedder takes messages for {self._largest_item:,} at most"
                raise invalid("item.image", description, error_pb2.REASON_IMAGE_TOO_LARGE)
            item.stored_metadata = describe(item, self._limits)
        except Exception as error:  # Pillow has read what somebody sent
            return failed_alone(error)
        return None

    async def _embedded(self, batch: Sequence[Item]) -> embedder_pb2.EmbedResponse:
        inputs = [embedder_pb2.EmbedInput(image=item.message.image) for item in batch]
        embedder, timeout_s = self._services.embedder, self._services.settings.ingest_call_s
        return await self._backoff.call("embedder", lambda: embedder.embed(inputs, timeout_s, bulk=True))

    async def _upserted(self, batch: Sequence[Item], upsert: indexer_pb2.UpsertItemsRequest) -> None:
        options, indexer = self._target.options, self._services.indexer
        pictures = [PictureMedia(item.id, item.sha256, item.message.image) for item in batch]
        async with self._services.media.replacing(
            self._target.uid, pictures, thumbnails=options.thumbnails, originals=options.keep_originals
        ):
            timeout_s = self._services.settings.ingest_call_s
            await self._backoff.call("indexer", lambda: indexer.upsert(upsert, timeout_s))

    async def _check_collection(self) -> None:
        """Ends the stream if its collection was deleted, also where another one has its name by now."""
        target, timeout_s = self._target, self._services.settings.ingest_call_s
        uid = await self._backoff.call("indexer", lambda: self._services.indexer.uid(target.collection, timeout_s))
        if uid != target.uid:
            message = (
                f"collection {target.collection!r} was deleted and made anew meanwhile; what was stored is gone: send "
                "everything again, without a resume token"
            )
            raise LikenessError(error_pb2.REASON_COLLECTION_NOT_FOUND, message)

    async def _left(self, batch: Sequence[Item], skipped: Mapping[str, Skip]) -> list[Item]:
        """Answers what is skipped, and returns the rest."""
        if skipped:
            await self._check_collection()
        for item in batch:
            if (skip := skipped.get(item.id)) is not None:
                told = gateway_pb2.IndexSkipped(reason=skip.reason, existing_id=skip.existing_id, score=skip.score)
                self._answer(item, gateway_pb2.IndexResult(skipped=told))
        return [item for item in batch if item.id not in skipped]

    def _refuse(self, item: Item, error: LikenessError) -> None:
        self._answer(item, gateway_pb2.IndexResult(error=to_item_error(error)))

    def _answer(self, item: Item, result: gateway_pb2.IndexResult) -> None:
        result.sequence, result.id = item.message.sequence, item.id
        outcome = result.WhichOneof("outcome")
        assert outcome is not None
        self._services.metrics.ingested("failed" if outcome == "error" else outcome)
        if self._under_way.get(item.id) is item:
            del self._under_way[item.id]
        item.done.set()
        self._outgoing.put_nowait(_Answered(item, result))
        if self._pictures.get(item.sha256) is item:
            del self._pictures[item.sha256]
            self._settle(item, stored=outcome == "stored")

    def _settle(self, first: Item, *, stored: bool) -> None:
        """What becomes of the items that waited for one of the same picture: if it is stored, they are skipped."""
        twins, first.twins = first.twins, []
        if stored:
            told = gateway_pb2.IndexSkipped(reason=gateway_pb2.SKIP_REASON_EXACT_DUPLICATE, existing_id=first.id)
            for twin in twins:
                self._answer(twin, gateway_pb2.IndexResult(skipped=told))
        elif twins:
            heir = twins[0]
            heir.twins = twins[1:]
            self._pictures[heir.sha256] = heir
            self._waiting.put_nowait(heir)

    def _hold_back(self, seconds: float, cause: BackoffCause) -> None:
        self._services.metrics.backed_off(cause)
        self._outgoing.put_nowait(_Pause(seconds))


def _each(group: ExceptionGroup[LikenessError]) -> Iterator[LikenessError]:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _each(error)
        else:
            yield error


def _item_field(name: str) -> str:
    """The name, in an IndexItem, of a field of the EmbedRequest made from it."""
    return f"item.{name.partition('.')[2]}" if name.startswith("inputs[") else name
