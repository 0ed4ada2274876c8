import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from likeness.common.v1 import error_pb2
from prometheus_client import CollectorRegistry

from chassis.errors import LikenessError
from indexer import listing
from indexer.filters import Comparison, Kind, Op
from indexer.metrics import Metrics
from indexer.reads import After, Fields, Listing, Search
from indexer.scoring import Scoring
from indexer.serving import reader as readers
from indexer.serving import search
from indexer.serving.batcher import Batcher
from indexer.serving.collection import ServingCollection
from indexer.serving.engine import Engine
from indexer.serving.facets import facets
from indexer.serving.planner import Planner, PlannerSettings
from indexer.serving.reader import MemoryReader
from indexer.serving.reading import ReadThreads
from indexer.serving.table import View
from indexer.settings import IndexerSettings
from indexer.turnstile import Turnstile
from tests.unit.indexer import model
from tests.unit.indexer.serving.tables import DIMENSION, collection, empty, metadata, written

COUNT = 40
IDS = [f"id{i}" for i in range(COUNT)]


@pytest.fixture
def reader() -> Iterator[MemoryReader]:
    table = empty()
    table.apply(written(range(COUNT)), [])
    serving = ServingCollection(collection(), table, 0)
    planner = Planner(PlannerSettings())
    with ThreadPoolExecutor(1) as threads:
        batcher = Batcher[View](
            lambda: serving.view,
            lambda view, searches, fields: search.answer(view, searches, fields, planner),
            threads,
            jobs=1,
            max_batch=1,
            max_waiting=1,
        )
        yield MemoryReader(serving, batcher, ReadThreads(threads, threads, Turnstile(1, 0, "A_SETTING")))


async def pages(reader: MemoryReader, order_by: str, descending: bool) -> list[list[str]]:
    found: list[list[str]] = []
    after: After | None = None
    while not found or after is not None:
        page = await reader.page(
            collection(), Listing(None, order_by, descending, 100, after), Fields(metadata=True, vector=True)
        )
        found.append([item.id for item in page.items])
        after = page.next
    return found


@pytest.mark.parametrize("order_by", ["", "name", "width", "new", "absent"])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("room", [0, 1000])
async def test_a_page_ends_where_a_message_is_full(
    reader: MemoryReader, monkeypatch: pytest.MonkeyPatch, order_by: str, descending: bool, room: int
) -> None:
    monkeypatch.setattr(listing, "PAGE_BYTES", room)
    found = await pages(reader, order_by, descending)
    items = {item_id: metadata(i) for i, item_id in enumerate(IDS)}
    assert [item_id for ids in found for item_id in ids] == model.ordered(items, order_by, descending)
    least = 4 * DIMENSION
    assert all(len(ids) == 1 for ids in found) if room == 0 else len(found) > 1
    assert all(least * len(ids) <= max(room, least) for ids in found)


async def test_a_page_that_fits_is_whole(reader: MemoryReader) -> None:
    assert await pages(reader, "", False) == [sorted(IDS)]


NEW = Comparison("new", Op.EXISTS, Kind.NONE, ())
SEARCH = Search(np.ones(DIMENSION, np.float32), NEW, 3, 0, None, Scoring.COSINE, 3)


class Held:
    """Facets that take as long as they are held, and what else is asked for meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()
        count = facets

        def hold(*args: Any) -> Any:
            self.begun.release()
            assert self.go_on.wait(30)
            return count(*args)

        monkeypatch.setattr(readers, "facets", hold)
        self.engine = Engine(IndexerSettings(search_threads=1, read_queue=2), Metrics(CollectorRegistry()))
        serving = ServingCollection(collection(), self.engine.table(collection()), 0)
        serving.table.apply(written(range(COUNT)), [])
        self.reader = MemoryReader(serving, self.engine.batcher(serving), self.engine.threads)

    async def fill(self) -> list[asyncio.Task[Any]]:
        """One is worked on, and two wait."""
        counting = [asyncio.create_task(self.facets()) for _ in range(3)]
        assert await asyncio.to_thread(self.begun.acquire, timeout=30)
        return counting

    async def facets(self) -> Any:
        return await self.reader.facets(collection(), None, {"new": 3})


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = Held(monkeypatch)
    yield made
    made.go_on.set()
    made.engine.close()


async def test_no_search_and_no_example_waits_for_what_takes_long(held: Held) -> None:
    counting = await held.fill()
    async with asyncio.timeout(30):
        [filtered] = await held.reader.search(collection(), [SEARCH], Fields())
        [exact] = await held.reader.search(collection(), [replace(SEARCH, where=None, exact=True)], Fields())
        examples = await held.reader.fetch(collection(), IDS[:3], Fields(vector=True))
    assert (len(filtered), len(exact), len(examples)) == (3, 3, 3)
    assert not any(each.done() for each in counting)
    held.go_on.set()
    assert [(await each)[0] for each in counting] == [COUNT] * 3


async def test_more_than_may_wait_are_refused_at_once_and_told_why_and_when_to_come_back(held: Held) -> None:
    counting = await held.fill()
    for work in (
        held.facets(),
        held.reader.count(collection(), NEW),
        held.reader.page(collection(), Listing(None, "", False, 3, None), Fields()),
    ):
        with pytest.raises(LikenessError) as caught:
            await work
        assert caught.value.reason == error_pb2.REASON_OVERLOADED
        assert "LIKENESS_READ_QUEUE" in caught.value.message
        assert caught.value.retry_after_s
    assert await held.reader.count(collection(), None) == COUNT, "which is known"
    held.go_on.set()
    await asyncio.gather(*counting)


async def test_a_scan_waits_for_its_turn_and_is_not_refused(held: Held) -> None:
    counting = await held.fill()
    begun = asyncio.create_task(held.reader.scan(collection(), None, "", Fields()))
    await asyncio.sleep(0)
    held.go_on.set()
    ids = [item_id async for batch in (await begun).batches for item_id in batch.ids]
    assert ids == sorted(IDS)
    await asyncio.gather(*counting)


async def test_what_waits_is_answered_from_what_there_is_when_its_turn_comes(held: Held) -> None:
    counting = await held.fill()
    held.reader._serving.apply([], IDS[:5], 1)
    held.go_on.set()
    assert [(await each)[0] for each in counting] == [COUNT, COUNT - 5, COUNT - 5]
