"""LIKENESS_WORKERS: several embedders behind one port, as real processes."""

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc

from chassis import health
from embedder.replicas import reserve
from gateway.backends import Embedder
from gateway.settings import GatewaySettings
from tests.processes import START_S, Service, launch, start_service

PORT = "LIKENESS_EMBEDDER_PORT"
TWO = {"LIKENESS_WORKERS": "2"}
RETRIES = '{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.1s", \
"maxBackoff": "1s", "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}]}'


@contextmanager
def running(folder: Path, **environment: str) -> Iterator[Service]:
    """Two replicas, both serving."""
    started = start_service("embedder", TWO | environment, PORT, folder)
    try:
        serving(started, 2)
        yield started
    finally:
        if started.process.poll() is None:
            started.kill()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """For the tests after which it serves as before."""
    with running(tmp_path_factory.mktemp("shared")) as started:
        yield started


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Service]:
    """For a test that ends it."""
    with running(tmp_path) as started:
        yield started


def serving(service: Service, count: int) -> list[int]:
    """Waits until so many replicas have served in all; their process ids, in order."""
    pids: list[int] = []
    with service.log_file.open() as lines:
        while len(pids) < count:
            assert service.process.poll() is None, service.log
            for line in lines:
                if '"a replica serves"' in line and (found := re.search(r'"pid": (\d+)', line)):
                    pids.append(int(found[1]))
            if len(pids) < count:
                watch(service)
    return pids


def watch(service: Service) -> None:
    """Gives the processes a moment to write."""
    psutil.wait_procs([psutil.Process(service.process.pid)], timeout=0.1)


def embed(service: Service) -> None:
    """One call over a connection of its own, as the kernel gives it to one of the replicas."""
    with grpc.insecure_channel(
        service.address, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.service_config", RETRIES)]
    ) as channel:
        request = embedder_pb2.EmbedRequest(inputs=[embedder_pb2.EmbedInput(text="a cat")])
        answer = embedder_pb2_grpc.EmbedderServiceStub(channel).Embed(request, timeout=60)
    assert answer.results[0].HasField("vector"), answer


def metrics_port(service: Service) -> int:
    for line in service.log.splitlines():
        if '"event": "metrics"' in line and (found := re.search(r'"port": (\d+)', line)):
            return int(found[1])
    raise AssertionError(service.log)


def shown(service: Service) -> str:
    with httpx.Client(trust_env=False, timeout=10) as http:
        return http.get(f"http://127.0.0.1:{metrics_port(service)}/metrics").raise_for_status().text


def test_a_killed_replica_is_replaced_while_calls_go_on(shared: Service) -> None:
    first, second = serving(shared, 2)
    for _ in range(20):
        embed(shared)
    assert 'likeness_embedder_items_total{kind="text",lane="interactive",result="ok"}' in shown(shared)
    assert "likeness_embedder_model_up 2.0" in shown(shared)

    os.kill(second, signal.SIGKILL)
    for _ in range(20):
        embed(shared)

    *_, third = serving(shared, 3)
    assert third not in (first, second)
    for _ in range(20):
        embed(shared)
    figures = shown(shared)
    assert "likeness_embedder_replica_restarts_total 1.0" in figures
    assert "likeness_embedder_model_up 2.0" in figures


async def test_a_gateway_has_connections_to_both(shared: Service) -> None:
    def reached() -> set[int]:
        """Whoever has the other end of a connection of this process."""
        ours = {
            each.laddr for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED
        }
        return {
            child.pid
            for child in psutil.Process(shared.process.pid).children()
            for each in child.net_connections("tcp")
            if each.raddr in ours
        }

    text = [embedder_pb2.EmbedInput(text="a dog")]
    gateway = Embedder(GatewaySettings(embedder_address=shared.address, embedder_connections=40))
    try:
        await gateway.model(60)
        answers = await asyncio.gather(*[gateway.embed(text, 60, bulk=bool(n % 2)) for n in range(80)])
        assert all(answer.results[0].HasField("vector") for answer in answers)
        assert len(reached()) == 2  # one alone: once in 2 ** 79
    finally:
        await gateway.close()


def test_a_second_service_on_the_port_is_refused(shared: Service, tmp_path: Path) -> None:
    port = shared.address.rsplit(":", 1)[1]

    for workers in ("1", "2"):
        second = launch("embedder", {PORT: port, "LIKENESS_WORKERS": workers}, PORT, tmp_path)
        assert second.process.wait(START_S) == 1, second.log
        assert second.log.count("cannot listen") == int(workers)  # both write to one file

    assert shared.process.poll() is None
    embed(shared)


def test_sigterm_ends_all_processes(own: Service) -> None:
    family = psutil.Process(own.process.pid).children(recursive=True)
    assert len(family) >= 2
    embed(own)

    assert own.stop() == 0

    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    host, port = own.address.rsplit(":", 1)
    reserve(host, int(port)).close()  # nobody has it


def test_all_take_calls_after_sigterm_until_a_second_signal_to_their_parent(tmp_path: Path) -> None:
    with running(tmp_path, LIKENESS_STOP_DELAY_S="3600") as service:
        pids = serving(service, 2)
        service.process.send_signal(signal.SIGTERM)
        while service.log.count("taking calls for a while") < 2:
            watch(service)
        for pid in pids:  # as from whoever ends a whole group
            os.kill(pid, signal.SIGTERM)
        for _ in range(20):
            embed(service)
        assert health.serving(service.address, 30) == "NOT_SERVING"
        assert health.serving(service.address, 30, service="live") is None
        assert service.stop() == 0


def test_a_killed_parent_takes_all_with_it(own: Service) -> None:
    family = psutil.Process(own.process.pid).children(recursive=True)

    own.kill()

    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def test_a_model_that_cannot_be_loaded_ends_all(tmp_path: Path) -> None:
    service = launch("embedder", TWO | {"LIKENESS_MODEL": f"local-dir:{tmp_path / 'none'}"}, PORT, tmp_path)

    assert service.process.wait(START_S) == 1
    assert "cannot start" in service.log
    assert "Traceback" not in service.log
