"""gRPC's side of ``chassis.calls``: what is done around every call, for every rpc alike."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from chassis import wire
from chassis.beside import Beside
from chassis.calls import DEADLINE_APPLIED, Call, Calls
from chassis.errors import LikenessError
from chassis.trace import TRACE_ID
from chassis.wire import Context, Handler, Sending

Reply = Callable[[Context, Sending], Awaitable[Any]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of the ``likeness.*`` services, and leaves health and reflection to ``chassis.beside``.

    Every rpc is answered as one that takes a stream of requests. Of an rpc that takes one request gRPC would read it
    before the handler is reached, however long it takes to come, and neither deadline nor revocation would apply.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._beside = Beside(calls)

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
            return self._beside.handler(handler, method, handler_call_details.invocation_metadata)
        try:
            call = self._calls.admit(method, handler_call_details.invocation_metadata, "grpc")
        except LikenessError as error:
            return wire.refusal(error)
        # gRPC answers a call in the task that asks here, whose end is the call's: also when its client goes away
        # before the handler is reached.
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _task: call.end())
        return _answering(call, handler, self._calls.default_deadline_s)


def _answering(call: Call, handler: Any, within_s: float) -> Any:
    """The handler, wrapped, as one that takes a stream of requests.

    Args:
        call: what it answers.
        handler: of an rpc of any kind.
        within_s: how long the one request may take to come, where there is one, in seconds.
    """
    if handler.unary_unary:
        reply = _unary(call, handler.unary_unary, within_s)
    elif handler.unary_stream:
        reply = _download(call, handler.unary_stream, within_s)
    else:
        reply = _stream(call, handler.stream_stream or handler.stream_unary)

    async def answer(_requests: Any, context: Context) -> Any:
        sending = Sending(context)
        try:
            return await reply(context, sending)
        except LikenessError as error:
            failure = wire.bare(error)
        try:
            await sending.begun()
            return await wire.fail(context, failure, *_told(call))
        except asyncio.CancelledError:
            call.unheard()
            raise

    read, write = wire.tolerant(handler.request_deserializer), handler.response_serializer
    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(answer, read, write)
    return grpc.stream_unary_rpc_method_handler(answer, read, write)


def _unary(call: Call, handler: Handler, within_s: float) -> Reply:
    async def reply(context: Context, _sending: Sending) -> Any:
        async with call.under_way(context.time_remaining()):
            request = await _received(call, context, within_s)
            return await handler(request, context)

    return reply


# Handlers of streams are coroutines that write through their context, not async generators: a cancelled call then
# unwinds in its own task, where a generator would be closed later by the garbage collector.
def _download(call: Call, handler: Handler, within_s: float) -> Reply:
    async def reply(context: Context, sending: Sending) -> None:
        async with call.under_way(context.time_remaining(), stream=True):
            request = await _received(call, context, within_s)
            await wire.until_gone(handler(request, sending))

    return reply


def _stream(call: Call, handler: Handler) -> Reply:
    async def reply(context: Context, sending: Sending) -> Any:
        async with call.under_way(context.time_remaining(), stream=True):
            _begin(call, context)
            return await wire.until_gone(handler(wire.Requests(context.read), sending))

    return reply


async def _received(call: Call, context: Context, within_s: float) -> Any:
    _begin(call, context)
    request = await wire.request(context.read, within_s)
    if request is grpc.aio.EOF:
        call.unasked = True
        raise wire.missing()
    call.received(request)
    return request


def _begin(call: Call, context: Context) -> None:
    """What its caller cannot know of a call goes behind the answer: before it, it would end gRPC's own retries.

    Who brought a trace knows its id. Trailers cost some 15 µs of an answer's 400.
    """
    call.peer = context.peer
    told = [] if call.trace.parent_id is not None else [(TRACE_ID, call.trace.id)]
    told += _told(call)
    if told:
        context.set_trailing_metadata(tuple(told))


def _told(call: Call) -> list[tuple[str, str]]:
    return [] if call.deadline_ms is None else [(DEADLINE_APPLIED, str(call.deadline_ms))]
