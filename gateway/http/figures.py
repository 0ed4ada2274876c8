"""The figures for Prometheus: made in a thread, and kept for a moment, however often they are asked for."""

import asyncio
import time

from prometheus_client import CollectorRegistry, generate_latest

# Making them takes some milliseconds of Python.
KEPT_S = 1.0


class Figures:
    """Those of a registry, as text; used on one event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Takes the registry."""
        self._registry = registry
        self._made: asyncio.Task[bytes] | None = None
        self._until = 0.0

    async def __call__(self) -> bytes:
        """The figures of now, or of less than a second ago."""
        now = time.monotonic()
        if self._made is None or (self._made.done() and now >= self._until):
            self._until = now + KEPT_S
            self._made = asyncio.create_task(asyncio.to_thread(generate_latest, self._registry))
        return await asyncio.shield(self._made)  # others may wait for it too
