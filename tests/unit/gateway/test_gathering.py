"""What arrives within a few turns of the event loop comes together."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.gathering import Gathering


class Heap:
    """What a gathering has given on."""

    def __init__(self, most: int = 8) -> None:
        self.taken: list[list[int]] = []
        self.gathering = Gathering(self._take, most)

    def _take(self, together: list[int]) -> int:
        self.taken.append(together)
        return len(together)

    async def add(self, *numbers: int, apart: int = 0) -> None:
        """Adds numbers, so many turns of the loop apart, and waits until all are taken."""
        for number in numbers:
            self.gathering.add(number)
            for _ in range(apart):
                await asyncio.sleep(0)
        await emptied(self.gathering)


async def emptied(gathering: Gathering[int]) -> None:
    """Turns of the loop until all are taken."""
    for _ in range(1000):
        await asyncio.sleep(0)
        if not gathering._here:
            return
    raise AssertionError(f"{gathering._here} are still there")


class Clock:
    """Stands still, unless it is moved."""

    now = 100.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("gateway.gathering.time.monotonic", lambda: made.now)
    return made


@pytest.fixture
async def heap() -> AsyncIterator[Heap]:
    made = Heap()
    yield made
    assert not made.gathering._here


async def turns_until(heap: Heap, batches: int) -> int:
    """Turns of the loop until so many batches are taken."""
    for turn in range(1000):
        if len(heap.taken) >= batches:
            return turn
        await asyncio.sleep(0)
    raise AssertionError(heap.taken)


async def test_what_is_there_in_the_same_turn_comes_together_in_order(heap: Heap) -> None:
    await heap.add(1, 2, 3)
    assert heap.taken == [[1, 2, 3]]


async def test_no_more_than_asked_for_come_together_and_the_rest_follows() -> None:
    heap = Heap(most=3)
    await heap.add(*range(8))
    assert heap.taken == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_who_comes_alone_does_not_wait(heap: Heap) -> None:
    await heap.add(1)
    heap.gathering.add(2)
    assert await turns_until(heap, 2) == 1


async def test_after_some_came_together_it_waits_for_as_many_that_come_in_later_turns(heap: Heap) -> None:
    await heap.add(1, 2, 3)
    await heap.add(4, 5, 6, apart=5)
    assert heap.taken[1:] == [[4, 5, 6]]


async def test_it_waits_so_many_turns_for_as_many_as_the_last_time_and_fewer_for_more(heap: Heap) -> None:
    await heap.add(1, 2)
    for numbers, turns in (([3], 64), ([4], 1)):
        heap.gathering.add(*numbers)
        assert await turns_until(heap, len(heap.taken) + 1) == turns
    await heap.add(5, 6)
    for number in (7, 8):
        heap.gathering.add(number)
    assert await turns_until(heap, 5) == 8
    assert heap.taken == [[1, 2], [3], [4], [5, 6], [7, 8]]


async def test_how_many_a_crowd_leaves_over_tells_nothing(heap: Heap) -> None:
    await heap.add(*range(9))
    await heap.add(10, 11, apart=5)
    assert heap.taken == [list(range(8)), [8], [10, 11]]


async def test_whether_patience_would_bring_more_together_is_seen_now_and_then(heap: Heap) -> None:
    await heap.add(*range(40), apart=5)
    assert [len(together) for together in heap.taken] == [1] * 8 + [8] * 4


async def test_what_is_taken_may_add_more() -> None:
    taken: list[list[int]] = []

    def take(together: list[int]) -> int:
        taken.append(together)
        if len(taken) == 1:
            gathering.add(9)
        return len(together)

    gathering = Gathering(take, 2)
    for number in (1, 2, 3):
        gathering.add(number)
    await emptied(gathering)
    assert taken == [[1, 2], [3, 9]]


async def test_what_did_not_go_together_is_not_waited_for() -> None:
    taken: list[list[int]] = []

    def apart(together: list[int]) -> int:
        taken.append(together)
        return 1

    gathering = Gathering(apart, 8)
    for number in (1, 2, 3):
        gathering.add(number)
    await emptied(gathering)
    for number in (4, 5):
        gathering.add(number)
        for _ in range(5):
            await asyncio.sleep(0)
    assert taken == [[1, 2, 3], [4], [5]]


async def test_the_rest_of_a_crowd_follows_in_the_next_turn() -> None:
    heap = Heap(most=3)
    for number in range(7):
        heap.gathering.add(number)
    for _ in range(3):
        await asyncio.sleep(0)
    assert heap.taken == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(("turn_s", "turns"), [(0.0002, 3), (0.002, 1)])
async def test_nobody_waits_long_however_long_the_turns_are(
    heap: Heap, clock: Clock, turn_s: float, turns: int
) -> None:
    await heap.add(1, 2, 3)
    heap.gathering.add(4)
    for _ in range(turns):
        assert heap.taken == [[1, 2, 3]]
        clock.now += turn_s
        await asyncio.sleep(0)
    assert heap.taken == [[1, 2, 3], [4]]


async def test_those_that_go_on_arriving_do_not_keep_the_first_waiting(clock: Clock) -> None:
    heap = Heap(most=32)
    await heap.add(*range(32))
    for number in range(32, 42):
        assert len(heap.taken) == 1
        heap.gathering.add(number)
        clock.now += 0.00041
        await asyncio.sleep(0)
    assert heap.taken[1] == list(range(32, 42))
