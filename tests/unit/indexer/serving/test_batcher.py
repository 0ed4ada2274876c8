import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.reads import Fields, Row, Search, StoredItem
from indexer.scoring import Scoring
from indexer.serving.batcher import Batcher

NOTHING, METADATA = Fields(), Fields(metadata=True)


def search(number: float) -> Search:
    return Search(np.array([number], np.float32), None, 1, 0, None, Scoring.L2, 1)


class Threads:
    """Answers searches with their own number and the view, when it is let; a negative number fails."""

    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(8)
        self.batches: list[tuple[list[float], Fields]] = []
        self.at_once: list[tuple[list[float], Fields]] = []
        self.waits: list[int] = []
        self.held = threading.Event()
        self._begun = threading.Semaphore(0)
        self.held.set()
        self.view = 0

    def answer(self, view: int, searches: Sequence[Search], fields: Fields) -> list[list[Row]]:
        numbers = [float(each.vector[0]) for each in searches]
        self.batches.append((numbers, fields))
        self._begun.release()
        assert self.held.wait(10)
        if min(numbers) < 0:
            raise ValueError(f"cannot search for {min(numbers)}")
        return [[Row(StoredItem(str(view)), number, -number)] for number in numbers]

    def batcher(self, jobs: int = 1, max_batch: int = 16, max_waiting: int = 64) -> Batcher[int]:
        return Batcher(
            lambda: self.view, self.answer, self.executor, jobs=jobs, max_batch=max_batch, max_waiting=max_waiting
        )

    def impatient(self) -> Batcher[int]:
        """One that answers what is below 10 at once, thinks that it can below 20, and fails at 5."""

        def at_once(view: int, searches: Sequence[Search], fields: Fields) -> list[list[Row] | None]:
            asked = [float(each.vector[0]) for each in searches]
            self.at_once.append((asked, fields))
            if 5 in asked:
                raise ValueError("cannot search for 5")
            return [None if number >= 10 else [Row(StoredItem(str(view)), number, -number)] for number in asked]

        return Batcher(
            lambda: self.view,
            self.answer,
            self.executor,
            jobs=1,
            max_batch=16,
            max_waiting=4,
            is_brief=lambda _, searches: max(float(each.vector[0]) for each in searches) < 20,
            at_once=at_once,
            on_wait=lambda _: self.waits.append(1),
        )

    async def begun(self) -> None:
        """Until one more batch is under way."""
        assert await asyncio.get_running_loop().run_in_executor(None, self._begun.acquire, True, 10)


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    made = Threads()
    yield made
    made.held.set()
    made.executor.shutdown()


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


async def test_what_can_be_answered_at_once_needs_no_thread(threads: Threads) -> None:
    batcher = threads.impatient()
    threads.view = 7
    [[row]] = await batcher.submit([search(1)], NOTHING)
    assert (row.item.id, row.score) == ("7", 1)
    assert threads.batches == []


async def test_what_is_there_at_once_is_answered_together_but_for_other_fields(threads: Threads) -> None:
    batcher = threads.impatient()
    asked = [(1, NOTHING), (2, METADATA), (3, NOTHING)]
    answers = await asyncio.gather(*(batcher.submit([search(number)], fields) for number, fields in asked))
    assert [numbers(answered) for answered in answers] == [[1], [2], [3]]
    assert threads.at_once == [([1, 3], NOTHING), ([2], METADATA)]
    assert threads.batches == []


async def test_few_searches_of_one_call_are_answered_at_once_where_they_came_in(threads: Threads) -> None:
    batcher = threads.impatient()
    call = batcher.submit([search(1), search(2)], NOTHING)
    with pytest.raises(StopIteration) as ended:
        call.send(None)  # the event loop has no turn
    assert numbers(ended.value.value) == [1, 2]


async def test_what_cannot_be_answered_at_once_after_all_goes_to_a_thread_alone(threads: Threads) -> None:
    batcher = threads.impatient()
    answers = await asyncio.gather(*(batcher.submit([search(n)], NOTHING) for n in (1, 10, 2)))
    assert [numbers(answered) for answered in answers] == [[1], [10], [2]]
    assert numbers(await batcher.submit([search(3), search(11)], NOTHING)) == [3, 11]
    assert numbers(await batcher.submit([search(20)], NOTHING)) == [20]
    assert threads.at_once == [([1, 10, 2], NOTHING), ([3, 11], NOTHING)]
    assert threads.batches == [([10], NOTHING), ([11], NOTHING), ([20], NOTHING)]
    assert len(threads.waits) == 5


async def test_it_sees_what_was_written_before_it_is_answered(threads: Threads) -> None:
    batcher = threads.impatient()
    [task] = await submitted(batcher, [1])
    threads.view = 8
    [[row]] = await task
    assert row.item.id == "8"


async def test_one_that_fails_at_once_fails_alone(threads: Threads) -> None:
    batcher = threads.impatient()
    asked = [1.0, 5.0, -1.0]
    answers = await asyncio.gather(*(batcher.submit([search(n)], NOTHING) for n in asked), return_exceptions=True)
    assert numbers(answers[0]) == [1]
    assert numbers(answers[1]) == [5]  # the thread can
    assert isinstance(answers[2], ValueError)


async def test_who_has_gone_is_not_searched_for_at_once(threads: Threads) -> None:
    batcher = threads.impatient()
    gone, stays = await submitted(batcher, [1], [2])
    gone.cancel()
    assert numbers(await stays) == [2]
    assert threads.at_once == [([2], NOTHING)]


async def test_nothing_is_answered_before_what_waits_already(threads: Threads) -> None:
    threads.held.clear()
    batcher = threads.impatient()
    tasks = await submitted(batcher, [20], [21], [1])
    assert batcher.waiting == 2
    threads.held.set()
    assert [numbers(await task) for task in tasks] == [[20], [21], [1]]
    assert [batch for batch, _ in threads.batches] == [[20], [21, 1]]


async def test_what_gathers_for_an_answer_at_once_counts_as_waiting(threads: Threads) -> None:
    batcher = threads.impatient()
    tasks = await submitted(batcher, [1], [2], [3], [4], [5])
    assert batcher.waiting == 4
    with pytest.raises(LikenessError) as caught:
        await tasks[-1]
    assert caught.value.reason == error_pb2.REASON_OVERLOADED
    assert [numbers(await task) for task in tasks[:-1]] == [[1], [2], [3], [4]]
