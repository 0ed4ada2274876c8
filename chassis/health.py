"""``python -m chassis.health ADDRESS…``: exits with 0 when every service there says SERVING.

For container health checks and for waiting until a start is complete. With LIKENESS_TLS_CERT and LIKENESS_TLS_KEY, as
the service itself has them, it speaks TLS, believes that very certificate, and shows it. On loopback, where the service
is one's own, it believes the certificate that is shown there: the files may have been renewed since the start.
``--service live`` asks whether the process can answer at all, ready or not.
"""

import argparse
import sys
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.names import is_loopback
from chassis.tls import ChannelTls, as_it_shows, distrust, name_of, of_this_host

# Whoever waits for a start asks again so soon after nobody listened, in milliseconds; gRPC by itself after 1,000 up.
_AGAIN_MS = 50
# How long a server is asked whose name is not known yet, in seconds: it may have begun to listen since.
_NAMELESS_S = 2.0


def _met(address: str, tls: ChannelTls | None) -> tuple[ChannelTls | None, str | None]:
    """Whom to believe there, and the name to ask for, where one is known yet."""
    if tls is None:
        return None, None
    if is_loopback(address.rpartition(":")[0]):
        tls = as_it_shows(address, tls)
    return tls, name_of(address, tls)


def _channel(address: str, tls: ChannelTls | None, name: str | None) -> grpc.Channel:
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    options += [(f"grpc.{kind}_reconnect_backoff_ms", _AGAIN_MS) for kind in ("initial", "max")]
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    if name is not None:
        options.append(("grpc.ssl_target_name_override", name))
    return grpc.secure_channel(address, tls.grpc(), options=options)


def serving(address: str, timeout_s: float, tls: ChannelTls | None = None, service: str = "") -> str | None:
    """Asks a service for its health.

    Args:
        address: ``host:port``.
        timeout_s: how long to wait for a connection and an answer, in seconds.
        tls: whom to believe, by its certificate and not by its name, unless it is on loopback, and what to show;
            None: without TLS.
        service: a name that the health check knows; empty: the process as a whole.

    Returns:
        None if it says SERVING, otherwise why not.
    """
    met, name = _met(address, tls)
    with _channel(address, met, name) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(service=service), timeout=timeout_s, wait_for_ready=True
            )
        except grpc.RpcError as error:
            return _failure(error, address, met)
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def _failure(error: grpc.RpcError, address: str, tls: ChannelTls | None) -> str:
    """What it says; of a certificate that is not believed gRPC may say no more than that no answer came in time."""
    why = None if tls is None else distrust(address, tls)
    return f"{error.code().name}: {why or error.details()}"


def wait_until_serving(address: str, timeout_s: float, tls: ChannelTls | None = None, service: str = "") -> str | None:
    """As ``serving``, but waits for it, through the health service's own Watch stream."""
    last = "no answer"
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        met, name = _met(address, tls)
        within_s = left if met is None or name is not None else min(left, _NAMELESS_S)
        with _channel(address, met, name) as channel:
            try:
                watch = health_pb2_grpc.HealthStub(channel).Watch(  # type: ignore[attr-defined]
                    health_pb2.HealthCheckRequest(service=service), timeout=within_s, wait_for_ready=True
                )
                for answer in watch:
                    last = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return None
            except grpc.RpcError as error:
                last = f"{_failure(error, address, met)} (last heard: {last})"
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return last
    return last


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m chassis.health", description=__doc__)
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS", help="host:port")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait this long for SERVING")
    parser.add_argument("--service", default="", metavar="NAME", help="ask for this name; live: the process itself")
    options = parser.parse_args()
    tls = of_this_host()
    failed = False
    for address in options.addresses:
        ask, within_s = (wait_until_serving, options.wait) if options.wait else (serving, 5.0)
        why = ask(address, within_s, tls, options.service)
        if why is not None:
            failed = True
            print(f"{address}: {why}", file=sys.stderr)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
