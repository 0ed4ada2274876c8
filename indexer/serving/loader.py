"""Brings a collection into memory: from its snapshot, then from Chroma what the snapshot lacks, or everything.

1. All ids are listed. Those that memory lacks are read, those that Chroma lacks are gone.
2. Ids that were written since the snapshot are listed by their stamps, and read again.
3. Before anything of the snapshot is believed, a sample of the rest is compared with Chroma. Where it differs, Chroma
   was given other data behind the snapshot's back, such as a backup, and everything is read.

Where another indexer writes to the collection meanwhile, what is loaded is some mixture of before and after; then
``following`` makes it equal, from a stamp that the writer had told before.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import structlog

from indexer.changes import compare
from indexer.collections import Collection
from indexer.reads import Item
from indexer.serving import snapshot
from indexer.serving.collection import ServingCollection
from indexer.serving.graph import GraphSettings
from indexer.serving.table import Table
from indexer.writes import StoredRecord

log = structlog.get_logger()

# Chroma gives some 3,900 items of 512 numbers a second; two requests keep it busy while this end unpacks.
_PAGE, _REQUESTS = 256, 2

# A request of an indexer that was killed may reach Chroma's index after later ones of its successor: so much is read
# again, in microseconds of stamps.
LATE_US = 5_000_000

# What was written last is where a Chroma that was set back differs for sure. So it has to be in the last rows, as it is
# when it comes from the writer, and the newest of what is loaded are put there.
_SAMPLED_LAST, _SAMPLED = 128, 128

# How many items are in memory and how many there are, and the table that has them.
Progress = Callable[[int, int, Table], None]
# The bytes and the rows of a snapshot's files → whether it is read.
MayRead = Callable[[int, int], bool]


class LoadStore(Protocol):
    """Where items are read."""

    async def ids(self, collection: Collection) -> list[str]:
        """The ids of all items."""

    async def newer(self, collection: Collection, stamp: int) -> list[str]:
        """The ids of the items with a greater stamp."""

    async def newest(self, collection: Collection, at_least: int) -> int | None:
        """The greatest stamp, if it is ``at_least`` that; None if none is."""

    async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
        """Those of the items that exist."""


@dataclass(frozen=True)
class Loaded:
    """A collection in memory.

    Attributes:
        serving: it.
        from_snapshot: whether a snapshot was used.
        read: items that were read from Chroma.
    """

    serving: ServingCollection
    from_snapshot: bool
    read: int


async def load(
    store: LoadStore,
    collection: Collection,
    *,
    folder: Path,
    graph: GraphSettings,
    mask_bytes: int,
    progress: Progress,
    may_read: MayRead,
) -> Loaded:
    """Brings a collection into memory; when it returns, reads are complete.

    Rows that came from Chroma are in the tail: searched exactly, until maintenance has them in a graph.

    Args:
        store: Chroma.
        collection: whose items.
        folder: of its snapshots.
        graph: how its graph is made.
        mask_bytes: most bytes of remembered filters.
        progress: called with how many items are in memory and how many there are, and the table; what it raises ends
            the load.
        may_read: asked before a snapshot is read; likewise.

    Raises:
        LikenessError: what the store raises.
    """
    size = await asyncio.to_thread(snapshot.size, folder, collection, graph)
    kept = None
    if size is None or may_read(*size):
        kept = await asyncio.to_thread(snapshot.read, folder, collection, graph)
    else:
        log.warning("snapshot refused", collection=collection.name, why="with its dead rows it would not fit memory")
    if kept is not None:
        restored = await asyncio.to_thread(_restored, collection, graph, mask_bytes, kept)
        del kept
        if restored is not None:
            read = await _follow(store, restored, progress)
            if read is not None:
                return _loaded(restored, from_snapshot=True, read=read)
        del restored  # before as much again is read
    empty = Table(collection.fingerprint.dimension, collection.metric, graph, mask_bytes)
    serving = ServingCollection(collection, empty, 0)
    read = await _follow(store, serving, progress)
    assert read is not None, "of an empty table nothing differs"
    return _loaded(serving, from_snapshot=False, read=read)


def _restored(
    collection: Collection, graph: GraphSettings, mask_bytes: int, kept: snapshot.Snapshot
) -> ServingCollection | None:
    """What the snapshot holds; None: parts that are read only now cannot be, or do not go together."""
    try:
        table = Table.from_state(collection.metric, graph, mask_bytes, kept.state)
    except Exception as error:
        log.warning("snapshot refused", collection=collection.name, why=repr(error))
        return None
    return ServingCollection(collection, table, kept.watermark)


def _loaded(serving: ServingCollection, *, from_snapshot: bool, read: int) -> Loaded:
    log.info(
        "collection in memory",
        collection=serving.collection.name,
        items=serving.view.live_count,
        from_snapshot=from_snapshot,
        read_from_chroma=read,
    )
    return Loaded(serving, from_snapshot, read)


async def _follow(store: LoadStore, serving: ServingCollection, progress: Progress) -> int | None:
    """Makes the collection equal to Chroma; returns how many items it read, or None: it is not of this Chroma."""
    collection, known = serving.collection, serving.table.row_of
    there = dict.fromkeys(await store.ids(collection))
    gone = {item_id for item_id in known if item_id not in there}
    wanted = [item_id for item_id in there if item_id not in known]
    if known:
        newer = await store.newer(collection, max(0, serving.watermark - LATE_US))
        # One that was not listed has been written since, or is an old one written again.
        changed = {item_id for item_id in newer if item_id in known or item_id not in there}
        if not await agrees(store, serving, gone | changed):
            return None
        wanted += changed
    total = len(there.keys() | set(wanted))
    steps = _Steps(serving, progress, total - len(wanted), total)
    newest: list[StoredRecord] = []
    async with aclosing(pages(store, collection, wanted)) as read:
        async for asked, records in read:
            gone -= {record.id for record in records}
            gone |= known.keys() & (set(asked) - {record.id for record in records})
            by_age = sorted(newest + await differing(serving, records), key=lambda record: record.stamp)
            _take(serving, by_age[:-_SAMPLED_LAST])
            newest = by_age[-_SAMPLED_LAST:]
            # What was the same may have the greatest stamp.
            serving.watermark = max(serving.watermark, *(record.stamp for record in records), 0)
            steps.done(len(asked))
    _take(serving, newest)
    if gone:
        serving.apply([], sorted(gone), serving.watermark)
    return len(wanted)


def _take(serving: ServingCollection, records: Sequence[StoredRecord]) -> None:
    if records:
        serving.apply([record.written() for record in records], [], serving.watermark)


async def agrees(store: LoadStore, serving: ServingCollection, apart: Set[str]) -> bool:
    """Whether a sample of what should be the same in Chroma is, ids ``apart`` left aside.

    Raises:
        LikenessError: what the store raises.
    """
    view = serving.view
    rows = np.flatnonzero(view.live)
    last = islice((i for row in rows[::-1].tolist() if (i := view.ids[row]) not in apart), _SAMPLED_LAST)
    others = np.random.default_rng().choice(rows, min(_SAMPLED, len(rows)), replace=False)
    sample = {*last, *(view.ids[row] for row in others.tolist())} - apart
    records = await store.read(serving.collection, sorted(sample))
    # What another indexer has written since it was asked for has a later stamp.
    altered = [each for each in await differing(serving, records) if each.stamp <= serving.watermark]
    if not altered and len(records) == len(sample):
        return True
    log.warning(
        "what is in memory is not believed",
        collection=serving.collection.name,
        why=f"Chroma was changed without it: of {len(sample)} items that should be the same, {len(altered)} are "
        f"others and {len(sample) - len(records)} are not there",
    )
    return False


async def differing(serving: ServingCollection, records: Sequence[StoredRecord]) -> list[StoredRecord]:
    """The records that are not in memory as they are."""
    there = [Item(record.id, record.vector, record.metadata) for record in records]
    stored = await serving.stored([record.id for record in records])
    others = {item.id for item in compare(there, stored, serving.collection.metric).items}
    return [record for record in records if record.id in others]


async def pages(
    store: LoadStore, collection: Collection, ids: Sequence[str]
) -> AsyncGenerator[tuple[Sequence[str], list[StoredRecord]], None]:
    """The items page by page, as ids and records, in order; the next page is on its way while one is used.

    Raises:
        LikenessError: what the store raises.
    """
    parts = (ids[begin : begin + _PAGE] for begin in range(0, len(ids), _PAGE))
    under_way: deque[tuple[Sequence[str], asyncio.Task[list[StoredRecord]]]] = deque()

    def ask() -> None:
        for page in islice(parts, 1):
            under_way.append((page, asyncio.create_task(_read(store, collection, page))))

    try:
        for _ in range(_REQUESTS):
            ask()
        while under_way:
            page, task = under_way[0]
            records = await task
            under_way.popleft()
            ask()
            yield page, records
    finally:
        tasks = [task for _, task in under_way]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(store: LoadStore, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
    return await store.read(collection, ids)


class _Steps:
    """Says how far a load is: always to whoever asked, to the log at every tenth of it."""

    def __init__(self, serving: ServingCollection, progress: Progress, loaded: int, total: int) -> None:
        self._serving, self._progress = serving, progress
        self._loaded, self._total = loaded, total
        self._tenths = 0
        progress(loaded, total, serving.table)

    def done(self, items: int) -> None:
        self._loaded += items
        self._progress(self._loaded, self._total, self._serving.table)
        tenths = 10 * self._loaded // self._total
        if tenths > self._tenths and self._total > _PAGE:
            self._tenths = tenths
            log.info("loading", collection=self._serving.collection.name, items=self._loaded, of=self._total)
