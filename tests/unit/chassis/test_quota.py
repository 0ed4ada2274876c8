"""Rates and calls at once, by a clock of the test's own."""

import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from chassis.keys import Caller, Limits, Scope
from chassis.quota import Allowance, Quota


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refused_for(allowance: Allowance, items: int) -> float:
    with pytest.raises(LikenessError) as caught:
        allowance.charge(items)
    assert caught.value.reason == error_pb2.REASON_RATE_LIMITED
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


def test_a_burst_passes_and_then_as_many_as_the_rate_says(clock: Clock) -> None:
    allowance = Allowance(Limits(rate_per_s=10, burst=5), clock)
    for _ in range(5):
        allowance.charge(1)
    assert refused_for(allowance, 1) == pytest.approx(0.1)
    clock.now += 0.1001
    allowance.charge(1)
    assert refused_for(allowance, 3) == pytest.approx(0.3, abs=0.001)
    clock.now += 1000
    allowance.charge(5)
    assert refused_for(allowance, 1) == pytest.approx(0.1)


def test_coming_again_when_told_is_enough(clock: Clock) -> None:
    allowance = Allowance(Limits(rate_per_s=3, burst=2), clock)
    allowance.charge(2)
    clock.now += refused_for(allowance, 2) + 1e-9
    allowance.charge(2)


def test_more_than_the_burst_passes_after_a_pause_and_is_earned_afterwards(clock: Clock) -> None:
    allowance = Allowance(Limits(rate_per_s=10, burst=5), clock)
    allowance.charge(50)
    assert refused_for(allowance, 1) == pytest.approx(4.6)
    assert refused_for(allowance, 50) == pytest.approx(5.0)


def test_a_stream_takes_what_it_reads_and_is_told_how_long_to_wait(clock: Clock) -> None:
    allowance = Allowance(Limits(rate_per_s=10, burst=5), clock)
    assert allowance.reserve(5) == 0
    assert allowance.reserve(1) == pytest.approx(0.1)
    assert allowance.reserve(1) == pytest.approx(0.2)


def test_calls_pass_beside_a_stream_that_has_used_the_rate_up_and_the_stream_waits_for_what_they_took(
    clock: Clock,
) -> None:
    allowance = Allowance(Limits(rate_per_s=10, burst=5), clock)
    for _ in range(25):
        wait_s = allowance.reserve(1)
    for _ in range(5):
        allowance.charge(1)
    assert refused_for(allowance, 1) == pytest.approx(0.1)
    assert allowance.reserve(1) == pytest.approx(wait_s + 0.6)


def test_calls_and_streams_together_keep_the_rate(clock: Clock) -> None:
    allowance = Allowance(Limits(rate_per_s=10, burst=5), clock)
    began = next_call = clock.now
    calls = streamed = 0
    while clock.now < began + 100:
        clock.now += allowance.reserve(1)  # a stream that takes what it can get
        streamed += 1
        while next_call <= clock.now:  # and four calls a second
            allowance.charge(1)
            calls, next_call = calls + 1, next_call + 0.25
    assert calls == pytest.approx(400, abs=2)
    assert streamed == pytest.approx(600, abs=10)


def test_calls_at_once_are_counted_until_they_end(clock: Clock) -> None:
    allowance = Allowance(Limits(concurrent=2), clock)
    allowance.begin()
    allowance.begin()
    with pytest.raises(LikenessError) as caught:
        allowance.begin()
    assert caught.value.reason == error_pb2.REASON_RATE_LIMITED
    assert caught.value.retry_after_s
    allowance.end()
    allowance.begin()


def test_without_limits_nothing_is_refused(clock: Clock) -> None:
    allowance = Allowance(Limits(), clock)
    for _ in range(100):
        allowance.begin()
        allowance.charge(10**6)
    assert allowance.reserve(10**6) == 0


def test_each_name_has_an_allowance_of_its_own_which_outlives_a_change_of_its_key(clock: Clock) -> None:
    quota, slow = Quota(clock), Limits(rate_per_s=1, burst=1)
    web, other = Caller("web", Scope.READ, b"1", slow), Caller("other", Scope.READ, b"2", slow)
    quota.of(web).charge(1)
    quota.of(other).charge(1)
    refused_for(quota.of(Caller("web", Scope.READ, b"3", slow)), 1)
    quota.of(Caller("web", Scope.READ, b"3", Limits())).charge(100)
