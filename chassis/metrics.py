"""``/metrics``: a service's Prometheus figures over HTTP, on a port of their own.

A service of one process shows its own figures. One of several (see PROMETHEUS_MULTIPROC_DIR in prometheus_client) has
each process write its figures to files in that folder, and the parent shows the sum. ``process_*`` figures are
always those of the process that answers.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY

log = structlog.get_logger()

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


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


def serve(host: str, port: int, registry: CollectorRegistry = REGISTRY) -> Endpoint | None:
    """Shows the figures at ``http://host:port/metrics``, from a daemon thread.

    Args:
        host: address to listen on.
        port: TCP port; 0: any free one, named in the log; -1: none, and None is returned.
        registry: what to show, where this process is the service's only one.

    Raises:
        OSError: it cannot listen there.
    """
    if port < 0:
        return None
    disable_created_metrics()  # type: ignore[no-untyped-call]  # as many series again, of no use in this format
    folder = os.environ.get(FOLDER_VARIABLE)
    server, thread = start_http_server(port, host, _of_all_processes(folder) if folder else registry)
    endpoint = Endpoint(host, server.server_port, server, thread)
    log.info("metrics", host=host, port=endpoint.port)
    return endpoint


def _of_all_processes(folder: str) -> CollectorRegistry:
    Path(folder).mkdir(parents=True, exist_ok=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    ProcessCollector(registry=registry)
    return registry
