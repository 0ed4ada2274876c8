"""Figures are made off the event loop, and not for everybody who asks."""

import asyncio
import threading

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from gateway.http import figures
from gateway.http.figures import Figures


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Where figures were made, each time."""
    made: list[threading.Thread] = []

    def watched(registry: CollectorRegistry) -> bytes:
        made.append(threading.current_thread())
        return generate_latest(registry)

    monkeypatch.setattr(figures, "generate_latest", watched)
    return made


async def test_who_asks_at_once_or_again_in_a_moment_is_given_the_same(threads: list[threading.Thread]) -> None:
    registry = CollectorRegistry()
    counter = Counter("seen", "Seen.", registry=registry)
    shown = Figures(registry)

    together = await asyncio.gather(*(shown() for _ in range(5)))
    counter.inc()
    again = await shown()

    assert b"seen_total 0.0" in again
    assert set(together) == {again}
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


async def test_figures_are_of_now_once_the_moment_is_over(
    threads: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "KEPT_S", 0.0)
    registry = CollectorRegistry()
    counter = Counter("seen", "Seen.", registry=registry)
    shown = Figures(registry)

    await shown()
    counter.inc()

    assert b"seen_total 1.0" in await shown()
    assert len(threads) == 2


async def test_one_who_leaves_takes_the_figures_from_nobody_else(threads: list[threading.Thread]) -> None:
    shown = Figures(CollectorRegistry())
    leaving, staying = asyncio.create_task(shown()), asyncio.create_task(shown())
    await asyncio.sleep(0)
    leaving.cancel()

    assert isinstance(await staying, bytes)
    assert leaving.cancelled()
    assert len(threads) == 1
