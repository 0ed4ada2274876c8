"""What is left to do after taking over from a writer that did not stop in good order.

A request of the dead one that had not been answered may still be carried out, after the successor has read what there
is. So the successor compares now and then until that can hardly happen any more.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

import structlog

from chassis.errors import LikenessError
from indexer.collections import Collection
from indexer.serving.collection import ServingCollection
from indexer.serving.loader import LATE_US, LoadStore, differing, pages

log = structlog.get_logger()

Review = Callable[[Collection, Sequence[str]], Awaitable[None]]

# Between two looks, in seconds.
_LOOK_S = 5.0
# So often Chroma may fail to show one collection while it answers. As long as that is tried, the writers of all
# collections remember each id that they write.
_TRIES = 24


class AftermathStore(LoadStore, Protocol):
    """Chroma: see ``store.ChromaStore``."""

    @property
    def connected(self) -> bool:
        """Whether there is a server to speak to."""


def oldest(watermark: int, timeout_s: float) -> int:
    """The stamp behind which a late request's may be.

    Args:
        watermark: the greatest stamp of a collection when it was loaded.
        timeout_s: longest wait for an answer of Chroma, in seconds. A request is given up at most so long after it got
            its stamp, and carried out at most so long after that.
    """
    return max(0, watermark - round(2_000_000 * timeout_s) - LATE_US)


async def look_until(
    settled_at: float,
    store: AftermathStore,
    loaded: Mapping[str, int],
    serving: Callable[[], Sequence[ServingCollection]],
    review: Review,
) -> bool:
    """Looks again and again while a request of the writer before may still arrive: readers see it at once.

    A collection that cannot be compared holds up no other.

    Args:
        settled_at: when none can arrive any more, in seconds of the monotonic clock; then comes the last look.
        store: Chroma.
        loaded: what ``oldest`` says of each collection, by uid.
        serving: the collections that are in memory now.
        review: reads items back between two chunks of a collection's writer.

    Returns:
        Whether every collection had its last look; one that fails again and again does without.
    """
    looked: set[str] = set()
    failures: Counter[str] = Counter()
    failed: set[str] = set()
    while True:
        left = settled_at - time.monotonic()
        await asyncio.sleep(_LOOK_S if failed else min(_LOOK_S, max(0.0, left)))
        settled = time.monotonic() >= settled_at
        failed = set()
        for each in serving():
            uid = each.collection.uid
            if uid in looked or failures[uid] >= _TRIES:
                continue
            if not await _could_look(store, loaded.get(uid, 0), each, review):
                failed.add(uid)
                failures[uid] += settled and store.connected
            elif settled:
                looked.add(uid)
        if settled and all(failures[uid] >= _TRIES for uid in failed):
            break
    for uid in (given_up := [uid for uid, times in failures.items() if times >= _TRIES]):
        log.error("late writes of the writer before are not looked for any more", uid=uid, times=_TRIES)
    return not given_up


async def look_again(store: LoadStore, since: int, serving: ServingCollection, review: Review) -> int:
    """Finds what Chroma has otherwise than memory, and has the collection's writer read it back.

    Args:
        store: Chroma.
        since: what was written late has a greater stamp.
        serving: the collection in memory.
        review: see ``look_until``.

    Returns:
        How many items there were to read back.

    Raises:
        LikenessError: what the store raises.
    """
    found, known, there = 0, serving.table.row_of, set(await store.ids(serving.collection))
    apart = await asyncio.to_thread(set.symmetric_difference, there, known)
    apart.update(await store.newer(serving.collection, since))
    async with aclosing(pages(store, serving.collection, sorted(apart))) as read:
        async for asked, records in read:
            others = {record.id for record in await differing(serving, records)}
            others |= {i for i in asked if i in serving.table.row_of} - {record.id for record in records}
            if others:
                await review(serving.collection, sorted(others))
                found += len(others)
    if found:
        name = serving.collection.name
        log.warning("late writes of the writer before were taken over", collection=name, items=found)
    return found


async def _could_look(store: LoadStore, since: int, serving: ServingCollection, review: Review) -> bool:
    name = serving.collection.name
    try:
        await look_again(store, since, serving, review)
    except LikenessError as error:
        log.warning("cannot look for late writes just now", collection=name, why=error.message)
        return False
    except Exception as error:  # which must not end the looking
        log.error("cannot look for late writes", collection=name, exc_info=error)
        return False
    return True
