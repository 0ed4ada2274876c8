"""The one place that starts and stops a service.

1. listen, with health saying NOT_SERVING; show metrics
2. warm up (load a model, start a store, find the neighbours); beside others on its port, listen only now
3. say SERVING, until SIGTERM or SIGINT
4. say NOT_SERVING, and answer as before for LIKENESS_STOP_DELAY_S, or until a second signal
5. take no new call, let those under way finish, stop
"""

import asyncio
import gc
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chassis import __version__, cores, logs
from chassis.calls import Calls
from chassis.errors import LikenessError
from chassis.interceptor import CallInterceptor
from chassis.names import is_loopback
from chassis.readiness import Readiness
from chassis.settings import ServiceSettings
from chassis.stopping import Stopping

if TYPE_CHECKING:
    from chassis.metrics import Endpoint

log = structlog.get_logger()

# Calls above LIKENESS_MAX_CONCURRENT_CALLS that are told why they are refused, health checks and reflection, at once;
# gRPC refuses more by itself and gives no reason. 10,000 at once took 25 MB (tests/integration/test_safety.py). The
# interceptor bounds how many of them may stay open.
REFUSALS = 20_000
# Open files and connections of a process.
MOST_FILES = 65_536
# gRPC has the age of a connection in milliseconds, as an int32.
LONGEST_AGE_S = (2**31 - 1) // 1000


class Service(Protocol):
    """What a service gives to the chassis."""

    @property
    def name(self) -> str:
        """Its full name in the contract, such as ``likeness.embedder.v1.EmbedderService``."""

    def calls(self, readiness: Readiness) -> Calls:
        """What is done around its calls. Called once, before ``register``."""

    def register(self, server: grpc.aio.Server) -> None:
        """Adds its servicer to the server."""

    async def start(self, readiness: Readiness) -> None:
        """Warms up. The service counts as ready when this returns; it may change that later through ``readiness``.

        Raises:
            LikenessError: it cannot start; the message says why and what to do.
        """

    async def stop(self) -> None:
        """Gives everything back. Called once, after the last call has ended, also if ``start`` failed."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Role:
    """What a process is besides its service. The default: the only one on its port, without metrics.

    Attributes:
        replica: the number of a process that has others beside it on its port, each taking some of the connections;
            None: the port is its own.
        late: whether it listens only when it is warm: others serve already, and it would take connections from them.
        ready: called once, when the service is first ready.
        metrics_port: TCP port of ``/metrics``; 0: any free one; -1: none.
        keyless: whether its service asks nobody for a key, so that only others can keep strangers from it.
    """

    replica: int | None = None
    late: bool = False
    ready: Callable[[], None] = _nothing
    metrics_port: int = -1
    keyless: bool = False


def run(settings: ServiceSettings, service: Service, role: Role = Role()) -> None:
    """Serves until told to stop, then exits: with 0 after that, with 1 if the service could not start or gave up."""
    name = service.name.rsplit(".", 1)[1]
    if role.replica is not None:
        name += f"-{role.replica}"
    logs.configure(settings.log_level, settings.log_style, name)
    if not role.replica:  # the first of several speaks for all
        for variable, meant in settings.misspelled().items():
            log.warning("no such setting", variable=variable, **({"meant": meant} if meant else {}))
        _tell_cores(cores.found())
        if role.keyless:
            _tell_who_may_call(settings)
    allow_many_connections()
    raise SystemExit(asyncio.run(_serve(settings, service, role)))


def _tell_cores(found: cores.Found) -> None:
    """Where a container, or whoever started the process, leaves it less than the machine has, threads are fewer."""
    if found.usable < found.machine:
        quota = None if found.quota is None else round(found.quota, 2)
        log.info("cores", usable=found.usable, machine=found.machine, affinity=found.affinity, quota=quota)


def _tell_who_may_call(settings: ServiceSettings) -> None:
    """Of a service that asks for no key: with mTLS whom that lets in, else whoever reaches it."""
    mutual = settings.tls is not None and settings.tls.client_ca is not None
    if not mutual and not is_loopback(settings.listen_host):
        log.warning(
            "whoever reaches this address may call: this service asks for no key",
            host=settings.listen_host,
            what_now="nothing, if only the other services do; else set LIKENESS_TLS_CLIENT_CA, see docs/operate.md, "
            "Keys, limits and TLS",
        )


def allow_many_connections() -> None:
    """As many files and connections as this user may have: the 1,024 of many shells are a handful of idle clients."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = MOST_FILES if most == resource.RLIM_INFINITY else min(most, MOST_FILES)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, most))


async def _serve(settings: ServiceSettings, service: Service, role: Role) -> int:
    stop = Stopping(has_parent=role.replica is not None)
    readiness = Readiness(service.name)
    await readiness.set(False, "starting")
    calls = service.calls(readiness)
    server = _server(settings, service, calls, role)
    try:
        metrics = _show_metrics(settings, role.metrics_port)
    except OSError as error:
        log.error("cannot show metrics", host=settings.listen_host, port=role.metrics_port, why=str(error))
        return 1
    if not role.late and not await _listen(server, settings):
        return 1

    _leave_imports_to_themselves()
    failed = False
    watching = asyncio.create_task(calls.watch_keys())
    starting = asyncio.create_task(service.start(readiness))
    stopping = asyncio.create_task(stop.asked.wait())
    giving_up = asyncio.create_task(readiness.given_up())
    await asyncio.wait({starting, stopping, giving_up}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
    try:
        await starting
        failed = role.late and not await _listen(server, settings)
        if not failed:
            await readiness.set(True, "warmed up")
            role.ready()
            await asyncio.wait({stopping, giving_up}, return_when=asyncio.FIRST_COMPLETED)
            if settings.stop_delay_s and not giving_up.done():
                await readiness.leave()
                log.info("taking calls for a while before the stop", seconds=settings.stop_delay_s)
                await stop.delay(settings.stop_delay_s, giving_up)
    except asyncio.CancelledError:
        log.info("stopped while starting")
    except LikenessError as error:
        failed = True
        log.error("cannot start", reason=error.reason_name, message=error.message)
    except Exception:
        failed = True
        log.exception("cannot start")
    failed = failed or giving_up.done()
    await readiness.stop()
    await server.stop(settings.drain_s)
    await service.stop()
    for task in (stopping, giving_up, watching):
        task.cancel()
    if metrics is not None:
        await asyncio.to_thread(metrics.stop)
    log.info("stopped")
    return int(failed)


def _leave_imports_to_themselves() -> None:
    """Has the garbage collector look no more at what was imported, which took it 16 to 31 ms each time.

    Before the service starts: what that loads may have to be collected one day.
    """
    gc.collect()
    gc.freeze()


async def _listen(server: grpc.aio.Server, settings: ServiceSettings) -> bool:
    """Takes connections from now on; False if it cannot, which is logged."""
    try:
        if settings.tls is None:
            port = server.add_insecure_port(settings.address)
        else:
            port = server.add_secure_port(settings.address, settings.tls.grpc())
    except RuntimeError:
        log.error("cannot listen; is the address this machine's, and the port free?", address=settings.address)
        return False
    await server.start()
    tls = "none" if settings.tls is None else "mutual" if settings.tls.client_ca else "server"
    log.info("listening", host=settings.listen_host, port=port, tls=tls, version=__version__)
    return True


def _show_metrics(settings: ServiceSettings, port: int) -> "Endpoint | None":
    if port < 0:
        return None
    from chassis import metrics  # noqa: PLC0415 (a service without metrics does without the library)

    return metrics.serve(settings.listen_host, port, tls=settings.tls)


def _server(settings: ServiceSettings, service: Service, calls: Calls, role: Role) -> grpc.aio.Server:
    limit = settings.max_message_mb * 2**20
    server = grpc.aio.server(
        interceptors=[CallInterceptor(calls)],
        maximum_concurrent_rpcs=settings.max_concurrent_calls + REFUSALS,
        options=[
            # One connection may hold all of the calls; those above them come as far as a refusal that says why.
            ("grpc.max_concurrent_streams", settings.max_concurrent_calls + 100),
            # Calls that nobody has looked at yet. Of more than 1,000 gRPC would drop some, with a bare CANCELLED.
            ("grpc.server.max_pending_requests", REFUSALS),
            ("grpc.server.max_pending_requests_hard_limit", REFUSALS),
            ("grpc.max_receive_message_length", limit),
            # Answers have bounds of their own, which say what to ask less of; here they would end in INTERNAL logs.
            ("grpc.max_send_message_length", -1),
            # Two services on one port would share its calls by chance: refuse the second, unless that is meant.
            ("grpc.so_reuseport", int(role.replica is not None)),
            # A renewed connection asks DNS again. Streams under way are not cut: there is no grace limit.
            ("grpc.max_connection_age_ms", min(settings.max_connection_age_s, LONGEST_AGE_S) * 1000),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )
    service.register(server)
    health_pb2_grpc.add_HealthServicer_to_server(calls.readiness.health, server)
    reflection.enable_server_reflection((service.name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server
