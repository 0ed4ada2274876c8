"""Who may come in. Beyond the bounds a call is refused at once, with a time to try again; a stream waits instead.

Interactive calls are refused by time: while what is before them would take the model too long. Bulk calls are bounded
by time more generously, and may fill three quarters of every other bound only, so that an interactive call finds room.
An eighth of those bounds is bulk's, however much interactive work there is: where that is bounded by them, and not by
time, bulk would starve. The only call of a lane is not measured by the lane's share.

A slow model needs a few batches at hand, or it would run small ones: up to twice the time, as many interactive inputs
as that are let in. Calls that are refused are told to come back one after another, as the model gets on; but what those
before may bring puts nobody off for longer than a queue's length, since they may never come.

When overloaded, refusing has to be cheap. So while interactive calls are refused, calls are refused before their
message is read, which takes half the time; but not those that say beforehand that they are bulk, nor one in eight, nor
any for a minute after one has turned out to be bulk: of bulk some has to come in.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from embedder.inputs import KINDS, Kind, Lane

_BULK_SHARE = 0.75
_BULK_OWN = 0.125
_RETRY_S = (0.1, 30.0)
# The batch that runs, the next one, and half of one for those that are being decoded.
_BATCHES_AT_HAND = 2.5
_LONGER = 2.0  # times the bound, at most, for these
# Of calls that are to be refused unread, one in so many is read nevertheless, and all of them for so long after a bulk
# one has come that had not said so, in seconds.
_READ_ONE_IN = 8
_BULK_LATELY_S = 60.0


@dataclass(frozen=True)
class Bounds:
    """Most of what is held for all calls together.

    Attributes:
        inputs: pictures and texts.
        encoded_bytes: of pictures.
        pixels: that wait to be decoded.
        queue_s: how long the model may be busy with what came before, by lane, in seconds.
    """

    inputs: int
    encoded_bytes: int
    pixels: int
    queue_s: dict[Lane, float]


@dataclass(frozen=True)
class Load:
    """What a call brings.

    Attributes:
        inputs: how many of each kind.
        encoded_bytes: of its pictures.
    """

    inputs: dict[Kind, int]
    encoded_bytes: int = 0


_LEAST = Load({"image": 0, "text": 1})


class Admission:
    """Counts what is held, and refuses what would be too much. Used from one event loop."""

    def __init__(
        self,
        bounds: Bounds,
        seconds_each: Callable[[Kind], float],
        batch: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts empty.

        Args:
            bounds: the most.
            seconds_each: what one input of a kind costs at present, in seconds; 0 while unknown.
            batch: inputs in a full batch at present.
            clock: tells the time in seconds.
        """
        self._bounds = bounds
        self._seconds_each = seconds_each
        self._batch = batch
        self._clock = clock
        # By when those that were told to come back will have had their turn, if they do.
        self._promised = dict.fromkeys(Lane, 0.0)
        self._inputs: dict[Lane, dict[Kind, int]] = {lane: dict.fromkeys(KINDS, 0) for lane in Lane}
        self._bytes = dict.fromkeys(Lane, 0)
        self._pixels = dict.fromkeys(Lane, 0)
        self._waiting: dict[Lane, deque[tuple[asyncio.Future[None], Load]]] = {lane: deque() for lane in Lane}
        self._bulk_came = float("-inf")
        self._unread = 0
        self._latest = _LEAST  # of the interactive calls that came in

    @property
    def held(self) -> int:
        """Inputs that are held."""
        return sum(sum(kinds.values()) for kinds in self._inputs.values())

    def enter(self, lane: Lane, load: Load) -> None:
        """Lets a call in, or raises as ``check`` does."""
        self.check(lane, load)
        self._add(lane, load, 1)
        if lane is Lane.INTERACTIVE:
            self._latest = load

    def check(self, lane: Lane, load: Load) -> None:
        """Refuses a call that there is no room for. One that finds nothing held is let in whatever its size.

        Raises:
            LikenessError: OVERLOADED; ``retry_after_s`` is when its turn should come; the next one's is no earlier.
        """
        why = self._refusal(lane, load)
        if why is not None:
            raise self._overloaded(why, lane, load)

    def expect_bulk(self) -> None:
        """A bulk call has come that did not say so beforehand; others like it may."""
        self._bulk_came = self._clock()

    def check_unread(self) -> None:
        """Refuses a call of which nothing is known yet, if there is no room for an interactive one that brings a text.

        Raises:
            LikenessError: as ``check``; when to come again as for one that brings what the last one brought.
        """
        why = self._refusal(Lane.INTERACTIVE, _LEAST)
        if why is None or self._clock() < self._bulk_came + _BULK_LATELY_S:
            return
        self._unread += 1
        if self._unread % _READ_ONE_IN:
            raise self._overloaded(why, Lane.INTERACTIVE, self._latest)

    def _overloaded(self, why: str, lane: Lane, load: Load) -> LikenessError:
        after = self._retry_after(lane, load)
        message = f"{why}; try again in {after:.1f} s, or at another replica"
        return LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=after)

    def _retry_after(self, lane: Lane, load: Load) -> float:
        """When the turn of a call that is refused should come, in seconds: after those that were refused before it."""
        now, queued, cost = self._clock(), self._queued_s(lane), self._seconds(load.inputs)
        # Where it is not time that it is refused for, room is when as much as it brings is done.
        room_at = now + (max(0.0, queued - self._most_s(lane)) or min(cost, queued))
        latest = room_at + min(self._bounds.queue_s[lane], queued)
        turn = min(latest, max(room_at, self._promised[lane]))
        self._promised[lane] = min(latest, turn + cost)
        low, high = _RETRY_S
        return min(high, max(low, turn - now))

    async def wait_and_enter(self, lane: Lane, load: Load) -> None:
        """Lets a stream's input in as soon as there is room, in its lane first come, first served.

        With nothing to bring (an empty load) it tells when there is room, and takes none of it.
        """
        if not self._waiting[lane] and self._refusal(lane, load) is None:
            self._add(lane, load, 1)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (turn, load)
        self._waiting[lane].append(place)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(lane, load)  # it had just been let in
            else:
                with contextlib.suppress(ValueError):  # others that left have taken it out already
                    self._waiting[lane].remove(place)
                self._let_in()
            raise

    def check_pixels(self, lane: Lane, pixels: int) -> None:
        """Refuses a call for its pixels, known only after its headers were read.

        Each lane has its bound: the pixels of a bulk load keep no interactive picture out.

        Raises:
            LikenessError: OVERLOADED.
        """
        held, most = self._pixels[lane], self._bounds.pixels * (_BULK_SHARE if lane is Lane.BULK else 1)
        if held and held + pixels > most:
            message = f"{held / 1e6:.0f} megapixels wait to be decoded already; try again in a moment"
            raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=1.0)

    def add_pixels(self, lane: Lane, pixels: int) -> None:
        """Counts a picture that waits to be decoded, or, negative, forgets it."""
        self._pixels[lane] += pixels

    def leave(self, lane: Lane, load: Load) -> None:
        """Lets go of a call's inputs, and others in."""
        self._add(lane, load, -1)
        self._let_in()

    def _let_in(self) -> None:
        for lane, waiting in self._waiting.items():
            while waiting:
                turn, load = waiting[0]
                if not turn.done() and self._refusal(lane, load) is not None:
                    break
                waiting.popleft()
                if not turn.done():
                    self._add(lane, load, 1)
                    turn.set_result(None)

    def _refusal(self, lane: Lane, load: Load) -> str | None:
        if self.held == 0:
            return None
        held = {each: sum(self._inputs[each].values()) for each in Lane}
        if not _has_room(lane, sum(load.inputs.values()), held, self._bounds.inputs):
            return f"{self.held} inputs are held already, of at most {self._bounds.inputs}"
        if not _has_room(lane, load.encoded_bytes, self._bytes, self._bounds.encoded_bytes):
            held_mb, most_mb = sum(self._bytes.values()) >> 20, self._bounds.encoded_bytes >> 20
            return f"{held_mb} MiB of pictures are held already, of at most {most_mb}"
        queued = self._queued_s(lane)
        if queued > self._most_s(lane):
            return f"the inputs before this call take about {queued:.1f} s"
        return None

    def _most_s(self, lane: Lane) -> float:
        """Seconds of work that may go before a newcomer of this lane."""
        bound, count = self._bounds.queue_s[lane], sum(self._inputs[lane].values())
        if lane is Lane.BULK or not count:
            return bound
        at_hand = _BATCHES_AT_HAND * self._batch() * self._queued_s(lane) / count
        return max(bound, min(_LONGER * bound, at_hand))

    def _queued_s(self, lane: Lane) -> float:
        """Seconds of work that go before a newcomer of this lane."""
        before = [Lane.INTERACTIVE] if lane is Lane.INTERACTIVE else list(Lane)
        return sum(self._seconds(self._inputs[each]) for each in before)

    def _seconds(self, inputs: dict[Kind, int]) -> float:
        return sum(count * self._seconds_each(kind) for kind, count in inputs.items())

    def _add(self, lane: Lane, load: Load, sign: int) -> None:
        for kind, count in load.inputs.items():
            self._inputs[lane][kind] += sign * count
        self._bytes[lane] += sign * load.encoded_bytes


def _has_room(lane: Lane, brings: int, held: dict[Lane, int], bound: int) -> bool:
    """Whether a newcomer of a lane finds room, by inputs or by bytes: see the module."""
    of_all, of_lane = brings + sum(held.values()), brings + held[lane]
    is_first = held[lane] == 0
    if lane is Lane.BULK:
        return of_all <= bound * _BULK_SHARE or is_first or of_lane <= bound * _BULK_OWN
    return of_all <= bound and (is_first or of_lane <= bound * (1 - _BULK_OWN))
