import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.reads import Fields, Row, Search, StoredItem
from indexer.scoring import Scoring
from indexer.serving.batcher import Batcher, Brief
from indexer.serving.steps import Step, Steps

NOTHING, METADATA = Fields(), Fields(metadata=True)


def search(number: float) -> Search:
    return Search(np.array([number], np.float32), None, 1, 0, None, Scoring.L2, 1)


class Threads:
    """Answers searches with their own number and the view, when it is let; a negative number fails."""

    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(8)
        self.brief_executor = ThreadPoolExecutor(8)
        self.batches: list[tuple[list[float], Fields]] = []
        self.tried: list[tuple[list[float], Fields]] = []
        self.shares: list[int] = []
        self.steps_in: set[int] = set()
        self.rest_in: set[int] = set()
        self.gone_on: list[list[float]] = []  # what was asked for, as its first step is done
        self.now: list[bool] = []  # of steps of one that is alone: whether they were carried out at once
        self.busy = False  # whether whoever must not wait would have to
        self.waits: list[int] = []
        self.held = threading.Event()
        self.long_held = threading.Event()  # those that are not brief, or not any more
        self.long_held.set()
        self._begun = threading.Semaphore(0)
        self.held.set()
        self.view = 0

    def answer(self, view: int, searches: Sequence[Search], fields: Fields) -> list[list[Row]]:
        numbers = [float(each.vector[0]) for each in searches]
        self.batches.append((numbers, fields))
        self._begun.release()
        assert self.held.wait(10)
        assert self.long_held.wait(10)
        if min(numbers) < 0:
            raise ValueError(f"cannot search for {min(numbers)}")
        return [[Row(StoredItem(str(view)), number, -number)] for number in numbers]

    def batcher(self, jobs: int = 1, max_batch: int = 16, max_waiting: int = 64) -> Batcher[int]:
        return Batcher(
            lambda: self.view, self.answer, self.executor, jobs=jobs, max_batch=max_batch, max_waiting=max_waiting
        )

    def impatient(self, max_waiting: int = 4, jobs: int = 1) -> Batcher[int]:
        """One that takes what is below 20 for brief, is wrong about it from 10 on, and fails at 5 and, in a step, 6."""

        def begin(view: int, searches: Sequence[Search], fields: Fields) -> Steps[list[list[Row] | None]]:
            asked = [float(each.vector[0]) for each in searches]
            self.tried.append((asked, fields))
            self.rest_in.add(threading.get_ident())

            def step() -> list[float]:
                self.steps_in.add(threading.get_ident())
                self._begun.release()
                assert self.held.wait(10)
                if 6 in asked:
                    raise ValueError("cannot search for 6")
                return asked

            found = yield step
            self.gone_on.append(asked)
            for number in found:
                if number == 5:
                    raise ValueError("cannot search for 5")
            self.rest_in.add(threading.get_ident())
            again: list[float] = yield lambda: asked
            return [None if number >= 10 else [Row(StoredItem(str(view)), number, -number)] for number in again]

        def takes(_view: int, searches: Sequence[Search]) -> bool:
            return max(float(one.vector[0]) for one in searches) < 20

        def at_once(_view: int, step: Step) -> tuple[bool, object]:
            self.now.append(not self.busy)
            return not self.busy, None if self.busy else step()

        def carry_out(step: Step, share: int) -> object:
            self.shares.append(share)
            return step()

        return Batcher(
            self.seen,
            self.answer,
            self.executor,
            jobs=1,
            max_batch=16,
            max_waiting=max_waiting,
            brief=Brief(takes, begin, at_once, carry_out, self.brief_executor, jobs),
            on_wait=lambda _: self.waits.append(1),
        )

    def seen(self) -> int:
        if self.view < 0:
            raise MemoryError
        return self.view

    async def begun(self) -> None:
        """Until one more batch is under way."""
        assert await asyncio.get_running_loop().run_in_executor(None, self._begun.acquire, True, 10)


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    made = Threads()
    yield made
    made.held.set()
    made.long_held.set()
    made.executor.shutdown()
    made.brief_executor.shutdown()


async def submitted(
    batcher: Batcher[int], *calls: list[float], fields: Fields = NOTHING
) -> list[asyncio.Task[list[list[Row]]]]:
    """Tasks that wait for their answers."""
    tasks = [asyncio.create_task(batcher.submit([search(n) for n in call], fields)) for call in calls]
    await asyncio.sleep(0)
    return tasks


def numbers(answered: object) -> list[float]:
    assert isinstance(answered, list)
    return [row.score for rows in answered for row in rows]


async def test_every_call_gets_its_own_answers_in_order(threads: Threads) -> None:
    batcher = threads.batcher(jobs=3, max_batch=4, max_waiting=1000)
    calls = [[i + k / 10 for k in range(1 + i % 5)] for i in range(50)]
    answers = await asyncio.gather(*(batcher.submit([search(n) for n in call], NOTHING) for call in calls))
    for call, answered in zip(calls, answers, strict=True):
        assert numbers(answered) == pytest.approx(call)


async def test_no_searches_are_answered_at_once(threads: Threads) -> None:
    assert await threads.batcher().submit([], NOTHING) == []
    assert threads.batches == []


async def test_what_gathers_while_a_batch_is_under_way_goes_together(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.batcher()
    tasks = await submitted(batcher, [1], [2], [3, 4], [5])
    assert batcher.waiting == 4
    threads.held.set()
    await asyncio.gather(*tasks)
    assert [batch for batch, _ in threads.batches] == [[1], [2, 3, 4, 5]]


async def test_a_batch_has_an_end_and_a_call_is_not_parted(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.batcher(max_batch=3)
    tasks = await submitted(batcher, [1], [2, 3], [4, 5], [6], [7, 8, 9, 10])
    threads.held.set()
    await asyncio.gather(*tasks)
    assert [batch for batch, _ in threads.batches] == [[1], [2, 3, 6], [4, 5], [7, 8, 9, 10]]


async def test_calls_that_want_other_fields_are_not_mixed(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.batcher()
    tasks = await submitted(batcher, [1], [2])
    tasks += await submitted(batcher, [3], fields=METADATA)
    tasks += await submitted(batcher, [4])
    threads.held.set()
    await asyncio.gather(*tasks)
    assert threads.batches == [([1], NOTHING), ([2, 4], NOTHING), ([3], METADATA)]


async def test_no_more_batches_run_at_once_than_are_allowed(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.batcher(jobs=2)
    tasks = await submitted(batcher, [1], [2], [3], [4])
    await threads.begun()
    await threads.begun()
    assert [batch for batch, _ in threads.batches] in ([[1], [2]], [[2], [1]])
    assert batcher.waiting == 2
    threads.held.set()
    await asyncio.gather(*tasks)


async def test_an_error_stays_with_the_call_that_caused_it(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.batcher()
    tasks = await submitted(batcher, [1], [2], [3, -1], [4])
    threads.held.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert numbers(outcomes[1]) == [2]
    assert isinstance(outcomes[2], ValueError)
    assert numbers(outcomes[3]) == [4]
    assert numbers(await batcher.submit([search(5)], NOTHING)) == [5]


async def test_searches_beyond_those_that_may_wait_are_refused(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.batcher(max_waiting=3)
    tasks = await submitted(batcher, [1], [2], [3, 4])
    with pytest.raises(LikenessError) as refused:
        await batcher.submit([search(5)], NOTHING)
    assert refused.value.reason == error_pb2.REASON_OVERLOADED
    assert refused.value.retry_after_s == 1.0
    threads.held.set()
    await asyncio.gather(*tasks)
    assert numbers(await batcher.submit([search(6)], NOTHING)) == [6]


async def test_a_call_larger_than_what_may_wait_is_taken_when_nothing_waits(threads: Threads) -> None:
    batcher = threads.batcher(max_waiting=3)
    assert len(await batcher.submit([search(n) for n in range(10)], NOTHING)) == 10


async def test_a_caller_that_has_gone_is_not_searched_for_and_makes_room(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.batcher(max_waiting=2)
    tasks = await submitted(batcher, [1], [2], [3])
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    assert batcher.waiting == 1
    tasks += await submitted(batcher, [4])
    threads.held.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert [batch for batch, _ in threads.batches] == [[1], [3, 4]]


async def test_a_caller_that_goes_while_it_is_searched_for_hurts_nobody(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.batcher()
    tasks = await submitted(batcher, [1], [2], [3])
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    threads.held.set()
    assert numbers(await tasks[1]) == [2]
    assert numbers(await tasks[2]) == [3]


async def test_a_batch_sees_what_was_written_before_its_searches_came(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.batcher()
    tasks = await submitted(batcher, [1])
    await threads.begun()
    threads.view = 7
    tasks += await submitted(batcher, [2])
    threads.held.set()
    first, second = await asyncio.gather(*tasks)
    assert first[0][0].item.id == "0"
    assert second[0][0].item.id == "7"


async def test_without_threads_callers_hear_of_it(threads: Threads) -> None:
    batcher = threads.batcher()
    threads.executor.shutdown()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shutdown"):
            await batcher.submit([search(1)], NOTHING)
    assert batcher.waiting == 0


async def test_the_first_step_of_a_brief_search_that_is_alone_needs_no_thread(threads: Threads) -> None:
    assert numbers(await threads.impatient().submit([search(1)], NOTHING)) == [1]
    assert threads.steps_in == {threading.get_ident()}
    assert (threads.now, len(threads.shares)) == ([True], 1), "the second step may be longer"


async def test_one_that_would_have_to_wait_on_the_event_loop_waits_in_a_thread(threads: Threads) -> None:
    batcher = threads.impatient()
    threads.busy = True
    assert numbers(await batcher.submit([search(1)], NOTHING)) == [1]
    assert (threads.now, len(threads.shares)) == ([False], 2)


async def test_after_several_came_together_one_is_alone_only_after_some_that_were(threads: Threads) -> None:
    batcher = threads.impatient()
    await asyncio.gather(*await submitted(batcher, [1], [2]))
    for count in range(6):
        assert len(threads.now) == max(0, count - 4)
        await batcher.submit([search(3)], NOTHING)
    assert threads.now == [True] * 2


async def test_one_that_comes_while_another_is_under_way_is_not_alone(threads: Threads) -> None:
    batcher = threads.impatient()
    await asyncio.gather(*await submitted(batcher, [1], [2]))
    threads.held.clear()
    tasks = await submitted(batcher, [3])
    for number in range(10):
        await threads.begun()
        tasks += await submitted(batcher, [4])
        threads.held.set()
        await tasks[number]
        threads.held.clear()
    threads.held.set()
    await asyncio.gather(*tasks)
    assert threads.now == []


async def test_two_that_want_other_fields_are_not_alone(threads: Threads) -> None:
    batcher = threads.impatient()
    await asyncio.gather(batcher.submit([search(1)], NOTHING), batcher.submit([search(2)], METADATA))
    assert threads.tried == [([1], NOTHING), ([2], METADATA)]
    assert threads.now == []


async def test_of_a_brief_search_only_the_steps_are_carried_out_in_a_thread(threads: Threads) -> None:
    batcher = threads.impatient()
    threads.view, threads.busy = 7, True
    [[row]] = await batcher.submit([search(1)], NOTHING)
    assert (row.item.id, row.score) == ("7", 1)
    assert threads.tried == [([1], NOTHING)]
    assert threads.rest_in == {threading.get_ident()}
    assert threads.steps_in
    assert not threads.steps_in & threads.rest_in


async def test_brief_searches_that_are_there_in_the_same_turn_go_to_a_thread_together(threads: Threads) -> None:
    batcher = threads.impatient()
    tasks = await submitted(batcher, [1], [2], [3])
    assert [numbers(await task) for task in tasks] == [[1], [2], [3]]
    assert threads.tried == [([1, 2, 3], NOTHING)]
    assert threads.batches == []


async def test_brief_searches_gather_while_others_are_under_way_but_for_other_fields(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.impatient()
    tasks = await submitted(batcher, [1], [2])
    await threads.begun()
    tasks += await submitted(batcher, [3])
    tasks += await submitted(batcher, [4], fields=METADATA)
    tasks += await submitted(batcher, [7])
    assert len(threads.tried) == 1
    threads.held.set()
    assert [numbers(await task) for task in tasks] == [[1], [2], [3], [4], [7]]
    assert threads.tried == [([1, 2], NOTHING), ([3, 7], NOTHING), ([4], METADATA)]


async def test_another_batch_of_calls_of_several_sets_off_beside_one_when_it_is_full(threads: Threads) -> None:
    threads.held.clear()
    threads.busy = True
    batcher = threads.impatient(max_waiting=100, jobs=2)
    tasks = await submitted(batcher, [1])
    await threads.begun()
    tasks += await submitted(batcher, *[[2.0] * 5] * 3)
    await asyncio.sleep(0)
    assert [len(asked) for asked, _ in threads.tried] == [1]
    tasks += await submitted(batcher, [3])
    await threads.begun()
    tasks += await submitted(batcher, [4] * 16, [4] * 16)
    await asyncio.sleep(0)
    assert [len(asked) for asked, _ in threads.tried] == [1, 16], "not more than two"
    threads.held.set()
    asked = [[1], *[[2] * 5] * 3, [3], [4] * 16, [4] * 16]
    assert [numbers(await task) for task in tasks] == asked
    assert sum(len(asked) for asked, _ in threads.tried) == 49


async def test_the_next_batch_sets_off_before_the_one_before_is_gone_on_with(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.impatient(max_waiting=100)
    tasks = await submitted(batcher, [1], [2])
    await threads.begun()
    tasks += await submitted(batcher, [3], [4])
    seen = list[tuple[int, int]]()

    class Noted(list[list[float]]):
        def append(self, asked: list[float]) -> None:
            seen.append((len(threads.tried), batcher._steps))
            super().append(asked)

    threads.gone_on = Noted()
    threads.held.set()
    assert [numbers(await task) for task in tasks] == [[1], [2], [3], [4]]
    assert seen[0] == (2, 1), "both have begun, and the second one's first step is under way"
    assert batcher._steps == 0


@pytest.mark.parametrize("calls", [[[2.0]] * 40, [[2.0] * 15], [[2.0] * 3] * 6])
async def test_none_sets_off_beside_one_of_calls_of_one_or_while_others_want_other_fields(
    threads: Threads, calls: list[list[float]]
) -> None:
    threads.held.clear()
    threads.busy = True
    batcher = threads.impatient(max_waiting=100, jobs=2)
    tasks = await submitted(batcher, [1])
    await threads.begun()
    tasks += await submitted(batcher, *calls)
    tasks += await submitted(batcher, [3] * 8, fields=METADATA)
    await asyncio.sleep(0)
    assert len(threads.tried) == 1
    threads.held.set()
    assert [numbers(await task) for task in tasks] == [[1], *calls, [3] * 8]


async def test_the_cores_are_shared_with_those_under_way_and_those_that_wait(threads: Threads) -> None:
    threads.held.clear()
    threads.busy = True
    batcher = threads.impatient(max_waiting=100, jobs=2)
    tasks = await submitted(batcher, [1])
    await threads.begun()
    tasks += await submitted(batcher, [2] * 16, [2])
    await threads.begun()
    assert threads.shares == [1, 3]
    threads.held.set()
    await asyncio.gather(*tasks)


async def test_an_answer_of_another_length_is_left_to_the_other_threads(threads: Threads) -> None:
    batcher, short = threads.impatient(), [[Row(StoredItem("x"), 1, -1)]]

    def begin(*_: object) -> Steps[list[list[Row] | None]]:
        yield lambda: None
        return list(short)

    assert batcher._brief is not None
    batcher._brief = replace(batcher._brief, begin=begin)
    tasks = await submitted(batcher, [1], [2])
    assert [numbers(await task) for task in tasks] == [[1], [2]]
    assert sum(len(asked) for asked, _ in threads.batches) == 2


async def test_a_step_that_is_cancelled_is_left_to_the_other_threads(threads: Threads) -> None:
    threads.held.clear()
    threads.brief_executor.shutdown()
    threads.brief_executor = ThreadPoolExecutor(1)
    busy = threads.brief_executor.submit(threads.held.wait, 10)
    batcher = threads.impatient()
    tasks = await submitted(batcher, [1], [2])
    await asyncio.sleep(0)
    threads.brief_executor.shutdown(wait=False, cancel_futures=True)
    threads.held.set()
    assert [numbers(await task) for task in tasks] == [[1], [2]]
    assert batcher._steps == 0
    assert busy.result()


async def test_steps_of_callers_that_have_all_gone_are_not_carried_out(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.impatient()
    tasks = await submitted(batcher, [1], [2])
    await threads.begun()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    threads.held.set()
    assert numbers(await batcher.submit([search(3)], NOTHING)) == [3]
    assert len(threads.shares) == 3, "one of theirs, two of this one"


async def test_no_more_brief_searches_go_together_than_may(threads: Threads) -> None:
    batcher = threads.impatient(max_waiting=100)
    await asyncio.gather(*await submitted(batcher, *([n / 10] for n in range(40))))
    assert [len(asked) for asked, _ in threads.tried] == [16, 16, 8]


async def test_a_call_of_several_brief_searches_is_one_too(threads: Threads) -> None:
    assert numbers(await threads.impatient().submit([search(1), search(2)], NOTHING)) == [1, 2]
    assert threads.tried == [([1, 2], NOTHING)]
    assert threads.batches == []


async def test_brief_searches_do_not_wait_for_long_ones(threads: Threads) -> None:
    batcher = threads.impatient(max_waiting=100)
    threads.long_held.clear()
    long = await submitted(batcher, [20], [21])
    await threads.begun()
    assert numbers(await batcher.submit([search(1)], NOTHING)) == [1]
    several = await submitted(batcher, [2, 3], [4, 11], [7])
    await threads.begun()
    assert [batch for batch, _ in threads.batches] == [[20]]
    assert threads.tried[1:] == [([2, 3, 4, 11, 7], NOTHING)]
    threads.long_held.set()
    assert [numbers(await task) for task in (*several, *long)] == [[2, 3], [4, 11], [7], [20], [21]]
    assert [20.0] in [batch for batch, _ in threads.batches]


@pytest.mark.parametrize("others", [[], [1.0, 2.0]])
async def test_one_that_takes_longer_after_all_goes_to_a_thread_without_the_others(
    threads: Threads, others: list[float]
) -> None:
    batcher = threads.impatient()
    answers = await asyncio.gather(*(batcher.submit([search(n)], NOTHING) for n in (10, *others)))
    assert [numbers(answered) for answered in answers] == [[10], *([n] for n in others)]
    assert threads.tried == [([10, *others], NOTHING)]
    assert threads.batches == [([10], NOTHING)]
    assert len(threads.waits) == 1 + len(others)


async def test_what_is_not_brief_is_left_to_the_threads(threads: Threads) -> None:
    assert numbers(await threads.impatient().submit([search(20)], NOTHING)) == [20]
    assert threads.tried == []


@pytest.mark.parametrize("together", [1, 2])
async def test_brief_searches_see_what_was_written_before_they_are_answered(threads: Threads, together: int) -> None:
    batcher = threads.impatient()
    tasks = await submitted(batcher, *[[1.0]] * together)
    threads.view = 8
    for task in tasks:
        [[row]] = await task
        assert row.item.id == "8"


@pytest.mark.parametrize("failing", [5.0, 6.0])
async def test_a_brief_one_that_fails_fails_alone(threads: Threads, failing: float) -> None:
    batcher = threads.impatient()
    asked = [1.0, failing, -1.0]
    answers = await asyncio.gather(*(batcher.submit([search(n)], NOTHING) for n in asked), return_exceptions=True)
    assert numbers(answers[0]) == [1]
    assert numbers(answers[1]) == [failing]  # the other thread can
    assert isinstance(answers[2], ValueError)


async def test_who_has_gone_is_not_searched_for_briefly(threads: Threads) -> None:
    batcher = threads.impatient()
    gone, stays, goes_too = await submitted(batcher, [1], [2], [3])
    gone.cancel()
    assert numbers(await stays) == [2]
    assert numbers(await goes_too) == [3]
    assert threads.tried == [([2, 3], NOTHING)]
    [alone] = await submitted(batcher, [4])
    alone.cancel()
    await asyncio.wait([alone])
    assert numbers(await batcher.submit([search(1)], NOTHING)) == [1]
    assert len(threads.tried) == 2


async def test_who_goes_while_brief_searches_are_under_way_hurts_nobody(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.impatient()
    tasks = await submitted(batcher, [1], [2], [11])
    await threads.begun()
    for task in (tasks[0], tasks[2]):
        task.cancel()
        await asyncio.wait([task])
    threads.held.set()
    assert numbers(await tasks[1]) == [2]
    assert batcher.waiting == batcher._running == batcher._steps == 0
    assert threads.batches == []


async def test_what_gathered_behind_brief_searches_sees_what_was_written_before_it_sets_off(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.impatient()
    tasks = await submitted(batcher, [1], [2])
    await threads.begun()
    threads.view = 7
    tasks += await submitted(batcher, [3])
    threads.held.set()
    answers = await asyncio.gather(*tasks)
    assert [rows[0][0].item.id for rows in answers] == ["0", "0", "7"]


@pytest.mark.parametrize("together", [1, 2])
async def test_without_a_view_callers_hear_of_it(threads: Threads, together: int) -> None:
    batcher = threads.impatient()
    tasks = await submitted(batcher, *[[1.0]] * together)
    threads.view = -1
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [MemoryError] * together
    threads.view = 0
    assert numbers(await batcher.submit([search(1)], NOTHING)) == [1]


async def test_the_other_threads_answer_where_those_of_brief_searches_cannot_begin(threads: Threads) -> None:
    def fail() -> None:
        raise OSError("no thread-local storage")

    threads.brief_executor.shutdown()
    threads.brief_executor = ThreadPoolExecutor(1, initializer=fail)
    batcher = threads.impatient()
    for _ in range(2):  # the first one breaks the pool
        assert [numbers(await task) for task in await submitted(batcher, [1], [2])] == [[1], [2]]
    assert sorted(number for batch, _ in threads.batches for number in batch) == [1, 1, 2, 2]
    assert batcher._steps == 0


async def test_brief_searches_that_gather_count_as_waiting(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.impatient()
    tasks = await submitted(batcher, [1], [2])
    await threads.begun()
    tasks += await submitted(batcher, [3], [4], [7], [8], [9])
    assert batcher.waiting == 4
    with pytest.raises(LikenessError) as caught:
        await tasks[-1]
    assert caught.value.reason == error_pb2.REASON_OVERLOADED
    threads.held.set()
    assert [numbers(await task) for task in tasks[:-1]] == [[1], [2], [3], [4], [7], [8]]


async def test_without_threads_callers_of_brief_searches_hear_of_it(threads: Threads) -> None:
    batcher = threads.impatient()
    threads.brief_executor.shutdown()
    threads.executor.shutdown()
    for _ in range(2):
        tasks = await submitted(batcher, [1], [2])
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["cannot schedule new futures after shutdown"] * 2
    assert batcher.waiting == batcher._steps == 0
