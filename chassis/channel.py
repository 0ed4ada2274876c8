"""Channels to the other services: every address of a DNS name in turn, retries of what is safe to repeat."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import grpc

from chassis.tls import ChannelTls

Stub = TypeVar("Stub")
Answer = TypeVar("Answer")

# How failed attempts are spaced, as gRPC's service config takes it; gRPC allows at most five. An interactive call gives
# up after about a second and a half; bulk work rides out a restart of the service, about fifteen.
_RETRIES = {
    "interactive": {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    },
    # Not after an overload: those who bring bulk work have to hear of it, and send less.
    "bulk": {
        "maxAttempts": 5,
        "initialBackoff": "0.5s",
        "maxBackoff": "8s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    },
}


def connect(
    address: str,
    service: str,
    repeatable: Sequence[str],
    max_message_mb: int,
    use: Literal["interactive", "bulk"],
    *,
    watch_health: bool = False,
    tls: ChannelTls | None = None,
    authority: str | None = None,
) -> grpc.aio.Channel:
    """A channel to a service, with connections of its own; it connects on first use and again by itself.

    Args:
        address: ``host:port``, where every address that DNS knows for the host gets its share of the calls
            (round robin), or a full gRPC target such as ``unix:/run/x.sock``.
        service: the service's full name in the contract.
        repeatable: the names of its methods that may be sent again when the server could not be reached.
        max_message_mb: largest message taken or sent, in MiB.
        use: how patiently to retry. Bulk work on a channel of its own also keeps its uploads out of the way of
            interactive calls.
        watch_health: whether an address whose health check says NOT_SERVING gets no calls: for replicas of which any
            will do. One that has no health check counts as serving.
        tls: whom to believe, and what to show; None: without TLS.
        authority: ``host:port`` that the server's certificate is to name; None: what the address says.

    Raises:
        TlsError: a file of it cannot be used.
    """
    has_scheme = "://" in address or address.startswith(("unix:", "dns:", "ipv4:", "ipv6:"))
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if repeatable:
        names = [{"service": service, "method": method} for method in repeatable]
        config["methodConfig"] = [{"name": names, "retryPolicy": _RETRIES[use]}]
    if watch_health:
        config["healthCheckConfig"] = {"serviceName": service}
    limit = max_message_mb * 2**20
    target = address if has_scheme else f"dns:///{address}"
    options = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.use_local_subchannel_pool", 1),
        # A call larger than this buffer is not retried; the default, 256 KiB, is less than one photograph.
        ("grpc.per_rpc_retry_buffer_size", limit),
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A restarted neighbour is found again within seconds; the default backs off for up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
        ("grpc.enable_http_proxy", 0),
    ]
    if authority is not None:
        options.append(("grpc.default_authority", authority))
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, tls.grpc(), options=options)


@dataclass(eq=False)
class _Connection(Generic[Stub]):
    """A channel, what makes calls on it, and how many are under way."""

    channel: grpc.aio.Channel
    stub: Stub
    calls: int = 0

    def ready(self) -> bool:
        """Whether a call would be sent at once; if not, it begins to connect."""
        return self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

    def rank(self) -> tuple[bool, int]:
        """The least goes first: one that is ready, with the fewest calls."""
        return not self.ready(), self.calls


class Connections(Generic[Stub]):
    """Several channels to one service, for processes that share an address: the kernel gives each connection to one.

    A call goes where the fewest are under way, in turn where several have so few; where there is no connection, or
    nobody who says SERVING, only if it is so with all of them.
    """

    def __init__(self, channels: Sequence[grpc.aio.Channel], stub: Callable[[grpc.aio.Channel], Stub]) -> None:
        """Takes the channels on.

        Args:
            channels: at least one; ``close`` closes them.
            stub: makes of a channel what has the service's methods.
        """
        self._all = [_Connection(channel, stub(channel)) for channel in channels]
        self._turn = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def under_way(self) -> int:
        """Calls on all of them together."""
        return sum(connection.calls for connection in self._all)

    def ready(self) -> bool:
        """Whether one of them is; those that are not begin to connect."""
        return any([connection.ready() for connection in self._all])  # noqa: C419  (all are to be asked)

    async def call(
        self, method: Callable[[Stub], Callable[..., Awaitable[Answer]]], request: Any, **options: Any
    ) -> Answer:
        """Makes a call.

        Args:
            method: of a stub.
            request: what it takes.
            options: as gRPC takes them, such as ``timeout``.
        """
        self._turn = (self._turn + 1) % len(self._all)
        chosen = min(self._all[self._turn :] + self._all[: self._turn], key=_Connection.rank)
        chosen.calls += 1
        self._idle.clear()
        try:
            return await method(chosen.stub)(request, **options)
        finally:
            chosen.calls -= 1
            if not self.under_way():
                self._idle.set()

    async def idle(self) -> None:
        """Waits until no call is under way."""
        await self._idle.wait()

    async def close(self) -> None:
        """Closes the channels."""
        for connection in self._all:
            await connection.channel.close()
