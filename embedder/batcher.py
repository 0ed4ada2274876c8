"""What waits for the model, and what goes into the next forward pass. No thread, no model, no clock of its own.

1. Interactive entries go before bulk ones. Only where no bulk batch has run for a second, since the end of the last
   one, does bulk get a trickle: a batch of an eighth of the size. So no interactive entry waits for two bulk batches in
   a row.
2. The oldest entry of the lane decides what the batch is of: pictures, or texts of one length (by steps of 8 tokens,
   since a batch of texts is padded to its longest). Room that is left goes to shorter texts, down to half the length.
3. Nobody is waited for: what is there goes. With a waiting time, a batch that is not full waits until its oldest entry
   has waited that long; meanwhile a full batch of bulk may go.
4. Large batches leave less between them, but whoever comes next waits for all of one. So a batch is filled up to a
   least number of entries however long that takes, and beyond, up to the limit, while it takes no longer than
   ``LONGEST_S``, or, of bulk where interactive entries have come lately, ``LONGEST_BESIDE_S``.
5. An entry that nobody waits for any more is dropped as it is come across.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from embedder.entries import Entry
from embedder.inputs import KINDS, Kind, Lane
from embedder.running_mean import RunningMean

LENGTH_STEP = 8  # tokens
STARVING_S = 1.0
TRICKLE = 8  # one part in so many
# How long a batch of more than the least number may take, in seconds. ViT-B-32 in bf16 on two cores, which take 0.09 s
# for 8 pictures and 0.18 s for 16: 80 pictures/s served with a limit of 8, 85 with one of 16.
LONGEST_S = 0.25
LONGEST_BESIDE_S = 0.1
# Interactive entries are expected for so long after the last one, in seconds.
LATELY_S = 5.0
# A batch of fewer than this share of the least number tells little of what an entry costs in a large one.
_TELLS = 0.5


@dataclass(frozen=True)
class _Group:
    """Entries that may share a forward pass: a kind and, for texts, the length in tokens that they are padded to."""

    kind: Kind
    length: int = 0


class BatchQueue:
    """Entries ready for the model, by lane and group, oldest first."""

    def __init__(
        self,
        max_batch: int,
        context_length: int,
        *,
        least: int,
        texts_cut: bool,
        wait_s: float,
        clock: Callable[[], float],
    ) -> None:
        """Starts empty.

        Args:
            max_batch: most pictures in a batch, and most full-length texts.
            least: so many of them are in a batch however long it takes, if they wait; at most ``max_batch``.
            context_length: tokens of a full-length text.
            texts_cut: whether texts are padded to the batch's longest only.
            wait_s: how long an idle model waits for a batch to fill, in seconds.
            clock: ``time.monotonic``.
        """
        self._max_batch = max_batch
        self._least = least
        self._context_length = context_length
        self._texts_cut = texts_cut
        self._wait_s = wait_s
        self._clock = clock
        self._groups: dict[Lane, dict[_Group, deque[Entry]]] = {lane: {} for lane in Lane}
        self._bulk_ran = clock()
        self._bulk_runs = False
        self._interactive_came = float("-inf")
        self._took: dict[Kind, RunningMean] = {kind: RunningMean() for kind in KINDS}
        self.limits: dict[Kind, int] = {"image": max_batch, "text": max_batch}

    def put(self, entry: Entry) -> None:
        """Takes an entry at the end of its lane. One that is put again, in a better lane, leaves its old place."""
        group = self._group_of(entry)
        entry.entered = self._clock()
        if entry.lane is Lane.INTERACTIVE:
            self._interactive_came = entry.entered
        elif not any(self._groups[Lane.BULK].values()):
            self._bulk_ran = entry.entered  # it has not starved yet
        self._groups[entry.lane].setdefault(group, deque()).append(entry)

    def take(self) -> list[Entry]:
        """The next batch: entries of one kind, at most the limit; empty if there is nothing to run yet.

        To be asked for as soon as the batch before has ended.
        """
        now = self._clock()
        if self._bulk_runs:  # until now, and what waited meanwhile is interactive
            self._bulk_ran, self._bulk_runs = now, False
        interactive, bulk = self._oldest(Lane.INTERACTIVE, now), self._oldest(Lane.BULK, now)
        if interactive and bulk and now - self._bulk_ran > STARVING_S:
            return self._batch(Lane.BULK, bulk, TRICKLE, now)
        if interactive and self._is_due(Lane.INTERACTIVE, interactive, now):
            return self._batch(Lane.INTERACTIVE, interactive, 1, now)
        if bulk and (self._is_full(Lane.BULK, bulk) if interactive else self._is_due(Lane.BULK, bulk, now)):
            return self._batch(Lane.BULK, bulk, 1, now)
        return []

    def due_in(self) -> float | None:
        """Seconds until ``take`` gives a batch that waits to fill; None if nothing waits."""
        now = self._clock()
        for lane in Lane:
            group = self._oldest(lane, now)
            if group is not None:
                return max(0.0, self._groups[lane][group][0].entered + self._wait_s - now)
        return None

    def ran(self, kind: Kind, count: int, length: int, seconds: float) -> None:
        """A batch has run.

        Args:
            kind: what it was of.
            count: its entries.
            length: of its texts, in tokens.
            seconds: how long it took.
        """
        full = count * length / self._context_length if kind == "text" and self._texts_cut else count
        if full >= _TELLS * self._least:
            self._took[kind].add(seconds / full)

    def full(self, kind: Kind, lane: Lane = Lane.INTERACTIVE) -> int:
        """Pictures, or full-length texts, that make a full batch at present."""
        limit, each_s = min(self._max_batch, self.limits[kind]), self._took[kind].value
        beside = lane is Lane.BULK and self._clock() - self._interactive_came < LATELY_S
        quick = int((LONGEST_BESIDE_S if beside else LONGEST_S) / each_s) if each_s else 0
        return min(limit, max(self._least, quick))

    def room(self, kind: Kind, length: int, lane: Lane = Lane.INTERACTIVE) -> int:
        """Most entries in one batch: pictures, or texts of a length in tokens, as many as hold what full ones do."""
        full = self.full(kind, lane)
        if kind == "image" or not self._texts_cut:
            return full
        return max(1, full * self._context_length // max(1, length))

    def waiting(self, lane: Lane) -> int:
        """Entries of a lane, those that will be dropped included."""
        return sum(len(entries) for entries in self._groups[lane].values())

    def oldest_s(self, lane: Lane) -> float:
        """How long the lane's oldest entry has waited, in seconds."""
        now = self._clock()
        return max((now - entries[0].created for entries in self._groups[lane].values() if entries), default=0.0)

    def _group_of(self, entry: Entry) -> _Group:
        if entry.kind == "image":
            return _Group("image")
        assert entry.tokens is not None
        if not self._texts_cut:
            return _Group("text", self._context_length)
        steps = -(-len(entry.tokens) // LENGTH_STEP)
        return _Group("text", min(self._context_length, steps * LENGTH_STEP))

    def _oldest(self, lane: Lane, now: float) -> _Group | None:
        """The group whose first entry has waited longest, after dropping what nobody waits for."""
        oldest: _Group | None = None
        since = float("inf")
        for group in list(self._groups[lane]):
            entries = self._groups[lane][group]
            while entries and _is_stale(entries[0], lane, now):
                entries.popleft()
            if not entries:
                del self._groups[lane][group]
            elif entries[0].entered < since:
                oldest, since = group, entries[0].entered
        return oldest

    def _is_due(self, lane: Lane, group: _Group, now: float) -> bool:
        return now >= self._groups[lane][group][0].entered + self._wait_s or self._is_full(lane, group)

    def _is_full(self, lane: Lane, group: _Group) -> bool:
        return len(self._groups[lane][group]) >= self.room(group.kind, group.length, lane)

    def _batch(self, lane: Lane, group: _Group, share: int, now: float) -> list[Entry]:
        room = max(1, self.room(group.kind, group.length, lane) // share)
        # The nearest lengths first; without lengths, and for pictures, there is one group only.
        near = [g for g in self._groups[lane] if g.kind == group.kind and group.length // 2 <= g.length <= group.length]
        batch: list[Entry] = []
        for each in sorted(near, key=lambda g: g.length, reverse=True):
            entries = self._groups[lane][each]
            while entries and len(batch) < room:
                entry = entries.popleft()
                if not _is_stale(entry, lane, now):
                    batch.append(entry)
        if lane is Lane.BULK:
            self._bulk_runs = True
        return batch


def _is_stale(entry: Entry, lane: Lane, now: float) -> bool:
    return entry.lane is not lane or entry.drop_unwanted(now)
