"""The three services as processes, with a network of their own between the gateway and each of the other two."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import psutil
from likeness.gateway.v1 import gateway_pb2, gateway_pb2_grpc

from chassis.health import wait_until_serving
from deploy.local import PORTS, Services, free_ports
from tests.chaos.indexer import DownError
from tests.processes import environment
from tests.proxy import Proxy

COLLECTION = "faults"
BEHIND = ("embedder", "indexer")
_START_S = 90.0
_BACK_S = 60.0
_PAUSE_S = 0.05


class Rig:
    """The services and what is between them.

    Attributes:
        services: the processes.
        networks: by the name of the service that is behind it.
        address: ``host:port`` of the gateway.
    """

    def __init__(self, folder: Path, logs: Path) -> None:
        """Starts nothing yet."""
        ports = free_ports()
        self.networks = {name: Proxy(int(ports[PORTS[name][0]])) for name in BEHIND}
        addresses = {f"LIKENESS_{name.upper()}_ADDRESS": network.address for name, network in self.networks.items()}
        own = {"LIKENESS_DATA_DIR": str(folder / "indexer"), "LIKENESS_MEDIA_URL": (folder / "media").as_uri()}
        self.services = Services(environment({**ports, **addresses, **own}), logs)
        self.address = self.services.addresses["gateway"]
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for network in self.networks.values():
            self._open.enter_context(network)
        self._open.callback(self.services.stop)
        self.services.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def kill(self, name: str) -> None:
        """SIGKILL for a service, or for the indexer's Chroma."""
        if name == "chroma":
            found = self.services.processes["indexer"].children(recursive=True)
            victims = [process for process in found if "chroma" in " ".join(process.cmdline())]
            if not victims:
                raise DownError("no process of Chroma was there to be killed")
        else:
            victims = [self.services.processes[name]]
        for process in victims:
            process.kill()
        psutil.wait_procs(victims)

    def mend(self) -> None:
        """Whatever was done to networks and services is undone; waits until the services say SERVING."""
        for network in self.networks.values():
            network.mend()
        for name in BEHIND:
            if self.services.processes[name].poll() is not None:
                self.services.start(name)
            why = wait_until_serving(self.services.addresses[name], _START_S)
            if why is not None:
                raise DownError(f"{name}: {why}")

    def wait_until_answering(self) -> None:
        """Waits until the gateway answers what needs both services."""
        term = gateway_pb2.Term(text="anything")
        request = gateway_pb2.SearchRequest(collection=COLLECTION, terms=[term])
        with grpc.insecure_channel(self.address) as channel:
            stub = gateway_pb2_grpc.SearchServiceStub(channel)
            self._wait("answered search", lambda: _answers(stub, request))

    def rss_mb(self) -> float:
        """Resident memory of the gateway, in MB."""
        return float(self.services.processes["gateway"].memory_info().rss) / 1e6

    def _wait(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _BACK_S
        while not holds():
            if time.monotonic() > deadline:
                raise DownError(f"no {what} within {_BACK_S:g} s")
            time.sleep(_PAUSE_S)


def _answers(stub: gateway_pb2_grpc.SearchServiceStub, request: gateway_pb2.SearchRequest) -> bool:
    try:
        stub.Search(request, timeout=5.0)
    except grpc.RpcError:
        return False
    return True
