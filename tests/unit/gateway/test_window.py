"""The window bounds what an ingest stream holds, and lets one oversized item through alone."""

import asyncio

from gateway.window import Window


async def test_an_item_waits_until_another_gives_its_bytes_back() -> None:
    window = Window(max_items=10, max_bytes=100)
    await window.take(60)
    second = asyncio.create_task(window.take(60))
    await _settle()
    assert not second.done()

    await window.give_back(60)

    await asyncio.wait_for(second, 5)


async def test_an_item_waits_until_another_gives_its_place_back() -> None:
    window = Window(max_items=2, max_bytes=100)
    await window.take(1)
    await window.take(1)
    third = asyncio.create_task(window.take(1))
    await _settle()
    assert not third.done()

    await window.give_back(1)

    await asyncio.wait_for(third, 5)


async def test_an_item_larger_than_the_window_is_let_in_alone() -> None:
    window = Window(max_items=2, max_bytes=100)

    await asyncio.wait_for(window.take(1000), 5)
    small = asyncio.create_task(window.take(1))
    await _settle()
    assert not small.done()
    await window.give_back(1000)
    await asyncio.wait_for(small, 5)


async def test_a_cancelled_wait_takes_no_place() -> None:
    window = Window(max_items=1, max_bytes=100)
    await window.take(1)
    waiting = asyncio.create_task(window.take(1))
    await _settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    await window.give_back(1)

    await asyncio.wait_for(window.take(1), 5)


async def _settle() -> None:
    """Lets every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)
