"""Vectors of pictures and texts: remembered, or made in as few Embed calls as the embedder's limits allow.

1. pictures given by a uri are fetched
2. what the model seen last has made already is remembered; what another call is making is waited for
3. the rest is embedded, a single text in a call that other callers' texts may share; or refused, where the embedders
   have too much to do (see ``throttle``)
4. if another model answered than made what was remembered, that is embedded again: one call's vectors are one model's

The model is not asked for beforehand. Whoever uses remembered vectors learns from the indexer, which compares
fingerprints at every query, that the collection is of another model now, and asks again with ``fresh``.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from google.protobuf.duration_pb2 import Duration
from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import EmbedLimits, Image, ModelFingerprint, Vector
from likeness.embedder.v1 import embedder_pb2

from chassis.deadline import Deadline
from chassis.errors import LikenessError, from_status, invalid
from gateway.backends import Embedder
from gateway.fetch import Fetch
from gateway.joint import JointCalls
from gateway.picture_facts import content_hash
from gateway.throttle import Throttle
from gateway.vector_cache import Content, Made, VectorCache

# What a message holds besides its inputs, and an input besides its picture or text.
_ENVELOPE_BYTES = 64 * 1024

# Above this, hashing takes longer than handing it to a thread.
_HASH_IN_THREAD_BYTES = 2**20

# Bytes of a text that shares a call with others', at most; and of one that need not wait for longer ones.
_SHARED_BYTES, _SHORT_BYTES = 2048, 128

# What is made for so many inputs at once is waited for by others who want the same; fewer than fit into one call.
_MADE_FOR_OTHERS = 32

# Pictures of one call that are fetched at once.
_FETCHES = 8

Ask = Callable[[Sequence[int]], Awaitable["Embedded"]]


@dataclass(frozen=True)
class Embedded:
    """What became of some inputs.

    Attributes:
        fingerprint: the model that made the vectors.
        outcomes: of each input its vector, L2-normalised, or why it has none; the fields that an error names begin with
            ``inputs[…]``, at a place in the call it went in.
        timings: where the embedder spent its time, summed over the calls, one of which others may have shared.
        remembered: whether a vector among them was made before this call.
    """

    fingerprint: ModelFingerprint
    outcomes: list[Vector | LikenessError]
    timings: embedder_pb2.EmbedTimings
    remembered: bool = False


class Embedding:
    """Gives the vectors of pictures and texts."""

    def __init__(
        self,
        embedder: Embedder,
        fetch: Fetch,
        cache: VectorCache,
        max_message_bytes: int,
        *,
        throttled: Callable[[], None],
    ) -> None:
        """Remembers nothing yet.

        Args:
            embedder: makes vectors.
            fetch: gives the bytes of pictures that are named by a uri.
            cache: remembers vectors.
            max_message_bytes: what the inputs of a call may hold together, fetched pictures included.
            throttled: called for every call that is refused for want of room at the embedders, without asking them.
        """
        self.embedder = embedder
        self._fetch = fetch
        self._cache = cache
        self._max_bytes = max_message_bytes - _ENVELOPE_BYTES
        self._last = ModelFingerprint()
        self._joint = JointCalls(self._embed_texts, busy_for_all=True)
        self._throttle = Throttle(throttled)

    async def __call__(
        self,
        inputs: Sequence[embedder_pb2.EmbedInput],
        deadline: Deadline,
        *,
        limits: EmbedLimits | None = None,
        split: bool = False,
        digest: str = "",
        fresh: bool = False,
    ) -> Embedded:
        """Vectors for at least one input.

        Args:
            inputs: pictures and texts.
            deadline: by when.
            limits: what one call to the embedder may hold; None: all inputs go in one, unless ``split``.
            split: whether the limits are asked for if there is more than one to embed.
            digest: of the model to expect; empty: that which was seen last. Only what is remembered goes by it.
            fresh: whether nothing that is remembered is used.

        Raises:
            LikenessError: a call failed as a whole, or (MODEL_MISMATCH) its parts were answered by two models.
        """
        fetched = await self._with_bytes(inputs, deadline)
        good = [i for i, each in enumerate(fetched) if not isinstance(each, LikenessError)]
        ready = [each for each in fetched if not isinstance(each, LikenessError)]
        if not ready:  # the model's name is wanted nevertheless
            model = await self.embedder.model(deadline.left())
            failed = [each for each in fetched if isinstance(each, LikenessError)]
            return Embedded(model.fingerprint, list(failed), embedder_pb2.EmbedTimings())
        contents = await _contents(ready)

        async def ask(places: Sequence[int]) -> Embedded:
            asked = limits
            if asked is None and split and len(places) > 1:
                asked = (await self.embedder.model(deadline.left())).limits
            return await self._ask(ready, contents, places, deadline, asked)

        whole = await self._gather(contents, ask, deadline, "" if fresh else digest or self._last.digest, fresh)
        outcomes: list[Vector | LikenessError] = [each for each in fetched if isinstance(each, LikenessError)]
        if outcomes:
            vectors = dict(zip(good, whole.outcomes, strict=True))
            refused = iter(outcomes)
            whole = replace(
                whole, outcomes=[vectors[i] if i in vectors else next(refused) for i in range(len(fetched))]
            )
        return whole

    async def _gather(
        self, contents: Sequence[Content], ask: Ask, deadline: Deadline, digest: str, fresh: bool
    ) -> Embedded:
        """Puts what is remembered, what others make and what is made now together, all of one model."""
        found: dict[int, Made] = {}
        coming: dict[int, asyncio.Future[Made | None]] = {}
        mine: dict[Content, list[int]] = {}
        for i, content in enumerate(contents):
            made = self._cache.recall(digest, content) if digest else None
            theirs = None if fresh or content in mine else self._cache.coming(content)
            if made is not None:
                found[i] = made
            elif theirs is not None:
                coming[i] = theirs
            else:
                mine.setdefault(content, []).append(i)
        whole: Embedded | None = None
        outcomes: dict[int, Vector | LikenessError] = {}
        if mine:
            # Of many, which take several calls one after another, whoever wants the last would wait for all.
            with self._cache.making(list(mine) if len(mine) <= _MADE_FOR_OTHERS else []):
                whole = await ask([places[0] for places in mine.values()])
            for places, outcome in zip(mine.values(), whole.outcomes, strict=True):
                outcomes |= dict.fromkeys(places, outcome)
        for i, future in coming.items():
            made = await _in_time(future, deadline)
            if made is not None:
                found[i] = made
        first = next(iter(found.values()), None)
        model = whole.fingerprint if whole is not None else None if first is None else first.fingerprint
        if model is not None:
            kept = {i: Vector(f32=made.f32) for i, made in found.items() if made.fingerprint.digest == model.digest}
            outcomes |= kept
        again = [i for i in range(len(contents)) if i not in outcomes]
        timings = embedder_pb2.EmbedTimings() if whole is None else whole.timings
        if again:
            more = await ask(again)
            if model is not None and more.fingerprint.digest != model.digest:
                again = list(range(len(contents)))
                more = await ask(again)
            model = more.fingerprint
            outcomes |= dict(zip(again, more.outcomes, strict=True))
            _add_all(timings, more.timings)
        assert model is not None
        ordered = [outcomes[i] for i in range(len(contents))]
        return Embedded(model, ordered, timings, remembered=bool(found.keys() - set(again)))

    async def _ask(
        self,
        inputs: Sequence[embedder_pb2.EmbedInput],
        contents: Sequence[Content],
        places: Sequence[int],
        deadline: Deadline,
        limits: EmbedLimits | None,
    ) -> Embedded:
        """Embeds the inputs at these places, and remembers what came of them."""
        chosen = [inputs[i] for i in places]
        embedded = await self._throttle(lambda: self._embedded(chosen, deadline, limits))
        if embedded.fingerprint.digest != self._last.digest:
            self._last = ModelFingerprint()
            self._last.CopyFrom(embedded.fingerprint)
        for i, outcome in zip(places, embedded.outcomes, strict=True):
            if not isinstance(outcome, LikenessError):
                self._cache.remember(contents[i], Made(outcome.f32, self._last))
        return embedded

    async def _embedded(
        self, inputs: Sequence[embedder_pb2.EmbedInput], deadline: Deadline, limits: EmbedLimits | None
    ) -> Embedded:
        return await self._together(inputs, deadline) or await embed(self.embedder, inputs, deadline, limits)

    async def _together(self, inputs: Sequence[embedder_pb2.EmbedInput], deadline: Deadline) -> Embedded | None:
        """Embeds a single text in a call that others share; None: there is to be one of its own."""
        size = inputs[0].ByteSize()
        if len(inputs) > 1 or inputs[0].WhichOneof("input") != "text" or size > _SHARED_BYTES:
            return None
        return await self._joint(inputs[0], size <= _SHORT_BYTES, deadline)

    async def _embed_texts(self, texts: Sequence[embedder_pb2.EmbedInput], timeout_s: float) -> list[Embedded]:
        """Texts of different callers, each with its own outcome."""
        answer = await self.embedder.embed(texts, timeout_s)
        found = []
        for result in answer.results:
            timings = embedder_pb2.EmbedTimings()
            timings.CopyFrom(answer.timings)
            found.append(Embedded(answer.fingerprint, [_outcome(result)], timings))
        return found

    async def _with_bytes(
        self, inputs: Sequence[embedder_pb2.EmbedInput], deadline: Deadline
    ) -> list[embedder_pb2.EmbedInput | LikenessError]:
        """The inputs with pictures in place of uris; what could not be fetched has its error."""
        named = [i for i, each in enumerate(inputs) if each.image.WhichOneof("source") == "uri"]
        ready: list[embedder_pb2.EmbedInput | LikenessError] = list(inputs)
        if not named:
            return ready
        room = self._max_bytes - sum(each.ByteSize() for each in inputs)

        async def fetch(i: int) -> None:
            nonlocal room
            try:
                async with few:
                    encoded = await self._fetch(inputs[i].image.uri, f"inputs[{i}].image.uri", deadline.left())
                if len(encoded) > room:
                    raise _no_room(f"inputs[{i}].image.uri", self._max_bytes)
                room -= len(encoded)
                ready[i] = embedder_pb2.EmbedInput(image=Image(encoded=encoded))
            except LikenessError as error:
                ready[i] = error

        few = asyncio.Semaphore(_FETCHES)
        async with asyncio.TaskGroup() as tasks:
            for i in named:
                tasks.create_task(fetch(i))
        return ready


async def embed(
    embedder: Embedder,
    inputs: Sequence[embedder_pb2.EmbedInput],
    deadline: Deadline,
    limits: EmbedLimits | None = None,
    *,
    background: bool = False,
) -> Embedded:
    """Embeds at least one input.

    Args:
        embedder: who does it.
        inputs: pictures and texts.
        deadline: by when.
        limits: what one call may hold; None: all inputs go in one.
        background: whether interactive calls go first.

    Raises:
        LikenessError: a call failed as a whole, or (MODEL_MISMATCH) its parts were answered by two models.
    """
    parts = [inputs] if limits is None else split(inputs, limits)
    whole: Embedded | None = None
    for part in parts:
        priority = embedder_pb2.PRIORITY_BULK if background else embedder_pb2.PRIORITY_INTERACTIVE
        answer = await embedder.embed(part, deadline.left(), priority=priority)
        outcomes = [_outcome(result) for result in answer.results]
        if whole is None:
            whole = Embedded(answer.fingerprint, outcomes, answer.timings)
            continue
        if answer.fingerprint.digest != whole.fingerprint.digest:
            raise changed()
        whole.outcomes.extend(outcomes)
        _add_all(whole.timings, answer.timings)
    assert whole is not None
    return whole


def split(inputs: Sequence[embedder_pb2.EmbedInput], limits: EmbedLimits) -> list[Sequence[embedder_pb2.EmbedInput]]:
    """The inputs in runs, each within one call's limits; one that is too large alone goes alone, to be refused."""
    largest = limits.max_message_bytes - _ENVELOPE_BYTES
    starts, count, size = [0], 0, 0
    for i, each in enumerate(inputs):
        nbytes = each.ByteSize() + 8
        if count and (count == limits.max_inputs or size + nbytes > largest):
            starts.append(i)
            count, size = 0, 0
        count, size = count + 1, size + nbytes
    return [inputs[start:stop] for start, stop in zip(starts, [*starts[1:], len(inputs)], strict=True)]


def _outcome(result: embedder_pb2.EmbedResult) -> Vector | LikenessError:
    return from_status(result.error.status) if result.HasField("error") else result.vector


async def _contents(inputs: Sequence[embedder_pb2.EmbedInput]) -> list[Content]:
    """What the inputs are, by their hashes."""
    size = sum(each.ByteSize() for each in inputs)
    if size <= _HASH_IN_THREAD_BYTES:
        return list(map(_content, inputs))
    return await asyncio.to_thread(lambda: list(map(_content, inputs)))


def _content(each: embedder_pb2.EmbedInput) -> Content:
    if each.WhichOneof("input") == "image":
        return Content("picture", f"{each.image.WhichOneof('source')}:{content_hash(each.image)}")
    return Content("text", hashlib.sha256(each.text.encode()).hexdigest())


async def _in_time(future: "asyncio.Future[Made | None]", deadline: Deadline) -> Made | None:
    """What another call makes; None if it fails.

    Raises:
        LikenessError: DEADLINE_EXCEEDED.
    """
    await asyncio.wait([future], timeout=deadline.left())
    deadline.left()
    return future.result()


def changed() -> LikenessError:
    """The error for a call whose parts were answered by two models."""
    message = "the embedders' model changed during the call; try again"
    return LikenessError(error_pb2.REASON_MODEL_MISMATCH, message, retry_after_s=1.0)


def _no_room(field: str, most: int) -> LikenessError:
    description = f"the pictures of one call are larger than {most:,} bytes together; send several calls"
    return invalid(field, description, error_pb2.REASON_BATCH_TOO_LARGE)


def _add_all(total: embedder_pb2.EmbedTimings, more: embedder_pb2.EmbedTimings) -> None:
    _add(total.queue, more.queue)
    _add(total.decode, more.decode)
    _add(total.inference, more.inference)


def _add(total: Duration, more: Duration) -> None:
    total.FromNanoseconds(total.ToNanoseconds() + more.ToNanoseconds())
