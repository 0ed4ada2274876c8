"""What the indexer says, compared with the ledger and with exact search over it. Nothing here speaks to a server."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from chassis.metadata import Plain
from chassis.vectors import Array
from tests.chaos.ledger import Content, Ledger, State

# A cosine collection gives vectors back with the last digit rounded.
_CLOSE = 1e-5
# Scores are computed from those vectors, in float32 or better.
_SCORE_CLOSE = 2e-5


class Kind(Enum):
    """What may be wrong."""

    LOST = "lost"
    UNDELETED = "undeleted"
    ALTERED = "altered"
    UNKNOWN = "unknown"
    DUPLICATE = "duplicate"
    MISCOUNTED = "miscounted"
    WRONG_ANSWER = "wrong answer"
    UNAVAILABLE = "unavailable"
    LATE = "late"
    MISSED = "never hit"


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept."""

    kind: Kind
    what: str


@dataclass(frozen=True)
class Found:
    """An item as the indexer gave it."""

    id: str
    content: Content


@dataclass(frozen=True)
class Hit:
    """A hit as the indexer gave it."""

    id: str
    score: float


@dataclass(frozen=True)
class Below:
    """A filter: only items whose number under ``key`` is less than ``limit``."""

    key: str
    limit: float

    def holds(self, metadata: Mapping[str, Plain]) -> bool:
        """Whether the filter is true."""
        value = metadata.get(self.key)
        return isinstance(value, int | float) and not isinstance(value, bool) and value < self.limit


def alike(one: State, other: State) -> bool:
    """Whether two states are the same but for rounding."""
    if one is None or other is None:
        return one is other
    return dict(one.metadata) == dict(other.metadata) and bool(np.abs(one.vector - other.vector).max() <= _CLOSE)


def check_items(ledger: Ledger, listed: Sequence[Found], count: int) -> tuple[list[Violation], dict[str, State]]:
    """Compares everything the indexer lists with the ledger.

    Args:
        ledger: what is possible.
        listed: all items, through all pages, in order.
        count: what CountItems says.

    Returns:
        What is wrong, and each id's state as it was found.
    """
    wrong: list[Violation] = []
    times = Counter(found.id for found in listed)
    wrong += [Violation(Kind.DUPLICATE, f"{i} is listed {n} times") for i, n in times.items() if n > 1]
    if count != len(times):
        wrong.append(Violation(Kind.MISCOUNTED, f"CountItems says {count}, ListItems gives {len(times)} items"))
    ids = [found.id for found in listed]
    if ids != sorted(ids):
        wrong.append(Violation(Kind.WRONG_ANSWER, "ListItems is not in the order of the ids"))
    states: dict[str, State] = {found.id: found.content for found in listed}
    for item_id in {*ledger.ids(), *times}:
        possible, state = ledger.possible(item_id), states.setdefault(item_id, None)
        fitting = next((one for one in possible if alike(one, state)), _NOTHING)
        if fitting is _NOTHING:
            wrong.append(Violation(_what_is_wrong(possible, state), f"{item_id}: {_told(state)}"))
        else:
            states[item_id] = fitting  # the vector without the rounding
    return wrong, states


_NOTHING = Content(np.empty(0, np.float32), {})


def _what_is_wrong(possible: Sequence[State], state: State) -> Kind:
    if state is None:
        return Kind.LOST
    if possible == [None]:
        return Kind.UNDELETED
    return Kind.ALTERED


def _told(state: State) -> str:
    return "is not there" if state is None else f"holds {dict(state.metadata)}"


@dataclass
class Recall:
    """How many of the nearest items were found."""

    found: int = 0
    wanted: int = 0

    @property
    def share(self) -> float:
        """0 to 1; 1 if nothing was wanted."""
        return self.found / self.wanted if self.wanted else 1.0

    def add(self, other: "Recall") -> None:
        """Takes another's counts too."""
        self.found += other.found
        self.wanted += other.wanted


@dataclass
class Truth:
    """Exact search over the items that are there.

    Attributes:
        ids: theirs.
        vectors: float32 [n, dimension].
        metadata: theirs.
    """

    ids: list[str]
    vectors: Array
    metadata: list[Mapping[str, Plain]]
    row: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.row = {item_id: row for row, item_id in enumerate(self.ids)}

    @staticmethod
    def of(items: Iterable[tuple[str, Content]]) -> "Truth":
        """From items with their contents, of which there is at least one."""
        pairs = list(items)
        vectors = np.stack([content.vector for _, content in pairs])
        return Truth([item_id for item_id, _ in pairs], vectors, [content.metadata for _, content in pairs])

    def members(self, where: Below | None) -> npt.NDArray[np.bool_]:
        """bool [n]: the items for which the filter is true."""
        if where is None:
            return np.ones(len(self.ids), np.bool_)
        return np.fromiter((where.holds(each) for each in self.metadata), np.bool_, len(self.ids))

    def scores(self, query: Array) -> npt.NDArray[np.float64]:
        """float64 [n]: the cosine of each item and the query, both of length 1."""
        return (self.vectors @ query).astype(np.float64)

    def check(self, query: Array, where: Below | None, k: int, hits: Sequence[Hit]) -> tuple[list[Violation], Recall]:
        """Compares an answer with the exact one.

        Wrong are: an item that is not there, or for which the filter is false, or twice; another score than its own;
        another order than that of the scores; fewer hits than there are. A near item that an approximate index passes
        over counts in the recall.
        """
        members, scores = self.members(where), self.scores(query)
        wrong = []
        for hit, times in Counter(hit.id for hit in hits).items():
            if times > 1:
                wrong.append(Violation(Kind.WRONG_ANSWER, f"{hit} is a hit {times} times"))
        for hit_ in hits:
            row = self.row.get(hit_.id)
            if row is None:
                wrong.append(Violation(Kind.WRONG_ANSWER, f"{hit_.id} is a hit and does not exist"))
            elif not members[row]:
                wrong.append(Violation(Kind.WRONG_ANSWER, f"{hit_.id} is a hit, but not {where}"))
            elif abs(scores[row] - hit_.score) > _SCORE_CLOSE:
                wrong.append(
                    Violation(Kind.WRONG_ANSWER, f"{hit_.id} has score {hit_.score}, its own is {scores[row]}")
                )
        if any(a.score < b.score for a, b in pairwise(hits)):
            wrong.append(Violation(Kind.WRONG_ANSWER, "the hits are not ordered by their scores"))
        wanted = min(k, int(members.sum()))
        if len(hits) != wanted:
            wrong.append(Violation(Kind.WRONG_ANSWER, f"{len(hits)} hits; there are {wanted}"))
        if not wanted:
            return wrong, Recall()
        # By score and not by id: of equally near items any will do.
        kth = np.partition(scores[members], -wanted)[-wanted]
        found = sum(hit.score >= kth - _SCORE_CLOSE for hit in hits)
        return wrong, Recall(min(found, wanted), wanted)


def check_hit_under_load(
    ledger: Ledger, query: Array, where: Below | None, hit: Hit, *, began: float, ended: float
) -> Violation | None:
    """A hit of a query that ran while others wrote: it must be right by some state of its item in that time."""
    states = [state for state in ledger.possible_during(hit.id, began, ended) if state is not None]
    if not states:
        return Violation(Kind.WRONG_ANSWER, f"{hit.id} is a hit and did not exist")
    for state in states:
        near = abs(float(state.vector @ query) - hit.score) <= _SCORE_CLOSE
        if near and (where is None or where.holds(state.metadata)):
            return None
    return Violation(Kind.WRONG_ANSWER, f"{hit.id} has score {hit.score} (filter {where}), which it never had")
