"""The whole indexer beside long work and a Chroma that gives no answer: what it refuses, and that it stops soon."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2 as pb
from prometheus_client import CollectorRegistry

from indexer import namespace
from indexer import service as services
from indexer.catalog import Collections
from indexer.changes import Changes
from indexer.collections import Collection, Fingerprint, Metric
from indexer.reads import Item
from indexer.roles import Standing
from indexer.service import IndexerService
from indexer.servicing import Context, Sole
from indexer.settings import IndexerSettings, Reads
from indexer.writes import StoredRecord
from tests.unit.indexer.shelf import NO_ANSWER, Shelf, refusal, use

FINGERPRINT = Fingerprint("m", "a1" * 32, 2)


class Stored(Shelf):
    """Collections that hold an item each, and what is asked of items.

    Attributes:
        copying: whether the ids of items are given out.
        silence: how changes are answered from the moment at which a copy is complete.
        counted: whether that has come.
        heard: whether a change has been asked for since.
        written: ids that were written or deleted, but for those of a copy.
        unanswered: whether a write gets no answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copying = asyncio.Event()
        self.asked = asyncio.Event()
        self.silence = ""
        self.counted = asyncio.Event()
        self.heard = asyncio.Event()
        self.written: list[str] = []
        self.unanswered = False

    async def ids(self, collection: Collection) -> list[str]:
        self.asked.set()
        await self.copying.wait()
        return []

    async def count(self, collection: Collection, /) -> int:
        match self.silence:
            case "not made":
                self.missed = 10**9
            case "made":
                self.lost = 10**9
            case "no end":
                self.gate.clear()
        self.counted.set()
        self.heard.clear()
        return 0

    def speak(self) -> None:
        """Answers again."""
        self.missed = self.lost = 0
        self.gate.set()

    def _hear(self) -> None:
        self.heard.set()
        super()._hear()

    async def newest(self, collection: Collection, at_least: int) -> int | None:
        return None

    async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
        return []

    async def existing(self, collection: Collection, ids: Sequence[str]) -> set[str]:
        return set(ids)

    async def write(self, collection: Collection, changes: Changes, stamp: int) -> None:
        if self.unanswered:
            raise NO_ANSWER
        self.written += [item.id for item in changes.items]

    async def delete(self, collection: Collection, ids: Sequence[str]) -> None:
        self.written += ids


class Alone:
    """Over a shelf; it has nothing to begin or to end.

    Attributes:
        ended_in_doubt: what it was told at the end.
    """

    linger_s = 0.0
    unsettled = False

    def __init__(self, store: Stored) -> None:
        self.store = store
        self.lease = Sole()
        self.ended_in_doubt: bool | None = None

    def done(self, collection: Collection, stamp: int, again: Sequence[str]) -> None:
        return

    async def rest(self) -> None:
        return

    async def end(self, *, in_doubt: bool = False) -> None:
        self.ended_in_doubt = in_doubt


@pytest.fixture
def stored() -> Stored:
    return Stored()


@pytest.fixture
async def service(stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IndexerService:
    """With the collection "col", which Chroma serves."""
    monkeypatch.setattr(services, "standing", lambda _: cast(Standing, Alone(stored)))
    monkeypatch.setattr(namespace, "_LAST_S", 0.2)
    settings = IndexerSettings(
        data_dir=tmp_path,
        snapshots=str(tmp_path / "snapshots"),
        chroma_url="http://127.0.0.1:9",
        reads=Reads.CHROMA,
    )
    made = IndexerService(settings, CollectorRegistry())
    await made._collections.create("col", FINGERPRINT, Metric.L2)
    return made


async def next_start(stored: Stored) -> Collections:
    """Once everything is served, and what was left is gone."""
    stored.speak()
    collections = Collections(stored)
    await collections.recover()
    collections.drop_left()
    assert await collections.left_dropped()
    return collections


async def test_a_stop_does_not_wait_for_a_copy_to_be_emptied(service: IndexerService, stored: Stored) -> None:
    """Half a million items would take minutes."""

    async def never(name: str, key: str, /) -> None:
        await asyncio.Event().wait()

    drop, stored.drop = stored.drop, never  # type: ignore[method-assign]
    job = service._upkeep.rebuild(await use(service._collections))
    await stored.asked.wait()
    async with asyncio.timeout(10):
        await service.stop()
    assert (await refusal(job.result())).reason == error_pb2.REASON_SHUTTING_DOWN
    assert len(stored.kept) == 2, "the copy is still there"
    stored.drop = drop  # type: ignore[method-assign]
    assert (await use(await next_start(stored))).generation == 0
    assert stored.kept.keys() == {"col"}


@pytest.mark.parametrize("silence", ["not made", "made", "no end"])
async def test_a_stop_does_not_wait_for_ever_for_the_answer_to_a_commit(
    service: IndexerService, stored: Stored, silence: str
) -> None:
    """Nor is anything written after it, to what may not be the collection any more, as the next start sees."""
    stored.silence = silence
    stored.copying.set()
    collection = await use(service._collections)
    job = service._upkeep.rebuild(collection)
    await stored.counted.wait()
    vector = np.zeros(2, np.float32)
    writes = [
        asyncio.create_task(service._writers.upsert(collection, [Item("a", vector)])),
        asyncio.create_task(service._writers.delete(collection, ["b"])),
    ]
    async with asyncio.timeout(10):
        await service.stop()
        error = await refusal(job.result())
        assert error.reason == error_pb2.REASON_SHUTTING_DOWN
        assert "describing 'col'" in error.message
        for write in writes:
            assert (await refusal(write)).reason == error_pb2.REASON_SHUTTING_DOWN
    assert stored.written == []
    assert len(stored.kept) == 2, "whichever is the collection"
    assert (await use(await next_start(stored))).generation == (0 if silence == "not made" else 1)
    assert len(stored.kept) == 1


@pytest.mark.parametrize("silence", ["not made", "made", "no end"])
async def test_a_stop_does_not_wait_for_ever_for_the_answer_to_a_deletion(
    service: IndexerService, stored: Stored, silence: str
) -> None:
    collection = await use(service._collections)
    stored.silence = silence
    await stored.count(collection)

    async def delete() -> None:
        async with service._writers.deleting(collection):
            await service._collections.delete(collection)

    deleting = asyncio.create_task(delete())
    await stored.heard.wait()
    write = asyncio.create_task(service._writers.delete(collection, ["b"]))
    for _ in range(20):
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await service.stop()
        assert (await refusal(deleting)).reason == error_pb2.REASON_SHUTTING_DOWN
        assert (await refusal(write)).reason == error_pb2.REASON_SHUTTING_DOWN
        assert (await refusal(service._collections.list("", 10))).reason == error_pb2.REASON_STORE_UNAVAILABLE
    left = [each.name for each in (await (await next_start(stored)).list("", 10))[0]]
    assert left == (["col"] if silence == "not made" else [])


async def test_what_chroma_answers_in_time_is_done_at_a_stop_too(
    service: IndexerService, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespace, "_LAST_S", 60)
    stored.copying.set()
    stored.silence = "no end"
    job = service._upkeep.rebuild(await use(service._collections))
    await stored.counted.wait()
    stopping = asyncio.create_task(service.stop())
    for _ in range(20):
        await asyncio.sleep(0)
    stored.speak()
    async with asyncio.timeout(10):
        await stopping
    assert (await use(await next_start(stored))).generation == 1
    assert job.task.cancelled(), "it has committed; the rest is for the next start"


@pytest.mark.parametrize("unanswered", [True, False])
async def test_the_next_writer_hears_of_a_write_that_chroma_may_still_carry_out(
    service: IndexerService, stored: Stored, unanswered: bool
) -> None:
    stored.unanswered = unanswered
    collection = await use(service._collections)
    write = service._writers.upsert(collection, [Item("a", np.zeros(2, np.float32))])
    if unanswered:
        assert (await refusal(write)).reason == error_pb2.REASON_STORE_UNAVAILABLE
    else:
        assert await write == 1
    await service.stop()
    assert cast(Alone, service._standing).ended_in_doubt is unanswered


async def test_a_collection_is_not_deleted_beside_a_job(service: IndexerService, stored: Stored) -> None:
    request, context = pb.DeleteCollectionRequest(name="col"), cast(Context, None)
    job = service._upkeep.rebuild(await use(service._collections))
    await stored.asked.wait()
    error = await refusal(service._servicer.DeleteCollection(request, context))
    assert error.reason == error_pb2.REASON_COLLECTION_BUSY
    assert "a rebuild of 'col' is under way" in error.message
    assert "no deletion can begin" in error.message
    assert (await use(service._collections)).name == "col", "it can be used as before"
    stored.copying.set()
    await job.result()
    await service._servicer.DeleteCollection(request, context)
    assert not service._collections.knows("col")
    await service.stop()


async def test_no_job_begins_once_a_deletion_has_begun(service: IndexerService, stored: Stored) -> None:
    """Not even where the deletion waits for somebody who uses the collection."""
    request, context = pb.DeleteCollectionRequest(name="col"), cast(Context, None)
    async with service._collections.use("col"):
        deleting = asyncio.create_task(service._servicer.DeleteCollection(request, context))
        for _ in range(20):
            await asyncio.sleep(0)
        rebuilding = service._servicer.RebuildCollection(pb.RebuildCollectionRequest(collection="col"), context)
        assert (await refusal(rebuilding)).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
        assert not deleting.done()
    await deleting
    await service.stop()
