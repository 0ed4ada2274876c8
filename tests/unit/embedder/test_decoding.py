"""The decode stage by itself: how it ends."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from chassis.errors import LikenessError
from chassis.pictures import PictureLimits
from embedder.decoding import Decoding
from embedder.entries import Call, Entry, Stage, Waiter
from embedder.inputs import Lane, Outcome, Pixels
from embedder.metrics import Metrics
from embedder.slab import Slab, SlabShape, shared_file
from embedder.spec import Geometry
from tests.processes import ROOT
from tests.unit.embedder.bench import WAIT_S, grey

SIDE = 8


@pytest.fixture
def slab() -> Iterator[Slab]:
    descriptor = shared_file()
    yield Slab(descriptor, SlabShape(16, SIDE, SIDE))
    os.close(descriptor)


def entry(number: int, lane: Lane = Lane.INTERACTIVE) -> Entry:
    return Entry(
        kind="image",
        lane=lane,
        key=bytes([number]),
        stage=Stage.TO_DECODE,
        on_drop=lambda entry, why: None,
        on_done=lambda entry, outcome: None,
        picture=grey(number),
        waiters=[Waiter(Call(1, lane, None), 0, "")],
    )


def decoding_of(
    slab: Slab, preprocess: Callable[[Image.Image, Pixels], None], ready: Callable[[Entry], None] = lambda entry: None
) -> Decoding:
    """With a thread for all lanes, and one more for interactive pictures."""
    return Decoding(
        threads=1,
        slab=slab,
        preprocess=preprocess,
        geometry=Geometry(SIDE, SIDE, "shortest", "bicubic"),
        limits=PictureLimits(2**20, 10**6),
        decoded=lambda entry: None,
        ready=ready,
        metrics=Metrics(CollectorRegistry()),
    )


class Panic(BaseException):
    """As of a library in Rust."""


async def test_a_panic_of_a_library_costs_the_picture_alone(slab: Slab) -> None:
    ready = asyncio.Queue[Entry]()

    def preprocess(picture: Image.Image, row: Pixels) -> None:
        if picture.getpixel((0, 0)) == (1, 1, 1):
            raise Panic

    decoding = decoding_of(slab, preprocess, ready.put_nowait)
    finished: list[Any] = []

    def done(entry: Entry, outcome: Outcome) -> None:
        finished.append(outcome.result)
        decoding.release(entry)

    for _ in range(4):  # more than there are threads
        decoding.put(replace(entry(1), on_done=done))
    decoding.put(good := entry(2))
    async with asyncio.timeout(WAIT_S):
        assert await ready.get() is good
    assert [error.reason_name for error in finished] == ["INTERNAL"] * 4
    decoding.release(good)
    await decoding.stop()
    assert slab.free == 16


async def test_a_want_of_memory_is_no_fault_of_the_picture_and_passes(slab: Slab) -> None:
    ended = asyncio.Queue[Outcome]()

    def preprocess(picture: Image.Image, row: Pixels) -> None:
        raise MemoryError

    decoding = decoding_of(slab, preprocess)
    decoding.put(replace(entry(1), on_done=lambda entry, outcome: ended.put_nowait(outcome)))
    async with asyncio.timeout(WAIT_S):
        error = (await ended.get()).result
    assert isinstance(error, LikenessError)
    assert (error.reason_name, error.retry_after_s) == ("OVERLOADED", 1.0)
    await decoding.stop()


async def test_after_a_stop_nothing_is_begun_and_what_was_begun_ends_quietly(
    slab: Slab, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    preprocessed: list[Image.Image] = []
    ready: list[Entry] = []
    told: list[dict[str, Any]] = []

    class OneThread(ThreadPoolExecutor):
        """As where the second thread is late: a picture that has been begun waits for the first."""

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            go_on.set()
            super().shutdown(wait)

    def preprocess(picture: Image.Image, row: Pixels) -> None:
        preprocessed.append(picture)
        begun.set()
        assert go_on.wait(WAIT_S)

    def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        told.append(context)

    monkeypatch.setattr("embedder.decoding.start_threads", lambda *_: OneThread(1))
    asyncio.get_running_loop().set_exception_handler(tell)
    decoding = decoding_of(slab, preprocess, ready.append)
    entries = [entry(number) for number in range(4)]
    for each in entries:
        decoding.put(each)
    assert await asyncio.to_thread(begun.wait, WAIT_S)
    assert [each.stage for each in entries] == [Stage.DECODING] * 2 + [Stage.TO_DECODE] * 2

    await decoding.stop()
    await asyncio.sleep(0)  # a job's end is told in the round after it
    decoding.release(entries[0])
    decoding.put(entry(5))

    assert told == []
    assert ready == entries[:1]
    assert len(preprocessed) == 1
    assert [each.stage for each in entries] == [Stage.TO_INFER, Stage.DECODING] + [Stage.TO_DECODE] * 2


async def test_long_bulk_pictures_leave_the_interactive_ones_their_thread(
    slab: Slab, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def preprocess(picture: Image.Image, row: Pixels) -> None:
        assert go_on.wait(WAIT_S)

    monkeypatch.setattr("embedder.decoding.STARVING_S", -1.0)  # any picture takes longer than that
    decoding = decoding_of(slab, preprocess)
    bulk = [entry(number, Lane.BULK) for number in range(2)]
    urgent = entry(2)
    for each in (*bulk, urgent):
        decoding.put(each)
    stages = [each.stage for each in (*bulk, urgent)]
    go_on.set()
    await decoding.stop()
    assert stages == [Stage.DECODING, Stage.TO_DECODE, Stage.DECODING]


async def test_a_stop_waits_no_longer_than_it_may_for_what_is_being_decoded(
    slab: Slab, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    told: list[int] = []

    def preprocess(picture: Image.Image, row: Pixels) -> None:
        begun.set()
        assert go_on.wait(WAIT_S)

    monkeypatch.setattr("embedder.decoding.STOP_S", 0.01)
    monkeypatch.setattr("embedder.decoding.log", SimpleNamespace(error=lambda _event, count: told.append(count)))
    decoding = decoding_of(slab, preprocess)
    slow = entry(1)
    decoding.put(slow)
    assert await asyncio.to_thread(begun.wait, WAIT_S)

    await decoding.stop()
    assert (told, slow.stage) == ([1], Stage.DECODING)

    go_on.set()
    monkeypatch.setattr("embedder.decoding.STOP_S", WAIT_S)
    await decoding.stop()
    assert (told, slow.stage) == ([1], Stage.TO_INFER)


@pytest.mark.parametrize(("work", "code"), [("stuck.wait", 3), ("int", 0)])
def test_a_process_ends_though_a_picture_is_still_being_decoded(work: str, code: int) -> None:
    program = f"""
import threading
from concurrent.futures import ThreadPoolExecutor
from embedder import decoding
stuck = threading.Event()
with ThreadPoolExecutor(1, decoding.THREADS) as threads:
    done = threads.submit({work})
    if {code} == 0:
        threads.shutdown()
    decoding.leave(3)
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}"}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, timeout=WAIT_S, check=False)
    assert ended.returncode == code
