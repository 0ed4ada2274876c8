"""A service behind the gateway: calls with a timeout, failures as ``LikenessError``.

Calls that may be repeated are: by gRPC within a second or two (see ``chassis.channel``), and, while the service stays
away, here, until LIKENESS_RIDE_OUT_S or the caller's time is over: a restart is ridden out. None is ever sent twice at
once. Each brings the trace of the call that it is made for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog
from grpc.aio import Metadata
from grpc_health.v1 import health_pb2, health_pb2_grpc
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, from_rpc_error
from chassis.trace import passed_on
from gateway.settings import GatewaySettings

log = structlog.get_logger()

Answer = TypeVar("Answer")

Said = tuple[tuple[str, str], ...]

# At start: how long one of several at an address is watched before the next one's turn, and the pause in between.
_WATCH_S, _WATCH_AGAIN_S = 5.0, 0.5
# Nobody listens, or too many are asking.
_NOT_NOW = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)

# Waits between attempts while a service is away: the first, and the longest, which is as long as gRPC takes at most to
# look for it again.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 2.0


def bringing(*said: tuple[str, str]) -> Metadata:
    """The metadata of a call: this, and the trace of the call that it is made for, if there is one."""
    return Metadata(*said, *passed_on())  # gRPC itself takes 10 µs to make one of a tuple


class Backend:
    """A service: where it is, and what its failures are called.

    Attributes:
        name: for the log, for errors and for ``GetStatus``.
        address: where the gateway looks for it.
    """

    def __init__(
        self,
        name: str,
        address: str,
        setting: str,
        unavailable: error_pb2.Reason.ValueType,
        settings: GatewaySettings,
    ) -> None:
        """Connects to nothing yet.

        Args:
            name: what it is called.
            address: where it is.
            setting: the variable that says so.
            unavailable: the reason of a failure to reach it.
            settings: all of the gateway's.
        """
        self.name = name
        self.address = address
        self._setting = setting
        self._unavailable = unavailable
        self._ride_out_s = settings.ride_out_s

    async def _call(self, call: Awaitable[Answer]) -> Answer:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._unavailable, f"the {self.name} at {self.address}") from error

    async def _repeatable(
        self,
        method: Callable[..., Awaitable[Answer]],
        request: Any,
        timeout_s: float,
        *,
        ride_out: bool = True,
        said: Said = (),
    ) -> Answer:
        """A call that is sent again while the service is away, as long as there is time.

        Args:
            method: of the stub.
            request: what it takes.
            timeout_s: how long all of it may take.
            ride_out: whether a restart is waited for.
            said: metadata beside the trace.
        """
        metadata = bringing(*said)
        started = time.monotonic()
        give_up = started + min(timeout_s, self._ride_out_s if ride_out else 0)
        pause = _FIRST_PAUSE_S
        while True:
            left = started + timeout_s - time.monotonic()
            try:
                return await self._call(method(request, timeout=left, metadata=metadata))
            except LikenessError as error:
                # With an answer that says why while there is still time to hear it.
                if error.code is not grpc.StatusCode.UNAVAILABLE or time.monotonic() + pause >= give_up:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _bulk_call(self, call: Awaitable[Answer]) -> Answer:
        """A call whose time limit is ours, not the caller's: to it, no answer in time is a service away."""
        try:
            return await self._call(call)
        except LikenessError as error:
            if error.reason != error_pb2.REASON_DEADLINE_EXCEEDED:
                raise
            message = f"the {self.name} at {self.address} gave no answer in time; see LIKENESS_INGEST_CALL_S"
            raise LikenessError(self._unavailable, message, retry_after_s=1.0) from error

    async def _wait_until_serving(self, channel: grpc.aio.Channel, service: str) -> None:
        """Waits, without limit, until the service says SERVING; of several at one address, until one of them does."""
        log.info("waiting for a service", name=self.name, address=self.address)
        told: str | None = None
        while True:
            watch = health_pb2_grpc.HealthStub(channel).Watch(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(service=service)
            )
            try:
                async with asyncio.timeout(_WATCH_S):
                    async for answer in watch:
                        if answer.status == health_pb2.HealthCheckResponse.SERVING:
                            return
                        if answer.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
                            raise self._misplaced(f"it does not know {service}")
            except TimeoutError:
                pass  # the next one at the address may serve already
            except grpc.aio.AioRpcError as error:
                if error.code() not in _NOT_NOW:
                    raise self._misplaced(f"{error.code().name}: {error.details()}") from error
                if error.details() != told:  # nobody listens yet; or a certificate is not believed, for ever
                    told = error.details()
                    log.info("a service is not there yet", name=self.name, address=self.address, why=told)
            finally:
                watch.cancel()
            await asyncio.sleep(_WATCH_AGAIN_S)

    def _misplaced(self, why: str) -> LikenessError:
        message = f"{self.address} is not the {self.name} ({why}); set {self._setting} to where it is"
        return LikenessError(self._unavailable, message)
