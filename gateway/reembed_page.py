"""A page of items that is embedded anew: what the target has already stays, the rest is read, embedded and stored."""

import asyncio
import hashlib
import re
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import Image, ItemFields, Vector
from likeness.embedder.v1 import embedder_pb2
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis.errors import LikenessError, from_status, in_request, invalid, to_item_error
from gateway.backends import Embedder, Indexer
from gateway.backoff import Backoff
from gateway.media import Media, PictureMedia
from gateway.originals import Originals, size, text
from gateway.requests import mismatch, of_collection
from gateway.settings import GatewaySettings

# Pictures of one batch that are read at once.
_READS = 8
# What is remembered of a failed item are two short hashes; of so many they take about 250 MB.
MAX_FAILURES = 1_000_000

T = TypeVar("T")
Picture = tuple[indexer_pb2.Item, bytes]


@dataclass
class Tally:
    """What became of the items so far: those looked at are embedded, unchanged or failed.

    Attributes:
        embedded: embedded and stored in the target.
        unchanged: there already, perhaps with other metadata, which have been replaced.
        changes: writes to the target and deletions from it, which a round without tells from one with.
        removed: items deleted from the target.
    """

    embedded: int = 0
    unchanged: int = 0
    changes: int = 0
    removed: int = 0
    # By a hash of the id: a hash of the picture, and whether trying again is no use.
    _failed: dict[bytes, tuple[bytes, bool]] = field(default_factory=dict)
    _seen: set[bytes] = field(default_factory=set)
    _untold: list[gateway_pb2.ReembedFailure] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Items that could not be embedded."""
        return len(self._failed)

    @property
    def done(self) -> int:
        """Items looked at."""
        return self.embedded + self.unchanged + self.failed

    def has_failed(self, item: indexer_pb2.Item) -> bool:
        """Whether this item failed before with the same picture, for good."""
        mark = _hash(item.id)
        picture, final = self._failed.get(mark, (b"", False))
        failed = final and picture == _hash(text(item, "sha256"))
        if failed:
            self._seen.add(mark)
        return failed

    def fail(self, item: indexer_pb2.Item, error: LikenessError) -> None:
        """The item could not be embedded; it is told of once, however often that is tried.

        Raises:
            LikenessError: BATCH_TOO_LARGE: too many have failed.
        """
        mark = _hash(item.id)
        if mark not in self._failed:
            if len(self._failed) == MAX_FAILURES:
                message = f"more than {MAX_FAILURES:,} items could not be embedded; see the first of them"
                raise LikenessError(error_pb2.REASON_BATCH_TOO_LARGE, message)
            self._untold.append(gateway_pb2.ReembedFailure(id=item.id, error=to_item_error(error)))
        self._failed[mark] = _hash(text(item, "sha256")), error.retry_after_s is None
        self._seen.add(mark)

    def store(self, item: indexer_pb2.Item) -> None:
        """The item is in the target now."""
        self._failed.pop(_hash(item.id), None)
        self.embedded += 1
        self.changes += 1

    def rewrite(self, count: int, *, again: bool) -> None:
        """So many items have new metadata in the target; ``again``: they were counted before."""
        self.unchanged += 0 if again else count
        self.changes += count

    def remove(self, count: int) -> None:
        """So many items are no longer in the target."""
        self.removed += count
        self.changes += count

    def begin_round(self) -> None:
        """The whole source is gone through from here on."""
        self._seen = set()

    def end_round(self) -> None:
        """It was: what failed before, and now is gone or in the target, has not failed."""
        self._failed = {mark: known for mark, known in self._failed.items() if mark in self._seen}

    def take_failures(self) -> list[gateway_pb2.ReembedFailure]:
        """The failures since the last time."""
        untold, self._untold = self._untold, []
        return untold


@dataclass(frozen=True)
class PageFiller:
    """Fills the target with pages of the source."""

    embedder: Embedder
    indexer: Indexer
    media: Media
    originals: Originals
    source: indexer_pb2.Collection
    target: indexer_pb2.Collection
    settings: GatewaySettings
    max_inputs: int
    max_message_bytes: int
    keep_originals: bool
    stopping: asyncio.Event
    tally: Tally

    async def fill(self, items: Sequence[indexer_pb2.Item], *, again: bool) -> None:
        """Sees a page through, unless the gateway stops.

        Args:
            items: of the source, with their metadata.
            again: whether they were looked at before; then only what changes is counted.
        """
        if not items:
            return
        read = indexer_pb2.GetItemsRequest(
            collection=self.target.name, ids=[item.id for item in items], fields=ItemFields(metadata=True)
        )
        there = {found.id: found for found in (await self.indexer.get(read, self._time())).items}
        renamed: list[indexer_pb2.Item] = []
        lacking: list[indexer_pb2.Item] = []
        for item in items:
            found = there.get(item.id)
            if found is not None and text(item, "sha256") and found.metadata == item.metadata:
                self.tally.unchanged += not again
            elif found is not None and text(item, "sha256") and text(item, "sha256") == text(found, "sha256"):
                renamed.append(item)
            elif not self.tally.has_failed(item):
                lacking.append(item)
        await self._rewrite(renamed, again=again)
        batches = self._batches(lacking)
        await _all([self._work(batches) for _ in range(min(self.settings.ingest_batches, len(batches)))])

    async def _rewrite(self, items: Sequence[indexer_pb2.Item], *, again: bool) -> None:
        """Stores new metadata beside the vectors that the target has: the pictures are the same."""
        if not items:
            return
        read = indexer_pb2.GetItemsRequest(
            collection=self.target.name, ids=[item.id for item in items], fields=ItemFields(vector=True)
        )
        vectors = {found.id: found.vector for found in (await self.indexer.get(read, self._time())).items}
        rewritten = [(item, vectors[item.id]) for item in items if item.id in vectors]
        await self._upsert(rewritten)
        self.tally.rewrite(len(rewritten), again=again)

    def _batches(self, items: Sequence[indexer_pb2.Item]) -> list[list[indexer_pb2.Item]]:
        """The items in runs that may be in memory at once, and in one message to the embedder."""
        most = min(self.settings.ingest_batch_items, self.max_inputs or self.settings.ingest_batch_items)
        batches: list[list[indexer_pb2.Item]] = []
        room = 0
        for item in items:
            if not batches or len(batches[-1]) == most or size(item) > room:
                batches.append([])
                room = min(self.settings.ingest_batch_mb * 2**20, self.max_message_bytes)
            batches[-1].append(item)
            room -= size(item)
        return batches

    async def _work(self, batches: list[list[indexer_pb2.Item]]) -> None:
        while batches and not self.stopping.is_set():
            await self._embed(batches.pop(0))

    async def _embed(self, batch: Sequence[indexer_pb2.Item]) -> None:
        pictures = await self._read(batch)
        if not pictures:
            return
        inputs = [embedder_pb2.EmbedInput(image=Image(encoded=encoded)) for _, encoded in pictures]
        longest_s = self.settings.ingest_call_s
        # Nobody is there to be told to send less: the page takes longer.
        backoff = Backoff(longest_s, self.stopping, lambda _seconds, _cause: None)
        answer = await backoff.call("embedder", lambda: self.embedder.embed(inputs, longest_s, bulk=True))
        if answer.fingerprint.digest != self.target.fingerprint.digest:
            raise mismatch(answer.fingerprint, self.target.fingerprint, of_collection(self.target.name))
        stored: list[tuple[indexer_pb2.Item, Vector]] = []
        files: list[PictureMedia] = []
        for (item, encoded), result in zip(pictures, answer.results, strict=True):
            if result.HasField("error"):
                self.tally.fail(item, in_request(from_status(result.error.status), _field))
            else:
                stored.append((item, result.vector))
                files.append(PictureMedia(item.id, text(item, "sha256"), Image(encoded=encoded)))
        if stored:
            async with self.media.replacing(
                self.target.uid, files, thumbnails=self.settings.thumbnails, originals=self.keep_originals
            ):
                await self._upsert(stored)
            for item, _ in stored:
                self.tally.store(item)

    async def _read(self, batch: Sequence[indexer_pb2.Item]) -> list[Picture]:
        """The pictures that can be read, in order; the others have failed."""
        few = asyncio.Semaphore(_READS)

        async def read(item: indexer_pb2.Item) -> bytes | LikenessError:
            async with few:
                try:
                    return await self.originals.read(item, self._time())
                except LikenessError as error:
                    if error.reason == error_pb2.REASON_MEDIA_UNAVAILABLE:
                        raise
                    return error

        pictures: list[Picture] = []
        for item, outcome in zip(batch, await _all([read(item) for item in batch]), strict=True):
            if isinstance(outcome, LikenessError):
                self.tally.fail(item, outcome)
            elif len(outcome) > self.max_message_bytes:
                description = f"{len(outcome):,} bytes; the embedder takes messages for {self.max_message_bytes:,}"
                self.tally.fail(item, invalid("image", description, error_pb2.REASON_IMAGE_TOO_LARGE))
            else:
                pictures.append((item, outcome))
        return pictures

    async def _upsert(self, stored: Sequence[tuple[indexer_pb2.Item, Vector]]) -> None:
        upsert = indexer_pb2.UpsertItemsRequest(
            collection=self.target.name,
            expected_fingerprint=self.target.fingerprint,
            expected_uid=self.target.uid,
        )
        for item, vector in stored:
            upsert.items.add(id=item.id, vector=vector, metadata=item.metadata)
        longest_s = self.settings.ingest_call_s
        backoff = Backoff(longest_s, self.stopping, lambda _seconds, _cause: None)
        await backoff.call("indexer", lambda: self.indexer.upsert(upsert, longest_s))

    def _time(self) -> float:
        return self.settings.default_deadline_s


async def _all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All of it at once; the first failure ends the rest."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _hash(words: str) -> bytes:
    return hashlib.blake2b(words.encode(), digest_size=12).digest()


def _field(name: str) -> str:
    """The name of a field of a picture that was refused, without its place in the call."""
    return re.sub(r"^inputs\[\d+\]\.", "", name)
