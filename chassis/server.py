"""The one place that starts and stops a service.

1. listen, with health saying NOT_SERVING
2. warm up (load a model, start a store, find the neighbours)
3. say SERVING, until SIGTERM or SIGINT
4. say NOT_SERVING, take no new call, let those under way finish, stop
"""

import asyncio
import signal
from typing import Protocol

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chassis import logs
from chassis.errors import LikenessError
from chassis.interceptor import CallInterceptor
from chassis.readiness import Readiness
from chassis.settings import ServiceSettings

log = structlog.get_logger()


class Service(Protocol):
    """What a service gives to the chassis."""

    @property
    def name(self) -> str:
        """Its full name in the contract, such as ``likeness.embedder.v1.EmbedderService``."""

    def register(self, server: grpc.aio.Server) -> None:
        """Adds its servicer to the server."""

    async def start(self, readiness: Readiness) -> None:
        """Warms up. The service counts as ready when this returns; it may change that later through ``readiness``.

        Raises:
            LikenessError: it cannot start; the message says why and what to do.
        """

    async def stop(self) -> None:
        """Gives everything back. Called once, after the last call has ended, also if ``start`` failed."""


def run(settings: ServiceSettings, service: Service) -> None:
    """Serves until told to stop, then exits: with 0 after a clean stop, with 1 if the service could not start."""
    logs.configure(settings.log_level, settings.log_style, service.name.rsplit(".", 1)[1])
    raise SystemExit(asyncio.run(_serve(settings, service)))


async def _serve(settings: ServiceSettings, service: Service) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    readiness = Readiness(service.name)
    await readiness.set(False, "starting")
    server = _server(settings, service, readiness)
    try:
        port = server.add_insecure_port(settings.address)
    except RuntimeError:
        log.error("cannot listen; is the address this machine's, and the port free?", address=settings.address)
        return 1
    await server.start()
    log.info("listening", host=settings.host, port=port)

    failed = False
    starting = asyncio.create_task(service.start(readiness))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
    try:
        await starting
        await readiness.set(True, "warmed up")
        await stopping
    except asyncio.CancelledError:
        log.info("stopped while starting")
    except LikenessError as error:
        failed = True
        log.error("cannot start", reason=error.reason_name, message=error.message)
    except Exception:
        failed = True
        log.exception("cannot start")
    await readiness.stop()
    await server.stop(settings.drain_s)
    await service.stop()
    stopping.cancel()
    log.info("stopped")
    return int(failed)


def _server(settings: ServiceSettings, service: Service, readiness: Readiness) -> grpc.aio.Server:
    limit = settings.max_message_mb * 2**20
    server = grpc.aio.server(
        interceptors=[CallInterceptor(readiness, settings.default_deadline_s)],
        maximum_concurrent_rpcs=settings.max_concurrent_calls,
        options=[
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", limit),
            # Two processes on one port would share its calls by chance: refuse the second instead.
            ("grpc.so_reuseport", 0),
            # A renewed connection asks DNS again. Streams under way are not cut: there is no grace limit.
            ("grpc.max_connection_age_ms", settings.max_connection_age_s * 1000),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )
    service.register(server)
    health_pb2_grpc.add_HealthServicer_to_server(readiness.health, server)
    reflection.enable_server_reflection((service.name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server
