"""The three services as processes, with a network of their own between any two, and between clients and the gateway."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import numpy as np
import psutil
from likeness.common.v1 import types_pb2
from likeness.gateway.v1 import gateway_pb2, gateway_pb2_grpc

from chassis.health import wait_until_serving
from deploy.local import HTTP_VARIABLE, PORTS, Services, free_ports
from tests.chaos.gateway_network import Network
from tests.chaos.indexer import DownError
from tests.pictures import noise
from tests.processes import environment, eventually, forget_peak, peak_memory
from tests.proxy import random_sizes

COLLECTION = "faults"
BEHIND = ("embedder", "indexer")
# Between clients and the gateway: gRPC, and JSON by HTTP.
IN_FRONT = ("grpc", "http")
_GROUPS = {"all": BEHIND, "client": IN_FRONT}
# A client finds the gateway again so soon after its network is mended.
RECONNECT_S = 1.0
_START_S = 90.0
_BACK_S = 60.0
_PAUSE_S = 0.05
_PEAKS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Harm:
    """What is done in a round.

    Attributes:
        how: kill, refuse (connections are reset and refused), silence (what is sent is lost), delay, or tear
            (connections are cut off after random numbers of bytes).
        whom: embedder, indexer, chroma, all (the networks of embedder and indexer), or client: those between clients
            and the gateway.
    """

    how: str
    whom: str

    def __str__(self) -> str:
        return f"{self.how} {self.whom}"

    @property
    def networks(self) -> tuple[str, ...]:
        """Those that it is done to."""
        return () if self.how == "kill" else _GROUPS.get(self.whom, (self.whom,))


class Rig:
    """The services and what is between them.

    Attributes:
        services: the processes.
        networks: by the name of the service that is behind it; the gateway is behind two.
        address: ``host:port`` of the gateway itself, for those who look at what became of everything.
        grpc: ``host:port`` where clients call it by gRPC.
        http: where they do by HTTP.
    """

    def __init__(self, folder: Path, logs: Path) -> None:
        """Starts nothing yet."""
        ports = free_ports()
        behind = {**{name: ports[PORTS[name][0]] for name in BEHIND}, "grpc": ports[PORTS["gateway"][0]]}
        self.networks = {name: Network(int(port)) for name, port in {**behind, "http": ports[HTTP_VARIABLE]}.items()}
        addresses = {f"LIKENESS_{name.upper()}_ADDRESS": self.networks[name].address for name in BEHIND}
        own = {"LIKENESS_DATA_DIR": str(folder / "indexer"), "LIKENESS_MEDIA_URL": (folder / "media").as_uri()}
        self.services = Services(environment({**ports, **addresses, **own}), logs)
        self.address = self.services.addresses["gateway"]
        self.grpc, self.http = self.networks["grpc"].address, self.networks["http"].url
        self._open = contextlib.ExitStack()
        self._killed: dict[str, set[int]] = {}
        self._harmed: set[str] = set()
        self._mended_at = float("-inf")

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

    def do(self, harm: Harm, rng: np.random.Generator) -> None:
        """Does it; it lasts until ``mend``."""
        self._harmed |= set(harm.networks)
        if harm.how == "kill":
            self._kill(harm.whom)
        for network in (self.networks[name] for name in harm.networks):
            if harm.how == "delay":
                network.delay(float(rng.uniform(0.1, 0.6)))
            elif harm.how == "tear":
                network.cut_after(random_sizes(int(rng.integers(2**31)), 20, 100_000))
            else:
                network.cut(silent=harm.how == "silence")

    def hits(self, harm: Harm) -> list[int]:
        """How often such a harm has hit since the start: of each network, or killed processes that are gone."""
        if harm.how == "kill":
            return [len(self._killed.get(harm.whom, ()))]
        return [self.networks[name].hits(harm.how) for name in harm.networks]

    def cut_off(self, since: float) -> bool:
        """Whether anything was done to the clients' own networks at any time since then, or until just before."""
        return not self._harmed.isdisjoint(IN_FRONT) or since < self._mended_at + RECONNECT_S

    def mend(self) -> None:
        """Whatever was done is undone; waits until the services say SERVING and what was killed has a successor."""
        for name in self._harmed:
            self.networks[name].mend()
        if not self._harmed.isdisjoint(IN_FRONT):
            self._mended_at = time.monotonic()
        self._harmed.clear()
        for name in BEHIND:
            if self.services.processes[name].poll() is not None:
                self.services.start(name)
            why = wait_until_serving(self.services.addresses[name], _START_S)
            if why is not None:
                raise DownError(f"{name}: {why}")
        for name, killed in self._killed.items():
            if not eventually(partial(self._runs_beside, name, killed), _BACK_S):
                raise DownError(f"{name} was killed and not started again")

    def wait_until_answering(self) -> None:
        """Waits until the gateway has searched and written: that takes both services, and Chroma."""
        term = gateway_pb2.Term(text="anything")
        request = gateway_pb2.SearchRequest(collection=COLLECTION, terms=[term])
        item = gateway_pb2.IndexItem(id="ready", image=types_pb2.Image(encoded=noise(0)))
        batch = gateway_pb2.IndexBatchRequest(collection=COLLECTION, items=[item])
        with grpc.insecure_channel(self.address) as channel:
            stub = gateway_pb2_grpc.SearchServiceStub(channel)
            self._wait("answered search", lambda: bool(stub.Search(request, timeout=5.0)))
            self._wait("stored item", lambda: stub.IndexBatch(batch, timeout=10.0).results[0].HasField("stored"))

    def rss_mb(self) -> float:
        """Resident memory of the gateway, in MB."""
        return float(self.services.processes["gateway"].memory_info().rss) / 1e6

    def peak_mb(self) -> float:
        """The most that it was since this was last asked, in MB; where no system tells, what it is now."""
        if not _PEAKS.exists():
            return self.rss_mb()
        process = self.services.processes["gateway"]
        peak = peak_memory(process) / 1e6
        forget_peak(process)
        return peak

    def _kill(self, name: str) -> None:
        """SIGKILL for a service, or for the indexer's Chroma."""
        victims = self._processes(name)
        if not victims:
            raise DownError(f"no process of {name} was there to be killed")
        for process in victims:
            process.kill()
        gone, _ = psutil.wait_procs(victims, timeout=_BACK_S)
        self._killed.setdefault(name, set()).update(process.pid for process in gone)

    def _runs_beside(self, name: str, killed: set[int]) -> bool:
        return any(process.pid not in killed for process in self._processes(name))

    def _processes(self, name: str) -> list[psutil.Process]:
        if name != "chroma":
            return [self.services.processes[name]]
        with contextlib.suppress(psutil.NoSuchProcess):
            found = self.services.processes["indexer"].children(recursive=True)
            return [process for process in found if "chroma" in " ".join(process.cmdline())]
        return []

    def _wait(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _BACK_S
        while not _true(holds):
            if time.monotonic() > deadline:
                raise DownError(f"no {what} within {_BACK_S:g} s")
            time.sleep(_PAUSE_S)


def _true(holds: Callable[[], bool]) -> bool:
    try:
        return holds()
    except grpc.RpcError:
        return False
