"""Whether a service can answer: the one source behind its health check."""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError

log = structlog.get_logger()

# A name that the health check knows beside the service's: SERVING for as long as the process can answer at all. For
# those who would restart it otherwise.
LIVE = "live"


class _Health(health_aio.HealthServicer):
    """Ends the streams of its watchers when the process stops: the server would wait for them as for calls."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = asyncio.Event()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        """Tells the state and every change of it, until ``end_watches``."""
        watching = asyncio.ensure_future(super().Watch(request, context))
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait({watching, ended}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                await watching
        finally:
            for future in (watching, ended):
                future.cancel()

    def end_watches(self) -> None:
        """Ends every watcher's stream, now and in future."""
        self._ended.set()


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
        self.health = _Health()

    async def set(self, serving: bool, why: str) -> None:
        """Changes the answer of the health check; after ``leave`` it stays NOT_SERVING.

        Args:
            serving: whether the service can answer.
            why: for the log, and for who asks.
        """
        serving = serving and not self._leaving
        self.serving, self.why = serving, "stopping" if self._leaving else why
        self._started = self._started or serving
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", self._service):
            await self.health.set(name, status)
        await self.health.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        log.info("readiness", serving=serving, why=why)

    async def leave(self) -> None:
        """Says NOT_SERVING for good; calls are answered as before, new ones too."""
        if not self._leaving:
            self._leaving = True
            await self.set(False, "stopping")

    async def stop(self) -> None:
        """Says NOT_SERVING for good and tells streams to come to their end."""
        await self.leave()
        for call in self._on_stop:
            call()
        self.health.end_watches()

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
