"""Rows of a file into a collection, a few calls at a time.

Calls are awaited in the order of the rows, so that what is acknowledged is always a beginning of the file: where to go
on. When one fails for a reason that may pass, the others under way are awaited too, and all of them sent again after a
while, fewer at a time; what is stored already is not stored twice. A call that shares an id with one under way
waits, so that of rows with one id the last one stays.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from likeness.indexer.v1 import indexer_pb2

from likeness_client.channel import MAX_MESSAGE_BYTES
from likeness_client.errors import LikenessError
from likeness_client.indexer.client import IndexerClient
from likeness_client.indexer.types import Limits
from likeness_client.indexer.wire import message_of
from likeness_client.items import Fingerprint
from likeness_client.rpc_errors import from_item_error
from likeness_client.transfer.rows import Row
from likeness_client.wire import fingerprint_to_proto

# Four calls of a size that keeps the indexer's writer busy, and few enough to wait for at an interrupt.
WINDOW = 4
BATCH = 256
# An answer names the first 100 refused items.
SIFTED = 100
# A message has fields besides its items, and each item a tag and a length.
MESSAGE_OVERHEAD = 4096
ITEM_OVERHEAD = 12
FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 5.0
PATIENCE_S = 120.0
KEPT_REFUSALS = 1000
ROW_INVALID = "ROW_INVALID"


@dataclass(frozen=True)
class Refusal:
    """A row that was not stored: its number in the file, its id if it has one, and why."""

    row: int
    id: str
    reason: str
    message: str


@dataclass
class Progress:
    """How far an upload is.

    Attributes:
        after: the number of the last row up to which every row is stored or refused.
        stored: items stored.
        refused: rows refused.
        refusals: the first 1,000 of these.
    """

    after: int = 0
    stored: int = 0
    refused: int = 0
    refusals: list[Refusal] = field(default_factory=list)


@dataclass
class _Part:
    """Rows that go into one call; those that cannot be sent stand in ``refusals``."""

    last_row: int = 0
    rows: list[int] = field(default_factory=list)
    items: list[indexer_pb2.Item] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    @property
    def ids(self) -> set[str]:
        """The items' ids."""
        return {item.id for item in self.items}


Answer = Callable[[], indexer_pb2.UpsertItemsResponse]


class Upload:
    """Writes rows into a collection. What it has done so far stands in ``progress``, also after a failure."""

    def __init__(
        self,
        client: IndexerClient,
        collection: str,
        limits: Limits,
        *,
        expected_fingerprint: Fingerprint | None = None,
        strict: bool = False,
        progress: Progress | None = None,
        on_acknowledged: Callable[[], None] | None = None,
        on_wait: Callable[[LikenessError, float], None] | None = None,
        patience_s: float = PATIENCE_S,
        first_backoff_s: float = FIRST_BACKOFF_S,
    ) -> None:
        """Prepares an upload.

        Args:
            client: of the indexer.
            collection: its name; not an alias, which may move meanwhile.
            limits: the indexer's.
            expected_fingerprint: the model that the vectors come from; None: not checked beyond the dimension.
            strict: whether the first row refused ends it.
            progress: where to go on.
            on_acknowledged: called whenever ``progress`` has moved.
            on_wait: called before a pause, with its cause and its seconds.
            patience_s: seconds without anything acknowledged after which a failure that may pass is final.
            first_backoff_s: seconds of the first pause, where the indexer names none; doubles up to 5 s.
        """
        self.progress = progress or Progress()
        self._client = client
        self._collection = collection
        self._expected = fingerprint_to_proto(expected_fingerprint)
        self._most_items = min(limits.batch or BATCH, BATCH)
        self._most_bytes = (limits.message_bytes or MAX_MESSAGE_BYTES) - MESSAGE_OVERHEAD
        self._strict = strict
        self._on_acknowledged = on_acknowledged or (lambda: None)
        self._on_wait = on_wait or (lambda _error, _wait_s: None)
        self._patience_s = patience_s
        self._first_backoff_s = first_backoff_s
        self._window = WINDOW
        self._failures = 0

    def run(self, rows: Iterator[Row]) -> None:
        """Uploads all rows.

        Raises:
            LikenessError: the indexer refuses the upload as a whole, or has failed for too long; or, if strict, a row;
                or the rows cannot be read to their end.
        """
        sent: deque[tuple[_Part, Answer]] = deque()
        try:
            self._run(self._parts(rows), sent)
        except LikenessError:
            self._settled(sent)  # nothing is to be written any more once the caller knows
            raise

    def _run(self, parts: Iterator[_Part], sent: deque[tuple[_Part, Answer]]) -> None:
        again: deque[_Part] = deque()
        under_way: set[str] = set()  # ids: of rows with one id, the last is to be written last
        acknowledged_at = time.monotonic()
        while True:
            while len(sent) < self._window and (part := again.popleft() if again else next(parts, None)):
                if not under_way.isdisjoint(part.ids):
                    again.appendleft(part)
                    break
                under_way |= part.ids
                sent.append((part, self._send(part)))
            if not sent:
                return
            part, answer = sent[0]
            try:
                stored, refusals = self._settle(part, answer)
            except LikenessError as error:
                sent.popleft()
                if not _may_pass(error) or time.monotonic() - acknowledged_at > self._patience_s:
                    raise
                under_way.clear()
                behind = self._settled(sent)
                again.extendleft(reversed([part, *behind]))
                self._pause(error)
                continue
            sent.popleft()
            under_way -= part.ids
            acknowledged_at = time.monotonic()
            self._acknowledge(part, stored, refusals)

    def _send(self, part: _Part) -> Answer:
        if not part.items:
            return indexer_pb2.UpsertItemsResponse
        return self._client.begin_upsert(
            indexer_pb2.UpsertItemsRequest(
                collection=self._collection, expected_fingerprint=self._expected, items=part.items
            )
        )

    def _settle(self, part: _Part, answer: Answer) -> tuple[int, list[Refusal]]:
        """Waits for the answer; of a call with bad items, none of which is stored, stores the good ones."""
        try:
            return answer().stored, part.refusals
        except LikenessError as error:
            if error.code != "INVALID_ARGUMENT":
                raise
        stored, refusals = 0, list(part.refusals)
        for start in range(0, len(part.items), SIFTED):
            request = indexer_pb2.UpsertItemsStreamRequest(
                collection=self._collection,
                expected_fingerprint=self._expected,
                items=part.items[start : start + SIFTED],
            )
            answered = self._client.upsert_each(request)
            stored += answered.stored
            for refused in answered.refusals:
                told = from_item_error(refused.error)
                row = part.rows[start + refused.index]
                refusals.append(Refusal(row, refused.id, told.reason or told.code, told.message))
        return stored, sorted(refusals, key=lambda refusal: refusal.row)

    def _settled(self, sent: deque[tuple[_Part, Answer]]) -> list[_Part]:
        """The parts that were sent and not settled, once each has an answer."""
        parts = []
        while sent:
            part, answer = sent.popleft()
            with suppress(LikenessError):  # sent again, it tells again what is wrong
                answer()
            parts.append(part)
        return parts

    def _pause(self, error: LikenessError) -> None:
        backoff_s = min(self._first_backoff_s * 2 ** min(self._failures, 10), MAX_BACKOFF_S)
        wait_s = max(error.retry_after_s or 0.0, backoff_s)
        self._failures += 1
        self._window = max(1, self._window // 2)
        self._on_wait(error, wait_s)
        threading.Event().wait(wait_s)

    def _acknowledge(self, part: _Part, stored: int, refusals: list[Refusal]) -> None:
        self._failures = 0
        self._window = min(WINDOW, self._window + 1)
        progress = self.progress
        progress.stored += stored
        if refusals and self._strict:
            first = refusals[0]
            about = f" (id {first.id!r})" if first.id else ""
            message = f"row {first.row}{about}: {first.message}"
            progress.refused += 1
            progress.refusals.append(first)
            raise LikenessError("INVALID_ARGUMENT", first.reason, message)
        progress.after = part.last_row
        progress.refused += len(refusals)
        progress.refusals.extend(refusals[: max(0, KEPT_REFUSALS - len(progress.refusals))])
        self._on_acknowledged()

    def _parts(self, rows: Iterator[Row]) -> Iterator[_Part]:
        """Rows, as many to a call as its bounds allow."""
        part, size = _Part(), 0
        for row in rows:
            item, refusal = self._message(row)
            item_bytes = item.ByteSize() + ITEM_OVERHEAD if item is not None else 0
            full = len(part.items) >= self._most_items or size + item_bytes > self._most_bytes
            # Rows that are refused here count too: a file of nothing else is no single part.
            if full or len(part.refusals) >= self._most_items:
                yield part
                part, size = _Part(), 0
            if item is not None:
                part.items.append(item)
                part.rows.append(row.number)
                size += item_bytes
            elif refusal is not None:
                part.refusals.append(refusal)
            part.last_row = row.number
        if part.last_row:
            yield part

    def _message(self, row: Row) -> tuple[indexer_pb2.Item | None, Refusal | None]:
        if row.fault:
            return None, Refusal(row.number, row.id, ROW_INVALID, row.fault)
        try:
            item = message_of(row.id, row.f32, row.metadata)
        except (ValueError, TypeError) as error:
            return None, Refusal(row.number, row.id, ROW_INVALID, str(error))
        if item.ByteSize() + ITEM_OVERHEAD > self._most_bytes:
            fault = f"takes {item.ByteSize():,} bytes; a message of this indexer holds {self._most_bytes:,}"
            return None, Refusal(row.number, row.id, ROW_INVALID, fault)
        return item, None


def _may_pass(error: LikenessError) -> bool:
    return error.passing or error.code == "DEADLINE_EXCEEDED"
