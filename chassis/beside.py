"""Health and reflection: they take no place among the calls, and answer when there is none."""

import asyncio
from collections import Counter
from contextlib import aclosing
from typing import Any

import grpc
from likeness.common.v1 import error_pb2

from chassis import wire
from chassis.call_log import Outcome
from chassis.calls import Calls
from chassis.errors import LikenessError
from chassis.guard import Metadata
from chassis.wire import Context, Handler

HEALTH = "/grpc.health.v1.Health/"
# Streams that watch the health, and as many of reflection, open at once: gRPC counts them as it does calls, and nobody
# needs a key to watch. A gateway holds one for each connection to a reader, or to an embedder (16, unless told).
STREAMS_BESIDE = 10_000
# How long the request of a health check may take to come, in seconds.
CHECK_S = 5.0
# How long a message may still take to come once the service stops, in seconds.
LAST_S = 0.5


class Beside:
    """Bounds what health and reflection may hold, and waits for no request of theirs when the service stops."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._open = Counter[str]()  # streams, by method
        self._reading: set[asyncio.Timeout] = set()
        self._stopping = False
        calls.readiness.on_stop(self._stop)

    def handler(self, handler: Any, method: str, metadata: Metadata) -> Any:
        """The handler of one of their rpcs, wrapped as one that takes a stream of requests."""
        read, write = wire.tolerant(handler.request_deserializer), handler.response_serializer
        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(self._check(handler.unary_unary), read, write)
        try:
            if self._calls.guard is not None and not method.startswith(HEALTH):
                self._calls.guard.caller(metadata)
            if self._open[method] >= STREAMS_BESIDE:
                message = f"{STREAMS_BESIDE} such streams are open, as many as there may be"
                raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=10.0)
        except LikenessError as error:
            self._calls.tell(Outcome(method, "grpc", False, error.code, error.reason_name, 0.0, None))
            return wire.refusal(error)
        task = asyncio.current_task()
        assert task is not None
        self._open[method] += 1
        task.add_done_callback(lambda _task: self._open.subtract([method]))
        answer = self._watch(handler.unary_stream) if handler.unary_stream else self._reflect(handler.stream_stream)
        return grpc.stream_stream_rpc_method_handler(answer, read, write)

    def _check(self, handler: Handler) -> Handler:
        async def answer(_requests: Any, context: Context) -> Any:
            try:
                return await handler(await self._request(context), context)
            except LikenessError as error:
                failure = wire.bare(error)
            return await wire.fail(context, failure)

        return answer

    def _watch(self, handler: Handler) -> Handler:
        async def answer(_requests: Any, context: Context) -> Any:
            sending = wire.Sending(context)
            try:
                return await wire.until_gone(handler(await self._request(context), sending))
            except LikenessError as error:
                failure = wire.bare(error)
            return await wire.fail(context, failure)

        return answer

    def _reflect(self, handler: Any) -> Handler:
        async def send(context: Context) -> None:
            sending = wire.Sending(context)
            requests = wire.Requests(lambda: self._read(context))
            async with aclosing(handler(requests, sending)) as answers:
                async for each in answers:
                    await sending.write(each)

        async def answer(_requests: Any, context: Context) -> Any:
            try:
                return await wire.until_gone(send(context))
            except LikenessError as error:
                failure = wire.bare(error)
            return await wire.fail(context, failure)

        return answer

    async def _request(self, context: Context) -> Any:
        request = await wire.request(lambda: self._read(context), CHECK_S)
        if request is grpc.aio.EOF:
            raise wire.missing()
        return request

    async def _read(self, context: Context) -> Any:
        """The next message of the client. Raises SHUTTING_DOWN if the service stops and none comes."""
        try:
            async with asyncio.timeout(LAST_S if self._stopping else None) as reading:
                self._reading.add(reading)
                try:
                    return await context.read()
                finally:
                    self._reading.discard(reading)
        except TimeoutError:
            message = "the service is stopping"
            raise LikenessError(error_pb2.REASON_SHUTTING_DOWN, message, retry_after_s=1.0) from None

    def _stop(self) -> None:
        self._stopping = True
        for reading in self._reading:
            reading.reschedule(asyncio.get_running_loop().time() + LAST_S)
