"""A call that has failed keeps nothing of its request, with no garbage collection to help: under overload, GBs."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import structlog
from likeness.common.v1 import error_pb2

from chassis import logs
from chassis.calls import Calls
from chassis.errors import LikenessError
from chassis.interceptor import CallInterceptor
from chassis.readiness import Readiness
from tests.unit.chassis.guarded import refusal

SERVICE = "likeness.test.v1.TestService"


class Request:
    """Tells when it is let go."""

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded
        made.append(weakref.ref(self))


made: list[weakref.ref[Request]] = []


def full() -> LikenessError:
    return LikenessError(error_pb2.REASON_OVERLOADED, "no room", retry_after_s=1.0)


async def refused(request: Request, context: Any) -> bytes:
    inputs = [request.encoded]
    raise full() if inputs else AssertionError


async def faulty(request: Request, context: Any) -> bytes:
    inputs = [request]
    raise ZeroDivisionError(str(len(inputs)))


async def refused_upload(requests: AsyncIterator[Request], context: Any) -> bytes:
    async for request in requests:
        await refused(request, context)
    raise AssertionError


async def refused_download(request: Request, context: Any) -> None:
    await context.write(request.encoded)
    await refused(request, context)


async def refused_stream(requests: AsyncIterator[Request], context: Any) -> None:
    async for request in requests:
        await refused_download(request, context)


RPCS: dict[str, Any] = {
    "Refused": grpc.unary_unary_rpc_method_handler(refused, Request),
    "Faulty": grpc.unary_unary_rpc_method_handler(faulty, Request),
    "Upload": grpc.stream_unary_rpc_method_handler(refused_upload, Request),
    "Download": grpc.unary_stream_rpc_method_handler(refused_download, Request),
    "Stream": grpc.stream_stream_rpc_method_handler(refused_stream, Request),
}


@pytest.fixture(autouse=True)
def uncollected(own_logs: None) -> Iterator[None]:
    # As a service has it; pytest's own would keep the frames of a fault.
    processors: list[structlog.typing.Processor] = [
        structlog.processors.ExceptionRenderer(logs._tracebacks),
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(processors=processors, logger_factory=structlog.PrintLoggerFactory())
    made.clear()
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@asynccontextmanager
async def serving() -> AsyncIterator[grpc.aio.Channel]:
    readiness = Readiness(SERVICE)
    await readiness.set(True, "test")
    server = grpc.aio.server(interceptors=[CallInterceptor(Calls(readiness))])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, RPCS)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with asyncio.timeout(60), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(30)  # the calls have ended in every respect


FAILURES = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)


async def rest(call: Any) -> None:
    """Reads what is answered, to its end."""
    while await call.read() is not grpc.aio.EOF:
        pass


@pytest.mark.parametrize("rpc", RPCS)
async def test_a_failed_call_keeps_nothing_of_its_request(rpc: str) -> None:
    async with serving() as channel:
        for _ in range(3):
            call: Any = channel.stream_stream(f"/{SERVICE}/{rpc}")()
            await call.write(b"a request")
            assert (await refusal(rest(call))).code() in FAILURES
    assert len(made) == 3
    assert [each() for each in made] == [None] * 3
