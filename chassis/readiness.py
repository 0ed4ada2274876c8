"""Whether a service can answer: the one source behind its health check."""

import asyncio

import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError

log = structlog.get_logger()


class Readiness:
    """Says SERVING or NOT_SERVING for a service by name and for the process as a whole ("").

    A call that comes before the service is first ready is refused with NOT_READY. Later, while it is not ready, calls
    still reach it: what can be answered is, and what can't gets an error that says why.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._started = False
        self._stopping = asyncio.Event()
        self.health = health_aio.HealthServicer()

    async def set(self, serving: bool, why: str) -> None:
        """Changes the answer of the health check; after ``stop`` it stays NOT_SERVING.

        Args:
            serving: whether the service can answer.
            why: for the log.
        """
        serving = serving and not self._stopping.is_set()
        self._started = self._started or serving
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", self._service):
            await self.health.set(name, status)
        log.info("readiness", serving=serving, why=why)

    async def stop(self) -> None:
        """Says NOT_SERVING for good and tells streams to come to their end."""
        self._stopping.set()
        await self.set(False, "stopping")

    @property
    def stopping(self) -> asyncio.Event:
        """Set once the process has been told to stop."""
        return self._stopping

    def require_started(self) -> None:
        """Raises NOT_READY before the first readiness."""
        if not self._started:
            message = f"{self._service} is still starting; try again in a moment, or wait for its health check"
            raise LikenessError(error_pb2.REASON_NOT_READY, message, retry_after_s=1.0)
