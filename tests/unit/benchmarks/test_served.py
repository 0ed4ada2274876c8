"""What the embedder's benchmark says when what it measures ends before it is told to."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc

from benchmarks.embedder.served import Client

WINDOW = 2  # inputs of a stream that are unanswered at once
ASKED = {"kind": "words_3", "ramp_s": 0.0, "seconds": 0.3}


def result() -> embedder_pb2.EmbedResult:
    made = embedder_pb2.EmbedResult()
    made.vector.f32 = bytes(8)
    return made


class Embedder(embedder_pb2_grpc.EmbedderServiceServicer):
    """Embeds three bulk inputs, then does with bulk as it is told, and only then embeds what is interactive."""

    def __init__(self, then: grpc.StatusCode | None) -> None:
        """How bulk calls and streams end, OK in good order; None: they are answered on and on."""
        self._then = then
        self._bulk = 0
        self._reached = asyncio.Event()

    async def Embed(self, request: Any, context: Any) -> embedder_pb2.EmbedResponse:  # noqa: N802
        if request.priority != embedder_pb2.PRIORITY_BULK:
            await self._reached.wait()
        elif self._is_over():
            await context.abort(self._then, "it fell over")
        return embedder_pb2.EmbedResponse(results=[result()])

    async def EmbedStream(  # noqa: N802
        self, requests: AsyncIterator[embedder_pb2.EmbedStreamRequest], context: Any
    ) -> AsyncIterator[embedder_pb2.EmbedStreamResponse]:
        yield embedder_pb2.EmbedStreamResponse(opened=embedder_pb2.EmbedStreamOpened(window=WINDOW))
        unanswered = 0
        async for request in requests:
            if not self._is_over():
                answer = embedder_pb2.EmbedStreamResult(correlation_id=request.correlation_id, result=result())
                yield embedder_pb2.EmbedStreamResponse(result=answer)
            elif (unanswered := unanswered + 1) == WINDOW:
                # A client amid a write would be told INTERNAL by its own gRPC, and nothing else.
                if self._then is not grpc.StatusCode.OK:
                    await context.abort(self._then, "it fell over")
                return

    def _is_over(self) -> bool:
        self._bulk += 1
        if self._bulk <= 3:
            return False
        self._reached.set()
        return self._then is not None


Measure = Callable[..., Awaitable[Any]]


@pytest.fixture
async def measure() -> AsyncIterator[Measure]:
    """Measures such an embedder in one way."""
    servers = []

    async def run(how: str, then: grpc.StatusCode | None, **told: object) -> Any:
        server = grpc.aio.server()
        servers.append(server)
        embedder = Embedder(then)  # type: ignore[abstract]  # only what the benchmark calls
        embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(embedder, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        return await getattr(Client(1), f"_{how}")({"address": address, **ASKED, **told})

    yield run
    for server in servers:
        await server.stop(0)


BULK = {"concurrency": 4, "pause_s": 0.01, "seed": 1}


@pytest.mark.parametrize("bulk", ["embed", "stream"])
async def test_bulk_that_fails_is_no_good_figure_of_the_interactive_calls_beside_it(
    measure: Measure, bulk: str
) -> None:
    with pytest.raises(RuntimeError, match="INTERNAL: it fell over"):
        await measure("beside_bulk", grpc.StatusCode.INTERNAL, bulk=bulk, **BULK)


async def test_a_bulk_stream_that_the_server_ends_in_good_order_is_none_either(measure: Measure) -> None:
    with pytest.raises(RuntimeError, match="it ended before it was told to"):
        await measure("beside_bulk", grpc.StatusCode.OK, bulk="stream", **BULK)


@pytest.mark.parametrize(
    ("then", "said"),
    [(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE: it fell over"), (grpc.StatusCode.OK, "it ended before")],
)
async def test_a_stream_that_ends_within_its_window_has_no_rate(
    measure: Measure, then: grpc.StatusCode, said: str
) -> None:
    with pytest.raises(RuntimeError, match=said):
        await measure("stream", then, seconds=1.0)


async def test_refused_bulk_is_tried_again_and_no_failure(measure: Measure) -> None:
    found = await measure("beside_bulk", grpc.StatusCode.RESOURCE_EXHAUSTED, bulk="embed", **BULK)
    assert found["interactive_items"] > 0
    assert (found["items"], found["failed"]) == (3, 0)
    assert found["refused"] > 0


@pytest.mark.parametrize("bulk", ["embed", "stream"])
async def test_bulk_that_goes_on_is_measured(measure: Measure, bulk: str) -> None:
    found = await measure("beside_bulk", None, bulk=bulk, **BULK)
    assert found["interactive_items"] > 0
    assert found["items"] >= 3
    assert found["p99_ms"] is not None
