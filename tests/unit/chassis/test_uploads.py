"""What happens around a stream with one answer, as around every call. A real server on loopback."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from chassis.calls import Calls
from chassis.errors import LikenessError, from_rpc_error
from chassis.interceptor import CallInterceptor
from chassis.readiness import Readiness

SERVICE = "likeness.indexer.v1.IndexerService"
Part = indexer_pb2.UpsertItemsStreamRequest
Answer = indexer_pb2.UpsertItemsStreamResponse
Handler = Callable[[AsyncIterator[Part]], Awaitable[Answer]]


class Servicer(indexer_pb2_grpc.IndexerServiceServicer):
    """Serves one rpc."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def UpsertItemsStream(self, requests: Any, context: Any) -> Answer:  # noqa: N802
        return await self._handler(requests)


@asynccontextmanager
async def serving(handler: Handler, *, ready: bool = True) -> AsyncIterator[grpc.aio.Channel]:
    readiness = Readiness(SERVICE)
    await readiness.set(ready, "test")
    # A default deadline that a stream would exceed, were it given one.
    server = grpc.aio.server(interceptors=[CallInterceptor(Calls(readiness, default_deadline_s=0.01))])
    indexer_pb2_grpc.add_IndexerServiceServicer_to_server(Servicer(handler), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


async def counting(requests: AsyncIterator[Part]) -> Answer:
    return Answer(stored=len([request async for request in requests]))


async def unreached(requests: AsyncIterator[Part]) -> Answer:
    raise AssertionError


async def failure(channel: grpc.aio.Channel, parts: list[Part], timeout_s: float | None = 10) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await indexer_pb2_grpc.IndexerServiceStub(channel).UpsertItemsStream(iter(parts), timeout=timeout_s)
    return caught.value


def reason(error: grpc.aio.AioRpcError) -> str:
    return from_rpc_error(error, error_pb2.REASON_UNSPECIFIED, "").reason_name


async def test_all_parts_arrive_and_one_answer_goes_back_whatever_the_default_deadline() -> None:
    async def slow() -> AsyncIterator[Part]:
        yield Part(collection="a")
        await asyncio.sleep(0.05)
        yield Part(collection="b")

    async with serving(counting) as channel:
        answer = await indexer_pb2_grpc.IndexerServiceStub(channel).UpsertItemsStream(slow())
    assert answer.stored == 2


async def test_a_failure_arrives_with_its_reason() -> None:
    async def failing(requests: AsyncIterator[Part]) -> Answer:
        await anext(requests)
        raise LikenessError(error_pb2.REASON_STORE_FULL, "the disk is full")

    async with serving(failing) as channel:
        seen = await failure(channel, [Part(), Part()])
    assert seen.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(seen) == "STORE_FULL"


async def test_a_fault_of_ours_shows_no_cause() -> None:
    async def faulty(requests: AsyncIterator[Part]) -> Answer:
        raise ZeroDivisionError("secret detail")

    async with serving(faulty) as channel:
        seen = await failure(channel, [])
    assert reason(seen) == "INTERNAL"
    assert "secret" not in (seen.details() or "")


async def test_a_stream_before_the_first_readiness_is_refused_as_not_ready() -> None:
    async with serving(unreached, ready=False) as channel:
        assert reason(await failure(channel, [Part()])) == "NOT_READY"


async def test_a_part_that_is_no_message_is_refused_as_bad_input() -> None:
    async with serving(counting) as channel:
        call: Any = channel.stream_unary(f"/{SERVICE}/UpsertItemsStream")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(iter([b"", b"\xff\xff\xff"]), timeout=10)
    assert reason(caught.value) == "FIELD_INVALID"


async def test_a_client_s_deadline_ends_the_handler() -> None:
    cancelled = asyncio.Event()

    async def forever(requests: AsyncIterator[Part]) -> Answer:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    async with serving(forever) as channel:
        seen = await failure(channel, [Part()], timeout_s=0.1)
        await asyncio.wait_for(cancelled.wait(), 5)
    assert seen.code() is grpc.StatusCode.DEADLINE_EXCEEDED
