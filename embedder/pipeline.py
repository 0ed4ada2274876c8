"""One call's inputs → vectors, off the event loop.

1. Decode threads turn pictures into pixel tensors and texts into token ids, each input on its own.
2. As soon as a batch's worth of one kind is ready, the batcher runs it on the inference thread, while the decode
   threads go on with the next.
3. Results come back in the order of the inputs. A bad input fails alone.

A caller that has gone is noticed before each decode and before each forward pass; work that has not begun is dropped.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog
from likeness.common.v1 import error_pb2
from PIL import Image

from chassis.errors import LikenessError, incident
from embedder.batcher import Batcher, Kind, Row
from embedder.call import Call, CallerGoneError
from embedder.decode import open_picture, upright_rgb
from embedder.inputs import Array, Faulty, Input, Limits, Outcome, Picture, Text, Timings, Tokens
from embedder.pixel_budget import PixelBudget

log = structlog.get_logger()


@dataclass(frozen=True)
class _Prepared:
    row: Row
    truncated: bool = False


class Pipeline:
    """Embeds what calls bring. Used from one event loop."""

    def __init__(
        self,
        *,
        preprocess: Callable[[Image.Image], Array],
        tokenize: Callable[[str], tuple[Tokens, bool]],
        decoders: ThreadPoolExecutor,
        batcher: Batcher,
        limits: Limits,
        max_waiting: int,
    ) -> None:
        """Puts the stages together.

        Args:
            preprocess: upright RGB picture → the model's input, float32 [3, height, width].
            tokenize: text → token ids, int64 [context_length], and whether they were cut.
            decoders: the threads that run both.
            batcher: runs the model.
            limits: what to refuse.
            max_waiting: most inputs of all calls together that are held at a time.
        """
        self._preprocess = preprocess
        self._tokenize = tokenize
        self._batcher = batcher
        self._limits = limits
        self._pixels = PixelBudget(limits.pictures.max_pixels)
        self._decoders = decoders
        self._max_waiting = max_waiting
        # One batch in the model, one ready for it, one being decoded: more would only fill memory.
        self._batches = asyncio.Semaphore(3)
        self._waiting = 0
        self._under_way: dict[asyncio.Task[list[Outcome | None]], Call] = {}

    async def embed(self, inputs: Sequence[Input]) -> tuple[list[Outcome], Timings]:
        """Embeds one call's inputs.

        Args:
            inputs: pictures and texts, mixed at will.

        Returns:
            One outcome for each input, in order, and where the time went.

        Raises:
            LikenessError: OVERLOADED: too many inputs are held already.
            asyncio.CancelledError: the caller has gone; its undone work is dropped and one log line says how much.
        """
        if self._waiting and self._waiting + len(inputs) > self._max_waiting:
            message = f"{self._waiting} inputs are waiting or being embedded already; try again in a moment"
            raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=1.0)
        call = Call()
        # A task of its own, which outlives the caller: only the threads know which work was done and which dropped.
        task = asyncio.create_task(self._embed(inputs, call))
        self._waiting += len(inputs)
        self._under_way[task] = call
        task.add_done_callback(lambda done: self._end(done, len(inputs)))
        try:
            outcomes = await asyncio.shield(task)
        except asyncio.CancelledError:
            call.cancel()
            task.add_done_callback(_report_dropped)
            raise
        done = [outcome for outcome in outcomes if outcome is not None]
        assert len(done) == len(inputs), "only a caller that has gone leaves inputs without an outcome"
        return done, call.timings()

    async def stop(self) -> None:
        """Drops what is under way and waits until the threads have noticed."""
        for call in self._under_way.values():
            call.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way)

    def _end(self, task: "asyncio.Task[list[Outcome | None]]", inputs: int) -> None:
        del self._under_way[task]
        self._waiting -= inputs

    async def _embed(self, inputs: Sequence[Input], call: Call) -> list[Outcome | None]:
        """The outcomes; None for what was dropped because the caller had gone."""
        outcomes: list[Outcome | None] = [Outcome(i.error) if isinstance(i, Faulty) else None for i in inputs]
        places: dict[Kind, list[int]] = {
            "image": [n for n, i in enumerate(inputs) if not isinstance(i, Text | Faulty)],
            "text": [n for n, i in enumerate(inputs) if isinstance(i, Text)],
        }
        size = self._batcher.max_batch
        async with asyncio.TaskGroup() as batches:
            for kind, of_kind in places.items():
                for start in range(0, len(of_kind), size):
                    chosen = of_kind[start : start + size]
                    batches.create_task(self._in_turn(kind, {n: inputs[n] for n in chosen}, outcomes, call))
        return outcomes

    async def _in_turn(self, kind: Kind, inputs: dict[int, Input], outcomes: list[Outcome | None], call: Call) -> None:
        async with self._batches:
            await self._batch(kind, inputs, outcomes, call)

    async def _batch(self, kind: Kind, inputs: dict[int, Input], outcomes: list[Outcome | None], call: Call) -> None:
        """Prepares at most a batch's worth of inputs of one kind, runs the model, and fills in their outcomes."""
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._decoders, self._prepare, i, call) for i in inputs.values()]
        ready: dict[int, _Prepared] = {}
        for place, prepared in zip(inputs, await asyncio.gather(*jobs), strict=True):
            if isinstance(prepared, LikenessError):
                outcomes[place] = Outcome(prepared)
            elif prepared is not None:
                ready[place] = prepared
        if not ready:
            return
        try:
            vectors = await self._batcher.encode(kind, [p.row for p in ready.values()], call)
        except CallerGoneError:
            return
        for (place, prepared), vector in zip(ready.items(), vectors, strict=True):
            outcomes[place] = Outcome(vector, prepared.truncated)

    def _prepare(self, wanted: Input, call: Call) -> _Prepared | LikenessError | None:
        """In a decode thread: one input → the model's input, its error, or None if its caller has gone."""
        try:
            call.check()
            if isinstance(wanted, Text):
                with call.working("decode"):
                    return _Prepared(*self._tokenize(wanted.text))
            assert not isinstance(wanted, Faulty)
            return _Prepared(self._pixels_of(wanted, call))
        except CallerGoneError:
            return None
        except LikenessError as error:
            return error
        except Exception as error:
            return incident("an input could not be prepared", error)

    def _pixels_of(self, picture: Picture, call: Call) -> Array:
        with call.working("decode"):
            opened = open_picture(picture, self._limits.pictures)
        with self._pixels.lent(opened.width * opened.height):
            call.check()  # waiting for pixels may have taken long
            with call.working("decode"):
                return self._preprocess(upright_rgb(opened, self._limits.pictures, f"{picture.field}.encoded"))


def _report_dropped(task: "asyncio.Task[list[Outcome | None]]") -> None:
    if task.cancelled():
        return
    if (error := task.exception()) is not None:
        incident("a call whose caller had gone failed", error)
        return
    outcomes = task.result()
    dropped = sum(outcome is None for outcome in outcomes)
    log.info("caller gone, undone work dropped", inputs=len(outcomes), dropped=dropped)
