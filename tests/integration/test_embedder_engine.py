"""The engine behind ``python -m embedder``, seen from outside: lanes, streams, overload, a model process that dies."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from likeness.common.v1 import types_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc

from chassis.errors import from_status
from chassis.vectors import from_proto
from tests.pictures import noise, shared
from tests.processes import Service, eventually, free_port, metric, start_service
from tests.unit.embedder import tiny

Input = embedder_pb2.EmbedInput
Request = embedder_pb2.EmbedStreamRequest
Stub = embedder_pb2_grpc.EmbedderServiceStub
Start = Callable[..., Service]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.save_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def start(model: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    started: list[Service] = []
    cache = str(tmp_path_factory.getbasetemp() / "converted")

    def run(**settings: str) -> Service:
        environment = {"LIKENESS_MODEL": model, "LIKENESS_DEVICE": "cpu", "LIKENESS_CACHE_DIR": cache, **settings}
        started.append(start_service("embedder", environment, "LIKENESS_EMBEDDER_PORT", tmp_path))
        return started[-1]

    yield run
    for service in started:
        if service.process.poll() is None:
            service.kill()


def connect(service: Service) -> grpc.Channel:
    return grpc.insecure_channel(
        service.address, options=[("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)]
    )


def picture(encoded: bytes) -> Input:
    return Input(image=types_pb2.Image(encoded=encoded))


def model_process(service: Service) -> psutil.Process:
    (child,) = psutil.Process(service.process.pid).children()
    return child


def serving(channel: grpc.Channel) -> bool:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_a_stream_answers_every_input_once_with_the_vectors_of_calls(start: Start) -> None:
    service = start()
    pictures = [noise(n, (90, 60)) for n in range(40)]
    with connect(service) as channel:
        stub = Stub(channel)
        called = stub.Embed(embedder_pb2.EmbedRequest(inputs=map(picture, pictures)), timeout=60)
        requests = [Request(correlation_id=1000 + n, input=picture(p)) for n, p in enumerate(pictures)]
        requests[7].input.image.encoded = b"junk"
        requests.append(Request(correlation_id=5, input=Input(text="a text")))
        first, *answers = stub.EmbedStream(iter(requests), timeout=60)
    assert first.opened.window == 64
    assert first.opened.fingerprint == called.fingerprint
    results = {answer.result.correlation_id: answer.result.result for answer in answers}
    assert len(answers) == len(results) == 41
    assert results[1007].error.reason == 20, "IMAGE_FORMAT_UNSUPPORTED"
    for n in set(range(40)) - {7}:
        assert np.allclose(
            from_proto(results[1000 + n].vector, ""), from_proto(called.results[n].vector, ""), atol=1e-4
        )


def test_a_stream_ends_cleanly_on_sigterm_with_everything_accepted_answered(start: Start) -> None:
    service = start(LIKENESS_STREAM_WINDOW="16")
    sent, answered = [], []
    stopping = threading.Event()

    def requests() -> Iterator[Request]:
        for n in range(100_000):
            if stopping.is_set():
                return
            sent.append(n)
            yield Request(correlation_id=n, input=Input(text=f"text {n}"))

    with connect(service) as channel:
        for answer in Stub(channel).EmbedStream(requests(), timeout=60):
            kind = answer.WhichOneof("message")
            if kind == "result":
                assert answer.result.result.HasField("vector")
                answered.append(answer.result.correlation_id)
                if len(answered) == 50:
                    service.process.send_signal(signal.SIGTERM)
            elif kind == "stopping":
                stopping.set()
    assert stopping.is_set(), "the stream ended with OK after it had said that it would"
    assert service.process.wait(30) == 0
    assert len(answered) == len(set(answered)) >= 50
    assert sorted(answered) == list(range(len(answered))), "what was read was read in order, and all of it answered"


def test_a_killed_model_process_fails_no_call_and_is_replaced(start: Start) -> None:
    service = start(LIKENESS_EMBEDDER_METRICS_PORT=str(port := free_port()))
    first = model_process(service)
    with connect(service) as channel, ThreadPoolExecutor(4) as clients:
        stub = Stub(channel)

        def bulk(seed: int) -> embedder_pb2.EmbedRequest:
            inputs = [picture(noise(seed * 1000 + n, (300, 200))) for n in range(40)]
            return embedder_pb2.EmbedRequest(inputs=inputs, priority=embedder_pb2.PRIORITY_BULK)

        # Made before any is sent: a call that comes while the model is away is refused, with a time to try again.
        requests = [bulk(seed) for seed in range(4)]
        calls = [clients.submit(stub.Embed, request, timeout=90) for request in requests]
        while metric(port, "likeness_embedder_batch_size_count", kind="image") < 3:
            pass
        os.kill(first.pid, signal.SIGKILL)
        answers = [call.result() for call in calls]
        for answer in answers:
            assert [r.WhichOneof("result") for r in answer.results] == ["vector"] * 40
        # The last answers may have come before the signal did.
        assert eventually(lambda: '"why": "the model is back"' in service.log)
        assert serving(channel)
        for request, answer in zip(requests, answers, strict=True):
            undisturbed = stub.Embed(request, timeout=90)
            pairs = zip(answer.results, undisturbed.results, strict=True)
            assert all(np.abs(from_proto(a.vector, "") - from_proto(b.vector, "")).max() < 1e-4 for a, b in pairs)
    assert model_process(service).pid != first.pid
    assert metric(port, "likeness_embedder_model_restarts_total", why="died") == 1
    said = service.log
    assert said.index('"serving": false, "why": "the model process died"') < said.index('"why": "the model is back"')


def test_a_model_process_ends_with_its_killed_parent(start: Start) -> None:
    service = start()
    child = model_process(service)
    service.kill()
    child.wait(20)
    assert not child.is_running()


def test_overload_is_refused_at_once_with_a_time_to_try_again(start: Start) -> None:
    service = start(LIKENESS_MAX_WAITING_INPUTS="20", LIKENESS_DECODE_THREADS="1")
    with connect(service) as channel, ThreadPoolExecutor(1) as clients:
        stub = Stub(channel)
        large = [picture(noise(n, (2000, 1500))) for n in range(20)]
        # Remembered from now on, so that it is never what fills the room when the large call comes.
        stub.Embed(embedder_pb2.EmbedRequest(inputs=[Input(text="me too")]), timeout=60)
        waiting = clients.submit(stub.Embed, embedder_pb2.EmbedRequest(inputs=large), timeout=90)
        refused = None
        while refused is None and not waiting.done():
            begun = time.perf_counter()
            try:
                stub.Embed(embedder_pb2.EmbedRequest(inputs=[Input(text="me too")]), timeout=60)
            except grpc.RpcError as error:
                took, refused = time.perf_counter() - begun, error
        assert refused is not None
        assert isinstance(refused, grpc.Call)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = rpc_status.from_call(refused)
        assert status is not None
        error = from_status(status)
        assert error.reason_name == "OVERLOADED"
        assert error.retry_after_s
        trailers = dict(refused.trailing_metadata() or ())
        assert int(trailers["grpc-retry-pushback-ms"]) == pytest.approx(error.retry_after_s * 1000, abs=1)
        assert took < 1.0
        assert len(waiting.result().results) == 20


def test_the_poison_corpus_again_and_again_leaves_memory_and_readiness_as_they_were(start: Start) -> None:
    folder = shared("poison")
    service = start(LIKENESS_MAX_INPUTS="100")
    poison = [path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix not in (".tsv", ".txt")]
    family = [psutil.Process(service.process.pid), model_process(service)]

    def rss_mb() -> float:
        return sum(process.memory_info().rss for process in family) / 2**20

    with connect(service) as channel:
        stub = Stub(channel)

        def feed(rounds: int) -> None:
            for _ in range(rounds):
                request = embedder_pb2.EmbedRequest(inputs=map(picture, poison))
                results = stub.Embed(request, timeout=100).results
                assert {r.WhichOneof("result") for r in results} == {"vector", "error"}

        feed(4)
        before = rss_mb()
        feed(8)
        assert rss_mb() - before < 100, "a leak of some MB a round would show"
        assert serving(channel)
