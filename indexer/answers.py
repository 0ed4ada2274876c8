"""Large answers are put together in a thread, so that other calls get their turn meanwhile."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from indexer.listing import nbytes
from indexer.reads import StoredItem

Answer = TypeVar("Answer")

# Beyond either it takes more than 2 ms of a core: 3 µs for an item or a hit, and up to 8 µs for a KiB of metadata. Ten
# hits with metadata take 0.03 ms, all that may be asked for together 45, 48 MiB of metadata up to 400.
_FEW_ITEMS = 512
_FEW_BYTES = 2**18


async def put_together(build: Callable[[], Answer], items: Sequence[StoredItem]) -> Answer:
    """Builds an answer that holds these items: a small one here and now, a large one in a thread.

    Raises:
        Exception: what ``build`` raises.
    """
    if len(items) <= _FEW_ITEMS and sum(map(nbytes, items)) <= _FEW_BYTES:
        return build()
    return await asyncio.to_thread(build)
