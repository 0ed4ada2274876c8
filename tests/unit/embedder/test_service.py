"""What the embedder does around its calls."""

from typing import Any

import pytest
from likeness.common.v1 import error_pb2
from likeness.embedder.v1 import embedder_pb2
from prometheus_client import CollectorRegistry

from chassis.errors import LikenessError
from chassis.readiness import Readiness
from embedder.admission import Load
from embedder.inputs import Lane
from embedder.service import EmbedderService
from embedder.servicer import EmbedderServicer
from embedder.settings import EmbedderSettings

SERVICE = "likeness.embedder.v1.EmbedderService"


class Full:
    """A pipeline without room."""

    def __init__(self) -> None:
        self.expects_bulk = False

    def expect_bulk(self) -> None:
        self.expects_bulk = True

    def require_room(self, _lane: Lane, _load: Load) -> None:
        self.require_room_unread()

    def require_room_unread(self) -> None:
        raise LikenessError(error_pb2.REASON_OVERLOADED, "full", retry_after_s=0.5)


class Context:
    """A call."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata

    def time_remaining(self) -> None:
        return None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata


def full(servicer: EmbedderServicer) -> Full:
    pipeline: Any = Full()
    servicer.serve(embedder_pb2.GetModelResponse(), pipeline, 1, 1)
    found: Full = pipeline
    return found


def test_a_service_that_has_no_room_refuses_embed_unread_and_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[EmbedderServicer] = []
    real = EmbedderServicer.__init__

    def remembered(self: EmbedderServicer, *arguments: Any) -> None:
        real(self, *arguments)
        made.append(self)

    monkeypatch.setattr(EmbedderServicer, "__init__", remembered)
    registry = CollectorRegistry()
    calls = EmbedderService(EmbedderSettings(), registry).calls(Readiness(SERVICE))
    full(made[0])
    with pytest.raises(LikenessError, match="full"):
        calls.admit(f"/{SERVICE}/Embed", (), "grpc")
    assert registry.get_sample_value("likeness_embedder_refused_total", {"reason": "OVERLOADED"}) == 1
    assert not calls.under_way


@pytest.mark.parametrize(
    ("method", "metadata"),
    [
        ("GetModel", ()),
        ("EmbedStream", ()),
        ("Embed", (("user-agent", "x"), ("likeness-priority", "bulk"))),
    ],
)
def test_streams_and_what_says_that_it_is_bulk_are_not_refused_unread(method: str, metadata: Any) -> None:
    servicer = EmbedderServicer(EmbedderSettings().limits)
    servicer.turn_away(f"/{SERVICE}/Embed", ())  # before there is a model
    full(servicer)
    servicer.turn_away(f"/{SERVICE}/{method}", metadata)


@pytest.mark.parametrize(
    ("priority", "metadata", "expected"),
    [
        (embedder_pb2.PRIORITY_BULK, (), True),
        (embedder_pb2.PRIORITY_BULK, (("likeness-priority", "bulk"),), False),
        (embedder_pb2.PRIORITY_INTERACTIVE, (), False),
    ],
)
async def test_bulk_that_did_not_say_so_beforehand_is_to_be_expected_again(
    priority: embedder_pb2.Priority.ValueType, metadata: tuple[tuple[str, str], ...], expected: bool
) -> None:
    servicer = EmbedderServicer(EmbedderSettings().limits)
    pipeline = full(servicer)
    request = embedder_pb2.EmbedRequest(inputs=[embedder_pb2.EmbedInput(text="a")], priority=priority)
    context: Any = Context(*metadata)
    with pytest.raises(LikenessError, match="full"):
        await servicer.Embed(request, context)
    assert pipeline.expects_bulk is expected
