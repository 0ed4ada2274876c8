"""A gateway's connection: what the calls of ``Client`` are made over."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import grpc
from likeness.gateway.v1 import gateway_pb2
from likeness.gateway.v1.gateway_pb2_grpc import SearchServiceStub

from likeness_client import channel, defaults
from likeness_client.call_metadata import Traceparent, traced
from likeness_client.rpc_errors import from_rpc_error
from likeness_client.security import Security

OnProgress = Callable[[int, int], None]
"""Told how many items are done, and how many there are; 0: unknown."""

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Connection:
    """A channel to a gateway, opened on first use."""

    def __init__(
        self,
        address: str = defaults.ADDRESS,
        *,
        timeout: float | None = defaults.TIMEOUT_S,
        security: Security | None = None,
        traceparent: Traceparent | None = None,
    ) -> None:
        """Prepares a channel.

        Args:
            address: ``host:port``, or a full gRPC target such as ``unix:/run/likeness.sock``.
            timeout: seconds that one call may take; None: the server's default, a minute. No server gives more than
                LIKENESS_MAX_DEADLINE_S, an hour. Streams (ingest, suggested labels, duplicates,
                embedding anew) may take any time.
            security: API key and TLS; None: the key in LIKENESS_API_KEY if there is one, and no TLS.
            traceparent: asked at each call for the W3C ``traceparent`` of what it is done for, whose id the logs of all
                services then carry; None, or where it gives None: the gateway begins a trace.

        Raises:
            ValueError: a file of certificates cannot be read, or ``timeout`` is not above 0.
        """
        self.address = address
        self.timeout = channel.deadline_s(timeout)
        service = gateway_pb2.DESCRIPTOR.services_by_name["SearchService"]
        untraced = (security or Security.of_environment()).channel(channel.target(address), channel.options(service))
        self._channel = traced(untraced, traceparent)
        self._stub = SearchServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the connection back; calls under way end."""
        self._channel.close()

    def _call(self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request) -> _Response:
        try:
            return method(request, timeout=self.timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address, self.timeout) from None

    def _follow(
        self, method: "grpc.UnaryStreamMultiCallable[_Request, _Response]", request: _Request
    ) -> Iterator[_Response]:
        """The messages of a stream; whoever stops reading ends it."""
        call = method(request)
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address, None) from None
        finally:
            call.cancel()
