"""Many pictures and texts in as few Embed calls as the embedder's limits allow."""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import EmbedLimits, ModelFingerprint, Vector
from likeness.embedder.v1 import embedder_pb2

from chassis.deadline import Deadline
from chassis.errors import LikenessError, from_status
from gateway.backends import Embedder

# What a message holds besides its inputs, and an input besides its picture or text.
_ENVELOPE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Embedded:
    """What became of some inputs.

    Attributes:
        fingerprint: the model that made the vectors.
        outcomes: of each input its vector, L2-normalised, or why it has none; the fields that an error names begin with
            ``inputs[…]``, at a place in the call it went in.
        timings: where the embedder spent its time, summed over the calls.
    """

    fingerprint: ModelFingerprint
    outcomes: list[Vector | LikenessError]
    timings: embedder_pb2.EmbedTimings


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
            message = "the embedders' model changed during the call; try again"
            raise LikenessError(error_pb2.REASON_MODEL_MISMATCH, message, retry_after_s=1.0)
        whole.outcomes.extend(outcomes)
        _add(whole.timings.queue, answer.timings.queue)
        _add(whole.timings.decode, answer.timings.decode)
        _add(whole.timings.inference, answer.timings.inference)
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


def _add(total: Duration, more: Duration) -> None:
    total.FromNanoseconds(total.ToNanoseconds() + more.ToNanoseconds())
