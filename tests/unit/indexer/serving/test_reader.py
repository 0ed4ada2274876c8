from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from indexer import listing
from indexer.reads import After, Fields, Listing
from indexer.serving import search
from indexer.serving.batcher import Batcher
from indexer.serving.collection import ServingCollection
from indexer.serving.planner import Planner, PlannerSettings
from indexer.serving.reader import MemoryReader
from indexer.serving.table import View
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
        yield MemoryReader(serving, batcher, threads)


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
