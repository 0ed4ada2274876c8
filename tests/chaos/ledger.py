"""What the indexer was told and what it acknowledged, in plain Python.

An item has one certain state, or, after a write whose answer never came, several possible ones: that before it and that
after it. Each id belongs to one writer, which does one thing after another.
"""

import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from chassis.metadata import Plain
from chassis.vectors import Array


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What an item holds.

    Attributes:
        vector: float32 [dimension], of length 1.
        metadata: key to value.
    """

    vector: Array
    metadata: Mapping[str, Plain]


State = Content | None


@dataclass(slots=True)
class Version:
    """A state that an item may have had.

    Attributes:
        state: the content; None: not there.
        began: when the write was sent, on the clock of the caller's choice.
        ended: when a later write was acknowledged; None: it may be the item's state now.
        answered: whether it was acknowledged itself.
    """

    state: State
    began: float
    ended: float | None = None
    answered: bool = False


@dataclass
class Ledger:
    """The states of all items ever written."""

    _versions: dict[str, list[Version]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def preload(self, items: Mapping[str, Content]) -> None:
        """What is stored before anything else happens."""
        with self._lock:
            for item_id, content in items.items():
                self._versions[item_id] = [Version(content, 0.0)]

    def sending(self, states: Mapping[str, State], now: float) -> None:
        """A write is about to be sent: from now on each of its items may be as it was, or like this."""
        with self._lock:
            for item_id, state in states.items():
                self._versions.setdefault(item_id, [Version(None, 0.0)]).append(Version(state, now))

    def acknowledged(self, states: Mapping[str, State], now: float) -> None:
        """The write that was sent last was acknowledged: nothing but its states are possible."""
        with self._lock:
            for item_id, state in states.items():
                versions = self._versions[item_id]
                assert versions[-1].state is state, f"{item_id} was written by somebody else"
                versions[-1].answered = True
                for version in versions[:-1]:
                    version.ended = version.ended if version.ended is not None else now

    def possible(self, item_id: str) -> list[State]:
        """What the item may be now; an id never written is not there."""
        with self._lock:
            return [v.state for v in self._versions.get(item_id, ()) if v.ended is None] or [None]

    def possible_during(self, item_id: str, began: float, ended: float) -> list[State]:
        """What the item may have been at any moment of a span."""
        with self._lock:
            versions = self._versions.get(item_id, ())
            return [v.state for v in versions if v.began <= ended and (v.ended is None or v.ended >= began)] or [None]

    def certain(self, item_id: str) -> bool:
        """Whether there is one possible state."""
        return len(self.possible(item_id)) == 1

    def found(self, states: Mapping[str, State], since: float = math.inf) -> None:
        """The states in which a check found these items are theirs from now on; what went before is forgotten.

        Args:
            states: what the check found.
            since: writes without an answer that were sent after this may still be carried out.
        """
        with self._lock:
            for item_id, state in states.items():
                unanswered = _unanswered(self._versions.get(item_id, []))
                late = [v for v in unanswered if v.began > since and v.state is not state]
                self._versions[item_id] = [*late, Version(state, 0.0)]

    def sent_after(self, since: float) -> list[str]:
        """The ids of which a write that was sent after ``since`` got no answer."""
        with self._lock:
            return [i for i, there in self._versions.items() if any(v.began > since for v in _unanswered(there))]

    def ids(self) -> Iterable[str]:
        """Every id ever written."""
        with self._lock:
            return list(self._versions)

    def items(self) -> Iterator[tuple[str, Content]]:
        """The items that are certain to be there."""
        for item_id in self.ids():
            match self.possible(item_id):
                case [Content() as content]:
                    yield item_id, content

    def doubtful(self) -> list[str]:
        """The ids of which more than one state is possible."""
        return [item_id for item_id in self.ids() if not self.certain(item_id)]


def _unanswered(versions: list[Version]) -> list[Version]:
    """Those that are possible beside others, and were never acknowledged."""
    possible = [version for version in versions if version.ended is None]
    return [version for version in possible if not version.answered] if len(possible) > 1 else []
