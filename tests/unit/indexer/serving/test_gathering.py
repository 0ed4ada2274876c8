"""What arrives within a few turns of the event loop comes together."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from indexer.serving.gathering import Gathering


class Heap:
    """What a gathering has given on."""

    def __init__(self, most: int = 8) -> None:
        self.taken: list[list[int]] = []
        self.gathering = Gathering(self.taken.append, most)

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
        if not len(gathering):
            return
    raise AssertionError(f"{len(gathering)} are still there")


@pytest.fixture
async def heap() -> AsyncIterator[Heap]:
    made = Heap()
    yield made
    assert not len(made.gathering)


async def test_what_is_there_in_the_same_turn_comes_together_in_order(heap: Heap) -> None:
    await heap.add(1, 2, 3)
    assert heap.taken == [[1, 2, 3]]


async def test_no_more_than_asked_for_come_together_and_the_rest_follows() -> None:
    heap = Heap(most=3)
    await heap.add(*range(8))
    assert heap.taken == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_who_comes_alone_does_not_wait(heap: Heap) -> None:
    await heap.add(1)
    turns = 0
    heap.gathering.add(2)
    while len(heap.taken) < 2:
        await asyncio.sleep(0)
        turns += 1
    assert turns == 1


async def test_after_some_came_together_it_waits_for_as_many_that_come_in_later_turns(heap: Heap) -> None:
    await heap.add(1, 2, 3)
    await heap.add(4, 5, 6, apart=5)
    assert heap.taken[1:] == [[4, 5, 6]]


async def test_it_waits_no_longer_than_some_turns_and_not_again(heap: Heap) -> None:
    await heap.add(1, 2, 3)
    await heap.add(4)
    await heap.add(5, 6, apart=5)
    assert heap.taken[1:] == [[4], [5], [6]]


async def test_whether_patience_would_bring_more_together_is_seen_now_and_then(heap: Heap) -> None:
    await heap.add(*range(40), apart=5)
    assert [len(together) for together in heap.taken] == [1] * 8 + [8] * 4


async def test_what_is_taken_may_add_more() -> None:
    taken: list[list[int]] = []

    def take(together: list[int]) -> None:
        taken.append(together)
        if len(taken) == 1:
            gathering.add(9)

    gathering = Gathering(take, 2)
    for number in (1, 2, 3):
        gathering.add(number)
    await emptied(gathering)
    assert taken == [[1, 2], [3, 9]]
