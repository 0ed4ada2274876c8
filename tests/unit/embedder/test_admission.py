"""Who comes in, who is refused, who waits."""

import asyncio

import pytest

from chassis.errors import LikenessError
from embedder.admission import Admission, Bounds, Load
from embedder.inputs import Kind, Lane


def pictures(count: int, size: int = 0) -> Load:
    return Load({"image": count, "text": 0}, size)


class Clock:
    """Stands still, unless it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def admission(
    *,
    inputs: int = 100,
    size: int = 2**30,
    pixels: int = 10**9,
    seconds: float = 0.0,
    batch: int = 1,
    clock: Clock | None = None,
) -> Admission:
    def each(kind: Kind) -> float:
        return seconds if kind == "image" else seconds / 10

    bounds = Bounds(inputs, size, pixels, {Lane.INTERACTIVE: 1.5, Lane.BULK: 20.0})
    return Admission(bounds, each, lambda: batch, clock or Clock())


def refused(door: Admission, lane: Lane, load: Load) -> LikenessError:
    with pytest.raises(LikenessError) as caught:
        door.enter(lane, load)
    assert caught.value.reason_name == "OVERLOADED"
    assert caught.value.retry_after_s
    return caught.value


def test_more_inputs_than_the_bound_are_refused_until_some_have_left() -> None:
    door = admission(inputs=10)
    door.enter(Lane.INTERACTIVE, pictures(6))
    refused(door, Lane.INTERACTIVE, pictures(3))
    door.enter(Lane.INTERACTIVE, pictures(2))
    door.leave(Lane.INTERACTIVE, pictures(6))
    door.enter(Lane.INTERACTIVE, pictures(3))
    assert door.held == 5


def test_a_call_that_finds_nothing_held_comes_in_whatever_its_size() -> None:
    door = admission(inputs=10, size=100)
    door.enter(Lane.BULK, pictures(50, size=10_000))
    refused(door, Lane.INTERACTIVE, pictures(1))


def test_bytes_count_as_well_as_inputs() -> None:
    door = admission(size=1000)
    door.enter(Lane.INTERACTIVE, pictures(1, size=775))
    refused(door, Lane.INTERACTIVE, pictures(1, size=101))
    door.enter(Lane.INTERACTIVE, pictures(1, size=100))


def test_bulk_leaves_a_quarter_of_the_room_to_interactive_calls() -> None:
    door = admission(inputs=100)
    door.enter(Lane.BULK, pictures(75))
    refused(door, Lane.BULK, pictures(1))
    door.enter(Lane.INTERACTIVE, pictures(25))


@pytest.mark.parametrize("size", [0, 1])
def test_interactive_calls_leave_an_eighth_of_the_room_to_bulk(size: int) -> None:
    door = admission(inputs=1000 if size else 80, size=80)
    for _ in range(70):
        door.enter(Lane.INTERACTIVE, pictures(1, size=size))
    refused(door, Lane.INTERACTIVE, pictures(1, size=size))
    for _ in range(10):
        door.enter(Lane.BULK, pictures(1, size=size))
    refused(door, Lane.BULK, pictures(1, size=size))
    door.leave(Lane.BULK, pictures(1, size=size))
    refused(door, Lane.INTERACTIVE, pictures(1, size=size))
    door.enter(Lane.BULK, pictures(1, size=size))


def test_the_only_call_of_a_lane_may_be_larger_than_its_share() -> None:
    door = admission(inputs=80)
    door.enter(Lane.BULK, pictures(1))
    door.enter(Lane.INTERACTIVE, pictures(79))
    door.leave(Lane.BULK, pictures(1))
    door.enter(Lane.BULK, pictures(40))
    refused(door, Lane.BULK, pictures(1))


def test_interactive_calls_are_refused_by_the_interactive_work_before_them_and_bulk_by_all_of_it() -> None:
    door = admission(inputs=10_000, seconds=0.1)
    door.enter(Lane.BULK, pictures(150))
    door.enter(Lane.INTERACTIVE, pictures(15))
    door.enter(Lane.INTERACTIVE, pictures(1))
    late = refused(door, Lane.INTERACTIVE, pictures(1))
    assert "1.6 s" in late.message
    door.enter(Lane.BULK, pictures(40))
    refused(door, Lane.BULK, pictures(1))


def test_the_time_to_try_again_grows_with_what_waits() -> None:
    door = admission(inputs=10_000, seconds=0.1)
    door.enter(Lane.INTERACTIVE, pictures(20))
    soon = refused(door, Lane.INTERACTIVE, pictures(1)).retry_after_s
    long = admission(inputs=10_000, seconds=0.1)
    long.enter(Lane.INTERACTIVE, pictures(200))
    later = refused(long, Lane.INTERACTIVE, pictures(1)).retry_after_s
    assert soon is not None
    assert later is not None
    assert 0.1 <= soon < later <= 30


def test_a_slow_model_has_two_and_a_half_batches_at_hand_if_they_take_no_more_than_twice_the_time() -> None:
    door = admission(seconds=0.15, batch=8)  # 10 take 1.5 s
    for _ in range(21):
        door.enter(Lane.INTERACTIVE, pictures(1))
    refused(door, Lane.INTERACTIVE, pictures(1))
    slower = admission(seconds=0.6, batch=8)
    for _ in range(6):
        slower.enter(Lane.INTERACTIVE, pictures(1))
    refused(slower, Lane.INTERACTIVE, pictures(1))


def test_bulk_is_bounded_by_time_however_few_they_are() -> None:
    door = admission(seconds=1.0, batch=64)
    for _ in range(21):
        door.enter(Lane.BULK, pictures(1))
    refused(door, Lane.BULK, pictures(1))


def test_who_comes_back_when_told_has_room_if_the_model_got_on() -> None:
    clock = Clock()
    door = admission(seconds=0.15, batch=8, clock=clock)
    for _ in range(21):
        door.enter(Lane.INTERACTIVE, pictures(1))
    after = refused(door, Lane.INTERACTIVE, pictures(1)).retry_after_s
    assert after == pytest.approx(0.15)
    clock.now += after or 0.0
    door.leave(Lane.INTERACTIVE, pictures(1))
    door.enter(Lane.INTERACTIVE, pictures(1))


def test_those_that_are_refused_are_told_to_come_back_one_after_another() -> None:
    clock = Clock()
    door = admission(inputs=10_000, seconds=0.1, clock=clock)
    door.enter(Lane.INTERACTIVE, pictures(20))  # half a second too much
    after = [refused(door, Lane.INTERACTIVE, pictures(n)).retry_after_s for n in (1, 1, 3, 1)]
    assert after == pytest.approx([0.5, 0.6, 0.7, 1.0])
    clock.now += 0.4
    door.leave(Lane.INTERACTIVE, pictures(4))
    assert refused(door, Lane.INTERACTIVE, pictures(1)).retry_after_s == pytest.approx(0.7)
    # They may never come: beyond a queue's length nobody's turn is put off.
    for _ in range(100):
        last = refused(door, Lane.INTERACTIVE, pictures(1)).retry_after_s
    assert last == pytest.approx(0.1 + 1.5)
    # What was promised long ago is over.
    clock.now += 60
    assert refused(door, Lane.INTERACTIVE, pictures(1)).retry_after_s == pytest.approx(0.1)


def test_the_lanes_have_turns_of_their_own() -> None:
    door = admission(inputs=10_000, seconds=0.1)
    door.enter(Lane.INTERACTIVE, pictures(210))
    for _ in range(100):
        refused(door, Lane.INTERACTIVE, pictures(1))
    assert refused(door, Lane.BULK, pictures(1)).retry_after_s == pytest.approx(1.0)


def test_who_is_refused_for_want_of_places_is_not_put_off_beyond_what_is_held() -> None:
    door = admission(inputs=20, seconds=0.01)
    door.enter(Lane.BULK, pictures(15))
    assert refused(door, Lane.BULK, pictures(10)).retry_after_s == pytest.approx(0.1)
    for _ in range(100):
        last = refused(door, Lane.BULK, pictures(10)).retry_after_s
    assert last == pytest.approx(0.1 + 0.15)


def unread(door: Admission, calls: int) -> list[float | None]:
    """When each of so many calls is told to come back before it is read; None: it is read."""
    told: list[float | None] = []
    for _ in range(calls):
        try:
            door.check_unread()
            told.append(None)
        except LikenessError as error:
            told.append(error.retry_after_s)
    return told


def test_while_interactive_calls_are_refused_seven_of_eight_are_refused_unread() -> None:
    door = admission(inputs=10_000, seconds=0.1)
    door.enter(Lane.INTERACTIVE, pictures(15))
    assert unread(door, 3) == [None] * 3
    door.enter(Lane.INTERACTIVE, pictures(2))
    told = unread(door, 16)
    assert [after is None for after in told] == ([False] * 7 + [True]) * 2
    # As those are told that bring what the last one brought that came in.
    assert told[:3] == pytest.approx([0.2, 0.4, 0.6])
    assert refused(door, Lane.INTERACTIVE, pictures(1)).retry_after_s == pytest.approx(1.7)


def test_calls_are_read_that_might_bring_less_than_there_is_no_room_for() -> None:
    door = admission(inputs=24)
    door.enter(Lane.INTERACTIVE, pictures(20))
    refused(door, Lane.INTERACTIVE, pictures(2))
    assert unread(door, 1) == [None]
    door.enter(Lane.INTERACTIVE, pictures(1))
    assert unread(door, 1) != [None]


def test_where_bulk_comes_among_them_that_did_not_say_so_every_call_is_read() -> None:
    clock = Clock()
    door = admission(inputs=10_000, seconds=0.1, clock=clock)
    door.enter(Lane.INTERACTIVE, pictures(16))
    assert unread(door, 1) != [None]
    door.enter(Lane.BULK, pictures(1))
    assert unread(door, 1) != [None]
    door.expect_bulk()
    clock.now += 59
    assert unread(door, 20) == [None] * 20
    clock.now += 2
    assert unread(door, 1) != [None]


def test_where_nothing_is_known_of_the_time_a_moment_is_told() -> None:
    door = admission(inputs=1)
    door.enter(Lane.INTERACTIVE, pictures(1))
    assert refused(door, Lane.INTERACTIVE, pictures(1)).retry_after_s == 0.1


def test_pixels_are_refused_only_where_some_wait_already() -> None:
    door = admission(pixels=100)
    door.check_pixels(Lane.INTERACTIVE, 500)
    door.add_pixels(Lane.BULK, 60)
    door.check_pixels(Lane.INTERACTIVE, 500)
    with pytest.raises(LikenessError) as caught:
        door.check_pixels(Lane.BULK, 40)
    assert caught.value.reason_name == "OVERLOADED"
    door.add_pixels(Lane.BULK, -60)
    door.check_pixels(Lane.BULK, 400)


async def test_a_stream_waits_its_turn_and_enters_first_come_first_served() -> None:
    door = admission(inputs=4)
    door.enter(Lane.BULK, pictures(3))
    order: list[str] = []

    async def come(name: str, count: int) -> None:
        await door.wait_and_enter(Lane.BULK, pictures(count))
        order.append(name)

    tasks = [asyncio.create_task(come("large", 3)), asyncio.create_task(come("small", 1))]
    await asyncio.sleep(0)
    assert order == [], "the small one must not slip past the large one"
    door.leave(Lane.BULK, pictures(3))
    await asyncio.wait_for(tasks[0], 60)
    assert order == ["large"]
    door.leave(Lane.BULK, pictures(3))
    await asyncio.wait_for(tasks[1], 60)
    assert door.held == 1


async def test_one_that_stops_waiting_holds_nothing_and_nobody_up() -> None:
    door = admission(inputs=4)
    door.enter(Lane.BULK, pictures(3))
    first = asyncio.create_task(door.wait_and_enter(Lane.INTERACTIVE, pictures(3)))
    second = asyncio.create_task(door.wait_and_enter(Lane.INTERACTIVE, pictures(1)))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait_for(second, 60)
    assert door.held == 4


async def test_one_that_stops_waiting_just_as_it_is_let_in_leaves_again() -> None:
    door = admission(inputs=4)
    door.enter(Lane.BULK, pictures(3))
    waiting = asyncio.create_task(door.wait_and_enter(Lane.BULK, pictures(3)))
    await asyncio.sleep(0)
    door.leave(Lane.BULK, pictures(3))
    waiting.cancel()
    await asyncio.wait({waiting})
    assert door.held == 0
