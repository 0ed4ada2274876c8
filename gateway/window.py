"""How much of an ingest stream may be in memory at once."""

import asyncio


class Window:
    """Bounds the items and bytes that were taken and not yet given back; waiting for room is the back-pressure.

    One item larger than the whole window is let in when nothing else is there.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items = 0
        self._bytes = 0
        self._changed = asyncio.Condition()

    async def take(self, size: int) -> None:
        """Waits until an item of ``size`` bytes fits, and takes its place."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(size))
            self._items += 1
            self._bytes += size

    async def give_back(self, size: int) -> None:
        """Gives an item's place back."""
        async with self._changed:
            self._items -= 1
            self._bytes -= size
            self._changed.notify_all()

    async def resize(self, size: int, now: int) -> None:
        """An item that took ``size`` bytes turns out to hold so many; no waiting, they are there already."""
        async with self._changed:
            self._bytes += now - size
            self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return self._items == 0 or (self._items < self._max_items and self._bytes + size <= self._max_bytes)
