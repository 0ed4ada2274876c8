"""What waits to be written to a collection, in the order in which it came, and how it is taken from there.

Items to write and ids to delete are taken in chunks made of as many calls as fit, upserts and deletions apart. Updates
of metadata are taken by whole calls, as many as fit in a chunk; a deletion by filter is taken alone.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from likeness.common.v1 import error_pb2

from chassis import metadata
from chassis.errors import LikenessError
from chassis.metadata import Plain
from indexer.filters import Node
from indexer.reads import Item
from indexer.writes import Update


@dataclass(eq=False, kw_only=True)
class _Waiting:
    since: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class ItemsCall(_Waiting):
    """What one call wants written, each id once: upserts, or deletions where the item is None.

    ``done`` is how many items were stored, or how many of the deleted ones existed.
    """

    changes: Mapping[str, Item | None]
    done: asyncio.Future[int]
    untaken: deque[str] = field(init=False)
    unwritten: int = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        self.untaken = deque(self.changes)
        self.unwritten = len(self.changes)

    @property
    def deletes(self) -> bool:
        """Whether it is deletions."""
        return next(iter(self.changes.values())) is None


@dataclass(eq=False)
class UpdatesCall(_Waiting):
    """Changes of metadata. ``done`` is how many of the items existed, and the ids of those that did not."""

    updates: Sequence[Update]
    done: asyncio.Future[tuple[int, list[str]]]


@dataclass(eq=False)
class FilterCall(_Waiting):
    """A deletion of everything for which a filter is true. ``done`` is how many items that were."""

    where: Node
    done: asyncio.Future[int]


Call = ItemsCall | UpdatesCall | FilterCall


@dataclass
class ItemsChunk:
    """Ids, each with the calls that it belongs to, the last of which counts; all upserts, or all deletions."""

    owners: dict[str, list[ItemsCall]] = field(default_factory=dict)
    deletes: bool = False

    @property
    def calls(self) -> set[ItemsCall]:
        """The calls that have something in it."""
        return {call for owners in self.owners.values() for call in owners}

    def written(self, existed: AbstractSet[str]) -> None:
        """Tells the calls whose last item this was; ``existed``: the ids that there were, or are now."""
        for item_id, owners in self.owners.items():
            for position, call in enumerate(owners):
                call.unwritten -= 1
                # An id that two calls delete existed for the first.
                call.count += item_id in existed and (position == 0 or not self.deletes)
        for call in self.calls:
            if call.unwritten == 0 and not call.done.done():
                call.done.set_result(call.count)


Taken = ItemsChunk | list[UpdatesCall] | FilterCall


class WriteQueue:
    """Calls that wait."""

    def __init__(self) -> None:
        """An empty queue."""
        self._calls: deque[Call] = deque()
        self.waiting = 0

    @property
    def age_s(self) -> float:
        """How long the call in front has waited, in seconds; 0: none waits."""
        return time.monotonic() - self._calls[0].since if self._calls else 0.0

    def put(self, call: Call) -> None:
        """Adds a call at the end."""
        self._calls.append(call)
        self.waiting += _size(call)

    def fail(self, error: Exception) -> None:
        """Fails everything that waits."""
        for call in self._calls:
            fail(call, error)

    def take(self, most: int) -> Taken | None:
        """What is to be written next; None: nothing. Calls whose caller went away, or which failed, are dropped.

        Args:
            most: items in it, but for a single larger call of updates.
        """
        while self._calls and self._calls[0].done.done():
            self._pop()
        if not self._calls:
            return None
        match self._calls[0]:
            case FilterCall() as call:
                self._pop()
                return call
            case UpdatesCall():
                return self._take_updates(most)
            case ItemsCall():
                return self._take_items(most)

    def _take_updates(self, most: int) -> list[UpdatesCall]:
        taken: list[UpdatesCall] = []
        size = 0
        while self._calls:
            call = self._calls[0]
            if not isinstance(call, UpdatesCall) or (taken and size + len(call.updates) > most):
                break
            self._pop()
            if not call.done.done():
                taken.append(call)
                size += len(call.updates)
        return taken

    def _take_items(self, most: int) -> ItemsChunk:
        chunk = ItemsChunk()
        while self._calls:
            call = self._calls[0]
            if call.done.done():
                self._pop()
                continue
            if not isinstance(call, ItemsCall) or (chunk.owners and call.deletes != chunk.deletes):
                break
            chunk.deletes = call.deletes
            while call.untaken and (len(chunk.owners) < most or call.untaken[0] in chunk.owners):
                chunk.owners.setdefault(call.untaken.popleft(), []).append(call)
                self.waiting -= 1
            if call.untaken:
                break
            self._pop()
        return chunk

    def _pop(self) -> None:
        self.waiting -= _size(self._calls.popleft())


def fail(call: Call, error: Exception) -> None:
    """Tells the caller, unless it went away or has its answer."""
    if not call.done.done():
        call.done.set_exception(error)


def stopping() -> LikenessError:
    """SHUTTING_DOWN."""
    return LikenessError(error_pb2.REASON_SHUTTING_DOWN, "the indexer is stopping; try again")


def fail_all(calls: Iterable[Call], error: BaseException) -> None:
    """Tells the callers; raises what ends the writer as well, such as its cancellation."""
    why = error if isinstance(error, Exception) else stopping()
    for call in calls:
        fail(call, why)
    if why is not error:
        raise error


def merge(call: UpdatesCall, after: dict[str, dict[str, Plain]]) -> bool:
    """Applies a call's changes, of those items that exist; False: one broke a limit, and the call has failed."""
    merged: dict[str, dict[str, Plain]] = {}
    for i, update in enumerate(call.updates):
        if update.id not in after:
            continue
        changed = update.applied(merged.get(update.id, after[update.id]))
        try:
            merged[update.id] = metadata.from_proto(metadata.to_proto(changed), f"updates[{i}]")
        except LikenessError as error:
            fail(call, error)
            return False
    after.update(merged)
    return True


def _size(call: Call) -> int:
    """How much room it takes now."""
    match call:
        case ItemsCall():
            return len(call.untaken)
        case UpdatesCall():
            return len(call.updates)
        case FilterCall():
            return 1
