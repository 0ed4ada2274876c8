"""The service by Connect: every rpc but the stream both ways, answered by the same methods as by gRPC.

1. ``__call__``: what HTTP alone says: path, method, type; limits on the body
2. ``_Admission``, by Connect's library, before the body is read: ``Calls.admit``
3. ``unary`` or ``streamed``, by Connect's library, with the body: read, answer, write
4. ``_call`` again, once the answer is sent: ``Call.end``
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from likeness.common.v1 import error_pb2
from starlette.types import Receive, Scope, Send

from chassis.calls import DEADLINE_APPLIED, Call, Calls
from chassis.errors import LikenessError, invalid
from chassis.trace import TRACE_ID
from gateway.http.bodies import Bodies, Body
from gateway.http.errors import CallError, refusal, response
from gateway.http.messages import Codec, Gzip, Messages, Received

Context = RequestContext[Received, bytes]

# What Connect's library reads of a request. It applies no deadline and compresses no answer: we do the one, with an
# error of ours, and leave the other, which would hold up the event loop, to a proxy.
_PASSED_ON = ("content-encoding", "connect-content-encoding", "connect-protocol-version")
# What is read of a request, here or there: once each, or two readers might take two values for the one meant.
_READ = frozenset({"content-type", "connect-timeout-ms", *_PASSED_ON})
_UNARY_TYPES = ("application/json", "application/proto")
_STREAM_TYPES = ("application/connect+json", "application/connect+proto")


@dataclass
class _Exchange:
    """One request.

    Attributes:
        headers: names in lower case.
        body: what comes of it.
        ends_at: the caller's deadline, by ``time.monotonic``; None: it has none.
        client: the address that it came from, host and port, where that is known.
        call: once it is admitted.
    """

    headers: list[tuple[str, str]]
    body: Body
    ends_at: float | None
    client: tuple[str, int] | None
    call: Call | None = None

    def left(self) -> float | None:
        """Seconds to the caller's deadline."""
        return None if self.ends_at is None else max(0.0, self.ends_at - time.monotonic())

    def peer(self) -> str:
        """The address that it came from, as text."""
        return "unknown" if self.client is None else "{}:{}".format(*self.client)


_exchange: ContextVar[_Exchange] = ContextVar("exchange")


@dataclass(frozen=True)
class _CallContext:
    """What a servicer's method needs of a call. ``write`` is for streams."""

    exchange: _Exchange
    messages: Messages
    as_json: bool
    outbox: asyncio.Queue[bytes]

    def time_remaining(self) -> float | None:
        """Seconds to the caller's deadline; None: it has none."""
        return self.exchange.left()

    async def write(self, message: Message, /) -> None:
        """Sends a message; returns when there is room for the next."""
        await self.outbox.put(await self.messages.written(message, self.as_json))


class _Application(ConnectASGIApplication[object]):
    @property
    def path(self) -> str:
        """Of no use: endpoints have whole paths."""
        return ""


class _Admission:
    """Lets a call in before its body is read, and tells what it failed with; it ends once its answer is sent."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def on_start(self, ctx: Context) -> _Exchange:
        """Refuses it, or makes a ``Call`` of it."""
        exchange = _exchange.get()
        method = f"/{ctx.method.service_name}/{ctx.method.name}"
        try:
            exchange.call = self._calls.admit(method, exchange.headers, "http")
        except LikenessError as error:
            raise _told(CallError(error), ctx) from None
        ctx.response_headers[TRACE_ID] = exchange.call.trace.id
        return exchange

    async def on_end(self, token: _Exchange, ctx: Context, error: Exception | None) -> None:
        """What Connect's library refuses by itself gets the details that all errors have."""
        call = token.call
        assert call is not None
        told: CallError | None = None
        match error:
            case CallError():
                failed = call.failed(error.error)
                told = _told(error if failed is error.error else CallError(failed), ctx)
            case ConnectError() if error.code is not Code.CANCELED:
                told = CallError(call.failed(invalid("request", error.message)))
            case Exception() if not isinstance(error, ConnectError):
                told = CallError(call.failed(error))
        if error is not None:
            _forget_frames(error)
        if told is not None and told is not error:
            raise told from error


class ConnectService:
    """An ASGI application."""

    def __init__(
        self, service: ServiceDescriptor, servicer: Any, calls: Calls, bodies: Bodies, messages: Messages
    ) -> None:
        """Makes an endpoint of every rpc that has no stream from the client.

        Args:
            service: the service in the contract.
            servicer: what answers: methods as gRPC's, taking a ``CallContext``.
            calls: what is done around each call.
            bodies: the limits on bodies.
            messages: reads and writes them.
        """
        self._bodies = bodies
        self._messages = messages
        self._types: dict[str, tuple[str, str]] = {}
        endpoints: dict[str, Any] = {}
        for method in service.methods:
            if method.client_streaming:
                continue
            path = f"/{service.full_name}/{method.name}"
            self._types[path] = _STREAM_TYPES if method.server_streaming else _UNARY_TYPES
            endpoints[path] = self._endpoint(method, getattr(servicer, method.name))
        self._app: Any = _Application(
            service=servicer,
            endpoints=lambda _servicer: endpoints,
            interceptors=[_Admission(calls)],
            read_max_bytes=None,  # see Body
            compressions=[Gzip()],
            codecs=[Codec("json"), Codec("proto")],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        types = self._types.get(scope["path"])
        sent = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        if types is None:
            message = "there is no such rpc by HTTP; /openapi.json lists them"
            await refusal(HTTPStatus.NOT_FOUND, Code.UNIMPLEMENTED, message)(scope, receive, send)
        elif scope["method"] != "POST":
            answer = refusal(
                HTTPStatus.METHOD_NOT_ALLOWED, Code.UNIMPLEMENTED, "an rpc is called by POST", allow="POST"
            )
            await answer(scope, receive, send)
        else:
            try:
                read = _read(sent)
            except LikenessError as error:
                await response(error)(scope, receive, send)
                return
            kind = read.get("content-type", "").partition(";")[0].strip().lower()
            if kind in types:
                await self._call(scope, receive, send, sent, {**read, "content-type": kind})
                return
            message = f"Content-Type must be {types[0]} or {types[1]}"
            answer = refusal(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, Code.INVALID_ARGUMENT, message, **{"accept-post": ", ".join(types)}
            )
            await answer(scope, receive, send)

    async def _call(
        self, scope: Scope, receive: Receive, send: Send, sent: list[tuple[str, str]], read: Mapping[str, str]
    ) -> None:
        timeout_ms = read.get("connect-timeout-ms")
        left = None if timeout_ms is None else int(timeout_ms) / 1000
        body = Body(self._bodies, receive, left, int(dict(sent).get("content-length", 0)))
        ends_at = None if left is None else time.monotonic() + left
        exchange = _Exchange(sent, body, ends_at, scope.get("client"))
        token = _exchange.set(exchange)
        passed_on = [(name.encode(), read[name].encode()) for name in ("content-type", *_PASSED_ON) if name in read]
        try:
            await self._app({**scope, "root_path": "", "headers": passed_on}, body.receive, send)
        finally:
            _exchange.reset(token)
            body.release()
            if exchange.call is not None:
                exchange.call.end()

    def _endpoint(self, method: MethodDescriptor, answer: Callable[[Any, Any], Awaitable[Any]]) -> Any:
        kind = GetMessageClass(method.input_type)
        stream = method.server_streaming
        info = MethodInfo(
            name=method.name,
            service_name=method.containing_service.full_name,
            input=Received,
            output=bytes,
            idempotency_level=IdempotencyLevel.UNKNOWN,  # Connect's calls by GET are left out
            stream_type=StreamType.SERVER_STREAM if stream else StreamType.UNARY,
        )

        async def unary(received: Received, ctx: Context) -> bytes:
            exchange = _exchange.get()
            try:
                async with _under_way(exchange, ctx, stream=False):
                    request = await self._read(received, kind, exchange)
                    answered = await answer(request, self._context(exchange, received, asyncio.Queue(1)))
                    written = await self._messages.written(answered, received.as_json)
                    exchange.body.answered(len(written))
                    return written
            except LikenessError as error:
                raise CallError(error) from None

        async def streamed(received: Received, ctx: Context) -> AsyncIterator[bytes]:
            exchange, outbox = _exchange.get(), asyncio.Queue[bytes](1)

            async def run() -> None:
                async with _under_way(exchange, ctx, stream=True):
                    request = await self._read(received, kind, exchange)
                    await answer(request, self._context(exchange, received, outbox))

            running = asyncio.create_task(run())
            try:
                async with aclosing(_until_done(outbox, running)) as messages:
                    async for message in messages:
                        yield message
            except LikenessError as error:
                raise CallError(error) from None

        return Endpoint.server_stream(info, streamed) if stream else Endpoint.unary(info, unary)

    def _context(self, exchange: _Exchange, received: Received, outbox: asyncio.Queue[bytes]) -> _CallContext:
        return _CallContext(exchange, self._messages, received.as_json, outbox)

    async def _read(self, received: Received, kind: type[Message], exchange: _Exchange) -> Message:
        assert exchange.call is not None
        request = await self._messages.read(received, kind, exchange.body.hold)
        exchange.call.peer = exchange.peer
        exchange.call.received(request)
        return request


def _read(sent: list[tuple[str, str]]) -> dict[str, str]:
    """The headers that are read of a request; raises FIELD_INVALID where one is not what it must be."""
    found: dict[str, str] = {}
    for name, value in sent:
        if name not in _READ:
            continue
        if name in found:
            raise invalid(name, "is there more than once")
        if not value.isascii():
            raise invalid(name, "has bytes that are no ASCII")
        found[name] = value
    timeout_ms = found.get("connect-timeout-ms", "0")
    if not (timeout_ms.isdigit() and len(timeout_ms) <= 10):
        raise invalid("connect-timeout-ms", "must be milliseconds in at most 10 digits")
    if found.get("connect-protocol-version", "1") != "1":
        raise invalid("connect-protocol-version", "must be 1")
    return found


@asynccontextmanager
async def _under_way(exchange: _Exchange, ctx: Context, *, stream: bool) -> AsyncIterator[None]:
    """``Call.under_way``, and the caller's own deadline, which gRPC sees to by itself."""
    assert exchange.call is not None
    left = exchange.left()
    async with exchange.call.under_way(left, stream=stream):
        if exchange.call.deadline_ms is not None:
            ctx.response_headers[DEADLINE_APPLIED] = str(exchange.call.deadline_ms)
        try:
            async with asyncio.timeout(left) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            message = "no answer within the deadline that Connect-Timeout-Ms gave"
            raise LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, message) from None


async def _until_done(outbox: asyncio.Queue[bytes], running: asyncio.Task[None]) -> AsyncGenerator[bytes]:
    """What is put into the outbox, until the task has ended; raises what it raised, and ends it when left early."""
    taking = asyncio.create_task(outbox.get())
    try:
        while True:
            await asyncio.wait({taking, running}, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                break
            yield taking.result()
            taking = asyncio.create_task(outbox.get())
        taking.cancel()  # it may have been about to take the last one, which is still there then
        await asyncio.wait({taking})
        while not outbox.empty():
            yield outbox.get_nowait()
        await running
    finally:
        taking.cancel()
        running.cancel()
        await asyncio.wait({running})


def _forget_frames(error: Exception) -> None:
    """Lets go of where it was raised, and of what led to it: of all that was sent, unpacked and read for the call.

    Connect's library keeps the error in a frame that the error's own traceback leads to. Such a circle lasts until
    Python happens to look for one: sixteen bombs of gzip held a gigabyte.
    """
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None:
            left += [each.__cause__, each.__context__, each.error if isinstance(each, CallError) else None]
            each.__traceback__ = each.__cause__ = each.__context__ = None


def _told(error: CallError, ctx: Context) -> CallError:
    for name, value in error.headers.items():
        ctx.response_headers[name] = value
    return error
