"""The servers that are measured: our indexer, and Chroma's own."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import psutil
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from benchmarks.embedder.processes import MIB, START_S, Process, free_port
from benchmarks.embedder.scope import surroundings
from benchmarks.indexer.ours import OPTIONS
from chassis.health import serving

_PAUSE_S = 0.02
# Of a stop that writes a snapshot of all it has.
_STOP_S = 180.0
_ABSORBED_S = 1800.0


class Indexer(Process):
    """A running indexer with the Chroma that it starts.

    Attributes:
        address: ``host:port``.
    """

    def __init__(self, name: str, directory: Path) -> None:
        """Starts it on a free port over a data directory; ``ready`` waits for it."""
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        settings = {
            "LIKENESS_INDEXER_PORT": str(port),
            "LIKENESS_DATA_DIR": str(directory),
            "LIKENESS_LOG_LEVEL": "INFO",
            "LIKENESS_LOG_STYLE": "json",
        }
        self._begun = time.perf_counter()
        super().__init__(name, [sys.executable, "-m", "indexer"], surroundings(settings), talks=False)

    def ready(self) -> float:
        """Waits until it says SERVING; returns the seconds since it was started."""
        while time.perf_counter() < self._begun + START_S and not self.ended:
            # gRPC waits a second after a refused connection: the port tells sooner.
            if _listens(self.address) and serving(self.address, 1.0) is None:
                return time.perf_counter() - self._begun
            time.sleep(_PAUSE_S)
        raise self.failed("not serving")

    def graph_complete(self) -> float:
        """Waits until every row is in its graph; returns the seconds since it was started."""
        while time.perf_counter() < self._begun + _ABSORBED_S and not self.ended:
            if all(found.unindexed_rows == 0 for found in self.status().collections):
                return time.perf_counter() - self._begun
            time.sleep(0.2)
        raise self.failed("its graph is not complete")

    def status(self) -> indexer_pb2.GetStatusResponse:
        """What it says of itself."""
        with grpc.insecure_channel(self.address, options=OPTIONS) as channel:
            stub = indexer_pb2_grpc.IndexerServiceStub(channel)
            answer: indexer_pb2.GetStatusResponse = stub.GetStatus(indexer_pb2.GetStatusRequest(), timeout=30)
            return answer

    def own_rss_mib(self) -> float:
        """Resident memory of the indexer itself, without its Chroma."""
        return float(psutil.Process(self._process.pid).memory_info().rss) / MIB

    def stop(self) -> float:
        """SIGTERM, and waits for the end, which writes the snapshot; returns the seconds."""
        begun = time.perf_counter()
        self._process.terminate()
        try:
            code = self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            raise self.failed(f"did not stop within {_STOP_S:.0f} s") from None
        if code != 0:
            raise self.failed(f"ended with {code}")
        return time.perf_counter() - begun


class BareServer(Process):
    """faiss behind gRPC, and nothing else.

    Attributes:
        address: ``host:port``.
    """

    def __init__(self, name: str, size: int, folder: Path) -> None:
        """Starts it on a free port; ``ready`` waits for it. FOLDER is that of the library of the same size."""
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        command = [sys.executable, "-m", "benchmarks.indexer.bare", str(port), str(size), str(folder)]
        super().__init__(name, command, surroundings({}), talks=False)

    def ready(self) -> None:
        """Waits until it listens."""
        deadline = time.perf_counter() + START_S
        while time.perf_counter() < deadline and not self.ended:
            if _listens(self.address):
                return
            time.sleep(_PAUSE_S)
        raise self.failed("does not listen")


class ChromaServer(Process):
    """``chroma run`` over a directory.

    Attributes:
        url: where it answers.
    """

    def __init__(self, name: str, directory: Path) -> None:
        """Starts it on a free port; ``ready`` waits for it."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        program = str(Path(sys.executable).with_name("chroma"))
        command = [program, "run", "--path", str(directory), "--host", "127.0.0.1", "--port", str(port)]
        super().__init__(name, command, surroundings({"RUST_LOG": "warn"}), talks=False)

    def ready(self) -> None:
        """Waits until it answers."""
        deadline = time.perf_counter() + START_S
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.perf_counter() < deadline and not self.ended:
            try:
                with opener.open(f"{self.url}/api/v2/heartbeat", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(_PAUSE_S)
        raise self.failed("does not answer")


def copied(folder: Path, to: Path) -> Path:
    """A copy that may be spoiled."""
    shutil.rmtree(to, ignore_errors=True)
    to.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--reflink=auto", str(folder), str(to)], check=True)
    return to


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:
        return False
