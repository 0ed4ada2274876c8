"""What the writer tells the other indexers of one Chroma server, once a second, and where.

It stands in the metadata of an empty Chroma collection of the writer's own, ``Likeness.Writer.<term>``: who writes,
that it is alive, and, for each collection, how far its writes have come. Only the writer of a term changes it.
"""

import json
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import structlog

log = structlog.get_logger()

# With an upper-case letter, so that no collection's name is like it.
PREFIX = "Likeness.Writer."
_KEY = "writer"

# Ids that readers look at again, of each collection and, since everybody reads the document every second, of all
# together, in bytes. A reader that has missed some compares the whole collection.
_MOST_AGAIN = 256
_MOST_AGAIN_BYTES = 32_768


class Stored(Protocol):
    """A collection of Chroma's; see ``collections.StoredCollection``."""

    @property
    def name(self) -> str:
        """Its name in Chroma."""

    @property
    def key(self) -> str:
        """Chroma's id of it."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Of the collection itself."""


@dataclass(frozen=True)
class Holder:
    """A process that writes.

    Attributes:
        owner: of this process and no other.
        place: machine and data directory. Whoever holds that directory's lock knows that an earlier holder of the same
            place is dead.
        host: the machine's name.
        pid: the process's.
        address: where it answers, ``host:port``.
        lease_s: seconds after a renewal for which it is the writer.
    """

    owner: str
    place: str
    host: str
    pid: int
    address: str
    lease_s: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, at {self.address}"


@dataclass(frozen=True)
class Published:
    """How far the writes to one collection have come.

    Attributes:
        epoch: while it stays the same, nothing has happened but what ``stamp`` and ``again`` tell.
        stamp: everything stamped up to this is in Chroma; None: not known yet.
        count: ids that were ever put into ``again``.
        again: the last of them, oldest first: deleted, or read back after a failure. Their stamps tell nothing.
    """

    epoch: str
    stamp: int | None = None
    count: int = 0
    again: tuple[str, ...] = ()

    def since(self, count: int) -> tuple[str, ...] | None:
        """The ids after the first ``count``; None: some of them are not in it any more."""
        missing = self.count - count
        if missing < 0 or missing > len(self.again):
            return None
        return self.again[len(self.again) - missing :]


@dataclass(frozen=True)
class Heartbeat:
    """The document.

    Attributes:
        term: grows with every writer; the highest counts.
        holder: whose it is.
        beat: how often it was renewed.
        released: whether the writer has stopped, in good order.
        collections: how far each is, by uid.
    """

    term: int
    holder: Holder
    beat: int
    released: bool = False
    collections: Mapping[str, Published] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the Chroma collection that it stands in."""
        return f"{PREFIX}{self.term}"

    def to_metadata(self) -> dict[str, Any]:
        """As the metadata of that collection."""
        collections = {uid: asdict(published) for uid, published in self.collections.items()}
        document = {"holder": asdict(self.holder), "beat": self.beat, "released": self.released}
        return {_KEY: json.dumps(document | {"collections": collections}, separators=(",", ":"))}


def read(stored: Iterable[Stored]) -> list[tuple[Heartbeat, Stored]]:
    """The documents among Chroma's collections, and where they stand, ordered by their terms."""
    found = [(heartbeat, each) for each in stored if (heartbeat := _parsed(each)) is not None]
    return sorted(found, key=lambda pair: pair[0].term)


def _parsed(stored: Stored) -> Heartbeat | None:
    term = stored.name.removeprefix(PREFIX)
    if term == stored.name or not term.isdecimal():
        return None
    try:
        document = json.loads(stored.metadata[_KEY])
        collections = {
            uid: Published(each["epoch"], each["stamp"], each["count"], tuple(each["again"]))
            for uid, each in document["collections"].items()
        }
        holder = Holder(**document["holder"])
        return Heartbeat(int(term), holder, document["beat"], document["released"], collections)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # Whoever wrote it holds the term all the same.
        log.warning("a writer's document cannot be read", name=stored.name, why=repr(error))
        return Heartbeat(int(term), Holder("", "", "an unknown machine", 0, "an unknown address", 0.0), 0)


@dataclass
class _Writes:
    stamp: int | None = None
    count: int = 0
    again: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_AGAIN))


class Journal:
    """What this process has written, for the document: only what Chroma has acknowledged, or has read back."""

    def __init__(self) -> None:
        self._epoch = uuid.uuid4().hex
        self._writes: dict[str, _Writes] = {}

    def wrote(self, uid: str, stamp: int, again: Sequence[str] = ()) -> None:
        """Everything stamped up to ``stamp`` is in Chroma.

        Args:
            uid: the collection's.
            stamp: the greatest in use.
            again: ids that were deleted, or read back because a write of theirs had failed.
        """
        writes = self._writes.setdefault(uid, _Writes())
        writes.stamp = max(writes.stamp or 0, stamp)
        writes.count += len(again)
        writes.again.extend(again)

    def forget(self, uid: str) -> None:
        """The collection is gone."""
        self._writes.pop(uid, None)

    def published(self) -> dict[str, Published]:
        """By uid."""
        room = _MOST_AGAIN_BYTES // max(1, sum(1 for writes in self._writes.values() if writes.again))
        return {uid: self._of(writes, room) for uid, writes in self._writes.items()}

    def _of(self, writes: _Writes, room: int) -> Published:
        again: list[str] = []
        for item_id in reversed(writes.again):
            room -= len(item_id.encode()) + 3
            if room < 0:
                break
            again.append(item_id)
        return Published(self._epoch, writes.stamp, writes.count, tuple(reversed(again)))
