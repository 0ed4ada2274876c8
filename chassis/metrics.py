"""``/metrics``: a service's Prometheus figures over HTTP, on a port of their own.

A service of one process shows its own figures. One of several (see PROMETHEUS_MULTIPROC_DIR in prometheus_client) has
each process write its figures to files in that folder, and the parent shows the sum. ``process_*`` figures are
always those of the process that answers.
"""

import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, make_wsgi_app
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY

from chassis.tls import ListenerTls

log = structlog.get_logger()

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# How long somebody who has connected may say nothing, in seconds.
_SILENT_S = 30.0


@dataclass(frozen=True)
class Endpoint:
    """A running ``/metrics``.

    Attributes:
        host: as it was asked for.
        port: where it listens.
    """

    host: str
    port: int
    _server: WSGIServer
    _thread: Thread

    def stop(self) -> None:
        """Ends it, after the request under way."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(WSGIRequestHandler):
    timeout = _SILENT_S

    def log_message(self, *_arguments: Any) -> None:
        """Nothing for each request."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    tls: ssl.SSLContext | None = None

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection. Its TLS begins in the thread that answers it, where nobody else waits for it."""
        connection, address = super().get_request()
        if self.tls is not None:
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, _request: Any, client_address: Any) -> None:
        """A client that speaks no TLS, or goes."""
        log.debug("metrics not shown", client=client_address[0], exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


def serve(
    host: str, port: int, registry: CollectorRegistry = REGISTRY, *, tls: ListenerTls | None = None
) -> Endpoint | None:
    """Shows the figures at ``http://host:port/metrics``, from a daemon thread.

    Args:
        host: address to listen on.
        port: TCP port; 0: any free one, named in the log; -1: none, and None is returned.
        registry: what to show, where this process is the service's only one.
        tls: then it is https.

    Raises:
        OSError: it cannot listen there.
    """
    if port < 0:
        return None
    disable_created_metrics()  # type: ignore[no-untyped-call]  # as many series again, of no use in this format
    folder = os.environ.get(FOLDER_VARIABLE)
    family, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
        0
    ]
    app = make_wsgi_app(_of_all_processes(folder) if folder else registry)
    server_class = _Server6 if family is socket.AF_INET6 else _Server
    server = make_server(str(address[0]), port, app, server_class, handler_class=_Handler)
    server.tls = None if tls is None else tls.context()
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    endpoint = Endpoint(host, server.server_port, server, thread)
    log.info("metrics", host=host, port=endpoint.port)
    return endpoint


def _of_all_processes(folder: str) -> CollectorRegistry:
    Path(folder).mkdir(parents=True, exist_ok=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    ProcessCollector(registry=registry)
    return registry
