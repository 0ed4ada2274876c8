"""What is left to do after taking over from a writer that did not stop in good order.

A request of the dead one that had not been answered may still be carried out, after the successor has read what there
is. So the successor compares now and then until that can hardly happen any more (``roles``).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing

import structlog

from indexer.collections import Collection
from indexer.serving.collection import ServingCollection
from indexer.serving.loader import LoadStore, differing, pages

log = structlog.get_logger()

Review = Callable[[Collection, Sequence[str]], Awaitable[None]]


async def look_again(
    store: LoadStore, loaded: dict[str, int], serving: Sequence[ServingCollection], review: Review
) -> int:
    """Finds what Chroma has otherwise than memory, and has the collections' writers read it back.

    Args:
        store: Chroma.
        loaded: the greatest stamp when each collection was loaded, less what a late request may be older, by uid.
        serving: the collections in memory.
        review: reads items back between two chunks of a collection's writer.

    Returns:
        How many items there were to read back.

    Raises:
        LikenessError: what the store raises.
    """
    found = 0
    for each in serving:
        known, there = each.table.row_of, set(await store.ids(each.collection))
        apart = await asyncio.to_thread(set.symmetric_difference, there, known)
        apart.update(await store.newer(each.collection, max(0, loaded.get(each.collection.uid, 0))))
        async with aclosing(pages(store, each.collection, sorted(apart))) as read:
            async for asked, records in read:
                others = {record.id for record in await differing(each, records)}
                others |= {i for i in asked if i in each.table.row_of} - {record.id for record in records}
                if others:
                    await review(each.collection, sorted(others))
                    found += len(others)
    if found:
        log.warning("late writes of the writer before were taken over", items=found)
    return found
