"""An indexer under test that is stopped, killed and started again over the same data."""

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import read
from tests.processes import Service, eventually, free_port, start_service

TIMEOUT_S = 60
# What is counted over all processes there were.
COUNTED = {f"likeness_indexer_{name}_total" for name in ("queries", "loads")}


class Indexer:
    """A process after the other.

    Attributes:
        reads: its ``LIKENESS_READS``.
        collections: how many a test has made.
        ended: what a test has done to it, and how often.
    """

    def __init__(self, folder: Path, reads: str, **settings: str) -> None:
        self.reads = reads
        self.collections = 0
        self.ended: Counter[str] = Counter()
        self._folder = folder
        self._metrics_port = free_port()
        self._counted: Counter[tuple[str, str]] = Counter()
        self._env = {
            "LIKENESS_DATA_DIR": str(folder / "data"),
            "LIKENESS_READS": reads,
            "LIKENESS_INDEXER_PORT": str(free_port()),
            "LIKENESS_INDEXER_METRICS_PORT": str(self._metrics_port),
            "LIKENESS_RECALL_PROBE_S": "1",
            **settings,
        }
        self.start()

    def start(self) -> None:
        self.service: Service = start_service("indexer", self._env, "LIKENESS_INDEXER_PORT", self._folder)
        self._channel = grpc.insecure_channel(self.service.address)
        self._stub = indexer_pb2_grpc.IndexerServiceStub(self._channel)

    def call(self, method: str, request: Any) -> Any:
        """Calls again as long as Chroma is away."""
        return self._until_there(lambda: getattr(self._stub, method)(request, timeout=TIMEOUT_S, wait_for_ready=True))

    def stream(self, method: str, request: Any) -> list[Any]:
        """The answers of a call that streams them; calls again as long as Chroma is away."""
        answers: list[Any] = self._until_there(
            lambda: list(getattr(self._stub, method)(request, timeout=TIMEOUT_S, wait_for_ready=True))
        )
        return answers

    def _until_there(self, call: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                if read(error).code is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise

    def stop(self, *, kill: bool) -> None:
        self._counted = self.counted()
        self._channel.close()
        if kill:
            self.service.kill()
        else:
            assert self.service.stop() == 0, self.service.log

    def kill_chroma(self) -> None:
        for child in psutil.Process(self.service.process.pid).children(recursive=True):
            if "run" in child.cmdline():
                child.send_signal(signal.SIGKILL)
                psutil.wait_procs([child], TIMEOUT_S)

    def wait_for_graph(self, collection: str, rows: int) -> None:
        """Until all of a collection's rows, at least so many, are in its graph."""

        def there() -> bool:
            status = self.call("GetStatus", indexer_pb2.GetStatusRequest())
            (shown,) = [each for each in status.collections if each.name == collection]
            return bool(shown.rows >= rows and not shown.unindexed_rows)

        assert eventually(there), self.service.log

    def counted(self) -> Counter[tuple[str, str]]:
        """By a counter's name and its label's value, over this process and those before it that were stopped."""
        url = f"http://127.0.0.1:{self._metrics_port}/metrics"
        found = Counter(self._counted)
        text = httpx.get(url, trust_env=False, timeout=TIMEOUT_S).raise_for_status().text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in COUNTED:
                    (label,) = sample.labels.values()
                    found[sample.name.removeprefix("likeness_indexer_").removesuffix("_total"), label] += int(
                        sample.value
                    )
        return found

    def damage_snapshots(self, how: str, where: float) -> None:
        """Damages every file of the serving snapshots."""
        for path in [path for path in (self._folder / "data" / "serving").rglob("*") if path.is_file()]:
            data = bytearray(path.read_bytes())
            place = int(where * len(data))
            match how:
                case "flip" if data:
                    data[min(place, len(data) - 1)] ^= 0xFF
                case "cut":
                    del data[place:]
            if how == "remove":
                path.unlink()
            else:
                path.write_bytes(data)
