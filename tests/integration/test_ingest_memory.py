"""Five thousand pictures, one in twenty of them hostile, through a real gateway into a real indexer.

The embedder is a stub in this process, which decodes as the real one does and makes up the vector: it is the gateway's
memory that is looked at, and the model would take minutes.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from likeness.common.v1 import types_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc

from chassis.errors import LikenessError, to_item_error
from chassis.pictures import PictureLimits
from chassis.vectors import to_proto
from embedder.decode import open_picture, upright_rgb
from embedder.inputs import EncodedPicture
from embedder.spec import Geometry
from likeness_client import Client, IndexOutcome, Picture
from tests.pictures import noise, shared
from tests.processes import Service, start_service

PICTURES, HOSTILE_EVERY, LEVEL_AT = 5000, 20, 500
MOST_GROWTH = 50 * 2**20
DIMENSION = 32
LIMITS = PictureLimits(32 * 2**20, 50_000_000)


class StubEmbedder(embedder_pb2_grpc.EmbedderServiceServicer):
    """Decodes pictures, and makes vectors of their bytes."""

    model = types_pb2.ModelFingerprint(model="stub", digest="5" * 64, dimension=DIMENSION)

    def GetModel(self, request: object, context: object) -> embedder_pb2.GetModelResponse:  # noqa: N802
        limits = types_pb2.EmbedLimits(
            max_inputs=256,
            max_encoded_bytes=LIMITS.max_encoded_bytes,
            max_pixels=LIMITS.max_pixels,
            max_message_bytes=64 * 2**20,
        )
        return embedder_pb2.GetModelResponse(fingerprint=self.model, limits=limits)

    def Embed(self, request: embedder_pb2.EmbedRequest, context: object) -> embedder_pb2.EmbedResponse:  # noqa: N802
        answer = embedder_pb2.EmbedResponse(fingerprint=self.model)
        for i, each in enumerate(request.inputs):
            encoded, field = each.image.encoded, f"inputs[{i}].image"
            try:
                opened = open_picture(EncodedPicture(encoded, field), LIMITS)
                upright_rgb(opened, LIMITS, field, Geometry(224, 224, "shortest", "bicubic")).close()
            except LikenessError as error:
                answer.results.add(error=to_item_error(error))
                continue
            seed = int.from_bytes(hashlib.sha256(encoded).digest()[:4], "little")
            vector = np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32)
            answer.results.add(vector=to_proto(vector / np.linalg.norm(vector)))
        return answer


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Service]:
    """A gateway, an indexer, and the stub."""
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 64 * 2**20)])
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(StubEmbedder(), server)  # type: ignore[abstract]
    health = HealthServicer()
    health.set("likeness.embedder.v1.EmbedderService", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    started: list[Service] = []
    try:
        data = {"LIKENESS_DATA_DIR": str(tmp_path / "indexer"), "LIKENESS_INDEXER_METRICS_PORT": "-1"}
        started.append(start_service("indexer", data, "LIKENESS_INDEXER_PORT", tmp_path))
        settings = {
            "LIKENESS_EMBEDDER_ADDRESS": f"127.0.0.1:{port}",
            "LIKENESS_INDEXER_ADDRESS": started[0].address,
            "LIKENESS_MEDIA_URL": str(tmp_path / "media"),
            "LIKENESS_HTTP_PORT": "-1",
        }
        started.append(start_service("gateway", settings, "LIKENESS_GATEWAY_PORT", tmp_path))
        yield started[1]
    finally:
        for service in reversed(started):
            service.stop()
        server.stop(None).wait()


def hostile_files() -> list[bytes]:
    """The shared files that must be refused."""
    folder = shared("poison")
    rows = [line.split("\t") for line in (folder / "manifest.tsv").read_text().splitlines()[1:]]
    return [(folder / row[0]).read_bytes() for row in rows if row[1] == "reject"]


def pictures() -> Iterator[Picture]:
    """All of them; good ones are called good, and whatever follows a JPEG's end makes each another file.

    They are few pixels in many bytes: quick to decode, while to keep them, as bytes or as pixels, would be seen.
    """
    bad = hostile_files()
    bases = [noise(seed, (96 + 8 * seed, 96)) + bytes(24 * 2**10) for seed in range(12)]
    for n in range(PICTURES):
        if n % HOSTILE_EVERY == HOSTILE_EVERY - 1:
            yield Picture(bad[n // HOSTILE_EVERY % len(bad)], id=f"bad-{n}")
        else:
            yield Picture(bases[n % len(bases)] + n.to_bytes(4, "big"), id=f"good-{n}")


def test_five_thousand_pictures_with_hostile_ones_among_them_take_no_more_memory_than_five_hundred(
    gateway: Service,
) -> None:
    process = psutil.Process(gateway.process.pid)
    level, most = 0, 0
    outcomes: list[IndexOutcome] = []
    with Client(gateway.address, timeout=120) as client:
        for outcome in client.index(pictures(), collection="many"):
            outcomes.append(outcome)
            if len(outcomes) % 50 == 0:
                held = process.memory_info().rss
                level = max(level, held) if len(outcomes) <= LEVEL_AT else level
                most = max(most, held)
        stored = client.count(collection="many")

    by_kind = {kind: [o for o in outcomes if o.picture.id.startswith(kind)] for kind in ("good", "bad")}
    assert [o.id for o in by_kind["good"] if not o.stored] == []
    assert [o.id for o in by_kind["bad"] if o.error is None or o.error.code != "INVALID_ARGUMENT"] == []
    assert len(by_kind["bad"]) == PICTURES // HOSTILE_EVERY
    assert stored == len(by_kind["good"]) == PICTURES - PICTURES // HOSTILE_EVERY
    assert most - level < MOST_GROWTH, f"{level >> 20} MiB at {LEVEL_AT} pictures, later {most >> 20}"
