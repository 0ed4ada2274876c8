"""An ingest whose connection is cut again and again: everything arrives, and little is sent twice."""

import asyncio
from collections import Counter

import pytest

from likeness_client import Client, IndexOutcome, IngestLimits, LikenessError, Picture
from tests.pictures import noise
from tests.proxy import Proxy, random_sizes
from tests.unit.gateway.behind import Behind
from tests.unit.gateway.http.serving import serving

PICTURES, WINDOW = 300, 24
LIMITS = IngestLimits(max_unanswered=WINDOW, reconnects=100, first_backoff_s=0.01, max_backoff_s=0.05)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_connection_cut_at_random_loses_nothing_and_repeats_no_more_than_had_no_answer(seed: int) -> None:
    services = Behind()  # type: ignore[abstract]  # only what the gateway calls
    services.max_encoded_bytes, services.max_pixels = 2**25, 50_000_000
    unanswered: list[int] = []

    def note(_error: LikenessError, count: int, _wait_s: float) -> None:
        unanswered.append(count)

    def take_in(address: str) -> list[IndexOutcome]:
        pictures = (Picture(noise(n), id=f"item-{n}") for n in range(PICTURES))
        with Client(address) as client:
            return list(client.index(pictures, limits=LIMITS, on_reconnect=note))

    async with serving(services, thumbnails=False) as gateway:
        with Proxy(int(gateway.address.rpartition(":")[2])) as proxy:
            proxy.cut_after(random_sizes(seed, 4_000, 60_000, 12))
            outcomes = await asyncio.to_thread(take_in, proxy.address)
            cuts = proxy.cuts

    assert cuts > 3
    assert Counter(outcome.id for outcome in outcomes) == dict.fromkeys((f"item-{n}" for n in range(PICTURES)), 1)
    assert all(outcome.stored for outcome in outcomes)
    assert services.items.keys() == {f"item-{n}" for n in range(PICTURES)}
    stored = sum(len(request.items) for request in services.asked("UpsertItems"))
    assert max(unanswered) <= WINDOW
    assert stored - PICTURES <= sum(unanswered)
