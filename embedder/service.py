"""The embedder's life: load the model, warm up, serve, stop."""

import asyncio
import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import grpc
import structlog
from likeness.common.v1 import types_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from PIL import Image

from chassis.errors import LikenessError
from chassis.readiness import Readiness
from embedder.allocator import keep_freed_memory
from embedder.batcher import Batcher
from embedder.inputs import EncodedPicture, Text
from embedder.pipeline import Pipeline
from embedder.servicer import EmbedderServicer
from embedder.settings import EmbedderSettings

if TYPE_CHECKING:
    from embedder.engine import Engine

log = structlog.get_logger()

Result = TypeVar("Result")


class EmbedderService:
    """What the chassis starts and stops."""

    def __init__(self, settings: EmbedderSettings) -> None:
        self._settings = settings
        self._servicer = EmbedderServicer(settings.limits)
        self._pipeline: Pipeline | None = None
        self._threads: list[ThreadPoolExecutor] = []

    @property
    def name(self) -> str:
        """Its full name in the contract."""
        return "likeness.embedder.v1.EmbedderService"

    def register(self, server: grpc.aio.Server) -> None:
        """Adds its servicer to the server."""
        embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(self._servicer, server)

    async def start(self, readiness: Readiness) -> None:  # noqa: ARG002 (it does not change its mind yet)
        """Loads the model and sends one picture and one text through it.

        Raises:
            LikenessError: the model cannot be loaded, or its vectors are none.
        """
        engine = await in_daemon_thread(self._load)
        keep_freed_memory()
        pipeline = self._pipeline = self._assemble(engine)
        begun = time.perf_counter()
        outcomes, _ = await pipeline.embed([EncodedPicture(_warm_up_picture(), "warm-up"), Text("a picture")])
        for outcome in outcomes:
            if isinstance(outcome.result, LikenessError):
                raise outcome.result
        log.info("warmed up", seconds=round(time.perf_counter() - begun, 2))
        self._servicer.serve(self._describe(engine), pipeline)

    async def stop(self) -> None:
        """Drops what is left and ends the threads."""
        if self._pipeline is not None:
            await self._pipeline.stop()
        for threads in self._threads:
            threads.shutdown()

    def _load(self) -> "Engine":
        # Here, since torch takes seconds to import: meanwhile the health check already says NOT_SERVING.
        from embedder.engine import load_engine  # noqa: PLC0415

        return load_engine(self._settings)

    def _assemble(self, engine: "Engine") -> Pipeline:
        inference = ThreadPoolExecutor(1, "inference")
        inference.submit(engine.set_up_inference_thread).result()
        decoders = ThreadPoolExecutor(
            self._settings.decode_thread_count, "decode", initializer=engine.set_up_decode_thread
        )
        self._threads = [decoders, inference]
        return Pipeline(
            preprocess=engine.preprocess,
            tokenize=engine.tokenize,
            decoders=decoders,
            batcher=Batcher(engine.backend, inference, self._settings.max_batch),
            limits=self._settings.limits,
            max_waiting=self._settings.max_waiting_inputs,
        )

    def _describe(self, engine: "Engine") -> embedder_pb2.GetModelResponse:
        limits = self._settings.limits
        return embedder_pb2.GetModelResponse(
            fingerprint=types_pb2.ModelFingerprint(
                model=engine.name, digest=engine.digest, dimension=engine.backend.dimension
            ),
            device=engine.backend.device,
            precision=engine.backend.precision,
            limits=types_pb2.EmbedLimits(
                max_inputs=limits.max_inputs,
                max_encoded_bytes=limits.pictures.max_encoded_bytes,
                max_pixels=limits.pictures.max_pixels,
                max_message_bytes=self._settings.max_message_mb * 2**20,
                max_text_bytes=limits.max_text_bytes,
                context_length=engine.context_length,
            ),
        )


async def in_daemon_thread(work: Callable[[], Result]) -> Result:
    """Runs something long in a thread that does not keep the process alive.

    Loading may take minutes (a download); a process told to stop meanwhile stops at once.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Result] = loop.create_future()

    def run() -> None:
        try:
            value = work()
        except BaseException as error:
            _call_if_open(loop, _fail, result, error)
        else:
            _call_if_open(loop, _succeed, result, value)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await result


def _call_if_open(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: object) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback, *arguments)


def _succeed(result: "asyncio.Future[Result]", value: Result) -> None:
    if not result.done():
        result.set_result(value)


def _fail(result: "asyncio.Future[Result]", error: BaseException) -> None:
    if not result.done():
        result.set_exception(error)


def _warm_up_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (320, 240), (120, 160, 200)).save(buffer, "PNG")
    return buffer.getvalue()
