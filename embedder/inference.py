"""Runs batches on the model process, one after another, and isolates what makes one fail.

1. A batch that fails runs again in halves, until the culprit is alone and fails alone.
2. Where memory ran out, the process died (the kernel kills what takes too much), or a batch took too long, batches get
   half as large; after a while without trouble they grow again.
3. A batch whose process was lost waits for the next process and runs there, in halves. An entry that is alone when it
   is lost for the second time or more is taken for the cause.
4. Where entry after entry fails alone, the process is taken for the cause (a CUDA error stays until its process ends):
   it is replaced, and the last of them runs again.
5. Where a batch gives no vector at all (NaN, or nothing but zeros), an input that gave one before runs once more. If
   that gives none either, the process is taken for the cause and replaced, and the batch runs again. So a caller whose
   inputs have no vector in a sound model costs a forward pass more, and nobody else anything.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, incident
from embedder.batcher import BatchQueue
from embedder.entries import Entry, Span, Stage
from embedder.inputs import KINDS, Array, Kind, Lane, Outcome, Pixels, Tokens
from embedder.metrics import Metrics
from embedder.running_mean import RunningMean
from embedder.supervisor import Supervisor
from embedder.vital import GiveUp, vital
from embedder.worker_process import ForwardError, WorkerLostError, WorkerProcess

log = structlog.get_logger()

_GROW_AFTER = 32  # good batches
_BROKEN_AFTER = 4  # entries that failed alone, one after another, other than for want of memory


class Inference:
    """Takes batches from the queue and gives their entries vectors. Used from one event loop."""

    def __init__(self, queue: BatchQueue, supervisor: Supervisor, metrics: Metrics, give_up: GiveUp) -> None:
        """Begins to take batches.

        Args:
            queue: what waits.
            supervisor: the model.
            metrics: told what becomes of batches.
            give_up: told if no further batch can be taken.
        """
        self._queue, self._supervisor, self._metrics = queue, supervisor, metrics
        self._more = asyncio.Event()
        self._good: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._failed_alone = 0
        # Of each kind an input that has had a vector: uint8 [height, width, 3], and int64 [length].
        self._proven_pixels: Pixels | None = None
        self._proven_tokens: Tokens | None = None
        self._seconds_each: dict[Kind, RunningMean] = {kind: RunningMean() for kind in KINDS}
        for kind in KINDS:
            metrics.batch_limit(kind, queue.limits[kind])
        # One batch at a time: sending the next ahead would save a device the fraction of a millisecond of our answer,
        # and make an interactive batch wait for two.
        self._running = vital(self._run, "running batches", give_up)

    def put(self, entry: Entry) -> None:
        """Takes an entry that is ready for the model."""
        self._queue.put(entry)
        self._more.set()

    @property
    def waiting(self) -> int:
        """Entries that wait for the model."""
        return sum(self._queue.waiting(lane) for lane in Lane)

    def seconds_each(self, kind: Kind) -> float:
        """What an input cost lately in forward passes, in seconds; 0 before the second."""
        return self._seconds_each[kind].value

    async def stop(self) -> None:
        """Runs no further batch."""
        self._running.cancel()
        await asyncio.wait({self._running})

    async def _run(self) -> None:
        while True:
            await self._supervisor.worker()
            batch = self._queue.take()
            if batch:
                try:
                    await self._embed(batch)
                except Exception as error:  # a fault of ours costs this batch, not all that come after it
                    failure = Outcome(incident("a batch could not be run", error))
                    for entry in batch:
                        if entry.stage is not Stage.DONE:
                            entry.finish(failure)
                continue
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._queue.due_in()):
                    await self._more.wait()

    async def _embed(self, entries: Sequence[Entry]) -> None:
        worker = await self._supervisor.worker()  # after a loss this takes seconds: who still waits then?
        now = time.monotonic()
        batch = [entry for entry in entries if not entry.drop_unwanted(now)]
        if not batch:
            return
        kind = batch[0].kind
        for entry in batch:
            entry.stage = Stage.INFERRING
        try:
            vectors, span = await self._vectors(worker, kind, batch)
        except ForwardError as error:
            self._metrics.batch_failed("out_of_memory" if error.out_of_memory else "error")
            if error.out_of_memory:
                self._shrink(kind, len(batch))
            if len(batch) == 1:
                await self._alone(worker, batch, error)
            else:
                log.warning("a forward pass failed; halving the batch", kind=kind, rows=len(batch), error=str(error))
                await self._halves(batch)
        except WorkerLostError as error:
            self._metrics.batch_failed("lost")
            if error.why == "died" or (error.why == "stuck" and len(batch) > 1):  # it may have been merely slow
                self._shrink(kind, len(batch))
            for entry in batch:
                entry.losses += 1
            if len(batch) == 1 and batch[0].losses > 1:
                failure = batch[0].fault("the model process was lost with this input, twice or more", error)
                batch[0].finish(Outcome(failure))
            else:
                await self._halves(batch)
        else:
            self._done(kind, batch, vectors, span)

    async def _vectors(self, worker: WorkerProcess, kind: Kind, batch: Sequence[Entry]) -> tuple[Array, Span]:
        """A forward pass: float32 [n, dimension], and when it was. Raises likewise where the process is broken."""
        begun = time.perf_counter()
        vectors = await self._encode(worker, kind, batch)
        span = Span(begun, time.perf_counter(), len(batch))
        if not _sound(vectors).any() and not await self._is_sound(worker, kind, batch):
            log.error("the model gives no vectors any more", kind=kind, rows=len(batch))
            worker.lose("failing")
            raise WorkerLostError("failing")
        return vectors, span

    async def _encode(self, worker: WorkerProcess, kind: Kind, batch: Sequence[Entry]) -> Array:
        if kind == "image":
            return await worker.encode_images([entry.slot for entry in batch if entry.slot is not None])
        return await worker.encode_texts(self._padded([entry.tokens for entry in batch if entry.tokens is not None]))

    async def _is_sound(self, worker: WorkerProcess, kind: Kind, batch: Sequence[Entry]) -> bool:
        """Whether the process still gives a vector for an input that has had one; True before any has."""
        vectors: Array | None = None  # in the warm-up, which then fails
        if kind == "text" and self._proven_tokens is not None:
            vectors = await worker.encode_texts(self._padded([self._proven_tokens]))
        if kind == "image" and self._proven_pixels is not None:
            slot = next(entry.slot for entry in batch if entry.slot is not None)
            row = self._supervisor.slab.rows[slot]
            pixels = row.copy()  # the batch may have to run again
            row[:] = self._proven_pixels
            try:
                vectors = await worker.encode_images([slot])
            finally:
                row[:] = pixels
        return vectors is None or bool(_sound(vectors).all())

    def _padded(self, texts: Sequence[Tokens]) -> Tokens:
        spec = self._supervisor.spec
        lengths = [len(tokens) for tokens in texts]
        length = max(lengths) if spec.texts_cut else spec.tokenizer.context_length
        padded = np.full((len(texts), length), spec.tokenizer.pad_id, np.int64)
        for row, tokens in zip(padded, texts, strict=True):
            row[: len(tokens)] = tokens
        self._metrics.tokens(padded.size, padded.size - sum(lengths))
        return padded

    async def _alone(self, worker: WorkerProcess, batch: Sequence[Entry], error: ForwardError) -> None:
        """An entry has failed alone: for its own fault, or is it the process that is broken?"""
        if not error.out_of_memory:
            self._failed_alone += 1
        if self._failed_alone < _BROKEN_AFTER:
            batch[0].finish(Outcome(_failure(batch[0], error)))
            return
        self._failed_alone = 0
        worker.lose("failing")
        await self._halves(batch)

    async def _halves(self, batch: Sequence[Entry]) -> None:
        for entry in batch:
            entry.stage = Stage.TO_INFER
        middle = len(batch) // 2
        for half in filter(None, (batch[:middle], batch[middle:])):
            await self._embed(half)

    def _done(self, kind: Kind, batch: Sequence[Entry], vectors: Array, span: Span) -> None:
        seconds = span.ended - span.begun
        self._metrics.batch(kind, len(batch), seconds)
        self._seconds_each[kind].add(seconds / len(batch))
        longest = max((len(entry.tokens) for entry in batch if entry.tokens is not None), default=0)
        self._queue.ran(kind, len(batch), longest, seconds)
        self._grow(kind)
        sound = _sound(vectors)
        if sound.any():
            self._failed_alone = 0
            self._remember(batch[int(np.argmax(sound))])
        now = time.monotonic()
        for entry, vector, is_sound in zip(batch, vectors, sound, strict=True):
            entry.inferred.append(span)
            worked = seconds + sum(each.ended - each.begun for each in entry.decoded)
            self._metrics.waited(kind, entry.lane, max(0.0, now - entry.created - worked))
            if is_sound:
                entry.finish(Outcome(vector, entry.truncated))
            else:
                length = float(np.linalg.norm(vector))
                failure = entry.fault("the model gave no unit vector", ValueError(f"length {length}"))
                entry.finish(Outcome(failure))

    def _remember(self, entry: Entry) -> None:
        """Keeps what ``_is_sound`` asks with: the first input of its kind that has a vector."""
        if entry.slot is not None and self._proven_pixels is None:
            self._proven_pixels = self._supervisor.slab.rows[entry.slot].copy()
        if entry.tokens is not None and self._proven_tokens is None:
            self._proven_tokens = entry.tokens

    def _shrink(self, kind: Kind, rows: int) -> None:
        limit = min(self._queue.full(kind), rows) if kind == "image" else self._queue.full(kind)
        self._queue.limits[kind] = max(1, limit // 2)
        self._good[kind] = 0
        self._metrics.batch_limit(kind, self._queue.limits[kind])
        log.warning("smaller batches for a while", kind=kind, limit=self._queue.limits[kind])

    def _grow(self, kind: Kind) -> None:
        self._good[kind] += 1
        limit = self._queue.limits[kind]
        if limit < self._supervisor.max_batch and self._good[kind] >= _GROW_AFTER:
            self._queue.limits[kind] = min(self._supervisor.max_batch, 2 * limit)
            self._good[kind] = 0
            self._metrics.batch_limit(kind, self._queue.limits[kind])


def _sound(vectors: Array) -> npt.NDArray[np.bool_]:
    """Which of them are of length 1: bool [n], false for NaN.

    Not one norm at a time: a batch of texts has dozens.
    """
    sound: npt.NDArray[np.bool_] = np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-3
    return sound


def _failure(entry: Entry, error: ForwardError) -> LikenessError:
    if error.out_of_memory:
        message = "the model ran out of memory on this input alone; try again, or at another replica"
        return LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=1.0)
    return entry.fault("a forward pass failed", error)
