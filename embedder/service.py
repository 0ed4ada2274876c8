"""The embedder's life: start the model, warm up, serve, stop."""

from contextlib import AsyncExitStack

import grpc
from likeness.common.v1 import types_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from prometheus_client import CollectorRegistry
from prometheus_client.registry import REGISTRY

from chassis.calls import Calls
from chassis.readiness import Readiness
from embedder.assembly import open_pipeline
from embedder.metrics import Metrics
from embedder.pipeline import Pipeline
from embedder.servicer import EmbedderServicer
from embedder.settings import EmbedderSettings


class EmbedderService:
    """What the chassis starts and stops."""

    def __init__(self, settings: EmbedderSettings, registry: CollectorRegistry = REGISTRY) -> None:
        """Starts nothing yet.

        Args:
            settings: all of them.
            registry: where its figures are counted.
        """
        self._settings = settings
        self._servicer = EmbedderServicer(settings.limits)
        self._metrics = Metrics(registry)
        self._open = AsyncExitStack()
        self._started = False

    @property
    def name(self) -> str:
        """Its full name in the contract."""
        return "likeness.embedder.v1.EmbedderService"

    def calls(self, readiness: Readiness) -> Calls:
        """What is done around its calls."""
        return Calls.of(
            self._settings, readiness, observe=self._metrics.calls.called, turn_away=self._servicer.turn_away
        )

    def register(self, server: grpc.aio.Server) -> None:
        """Adds its servicer to the server."""
        embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(self._servicer, server)

    async def start(self, readiness: Readiness) -> None:
        """Starts the model process and sends one picture and one text through everything.

        Raises:
            LikenessError: the model cannot be loaded, or its vectors are none.
        """

        async def say_ready(serving: bool, why: str) -> None:
            if self._started:  # before, the chassis says so when this method returns
                await readiness.set(serving, why)

        opened = open_pipeline(self._settings, say_ready, readiness.give_up, self._metrics)
        pipeline = await self._open.enter_async_context(opened)
        readiness.on_stop(self._servicer.end_streams)
        window = self._settings.stream_window or 8 * pipeline.least_batch
        self._started = True
        self._servicer.serve(self._describe(pipeline), pipeline, window, int(self._settings.max_waiting_mb * 2**20))

    async def stop(self) -> None:
        """Ends the threads and the model process."""
        await self._open.aclose()

    def _describe(self, pipeline: Pipeline) -> embedder_pb2.GetModelResponse:
        settings, spec, limits = self._settings, pipeline.spec, self._settings.limits
        return embedder_pb2.GetModelResponse(
            fingerprint=types_pb2.ModelFingerprint(model=spec.name, digest=spec.digest, dimension=spec.dimension),
            device=spec.device,
            precision=spec.precision,
            backend=spec.backend,
            limits=types_pb2.EmbedLimits(
                max_inputs=limits.max_inputs,
                max_encoded_bytes=limits.pictures.max_encoded_bytes,
                max_pixels=limits.pictures.max_pixels,
                max_message_bytes=settings.max_message_mb * 2**20,
                max_text_bytes=limits.max_text_bytes,
                context_length=spec.tokenizer.context_length,
                max_batch=pipeline.max_batch,
                max_waiting_inputs=settings.max_waiting_inputs,
                max_waiting_bytes=int(settings.max_waiting_mb * 2**20),
                max_waiting_pixels=settings.max_waiting_pixels,
            ),
        )
