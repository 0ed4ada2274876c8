"""How the embedder's benchmark sends."""

import asyncio
import time

from benchmarks.embedder.loops import RefusedError, Reply, Seen, closed, poisson


async def test_a_closed_loop_has_as_many_under_way_as_there_are_callers() -> None:
    under_way, most = 0, 0

    async def send() -> Reply:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.02)
        under_way -= 1
        return Reply()

    found = await closed(send, 8, 0.1, 0.5)
    assert most == 8
    assert 200 < found["per_s"] < 410
    assert found["failed"] == found["refused"] == 0


async def test_a_refused_caller_waits_as_it_is_told() -> None:
    tries: list[float] = []

    async def send() -> Reply:
        tries.append(time.perf_counter())
        if len(tries) == 1:
            raise RefusedError(0.2)
        await asyncio.sleep(0.5)
        return Reply()

    await closed(send, 1, 0.0, 0.3)
    assert tries[1] - tries[0] >= 0.19


async def test_an_error_is_counted_and_shown() -> None:
    async def send() -> Reply:
        raise RuntimeError("gone")

    found = await closed(send, 1, 0.0, 0.1)
    assert found["per_s"] == 0
    assert found["failed"] >= 1
    assert found["error"] == "RuntimeError: gone"


async def test_open_arrivals_wait_for_nobody() -> None:
    async def send() -> Reply:
        await asyncio.sleep(0.3)
        return Reply()

    found = await poisson(send, 200, 0.2, 0.8, seed=1)
    assert 110 < found["arrivals"] < 220
    assert found["items"] >= found["arrivals"]
    assert 290 < found["p50_ms"] < 500


async def test_refusals_of_open_arrivals_are_timed_and_not_tried_again() -> None:
    async def send() -> Reply:
        await asyncio.sleep(0.01)
        raise RefusedError(1.0)

    found = await poisson(send, 100, 0.0, 0.5, seed=1)
    assert found["refused"] == found["arrivals"]
    assert 9 < found["refused_p50_ms"] < 100
    assert found["per_s"] == 0


async def test_an_outage_at_the_end_costs_the_open_loop_its_share() -> None:
    begun = time.perf_counter()

    async def send() -> Reply:
        if time.perf_counter() - begun > 0.5:
            raise RuntimeError("out")
        return Reply()

    found = await poisson(send, 200, 0.0, 1.0, seed=1)
    assert 0.35 < found["per_s"] / found["offered_per_s"] < 0.65


async def test_open_latencies_count_from_when_an_arrival_was_due() -> None:
    async def send() -> Reply:
        time.sleep(0.02)  # noqa: ASYNC251 (keeps the sender itself from being on time)
        return Reply()

    found = await poisson(send, 200, 0.0, 0.5, seed=1)
    assert found["p50_ms"] > 100


def test_what_a_batch_takes_is_the_median_over_those_that_answered() -> None:
    replies = [Reply(0.1, 4), Reply(0.2, 8), Reply(0.9, 16)]
    assert Seen(replies=replies).summary(1.0)["batch_s"] == 0.2
    assert Seen().summary(1.0)["batch_s"] is None
