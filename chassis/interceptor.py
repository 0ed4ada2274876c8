"""The server interceptor: readiness, default deadline, error mapping and one log line a call, for every rpc alike."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, incident, invalid, to_status
from chassis.readiness import Readiness

log = structlog.get_logger()

# How a client sees what a service that is starting waits for.
ANSWERED_WHILE_STARTING = frozenset({"GetStatus"})

Context = grpc.aio.ServicerContext[Any, Any]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of the ``likeness.*`` services; health and reflection pass untouched."""

    def __init__(self, readiness: Readiness, default_deadline_s: float) -> None:
        self._readiness = readiness
        self._default_deadline_s = default_deadline_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the handler with the wrapping around it."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/likeness."):
            return handler
        read = _tolerant(handler.request_deserializer)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(method, handler.unary_unary), read, handler.response_serializer
            )
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(
                self._upload(method, handler.stream_unary), read, handler.response_serializer
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                self._download(method, handler.unary_stream), read, handler.response_serializer
            )
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(method, handler.stream_stream), read, handler.response_serializer
            )
        raise TypeError(f"{method}: the interceptor knows no handler of this kind")

    def _unary(self, method: str, handler: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        async def call(request: Any, context: Context) -> Any:
            with _Outcome(method) as outcome:
                try:
                    if method.rpartition("/")[2] not in ANSWERED_WHILE_STARTING:
                        self._readiness.require_started()
                    request = _readable(request)
                    if context.time_remaining() is not None:
                        return await handler(request, context)
                    async with asyncio.timeout(self._default_deadline_s):
                        return await handler(request, context)
                except TimeoutError:
                    message = (
                        f"no answer within the default deadline of {self._default_deadline_s:g} s; "
                        "send a deadline with the call"
                    )
                    await outcome.abort(context, LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, message))
                except Exception as error:
                    await outcome.abort(context, error)

        return call

    # Streams have no default deadline: how long they last is for their clients to say.
    def _upload(self, method: str, handler: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        async def call(requests: Any, context: Context) -> Any:
            with _Outcome(method) as outcome:
                try:
                    self._readiness.require_started()
                    return await handler(_readable_each(requests), context)
                except Exception as error:
                    await outcome.abort(context, error)

        return call

    def _download(self, method: str, handler: Callable[[Any, Context], Awaitable[None]]) -> Any:
        async def call(request: Any, context: Context) -> None:
            with _Outcome(method) as outcome:
                try:
                    self._readiness.require_started()
                    await handler(_readable(request), context)
                except Exception as error:
                    await outcome.abort(context, error)

        return call

    def _stream(self, method: str, handler: Callable[[Any, Context], Awaitable[None]]) -> Any:
        # A coroutine that writes through its context, not an async generator: a cancelled call then unwinds in its own
        # task, where a generator would be closed later by the garbage collector.
        async def call(requests: Any, context: Context) -> None:
            with _Outcome(method) as outcome:
                try:
                    self._readiness.require_started()
                    await handler(_readable_each(requests), context)
                except Exception as error:
                    await outcome.abort(context, error)

        return call


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


class _Outcome:
    """How one call went: its log line, and the status that a failure is sent as."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._started = time.perf_counter()
        self._code = grpc.StatusCode.OK
        self._reason: str | None = None

    def __enter__(self) -> "_Outcome":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._code = grpc.StatusCode.CANCELLED
        milliseconds = round((time.perf_counter() - self._started) * 1000, 1)
        write = log.debug if self._code is grpc.StatusCode.OK else log.info
        write("call", method=self._method, code=self._code.name, reason=self._reason, ms=milliseconds)

    async def abort(self, context: Context, error: Exception) -> None:
        """Ends the call with the error's status; a fault of ours is logged whole and sent as an id only."""
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if not isinstance(error, LikenessError):
            error = incident(f"unexpected error in {self._method}", error)
        self._code, self._reason = error.code, error.reason_name
        status = to_status(error)
        trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
        if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_after_s is not None:
            trailers.append(("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1000))))
        await context.abort(error.code, status.message, tuple(trailers))
