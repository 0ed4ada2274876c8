"""Searches of several calls, answered together.

Nobody is waited for: a thread that is free takes what is there, and while it searches the next batch gathers. One call
of faiss and one reading of vectors then serve all searches of the batch.

Of a collection's brief searches one batch is under way at a time, in a thread that has nothing longer to do, while the
event loop reads and writes what belongs to the next and the last. More at once would take turns at Python's lock. One
that is alone, as those before it were, is answered on the event loop: handing it to a thread and its rows back would
take longer than the search. Calls of several brief searches gain from all cores, so they go the way of the rest while a
thread is free for them.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.reads import Fields, Row, Search
from indexer.serving.brief import MOST_TOGETHER

log = structlog.get_logger()

View = TypeVar("View")
Outcome = TypeVar("Outcome")
Answered = list[list[Row]]

_RETRY_AFTER_S = 1.0
# Brief searches that came alone, one after another, until the next one is taken to be alone too.
_ALONE_BEFORE = 4


@dataclass(eq=False, slots=True)
class _Call:
    """Searches that came together, and who waits for them."""

    searches: Sequence[Search]
    fields: Fields
    answer: asyncio.Future[Answered]
    came: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Brief(Generic[View]):
    """How small searches are answered.

    Attributes:
        takes: whether a call's searches are such.
        first_try: gives the rows of each search; None: this one takes longer after all. If the last argument is true
            it must not wait for anybody, and gives None instead of a list where it would have to.
        executor: of the threads that answer them; may be shared, but not with what takes longer.
    """

    takes: Callable[[View, Sequence[Search]], bool]
    first_try: Callable[[View, Sequence[Search], Fields, bool], list[list[Row] | None] | None]
    executor: Executor


class Batcher(Generic[View]):
    """Answers searches on one collection, in worker threads or at once. Used on one event loop."""

    def __init__(
        self,
        view: Callable[[], View],
        answer: Callable[[View, Sequence[Search], Fields], Answered],
        executor: Executor,
        *,
        jobs: int,
        max_batch: int,
        max_waiting: int,
        brief: Brief[View] | None = None,
        on_wait: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Idle.

        Args:
            view: gives what there is to search, on the event loop, when a batch sets off: it holds every write that was
                acknowledged before any search of the batch came in.
            answer: answers searches, in a thread.
            executor: of the threads; may be shared.
            jobs: most batches under way at once, at least 1.
            max_batch: most searches in a batch, but a call is never parted.
            max_waiting: most searches that wait; beyond: OVERLOADED.
            brief: how small searches are answered; None: as all others.
            on_wait: told of each call how many seconds it waited for its turn.
        """
        self._view = view
        self._answer = answer
        self._executor = executor
        self._jobs = jobs
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._brief = brief
        self._on_wait = on_wait
        self._waiting: deque[_Call] = deque()
        self._running = 0
        self._waiting_briefly: deque[_Call] = deque()
        self._briefly = False  # whether brief searches are under way, or will be looked at in this turn of the loop
        self._alone = _ALONE_BEFORE

    @property
    def waiting(self) -> int:
        """Searches that wait for their turn."""
        return sum(len(call.searches) for calls in (self._waiting_briefly, self._waiting) for call in calls)

    async def submit(self, searches: Sequence[Search], fields: Fields) -> Answered:
        """The rows of each search.

        Raises:
            LikenessError: OVERLOADED.
        """
        if not searches:
            return []
        waiting = self.waiting
        # A call is taken whole if nothing else waits, however large it is.
        if waiting and waiting + len(searches) > self._max_waiting:
            message = f"{waiting} searches wait already, of {self._max_waiting} (LIKENESS_SEARCH_QUEUE); try again"
            raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=_RETRY_AFTER_S)
        call = _Call(searches, fields, asyncio.get_running_loop().create_future())
        if self._is_brief(searches):
            if self._briefly:
                self._alone = 0
            self._waiting_briefly.append(call)
            self._look_soon()
        else:
            self._waiting.append(call)
            self._set_off()
        try:
            return await call.answer
        finally:
            if call.answer.cancelled():
                for calls in (self._waiting_briefly, self._waiting):
                    if call in calls:
                        calls.remove(call)

    def _is_brief(self, searches: Sequence[Search]) -> bool:
        if self._brief is None or (len(searches) > 1 and self._running < self._jobs):
            return False
        return self._brief.takes(self._view(), searches)

    def _look_soon(self) -> None:
        """Has brief searches looked at when those that arrived in this turn of the loop are all there."""
        if self._waiting_briefly and not self._briefly:
            self._briefly = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        """Has the oldest brief searches answered: here, or by a thread."""
        self._briefly = False
        self._waiting_briefly = deque(call for call in self._waiting_briefly if not call.answer.done())
        if not self._waiting_briefly:  # all callers have gone
            return
        assert self._brief is not None
        batch, begun = _take(self._waiting_briefly, MOST_TOGETHER), time.perf_counter()
        alone = len(batch) == len(batch[0].searches) == 1 and not self._waiting_briefly
        here = alone and self._alone >= _ALONE_BEFORE
        self._alone = self._alone + 1 if alone else 0
        try:
            view = self._view()
            found = self._try(view, batch, now=True) if here else None
            if found is not None:
                self._answered_briefly(batch, begun, found)
                return
            job = asyncio.get_running_loop().run_in_executor(
                self._brief.executor, partial(self._try, view, batch, now=False)
            )
        except Exception as error:
            _settle(batch, [error] * len(batch))
            self._look_soon()
            return
        self._briefly = True
        job.add_done_callback(partial(self._finish_briefly, batch, begun))

    def _try(self, view: View, batch: list[_Call], *, now: bool) -> list[list[Row] | None] | None:
        """The rows of each search, None of those that are still to be answered."""
        assert self._brief is not None
        searches = [search for call in batch for search in call.searches]
        try:
            return self._brief.first_try(view, searches, batch[0].fields, now)
        except Exception as error:  # another thread finds out whose search it is that fails
            log.warning("brief searches failed", exc_info=error)
            return [None] * len(searches)

    def _finish_briefly(
        self, batch: list[_Call], begun: float, job: "asyncio.Future[list[list[Row] | None] | None]"
    ) -> None:
        self._briefly = False
        self._look_soon()
        outcome = _outcome(job)
        if isinstance(outcome, BaseException):
            _settle(batch, [outcome] * len(batch))
        else:
            assert outcome is not None, "a thread may wait"
            self._answered_briefly(batch, begun, outcome)

    def _answered_briefly(self, batch: list[_Call], begun: float, found: list[list[Row] | None]) -> None:
        """Gives each call its rows; one of which some are still to be found goes the way of the rest."""
        each = iter(found)
        for call in batch:
            rows = [next(each) for _ in call.searches]
            answered = [one for one in rows if one is not None]
            if call.answer.done():  # its caller has gone
                continue
            if len(answered) < len(rows):
                self._waiting.append(call)
            else:
                self._on_wait(begun - call.came)
                call.answer.set_result(answered)
        self._set_off()

    def _set_off(self) -> None:
        while self._waiting and self._running < self._jobs:
            batch, now = _take(self._waiting, self._max_batch), time.perf_counter()
            for call in batch:
                self._on_wait(now - call.came)
            loop = asyncio.get_running_loop()
            try:
                job = loop.run_in_executor(self._executor, self._run, self._view(), batch)
            except Exception as error:
                _settle(batch, [error] * len(batch))
                continue
            self._running += 1
            job.add_done_callback(partial(self._finish, batch))

    def _run(self, view: View, batch: list[_Call]) -> list[Answered | Exception]:
        """The answer to each call, or what it failed with. In a thread."""
        fields = batch[0].fields
        try:
            rows = iter(self._answer(view, [search for call in batch for search in call.searches], fields))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [outcome for call in batch for outcome in self._run(view, [call])]
        return [[next(rows) for _ in call.searches] for call in batch]

    def _finish(self, batch: list[_Call], job: "asyncio.Future[list[Answered | Exception]]") -> None:
        self._running -= 1
        outcome = _outcome(job)
        _settle(batch, [outcome] * len(batch) if isinstance(outcome, BaseException) else outcome)
        self._set_off()


def _outcome(job: "asyncio.Future[Outcome]") -> Outcome | BaseException:
    """What a job that has ended came to."""
    return asyncio.CancelledError() if job.cancelled() else job.exception() or job.result()


def _take(waiting: deque[_Call], most: int) -> list[_Call]:
    """The oldest call and those behind it that want the same fields, as far as there is room."""
    batch = [waiting.popleft()]
    room = most - len(batch[0].searches)
    for call in list(waiting):
        if room <= 0:
            break
        if len(call.searches) <= room and call.fields == batch[0].fields:
            waiting.remove(call)
            batch.append(call)
            room -= len(call.searches)
    return batch


def _settle(batch: list[_Call], outcomes: Sequence[Answered | BaseException]) -> None:
    for call, outcome in zip(batch, outcomes, strict=True):
        if call.answer.done():
            continue
        if isinstance(outcome, BaseException):
            call.answer.set_exception(outcome)
        else:
            call.answer.set_result(outcome)
