"""One call through the threads."""

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import structlog
from PIL import Image

from chassis.errors import LikenessError, invalid
from chassis.pictures import PictureLimits
from embedder.batcher import Batcher
from embedder.inputs import Array, EncodedPicture, Faulty, Input, Limits, Outcome, RgbPicture, Text, Tokens
from embedder.pipeline import Pipeline

WAIT_S = 20.0


def grey(level: int, size: int = 8) -> EncodedPicture:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (level,) * 3).save(out, "PNG")
    return EncodedPicture(out.getvalue(), "inputs[0].image")


def angle(level: float) -> Array:
    """The vector that the model below gives for a grey level or a text's length."""
    return np.array([np.cos(level / 100), np.sin(level / 100)], np.float32)


@dataclass
class Model:
    """Turns each row's level into a direction, one that a test can follow; fails and stops as it is told."""

    on_batch: Callable[[list[int]], None] = lambda levels: None
    batches: list[list[int]] = field(default_factory=list)
    device: str = "cpu"
    precision: str = "fp32"
    dimension: int = 2

    def encode_images(self, pixels: Array) -> Array:
        return self._encode([round(float(p[0, 0, 0])) for p in pixels])

    def encode_texts(self, tokens: Tokens) -> Array:
        return self._encode([int(t[0]) for t in tokens])

    def _encode(self, levels: list[int]) -> Array:
        self.batches.append(levels)
        self.on_batch(levels)
        return np.stack([angle(level) for level in levels])


def preprocess(picture: Image.Image) -> Array:
    return np.asarray(picture, np.float32).transpose(2, 0, 1)[:, :1, :1]


def tokenize(text: str) -> tuple[Tokens, bool]:
    return np.array([len(text)], np.int64), len(text) > 50


@dataclass
class Bench:
    """A pipeline over the model above."""

    model: Model
    pipeline: Pipeline
    preprocess: Callable[[Image.Image], Array] = preprocess

    def embed(self, *inputs: Input) -> Any:
        return self.pipeline.embed(inputs)


Build = Callable[..., Bench]


@pytest.fixture
def build() -> Iterator[Build]:
    threads: list[ThreadPoolExecutor] = []

    def make(
        max_batch: int = 4,
        decode_threads: int = 2,
        max_waiting: int = 1000,
        max_pixels: int = 10_000,
        prepare: Callable[[Image.Image], Array] = preprocess,
    ) -> Bench:
        model = Model()
        threads.extend([inference := ThreadPoolExecutor(1), decoders := ThreadPoolExecutor(decode_threads)])
        pipeline = Pipeline(
            preprocess=prepare,
            tokenize=tokenize,
            decoders=decoders,
            batcher=Batcher(model, inference, max_batch),
            limits=Limits(PictureLimits(2**20, max_pixels), 256, 1000),
            max_waiting=max_waiting,
        )
        return Bench(model, pipeline)

    yield make
    for pool in threads:
        pool.shutdown()


def vectors(outcomes: list[Outcome]) -> list[Array]:
    assert not [o for o in outcomes if isinstance(o.result, LikenessError)]
    return [o.result for o in outcomes if not isinstance(o.result, LikenessError)]


def reason(outcome: Outcome) -> str:
    assert isinstance(outcome.result, LikenessError)
    return outcome.result.reason_name


async def test_results_come_in_the_order_of_the_inputs(build: Build) -> None:
    bench = build(max_batch=3)
    levels = [10, 200, 30, 90, 50, 140, 70]
    inputs: list[Input] = [grey(level) for level in levels]
    inputs[2:2] = [Text("x" * 33)]
    inputs.append(Text("x" * 60))
    outcomes, timings = await bench.embed(*inputs)
    for got, level in zip(vectors(outcomes), [10, 200, 33, 30, 90, 50, 140, 70, 60], strict=True):
        assert np.allclose(got, angle(level))
    assert [o.truncated for o in outcomes] == [False] * 8 + [True]
    assert timings.batch_size == 3
    assert max(map(len, bench.model.batches)) == 3


async def test_a_bad_input_fails_alone(build: Build) -> None:
    refused = invalid("inputs[3]", "nothing is set")
    whole = grey(100)
    damaged = EncodedPicture(whole.encoded[:-30], "inputs[1].image")
    wrong = RgbPicture(2, 2, b"", "inputs[2].image")
    outcomes, _ = await build().embed(whole, damaged, wrong, Faulty(refused), Text("hello"))
    assert np.allclose(vectors([outcomes[0], outcomes[4]]), [angle(100), angle(5)])
    assert [reason(o) for o in outcomes[1:4]] == ["IMAGE_DAMAGED", "FIELD_INVALID", "FIELD_INVALID"]
    assert outcomes[3].result is refused


async def test_a_call_of_bad_inputs_only_does_not_reach_the_model(build: Build) -> None:
    bench = build()
    outcomes, timings = await bench.embed(EncodedPicture(b"junk", "inputs[0].image"))
    assert reason(outcomes[0]) == "IMAGE_FORMAT_UNSUPPORTED"
    assert bench.model.batches == []
    assert timings.batch_size == 0


async def test_a_forward_pass_that_raises_fails_its_culprit_only(build: Build) -> None:
    bench = build(max_batch=8)

    def refuse(levels: list[int]) -> None:
        if 13 in levels:
            raise RuntimeError("no thirteens")

    bench.model.on_batch = refuse
    levels = [10, 11, 12, 13, 14, 15, 16, 17]
    with structlog.testing.capture_logs() as logs:
        outcomes, _ = await bench.embed(*[grey(level) for level in levels])
    assert reason(outcomes.pop(3)) == "INTERNAL"
    assert np.allclose(vectors(outcomes), [angle(level) for level in levels if level != 13])
    incident = next(line for line in logs if line["log_level"] == "error")
    assert "no thirteens" in repr(incident["exc_info"])


async def test_the_caller_sees_an_incident_number_and_not_the_cause(build: Build) -> None:
    bench = build()

    def fail(levels: list[int]) -> None:
        raise RuntimeError("secret detail")

    bench.model.on_batch = fail
    with structlog.testing.capture_logs() as logs:
        outcomes, _ = await bench.embed(Text("hello"))
    assert isinstance(outcomes[0].result, LikenessError)
    assert "secret" not in outcomes[0].result.message
    assert logs[-1]["incident"] in outcomes[0].result.message


@pytest.mark.parametrize("value", [np.nan, 0.0, np.inf])
async def test_a_vector_without_direction_is_an_error_of_its_input_only(
    build: Build, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    bench = build()
    monkeypatch.setattr(
        bench.model, "encode_images", lambda p: np.stack([angle(1), np.full(2, value, np.float32), angle(3)])
    )
    outcomes, _ = await bench.embed(grey(1), grey(2), grey(3))
    assert reason(outcomes[1]) == "INTERNAL"
    assert np.allclose(vectors([outcomes[0], outcomes[2]]), [angle(1), angle(3)])


async def test_a_fault_of_ours_in_preparing_fails_its_input_only(build: Build) -> None:
    def prepare(picture: Image.Image) -> Array:
        if picture.width == 7:
            raise ZeroDivisionError("a bug")
        return preprocess(picture)

    outcomes, _ = await build(prepare=prepare).embed(grey(1), grey(2, size=7), grey(3))
    assert reason(outcomes[1]) == "INTERNAL"
    assert np.allclose(vectors([outcomes[0], outcomes[2]]), [angle(1), angle(3)])


async def test_cancelling_drops_what_has_not_begun(build: Build) -> None:
    bench = build(max_batch=2)
    running, go_on = threading.Event(), threading.Event()

    def hold(levels: list[int]) -> None:
        running.set()
        assert go_on.wait(WAIT_S)

    bench.model.on_batch = hold
    with structlog.testing.capture_logs() as logs:
        call = asyncio.create_task(bench.embed(*[grey(level) for level in range(10)]))
        assert await asyncio.to_thread(running.wait, WAIT_S)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        go_on.set()
        await bench.pipeline.stop()
    assert len(bench.model.batches) == 1
    dropped = [line for line in logs if line["event"] == "caller gone, undone work dropped"]
    assert [(line["inputs"], line["dropped"]) for line in dropped] == [(10, 8)]


async def test_cancelling_stops_decoding(build: Build) -> None:
    decoding, go_on = threading.Event(), threading.Event()
    decoded: list[int] = []

    def hold(picture: Image.Image) -> Array:
        decoded.append(1)
        decoding.set()
        assert go_on.wait(WAIT_S)
        return preprocess(picture)

    bench = build(decode_threads=1, prepare=hold)
    call = asyncio.create_task(bench.embed(*[grey(level) for level in range(20)]))
    assert await asyncio.to_thread(decoding.wait, WAIT_S)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go_on.set()
    await bench.pipeline.stop()
    assert len(decoded) == 1
    assert bench.model.batches == []


async def test_another_calls_work_is_not_dropped_with_it(build: Build) -> None:
    bench = build()
    running, go_on = threading.Event(), threading.Event()

    def hold(levels: list[int]) -> None:
        running.set()
        assert go_on.wait(WAIT_S)

    bench.model.on_batch = hold
    gone = asyncio.create_task(bench.embed(grey(1)))
    assert await asyncio.to_thread(running.wait, WAIT_S)
    stays = asyncio.create_task(bench.embed(grey(2)))
    gone.cancel()
    go_on.set()
    outcomes, _ = await stays
    assert np.allclose(vectors(outcomes), [angle(2)])


async def test_too_much_waiting_is_refused_and_room_is_given_back(build: Build) -> None:
    bench = build(max_waiting=5)
    running, go_on = threading.Event(), threading.Event()

    def hold(levels: list[int]) -> None:
        running.set()
        assert go_on.wait(WAIT_S)

    bench.model.on_batch = hold
    first = asyncio.create_task(bench.embed(*[grey(level) for level in range(4)]))
    assert await asyncio.to_thread(running.wait, WAIT_S)
    with pytest.raises(LikenessError) as caught:
        await bench.embed(grey(8), grey(9))
    assert (caught.value.reason_name, caught.value.retry_after_s) == ("OVERLOADED", 1.0)
    go_on.set()
    await first
    outcomes, _ = await bench.embed(*[grey(level) for level in range(6)])
    assert len(vectors(outcomes)) == 6, "a single call is taken whatever its size"


async def test_pictures_decoded_at_a_time_are_bounded_by_their_pixels(build: Build) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def watched(picture: Image.Image) -> Array:
        nonlocal now, most
        with lock:
            now += picture.width * picture.height
            most = max(most, now)
        row = preprocess(picture)
        with lock:
            now -= picture.width * picture.height
        return row

    bench = build(decode_threads=8, max_pixels=10_000, prepare=watched)
    outcomes, _ = await bench.embed(*[grey(level, size=60) for level in range(40)])
    assert len(vectors(outcomes)) == 40
    assert most <= 2 * 60 * 60


async def test_waiting_counts_as_queue_and_work_as_work(build: Build) -> None:
    bench = build()
    running, go_on = threading.Event(), threading.Event()

    def hold(levels: list[int]) -> None:
        running.set()
        assert go_on.wait(WAIT_S)

    bench.model.on_batch = hold
    begun = asyncio.get_running_loop().time()
    first = asyncio.create_task(bench.embed(grey(1)))
    assert await asyncio.to_thread(running.wait, WAIT_S)
    second = asyncio.create_task(bench.embed(grey(2)))
    await asyncio.sleep(0)
    go_on.set()
    (_, one), (_, two) = await first, await second
    total = asyncio.get_running_loop().time() - begun
    assert two.queue > 0
    assert one.inference > 0
    assert one.decode > 0
    for timings in (one, two):
        assert 0 <= timings.queue <= total
        assert timings.queue + timings.inference <= total
