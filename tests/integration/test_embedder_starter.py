"""``python -m embedder`` as it comes: the starter model, on the device that it chooses by itself."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from likeness.common.v1 import types_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc

from chassis.vectors import Array, from_proto
from tests.pictures import noise, samples
from tests.processes import Service, start_service

TRIES = 20
SIZES = (2, 3, 8, 16)


@pytest.fixture(scope="module", params=["openvino", "torch"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """On that backend; its batches wait a moment for the pictures that were sent together."""
    environment = {
        "LIKENESS_BACKEND": request.param,
        "LIKENESS_PRECISION": "fp32",
        "LIKENESS_MAX_BATCH": str(max(SIZES)),
        "LIKENESS_BATCH_WAIT_MS": "300",
    }
    if request.param == "openvino":
        environment["LIKENESS_DEVICE"] = "cpu"  # openvino is refused on a GPU; torch may choose
    started = start_service("embedder", environment, "LIKENESS_EMBEDDER_PORT", tmp_path_factory.mktemp("embedder"))
    yield started
    started.kill()


def embed(stub: embedder_pb2_grpc.EmbedderServiceStub, pictures: list[bytes]) -> tuple[Array, int]:
    """Their vectors, float32 [n, 512], and the largest batch that one of them was in."""
    inputs = [embedder_pb2.EmbedInput(image=types_pb2.Image(encoded=each)) for each in pictures]
    answer = stub.Embed(embedder_pb2.EmbedRequest(inputs=inputs), timeout=60)
    return np.stack([from_proto(each.vector, "", 512) for each in answer.results]), answer.timings.batch_size


def test_a_picture_s_vector_depends_neither_on_the_size_of_its_batch_nor_on_its_companions(
    service: Service, tmp_path: Path
) -> None:
    photographs = [path.read_bytes() for path in samples(tmp_path / "pictures").values()]
    with grpc.insecure_channel(service.address) as channel:
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        found = [embed(stub, [each]) for each in photographs]
        assert {size for _, size in found} == {1}
        alone = np.concatenate([vectors for vectors, _ in found])
        assert (alone @ alone.T)[~np.eye(len(alone), dtype=bool)].max() < 0.95, "the vectors tell the pictures apart"
        for size in SIZES:
            for number in range(TRIES):  # a slow machine may decode too late for a batch
                chosen = (number + np.arange(max(1, size // 2))) % len(photographs)
                companions = [noise(100 * size + 1000 * number + n, (300, 200)) for n in range(size - len(chosen))]
                vectors, together = embed(stub, [*companions, *(photographs[n] for n in chosen)])
                assert np.abs(vectors[len(companions) :] - alone[chosen]).max() < 1e-4
                if together == size and number >= 2:
                    break
            assert together == size


def test_the_log_says_which_device_was_chosen_and_why(service: Service) -> None:
    lines = [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]
    (said,) = [line for line in lines if line["event"] == "device chosen"]
    (loaded,) = [line for line in lines if line["event"] == "model loaded"]
    assert said["device"] == loaded["device"]
    named = loaded["backend"] == "openvino"  # by the fixture
    assert (said["reason"] == "LIKENESS_DEVICE names it") is named
    assert said["reason"]
