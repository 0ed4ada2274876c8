"""``python -m embedder`` as a real process, with a tiny model of random weights."""

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import open_clip
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from likeness.common.v1 import types_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from PIL import Image

from chassis.errors import from_status
from chassis.vectors import from_proto
from tests.pictures import noise, shared
from tests.processes import Service, free_port, metric, run_to_end, start_service
from tests.unit.embedder import tiny

NAME = "likeness.embedder.v1.EmbedderService"
Input = embedder_pb2.EmbedInput
Stub = embedder_pb2_grpc.EmbedderServiceStub
Start = Callable[..., Service]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.save_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def start(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts an embedder with further settings; ends it after the module's tests."""
    started: list[Service] = []

    def run(**settings: str) -> Service:
        folder = tmp_path_factory.mktemp("embedder")
        environment = {"LIKENESS_MODEL": model, "LIKENESS_DEVICE": "cpu", **settings}
        started.append(start_service("embedder", environment, "LIKENESS_EMBEDDER_PORT", folder))
        return started[-1]

    yield run
    for service in started:
        if service.process.poll() is None:
            service.kill()


@pytest.fixture(scope="module")
def service(start: Start) -> Service:
    """One embedder for the tests that leave it as it is."""
    return start(
        LIKENESS_MAX_INPUTS="100",
        LIKENESS_MAX_ENCODED_MB="4",
        LIKENESS_MAX_TEXT_BYTES="500",
        LIKENESS_MAX_BATCH="4",
        LIKENESS_PRECISION="fp32",
    )


@pytest.fixture
def stub(service: Service) -> Iterator[Stub]:
    with channel_to(service) as channel:
        yield Stub(channel)


def channel_to(service: Service) -> grpc.Channel:
    return grpc.insecure_channel(service.address, options=[("grpc.max_send_message_length", -1)])


def picture(encoded: bytes) -> Input:
    return Input(image=types_pb2.Image(encoded=encoded))


def slow(count: int) -> embedder_pb2.EmbedRequest:
    """Few bytes that take long to decode; no two are equal."""
    out = io.BytesIO()
    Image.new("RGB", (5000, 4000), "teal").save(out, "PNG")
    return embedder_pb2.EmbedRequest(inputs=[picture(out.getvalue() + bytes([n])) for n in range(count)])


def embed(stub: Stub, *inputs: Input) -> embedder_pb2.EmbedResponse:
    return stub.Embed(embedder_pb2.EmbedRequest(inputs=inputs), timeout=60)


def events(service: Service) -> list[dict[str, Any]]:
    """Its log."""
    return [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]


def failure(stub: Stub, request: embedder_pb2.EmbedRequest, timeout: float = 60) -> tuple[grpc.StatusCode, str, str]:
    """Code, reason and bad field that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.Embed(request, timeout=timeout)
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    if status is None:
        return caught.value.code(), "", ""
    error = from_status(status)
    return caught.value.code(), error.reason_name, "".join(v.field for v in error.violations)


def item_error(result: embedder_pb2.EmbedResult) -> tuple[str, str]:
    assert result.WhichOneof("result") == "error"
    error = from_status(result.error.status)
    assert error.reason == result.error.reason
    return error.reason_name, error.violations[0].field


def test_get_model_names_the_model_and_every_limit(stub: Stub) -> None:
    answer = stub.GetModel(embedder_pb2.GetModelRequest())
    assert re.fullmatch(r"[0-9a-f]{64}", answer.fingerprint.digest)
    assert answer.fingerprint.dimension == 64
    assert (answer.device, answer.precision) == ("cpu", "fp32")
    limits = answer.limits
    assert (limits.max_inputs, limits.max_encoded_bytes, limits.max_text_bytes) == (100, 4 * 2**20, 500)
    assert (limits.max_pixels, limits.max_message_bytes, limits.context_length) == (50_000_000, 64 * 2**20, 32)


def test_pictures_and_texts_mixed_come_back_in_order_with_open_clips_vectors(stub: Stub, model: str) -> None:
    pictures, texts = [noise(seed, (160, 120)) for seed in range(6)], [f"text number {n}" for n in range(6)]
    inputs = [i for pair in zip(map(picture, pictures), (Input(text=t) for t in texts), strict=True) for i in pair]
    answer = embed(stub, *inputs)

    network, transform = open_clip.create_model_from_pretrained(model)
    network.eval()
    with torch.no_grad():
        pixels = torch.stack([transform(Image.open(io.BytesIO(p)).convert("RGB")) for p in pictures])
        expected = np.empty((12, 64), np.float32)
        expected[0::2] = network.encode_image(pixels, normalize=True).numpy()
        expected[1::2] = network.encode_text(open_clip.get_tokenizer(model)(texts), normalize=True).numpy()
    got = np.stack([from_proto(r.vector, "", 64) for r in answer.results])
    assert ((got * expected).sum(axis=1) > 0.9999).all()
    assert answer.fingerprint == stub.GetModel(embedder_pb2.GetModelRequest()).fingerprint


def test_timings_say_where_the_time_went(stub: Stub) -> None:
    texts = [Input(text=f"timing {n}") for n in range(6)]
    timings = embed(stub, *[picture(noise(n)) for n in range(3)], *texts).timings
    assert timings.batch_size == 6, "short texts are ready together, and more of them than pictures share a batch"
    assert timings.decode.ToNanoseconds() > 0
    assert timings.inference.ToNanoseconds() > 0
    assert timings.queue.ToNanoseconds() >= 0


def test_a_decoded_picture_gives_the_vector_of_the_encoded_one(stub: Stub) -> None:
    out = io.BytesIO()
    decoded = Image.open(io.BytesIO(noise(1))).convert("RGB")
    decoded.save(out, "PNG")
    rgb = types_pb2.RgbImage(width=decoded.width, height=decoded.height, pixels=decoded.tobytes())
    one, other = embed(stub, picture(out.getvalue()), Input(image=types_pb2.Image(rgb=rgb))).results
    assert np.allclose(from_proto(one.vector, ""), from_proto(other.vector, ""), atol=1e-5)


def test_a_cut_text_says_so(stub: Stub) -> None:
    short, long = embed(stub, Input(text="a cat"), Input(text="a cat " * 40)).results
    assert (short.truncated, long.truncated) == (False, True)


def test_bad_inputs_fail_alone_each_with_its_field(stub: Stub) -> None:
    whole = noise(3)
    results = embed(
        stub,
        picture(whole),
        Input(),
        Input(text=""),
        Input(text=" \n"),
        Input(text="é" * 251),
        Input(image=types_pb2.Image()),
        picture(b"junk"),
        picture(whole[: len(whole) // 2]),
        picture(whole + b"\0" * 4 * 2**20),
        Input(image=types_pb2.Image(rgb=types_pb2.RgbImage(width=2, height=2, pixels=b"\0" * 11))),
        Input(image=types_pb2.Image(uri="http://example.com/a.jpg")),
        Input(text="é" * 250),
    ).results
    assert results[0].WhichOneof("result") == results[-1].WhichOneof("result") == "vector"
    assert [item_error(r) for r in results[1:-1]] == [
        ("FIELD_INVALID", "inputs[1]"),
        ("FIELD_INVALID", "inputs[2].text"),
        ("FIELD_INVALID", "inputs[3].text"),
        ("FIELD_INVALID", "inputs[4].text"),
        ("FIELD_INVALID", "inputs[5].image"),
        ("IMAGE_FORMAT_UNSUPPORTED", "inputs[6].image.encoded"),
        ("IMAGE_DAMAGED", "inputs[7].image.encoded"),
        ("IMAGE_TOO_LARGE", "inputs[8].image.encoded"),
        ("FIELD_INVALID", "inputs[9].image.rgb.pixels"),
        ("FETCH_DISABLED", "inputs[10].image.uri"),
    ]


def test_a_call_without_inputs_or_with_too_many_is_refused(stub: Stub) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert failure(stub, embedder_pb2.EmbedRequest()) == (invalid, "FIELD_INVALID", "inputs")
    many = embedder_pb2.EmbedRequest(inputs=[Input(text="x")] * 101)
    assert failure(stub, many) == (invalid, "BATCH_TOO_LARGE", "inputs")


def test_too_large_a_message_is_refused_by_grpc_itself(start: Start) -> None:
    with channel_to(start(LIKENESS_MAX_MESSAGE_MB="1")) as channel:
        request = embedder_pb2.EmbedRequest(inputs=[picture(b"\0" * 2**21)])
        assert failure(Stub(channel), request)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_health_answers_for_the_service_and_for_the_process(service: Service) -> None:
    with channel_to(service) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", NAME):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name))  # type: ignore[attr-defined]
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_service(service: Service) -> None:
    with channel_to(service) as channel:
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = next(reflection.ServerReflectionInfo(iter([asked])))  # type: ignore[operator]
    assert NAME in [s.name for s in answer.list_services_response.service]


def test_a_passed_deadline_ends_the_call_and_its_work(start: Start) -> None:
    service = start(LIKENESS_DECODE_THREADS="1", LIKENESS_EMBEDDER_METRICS_PORT=str(port := free_port()))
    with channel_to(service) as channel:
        assert failure(Stub(channel), slow(200), timeout=1.0)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        assert embed(Stub(channel), Input(text="still here")).results[0].HasField("vector")
    gone = ("cancelled", "expired")
    assert sum(metric(port, "likeness_embedder_dropped_total", stage="decode", why=why) for why in gone) > 100
    assert service.stop() == 0


def test_a_call_under_way_is_answered_after_sigterm(start: Start) -> None:
    service = start(LIKENESS_LOG_LEVEL="DEBUG")
    with channel_to(service) as channel:
        stub = Stub(channel)
        call = stub.Embed.future(slow(10), timeout=60)
        stub.GetModel(embedder_pb2.GetModelRequest())  # comes after it on the same connection
        assert service.stop() == 0
        assert [r.WhichOneof("result") for r in call.result().results] == ["vector"] * 10
    lines = events(service)
    stopping = next(n for n, line in enumerate(lines) if line.get("why") == "stopping")
    answered = next(n for n, line in enumerate(lines) if line["event"] == "call" and line["method"].endswith("/Embed"))
    assert stopping < answered
    assert lines[answered]["code"] == "OK"


def high_water_mb(service: Service) -> int:
    """The most memory that the serving process and the model process have held so far, added up."""
    processes = [service.process.pid, *(child.pid for child in psutil.Process(service.process.pid).children())]
    statuses = [Path(f"/proc/{pid}/status") for pid in processes]
    if not statuses[0].exists():
        pytest.skip("needs /proc")
    found = [re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) for status in statuses]
    return sum(int(each[1]) for each in found if each) // 1024


def test_many_large_pictures_in_one_call_stay_within_bounded_memory(start: Start) -> None:
    service = start(LIKENESS_DECODE_THREADS="4")
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8000, 6000), "teal").save(out, "JPEG", exif=exif)
    with channel_to(service) as channel:
        embed(Stub(channel), picture(noise(1)), Input(text="warm"))
        before = high_water_mb(service)
        results = embed(Stub(channel), *[picture(out.getvalue() + bytes([n])) for n in range(12)]).results
    assert [r.WhichOneof("result") for r in results] == ["vector"] * 12
    assert high_water_mb(service) - before < 700, "12 of them decoded at once would take 2,300 MB"


def test_the_poison_corpus_among_good_neighbours(start: Start) -> None:
    folder = shared("poison")
    rows = [line.split("\t") for line in (folder / "manifest.tsv").read_text().splitlines()[1:]]
    service = start()
    with channel_to(service) as channel:
        embed(Stub(channel), picture(noise(1)), Input(text="warm"))
        before = high_water_mb(service)
        inputs = [i for row in rows for i in (picture((folder / row[0]).read_bytes()), picture(noise(5)))]
        results = embed(Stub(channel), *inputs).results
    neighbours = {r.vector.f32 for r in results[1::2]}
    assert len(neighbours) == 1 or np.ptp([np.frombuffer(n, "<f4") for n in neighbours], axis=0).max() < 1e-4
    outcomes = {row[0]: r.WhichOneof("result") for row, r in zip(rows, results[0::2], strict=True)}
    assert outcomes == {row[0]: "vector" if row[1] == "ok" else "error" for row in rows}
    assert high_water_mb(service) - before < 1000
    assert service.process.poll() is None


def test_help_prints_every_setting() -> None:
    run = run_to_end("embedder", {}, ["--help"])
    assert run.returncode == 0
    for variable in ("LIKENESS_EMBEDDER_PORT", "LIKENESS_MODEL", "LIKENESS_MAX_BATCH", "LIKENESS_MAX_PIXELS"):
        assert variable in run.stdout


@pytest.mark.parametrize(
    ("variable", "value"),
    [("LIKENESS_MAX_BATCH", "-1"), ("LIKENESS_DEVICE", "tpu"), ("LIKENESS_MAX_PIXELS", "999999999999")],
)
def test_a_bad_setting_ends_with_2_and_is_named(variable: str, value: str) -> None:
    run = run_to_end("embedder", {variable: value})
    assert run.returncode == 2
    assert f"{variable}='{value}'" in run.stderr


def test_a_model_that_cannot_be_had_ends_with_1_and_says_what_to_do() -> None:
    run = run_to_end("embedder", {"LIKENESS_EMBEDDER_PORT": "0", "LIKENESS_MODEL": "ViT-B32"})
    assert run.returncode == 1
    assert "Did you mean ViT-B-32" in run.stderr
