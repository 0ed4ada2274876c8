"""gRPC's side of ``chassis.calls``: what is done around every call, for every rpc alike."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from likeness.common.v1 import error_pb2

from chassis.call_log import Outcome
from chassis.calls import DEADLINE_APPLIED, Call, Calls
from chassis.errors import LikenessError, invalid, to_status
from chassis.guard import Metadata
from chassis.trace import TRACE_ID

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Any], Awaitable[Any]]

HEALTH = "/grpc.health.v1.Health/"
# Streams that watch the health, and as many of reflection, open at once: gRPC counts them as it does calls, and nobody
# needs a key to watch. A gateway holds one for each connection to a reader, or to an embedder (16, unless told).
STREAMS_BESIDE = 10_000
# What this service has waited for already, as long as it may: gRPC's own retries would have it wait as long again.
_RIDDEN_OUT = frozenset({error_pb2.REASON_EMBEDDER_UNAVAILABLE, error_pb2.REASON_INDEXER_UNAVAILABLE})
# How long the request of a health check may take to come, in seconds.
CHECK_S = 5.0


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of the ``likeness.*`` services, and bounds what health and reflection may hold.

    Every rpc is answered as one that takes a stream of requests. Of an rpc that takes one request gRPC would read it
    before the handler is reached, however long it takes to come, and neither deadline nor revocation would apply.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._beside = Counter[str]()  # streams of health and of reflection that are open, by method

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Admits or refuses the call, of which only method and metadata have been read; returns its wrapped handler."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        if not method.startswith("/likeness."):
            return self._beside_calls(handler, method, handler_call_details.invocation_metadata)
        try:
            call = self._calls.admit(method, handler_call_details.invocation_metadata, "grpc")
        except LikenessError as error:
            return _refusal(error)
        # gRPC answers a call in the task that asks here, whose end is the call's: also when its client goes away
        # before the handler is reached.
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _task: call.end())
        return _answering(call, handler, self._calls.default_deadline_s)

    def _beside_calls(self, handler: Any, method: str, metadata: Metadata) -> Any:
        """Health and reflection take no place among the calls: they answer when there is none."""
        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(
                _check(handler.unary_unary), _tolerant(handler.request_deserializer), handler.response_serializer
            )
        try:
            if self._calls.guard is not None and not method.startswith(HEALTH):
                self._calls.guard.caller(metadata)
            if self._beside[method] >= STREAMS_BESIDE:
                message = f"{STREAMS_BESIDE} such streams are open, as many as there may be"
                raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=10.0)
        except LikenessError as error:
            self._calls.tell(Outcome(method, "grpc", False, error.code, error.reason_name, 0.0, None))
            return _refusal(error)
        task = asyncio.current_task()
        assert task is not None
        self._beside[method] += 1
        task.add_done_callback(lambda _task: self._beside.subtract([method]))
        return handler


def _answering(call: Call, handler: Any, within_s: float) -> Any:
    """The handler, wrapped, as one that takes a stream of requests.

    Args:
        call: what it answers.
        handler: of an rpc of any kind.
        within_s: how long the one request may take to come, where there is one, in seconds.
    """
    read = _tolerant(handler.request_deserializer)
    if handler.response_streaming:
        taking_one = handler.unary_stream and _download(call, handler.unary_stream, within_s)
        answer = taking_one or _stream(call, handler.stream_stream)
        return grpc.stream_stream_rpc_method_handler(answer, read, handler.response_serializer)
    taking_one = handler.unary_unary and _unary(call, handler.unary_unary, within_s)
    answer = taking_one or _stream(call, handler.stream_unary)
    return grpc.stream_unary_rpc_method_handler(answer, read, handler.response_serializer)


def _check(handler: Handler) -> Handler:
    async def answer(_requests: Any, context: Context) -> Any:
        try:
            request = await _request(context, CHECK_S)
        except LikenessError as error:
            await _abort(context, error)
        return await handler(request, context)

    return answer


def _unary(call: Call, handler: Handler, within_s: float) -> Handler:
    async def answer(_requests: Any, context: Context) -> Any:
        try:
            async with call.under_way(context.time_remaining()):
                call.peer = context.peer
                _tell(context, call)
                request = await _request(context, within_s)
                call.received(request)
                return await handler(request, context)
        except LikenessError as error:
            await _abort(context, error, call)

    return answer


# Handlers of streams are coroutines that write through their context, not async generators: a cancelled call then
# unwinds in its own task, where a generator would be closed later by the garbage collector.
def _download(call: Call, handler: Handler, within_s: float) -> Handler:
    async def answer(_requests: Any, context: Context) -> None:
        sending = _Sending(context)
        try:
            async with call.under_way(context.time_remaining(), stream=True):
                call.peer = context.peer
                _tell(context, call)
                request = await _request(context, within_s)
                call.received(request)
                await _until_gone(handler(request, sending))
        except LikenessError as error:
            await sending.begun()
            await _abort(context, error, call)

    return answer


def _stream(call: Call, handler: Handler) -> Handler:
    async def answer(requests: Any, context: Context) -> Any:
        sending = _Sending(context)
        try:
            async with call.under_way(context.time_remaining(), stream=True):
                call.peer = context.peer
                _tell(context, call)
                return await _until_gone(handler(_readable_each(requests), sending))
        except LikenessError as error:
            await sending.begun()
            await _abort(context, error, call)

    return answer


class _Sending:
    """What the handler of a stream has of its context: its first message goes out whole, also if it is cut off then.

    gRPC sends the head of an answer along with its first message, and takes note of it only afterwards. Cut off in
    between, it would send the head again with the status, which fails, and the client would wait for ever.
    """

    def __init__(self, context: Context) -> None:
        self.time_remaining = context.time_remaining
        self._write = context.write
        self._first: asyncio.Future[None] | None = None

    async def write(self, message: Any, /) -> None:
        if self._first is not None:
            return await self._write(message)
        self._first = asyncio.ensure_future(self._write(message))
        return await asyncio.shield(self._first)

    async def begun(self) -> None:
        """Returns when a status may be sent."""
        if self._first is not None:
            await asyncio.wait([self._first])


async def _until_gone(answering: Awaitable[Any]) -> Any:
    """What a handler of a stream gives. A message that cannot be sent any more is the client's going, told early."""
    try:
        return await answering
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError from error
    except ExceptionGroup as group:  # of a handler that writes beside its tasks
        if group.split(grpc.aio.InternalError)[1] is not None:
            raise
        raise asyncio.CancelledError from group


async def _request(context: Context, within_s: float) -> Any:
    """The request of an rpc that takes one.

    Args:
        context: the call's.
        within_s: how long it may take to come, in seconds, whatever deadline its caller has set.

    Raises:
        LikenessError: DEADLINE_EXCEEDED, FIELD_INVALID.
    """
    try:
        async with asyncio.timeout(within_s):
            request = await context.read()
    except TimeoutError:
        message = f"the request has not come within {within_s:g} s"
        raise LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, message) from None
    if request is grpc.aio.EOF:
        try:
            await _abort(context, invalid("request", "is missing: the call was closed without one"))
        except grpc.aio.InternalError:  # the client has gone away, which looks the same
            raise asyncio.CancelledError from None
    return _readable(request)


def _refusal(error: LikenessError) -> Any:
    """A handler that reads nothing of the request, whatever the rpc's kind."""

    async def refuse(_requests: Any, context: Context) -> None:
        await _abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)


async def _abort(context: Context, error: LikenessError, call: Call | None = None) -> None:
    status = to_status(error)
    trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
    if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_after_s is not None:
        trailers.append(("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1000))))
    elif error.reason in _RIDDEN_OUT:
        trailers.append(("grpc-retry-pushback-ms", "-1"))
    if error.trace_id is not None:
        trailers.append((TRACE_ID, error.trace_id))
    if call is not None and call.deadline_ms is not None:
        trailers.append((DEADLINE_APPLIED, str(call.deadline_ms)))
    await context.abort(error.code, status.message, tuple(trailers))


def _tell(context: Context, call: Call) -> None:
    """What its caller cannot know of a call goes behind the answer: before it, it would end gRPC's own retries.

    Who brought a trace knows its id. Trailers cost some 15 µs of an answer's 400.
    """
    told = [] if call.trace.parent_id is not None else [(TRACE_ID, call.trace.id)]
    if call.deadline_ms is not None:
        told.append((DEADLINE_APPLIED, str(call.deadline_ms)))
    if told:
        context.set_trailing_metadata(tuple(told))


class _Unreadable:
    """Stands for a request that is no message of its type, so that it is refused as bad input, not as a fault."""


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(encoded: bytes) -> Any:
        try:
            return deserialize(encoded)
        except DecodeError:
            return _Unreadable()

    return read


def _readable(request: Any) -> Any:
    if isinstance(request, _Unreadable):
        raise invalid("request", "cannot be read: no message of this rpc's type, cut, or nested too deeply")
    return request


async def _readable_each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _readable(request)
