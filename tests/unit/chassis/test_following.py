"""A call's trace: in its answer, whether it succeeds or not, in its line of the log, and for what its handler does."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from likeness.common.v1 import error_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from structlog.testing import capture_logs

from chassis import trace
from chassis.call_log import Outcome
from chassis.calls import Calls
from chassis.errors import LikenessError, from_rpc_error, to_item_error
from chassis.interceptor import CallInterceptor
from chassis.readiness import Readiness
from chassis.trace import TRACE_ID

SERVICE = "likeness.embedder.v1.EmbedderService"
ID, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = (("traceparent", f"00-{ID}-{PARENT}-01"),)
FULL = LikenessError(error_pb2.REASON_OVERLOADED, "no room", retry_after_s=1.0)
GET, EMBED = embedder_pb2.GetModelRequest(), embedder_pb2.EmbedRequest()


class Servicer(embedder_pb2_grpc.EmbedderServiceServicer):
    """Writes down whose trace it works for."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.seen: list[trace.Trace | None] = []

    async def GetModel(self, request: Any, context: Any) -> embedder_pb2.GetModelResponse:  # noqa: N802
        self._work()
        return embedder_pb2.GetModelResponse()

    async def Embed(self, request: Any, context: Any) -> embedder_pb2.EmbedResponse:  # noqa: N802
        raise AssertionError("is turned away")

    async def EmbedStream(self, requests: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        async for _ in requests:
            self._work()
            await context.write(embedder_pb2.EmbedStreamResponse())

    def _work(self) -> None:
        self.seen.append(trace.current())
        if self.failure is not None:
            raise self.failure


class Running:
    """A server, what its servicer saw, and how its calls ended."""

    def __init__(self) -> None:
        self.servicer = Servicer()
        self.outcomes: list[Outcome] = []


def _turn_away(method: str, _metadata: Any) -> None:
    if method.endswith("/Embed"):
        raise FULL


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Running, Any]]:
    running, readiness = Running(), Readiness(SERVICE)
    await readiness.set(True, "test")
    calls = Calls(readiness, turn_away=_turn_away, observe=running.outcomes.append)
    server = grpc.aio.server(interceptors=[CallInterceptor(calls)])
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(running.servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield running, embedder_pb2_grpc.EmbedderServiceStub(channel)
    await server.stop(5)  # the ends of calls are told


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def told(trailers: Any) -> list[str]:
    return [value for name, value in trailers if name == TRACE_ID]


def in_details(error: grpc.aio.AioRpcError) -> dict[str, str]:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return dict(info.metadata)


async def test_the_handler_works_for_the_trace_that_came_whose_id_its_caller_need_not_be_told() -> None:
    async with serving() as (running, stub):
        call = stub.GetModel(GET, metadata=SENT, timeout=5)
        await call
        assert tuple(await call.trailing_metadata()) == ()
        within_default = stub.GetModel(GET, metadata=SENT)
        await within_default
        assert [name for name, _ in await within_default.trailing_metadata()] == ["likeness-deadline-ms"]
    assert [seen and (seen.id, seen.parent_id) for seen in running.servicer.seen] == [(ID, PARENT)] * 2
    assert trace.current() is None


@pytest.mark.parametrize("sent", [(), (("traceparent", "nonsense"),)])
async def test_an_answer_to_a_call_that_brought_none_tells_a_new_id(sent: Any) -> None:
    async with serving() as (running, stub):
        ids = []
        for _ in range(2):
            call = stub.GetModel(GET, metadata=sent)
            await call
            ids += told(await call.trailing_metadata())
            assert tuple(await call.initial_metadata()) == ()  # it would end gRPC's own retries
    assert len(set(ids)) == 2
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in ids)
    assert [seen.id for seen in running.servicer.seen if seen is not None] == ids


@pytest.mark.parametrize("why", [LikenessError(error_pb2.REASON_NOT_READY, "wait"), ZeroDivisionError("secret")])
async def test_a_failure_tells_the_id_behind_it_and_in_its_details(why: Exception) -> None:
    async with serving() as (running, stub):
        running.servicer.failure = why
        error = await failure(stub.GetModel(GET, metadata=SENT))
    assert told(error.trailing_metadata()) == [ID]
    assert in_details(error) == {"traceId": ID}
    # Neither does the error that the handler raised know it now, which it may raise to others too, nor an item's.
    back = from_rpc_error(error, error_pb2.REASON_UNSPECIFIED, "")
    assert (getattr(why, "trace_id", None), back.trace_id) == (None, None)
    assert ID not in str(to_item_error(back))


async def test_a_refusal_tells_it_too() -> None:
    async with serving() as (_, stub):
        with capture_logs() as lines:
            error = await failure(stub.Embed(EMBED, metadata=SENT))
    assert told(error.trailing_metadata()) == [ID]
    assert in_details(error) == {"traceId": ID}
    assert [line["trace_id"] for line in lines if line["event"] == "call"] == [ID]


async def test_a_stream_has_one_id_for_all_that_comes_of_it() -> None:
    async def requests() -> AsyncIterator[embedder_pb2.EmbedStreamRequest]:
        for _ in range(3):
            yield embedder_pb2.EmbedStreamRequest()

    async with serving() as (running, stub):
        call = stub.EmbedStream(requests(), metadata=SENT)
        assert len([answer async for answer in call]) == 3
        call = stub.EmbedStream(requests())
        assert len([answer async for answer in call]) == 3
        (new,) = told(await call.trailing_metadata())
        running.servicer.failure = LikenessError(error_pb2.REASON_NOT_READY, "wait")
        broken = stub.EmbedStream(metadata=SENT)
        await broken.write(embedder_pb2.EmbedStreamRequest())  # grpcio may tell who goes on writing another code
        assert await broken.code() is grpc.StatusCode.UNAVAILABLE
        assert told(await broken.trailing_metadata()) == [ID]
    assert [seen and seen.id for seen in running.servicer.seen] == [*[ID] * 3, *[new] * 3, ID]


async def test_the_line_of_a_call_has_its_place_in_the_trace() -> None:
    with capture_logs() as lines:
        async with serving() as (running, stub):
            running.servicer.failure = LikenessError(error_pb2.REASON_NOT_READY, "wait")  # so it is at INFO
            await failure(stub.GetModel(GET, metadata=SENT))
            await failure(stub.GetModel(GET))
    followed, new = (line for line in lines if line["event"] == "call")
    seen = running.servicer.seen[0]
    assert seen is not None
    assert (followed["trace_id"], followed["span_id"], followed["parent_id"]) == (ID, seen.span_id, PARENT)
    assert "parent_id" not in new
    assert new["span_id"] != followed["span_id"]
    assert [outcome.trace and outcome.trace.id for outcome in running.outcomes] == [ID, new["trace_id"]]


async def test_a_fault_s_line_carries_the_incident_and_the_trace() -> None:
    with capture_logs(processors=[trace.in_log]) as lines:
        async with serving() as (running, stub):
            running.servicer.failure = ZeroDivisionError()
            error = await failure(stub.GetModel(GET, metadata=SENT))
    (fault,) = [line for line in lines if line["log_level"] == "error"]
    assert fault["trace_id"] == ID
    assert fault["incident"] != ID
    assert fault["incident"] in (error.details() or "")


async def test_a_fault_outside_of_the_answering_carries_it_too() -> None:
    calls = Calls(Readiness(SERVICE))
    call = calls.admit(f"/{SERVICE}/Embed", SENT, "http")
    with capture_logs(processors=[trace.in_log]) as lines:
        failed = call.failed(ZeroDivisionError())
    assert [line["trace_id"] for line in lines] == [ID]
    assert failed.trace_id == ID
    assert trace.current() is None
