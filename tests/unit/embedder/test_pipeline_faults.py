"""What goes wrong in the engine costs what caused it, and nothing else: bad inputs, failing passes, lost models."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest
import structlog
from prometheus_client import CollectorRegistry

from chassis import trace
from chassis.errors import LikenessError, invalid
from embedder import worker_process
from embedder.assembly import open_pipeline
from embedder.batcher import BatchQueue
from embedder.inputs import Array, EncodedPicture, Faulty, Input, Lane, RgbPicture
from embedder.metrics import Metrics
from embedder.settings import EmbedderSettings
from embedder.slab import shared_file
from embedder.supervisor import Supervisor
from embedder.worker_process import WorkerLostError, WorkerProcess
from tests.unit.embedder import fake_worker as fake
from tests.unit.embedder.bench import (
    COMMAND,
    WAIT_S,
    Bench,
    Build,
    grey,
    ignore,
    model_processes,
    reason,
    vectors,
    words,
)
from tests.unit.embedder.fake_worker import angle


async def test_a_bad_input_fails_alone_under_its_own_name(build: Build) -> None:
    refused = invalid("inputs[3]", "nothing is set")
    whole = grey(100)
    damaged = EncodedPicture(whole.encoded[:-30], "inputs[1].image")
    wrong = RgbPicture(2, 2, b"", "inputs[2].image")
    outcomes = await (await build()).outcomes(whole, damaged, wrong, Faulty(refused), words(5))
    assert np.allclose(vectors([outcomes[0], outcomes[4]]), [angle(100), angle(5)])
    assert [reason(o) for o in outcomes[1:4]] == ["IMAGE_DAMAGED", "FIELD_INVALID", "FIELD_INVALID"]
    errors = [o.result for o in outcomes[1:3] if isinstance(o.result, LikenessError)]
    assert [e.violations[0].field for e in errors] == ["inputs[1].image.encoded", "inputs[2].image.rgb.pixels"]
    assert all(e.message.startswith(e.violations[0].field) for e in errors)
    assert outcomes[3].result is refused


async def test_equal_bad_pictures_in_flight_are_each_told_under_their_own_name(build: Build) -> None:
    cut = grey(100, size=64).encoded[:-40]
    outcomes = await (await build()).outcomes(
        EncodedPicture(cut, "inputs[0].image"), EncodedPicture(cut, "inputs[1].image")
    )
    fields = [o.result.violations[0].field for o in outcomes if isinstance(o.result, LikenessError)]
    assert fields == ["inputs[0].image.encoded", "inputs[1].image.encoded"]


async def test_a_want_of_memory_before_decoding_passes_and_is_no_fault_of_ours(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    bench = await build()
    with monkeypatch.context() as patch:
        patch.setattr("embedder.pipeline.open_picture", no_memory)
        (outcome,) = await bench.outcomes(grey(7))
    assert isinstance(outcome.result, LikenessError)
    assert (outcome.result.reason_name, outcome.result.retry_after_s) == ("OVERLOADED", 1.0)
    assert np.allclose(vectors(await bench.outcomes(grey(7))), [angle(7)])


async def test_a_call_of_bad_inputs_only_does_not_reach_the_model(build: Build) -> None:
    bench = await build()
    before = bench.count("batch_size_count", kind="image")
    outcomes, timings = await bench.embed(EncodedPicture(b"junk", "inputs[0].image"))
    assert reason(outcomes[0]) == "IMAGE_FORMAT_UNSUPPORTED"
    assert timings.batch_size == 0
    assert bench.count("batch_size_count", kind="image") == before


async def test_a_forward_pass_that_raises_fails_its_culprit_only(build: Build) -> None:
    bench = await build(max_batch=8)
    levels = [10, 11, 12, fake.RAISE, 20, 21, 22, 23]
    with structlog.testing.capture_logs(processors=[trace.in_log]) as logs:
        first, held = await bench.hold()
        entered = trace.enter(cause := trace.Trace.of([]))
        call = bench.start(bench.embed(*[grey(level) for level in levels]))
        trace.leave(entered)
        await bench.until(lambda: bench.pipeline.waiting_for_model >= len(levels))
        held.release()
        await first
        outcomes, _ = await call
    culprit = outcomes.pop(3)
    assert reason(culprit) == "INTERNAL"
    assert isinstance(culprit.result, LikenessError)
    assert "thirteens" not in culprit.result.message
    assert np.allclose(vectors(outcomes), [angle(level) for level in levels if level != fake.RAISE])
    incident = next(line for line in logs if line["log_level"] == "error")
    assert "no thirteens" in repr(incident["exc_info"])
    assert incident["incident"] in culprit.result.message
    assert incident["trace_id"] == cause.id
    # Of a batch it is nobody's.
    assert [line.get("trace_id") for line in logs if line["event"].endswith("halving the batch")] == [None] * 3


async def test_a_vector_without_direction_is_an_error_of_its_input_only(build: Build) -> None:
    outcomes, timings = await (await build()).together(grey(1), grey(fake.NOT_A_NUMBER), grey(3))
    assert timings.batch_size == 3
    assert reason(outcomes[1]) == "INTERNAL"
    assert np.allclose(vectors([outcomes[0], outcomes[2]]), [angle(1), angle(3)])


async def test_out_of_memory_halves_the_batches_and_they_grow_again(build: Build) -> None:
    bench = await build(max_batch=8)
    levels = [*range(20, 27), fake.NO_MEMORY]
    assert bench.count("batch_limit", kind="image") == 8
    outcomes, _ = await bench.together(*[grey(level) for level in levels])
    assert np.allclose(vectors(outcomes), [angle(level) for level in levels])
    small = bench.count("batch_limit", kind="image")
    assert small < 8
    assert bench.count("batch_failures_total", why="out_of_memory") == 2, "of all eight, then of the four with it"
    for level in range(100):
        await bench.outcomes(grey(100 + level))
    assert bench.count("batch_limit", kind="image") > small


async def test_out_of_memory_halves_what_a_batch_of_texts_was(build: Build) -> None:
    bench = await build(max_batch=0)  # as on a slow model: two full texts, or eight short ones, although four may be
    assert bench.count("batch_limit", kind="text") == 4
    outcomes, _ = await bench.together(words(9), words(10), words(fake.NO_MEMORY))
    assert np.allclose(vectors(outcomes), [angle(level) for level in (9, 10, fake.NO_MEMORY)])
    assert bench.count("batch_failures_total", why="out_of_memory") == 1
    assert bench.count("batch_limit", kind="text") == 1


async def test_a_model_killed_in_mid_batch_hurts_nobody(build: Build) -> None:
    bench = await build()
    first, _ = await bench.hold()
    others = [bench.start(bench.outcomes(grey(level))) for level in range(20, 26)]
    await bench.until(lambda: bench.pipeline.waiting_for_model >= 6)
    killed = bench.model_pid
    os.kill(killed, signal.SIGKILL)
    again = await bench.next_held()  # the batch runs once more, on another process
    again.release()
    outcomes, _ = await first
    assert np.allclose(vectors(outcomes), [angle(fake.HOLD)])
    for level, call in zip(range(20, 26), others, strict=True):
        assert np.allclose(vectors(await call), [angle(level)])
    assert [serving for serving, _ in bench.said] == [False, True]
    assert bench.model_pid != killed
    assert bench.count("model_restarts_total", why="died") == 1
    assert bench.count("model_up") == 1


async def test_a_batch_whose_model_is_killed_is_run_again_and_each_of_its_items_has_its_own_vector(
    build: Build,
) -> None:
    bench = await build()
    first, held = await bench.hold()
    levels = [20, fake.HOLD, 22, 23]
    call = bench.start(bench.outcomes(*[grey(level, size=9) for level in levels]))
    await bench.until(lambda: bench.pipeline.waiting_for_model == 4)
    held.release()
    await first
    assert sorted((await bench.next_held()).levels) == sorted(levels), "all four are in the batch that runs"
    os.kill(bench.model_pid, signal.SIGKILL)
    (await bench.next_held()).release()
    assert np.allclose(vectors(await call), [angle(level) for level in levels])
    assert bench.count("batch_failures_total", why="lost") == 1


async def test_a_picture_that_kills_the_model_fails_alone(build: Build) -> None:
    bench = await build()
    outcomes, _ = await bench.together(grey(20), grey(fake.DIE), grey(22), grey(23))
    assert reason(outcomes.pop(1)) == "INTERNAL"
    assert np.allclose(vectors(outcomes), [angle(20), angle(22), angle(23)])
    # Of the four, of the half with it, and alone.
    assert bench.count("batch_failures_total", why="lost") == 3
    assert np.allclose(vectors(await bench.outcomes(grey(30))), [angle(30)])


async def test_a_picture_that_hangs_the_model_fails_alone_and_the_model_is_started_again(build: Build) -> None:
    # The two share a batch, unless the machine is so slow that they fall in two; nothing hangs but what should.
    bench = await build(max_batch=2, batch_wait_ms=1000.0, stuck_s=3.0)
    outcomes = await bench.outcomes(grey(20), grey(fake.HANG))
    assert reason(outcomes.pop(1)) == "INTERNAL"
    assert np.allclose(vectors(outcomes), [angle(20)])
    await bench.until(lambda: bench.count("model_restarts_total", why="stuck") >= 2)
    await bench.until(lambda: bench.pipeline.is_up)
    assert np.allclose(vectors(await bench.outcomes(grey(30))), [angle(30)])


async def test_a_model_process_that_no_kill_ends_is_replaced_all_the_same(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await build(stuck_s=1.0, max_batch=1)
    endless = psutil.Process(bench.model_pid)

    def kill_others(process: asyncio.subprocess.Process) -> None:
        if process.pid != endless.pid:
            kill(process)

    kill = worker_process._kill
    monkeypatch.setattr(worker_process, "_kill", kill_others)
    monkeypatch.setattr(worker_process, "GONE_S", 0.01)
    with structlog.testing.capture_logs() as logs:
        assert reason((await bench.outcomes(grey(fake.HANG)))[0]) == "INTERNAL"
    assert endless.is_running()
    assert endless.pid in [each["pid"] for each in logs if "does not end" in each["event"]]
    await bench.until(lambda: bench.pipeline.is_up)
    assert np.allclose(vectors(await bench.outcomes(grey(30))), [angle(30)])
    endless.kill()
    await bench.until(lambda: len(model_processes()) == 1)


async def test_without_a_model_calls_are_told_to_try_again_and_streams_wait(build: Build) -> None:
    bench = await build()
    os.kill(bench.model_pid, signal.SIGSTOP)  # so that the next one is not there at once
    psutil.Process(bench.model_pid).kill()
    await bench.until(lambda: not bench.pipeline.is_up)
    with pytest.raises(LikenessError) as caught:
        await bench.embed(grey(1))
    assert (caught.value.reason_name, caught.value.retry_after_s) == ("NOT_READY", 2.0)
    outcome = await bench.pipeline.embed_one(grey(2), Lane.BULK)
    assert np.allclose(vectors([outcome]), [angle(2)])


async def test_without_a_model_no_call_is_refused_unread_however_much_waits(build: Build) -> None:
    bench = await build(max_waiting_inputs=5)
    first, _ = await bench.hold()
    waiting = bench.start(bench.outcomes(*[grey(level) for level in range(20, 23)]))
    await bench.until(lambda: bench.pipeline.waiting_for_model >= 3)
    with pytest.raises(LikenessError):
        bench.pipeline.require_room_unread()
    os.kill(bench.model_pid, signal.SIGSTOP)  # so that the next one is not there at once
    psutil.Process(bench.model_pid).kill()
    await bench.until(lambda: not bench.pipeline.is_up)
    bench.pipeline.require_room_unread()
    (await bench.held.get()).release()  # the first one's batch, which the next model process runs again
    await asyncio.gather(first, waiting)


async def test_a_model_that_dies_while_idle_is_replaced(build: Build) -> None:
    bench = await build()
    os.kill(bench.model_pid, signal.SIGKILL)
    await bench.until(lambda: len(bench.said) >= 2)
    assert [serving for serving, _ in bench.said] == [False, True]
    assert np.allclose(vectors(await bench.outcomes(grey(7))), [angle(7)])


async def test_a_model_that_comes_back_under_another_name_is_the_same_model(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await build()
    monkeypatch.setenv(fake.NAME, "fake, by another path")
    with structlog.testing.capture_logs() as logs:
        os.kill(bench.model_pid, signal.SIGKILL)
        await bench.until(lambda: len(bench.said) >= 2 or any("has changed" in line["event"] for line in logs))
    assert [serving for serving, _ in bench.said] == [False, True]
    assert bench.pipeline.spec.name == "fake"


async def test_a_fault_of_ours_in_running_a_batch_costs_that_batch_only(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await build()
    with monkeypatch.context() as patch:
        patch.setattr("embedder.inference.Inference._padded", lambda *_: 1 / 0)
        assert reason((await bench.outcomes(words(5)))[0]) == "INTERNAL"
    assert np.allclose(vectors(await bench.outcomes(words(5))), [angle(5)])


async def test_after_a_batch_that_took_too_long_the_next_are_smaller(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = WorkerProcess.encode_images

    async def slow(worker: WorkerProcess, slots: Sequence[int]) -> Array:
        if len(slots) > 4:
            raise WorkerLostError("stuck")
        return await encode(worker, slots)

    monkeypatch.setattr(WorkerProcess, "encode_images", slow)
    bench = await build(max_batch=8)
    levels = range(20, 28)
    outcomes, _ = await bench.together(*[grey(level) for level in levels])
    assert np.allclose(vectors(outcomes), [angle(level) for level in levels])
    assert bench.count("batch_limit", kind="image") == 4


async def test_a_model_process_that_fails_always_is_replaced(build: Build) -> None:
    bench = await build()
    assert np.allclose(vectors(await bench.outcomes(grey(fake.BREAK))), [angle(fake.BREAK)])
    broken = bench.model_pid
    for level in (30, 31, 32):
        assert reason((await bench.outcomes(grey(level)))[0]) == "INTERNAL"
    assert np.allclose(vectors(await bench.outcomes(words(5), words(6))), [angle(5), angle(6)])
    assert bench.model_pid != broken
    assert bench.count("model_restarts_total", why="failing") == 1


@pytest.mark.parametrize("kind", ["image", "text"])
async def test_a_model_process_that_gives_no_vectors_any_more_is_replaced_and_nobody_is_hurt(
    build: Build, kind: str
) -> None:
    bench = await build()
    assert np.allclose(vectors(await bench.outcomes(grey(fake.BLIND))), [angle(fake.BLIND)])
    blind = bench.model_pid
    call = bench.outcomes(grey(30), grey(31)) if kind == "image" else bench.outcomes(words(30), words(31))
    assert np.allclose(vectors(await call), [angle(30), angle(31)])
    assert bench.model_pid != blind
    assert bench.count("model_restarts_total", why="failing") == 1
    assert [serving for serving, _ in bench.said] == [False, True]


@pytest.mark.parametrize("poison", [grey(fake.NOT_A_NUMBER), words(fake.NOT_A_NUMBER)], ids=["image", "text"])
async def test_inputs_without_a_vector_do_not_have_a_sound_model_replaced_however_many_come(
    build: Build, poison: Input
) -> None:
    bench = await build()
    sound = bench.model_pid
    for _ in range(9):
        assert reason((await bench.outcomes(poison))[0]) == "INTERNAL"
    assert bench.model_pid == sound
    assert bench.said == []


async def test_a_model_process_that_never_gives_vectors_again_costs_no_endless_restarts(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(worker: WorkerProcess, slots: Sequence[int]) -> Array:
        return np.full((len(slots), 2), np.nan, np.float32)

    bench = await build()
    monkeypatch.setattr(WorkerProcess, "encode_images", nothing)
    assert reason((await bench.outcomes(grey(30)))[0]) == "INTERNAL"
    await bench.until(lambda: bench.count("model_restarts_total", why="failing") == 2)
    assert bench.gave_up == []


async def test_inputs_that_fail_alone_one_after_another_hurt_no_other(build: Build) -> None:
    bench = await build()
    poison = words(fake.RAISE)
    for _ in range(3):
        assert reason((await bench.outcomes(poison))[0]) == "INTERNAL"
    outcomes = await bench.outcomes(poison, words(9), words(10), words(11))  # one batch
    assert reason(outcomes.pop(0)) == "INTERNAL"
    assert np.allclose(vectors(outcomes), [angle(level) for level in (9, 10, 11)])
    assert bench.count("model_restarts_total", why="failing") == 1
    assert bench.gave_up == []


async def test_a_model_whose_gpu_has_gone_is_not_replaced_by_one_on_the_cpu(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fake.GPU, "1")
    bench = await build()
    assert bench.pipeline.spec.device == "cuda:0"
    monkeypatch.delenv(fake.GPU)
    with structlog.testing.capture_logs() as logs:
        os.kill(bench.model_pid, signal.SIGKILL)
        await bench.until(lambda: any("cuda:0 is asked for" in str(line.get("error")) for line in logs))
    assert [serving for serving, _ in bench.said] == [False]
    monkeypatch.setenv(fake.GPU, "1")
    await bench.until(lambda: len(bench.said) > 1)
    assert np.allclose(vectors(await bench.outcomes(grey(7))), [angle(7)])


async def test_an_unforeseen_fault_in_starting_a_model_again_is_tried_again(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await build()
    faults = iter([ZeroDivisionError("once")])
    start = Supervisor._start

    async def start_late(supervisor: Supervisor, settings: EmbedderSettings) -> WorkerProcess:
        for fault in faults:
            raise fault
        return await start(supervisor, settings)

    monkeypatch.setattr(Supervisor, "_start", start_late)
    os.kill(bench.model_pid, signal.SIGKILL)
    await bench.until(lambda: len(bench.said) >= 2)
    assert np.allclose(vectors(await bench.outcomes(grey(7))), [angle(7)])
    assert bench.gave_up == []


async def test_a_fault_of_ours_in_taking_batches_ends_the_service(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await build()
    monkeypatch.setattr(BatchQueue, "take", lambda queue: 1 / 0)
    call = bench.start(bench.embed(grey(7)))
    await bench.until(lambda: bench.gave_up == ["running batches has come to an end"])
    call.cancel()


async def test_a_fault_of_ours_in_watching_the_model_ends_the_service(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await build()
    monkeypatch.setattr(Supervisor, "_replacement", lambda supervisor: 1 / 0)
    os.kill(bench.model_pid, signal.SIGKILL)
    await bench.until(lambda: bench.gave_up == ["watching the model process has come to an end"])


async def test_a_fault_of_ours_in_queueing_an_input_costs_that_input_only(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await build()
    for stage in ("embedder.inference.Inference.put", "embedder.decoding.Decoding.put"):
        with monkeypatch.context() as patch:
            patch.setattr(stage, lambda *_: 1 / 0)
            outcomes = await bench.outcomes(words(5), grey(7))
            assert "INTERNAL" in [reason(o) for o in outcomes if isinstance(o.result, LikenessError)]
    assert np.allclose(vectors(await bench.outcomes(words(5), grey(7))), [angle(5), angle(7)])


async def test_a_pipeline_that_cannot_be_put_together_leaves_no_process_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("embedder.assembly._assembled", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        async with open_pipeline(EmbedderSettings(), ignore, ignore, Metrics(CollectorRegistry()), COMMAND):
            pass
    assert model_processes() == []


async def test_closing_a_model_process_can_be_cancelled() -> None:
    shared = shared_file()
    worker = await WorkerProcess.start(EmbedderSettings(), shared, COMMAND)
    closing = asyncio.create_task(worker.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait({closing})
    assert closing.cancelled()
    await worker.close()
    os.close(shared)
    assert model_processes() == []


async def test_stopping_waits_for_threads_without_holding_up_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    class Held(ThreadPoolExecutor):
        """Its last work needs the event loop."""

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            go_on = threading.Event()
            loop.call_soon_threadsafe(go_on.set)
            assert go_on.wait(WAIT_S)
            super().shutdown(wait, cancel_futures=cancel_futures)

    monkeypatch.setattr("embedder.pipeline.start_threads", lambda count, name, _setting: Held(count, name))
    async with open_pipeline(EmbedderSettings(), ignore, ignore, Metrics(CollectorRegistry()), COMMAND) as pipeline:
        await pipeline.embed([words(3)])
    assert model_processes() == []


@pytest.mark.parametrize("name", ["decode", "prepare-interactive", "prepare-bulk"])
async def test_a_start_that_gets_too_few_threads_fails_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == f"{name}_1":  # the second: as where a container may have no more
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    settings = EmbedderSettings(decode_threads=2)
    with pytest.raises(LikenessError, match=f"LIKENESS_DECODE_THREADS: .* called {name} .*can't start new thread"):
        async with open_pipeline(settings, ignore, ignore, Metrics(CollectorRegistry()), COMMAND):
            pass
    assert model_processes() == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(name)]


async def test_a_start_has_all_its_threads_before_any_call() -> None:
    settings, before = EmbedderSettings(decode_threads=3), set(threading.enumerate())
    async with open_pipeline(settings, ignore, ignore, Metrics(CollectorRegistry()), COMMAND):
        names = [thread.name for thread in threading.enumerate() if thread not in before]
    counts = [sum(name.startswith(kind) for name in names) for kind in ("decode", "prepare-int", "prepare-bulk")]
    assert counts == [4, 3, 3]


async def test_stopping_leaves_no_process_behind() -> None:
    async with open_pipeline(EmbedderSettings(), ignore, ignore, Metrics(CollectorRegistry()), COMMAND):
        assert len(model_processes()) == 1
    assert model_processes() == []


async def test_a_model_process_that_cannot_load_says_why() -> None:
    command = (sys.executable, "-c", "1")
    with pytest.raises(LikenessError, match="died while loading"):
        async with open_pipeline(EmbedderSettings(), ignore, ignore, Metrics(CollectorRegistry()), command):
            pass


async def test_a_model_that_cannot_be_loaded_for_a_reason_nobody_foresaw_is_not_said_to_have_died() -> None:
    with pytest.raises(LikenessError, match="log has its cause under incident"):
        async with open_pipeline(
            EmbedderSettings(model=fake.UNFORESEEN), ignore, ignore, Metrics(CollectorRegistry()), COMMAND
        ):
            pass
    assert model_processes() == []


async def test_calls_that_outlive_the_pipeline_end_quietly() -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    registry = CollectorRegistry()
    settings = EmbedderSettings(decode_threads=2, max_bulk_queue_s=3600, stuck_s=3600)
    async with open_pipeline(settings, ignore, ignore, Metrics(registry), COMMAND) as pipeline:
        bench = Bench(pipeline, registry, [], asyncio.Queue())
        decoded = bench.count("decode_seconds_count", kind="image")
        calls = [bench.start(bench.embed(grey(fake.HANG)))]
        await bench.until(lambda: bench.count("decode_seconds_count", kind="image") > decoded)
        await bench.until(lambda: pipeline.waiting_for_model == 0)  # the model has it, and hangs
        calls += [bench.start(bench.embed(grey(20 + n), lane=Lane.BULK)) for n in range(40)]
        await bench.until(lambda: pipeline.waiting_for_model >= 4)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls, timeout=WAIT_S)
    assert all(call.cancelled() for call in calls), "none failed for what it could not begin any more"
    assert faults == []
