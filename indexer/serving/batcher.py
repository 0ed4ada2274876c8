"""Searches of several calls, answered together.

What takes less than a moment is answered on the event loop, where nothing waits for a thread, together with what
arrives with it. Of the rest nobody is waited for: a thread that is free takes what is there, and while it searches the
next batch gathers. One call of faiss and one reading of vectors then serve all searches of the batch.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from chassis.gathering import Gathering
from indexer.reads import Fields, Row, Search
from indexer.serving.brief import MOST_TOGETHER

log = structlog.get_logger()

View = TypeVar("View")
Answered = list[list[Row]]

_RETRY_AFTER_S = 1.0


@dataclass(eq=False, slots=True)
class _Call:
    """Searches that came together, and who waits for them.

    Attributes:
        searches: those that are still to be answered.
        found: the rows of all, None of those; empty: none is answered yet.
    """

    searches: Sequence[Search]
    fields: Fields
    answer: asyncio.Future[Answered]
    came: float = field(default_factory=time.perf_counter)
    found: list[list[Row] | None] = field(default_factory=list)

    def whole(self, rest: Answered) -> Answered:
        """The rows of all, with those of the rest."""
        rows = iter(rest)
        return [next(rows) if each is None else each for each in self.found] if self.found else rest


class Batcher(Generic[View]):
    """Answers searches on one collection, at once or in worker threads. Used on one event loop."""

    def __init__(
        self,
        view: Callable[[], View],
        answer: Callable[[View, Sequence[Search], Fields], Answered],
        executor: Executor,
        *,
        jobs: int,
        max_batch: int,
        max_waiting: int,
        is_brief: Callable[[View, Sequence[Search]], bool] = lambda *_: False,
        at_once: Callable[[View, Sequence[Search], Fields], list[list[Row] | None]] = lambda *_: [],
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
            is_brief: whether a call's searches can be answered on the event loop.
            at_once: answers searches there; None: this one would take too long after all, or have to wait for somebody.
            on_wait: told of each call how many seconds it waited for its turn.
        """
        self._view = view
        self._answer = answer
        self._executor = executor
        self._jobs = jobs
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._is_brief = is_brief
        self._at_once = at_once
        self._on_wait = on_wait
        self._brief = Gathering(self._answer_brief, MOST_TOGETHER)
        self._waiting: deque[_Call] = deque()
        self._running = 0

    @property
    def waiting(self) -> int:
        """Searches that wait for their turn."""
        return len(self._brief) + sum(len(call.searches) for call in self._waiting)

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
        if not self._waiting and self._is_brief(self._view(), searches):
            if len(searches) == 1:
                self._brief.add(call)
            else:
                self._answer_brief([call])
        else:
            self._waiting.append(call)
            self._set_off()
        try:
            return await call.answer
        finally:
            if call.answer.cancelled() and call in self._waiting:
                self._waiting.remove(call)

    def _answer_brief(self, together: list[_Call]) -> int:
        """Answers calls on the event loop, those that want the same fields together; threads answer what it can not."""
        by_fields = defaultdict[Fields, list[_Call]](list)
        for call in together:
            if not call.answer.done():  # its caller has gone
                by_fields[call.fields].append(call)
        for fields, calls in by_fields.items():
            begun = time.perf_counter()
            try:
                found = self._at_once(self._view(), [search for call in calls for search in call.searches], fields)
                rows = iter(found)
                answers = [[next(rows) for _ in call.searches] for call in calls]
            except Exception as error:  # a thread finds out whose search it is that fails
                log.warning("searches failed on the event loop", exc_info=error)
                self._waiting.extend(calls)
                continue
            for call, call.found in zip(calls, answers, strict=True):
                call.searches = [each for each, rows in zip(call.searches, call.found, strict=True) if rows is None]
                if call.searches:
                    self._waiting.append(call)
                else:
                    self._on_wait(begun - call.came)
                    call.answer.set_result(call.whole([]))
        self._set_off()
        return max(map(len, by_fields.values()), default=1)

    def _set_off(self) -> None:
        while self._waiting and self._running < self._jobs:
            batch, now = self._take(), time.perf_counter()
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

    def _take(self) -> list[_Call]:
        """The oldest call and those behind it that want the same fields, as far as there is room."""
        batch = [self._waiting.popleft()]
        room = self._max_batch - len(batch[0].searches)
        for call in list(self._waiting):
            if call.fields == batch[0].fields and len(call.searches) <= room:
                self._waiting.remove(call)
                batch.append(call)
                room -= len(call.searches)
        return batch

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
        error = None if job.cancelled() else job.exception()
        if job.cancelled() or error is not None:
            _settle(batch, [error or asyncio.CancelledError()] * len(batch))
        else:
            _settle(batch, job.result())
        self._set_off()


def _settle(batch: list[_Call], outcomes: Sequence[Answered | BaseException]) -> None:
    for call, outcome in zip(batch, outcomes, strict=True):
        if call.answer.done():
            continue
        if isinstance(outcome, BaseException):
            call.answer.set_exception(outcome)
        else:
            call.answer.set_result(call.whole(outcome))
