"""Transport: the contract's messages to inputs and back. No model, no thread, no picture is touched here."""

from collections.abc import Sequence
from typing import Any

import grpc
from likeness.common.v1 import error_pb2, types_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc

from chassis import vectors
from chassis.errors import LikenessError, invalid, to_item_error
from embedder.inputs import EncodedPicture, Faulty, Input, Limits, Outcome, RgbPicture, Text, Timings
from embedder.pipeline import Pipeline

Context = grpc.aio.ServicerContext[Any, Any]


class EmbedderServicer(embedder_pb2_grpc.EmbedderServiceServicer):
    """Answers GetModel and Embed, once it has a pipeline."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pipeline: Pipeline | None = None
        self._model = embedder_pb2.GetModelResponse()

    def serve(self, model: embedder_pb2.GetModelResponse, pipeline: Pipeline) -> None:
        """Gives it what to answer with; no call arrives before (the interceptor refuses them until readiness)."""
        self._model, self._pipeline = model, pipeline

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
        context: Context,  # noqa: ARG002 (a caller that goes cancels this coroutine)
    ) -> embedder_pb2.EmbedResponse:
        """Embeds pictures and texts, mixed at will."""
        assert self._pipeline is not None
        count = len(request.inputs)
        if count == 0:
            raise invalid("inputs", f"empty; expected 1 to {self._limits.max_inputs} pictures and texts")
        if count > self._limits.max_inputs:
            description = f"{count} inputs; at most {self._limits.max_inputs} are taken: send several calls"
            raise invalid("inputs", description, error_pb2.REASON_BATCH_TOO_LARGE)
        inputs = [self._input(wanted, f"inputs[{n}]") for n, wanted in enumerate(request.inputs)]
        outcomes, timings = await self._pipeline.embed(inputs)
        return _response(self._model.fingerprint, outcomes, timings)

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


def _picture(image: types_pb2.Image, field: str) -> Input:
    match image.WhichOneof("source"):
        case "encoded":
            return EncodedPicture(image.encoded, field)
        case "rgb":
            return RgbPicture(image.rgb.width, image.rgb.height, image.rgb.pixels, field)
        case _:
            raise invalid(field, "nothing is set; expected encoded or rgb")


def _response(
    fingerprint: types_pb2.ModelFingerprint, outcomes: Sequence[Outcome], timings: Timings
) -> embedder_pb2.EmbedResponse:
    response = embedder_pb2.EmbedResponse(fingerprint=fingerprint)
    for outcome in outcomes:
        result = response.results.add(truncated=outcome.truncated)
        if isinstance(outcome.result, LikenessError):
            result.error.CopyFrom(to_item_error(outcome.result))
        else:
            result.vector.CopyFrom(vectors.to_proto(outcome.result))
    response.timings.queue.FromNanoseconds(round(timings.queue * 1e9))
    response.timings.decode.FromNanoseconds(round(timings.decode * 1e9))
    response.timings.inference.FromNanoseconds(round(timings.inference * 1e9))
    response.timings.batch_size = timings.batch_size
    return response
