"""What is at the gateway's HTTP port: the service by Connect, and a few paths for probes, Prometheus and browsers."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from typing import Any

from connectrpc.code import Code
from likeness.gateway.v1 import gateway_pb2
from prometheus_client import disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from chassis.call_log import Outcome
from chassis.calls import DEADLINE_APPLIED, Calls
from chassis.errors import LikenessError
from chassis.trace import TRACE_ID, TRACEPARENT
from gateway.http import errors
from gateway.http.bodies import Bodies
from gateway.http.connect import ConnectService
from gateway.http.figures import Figures
from gateway.http.messages import Messages
from gateway.http.origins import Origins
from gateway.http.thumbnails import Thumbnails
from gateway.indexer_reads import IndexerReads
from gateway.media import Media
from gateway.metrics import Metrics
from gateway.settings import GatewaySettings

SERVICE = gateway_pb2.DESCRIPTOR.services_by_name["SearchService"]
# Asked for by the address of a container (Kubernetes), which nobody can list beforehand. They tell a page that got here
# by a name of its own no more than that a gateway is here, and whether it is ready.
_PROBED = ("/healthz", "/readyz")
# What a page of another origin may send and see.
_SENT = ["authorization", "connect-protocol-version", "connect-timeout-ms", "content-type", TRACEPARENT, "x-api-key"]
_SEEN = [DEADLINE_APPLIED, TRACE_ID, "etag", "retry-after"]


@dataclass(frozen=True)
class _Pages:
    """The paths that are no rpc."""

    calls: Calls
    figures: Figures
    openapi: bytes

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.document),
        ]

    async def healthz(self, _request: Request) -> Response:
        """The event loop turns."""
        return PlainTextResponse("ok\n")

    async def readyz(self, _request: Request) -> Response:
        """As the health check by gRPC, with the reason."""
        readiness = self.calls.readiness
        status = HTTPStatus.OK if readiness.serving else HTTPStatus.SERVICE_UNAVAILABLE
        return PlainTextResponse(f"{'ready' if readiness.serving else 'not ready'}: {readiness.why}\n", status)

    async def metrics(self, request: Request) -> Response:
        """For Prometheus; where there are keys, it needs one, of any scope."""
        if self.calls.guard is not None:
            started = time.perf_counter()
            try:
                self.calls.guard.caller(request.headers.items())
            except LikenessError as error:
                seconds = time.perf_counter() - started
                self.calls.tell(Outcome("/metrics", "http", False, error.code, error.reason_name, seconds, None))
                raise
        return Response(await self.figures(), media_type=CONTENT_TYPE_LATEST)

    async def document(self, _request: Request) -> Response:
        """The contract."""
        return Response(self.openapi, media_type="application/json")


def application(
    settings: GatewaySettings,
    *,
    servicer: Any,
    calls: Calls,
    metrics: Metrics,
    indexer: IndexerReads,
    media: Media,
    messages: Messages,
) -> Starlette:
    """The ASGI application.

    Args:
        settings: limits, origins, and whether there are keys.
        servicer: what answers the rpcs.
        calls: what is done around each.
        metrics: what is shown, and told how much is held.
        indexer: knows the items whose thumbnails are asked for.
        media: holds the thumbnails.
        messages: reads and writes what the rpcs are called with.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]  # as many series again, of no use in this format
    most_bytes = settings.max_message_mb * 2**20
    in_flight = max(settings.http_in_flight_mb * 2**20, most_bytes)
    bodies = Bodies(most_bytes, in_flight, settings.http_body_s, metrics.http_request_bytes, metrics.http_answer_bytes)
    openapi = resources.files("likeness.gateway.v1").joinpath("openapi.json").read_bytes()
    allowed = settings.cors_origins
    hosts: Collection[str] | None = settings.http_hosts or None
    if hosts is None and not (settings.keyed or settings.anonymous):
        hosts = {"localhost", "127.0.0.1", "::1", settings.listen_host}
    # Figures say what the gateway is used for. Where there are keys they need one, which no page of another site has;
    # where there are none, only the name keeps such a page away.
    by_any_name = (*_PROBED, "/metrics") if settings.keyed else _PROBED
    middleware = [
        Middleware(Origins, allowed=allowed, hosts=hosts, by_any_name=by_any_name, keyed=settings.keyed),
    ]
    if allowed:
        cross_origin: Mapping[str, Any] = {
            "allow_origins": allowed,
            "allow_methods": ["GET", "POST"],
            "allow_headers": _SENT,
            "expose_headers": _SEEN,
        }
        middleware.append(Middleware(CORSMiddleware, **cross_origin))
    return Starlette(
        routes=[
            Mount(f"/{SERVICE.full_name}", ConnectService(SERVICE, servicer, calls, bodies, messages)),
            *Thumbnails(calls, indexer, media, elsewhere=bool(allowed)).routes(),
            *_Pages(calls, Figures(metrics.registry), openapi).routes(),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _http_failure, LikenessError: _failure},
    )


async def _failure(_request: Request, error: Exception) -> Response:
    assert isinstance(error, LikenessError)
    return errors.response(error)


async def _http_failure(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = Code.NOT_FOUND if error.status_code == HTTPStatus.NOT_FOUND else Code.UNIMPLEMENTED
    return errors.refusal(HTTPStatus(error.status_code), code, error.detail, **dict(error.headers or {}))
