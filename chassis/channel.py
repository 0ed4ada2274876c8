"""Channels to the other services: every address of a DNS name in turn, retries of what is safe to repeat."""

import json
from collections.abc import Sequence

import grpc


def connect(address: str, service: str, repeatable: Sequence[str], max_message_mb: int) -> grpc.aio.Channel:
    """A channel to a service; connects on first use and again by itself.

    Args:
        address: ``host:port``, where every address that DNS knows for the host gets its share of the calls
            (round robin), or a full gRPC target such as ``unix:/run/x.sock``.
        service: the service's full name in the contract.
        repeatable: the names of its methods that may be sent again when the server could not be reached.
        max_message_mb: largest message taken or sent, in MiB.
    """
    target = (
        address if "://" in address or address.startswith(("unix:", "dns:", "ipv4:", "ipv6:")) else f"dns:///{address}"
    )
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.2s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2.5,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": [{"service": service, "method": m} for m in repeatable], "retryPolicy": retry}],
    }
    limit = max_message_mb * 2**20
    return grpc.aio.insecure_channel(
        target,
        options=[
            ("grpc.service_config", json.dumps(config)),
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", limit),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # A restarted neighbour is found again within seconds; the default backs off for up to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.dns_min_time_between_resolutions_ms", 5_000),
            ("grpc.enable_http_proxy", 0),
        ],
    )
