"""EmbedStream over a real connection, behind the interceptor."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc

from chassis.calls import Calls
from chassis.interceptor import CallInterceptor
from chassis.readiness import Readiness
from embedder.stream import EmbedStream
from tests.unit.embedder.streams import Embedder, Request, Response, serving, settled, undecided


class Servicer(embedder_pb2_grpc.EmbedderServiceServicer):
    """As the embedder's own: it hands the stream on."""

    def __init__(self, streams: EmbedStream) -> None:
        self._streams = streams
        self.read: asyncio.Queue[Request] = asyncio.Queue()

    async def EmbedStream(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[Request], context: Any
    ) -> None:
        await self._streams(self._noted(request_iterator), context.write)

    async def _noted(self, requests: AsyncIterator[Request]) -> AsyncIterator[Request]:
        async for request in requests:
            self.read.put_nowait(request)
            yield request


@dataclass
class Running:
    """A real server."""

    address: str
    readiness: Readiness
    server: grpc.aio.Server
    servicer: Servicer


Serve = Callable[[Embedder, int], Awaitable[Running]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a real server; ends it after the test."""
    servers: list[grpc.aio.Server] = []

    async def start(embedder: Embedder, window: int) -> Running:
        readiness = Readiness("likeness.embedder.v1.EmbedderService")
        streams = serving(embedder, window)
        servicer = Servicer(streams)  # type: ignore[abstract]
        readiness.on_stop(streams.stop)
        await readiness.set(True, "test")
        server = grpc.aio.server(interceptors=[CallInterceptor(Calls(readiness, default_deadline_s=60))])
        embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return Running(f"127.0.0.1:{port}", readiness, server, servicer)

    yield start
    for server in servers:
        await server.stop(0)


def numbered(count: int) -> Iterator[Request]:
    for number in range(count):
        yield Request(correlation_id=number, input=embedder_pb2.EmbedInput(text=str(number)))


def stream_to(channel: grpc.aio.Channel, requests: Iterator[Request] | None = None) -> Any:
    return embedder_pb2_grpc.EmbedderServiceStub(channel).EmbedStream(requests)


async def test_everything_is_answered(serve: Serve) -> None:
    running = await serve(Embedder(at_once=True), 8)

    async with grpc.aio.insecure_channel(running.address) as channel:
        answers = [answer async for answer in stream_to(channel, numbered(500))]

    assert answers[0].opened.window == 8
    assert sorted(answer.result.correlation_id for answer in answers[1:]) == list(range(500))


async def test_a_stop_ends_an_idle_stream_with_ok(serve: Serve) -> None:
    running = await serve(Embedder(), 8)

    async with grpc.aio.insecure_channel(running.address) as channel:
        call = stream_to(channel)
        assert (await call.read()).HasField("opened")
        await running.readiness.stop()
        await running.server.stop(30)
        assert (await call.read()).HasField("stopping")
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_stop_under_load_answers_all_that_was_read(serve: Serve) -> None:
    running = await serve(Embedder(at_once=True), 8)
    loop, under_load = asyncio.get_running_loop(), asyncio.Event()

    # Not grpc.aio, whose client makes INTERNAL of an end that comes while it writes (grpc/grpc#36066).
    def client() -> list[Response]:
        answers = []
        with grpc.insecure_channel(running.address) as channel:
            for answer in embedder_pb2_grpc.EmbedderServiceStub(channel).EmbedStream(numbered(100_000)):
                answers.append(answer)
                if len(answers) == 100:
                    loop.call_soon_threadsafe(under_load.set)
        return answers

    answering = asyncio.create_task(asyncio.to_thread(client))
    await under_load.wait()
    await running.readiness.stop()
    answers = await answering

    numbers = [answer.result.correlation_id for answer in answers if answer.HasField("result")]
    assert sum(answer.HasField("stopping") for answer in answers) == 1
    assert len(numbers) == len(set(numbers)) == running.servicer.read.qsize() < 100_000


async def test_a_client_that_vanishes_leaves_nothing_and_no_fault(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[str] = []
    for module in ("chassis.calls", "embedder.stream"):
        monkeypatch.setattr(f"{module}.incident", lambda event, error: faults.append(f"{event}: {error!r}"))
    embedder = Embedder()
    running = await serve(embedder, 4)

    for turn in range(10):
        async with grpc.aio.insecure_channel(running.address) as channel:
            call = stream_to(channel, numbered(20))
            assert (await call.read()).HasField("opened")
            for _ in range(4):
                await running.servicer.read.get()
            if turn % 2:
                call.cancel()
        for text in undecided(embedder):  # some are answered while the client goes
            embedder.answer(text)

    await running.server.stop(None)
    for _ in range(1000):  # which does not wait for the last handler's end
        if not embedder.waiting:
            break
        await asyncio.sleep(0.01)
    assert not embedder.waiting
    assert faults == []


async def test_a_number_sent_twice_is_invalid_argument(serve: Serve) -> None:
    embedder = Embedder()
    running = await serve(embedder, 4)

    async with grpc.aio.insecure_channel(running.address) as channel:
        call = stream_to(channel)
        assert (await call.read()).HasField("opened")
        for text in ("a", "b"):
            await call.write(Request(correlation_id=1, input=embedder_pb2.EmbedInput(text=text)))
            await running.servicer.read.get()
        await settled()
        embedder.answer("a")
        assert (await call.read()).result.correlation_id == 1
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
