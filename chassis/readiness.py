"""Whether a service can answer: the one source behind its health check."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError

log = structlog.get_logger()

# A name that the health check knows beside the service's: SERVING for as long as the process can answer at all. For
# those who would restart it otherwise.
LIVE = "live"

Status = int  # a value of HealthCheckResponse.ServingStatus
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class _Health(health_pb2_grpc.HealthServicer):
    """Answers from a table of states. Changing it waits for nobody: who reads slowly holds up nothing but itself."""

    def __init__(self, states: dict[str, Status]) -> None:
        """Knows these names, and never another."""
        self._states = states
        self._changed = asyncio.Event()  # another one after each change
        self._ended = False

    def set(self, states: Mapping[str, Status]) -> None:
        """Changes the states of names."""
        self._states.update(states)
        self._tell()

    def end_watches(self) -> None:
        """Ends every watcher's stream, now and in future: the server would wait for them as for calls."""
        self._ended = True
        self._tell()

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802
        """Tells the state of a name."""
        if request.service not in self._states:
            # An abort would keep the name, which may be a long one, until the garbage collector comes.
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=self._states[request.service])

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        """Tells the states of all names."""
        states = {name: health_pb2.HealthCheckResponse(status=status) for name, status in self._states.items()}
        return health_pb2.HealthListResponse(statuses=states)  # type: ignore[attr-defined]

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Tells the state of a name, then every other one that it is in by the time the client has read the last.

        Until ``end_watches``; then it tells what is so, and ends.
        """
        name = request.service if request.service in self._states else None
        del request  # which may hold a long name for as long as its client watches
        told = None
        while True:
            changed, ended = self._changed, self._ended
            status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN if name is None else self._states[name]
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            elif ended:
                return
            else:
                await changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Readiness:
    """Says SERVING or NOT_SERVING for a service by name and for the process as a whole ("").

    A call that comes before the service is first ready is refused with NOT_READY. Later, while it is not ready, calls
    still reach it: what can be answered is, and what can't gets an error that says why. ``LIVE`` is SERVING all along.

    Attributes:
        serving: whether the service can answer.
        why: what was last said about that.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self.serving = False
        self.why = "starting"
        self._started = False
        self._leaving = False
        self._on_stop: list[Callable[[], None]] = []
        self._given_up = asyncio.Event()
        self.health = _Health({"": _NOT_SERVING, service: _NOT_SERVING, LIVE: _SERVING})

    async def set(self, serving: bool, why: str) -> None:
        """Changes the answer of the health check; after ``leave`` and ``give_up`` it stays NOT_SERVING.

        Args:
            serving: whether the service can answer.
            why: for the log, and for who asks.
        """
        if serving and self._given_up.is_set():
            return
        serving = serving and not self._leaving
        self.serving, self.why = serving, "stopping" if self._leaving else why
        self._started = self._started or serving
        status = _SERVING if serving else _NOT_SERVING
        self.health.set({"": status, self._service: status})
        log.info("readiness", serving=serving, why=why)

    async def leave(self) -> None:
        """Says NOT_SERVING for good; calls are answered as before, new ones too."""
        if not self._leaving:
            self._leaving = True
            await self.set(False, "stopping")

    async def stop(self) -> None:
        """Says NOT_SERVING for good and tells streams to come to their end."""
        await self.leave()
        self.health.end_watches()
        for call in self._on_stop:
            call()

    async def give_up(self, why: str) -> None:
        """The service can never be ready again: the process stops, in good order, and exits with 1."""
        await self.set(False, why)
        self._given_up.set()

    async def given_up(self) -> None:
        """Returns once ``give_up`` was called."""
        await self._given_up.wait()

    def on_stop(self, call: Callable[[], None]) -> None:
        """Has ``call`` called once the process is told to stop, before the calls under way are waited for."""
        self._on_stop.append(call)

    def require_started(self) -> None:
        """Raises NOT_READY before the first readiness."""
        if not self._started:
            message = f"{self._service} is still starting; try again in a moment, or wait for its health check"
            raise LikenessError(error_pb2.REASON_NOT_READY, message, retry_after_s=1.0)
