"""The decode stage: threads that turn pictures into rows of pixels for the model.

A picture is begun only when there is a row for its pixels, so that decoding runs ahead of the model by a few batches
and no further. Interactive pictures go first, and keep something back for themselves: one thread, half of the rows and
a pixel budget of their own, so that they need not wait for the large pictures of a bulk load. Bulk pictures keep an
eighth of the rows, and have a turn where none has been begun for a second and none is being decoded.
"""

import asyncio
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import structlog
from PIL import Image

from chassis.errors import LikenessError
from chassis.pictures import PictureLimits
from embedder.batcher import STARVING_S
from embedder.decode import decoded_pixels, no_memory, open_picture, upright_rgb
from embedder.entries import Entry, Span, Stage
from embedder.inputs import Lane, Outcome, Pixels, RgbPicture
from embedder.metrics import Metrics
from embedder.running_mean import RunningMean
from embedder.slab import Slab
from embedder.spec import Geometry
from embedder.threads import start_threads

log = structlog.get_logger()

Preprocess = Callable[[Image.Image, Pixels], object]

# How long a stop waits for the pictures that are being decoded, in seconds; below ``replicas.STOP_S``. The slowest that
# a header lets pass take about as long.
STOP_S = 5.0

# How the names of the threads begin.
THREADS = "decode"


class Decoding:
    """Decodes pictures by lane. Used from the event loop; the threads are its own."""

    def __init__(
        self,
        *,
        threads: int,
        slab: Slab,
        preprocess: Preprocess,
        geometry: Geometry,
        limits: PictureLimits,
        decoded: Callable[[Entry], None],
        ready: Callable[[Entry], None],
        metrics: Metrics,
    ) -> None:
        """Starts the threads.

        Args:
            threads: for pictures of all lanes; one more is kept for interactive ones.
            slab: where the pixels go.
            preprocess: writes an upright RGB picture as the model's input, uint8 [height, width, 3].
            geometry: of the model's input.
            limits: of a picture; ``max_pixels`` is also the most that a lane decodes at a time.
            decoded: told that an entry waits to be decoded no more.
            ready: takes a decoded entry; its slot is its until ``release``.
            metrics: told how long each took.

        Raises:
            LikenessError: the system does not let it have as many threads.
        """
        self._slab, self._preprocess, self._geometry, self._limits = slab, preprocess, geometry, limits
        self._decoded, self._ready, self._metrics = decoded, ready, metrics
        self._threads = start_threads(threads + 1, THREADS, "LIKENESS_DECODE_THREADS")
        self._thread_count = threads
        # Like a forward pass's, in wall time; see ``seconds_each``.
        self._took = RunningMean()
        self._bulk_began = time.monotonic()
        self._waiting: dict[Lane, deque[Entry]] = {lane: deque() for lane in Lane}
        self._running = dict.fromkeys(Lane, 0)
        self._stopped = False
        self._jobs: set[asyncio.Future[Span | LikenessError]] = set()
        self._pixels = dict.fromkeys(Lane, 0)
        self._slots: dict[Lane, set[int]] = {lane: set() for lane in Lane}
        slots = slab.shape.slots
        self._most_slots = {Lane.INTERACTIVE: slots - max(1, slots // 8), Lane.BULK: slots // 2}

    def put(self, entry: Entry) -> None:
        """Takes a picture at the end of its lane; one that is put again, in a better lane, leaves its old place."""
        entry.entered = time.monotonic()
        if entry.lane is Lane.BULK and not self._waiting[Lane.BULK]:
            self._bulk_began = entry.entered  # it has not starved yet
        self._waiting[entry.lane].append(entry)
        self.feed()

    def release(self, entry: Entry) -> None:
        """Frees an entry's slot, if it has one."""
        if entry.slot is None:
            return
        for slots in self._slots.values():
            slots.discard(entry.slot)
        self._slab.give_back(entry.slot)
        entry.slot = None
        self.feed()

    def waiting(self, lane: Lane) -> int:
        """Pictures of a lane, those that will be dropped included."""
        return len(self._waiting[lane])

    def oldest_s(self, lane: Lane) -> float:
        """How long the lane's oldest picture has waited, in seconds."""
        return time.monotonic() - self._waiting[lane][0].created if self._waiting[lane] else 0.0

    def seconds_each(self) -> float:
        """What a picture lately cost the decode stage as a whole, in seconds; 0 before the second."""
        return self._took.value / self._thread_count

    async def stop(self) -> None:
        """Begins nothing more, and ends the threads once what they are at is done; what waits stays as it is.

        What takes longer than ``STOP_S`` is left to itself: see ``leave``.
        """
        self._stopped = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._jobs:
            _, left = await asyncio.wait(self._jobs, timeout=STOP_S)
            if left:
                log.error("pictures are still being decoded and are waited for no longer", count=len(left))
                return
        await asyncio.to_thread(self._threads.shutdown)

    def feed(self) -> None:
        """Begins what can be begun."""
        if self._stopped:
            return
        now = time.monotonic()
        if not self._running[Lane.BULK] and now - self._bulk_began > STARVING_S:
            self._feed(Lane.BULK, threads=self._thread_count + 1, most=1)
        self._feed(Lane.INTERACTIVE, threads=self._thread_count + 1)
        self._feed(Lane.BULK, threads=self._thread_count)

    def _feed(self, lane: Lane, threads: int, most: int | None = None) -> None:
        now, waiting, begun = time.monotonic(), self._waiting[lane], 0
        while waiting and sum(self._running.values()) < threads and begun != most:
            entry = waiting[0]
            if entry.lane is not lane or entry.drop_unwanted(now):
                waiting.popleft()
                continue
            pixels = decoded_pixels(entry.opened, self._geometry) if entry.opened else entry.pixels
            if not self._has_room(lane, pixels):
                return
            waiting.popleft()
            self._begin(entry, lane, pixels)
            begun += 1

    def _has_room(self, lane: Lane, pixels: int) -> bool:
        if self._pixels[lane] and self._pixels[lane] + pixels > self._limits.max_pixels:
            return False
        return self._slab.free > 0 and len(self._slots[lane]) < self._most_slots[lane]

    def _begin(self, entry: Entry, lane: Lane, pixels: int) -> None:
        entry.stage = Stage.DECODING
        entry.slot = self._slab.take()
        self._slots[lane].add(entry.slot)
        if lane is Lane.BULK:
            self._bulk_began = time.monotonic()
        self._running[lane] += 1
        self._pixels[lane] += pixels
        job = asyncio.get_running_loop().run_in_executor(self._threads, self._decode, entry, entry.slot)
        self._jobs.add(job)
        job.add_done_callback(lambda done: self._end(entry, lane, pixels, done))

    def _end(self, entry: Entry, lane: Lane, pixels: int, job: "asyncio.Future[Span | LikenessError]") -> None:
        self._jobs.discard(job)
        if job.cancelled():  # by ``stop``, or with the event loop
            return
        self._running[lane] -= 1
        self._pixels[lane] -= pixels
        entry.picture = entry.opened = None
        self._decoded(entry)
        failed = job.exception()  # what no decoder should raise: a panic of a library, or no memory to tell of another
        result = job.result() if failed is None else entry.fault("a picture could not be prepared", failed)
        if isinstance(result, LikenessError):
            entry.finish(Outcome(result))
        else:
            seconds = result.ended - result.begun
            self._took.add(seconds)
            self._metrics.decoded("image", seconds)
            entry.decoded.append(result)
            entry.stage = Stage.TO_INFER
            if not entry.drop_unwanted(time.monotonic()):
                self._ready(entry)
        self.feed()

    def _decode(self, entry: Entry, slot: int) -> Span | LikenessError:
        """In a thread: decodes into the slot; returns when, or why not."""
        begun = time.perf_counter()
        assert entry.picture is not None
        try:
            # Errors name the field from the picture on; each caller's own name of the picture is put before it.
            opened = entry.opened or open_picture(replace(entry.picture, field=""), self._limits)
            what = ".rgb" if isinstance(entry.picture, RgbPicture) else ".encoded"
            upright = upright_rgb(opened, self._limits, what, self._geometry)
            self._preprocess(upright, self._slab.rows[slot])
        except LikenessError as error:
            return error
        except MemoryError:
            return no_memory()
        except Exception as error:
            return entry.fault("a picture could not be prepared", error)
        return Span(begun, time.perf_counter())


def leave(code: int) -> None:
    """Ends the process with this exit code if a picture is being decoded still: Python would wait for it for ever."""
    if any(thread.name.startswith(THREADS) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
