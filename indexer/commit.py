"""One collection's way into storage: Chroma first, then the serving index in memory, its mirror.

A piece of work that failed in Chroma may be there or not, so its ids are in doubt: they are read back, and the mirror
put right, before anything else is written. A request that got no answer may even be carried out later, so they are read
again every few seconds until that can hardly be. If that undid a later write that was acknowledged, the mirror has it,
and it is written again; without a mirror it stays undone.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager

import structlog

from chassis.metadata import Plain
from chassis.vectors import Array
from indexer.changes import Change, Changes, Move, compare
from indexer.collections import Collection
from indexer.filters import Node
from indexer.reads import Item
from indexer.stamps import Stamps, now
from indexer.surroundings import Surroundings, WriteKind, WriteStore
from indexer.writes import Mirror, StoredRecord, Written

log = structlog.get_logger()

# Ids that are read again: those of the last failures.
_MOST_DOUBTS = 1024
# Whoever follows this indexer sees what was carried out late at once; so long it may be ahead.
LOOK_S = 5.0


class Committer:
    """Writes to one collection. One call at a time."""

    def __init__(self, collection: Collection, store: WriteStore, surroundings: Surroundings) -> None:
        self._collection = collection
        self._store = store
        self._surroundings = surroundings
        self._stamps: Stamps | None = None
        # Id in doubt → when it is read for the last time, in seconds of the monotonic clock.
        self._doubts: dict[str, float] = {}
        # Id in doubt, as all are while a writer before may have requests under way → what was in use as a stamp when a
        # later call that wrote it, or needed not, was acknowledged; the mirror has it as that call wanted it.
        self._acknowledged: dict[str, int] = {}
        self._unread = False
        self._looked = 0.0
        self._recorded: set[str] | None = None

    def record(self) -> set[str]:
        """From now on, the ids of all that is written, deleted, in doubt or found changed; not during a write."""
        self._recorded = set(self._doubts)
        return self._recorded

    def stop_recording(self) -> None:
        """Leaves the ids that were recorded as they are."""
        self._recorded = None

    @property
    def heal_in_s(self) -> float | None:
        """Seconds until ``heal`` has something to do; 0 or less: now; None: nothing is in doubt."""
        if not self._doubts:
            return None
        return 0.0 if self._unread else min(self._looked + LOOK_S, *self._doubts.values()) - time.monotonic()

    @property
    def in_doubt(self) -> bool:
        """Whether Chroma may still carry out what failed."""
        return any(last > time.monotonic() for last in self._doubts.values())

    async def heal(self) -> None:
        """Reads from Chroma what is in doubt, and puts the mirror right.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND or STORE_UNAVAILABLE; it is still in doubt.
        """
        began = time.monotonic()
        mirror = self._surroundings.mirror_of(self._collection)
        if mirror is not None and self._doubts:
            assert self._stamps is not None, "nothing has been written"
            ids = list(self._doubts)
            records = await self._store.read(self._collection, ids)
            stored = await mirror.stored(ids)
            items = (Item(record.id, record.vector, record.metadata) for record in records)
            there = compare(items, stored, self._collection.metric).items
            gone = stored.keys() - {record.id for record in records}
            late = await self._undo_late({item.id for item in there} | gone, records, stored, self._stamps)
            others = [_written(item) for item in there if item.id not in late]
            self._record([*(item.id for item in others), *(gone - late)])
            mirror.apply(others, sorted(gone - late), self._stamps.last)
        if self._stamps is not None and self._doubts:
            self._surroundings.done(self._collection, self._stamps.last, list(self._doubts))
        self._doubts = {item_id: last for item_id, last in self._doubts.items() if last > began}
        if not self._surroundings.unsettled():
            self._acknowledged = {i: stamp for i, stamp in self._acknowledged.items() if i in self._doubts}
        self._unread = False
        self._looked = began

    async def _undo_late(
        self,
        differing: AbstractSet[str],
        records: Sequence[StoredRecord],
        stored: Mapping[str, tuple[Array, Mapping[str, Plain]]],
        stamps: Stamps,
    ) -> set[str]:
        """Writes or deletes again what was acknowledged, where an earlier request was carried out after it.

        Of the ids in doubt that ``differing`` has, Chroma has ``records`` and the mirror has ``stored``. Returns those
        of which the mirror is right.
        """
        there = {record.id: record for record in records}
        late = {
            i
            for i in differing & self._acknowledged.keys()
            if i not in there or there[i].stamp <= self._acknowledged[i]
        }
        if not late:
            return late
        log.warning("repeating writes that a late request has undone", items=len(late))
        changes = Changes()
        for item_id in sorted(late & stored.keys()):
            item = Item(item_id, *stored[item_id])
            if item_id in there:
                changes.moved.append(Move(item, there[item_id].metadata))
            else:
                changes.added.append(item)
        if stored_again := [item.id for item in changes.items]:
            stamp = stamps.next()
            with self._writing("upsert", stored_again):
                await self._store.write(self._collection, changes, stamp)
        if deleted_again := sorted(late - stored.keys()):
            with self._writing("delete", deleted_again):
                await self._store.delete(self._collection, deleted_again)
        self._acknowledged |= dict.fromkeys(late, stamps.last)
        return late

    async def settle(self) -> None:
        """Reads what failed just now, if anything did: nothing is in doubt then but requests without an answer.

        Raises:
            LikenessError: as ``heal``.
        """
        if self._unread:
            await self.heal()

    async def review(self, ids: Sequence[str]) -> None:
        """Reads items back, since somebody else may have written them, and puts the mirror right.

        Raises:
            LikenessError: as ``heal``.
        """
        await self._ready()
        began = time.monotonic()
        for item_id in ids:  # a request of ours that may be carried out later keeps its time
            self._doubts.setdefault(item_id, began)
        self._unread = True
        await self.heal()

    async def upsert(self, items: Sequence[Item]) -> None:
        """Writes items, each id once; what is stored already is left alone.

        Raises:
            LikenessError: what the store raises, and what refuses the chunk.
        """
        mirror, stamps = await self._ready()
        ids = [item.id for item in items]
        if mirror is None:
            records = await self._store.read(self._collection, ids)
            stored: Mapping[str, tuple[Array, Mapping[str, Plain]]] = {r.id: (r.vector, r.metadata) for r in records}
        else:
            stored = await mirror.stored(ids)
        changes = compare(items, stored, self._collection.metric)
        written = changes.items
        if not written:
            self._acknowledge(ids, mirror, stamps)
            return
        self._surroundings.admit(self._collection, len(written))
        stamp = stamps.next()
        with self._writing("upsert", [item.id for item in written]):
            await self._store.write(self._collection, changes, stamp)
            if mirror is not None:
                mirror.apply([_written(item) for item in written], [], stamp)
        self._acknowledge(ids, mirror, stamps)
        self._surroundings.done(self._collection, stamp, [])

    async def existing(self, ids: Sequence[str]) -> set[str]:
        """Which of ``ids``, each of them once, exist.

        Raises:
            LikenessError: what the store raises.
        """
        mirror, _ = await self._ready()
        if mirror is None:
            return await self._store.existing(self._collection, ids)
        return mirror.existing(ids)

    async def delete(self, ids: Sequence[str]) -> None:
        """Deletes items that exist, each id once; at least one.

        Raises:
            LikenessError: what the store raises, and what refuses the chunk.
        """
        mirror, stamps = await self._ready()
        self._surroundings.admit_deletion()
        for item_id in ids:  # if this fails, that it is missing tells nothing
            self._acknowledged.pop(item_id, None)
        with self._writing("delete", ids):
            await self._store.delete(self._collection, ids)
            if mirror is not None:
                mirror.apply([], ids, stamps.last)
        self._acknowledge(ids, mirror, stamps)
        self._surroundings.done(self._collection, stamps.last, ids)

    async def metadata(self, ids: Sequence[str]) -> dict[str, dict[str, Plain]]:
        """The metadata of the items that exist among ``ids``, each of them once.

        Raises:
            LikenessError: what the store raises.
        """
        mirror, _ = await self._ready()
        if mirror is None:
            return await self._store.metadata(self._collection, ids)
        return {item_id: dict(metadata) for item_id, metadata in mirror.metadata(ids).items()}

    async def relabel(self, labels: Sequence[Change]) -> None:
        """Replaces the metadata of items that exist, each id once.

        Raises:
            LikenessError: what the store raises, and what refuses the chunk.
        """
        mirror, stamps = await self._ready()
        self._surroundings.admit(self._collection, len(labels))
        stamp = stamps.next()
        with self._writing("update", [change.id for change in labels]):
            await self._store.relabel(self._collection, labels, stamp)
            if mirror is not None:
                stored = await mirror.stored([change.id for change in labels])
                mirror.apply([Written.of(c.id, stored[c.id][0], c.new) for c in labels], [], stamp)
        self._acknowledge([change.id for change in labels], mirror, stamps)
        self._surroundings.done(self._collection, stamp, [])

    def acknowledge(self, ids: Iterable[str]) -> None:
        """Tells of items that are as a call wants them without a write: a late request must not undo that.

        To be called in the same turn as ``existing`` or ``metadata``, which said so.
        """
        assert self._stamps is not None, "nothing has been read"
        self._acknowledge(ids, self._surroundings.mirror_of(self._collection), self._stamps)

    async def matching(self, where: Node) -> list[str]:
        """The ids of the items for which a filter is true.

        Raises:
            LikenessError: what the store raises.
        """
        mirror, _ = await self._ready()
        if mirror is None:
            return await self._store.matching(self._collection, where)
        return await mirror.matching(where)

    async def _ready(self) -> tuple[Mirror | None, Stamps]:
        if self._stamps is None:
            await self._surroundings.prepare(self._collection)
            self._stamps = Stamps(await self._store.newest(self._collection, now()))
        await self.settle()
        return self._surroundings.mirror_of(self._collection), self._stamps

    def _acknowledge(self, ids: Iterable[str], mirror: Mirror | None, stamps: Stamps) -> None:
        unsettled = self._surroundings.unsettled()
        if not (unsettled or self._doubts):
            self._acknowledged.clear()
            return
        for item_id in ids:
            if mirror is not None and (unsettled or item_id in self._doubts):
                self._acknowledged[item_id] = stamps.last
            else:
                self._acknowledged.pop(item_id, None)

    def _record(self, ids: Sequence[str]) -> None:
        if self._recorded is not None:
            self._recorded.update(ids)

    @contextmanager
    def _writing(self, kind: WriteKind, ids: Sequence[str]) -> Iterator[None]:
        """Whatever fails inside leaves the ids in doubt."""
        self._record(ids)
        began = time.monotonic()
        try:
            yield
        except BaseException:
            last = time.monotonic() + self._surroundings.settle_s
            for item_id in ids:
                self._doubts.pop(item_id, None)
                self._doubts[item_id] = last
            # The oldest have been read at least once.
            for item_id in list(self._doubts)[:-_MOST_DOUBTS]:
                del self._doubts[item_id]
                self._acknowledged.pop(item_id, None)
            self._unread = True
            raise
        finally:
            # Once more: whoever took the id from the record meanwhile may have read what was there before.
            self._record(ids)
        self._surroundings.wrote(kind, len(ids), time.monotonic() - began)


def _written(item: Item) -> Written:
    return Written.of(item.id, item.vector, item.metadata)
