"""What every client's connection is made of."""

import json
from collections.abc import Iterable

from google.protobuf.descriptor import ServiceDescriptor

MAX_MESSAGE_BYTES = 64 * 2**20


def target(address: str) -> str:
    """The gRPC target of ``host:port``; a full target stays as it is."""
    if "://" in address or address.startswith(("unix:", "dns:", "ipv4:", "ipv6:")):
        return address
    return f"dns:///{address}"


def options(service: ServiceDescriptor, repeatable: Iterable[str]) -> list[tuple[str, int | str]]:
    """The options of a channel.

    Args:
        service: whose calls go over it.
        repeatable: the methods that may be sent again by themselves when a connection is refused or cut.
    """
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
    names = [{"service": service.full_name, "method": method} for method in repeatable]
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
