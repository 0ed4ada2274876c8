"""What every client's connection is made of."""

import json
import math

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

MAX_MESSAGE_BYTES = 64 * 2**20
MAX_TIMEOUT_S = 365 * 24 * 3600.0


def target(address: str) -> str:
    """The gRPC target of ``host:port``; a full target stays as it is."""
    if "://" in address or address.startswith(("unix:", "dns:", "ipv4:", "ipv6:")):
        return address
    return f"dns:///{address}"


def deadline_s(timeout: float | None) -> float | None:
    """Seconds that one call may take: as told, and at most a year, for what is later than a clock holds fails at once.

    Raises:
        ValueError: it is not above 0, or no number.
    """
    if timeout is None or timeout == math.inf:
        return None
    if not timeout > 0:
        raise ValueError(f"a timeout of {timeout:g} s; expected more than 0")
    return min(timeout, MAX_TIMEOUT_S)


def repeatable(service: ServiceDescriptor) -> list[str]:
    """The methods that may be sent again by themselves when a connection is refused or cut.

    They are those that the contract says may be, but for SetAlias, which may then find its own work and say that the
    alias was moved. One that answers with a stream is sent again only as long as nothing of its answer has come.
    """
    return [
        method.name
        for method in service.methods
        if method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN
        and not method.client_streaming
        and method.name != "SetAlias"
    ]


def options(service: ServiceDescriptor) -> list[tuple[str, int | str]]:
    """The options of a channel over which the calls of a service go."""
    # For a connection that is refused or cut; few, and soon: a restart that takes longer is told, and met by whoever
    # repeats the command. An UNAVAILABLE of a service that the gateway has waited for itself is not sent again: the
    # trailer grpc-retry-pushback-ms, which is -1 then, ends gRPC's retries.
    retry = {
        "maxAttempts": 3,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    names = [{"service": service.full_name, "method": method} for method in repeatable(service)]
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": names, "retryPolicy": retry}],
    }
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_http_proxy", 0),
    ]
