"""What happens around every call: readiness, default deadline, error mapping. A real server on loopback."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from likeness.common.v1 import error_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from structlog.testing import capture_logs

from chassis.call_log import Outcome
from chassis.calls import Calls
from chassis.errors import LikenessError, from_rpc_error, invalid
from chassis.interceptor import CallInterceptor
from chassis.readiness import LIVE, Readiness

SERVICE = "likeness.embedder.v1.EmbedderService"
Answer = Callable[[], Awaitable[embedder_pb2.GetModelResponse]]


class Servicer(embedder_pb2_grpc.EmbedderServiceServicer):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.writes = asyncio.Event()

    async def GetModel(self, request: Any, context: Any) -> embedder_pb2.GetModelResponse:  # noqa: N802
        return await self._answer()

    async def Embed(self, request: Any, context: Any) -> embedder_pb2.EmbedResponse:  # noqa: N802
        raise NotImplementedError

    async def EmbedStream(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        large = embedder_pb2.EmbedStreamResponse()
        large.result.result.vector.f32 = bytes(2**25)  # more than is under way while nobody reads
        self.writes.set()
        await context.write(large)


@asynccontextmanager
async def serving(
    answer: Answer, *, ready: bool = True, default_deadline_s: float = 30
) -> AsyncIterator[tuple[grpc.aio.Channel, Readiness]]:
    readiness = Readiness(SERVICE)
    await readiness.set(ready, "test")
    server = grpc.aio.server(interceptors=[CallInterceptor(Calls(readiness, default_deadline_s=default_deadline_s))])
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(Servicer(answer), server)
    health_pb2_grpc.add_HealthServicer_to_server(readiness.health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel, readiness
    await server.stop(0)


async def failure(channel: grpc.aio.Channel, timeout_s: float | None = None) -> grpc.aio.AioRpcError:
    stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetModel(embedder_pb2.GetModelRequest(), timeout=timeout_s)
    return caught.value


async def test_a_service_can_turn_a_call_away_before_its_request_has_come() -> None:
    told: list[Outcome] = []

    def turn_away(method: str, _metadata: Any) -> None:
        if method.endswith("/Embed"):
            raise LikenessError(error_pb2.REASON_OVERLOADED, "no room", retry_after_s=0.25)

    readiness = Readiness(SERVICE)
    await readiness.set(True, "test")
    calls = Calls(readiness, turn_away=turn_away, observe=told.append)
    server = grpc.aio.server(interceptors=[CallInterceptor(calls)])
    answer = raising(AssertionError("GetModel is answered"))
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(Servicer(answer), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.stream_unary(f"/{SERVICE}/Embed")()  # sends nothing
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(await call.trailing_metadata())["grpc-retry-pushback-ms"] == "250"
        assert (await failure(channel)).code() is grpc.StatusCode.INTERNAL
    await server.stop(0)
    assert [(each.method.rpartition("/")[2], each.admitted, each.reason) for each in told] == [
        ("Embed", False, "OVERLOADED"),
        ("GetModel", True, "INTERNAL"),
    ]


def raising(error: Exception) -> Answer:
    async def answer() -> embedder_pb2.GetModelResponse:
        raise error

    return answer


async def test_what_was_waited_for_already_is_not_to_be_tried_again_at_once() -> None:
    async with serving(raising(LikenessError(error_pb2.REASON_EMBEDDER_UNAVAILABLE, "it is away"))) as (channel, _):
        seen = await failure(channel)
    assert ("grpc-retry-pushback-ms", "-1") in tuple(seen.trailing_metadata())


async def test_an_error_arrives_with_code_reason_violations_and_pushback() -> None:
    error = LikenessError(error_pb2.REASON_OVERLOADED, "the queue is full", retry_after_s=0.25)
    async with serving(raising(error)) as (channel, _):
        seen = await failure(channel)

    assert seen.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("grpc-retry-pushback-ms", "250") in tuple(seen.trailing_metadata())
    back = from_rpc_error(seen, error_pb2.REASON_EMBEDDER_UNAVAILABLE, "the embedder")
    assert (back.reason, back.message, back.retry_after_s) == (error.reason, "the queue is full", 0.25)


async def test_a_bad_field_arrives_as_a_bad_request_violation() -> None:
    async with serving(raising(invalid("inputs[2].text", "is empty"))) as (channel, _):
        seen = await failure(channel)

    status = rpc_status.from_call(seen)  # type: ignore[arg-type]
    assert status is not None
    request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(request) for detail in status.details)
    assert request.field_violations[0].field == "inputs[2].text"


async def test_a_fault_of_ours_shows_an_incident_and_no_cause() -> None:
    async with serving(raising(ZeroDivisionError("secret detail"))) as (channel, _):
        seen = await failure(channel)

    assert seen.code() is grpc.StatusCode.INTERNAL
    assert "incident" in (seen.details() or "")
    assert "secret" not in str(seen.trailing_metadata()) + (seen.details() or "")


class Panic(BaseException):
    """As of a library in Rust."""


async def in_a_group(error: BaseException) -> None:
    async def fail() -> None:
        raise error

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fail())


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_fault_that_is_no_exception_is_ours_too_and_told(grouped: bool) -> None:
    async def answer() -> embedder_pb2.GetModelResponse:
        if grouped:
            await in_a_group(Panic("secret detail"))
        raise Panic("secret detail")

    async with serving(answer) as (channel, _):
        seen = await failure(channel, timeout_s=30)
    assert seen.code() is grpc.StatusCode.INTERNAL
    assert "incident" in (seen.details() or "")


@pytest.mark.parametrize(
    "end",
    [
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        SystemExit(),
        BaseExceptionGroup("both", [Panic(), BaseExceptionGroup("nested", [KeyboardInterrupt()])]),
    ],
)
async def test_what_ends_the_process_or_the_task_passes_through_a_call(end: BaseException) -> None:
    readiness = Readiness(SERVICE)
    await readiness.set(True, "test")
    call = Calls(readiness).admit(f"/{SERVICE}/GetModel", (), "grpc")
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        async with call.under_way(None):
            raise end
    assert caught.value is end


async def test_what_still_runs_after_a_call_s_end_does_not_ask_who_made_it() -> None:
    # gRPC would answer with a segmentation fault.
    readiness = Readiness(SERVICE)
    await readiness.set(True, "test")
    call = Calls(readiness).admit(f"/{SERVICE}/GetModel", (), "grpc")
    asked: list[str] = []

    def peer() -> str:
        asked.append("peer")
        return "ipv4:127.0.0.1:1"

    async with call.under_way(None):
        call.peer = peer
    call.touch({"collection": "answered"})
    call.end()
    call.touch({"collection": "ended"})
    assert not asked


@asynccontextmanager
async def serving_stream(stream: Callable[[Any, Any], Awaitable[None]]) -> AsyncIterator[Any]:
    """Yields one call of it."""
    readiness = Readiness(SERVICE)
    await readiness.set(True, "test")
    server = grpc.aio.server(interceptors=[CallInterceptor(Calls(readiness))])
    handler: Any = grpc.stream_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"Stream": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    most = [("grpc.max_receive_message_length", -1)]
    async with asyncio.timeout(60), grpc.aio.insecure_channel(f"127.0.0.1:{port}", most) as channel:
        yield channel.stream_stream(f"/{SERVICE}/Stream")()
    await server.stop(0)


async def test_a_message_behind_one_that_was_cut_off_is_a_fault_and_the_client_is_told() -> None:
    cut = asyncio.Event()

    async def stream(requests: Any, context: Any) -> None:
        await context.write(b"a message")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await context.write(bytes(2**25))  # more than is under way while nobody reads
        cut.set()
        await context.write(b"a message")

    async with serving_stream(stream) as call:
        assert await call.read() == b"a message"
        await cut.wait()
        assert await call.read() == bytes(2**25)
        assert await call.code() is grpc.StatusCode.INTERNAL


async def test_a_failure_of_a_call_that_a_handler_makes_is_no_going_of_its_client() -> None:
    async def stream(requests: Any, context: Any) -> None:
        raise grpc.aio.InternalError("of a call to another service")

    async with serving_stream(stream) as call:
        assert await call.code() is grpc.StatusCode.INTERNAL


async def test_a_call_before_the_first_readiness_is_refused_as_not_ready() -> None:
    async with serving(raising(AssertionError("reached")), ready=False) as (channel, _):
        seen = await failure(channel)

    assert seen.code() is grpc.StatusCode.UNAVAILABLE
    assert from_rpc_error(seen, error_pb2.REASON_UNSPECIFIED, "").reason == error_pb2.REASON_NOT_READY


async def test_a_request_that_is_no_message_is_refused_as_bad_input() -> None:
    async with serving(raising(AssertionError("reached"))) as (channel, _):
        call: Any = channel.unary_unary(f"/{SERVICE}/GetModel")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff\xff\xff", timeout=10)

    assert from_rpc_error(caught.value, error_pb2.REASON_UNSPECIFIED, "").reason_name == "FIELD_INVALID"


async def test_of_refusals_for_want_of_room_or_of_a_key_one_a_second_is_logged_and_of_other_failures_all() -> None:
    now = 100.0
    calls = Calls(Readiness(SERVICE), clock=lambda: now)

    def told(code: grpc.StatusCode, reason: str | None, key: str | None = None) -> list[Any]:
        """Of ten such calls, what the lines at INFO say of those that were left out."""
        with capture_logs() as lines:
            for _ in range(10):
                calls.tell(Outcome(f"/{SERVICE}/Embed", "grpc", False, code, reason, 0.001, key))
        assert len(lines) == 10
        return [line.get("unlogged") for line in lines if line["log_level"] == "info"]

    full = grpc.StatusCode.RESOURCE_EXHAUSTED
    for reason, key in (("OVERLOADED", None), ("RATE_LIMITED", "web"), ("RATE_LIMITED", "batch")):
        assert told(full, reason, key) == [None]
        assert told(full, reason, key) == []
    strange, forbidden = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
    assert [told(strange, reason) for reason in ("KEY_MISSING", "KEY_INVALID")] == [[None], [None]]
    assert [told(forbidden, "SCOPE_MISSING", key) for key in ("web", "batch")] == [[None], [None]]
    now += 1
    assert told(full, "OVERLOADED") == [19]
    assert [told(strange, reason) for reason in ("KEY_MISSING", "KEY_INVALID")] == [[9], [9]]
    assert told(forbidden, "SCOPE_MISSING", "web") == [9]
    assert told(full, "STORE_FULL") == [None] * 10
    assert told(grpc.StatusCode.OK, None) == []


async def test_a_call_without_a_deadline_gets_the_default_one() -> None:
    async def forever() -> embedder_pb2.GetModelResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(forever, default_deadline_s=0.05) as (channel, _):
        seen = await failure(channel)

    assert seen.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "default deadline" in (seen.details() or "")


async def test_the_handler_of_a_call_whose_deadline_passed_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def forever() -> embedder_pb2.GetModelResponse:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    async with serving(forever) as (channel, _):
        seen = await failure(channel, timeout_s=0.1)
        await asyncio.wait_for(cancelled.wait(), 5)

    assert seen.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_client_that_goes_while_a_message_is_sent_to_it_is_no_fault_of_ours() -> None:
    ended: asyncio.Queue[Outcome] = asyncio.Queue()
    servicer, readiness = Servicer(raising(AssertionError("not asked"))), Readiness(SERVICE)
    await readiness.set(True, "test")
    server = grpc.aio.server(interceptors=[CallInterceptor(Calls(readiness, observe=ended.put_nowait))])
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        with capture_logs() as lines:  # a failure would be written out with the whole message
            for _ in range(10):  # whether the message that failed or the cancellation is told first is chance
                servicer.writes.clear()
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as own:
                    call = embedder_pb2_grpc.EmbedderServiceStub(own).EmbedStream()
                    await servicer.writes.wait()
                    await call.initial_metadata()  # so the message is under way, of which nothing more is read
                async with asyncio.timeout(30):
                    outcome = await ended.get()
                assert (outcome.code, outcome.reason) == (grpc.StatusCode.CANCELLED, None)
        assert not [line for line in lines if "incident" in line]
    finally:
        await server.stop(0)


async def test_a_server_that_is_not_there_is_named_with_its_address() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        back = from_rpc_error(
            await failure(channel, timeout_s=5), error_pb2.REASON_EMBEDDER_UNAVAILABLE, "the embedder at 127.0.0.1:1"
        )

    assert back.reason == error_pb2.REASON_EMBEDDER_UNAVAILABLE
    assert "127.0.0.1:1" in back.message


async def test_health_follows_readiness_by_name_and_stays_down_after_stopping() -> None:
    async def state(channel: grpc.aio.Channel, service: str) -> int:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))  # type: ignore[attr-defined]
        return int(answer.status)

    async with serving(raising(AssertionError())) as (channel, readiness):
        up = [await state(channel, name) for name in ("", SERVICE)]
        await readiness.set(False, "test")
        down = [await state(channel, name) for name in ("", SERVICE)]
        await readiness.set(True, "test")
        await readiness.leave()
        await readiness.set(True, "too late")
        leaving = [await state(channel, name) for name in ("", SERVICE)]
        told = (readiness.serving, readiness.why)
        await readiness.stop()
        await readiness.set(True, "too late")
        stopped = [await state(channel, name) for name in ("", SERVICE)]

    serving_, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert (up, down, leaving, stopped) == ([serving_] * 2, *[[not_serving] * 2] * 3)
    assert told == (False, "stopping")


async def test_the_process_is_live_whatever_the_service_is_and_watchers_see_their_own_name_alone() -> None:
    serves, serves_not = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    asked = {name: health_pb2.HealthCheckRequest(service=name) for name in (LIVE, SERVICE, "alive")}
    async with serving(raising(AssertionError()), ready=False) as (channel, readiness):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        live, service = stub.Watch(asked[LIVE]), stub.Watch(asked[SERVICE])
        assert (await live.read()).status == serves
        assert (await service.read()).status == serves_not
        for ready in (True, False, True):
            await readiness.set(ready, "test")
            assert (await service.read()).status == (serves if ready else serves_not)
            assert (await stub.Check(asked[LIVE])).status == serves
        await readiness.leave()
        assert (await service.read()).status == serves_not
        assert (await stub.Check(asked[LIVE])).status == serves
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(asked["alive"])
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await readiness.stop()
        assert await live.read() is grpc.aio.EOF
        assert await service.read() is grpc.aio.EOF


@pytest.mark.parametrize(("sent_s", "told"), [(None, "30000"), (5, None), (10_000, "3600000")])
async def test_a_deadline_that_the_caller_did_not_ask_for_is_told_behind_the_answer(
    sent_s: float | None, told: str | None
) -> None:
    async def answer() -> embedder_pb2.GetModelResponse:
        return embedder_pb2.GetModelResponse()

    async with serving(answer) as (channel, _):
        call: Any = embedder_pb2_grpc.EmbedderServiceStub(channel).GetModel(
            embedder_pb2.GetModelRequest(), timeout=sent_s
        )
        await call
        answered = dict(await call.trailing_metadata()).get("likeness-deadline-ms")
    async with serving(raising(invalid("inputs", "is empty"))) as (channel, _):
        failed = dict((await failure(channel, sent_s)).trailing_metadata()).get("likeness-deadline-ms")
    assert (answered, failed) == (told, told)
