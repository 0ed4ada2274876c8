"""Transport: the contract's messages to inputs and back. No model, no thread, no picture is touched here."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from likeness.common.v1 import error_pb2, types_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc

from chassis import vectors
from chassis.errors import LikenessError, invalid, to_item_error
from chassis.guard import Metadata
from embedder.admission import Load
from embedder.inputs import EncodedPicture, Faulty, Input, Lane, Limits, Outcome, RgbPicture, Text, Timings
from embedder.pipeline import Pipeline
from embedder.stream import EmbedStream

Context = grpc.aio.ServicerContext[Any, Any]

EMBED = "/likeness.embedder.v1.EmbedderService/Embed"
# Metadata of a call that says what ``EmbedRequest.priority`` says, to whoever has not read the request.
PRIORITY, BULK = "likeness-priority", "bulk"

_LANES = {
    embedder_pb2.PRIORITY_UNSPECIFIED: Lane.INTERACTIVE,
    embedder_pb2.PRIORITY_INTERACTIVE: Lane.INTERACTIVE,
    embedder_pb2.PRIORITY_BULK: Lane.BULK,
}


class EmbedderServicer(embedder_pb2_grpc.EmbedderServiceServicer):
    """Answers GetModel, Embed and EmbedStream, once it has a pipeline."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pipeline: Pipeline | None = None
        self._streams: EmbedStream | None = None
        self._model = embedder_pb2.GetModelResponse()

    def serve(
        self, model: embedder_pb2.GetModelResponse, pipeline: Pipeline, stream_window: int, stream_bytes: int
    ) -> None:
        """Gives it what to answer with; no call arrives before (the interceptor refuses them until readiness).

        Args:
            model: what GetModel answers.
            pipeline: what embeds.
            stream_window: most unanswered inputs of one stream.
            stream_bytes: most bytes of inputs that all streams together have read ahead.
        """
        self._model, self._pipeline = model, pipeline
        self._streams = EmbedStream(
            model.fingerprint, stream_window, pipeline, self._input, _result, max_held_bytes=stream_bytes
        )

    def turn_away(self, method: str, metadata: Metadata) -> None:
        """Refuses a call before anything of its request is read: see ``embedder.admission``.

        Raises:
            LikenessError: OVERLOADED.
        """
        if self._pipeline is not None and method == EMBED and not _is_announced(metadata):
            self._pipeline.require_room_unread()

    def end_streams(self) -> None:
        """Has every stream answer what it has read, and end."""
        if self._streams is not None:
            self._streams.stop()

    async def GetModel(  # noqa: N802 (the contract's name)
        self,
        request: embedder_pb2.GetModelRequest,  # noqa: ARG002 (the contract's signature)
        context: Context,  # noqa: ARG002
    ) -> embedder_pb2.GetModelResponse:
        """Which model this is, how it runs, and every limit it sets."""
        return self._model

    async def Embed(  # noqa: N802 (the contract's name)
        self,
        request: embedder_pb2.EmbedRequest,
        context: Context,
    ) -> embedder_pb2.EmbedResponse:
        """Embeds pictures and texts, mixed at will."""
        assert self._pipeline is not None
        count = len(request.inputs)
        if count == 0:
            raise invalid("inputs", f"empty; expected 1 to {self._limits.max_inputs} pictures and texts")
        if count > self._limits.max_inputs:
            description = f"{count} inputs; at most {self._limits.max_inputs} are taken: send several calls"
            raise invalid("inputs", description, error_pb2.REASON_BATCH_TOO_LARGE)
        lane = _LANES.get(request.priority)
        if lane is None:
            raise invalid("priority", f"{request.priority}; expected a value of Priority")
        if lane is Lane.BULK and not _is_announced(context.invocation_metadata()):
            self._pipeline.expect_bulk()
        left = context.time_remaining()
        deadline = None if left is None else time.monotonic() + left
        texts = sum(wanted.HasField("text") for wanted in request.inputs)
        self._pipeline.require_room(lane, Load({"image": count - texts, "text": texts}, request.ByteSize()))
        inputs = [self._input(wanted, f"inputs[{n}]") for n, wanted in enumerate(request.inputs)]
        # A caller that goes cancels this coroutine.
        outcomes, timings = await self._pipeline.embed(inputs, lane, deadline)
        return _response(self._model.fingerprint, outcomes, timings)

    async def EmbedStream(  # type: ignore[override]  # noqa: N802  (a coroutine that writes: see the interceptor)
        self, requests: AsyncIterator[embedder_pb2.EmbedStreamRequest], context: Context
    ) -> None:
        """Embeds an endless row of pictures and texts."""
        assert self._streams is not None
        await self._streams(requests, context.write)

    def _input(self, wanted: embedder_pb2.EmbedInput, field: str) -> Input:
        try:
            match wanted.WhichOneof("input"):
                case "text":
                    return Text(self._text(wanted.text, f"{field}.text"))
                case "image":
                    return _picture(wanted.image, f"{field}.image")
                case _:
                    raise invalid(field, "nothing is set; expected a picture or a text")
        except LikenessError as error:
            return Faulty(error)

    def _text(self, text: str, field: str) -> str:
        if not text.strip():
            raise invalid(field, "empty; expected a text")
        size = len(text.encode())
        if size > self._limits.max_text_bytes:
            raise invalid(field, f"{size} bytes of UTF-8; at most {self._limits.max_text_bytes} are taken")
        return text


def _is_announced(metadata: Metadata | None) -> bool:
    """Whether the call says in its metadata that it is bulk."""
    return (PRIORITY, BULK) in (metadata or ())


def _picture(image: types_pb2.Image, field: str) -> Input:
    match image.WhichOneof("source"):
        case "encoded":
            return EncodedPicture(image.encoded, field)
        case "rgb":
            return RgbPicture(image.rgb.width, image.rgb.height, image.rgb.pixels, field)
        case "uri":
            description = "the embedder fetches nothing; send the picture's bytes, or the uri to the gateway"
            raise invalid(f"{field}.uri", description, error_pb2.REASON_FETCH_DISABLED)
        case _:
            raise invalid(field, "nothing is set; expected encoded or rgb")


def _response(
    fingerprint: types_pb2.ModelFingerprint, outcomes: Sequence[Outcome], timings: Timings
) -> embedder_pb2.EmbedResponse:
    response = embedder_pb2.EmbedResponse(fingerprint=fingerprint, results=map(_result, outcomes))
    response.timings.queue.FromNanoseconds(round(timings.queue * 1e9))
    response.timings.decode.FromNanoseconds(round(timings.decode * 1e9))
    response.timings.inference.FromNanoseconds(round(timings.inference * 1e9))
    response.timings.batch_size = timings.batch_size
    return response


def _result(outcome: Outcome) -> embedder_pb2.EmbedResult:
    result = embedder_pb2.EmbedResult(truncated=outcome.truncated)
    if isinstance(outcome.result, LikenessError):
        result.error.CopyFrom(to_item_error(outcome.result))
    else:
        result.vector.CopyFrom(vectors.to_proto(outcome.result))
    return result
