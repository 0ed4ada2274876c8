"""A guarded gRPC server on loopback, for tests of what happens around its calls."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from likeness.common.v1 import error_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc

from chassis.call_log import Outcome, Transport
from chassis.calls import Call, Calls
from chassis.errors import from_rpc_error
from chassis.guard import Guard, Rpc
from chassis.interceptor import CallInterceptor
from chassis.keys import Keys, Scope
from chassis.readiness import Readiness

SERVICE = "likeness.embedder.v1.EmbedderService"
RPCS = {
    f"/{SERVICE}/GetModel": Rpc(Scope.READ),
    f"/{SERVICE}/Embed": Rpc(Scope.WRITE, lambda request: len(request.inputs)),
    f"/{SERVICE}/EmbedStream": Rpc(Scope.WRITE),
}
Metadata = Sequence[tuple[str, str]]


def keys_file(path: Path, **keys: str) -> Path:
    """Writes the file of keys: name=key:scope or name=key:scope:limits."""
    text = ""
    for name, told in keys.items():
        key, scope, *limits = told.split(":")
        digest = hashlib.sha256(key.encode()).hexdigest()
        text += f'[[key]]\nname = "{name}"\nsha256 = "{digest}"\nscopes = ["{scope}"]\n' + "\n".join(limits) + "\n"
    path.write_text(text)
    return path


class Servicer(embedder_pb2_grpc.EmbedderServiceServicer):
    """Counts what reaches it, and holds calls for as long as it is told."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.holding = asyncio.Event()
        self.before_write: Callable[[], object] = lambda: None
        self.stream_left = asyncio.Event()

    async def GetModel(self, request: Any, context: Any) -> embedder_pb2.GetModelResponse:  # noqa: N802
        await self._reach("GetModel")
        return embedder_pb2.GetModelResponse()

    async def Embed(self, request: Any, context: Any) -> embedder_pb2.EmbedResponse:  # noqa: N802
        await self._reach("Embed")
        return embedder_pb2.EmbedResponse()

    async def EmbedStream(self, requests: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        try:
            self.before_write()
            await context.write(embedder_pb2.EmbedStreamResponse())
            await self._reach("EmbedStream")
            async for _ in requests:
                await context.write(embedder_pb2.EmbedStreamResponse())
        finally:
            self.stream_left.set()

    async def _reach(self, rpc: str) -> None:
        self.reached.append(rpc)
        self.holding.set()
        await self.hold.wait()


class Watched(Calls):
    """Tells when a call is admitted."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.admitted = asyncio.Event()

    def admit(self, method: str, metadata: Any, transport: Transport) -> Call:
        call = super().admit(method, metadata, transport)
        self.admitted.set()
        return call


class Running:
    """A guarded server, and what was seen of its calls."""

    def __init__(self, keys: Keys, max_calls: int, default_deadline_s: float) -> None:
        self.servicer = Servicer()
        self.keys = keys
        self.port = 0
        self.outcomes: list[Outcome] = []
        self.readiness = Readiness(SERVICE)
        self.ended = asyncio.Queue[Outcome]()
        self.calls = Watched(
            self.readiness,
            max_calls=max_calls,
            default_deadline_s=default_deadline_s,
            guard=Guard(keys, RPCS),
            observe=self._observe,
        )

    def _observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.ended.put_nowait(outcome)

    def reload(self) -> None:
        """What ``Calls.watch_keys`` does when it looks."""
        assert self.keys.refresh()
        self.calls.check_keys()


@asynccontextmanager
async def serving(
    file: Path, max_calls: int = 100, default_deadline_s: float = 60
) -> AsyncIterator[tuple[Running, Any, grpc.aio.Channel]]:
    """Serves; yields what was seen, a stub, and a connection."""
    running = Running(Keys(file, ""), max_calls, default_deadline_s)
    await running.readiness.set(True, "test")
    server = grpc.aio.server(interceptors=[CallInterceptor(running.calls)])
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(running.servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(running.readiness.health, server)
    reflection.enable_server_reflection((SERVICE,), server)
    running.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        yield running, embedder_pb2_grpc.EmbedderServiceStub(channel), channel
    await server.stop(0)


def bearer(key: str) -> Metadata:
    """The metadata with this key."""
    return (("authorization", f"Bearer {key}"),)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    """What the call fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def reason(error: grpc.aio.AioRpcError) -> str:
    """Why a call failed."""
    return from_rpc_error(error, error_pb2.REASON_UNSPECIFIED, "").reason_name


GET, EMBED = embedder_pb2.GetModelRequest(), embedder_pb2.EmbedRequest()
