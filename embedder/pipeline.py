"""One call's inputs → vectors.

The path of an input:

1. ``admission``: is there room for the call?
2. in a thread, the cheap part: a picture's header and hash, a text's tokens
3. an equal input in flight: wait for that one; a text asked for lately: done
4. ``decoding``: pictures only, header checked before pixels
5. ``batcher`` and ``inference``: with the inputs of other calls, through the model
6. back, in the order of the inputs; a bad input has failed alone

Who has gone, or whose deadline has passed, is dropped before 4 and again before 5.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass

from likeness.common.v1 import error_pb2
from PIL.JpegImagePlugin import JpegImageFile

from chassis.beyond_pixels import pixels_at_once
from chassis.errors import LikenessError, incident
from embedder.admission import Admission, Load
from embedder.decode import no_memory, open_picture
from embedder.decoding import Decoding
from embedder.entries import Call, Entry, Stage, Waiter, Why
from embedder.inference import Inference
from embedder.inputs import EncodedPicture, Faulty, Input, Kind, Lane, Limits, Outcome, Picture, Text, Timings, Tokens
from embedder.metrics import Metrics, Result
from embedder.spec import ModelSpec
from embedder.supervisor import Supervisor
from embedder.text_cache import TextCache
from embedder.threads import start_threads

Tokenize = Callable[[str], tuple[Tokens, bool]]


@dataclass(frozen=True)
class _Prepared:
    """An input after its cheap part: what is needed to make an entry of it."""

    key: bytes
    picture: Picture | None = None
    opened: JpegImageFile | None = None
    pixels: int = 0
    tokens: Tokens | None = None
    truncated: bool = False


@dataclass(frozen=True)
class Stages:
    """What the pipeline puts together.

    Attributes:
        supervisor: the model.
        admission: who comes in.
        decoding: gives its entries to ``inference``.
        inference: gives entries their outcome.
        tokenize: text → ids, int64 [length], and whether its end was cut off.
        cache: of texts.
    """

    supervisor: Supervisor
    admission: Admission
    decoding: Decoding
    inference: Inference
    tokenize: Tokenize
    cache: TextCache


class Pipeline:
    """Embeds what calls bring. Used from one event loop."""

    def __init__(self, stages: Stages, limits: Limits, metrics: Metrics, threads: int) -> None:
        """Puts the stages together.

        Args:
            stages: the rest.
            limits: what to refuse of one input.
            metrics: told what becomes of each.
            threads: for headers and texts.

        Raises:
            LikenessError: the system does not let it have as many threads.
        """
        self._stages, self._limits, self._metrics = stages, limits, metrics
        self._in_flight: dict[bytes, Entry] = {}
        # By lane: the large pictures of a bulk call are hashed while an interactive one is.
        self._preparing = {
            lane: start_threads(threads, f"prepare-{lane.name.lower()}", "LIKENESS_DECODE_THREADS") for lane in Lane
        }

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self._stages.supervisor.spec

    @property
    def is_up(self) -> bool:
        """Whether there is a model at present."""
        return self._stages.supervisor.is_up

    @property
    def waiting_for_model(self) -> int:
        """Inputs that are ready for the model and wait for it."""
        return self._stages.inference.waiting

    @property
    def max_batch(self) -> int:
        """Most pictures in one forward pass."""
        return self._stages.supervisor.max_batch

    @property
    def least_batch(self) -> int:
        """Pictures that one forward pass takes however slow the model is."""
        return self._stages.supervisor.least_batch

    async def embed(
        self, inputs: Sequence[Input], lane: Lane = Lane.INTERACTIVE, deadline: float | None = None
    ) -> tuple[list[Outcome], Timings]:
        """Embeds one call's inputs.

        Args:
            inputs: pictures and texts, mixed at will.
            lane: who goes first.
            deadline: by ``time.monotonic``; None for none.

        Returns:
            One outcome for each input, in order, and where the time went.

        Raises:
            LikenessError: OVERLOADED: there is no room; NOT_READY: there is no model just now.
            asyncio.CancelledError: the caller has gone; what has not been begun is dropped.
        """
        load = _load(inputs)
        self.require_room(lane, load)
        self._stages.admission.enter(lane, load)
        return await self._embed(inputs, lane, deadline, load, refuse=True)

    def require_room(self, lane: Lane, load: Load) -> None:
        """Refuses a call at once, before anything of it is copied: when overloaded, refusing has to be cheap.

        Raises:
            LikenessError: as ``embed``.
        """
        try:
            self._stages.supervisor.require_up()
            self._stages.admission.check(lane, load)
        except LikenessError as error:
            self._refused(load, lane, error)
            raise

    def expect_bulk(self) -> None:
        """A bulk call has come that did not say so beforehand: see ``embedder.admission``."""
        self._stages.admission.expect_bulk()

    def require_room_unread(self) -> None:
        """Refuses a call of which nothing has been read yet, if there is no room for what calls bring.

        Without a model it is read, and told that there is none.

        Raises:
            LikenessError: OVERLOADED.
        """
        if self.is_up:
            self._stages.admission.check_unread()

    async def embed_one(self, wanted: Input, lane: Lane) -> Outcome:
        """Embeds one input of a stream: waits for room, and for a model, instead of refusing."""
        load = _load([wanted])
        await self._stages.admission.wait_and_enter(lane, load)
        outcomes, _ = await self._embed([wanted], lane, None, load, refuse=False)
        return outcomes[0]

    async def wait_for_room(self, lane: Lane) -> None:
        """Returns when an input would be let in: what a stream reads is to be answered, so it reads no more."""
        await self._stages.admission.wait_and_enter(lane, Load({}))

    async def stop(self) -> None:
        """Ends the threads and the model; what is still under way is not finished."""
        await self._stages.inference.stop()
        await self._stages.decoding.stop()
        for threads in self._preparing.values():
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)
        await self._stages.supervisor.stop()

    async def _embed(
        self, inputs: Sequence[Input], lane: Lane, deadline: float | None, load: Load, *, refuse: bool
    ) -> tuple[list[Outcome], Timings]:
        """Embeds what has been let in, and lets it out again."""
        call = Call(len(inputs), lane, deadline)
        entries: list[Entry] = []
        try:
            await self._begin(inputs, call, entries, refuse=refuse)
            await call.done
        except asyncio.CancelledError:
            self._leave(inputs, call, entries)
            raise
        except LikenessError as error:
            self._refused(load, lane, error)
            raise
        finally:
            self._stages.admission.leave(lane, load)
        outcomes = [outcome for outcome in call.outcomes if outcome is not None]
        for wanted, outcome in zip(inputs, outcomes, strict=True):
            self._metrics.item(_kind(wanted), lane, _result(outcome))
        return outcomes, call.timings()

    async def _begin(self, inputs: Sequence[Input], call: Call, entries: list[Entry], *, refuse: bool) -> None:
        places: list[int] = []
        for place, wanted in enumerate(inputs):
            known = self._known(wanted)
            if known is not None:
                call.resolve(place, known)
            else:
                places.append(place)
        if not places:
            return
        loop = asyncio.get_running_loop()
        chosen = [inputs[place] for place in places]
        prepared = await loop.run_in_executor(self._preparing[call.lane], copy_context().run, self._prepare, chosen)
        pixels = sum(p.pixels for p in prepared if isinstance(p, _Prepared))
        if refuse:
            self._stages.admission.check_pixels(call.lane, pixels)
        for place, one in zip(places, prepared, strict=True):
            if isinstance(one, LikenessError):
                call.resolve(place, Outcome(one))
            else:
                entries.append(self._enter(one, inputs[place], Waiter(call, place, _field(inputs[place]))))

    def _known(self, wanted: Input) -> Outcome | None:
        """What needs no work: an input that was refused already, or a text whose vector is remembered."""
        if isinstance(wanted, Faulty):
            return Outcome(wanted.error)
        if not isinstance(wanted, Text):
            return None
        known = self._stages.cache.get(wanted.text)
        if known is None:
            self._metrics.cache_missed()
        else:
            self._metrics.cache_hit()
        return known

    def _prepare(self, inputs: Sequence[Input]) -> list[_Prepared | LikenessError]:
        return [self._prepare_one(wanted) for wanted in inputs]

    def _prepare_one(self, wanted: Input) -> _Prepared | LikenessError:
        """In a thread: reads a picture's header, but no pixels; turns a text into tokens."""
        assert not isinstance(wanted, Faulty)
        try:
            if isinstance(wanted, Text):
                begun = time.perf_counter()
                tokens, truncated = self._stages.tokenize(wanted.text)
                self._metrics.decoded("text", time.perf_counter() - begun)
                return _Prepared(b"text" + tokens.tobytes() + bytes([truncated]), tokens=tokens, truncated=truncated)
            if isinstance(wanted, EncodedPicture):
                opened = open_picture(wanted, self._limits.pictures)
                digest = hashlib.blake2b(wanted.encoded, digest_size=16).digest()
                pixels = pixels_at_once(opened, wanted.encoded)
                # A JPEG stays open: its scale says what it costs. It holds nothing yet; a WebP holds two canvases.
                return _Prepared(digest, wanted, opened if isinstance(opened, JpegImageFile) else None, pixels)
            # A decoded picture is checked when it is copied, in the decode stage.
            size = f"{wanted.width}x{wanted.height}".encode()
            digest = hashlib.blake2b(wanted.pixels, digest_size=16, person=size[:16]).digest()
            return _Prepared(digest, wanted, pixels=min(wanted.width * wanted.height, self._limits.pictures.max_pixels))
        except LikenessError as error:
            return error
        except MemoryError:
            return no_memory()
        except BaseException as error:  # a library's panic is no Exception
            return incident("an input could not be prepared", error)

    def _enter(self, one: _Prepared, wanted: Input, waiter: Waiter) -> Entry:
        """The entry for a prepared input: one in flight that equals it, or a new one on its way."""
        lane = waiter.call.lane
        entry = self._in_flight.get(one.key)
        if entry is not None:
            self._metrics.joined(entry.kind)
            entry.waiters.append(waiter)
            if lane < entry.lane:
                self._hurry(entry, lane)
            return entry
        entry = Entry(
            kind="text" if one.picture is None else "image",
            lane=lane,
            key=one.key,
            stage=Stage.TO_INFER if one.picture is None else Stage.TO_DECODE,
            on_drop=self._dropped,
            on_done=self._done,
            picture=one.picture,
            opened=one.opened,
            pixels=one.pixels,
            tokens=one.tokens,
            truncated=one.truncated,
            text=wanted.text if isinstance(wanted, Text) else None,
            waiters=[waiter],
        )
        self._in_flight[one.key] = entry
        try:
            self._put(entry)
        except Exception as error:  # a fault of ours costs this input, not every equal one that joins it later
            failure = Outcome(incident("an input could not be put into its queue", error))
            if entry.stage in (Stage.TO_DECODE, Stage.TO_INFER):
                entry.finish(failure)
        return entry

    def _put(self, entry: Entry) -> None:
        if entry.kind == "text":
            self._stages.inference.put(entry)
            return
        entry.counted = entry.lane
        self._stages.admission.add_pixels(entry.lane, entry.pixels)
        self._stages.decoding.put(entry)

    def _hurry(self, entry: Entry, lane: Lane) -> None:
        """A caller in a better lane has joined: the entry takes that lane, unless it is being worked on."""
        entry.lane = lane
        if entry.stage is Stage.TO_DECODE:
            self._stages.decoding.put(entry)
        elif entry.stage is Stage.TO_INFER:
            self._stages.inference.put(entry)

    def _leave(self, inputs: Sequence[Input], call: Call, entries: Sequence[Entry]) -> None:
        """The caller has gone: what only it waited for is dropped now, so that nothing is held for nobody."""
        call.gone = True
        for wanted, outcome in zip(inputs, call.outcomes, strict=True):
            self._metrics.item(_kind(wanted), call.lane, "cancelled" if outcome is None else _result(outcome))
        now = time.monotonic()
        for entry in entries:
            entry.drop_unwanted(now)
        self._stages.decoding.feed()

    def _done(self, entry: Entry, outcome: Outcome) -> None:
        if self._in_flight.get(entry.key) is entry:
            del self._in_flight[entry.key]
        if entry.kind == "image":
            if entry.stage is Stage.TO_DECODE:  # it was dropped
                self._stages.admission.add_pixels(entry.counted, -entry.pixels)
            self._stages.decoding.release(entry)
        elif entry.text is not None:
            self._stages.cache.put(entry.text, outcome)

    def _dropped(self, entry: Entry, why: Why) -> None:
        self._metrics.dropped("decode" if entry.stage is Stage.TO_DECODE else "inference", why)

    def _refused(self, load: Load, lane: Lane, error: LikenessError) -> None:
        for kind, count in load.inputs.items():
            for _ in range(count):
                self._metrics.item(kind, lane, _result(Outcome(error)))


def _load(inputs: Sequence[Input]) -> Load:
    counts: dict[Kind, int] = {"image": 0, "text": 0}
    size = 0
    for wanted in inputs:
        counts[_kind(wanted)] += 1
        if isinstance(wanted, EncodedPicture):
            size += len(wanted.encoded)
        elif not isinstance(wanted, Text | Faulty):
            size += len(wanted.pixels)
    return Load(counts, size)


def _kind(wanted: Input) -> Kind:
    # What is refused before anything is known of it counts with the pictures: nothing is made of it anyway.
    return "text" if isinstance(wanted, Text) else "image"


def _field(wanted: Input) -> str:
    return "" if isinstance(wanted, Text | Faulty) else wanted.field


def _result(outcome: Outcome) -> Result:
    if not isinstance(outcome.result, LikenessError):
        return "ok"
    match outcome.result.reason:
        case error_pb2.REASON_DEADLINE_EXCEEDED:
            return "expired"
        case error_pb2.REASON_OVERLOADED:
            return "overloaded"
        case error_pb2.REASON_INTERNAL | error_pb2.REASON_NOT_READY:
            return "failed"
        case _:
            return "invalid"
