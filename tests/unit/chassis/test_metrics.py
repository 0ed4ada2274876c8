"""``/metrics``: figures of one process, and of several."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from chassis import metrics
from tests.processes import ROOT


def shown(port: int) -> str:
    with httpx.Client(trust_env=False, timeout=10) as http:
        return http.get(f"http://127.0.0.1:{port}/metrics").raise_for_status().text


def test_figures_are_shown_on_a_free_port_until_stopped() -> None:
    registry = CollectorRegistry()
    Counter("likeness_test_seen", "Seen.", registry=registry).inc(3)

    endpoint = metrics.serve("127.0.0.1", 0, registry)
    assert endpoint is not None
    text = shown(endpoint.port)
    endpoint.stop()

    assert "likeness_test_seen_total 3.0" in text
    assert "_created" not in text
    with pytest.raises(httpx.ConnectError):
        shown(endpoint.port)


def test_the_process_itself_is_shown_too() -> None:
    endpoint = metrics.serve("127.0.0.1", 0)
    assert endpoint is not None
    text = shown(endpoint.port)
    endpoint.stop()

    assert "process_resident_memory_bytes" in text


def test_no_port_means_no_metrics() -> None:
    assert metrics.serve("127.0.0.1", -1) is None


def test_a_port_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        metrics.serve("127.0.0.1", other.getsockname()[1])


def test_several_processes_are_shown_as_one(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    child = "from prometheus_client import Counter; Counter('likeness_test_done', 'Done.').inc(2)"
    parent = """
import urllib.request
from chassis import metrics
endpoint = metrics.serve("127.0.0.1", 0)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
print(opener.open(f"http://127.0.0.1:{endpoint.port}/metrics").read().decode())
endpoint.stop()
"""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", child], env=environment, check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-c", parent], env=environment, check=True, timeout=60, capture_output=True, text=True
    )

    assert "likeness_test_done_total 4.0" in done.stdout
    assert "process_resident_memory_bytes" in done.stdout
