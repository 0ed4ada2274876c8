"""What goes with every call of a channel beside its request: an API key, the trace that it belongs to."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc

Pairs = Callable[[], Iterable[tuple[str, str]]]

Traceparent = Callable[[], str | None]
"""Asked at each call: W3C's ``traceparent`` of what it is done for; None: the server begins a trace."""


def with_metadata(channel: grpc.Channel, pairs: Pairs) -> grpc.Channel:
    """The channel, whose calls bring these too, asked for at each.

    Not gRPC's call credentials, which want TLS, as a proxy in between may speak it.
    """
    return grpc.intercept_channel(channel, _Adding(pairs))


def traced(channel: grpc.Channel, traceparent: Traceparent | None) -> grpc.Channel:
    """The channel, whose calls bring the ``traceparent``, if there is one."""
    if traceparent is None:
        return channel

    def pairs() -> Iterable[tuple[str, str]]:
        sent = traceparent()
        return [] if sent is None else [("traceparent", sent)]

    return with_metadata(channel, pairs)


@dataclass(frozen=True)
class _Details(grpc.ClientCallDetails):
    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str | bytes], ...]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Adding(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def _intercept(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_pairs(client_call_details), request)

    intercept_unary_unary: Any = _intercept
    intercept_unary_stream: Any = _intercept
    intercept_stream_unary: Any = _intercept
    intercept_stream_stream: Any = _intercept

    def _with_pairs(self, details: Any) -> _Details:
        return _Details(
            details.method,
            details.timeout,
            (*(details.metadata or ()), *self._pairs()),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )
