"""How the embedder's benchmark sends, by a clock that no busy machine disturbs."""

import asyncio
from typing import Any

import pytest

from benchmarks.embedder.loops import RefusedError, Reply, Seen, closed, poisson
from tests.unit.benchmarks.conftest import MadeUpTime


def test_a_closed_loop_has_as_many_under_way_as_there_are_callers(made_up_time: MadeUpTime) -> None:
    under_way, most = 0, 0

    async def send() -> Reply:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.02)
        under_way -= 1
        return Reply()

    found = made_up_time.run_until_complete(closed(send, 8, 0.11, 0.5))
    assert most == 8
    assert found["items"] == 25 * 8
    assert found["per_s"] == pytest.approx(400, rel=0.1)
    assert found["p50_ms"] == found["p99_ms"] == 20
    assert found["failed"] == found["refused"] == 0


def test_a_refused_caller_waits_as_it_is_told(made_up_time: MadeUpTime) -> None:
    tries: list[float] = []

    async def send() -> Reply:
        tries.append(made_up_time.time())
        if len(tries) == 1:
            raise RefusedError(0.2)
        await asyncio.sleep(0.5)
        return Reply()

    found = made_up_time.run_until_complete(closed(send, 1, 0.0, 0.3))
    assert tries[1] - tries[0] == pytest.approx(0.2)
    assert (len(tries), found["refused"]) == (2, 1)


def test_an_error_is_counted_and_shown(made_up_time: MadeUpTime) -> None:
    async def send() -> Reply:
        raise RuntimeError("gone")

    found = made_up_time.run_until_complete(closed(send, 1, 0.0, 0.1))
    assert found["per_s"] == 0
    assert found["failed"] == 1
    assert found["error"] == "RuntimeError: gone"


def test_open_arrivals_wait_for_nobody(made_up_time: MadeUpTime) -> None:
    async def send() -> Reply:
        await asyncio.sleep(0.3)
        return Reply()

    found = made_up_time.run_until_complete(poisson(send, 200, 0.2, 0.8, seed=1))
    assert 110 < found["arrivals"] < 220  # by chance, which the seed decides
    assert found["items"] >= found["arrivals"]
    assert found["p50_ms"] == found["p99_ms"] == 300
    assert found["lag_p99_ms"] == 0


def test_refusals_of_open_arrivals_are_timed_and_not_tried_again(made_up_time: MadeUpTime) -> None:
    async def send() -> Reply:
        await asyncio.sleep(0.01)
        raise RefusedError(1.0)

    found = made_up_time.run_until_complete(poisson(send, 100, 0.0, 0.5, seed=1))
    assert found["refused"] == found["arrivals"] > 0
    assert found["refused_p50_ms"] == found["refused_p99_ms"] == 10
    assert found["per_s"] == 0


def test_an_outage_at_the_end_costs_the_open_loop_its_share(made_up_time: MadeUpTime) -> None:
    begun = made_up_time.time()
    sent = 0

    async def send() -> Reply:
        nonlocal sent
        if made_up_time.time() - begun > 0.5:
            raise RuntimeError("out")
        sent += 1
        return Reply()

    found = made_up_time.run_until_complete(poisson(send, 200, 0.0, 1.0, seed=1))
    assert 0 < found["per_s"] == sent
    assert sent + found["failed"] == found["offered_per_s"] == found["arrivals"]
    assert 0.35 < sent / found["arrivals"] < 0.65  # by chance, which the seed decides


def test_open_latencies_count_from_when_an_arrival_was_due(made_up_time: MadeUpTime) -> None:
    tries = 0

    async def send() -> Reply:
        nonlocal tries
        tries += 1
        made_up_time.works(0.02)  # keeps the sender itself from being on time
        return Reply()

    found: Any = made_up_time.run_until_complete(poisson(send, 200, 0.0, 0.5, seed=1))
    assert found["p50_ms"] > 100
    assert found["lag_p99_ms"] > 100


def test_what_a_batch_takes_is_the_median_over_those_that_answered() -> None:
    replies = [Reply(0.1, 4), Reply(0.2, 8), Reply(0.9, 16)]
    assert Seen(replies=replies).summary(1.0)["batch_s"] == 0.2
    assert Seen().summary(1.0)["batch_s"] is None
