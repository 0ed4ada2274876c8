"""Puts a pipeline together: the model process first, since the rest depends on what it runs."""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog
from PIL import Image

from chassis.errors import LikenessError
from embedder.admission import Admission, Bounds
from embedder.batcher import BatchQueue
from embedder.decoding import Decoding
from embedder.inference import Inference
from embedder.inputs import EncodedPicture, Lane, Text
from embedder.metrics import Metrics
from embedder.pipeline import Pipeline, Stages
from embedder.preprocess import Preprocess
from embedder.settings import EmbedderSettings
from embedder.supervisor import SayReady, Supervisor
from embedder.text_cache import TextCache
from embedder.tokens import Tokenizer
from embedder.vital import GiveUp
from embedder.worker_process import COMMAND

log = structlog.get_logger()

_LOOK_S = 1.0


@asynccontextmanager
async def open_pipeline(
    settings: EmbedderSettings,
    say_ready: SayReady,
    give_up: GiveUp,
    metrics: Metrics,
    command: Sequence[str] = COMMAND,
) -> AsyncIterator[Pipeline]:
    """A warmed-up pipeline over a model process of its own, stopped at the end.

    Args:
        settings: the embedder's.
        say_ready: told when the model is lost later, and when it is back.
        give_up: told if it cannot go on, for a fault of ours.
        metrics: told everything.
        command: runs a model process.

    Raises:
        LikenessError: the model cannot be loaded, or its vectors are none.
    """
    supervisor = Supervisor(settings, say_ready, give_up, metrics, command)
    try:
        await supervisor.start()
        pipeline, watching = _assembled(settings, supervisor, give_up, metrics)
    except BaseException:
        await supervisor.stop()
        raise
    try:
        await _warm_up(pipeline)
        yield pipeline
    finally:
        watching.cancel()
        await pipeline.stop()


def _assembled(
    settings: EmbedderSettings, supervisor: Supervisor, give_up: GiveUp, metrics: Metrics
) -> tuple[Pipeline, asyncio.Task[None]]:
    spec, threads = supervisor.spec, settings.decode_thread_count
    queue = BatchQueue(
        supervisor.max_batch,
        spec.tokenizer.context_length,
        least=supervisor.least_batch,
        texts_cut=spec.texts_cut,
        wait_s=settings.batch_wait_ms / 1000,
        clock=time.monotonic,
    )
    inference = Inference(queue, supervisor, metrics, give_up)
    bounds = Bounds(
        inputs=settings.max_waiting_inputs,
        encoded_bytes=int(settings.max_waiting_mb * 2**20),
        pixels=settings.max_waiting_pixels,
        queue_s={Lane.INTERACTIVE: settings.max_queue_s, Lane.BULK: settings.max_bulk_queue_s},
    )
    preprocess = Preprocess(spec.geometry)
    decoding = Decoding(
        threads=threads,
        slab=supervisor.slab,
        preprocess=preprocess,
        geometry=spec.geometry,
        limits=settings.limits.pictures,
        decoded=lambda entry: admission.add_pixels(entry.counted, -entry.pixels),
        ready=inference.put,
        metrics=metrics,
    )
    # Decoding and inference share a CPU's cores; for a device of its own the sum errs on the safe side.
    admission = Admission(
        bounds,
        lambda kind: inference.seconds_each(kind) + (decoding.seconds_each() if kind == "image" else 0.0),
        lambda: queue.full("image"),
    )
    stages = Stages(
        supervisor=supervisor,
        admission=admission,
        decoding=decoding,
        inference=inference,
        tokenize=Tokenizer(spec.tokenizer),
        cache=TextCache(settings.text_cache),
    )
    return Pipeline(stages, settings.limits, metrics, threads), asyncio.create_task(_watch(decoding, queue, metrics))


async def _watch(decoding: Decoding, queue: BatchQueue, metrics: Metrics) -> None:
    """Looks at the queues now and then: their age grows just when nothing happens."""
    while True:
        for lane in Lane:
            metrics.queue_length("decode", lane, decoding.waiting(lane))
            metrics.queue_length("model", lane, queue.waiting(lane))
            metrics.oldest(lane, max(decoding.oldest_s(lane), queue.oldest_s(lane)))
        await asyncio.sleep(_LOOK_S)


async def _warm_up(pipeline: Pipeline) -> None:
    begun = time.perf_counter()
    for text in ("a picture", "another picture"):  # what an input costs is known from the second one on
        outcomes, _ = await pipeline.embed([EncodedPicture(_picture(), "warm-up"), Text(text)])
        for outcome in outcomes:
            if isinstance(outcome.result, LikenessError):
                raise outcome.result
    log.info("warmed up", seconds=round(time.perf_counter() - begun, 2))


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (320, 240), (120, 160, 200)).save(buffer, "PNG")
    return buffer.getvalue()
