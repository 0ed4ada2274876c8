"""Jobs: one a collection, heard of by whoever asked, undone or finished when the indexer stops."""

import asyncio
from typing import Any, cast

import pytest
from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2 as pb
from structlog.testing import capture_logs

from chassis.errors import LikenessError
from indexer.jobs import Job, Jobs, stream
from indexer.servicing import Context


class Work:
    """Goes on when it is told to, and remembers being undone."""

    def __init__(self, *, final: bool = False, kept: bool = False) -> None:
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.undone = False
        self._final, self._kept = final, kept

    async def __call__(self, job: Job[str]) -> str:
        job.report("copying", 3, 1000)
        if self._final:
            job.no_return()
        if self._kept:
            job.only_tidying()
        self.begun.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.undone = True
            raise
        return "done"


class Caller:
    """What a call has been written."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.written = asyncio.Event()

    async def write(self, message: Any) -> None:
        self.messages.append(message)
        self.written.set()


def streamed(caller: Caller, job: Job[str]) -> asyncio.Task[None]:
    return asyncio.create_task(
        stream(
            cast(Context, caller),
            job,
            lambda progress: pb.RebuildCollectionResponse(progress=progress),
            lambda result: pb.RebuildCollectionResponse(bytes_after=len(result)),
        )
    )


async def test_a_caller_hears_how_far_a_job_is_and_then_its_result() -> None:
    jobs, work, caller = Jobs(), Work(), Caller()
    job = jobs.run("uid", "rebuild", "photos", work)
    await work.begun.wait()
    call = streamed(caller, job)
    await caller.written.wait()
    progress = caller.messages[0].progress
    assert (progress.stage, progress.done, progress.total) == ("copying", 3, 1000)
    work.gate.set()
    await call
    assert caller.messages[-1].bytes_after == len("done")
    assert jobs.under_way("uid") is None


async def test_a_second_job_on_a_collection_is_refused_and_told_of_the_first() -> None:
    jobs, work = Jobs(), Work()
    job = jobs.run("uid", "rebuild", "photos", work)
    await work.begun.wait()
    with pytest.raises(LikenessError) as caught:
        jobs.run("uid", "erasure", "photos", Work())
    assert caught.value.reason == error_pb2.REASON_COLLECTION_BUSY
    assert "a rebuild of 'photos' is under way (copying, 3 of 1,000)" in caught.value.message
    other = jobs.run("other", "erasure", "pets", (elsewhere := Work()))
    work.gate.set()
    elsewhere.gate.set()
    assert (await job.result(), await other.result()) == ("done", "done")
    again = jobs.run("uid", "erasure", "photos", work)
    assert await again.result() == "done"


async def test_a_job_goes_on_when_its_caller_goes_away() -> None:
    jobs, work, caller = Jobs(), Work(), Caller()
    job = jobs.run("uid", "rebuild", "photos", work)
    call = streamed(caller, job)
    await caller.written.wait()
    call.cancel()
    await asyncio.wait({call})
    assert not job.task.done()
    work.gate.set()
    assert await job.result() == "done"
    assert not work.undone


async def test_a_stop_undoes_what_can_be_undone_and_tells_its_caller() -> None:
    jobs, work = Jobs(), Work()
    job = jobs.run("uid", "rebuild", "photos", work)
    await work.begun.wait()
    call = streamed(Caller(), job)
    await jobs.stop()
    assert work.undone
    with pytest.raises(LikenessError, match="was undone") as caught:
        await call
    assert caught.value.reason == error_pb2.REASON_SHUTTING_DOWN
    with pytest.raises(LikenessError) as caught:
        jobs.run("uid", "rebuild", "photos", work)
    assert caught.value.reason == error_pb2.REASON_SHUTTING_DOWN


async def test_a_stop_waits_for_what_cannot_be_undone() -> None:
    jobs, work = Jobs(), Work(final=True)
    job = jobs.run("uid", "rebuild", "photos", work)
    await work.begun.wait()
    stop = asyncio.create_task(jobs.stop())
    await asyncio.wait({stop}, timeout=0.05)
    assert not stop.done()
    work.gate.set()
    await stop
    assert await job.result() == "done"


async def test_a_stop_leaves_tidying_to_the_next_start_and_says_so() -> None:
    jobs, work = Jobs(), Work(kept=True)
    job = jobs.run("uid", "rebuild", "photos", work)
    await work.begun.wait()
    await jobs.stop()
    with pytest.raises(LikenessError, match="will be finished at the next start"):
        await job.result()


async def test_tidying_that_begins_after_a_stop_is_left_to_the_next_start() -> None:
    """It may take minutes, and nobody asks the job to end a second time."""
    jobs, gate, begun = Jobs(), asyncio.Event(), asyncio.Event()

    async def work(job: Job[str]) -> str:
        job.no_return()
        begun.set()
        await gate.wait()
        job.only_tidying()
        await asyncio.Event().wait()
        return "tidy"

    job = jobs.run("uid", "rebuild", "photos", work)
    await begun.wait()
    stop = asyncio.create_task(jobs.stop())
    await asyncio.wait({stop}, timeout=0.05)
    assert not stop.done()
    gate.set()
    async with asyncio.timeout(10):
        await stop
    with pytest.raises(LikenessError, match="will be finished at the next start"):
        await job.result()


async def test_a_failure_nobody_waits_for_is_logged_in_full() -> None:
    async def fail(_: Job[str]) -> str:
        raise ValueError("of ours")

    with capture_logs() as logs:
        job = Jobs().run("uid", "rebuild", "photos", fail)
        await asyncio.wait({job.task})
        await asyncio.sleep(0)
    (entry,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert isinstance(entry["exc_info"], ValueError)
