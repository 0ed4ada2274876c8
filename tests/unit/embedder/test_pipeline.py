"""Calls through the whole engine, with a model process that follows orders: order, batches, lanes, bounds."""

import asyncio
import io
import time

import numpy as np
import pytest
from PIL import Image

from chassis.errors import LikenessError
from embedder.batcher import BatchQueue
from embedder.entries import Call
from embedder.inputs import EncodedPicture, Input, Lane
from tests.unit.embedder import fake_worker as fake
from tests.unit.embedder.bench import WAIT_S, Build, grey, reason, vectors, words
from tests.unit.embedder.fake_worker import angle


@pytest.fixture
def nobody_starves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bulk has no turn of its own, however long the machine takes."""
    monkeypatch.setattr("embedder.batcher.STARVING_S", 3600.0)


async def test_results_come_in_the_order_of_the_inputs(build: Build) -> None:
    bench = await build()
    levels = [10, 200, 30, 90, 50, 140, 70]
    inputs: list[Input] = [grey(level) for level in levels]
    inputs[2:2] = [words(33)]
    inputs.append(words(80))
    outcomes, timings = await bench.together(*inputs)
    for got, level in zip(vectors(outcomes), [10, 200, 33, 30, 90, 50, 140, 70, fake.CONTEXT], strict=True):
        assert np.allclose(got, angle(level))
    assert [o.truncated for o in outcomes] == [False] * 8 + [True]
    assert timings.batch_size == 4


async def test_batches_form_across_calls_while_the_model_is_busy(build: Build) -> None:
    bench = await build()
    first, held = await bench.hold()
    calls = [bench.start(bench.outcomes(grey(level))) for level in range(20, 24)]
    await bench.until(lambda: bench.pipeline.waiting_for_model >= 4)
    held.release()
    for level, call in zip(range(20, 24), calls, strict=True):
        assert np.allclose(vectors(await call), [angle(level)])
    await first
    assert bench.count("batch_size_sum", kind="image") - bench.count("batch_size_count", kind="image") == 3


async def test_cancelling_drops_what_has_not_begun_and_counts_it(build: Build) -> None:
    bench = await build(max_batch=2)
    first, held = await bench.hold()
    call = bench.start(bench.embed(*[grey(level) for level in range(20, 40)]))
    await bench.until(lambda: bench.pipeline.waiting_for_model >= 4)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    held.release()
    await first
    assert np.allclose(vectors(await bench.outcomes(grey(50))), [angle(50)])

    def dropped(stage: str) -> float:
        return bench.count("dropped_total", stage=stage, why="cancelled")

    await bench.until(lambda: dropped("decode") + dropped("inference") >= 20)  # of some, the decoding had begun
    assert dropped("decode") > 0
    assert dropped("inference") > 0
    assert dropped("decode") + dropped("inference") == 20
    assert bench.count("items_total", kind="image", lane="interactive", result="cancelled") == 20


async def test_what_is_past_its_deadline_is_dropped_and_told(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await build()
    first, held = await bench.hold()
    late = bench.start(bench.outcomes(grey(20), words(3), deadline=time.monotonic() + 1800))
    await bench.until(lambda: bench.pipeline.waiting_for_model >= 2)
    waits = Call.waits
    monkeypatch.setattr(Call, "waits", lambda call, now: waits(call, now + 3600))
    held.release()
    await first
    assert [reason(outcome) for outcome in await late] == ["DEADLINE_EXCEEDED"] * 2
    assert bench.count("dropped_total", stage="inference", why="expired") == 2


async def test_what_expires_before_it_is_decoded_is_dropped_there_and_not_taken_for_cancelled(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await build()
    first, held = await bench.hold()
    decoded = bench.count("decode_seconds_count", kind="image")
    deadline = time.monotonic() + 1800
    late = bench.start(bench.outcomes(*[grey(20 + n) for n in range(20)], lane=Lane.BULK, deadline=deadline))
    gone = bench.start(bench.embed(*[grey(60 + n) for n in range(5)], lane=Lane.BULK))
    await bench.until(lambda: bench.pipeline.waiting_for_model == 8)  # bulk's share of the rows of pixels
    await bench.until(lambda: len(bench.pipeline._in_flight) == 1 + 20 + 5)
    gone.cancel()
    await asyncio.wait({gone})
    waits = Call.waits
    monkeypatch.setattr(Call, "waits", lambda call, now: waits(call, now + 3600))
    held.release()
    await first
    assert [reason(outcome) for outcome in await late] == ["DEADLINE_EXCEEDED"] * 20
    dropped = {
        (stage, why): bench.count("dropped_total", stage=stage, why=why)
        for stage in ("decode", "inference")
        for why in ("expired", "cancelled")
    }
    assert dropped == {
        ("decode", "expired"): 12,
        ("decode", "cancelled"): 5,
        ("inference", "expired"): 8,
        ("inference", "cancelled"): 0,
    }
    assert bench.count("decode_seconds_count", kind="image") - decoded == 8, "no work was spent on the others"
    items = {why: bench.count("items_total", kind="image", lane="bulk", result=why) for why in ("expired", "cancelled")}
    assert items == {"expired": 20, "cancelled": 5}


async def test_another_calls_work_is_not_dropped_with_it(build: Build) -> None:
    bench = await build()
    first, held = await bench.hold()
    gone = bench.start(bench.embed(grey(2)))
    stays = bench.start(bench.outcomes(grey(2)))
    await bench.until(lambda: bench.count("joined_total", kind="image") >= 1)
    gone.cancel()
    held.release()
    assert np.allclose(vectors(await stays), [angle(2)])
    await first


async def test_equal_inputs_in_flight_are_computed_once(build: Build) -> None:
    bench = await build()
    first, held = await bench.hold()
    calls = [bench.start(bench.outcomes(grey(30), words(9))) for _ in range(5)]
    await bench.until(lambda: bench.count("joined_total", kind="image") + bench.count("joined_total", kind="text") >= 8)
    rows = bench.count("batch_size_sum", kind="image") + bench.count("batch_size_sum", kind="text")
    held.release()
    for call in calls:
        assert np.allclose(vectors(await call), [angle(30), angle(9)])
    await first
    assert bench.count("batch_size_sum", kind="image") + bench.count("batch_size_sum", kind="text") - rows == 3


async def test_a_text_asked_for_again_is_remembered(build: Build) -> None:
    bench = await build(text_cache=2)
    for text in (words(3), words(4), words(3)):
        await bench.outcomes(text)
    assert bench.count("cache_hits_total", kind="text") == 1
    hits = bench.count("cache_hits_total", kind="text")
    await bench.outcomes(words(5))  # now the one with four words is forgotten
    await bench.outcomes(words(4))
    assert bench.count("cache_hits_total", kind="text") == hits
    outcomes, timings = await bench.embed(words(5))
    assert np.allclose(vectors(outcomes), [angle(5)])
    assert timings.batch_size == 0


@pytest.mark.usefixtures("nobody_starves")
async def test_interactive_waits_for_no_more_than_the_running_bulk_batch(build: Build) -> None:
    bench = await build()
    first, held = await bench.hold()
    done: list[str] = []

    async def call(name: str, lane: Lane, *inputs: Input) -> None:
        await bench.outcomes(*inputs, lane=lane)
        done.append(name)

    bulk = [bench.start(call("bulk", Lane.BULK, *[grey(40 + 4 * n + m) for m in range(4)])) for n in range(4)]
    await bench.until(lambda: bench.pipeline.waiting_for_model >= 8)
    urgent = bench.start(call("urgent", Lane.INTERACTIVE, grey(20), words(3)))
    await bench.until(lambda: bench.pipeline.waiting_for_model >= 10)
    held.release()
    await asyncio.gather(first, urgent, *bulk)
    assert done[0] == "urgent"


@pytest.mark.usefixtures("nobody_starves")
async def test_an_interactive_caller_pulls_an_equal_bulk_input_forward(build: Build) -> None:
    bench = await build()
    first, held = await bench.hold()
    done: list[str] = []

    async def call(name: str, lane: Lane, *inputs: Input) -> None:
        await bench.outcomes(*inputs, lane=lane)
        done.append(name)

    bulk = [bench.start(call(f"bulk {n}", Lane.BULK, grey(40 + n))) for n in range(12)]
    await bench.until(lambda: bench.pipeline.waiting_for_model >= 8)
    urgent = bench.start(call("urgent", Lane.INTERACTIVE, grey(51)))
    await bench.until(lambda: bench.count("joined_total", kind="image") >= 1)
    held.release()
    await asyncio.gather(first, urgent, *bulk)
    assert set(done[:2]) == {"urgent", "bulk 11"}


async def test_too_much_waiting_is_refused_and_room_is_given_back(build: Build) -> None:
    bench = await build(max_waiting_inputs=5)
    first, held = await bench.hold()
    waiting = bench.start(bench.outcomes(*[grey(level) for level in range(20, 23)]))
    await bench.until(lambda: bench.pipeline.waiting_for_model >= 3)
    with pytest.raises(LikenessError) as caught:
        await bench.embed(grey(8), grey(9))
    assert caught.value.reason_name == "OVERLOADED"
    assert caught.value.retry_after_s is not None
    assert bench.count("items_total", kind="image", lane="interactive", result="overloaded") == 2
    held.release()
    await asyncio.gather(first, waiting)
    assert len(vectors(await bench.outcomes(*[grey(level) for level in range(20, 30)]))) == 10, "a single call is taken"


async def test_calls_are_refused_unread_while_too_much_waits(build: Build) -> None:
    bench = await build(max_waiting_inputs=5)
    first, held = await bench.hold()
    bench.pipeline.require_room_unread()
    waiting = bench.start(bench.outcomes(*[grey(level) for level in range(20, 23)]))
    await bench.until(lambda: bench.pipeline.waiting_for_model >= 3)
    with pytest.raises(LikenessError) as caught:
        bench.pipeline.require_room_unread()
    assert caught.value.reason_name == "OVERLOADED"
    assert caught.value.retry_after_s is not None
    held.release()
    await asyncio.gather(first, waiting)
    bench.pipeline.require_room_unread()


async def test_a_stream_waits_where_a_call_would_be_refused(build: Build) -> None:
    bench = await build(max_waiting_inputs=4)
    inputs = [grey(level) for level in range(20, 60)]
    outcomes = await asyncio.gather(*[bench.pipeline.embed_one(each, Lane.BULK) for each in inputs])
    assert np.allclose(vectors(list(outcomes)), [angle(level) for level in range(20, 60)])


async def test_decoding_runs_ahead_by_a_bounded_number_of_pictures(build: Build) -> None:
    bench = await build()
    first, held = await bench.hold()
    call = bench.start(bench.outcomes(*[grey(20 + n) for n in range(100)], lane=Lane.BULK))
    await bench.until(lambda: bench.pipeline.waiting_for_model >= 8)
    await asyncio.to_thread(lambda: None)
    assert bench.pipeline.waiting_for_model == 8, "bulk may hold half of the sixteen rows of pixels"
    held.release()
    await first
    assert len(vectors(await call)) == 100


async def test_bulk_pictures_are_decoded_beside_any_number_of_interactive_ones(build: Build) -> None:
    bench = await build()
    stop = asyncio.Event()

    async def keep_busy(first: int) -> None:
        number = first
        while not stop.is_set():
            await bench.outcomes(*[grey(level, size=64 + number % 97) for level in range(20, 60)])
            number += 1

    busy = [bench.start(keep_busy(31 * n)) for n in range(3)]
    await bench.until(lambda: bench.count("items_total", kind="image", lane="interactive", result="ok") >= 40)
    bulk = await asyncio.wait_for(
        bench.outcomes(*[grey(level, size=9) for level in range(60, 64)], lane=Lane.BULK), WAIT_S
    )
    stop.set()
    await asyncio.gather(*busy)
    assert np.allclose(vectors(bulk), [angle(level) for level in range(60, 64)])


@pytest.mark.parametrize(("kind", "stays"), [("JPEG", True), ("WEBP", False), ("PNG", False), ("TIFF", False)])
async def test_only_a_jpeg_stays_open_while_it_waits(build: Build, kind: str, stays: bool) -> None:
    bench = await build()
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (20,) * 3).save(out, kind)
    prepared = bench.pipeline._prepare_one(EncodedPicture(out.getvalue(), "x"))
    assert not isinstance(prepared, LikenessError)
    assert (prepared.opened is not None, prepared.pixels) == (stays, 1200)
    assert np.allclose(vectors(await bench.outcomes(EncodedPicture(out.getvalue(), "x"))), [angle(20)], atol=0.02)


async def test_where_told_to_a_batch_waits_until_it_is_full(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await build(batch_wait_ms=400.0)
    begun = time.perf_counter()
    await bench.outcomes(grey(20))
    assert time.perf_counter() - begun >= 0.4
    monkeypatch.setattr(BatchQueue, "due_in", lambda queue: None)  # now nothing but another picture wakes it
    async with asyncio.timeout(WAIT_S):
        await bench.outcomes(*[grey(30 + n) for n in range(4)])


async def test_waiting_counts_as_queue_and_work_as_work(build: Build) -> None:
    bench = await build()
    begun = time.perf_counter()
    first, held = await bench.hold()
    second = bench.start(bench.embed(grey(2)))
    await bench.until(lambda: bench.pipeline.waiting_for_model >= 1)
    await asyncio.sleep(0.05)
    held.release()
    (_, one), (_, two) = await first, await second
    total = time.perf_counter() - begun
    assert two.queue >= 0.05
    assert one.inference >= 0.05
    assert one.decode > 0
    for timings in (one, two):
        assert 0 <= timings.queue <= total
        assert timings.queue + timings.inference <= total + 1e-6
