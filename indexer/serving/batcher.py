"""Searches of several calls, answered together.

Nobody is waited for: a thread that is free takes what is there, and while it searches the next batch gathers. One call
of faiss and one reading of vectors then serve all searches of the batch.

Brief searches are answered on the event loop, but for their steps (``search.answering``), which threads of their own
carry out. A search in the graph goes through more vectors than the processor's cache holds; in a thread, it leaves the
loop's core what that works with. The next batch sets off as soon as a step is done, before the one that asked for it is
gone on with. Python's lock is what all of that waits for, so beside a step that is being carried out a batch sets off
only if it is full, and of calls of several searches. Of one that is alone, as those before it were, the first step is
carried out on the event loop too: handing it to a thread and its rows back would take longer.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.reads import Fields, Row, Search
from indexer.serving.brief import MOST_TOGETHER
from indexer.serving.steps import Step, Steps

log = structlog.get_logger()

View = TypeVar("View")
Answered = list[list[Row]]

_RETRY_AFTER_S = 1.0
# Brief searches that came alone, one after another, until the next one is taken to be alone too.
_ALONE_BEFORE = 4
# Searches to a call from which on a search costs more than what is done around the call.
_SEVERAL = 4


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
        begin: answers searches, but for the steps; None in place of the rows: this one takes longer after all.
        at_once: carries a step out where nobody may wait; gives whether it could, and what it found.
        carry_out: a step, in a thread. The collection's steps under way, and those that wait, share the cores: so many.
        executor: of the threads; may be shared, but not with what takes longer.
        jobs: steps beside which no further batch sets off, at least 1; one more may come of those under way.
    """

    takes: Callable[[View, Sequence[Search]], bool]
    begin: Callable[[View, Sequence[Search], Fields], Steps[list[list[Row] | None]]]
    at_once: Callable[[View, Step], tuple[bool, Any]]
    carry_out: Callable[[Step, int], Any]
    executor: Executor
    jobs: int


@dataclass(eq=False, slots=True)
class _Flight(Generic[View]):
    """Brief searches under way, over a view; ``alone``: one whose next step may be carried out at once."""

    batch: list[_Call]
    view: View
    steps: Steps[list[list[Row] | None]]
    begun: float
    alone: bool
    found: list[list[Row] | None] = field(default_factory=list)

    def next(self, found: Any) -> Step | None:
        """The next step, given what the last one found; None: there is none, and ``found`` is the answer."""
        try:
            return self.steps.send(found)
        except StopIteration as end:
            self.found = end.value
        if len(self.found) != _count(self.batch):
            raise RuntimeError(f"{len(self.found)} answers to {_count(self.batch)} searches")
        return None


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
        self._steps = 0  # of brief searches that threads carry out
        self._alone = _ALONE_BEFORE
        self._looks = False  # whether brief searches will be looked at in this turn of the loop

    @property
    def waiting(self) -> int:
        """Searches that wait for their turn."""
        return _count(self._waiting_briefly) + _count(self._waiting)

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
            if self._steps:
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
        return self._brief is not None and self._brief.takes(self._view(), searches)

    def _look_soon(self) -> None:
        """Has brief searches looked at when those that arrived in this turn of the loop are all there."""
        if self._waiting_briefly and not self._looks:
            self._looks = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        """Has brief searches set off, if it is time."""
        self._looks = False
        self._waiting_briefly = deque(call for call in self._waiting_briefly if not call.answer.done())
        while self._waiting_briefly and self._may_fly():
            batch = _take(self._waiting_briefly, MOST_TOGETHER)
            alone = len(batch) == len(batch[0].searches) == 1 and not self._waiting_briefly
            self._fly(batch, alone=alone and self._alone >= _ALONE_BEFORE)
            self._alone = self._alone + 1 if alone else 0

    def _may_fly(self) -> bool:
        assert self._brief is not None
        if not self._steps:
            return True
        if self._steps >= self._brief.jobs:
            return False
        alike = [call for call in self._waiting_briefly if call.fields == self._waiting_briefly[0].fields]
        return _count(alike) >= max(MOST_TOGETHER, _SEVERAL * len(alike))

    def _fly(self, batch: list[_Call], *, alone: bool) -> None:
        assert self._brief is not None
        try:
            view, searches = self._view(), [search for call in batch for search in call.searches]
            steps = self._brief.begin(view, searches, batch[0].fields)
            flight = _Flight(batch, view, steps, time.perf_counter(), alone)
        except Exception as error:
            _settle(batch, [error] * len(batch))
            return
        self._go_on(flight, None)

    def _go_on(self, flight: _Flight[View], found: Any) -> None:
        """Answers what can be answered now that a step is done, and has the next one carried out."""
        assert self._brief is not None
        if all(call.answer.done() for call in flight.batch):  # all callers have gone
            flight.steps.close()
            return
        try:
            step = flight.next(found)
            if step is not None and flight.alone:
                flight.alone = False
                done, found = self._brief.at_once(flight.view, step)
                step = flight.next(found) if done else step
            if step is not None:
                share = self._steps + 1 + bool(self._waiting_briefly)
                job = self._brief.executor.submit(self._brief.carry_out, step, share)
        except Exception as error:
            self._founder(flight, error)
            return
        if step is None:
            self._land(flight)
        else:
            self._steps += 1
            job.add_done_callback(partial(self._tell, asyncio.get_running_loop(), flight))

    def _tell(self, loop: asyncio.AbstractEventLoop, flight: _Flight[View], job: "Future[Any]") -> None:
        """In the thread: the step has been carried out, or cannot be."""
        try:
            loop.call_soon_threadsafe(self._back, flight, job)
        except RuntimeError:
            if not loop.is_closed():  # then there is nobody left to tell
                raise

    def _back(self, flight: _Flight[View], job: "Future[Any]") -> None:
        """On the event loop again. The thread has the next batch to go on with, before this one is."""
        self._steps -= 1
        self._look()
        error = asyncio.CancelledError() if job.cancelled() else job.exception()
        if error is None:
            self._go_on(flight, job.result())
        else:
            self._founder(flight, error)

    def _founder(self, flight: _Flight[View], error: BaseException) -> None:
        """The other threads answer, or find out whose search it is that fails."""
        log.warning("brief searches failed", why=repr(error))
        flight.found = [None] * _count(flight.batch)
        self._land(flight)

    def _land(self, flight: _Flight[View]) -> None:
        """Gives each call its rows; one of which some are still to be found goes the way of the rest."""
        each = iter(flight.found)
        for call in flight.batch:
            rows = [next(each) for _ in call.searches]
            answered = [one for one in rows if one is not None]
            if call.answer.done():  # its caller has gone
                continue
            if len(answered) < len(rows):
                self._waiting.append(call)
            else:
                self._on_wait(flight.begun - call.came)
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
        outcome = asyncio.CancelledError() if job.cancelled() else job.exception() or job.result()
        _settle(batch, [outcome] * len(batch) if isinstance(outcome, BaseException) else outcome)
        self._set_off()


def _count(waiting: Iterable[_Call]) -> int:
    return sum(len(call.searches) for call in waiting)


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
