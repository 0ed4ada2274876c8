"""Work on a collection that takes minutes: rebuilding, erasing, backing up, restoring.

A job is a task of its own, at most one a collection. Whoever asked for it hears how far it is; if that caller goes
away, the job goes on. When the indexer stops, a job that can still be undone is cancelled and undoes itself; one that
has passed its point of no return is waited for.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog
from google.protobuf.message import Message
from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis.errors import LikenessError
from indexer.servicing import Context

log = structlog.get_logger()

Result = TypeVar("Result")

# Between two messages that say how far a job is, in seconds.
_SHORTEST_S, _LONGEST_S = 0.2, 2.0


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        stage: what is being done, in a few words.
        done: items done in this stage.
        total: items there are in this stage; 0: unknown.
    """

    stage: str
    done: int = 0
    total: int = 0

    def __str__(self) -> str:
        if self.total:
            return f"{self.stage}, {self.done:,} of {self.total:,}"
        return f"{self.stage}, {self.done:,}" if self.done else self.stage

    def message(self) -> indexer_pb2.Progress:
        """It in the contract's words."""
        return indexer_pb2.Progress(stage=self.stage, done=self.done, total=self.total)


class Job(Generic[Result]):
    """One piece of work under way, or ended.

    Attributes:
        kind: what it is, a noun such as "rebuild".
        name: of the collection.
        progress: how far it is.
        revocable: whether it is undone when the indexer stops.
    """

    def __init__(self, kind: str, name: str, work: "Callable[[Job[Result]], Awaitable[Result]]") -> None:
        """Begins the work, which is given the job to tell it how far it is."""
        self.kind = kind
        self.name = name
        self.progress = Progress("beginning")
        self.revocable = True
        self._kept = False
        self._ending = self._stopped = False
        self._changed = asyncio.Event()
        self._heard = False
        self.task: asyncio.Task[Result] = asyncio.create_task(self._run(work), name=f"{kind} of {name}")
        self.task.add_done_callback(self._ended)

    def report(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Says how far it is; as often as one likes."""
        self.progress = Progress(stage, done, total)
        self._changed.set()

    def no_return(self) -> None:
        """From now on it goes on to its end, also when the indexer stops."""
        self.revocable = False

    def only_tidying(self) -> None:
        """What was asked for is done; what is left to do, the next start does if the indexer stops now."""
        self.revocable = self._kept = True
        if self._ending:
            self.cancel()

    def cancel(self) -> None:
        """Has it undone, if it can be; what has to be done before, is waited for."""
        self._ending = True
        if self.revocable and not self._stopped and not self.task.done():
            self._stopped = True
            self.task.cancel()

    async def result(self) -> Result:
        """What the work returned; whoever waits may go without the work ending.

        Raises:
            LikenessError: SHUTTING_DOWN: it was undone; what the work raises.
        """
        self._heard = True
        try:
            await asyncio.wait({self.task})
        except asyncio.CancelledError:
            self._heard = False
            raise
        if self.task.cancelled():
            became = "will be finished at the next start" if self._kept else "was undone, ask for it again"
            message = f"the indexer is stopping; the {self.kind} of {self.name!r} {became}"
            raise LikenessError(error_pb2.REASON_SHUTTING_DOWN, message, retry_after_s=1.0)
        return self.task.result()

    def look(self) -> Progress:
        """How far it is; ``further`` then waits for what comes after."""
        self._changed.clear()
        return self.progress

    async def further(self, timeout_s: float) -> None:
        """Returns when it is further than at the last ``look``, when it has ended, or after so many seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _run(self, work: "Callable[[Job[Result]], Awaitable[Result]]") -> Result:
        return await work(self)

    def _ended(self, task: asyncio.Task[Result]) -> None:
        self._changed.set()
        error = None if task.cancelled() else task.exception()
        if error is None:
            log.info("job ended", job=self.kind, collection=self.name, undone=task.cancelled() and not self._kept)
        elif isinstance(error, LikenessError) or self._heard:
            log.warning("job failed", job=self.kind, collection=self.name, why=str(error))
        else:
            log.error("job failed, and nobody waits for it", job=self.kind, collection=self.name, exc_info=error)


class Jobs:
    """The jobs under way, at most one a collection. Used from the event loop."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job[Any]] = {}
        self._stopping = False

    def run(self, uid: str, kind: str, name: str, work: Callable[[Job[Result]], Awaitable[Result]]) -> Job[Result]:
        """Begins a job.

        Args:
            uid: of the collection; of one that is to be made, anything that stands for it alone.
            kind: a noun such as "rebuild".
            name: of the collection.
            work: does it. When cancelled it undoes what it has done; before what cannot be undone it calls
                ``Job.no_return``.

        Raises:
            LikenessError: COLLECTION_BUSY: another is under way; SHUTTING_DOWN.
        """
        if self._stopping:
            raise LikenessError(error_pb2.REASON_SHUTTING_DOWN, "the indexer is stopping; try again", retry_after_s=1.0)
        self.require_none(uid, kind)
        job = self._jobs[uid] = Job(kind, name, work)
        job.task.add_done_callback(lambda _: self._jobs.pop(uid, None))
        log.info("job begins", job=kind, collection=name)
        return job

    def under_way(self, uid: str) -> Job[Any] | None:
        """What is being done with a collection."""
        return self._jobs.get(uid)

    def require_none(self, uid: str, kind: str) -> None:
        """Refuses what cannot go on beside a job.

        Args:
            uid: of the collection.
            kind: what is wanted of it, a noun such as "deletion".

        Raises:
            LikenessError: COLLECTION_BUSY, which names what is under way and how far it is.
        """
        job = self._jobs.get(uid)
        if job is not None:
            message = (
                f"a {job.kind} of {job.name!r} is under way ({job.progress}), and no {kind} can begin beside it; try "
                "again when it has ended"
            )
            raise LikenessError(error_pb2.REASON_COLLECTION_BUSY, message)

    def end(self) -> None:
        """Takes no more jobs, and has undone what can be. Streams of those end at once."""
        self._stopping = True
        for job in self._jobs.values():
            job.cancel()

    async def stop(self) -> None:
        """As ``end``, and waits until all have ended."""
        self.end()
        if self._jobs:
            await asyncio.wait({job.task for job in self._jobs.values()})


async def stream(
    context: Context,
    job: Job[Result],
    of_progress: Callable[[indexer_pb2.Progress], Message],
    of_result: Callable[[Result], Message],
) -> None:
    """Writes to a caller how far a job is, at most five times a second and at least every two, then its result.

    Raises:
        LikenessError: as ``Job.result``.
    """
    while not job.task.done():
        await context.write(of_progress(job.look().message()))
        await asyncio.wait({job.task}, timeout=_SHORTEST_S)
        if not job.task.done():
            await job.further(_LONGEST_S - _SHORTEST_S)
    await context.write(of_result(await job.result()))
