"""One call on its way, and one unique piece of work that one or more calls wait for. Used from the event loop only."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal

from likeness.common.v1 import error_pb2
from PIL.JpegImagePlugin import JpegImageFile

from chassis.errors import LikenessError, in_request, incident
from chassis.trace import Trace, current, enter, leave
from embedder.inputs import Kind, Lane, Outcome, Picture, Timings, Tokens

Why = Literal["cancelled", "expired"]


class Stage(Enum):
    """Where an entry is."""

    TO_DECODE = auto()
    DECODING = auto()
    TO_INFER = auto()
    INFERRING = auto()
    DONE = auto()


@dataclass(frozen=True)
class Waiter:
    """A call that waits for an entry.

    Attributes:
        call: the call.
        place: the input's place in it.
        field: what the input is called in the call's request, for errors.
    """

    call: "Call"
    place: int
    field: str


@dataclass(frozen=True)
class Span:
    """A piece of work: when, by ``time.perf_counter``, and for a forward pass how many rows it had."""

    begun: float
    ended: float
    rows: int = 0


class Call:
    """The inputs of one call: what became of each so far, and whether anybody still waits."""

    def __init__(self, size: int, lane: Lane, deadline: float | None) -> None:
        """Begins to wait.

        Args:
            size: how many inputs it has.
            lane: who goes first.
            deadline: by ``time.monotonic``; None for none.
        """
        self.lane = lane
        self.deadline = deadline
        self.gone = False
        self.outcomes: list[Outcome | None] = [None] * size
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = size
        self._begun = time.perf_counter()
        self._decoded: set[Span] = set()
        self._inferred: set[Span] = set()

    def waits(self, now: float) -> bool:
        """Whether an answer would still be read.

        Args:
            now: by ``time.monotonic``.
        """
        return not self.gone and (self.deadline is None or now < self.deadline)

    def resolve(self, place: int, outcome: Outcome, entry: "Entry | None" = None) -> None:
        """Takes one input's outcome; the last one ends ``done``."""
        if self.outcomes[place] is not None:
            return
        self.outcomes[place] = outcome
        if entry is not None:
            self._decoded.update(entry.decoded)
            self._inferred.update(entry.inferred)
        self._left -= 1
        if self._left == 0 and not self.done.done():
            self.done.set_result(None)

    def timings(self) -> Timings:
        """Where the time went, once ``done``; work that began before the call came (for another) counts from then."""
        ended = time.perf_counter()
        begun = self._begun
        spans = sorted((max(s.begun, begun), s.ended) for s in self._decoded | self._inferred if s.ended > begun)
        queued, until = 0.0, begun
        for start, end in spans:
            queued += max(0.0, start - until)
            until = max(until, end)
        return Timings(
            queue=queued + max(0.0, ended - until) if spans else 0.0,
            decode=sum(s.ended - max(s.begun, begun) for s in self._decoded if s.ended > begun),
            inference=sum(s.ended - max(s.begun, begun) for s in self._inferred if s.ended > begun),
            batch_size=max((s.rows for s in self._inferred), default=0),
        )


@dataclass(eq=False)
class Entry:
    """One picture or text to embed, for every call that waits for it.

    Attributes:
        kind: which tower.
        lane: the most urgent one of its callers.
        key: what equal inputs have in common.
        stage: where it is.
        picture: what is to be decoded; gone once it is.
        opened: a JPEG whose header has been read; gone once it is decoded.
        pixels: how many a picture will decode to, in full.
        counted: the lane that its pixels are counted in.
        tokens: a text's ids, int64 [length], without padding.
        truncated: whether the text's end was not read.
        text: the text itself.
        slot: the row of the slab that holds the picture's pixels.
        created: when it began to wait at all, by ``time.monotonic``.
        entered: when it came to its present queue, by ``time.monotonic``.
        waiters: the calls.
        on_drop: told when it is dropped, since nobody waits for it any more.
        on_done: told when it has an outcome or is dropped, while it still has what it held.
        losses: how often a model process was lost with it on board.
        decoded: when its pixels were decoded.
        inferred: the forward passes it was in.
        trace: of the call that brought it first.
    """

    kind: Kind
    lane: Lane
    key: bytes
    stage: Stage
    on_drop: Callable[["Entry", Why], None]
    on_done: Callable[["Entry", Outcome], None]
    picture: Picture | None = None
    opened: JpegImageFile | None = None
    pixels: int = 0
    counted: Lane = Lane.INTERACTIVE
    tokens: Tokens | None = None
    truncated: bool = False
    text: str | None = None
    slot: int | None = None
    created: float = field(default_factory=time.monotonic)
    entered: float = 0.0
    waiters: list[Waiter] = field(default_factory=list)
    losses: int = 0
    decoded: list[Span] = field(default_factory=list)
    inferred: list[Span] = field(default_factory=list)
    trace: Trace | None = field(default_factory=current)

    def wanted(self, now: float) -> bool:
        """Whether any caller still waits."""
        return any(waiter.call.waits(now) for waiter in self.waiters)

    def drop_unwanted(self, now: float) -> bool:
        """Drops it if nobody waits any more and its next step has not begun; returns whether it is dropped or done."""
        if self.stage is Stage.DONE:
            return True
        if self.stage in (Stage.DECODING, Stage.INFERRING) or self.wanted(now):
            return False
        why: Why = "cancelled" if all(waiter.call.gone for waiter in self.waiters) else "expired"
        self.on_drop(self, why)
        message = "the deadline passed before the work was begun"
        self.finish(Outcome(LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, message)))
        return True

    def fault(self, event: str, error: BaseException) -> LikenessError:
        """Logs a fault of ours that costs this entry, with its trace; returns what its callers may see of it."""
        entered = enter(self.trace)
        failure = incident(event, error)
        leave(entered)
        return failure

    def finish(self, outcome: Outcome) -> None:
        """Gives every caller its outcome, and lets go of what it held."""
        self.on_done(self, outcome)
        self.stage = Stage.DONE
        self.picture = self.opened = self.tokens = None
        for waiter in self.waiters:
            waiter.call.resolve(waiter.place, _for(waiter, outcome), self)
        self.waiters.clear()


def _for(waiter: Waiter, outcome: Outcome) -> Outcome:
    """An entry's errors name no field of any one request; each caller is told its own."""
    if not isinstance(outcome.result, LikenessError) or not outcome.result.violations:
        return outcome
    return Outcome(in_request(outcome.result, lambda field: f"{waiter.field}{field}"))
