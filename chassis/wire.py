"""One call as gRPC has it: its requests, the messages sent, and the status that ends it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, Self

import grpc
from google.protobuf.message import DecodeError
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, invalid, to_status
from chassis.trace import TRACE_ID

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Any], Awaitable[Any]]
Read = Callable[[], Awaitable[Any]]

# What this service has waited for already, as long as it may: gRPC's own retries would have it wait as long again.
_RIDDEN_OUT = frozenset({error_pb2.REASON_EMBEDDER_UNAVAILABLE, error_pb2.REASON_INDEXER_UNAVAILABLE})


class Gone(Exception):  # noqa: N818 (nothing has failed)
    """The client has gone away: a message cannot be sent any more."""


class Sending:
    """What the handler of a stream has of its context: its first message goes out whole, also if it is cut off then.

    gRPC sends the head of an answer along with its first message, and takes note of it only afterwards. Cut off in
    between, it would send the head again with the status, which fails, and the client would wait for ever.
    """

    def __init__(self, context: Context) -> None:
        self.time_remaining = context.time_remaining
        self._write = context.write
        self._first: asyncio.Future[None] | None = None
        self._cut = False

    async def write(self, message: Any, /) -> None:
        """Sends a message; returns when there is room for the next.

        Raises:
            Gone: the client has gone away.
        """
        if self._cut:  # gRPC would fail as it does when the client has gone away
            raise RuntimeError("a message was cut off on its way to the client; nothing can follow it but a status")
        try:
            if self._first is not None:
                return await self._write(message)
            self._first = asyncio.ensure_future(self._write(message))
            self._first.add_done_callback(_noted)
            return await asyncio.shield(self._first)
        except grpc.aio.InternalError as error:
            raise Gone from error
        except asyncio.CancelledError:
            self._cut = True
            raise

    async def begun(self) -> None:
        """Returns when a status may be sent."""
        if self._first is not None:
            await asyncio.wait([self._first])


def _noted(first: asyncio.Future[None]) -> None:
    """Nobody may wait for it any more: that it could not be sent is no fault then."""
    if not first.cancelled():
        first.exception()


async def until_gone(answering: Awaitable[Any]) -> Any:
    """What a handler of a stream gives. That its client has gone is a cancellation, told early."""
    try:
        return await answering
    except Gone as error:
        raise asyncio.CancelledError from error
    except ExceptionGroup as group:  # of a handler that writes beside its tasks
        if group.split(Gone)[1] is not None:
            raise
        raise asyncio.CancelledError from group


class Requests:
    """Those of a stream, read one by one. It keeps none: a generator would hold the last one that it gave."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        try:
            message = await self._read()
        except BaseException:  # a read that was cut off may have taken a message
            self._ended = True
            raise
        if message is grpc.aio.EOF:
            self._ended = True
            raise StopAsyncIteration
        return _readable(message)


async def request(read: Read, within_s: float) -> Any:
    """The request of an rpc that takes one.

    Args:
        read: gives the next message of the client.
        within_s: how long it may take to come, in seconds, whatever deadline its caller has set.

    Returns:
        it, or EOF: the call was closed without one, or the client has gone away, which looks the same.

    Raises:
        LikenessError: DEADLINE_EXCEEDED, FIELD_INVALID.
    """
    try:
        async with asyncio.timeout(within_s):
            message = await read()
    except TimeoutError:
        text = f"the request has not come within {within_s:g} s"
        raise LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, text) from None
    return _readable(message)


def missing() -> LikenessError:
    """Why a call fails that was closed without a request."""
    return invalid("request", "is missing: the call was closed without one")


class _Unreadable:
    """Stands for a request that is no message of its type, so that it is refused as bad input, not as a fault."""


def tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """It, but for requests that are no message of their type: they are refused when they are read."""

    def read(encoded: bytes) -> Any:
        try:
            return deserialize(encoded)
        except DecodeError:
            return _Unreadable()

    return read


def _readable(message: Any) -> Any:
    if isinstance(message, _Unreadable):
        raise invalid("request", "cannot be read: no message of this rpc's type, cut, or nested too deeply")
    return message


def refusal(error: LikenessError) -> Any:
    """A handler that reads nothing of the request, whatever the rpc's kind."""
    bare(error)

    async def refuse(_requests: Any, context: Context) -> None:
        await fail(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)


def bare(error: LikenessError) -> LikenessError:
    """It, without the frames that it came through, whose requests would live as long as it.

    gRPC keeps what ends a call, and the frames that it leaves through, until the garbage collector comes. What fails
    is not to be among the variables of those either.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


async def fail(context: Context, error: LikenessError, *behind: tuple[str, str]) -> NoReturn:
    """Ends the call with this failure.

    Args:
        context: the call's, of which a status may be sent.
        error: ``bare``.
        behind: what its client is told besides, as trailers.

    Raises:
        asyncio.CancelledError: the client has gone away.
    """
    status = to_status(error)
    trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
    if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_after_s is not None:
        trailers.append(("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1000))))
    elif error.reason in _RIDDEN_OUT:
        trailers.append(("grpc-retry-pushback-ms", "-1"))
    if error.trace_id is not None:
        trailers.append((TRACE_ID, error.trace_id))
    try:
        await context.abort(error.code, status.message, (*trailers, *behind))
    except grpc.aio.InternalError as gone:
        raise asyncio.CancelledError from gone
