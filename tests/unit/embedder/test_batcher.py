"""What goes into the next forward pass."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.batcher import LATELY_S, LONGEST_BESIDE_S, LONGEST_S, BatchQueue
from embedder.entries import Entry, Stage
from embedder.inputs import Kind, Lane


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_queue(
    clock: Clock, max_batch: int = 4, wait_s: float = 0.0, texts_cut: bool = True, least: int | None = None
) -> BatchQueue:
    return BatchQueue(max_batch, 64, least=least or max_batch, texts_cut=texts_cut, wait_s=wait_s, clock=clock)


class Wanted(Entry):
    """An entry whose callers wait until it is told otherwise."""

    is_wanted = True

    def wanted(self, now: float) -> bool:
        return self.is_wanted


def entry(lane: Lane = Lane.INTERACTIVE, length: int | None = None) -> Wanted:
    kind: Kind = "image" if length is None else "text"
    tokens = None if length is None else np.ones(length, np.int64)
    return Wanted(kind, lane, b"", Stage.TO_INFER, lambda *_: None, lambda *_: None, tokens=tokens)


def fill(queue: BatchQueue, entries: Sequence[Entry]) -> Sequence[Entry]:
    for each in entries:
        queue.put(each)
    return entries


def test_what_is_there_goes_at_once_oldest_first_up_to_the_limit() -> None:
    queue = make_queue(Clock())
    entries = fill(queue, [entry() for _ in range(6)])
    assert queue.take() == entries[:4]
    assert queue.take() == entries[4:]
    assert queue.take() == []


def test_pictures_and_texts_do_not_mix_and_the_oldest_kind_goes_first() -> None:
    clock = Clock()
    queue = make_queue(clock)
    text = entry(length=5)
    queue.put(text)
    clock.now += 0.1
    pictures = fill(queue, [entry(), entry()])
    clock.now += 0.1
    late = entry(length=5)
    queue.put(late)
    assert queue.take() == [text, late]
    assert queue.take() == pictures


def test_interactive_goes_before_older_bulk() -> None:
    clock = Clock()
    queue = make_queue(clock)
    bulk = fill(queue, [entry(Lane.BULK) for _ in range(4)])
    clock.now += 0.5
    urgent = entry()
    queue.put(urgent)
    assert queue.take() == [urgent]
    assert queue.take() == bulk


def test_bulk_starves_for_no_more_than_a_second_and_then_gets_a_trickle() -> None:
    clock = Clock()
    queue = make_queue(clock, max_batch=16)
    bulk = fill(queue, [entry(Lane.BULK, length=8) for _ in range(100)])
    ran: list[list[Entry]] = []
    for _ in range(40):
        fill(queue, [entry() for _ in range(16)])
        ran.append(queue.take())
        clock.now += 0.1
    trickle = [batch for batch in ran if batch[0].lane is Lane.BULK]
    assert len(trickle) == 3
    assert [len(batch) for batch in trickle] == [16, 16, 16], "an eighth of the 128 texts that a batch holds"
    assert trickle[0] == bulk[:16]


def test_bulk_alone_is_never_cut_to_a_trickle() -> None:
    clock = Clock()
    queue = make_queue(clock)
    fill(queue, [entry(Lane.BULK) for _ in range(12)])
    sizes = []
    for _ in range(3):
        clock.now += 5.0
        sizes.append(len(queue.take()))
    assert sizes == [4, 4, 4]


def test_texts_share_a_batch_with_texts_of_about_their_length() -> None:
    queue = make_queue(Clock())
    entries = fill(queue, [entry(length=n) for n in (30, 5, 20, 32, 60, 17)])
    assert [len(e.tokens) for e in queue.take() if e.tokens is not None] == [30, 32, 20, 17]
    assert queue.take() == [entries[1]]
    assert queue.take() == [entries[4]]


def test_a_batch_of_short_texts_holds_as_many_tokens_as_one_of_long_texts() -> None:
    queue = make_queue(Clock())
    assert (queue.room("text", 64), queue.room("text", 16), queue.room("text", 8)) == (4, 16, 32)
    queue.limits["text"] = 1
    assert (queue.room("text", 64), queue.room("text", 8)) == (1, 8)


def test_texts_that_cannot_be_cut_all_count_as_full() -> None:
    queue = make_queue(Clock(), texts_cut=False)
    entries = fill(queue, [entry(length=n) for n in (3, 60, 20, 9, 5)])
    assert queue.take() == entries[:4]


def test_with_a_waiting_time_a_batch_waits_until_it_is_full_or_due() -> None:
    clock = Clock()
    queue = make_queue(clock, wait_s=0.05)
    entries = fill(queue, [entry() for _ in range(3)])
    assert queue.take() == []
    assert queue.due_in() == pytest.approx(0.05)
    clock.now += 0.03
    last = entry()
    queue.put(last)
    assert queue.take() == [*entries, last]
    queue.put(late := entry())
    clock.now += 0.05
    assert queue.take() == [late]
    assert queue.due_in() is None


def test_what_nobody_wants_any_more_is_left_out() -> None:
    queue = make_queue(Clock())
    entries = [entry() for _ in range(6)]
    fill(queue, entries)
    entries[0].is_wanted = entries[3].is_wanted = False
    assert queue.take() == [entries[1], entries[2], entries[4], entries[5]]


def test_an_entry_that_moves_to_a_better_lane_runs_once() -> None:
    queue = make_queue(Clock())
    entries = fill(queue, [entry(Lane.BULK) for _ in range(3)])
    entries[2].lane = Lane.INTERACTIVE
    queue.put(entries[2])
    assert queue.take() == [entries[2]]
    assert queue.take() == entries[:2]
    assert queue.take() == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(Lane), st.none() | st.integers(1, 64), st.floats(0, 2)), max_size=60),
    st.integers(1, 16),
    st.integers(1, 16),
    st.integers(1, 16),
    st.floats(1e-5, 1.0),
)
def test_every_entry_runs_exactly_once_within_the_limits(
    arrivals: list[tuple[Lane, int | None, float]], max_batch: int, limit: int, least: int, seconds_each: float
) -> None:
    clock = Clock()
    queue = make_queue(clock, max_batch, least=min(least, max_batch))

    def take() -> list[Entry]:
        batch = queue.take()
        if batch:
            longest = max((len(e.tokens) for e in batch if e.tokens is not None), default=0)
            queue.ran(batch[0].kind, len(batch), longest, seconds_each * len(batch))
        return batch

    queue.limits["image"] = queue.limits["text"] = limit
    entries, ran = [], []
    for lane, length, pause in arrivals:
        clock.now += pause
        entries.append(entry(lane, length))
        queue.put(entries[-1])
        if pause > 1:
            ran.append(take())
    while batch := take():
        ran.append(batch)
    for batch in filter(None, ran):
        assert len({(e.kind, e.lane) for e in batch}) == 1
        longest = max((len(e.tokens) for e in batch if e.tokens is not None), default=0)
        assert len(batch) <= (min(max_batch, limit) if not longest else min(max_batch, limit) * 64 / longest)
    assert sorted(id(e) for batch in ran for e in batch) == sorted(map(id, entries))


def test_what_waited_through_a_long_bulk_batch_goes_before_the_next_one() -> None:
    clock = Clock()
    queue = make_queue(clock)
    bulk = fill(queue, [entry(Lane.BULK) for _ in range(8)])
    assert queue.take() == bulk[:4]
    clock.now += 5.0
    urgent = entry()
    queue.put(urgent)
    assert queue.take() == [urgent]
    assert queue.take() == bulk[4:]


def test_a_full_bulk_batch_goes_while_an_interactive_one_waits_to_fill() -> None:
    clock = Clock()
    queue = make_queue(clock, wait_s=0.05)
    urgent = entry()
    queue.put(urgent)
    bulk = fill(queue, [entry(Lane.BULK) for _ in range(3)])
    assert queue.take() == [], "neither is full"
    queue.put(last := entry(Lane.BULK))
    assert queue.take() == [*bulk, last]
    clock.now += 0.05
    assert queue.take() == [urgent]


def test_a_text_without_tokens_has_room() -> None:
    queue = make_queue(Clock())
    empty = entry(length=0)
    queue.put(empty)
    assert queue.take() == [empty]


def cost(queue: BatchQueue, seconds_each: float) -> None:
    """Has the queue know what a picture costs."""
    for _ in range(100):
        queue.ran("image", 8, 0, 8 * seconds_each)


def test_a_batch_is_large_as_long_as_it_is_quick() -> None:
    queue = make_queue(Clock(), max_batch=16, least=8)
    fill(queue, [entry() for _ in range(80)])
    assert len(queue.take()) == 8, "nothing is known of its cost"
    cost(queue, LONGEST_S / 16.5)
    assert len(queue.take()) == 16
    cost(queue, LONGEST_S / 12.5)
    assert len(queue.take()) == 12
    cost(queue, 1.0)
    assert len(queue.take()) == 8
    cost(queue, LONGEST_S / 100)
    assert len(queue.take()) == 16


def test_without_a_least_number_that_is_smaller_time_does_not_count() -> None:
    queue = make_queue(Clock(), max_batch=16)
    cost(queue, 10.0)
    assert (queue.room("image", 0), queue.room("image", 0, Lane.BULK)) == (16, 16)


def test_small_batches_do_not_tell_what_an_entry_costs_in_a_large_one() -> None:
    queue = make_queue(Clock(), max_batch=16, least=8)
    cost(queue, LONGEST_S / 20)
    for _ in range(100):
        queue.ran("image", 1, 0, 1.0)
    assert queue.room("image", 0) == 16


def test_texts_cost_by_the_tokens_that_they_are_padded_to() -> None:
    queue = make_queue(Clock(), max_batch=16, least=8)
    cost(queue, 1.0)
    assert queue.room("text", 64) == 8, "of texts nothing is known, whatever pictures cost"
    for _ in range(2):
        queue.ran("text", 64, 16, LONGEST_S)  # as much as 16 full ones
    assert (queue.room("text", 64), queue.room("text", 16)) == (16, 64)
    for _ in range(100):
        queue.ran("text", 8, 64, LONGEST_S)
    assert (queue.room("text", 64), queue.room("text", 16)) == (8, 32)


def test_bulk_takes_long_batches_only_while_nobody_interactive_comes() -> None:
    clock = Clock()
    queue = make_queue(clock, max_batch=16, least=8)
    cost(queue, LONGEST_BESIDE_S / 10.5)
    fill(queue, [entry(Lane.BULK) for _ in range(60)])
    assert len(queue.take()) == 16
    queue.put(urgent := entry())
    assert queue.take() == [urgent]
    assert len(queue.take()) == 10
    clock.now += LATELY_S
    assert len(queue.take()) == 16


def test_a_limit_for_want_of_memory_holds_below_the_least_number() -> None:
    queue = make_queue(Clock(), max_batch=16, least=8)
    queue.limits["image"] = 2
    fill(queue, [entry() for _ in range(8)])
    assert len(queue.take()) == 2
    cost(queue, 10.0)
    assert len(queue.take()) == 2
