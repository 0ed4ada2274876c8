"""Reading a collection in order, from memory and from Chroma."""

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.vectors import Array
from indexer import scan
from indexer.chroma_reader import ChromaReader
from indexer.collections import Collection, Metric
from indexer.commit import Committer
from indexer.filters import Comparison, Kind, Op
from indexer.reads import Fields, Item, Reader
from indexer.scan import Batch
from indexer.serving import search
from indexer.serving.batcher import Batcher
from indexer.serving.collection import ServingCollection
from indexer.serving.planner import Planner, PlannerSettings
from indexer.serving.reader import MemoryReader
from indexer.serving.reading import ReadThreads
from indexer.serving.table import View
from indexer.surroundings import Surroundings
from indexer.turnstile import Turnstile
from indexer.writes import Written
from tests.unit.indexer.conftest import Connected
from tests.unit.indexer.serving.tables import DIMENSION, collection, filled, items

EVERYTHING = Fields(metadata=True, vector=True)
NARROW = Comparison("width", Op.LT, Kind.NUMBER, (100,))


@pytest.fixture
def serving() -> ServingCollection:
    return ServingCollection(collection(), filled(), 0)


@pytest.fixture
def reader(serving: ServingCollection) -> Iterator[MemoryReader]:
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


async def read(
    of: Reader, where: Comparison | None = None, after: str = "", fields: Fields = EVERYTHING
) -> list[Batch]:
    begun = await of.scan(collection(), where, after, fields)
    return [batch async for batch in begun.batches]


async def test_every_live_row_comes_once_in_order(reader: MemoryReader, serving: ServingCollection) -> None:
    alive = items(serving.view)
    (batch,) = await read(reader)
    assert batch.ids == sorted(alive)
    assert batch.packed == [alive[item_id][0] for item_id in batch.ids]
    found = batch.originals()
    assert found is not None
    assert np.array_equal(found, np.stack([alive[item_id][2] for item_id in batch.ids]))


async def test_directions_and_lengths_are_those_that_are_searched(
    reader: MemoryReader, serving: ServingCollection
) -> None:
    (batch,) = await read(reader)
    view, rows = serving.view, np.array([serving.table.row_of[item_id] for item_id in batch.ids])
    assert batch.vectors is not None
    assert batch.lengths is not None
    assert view.lengths is not None
    assert np.array_equal(batch.vectors, view.vectors(rows))
    assert np.array_equal(batch.lengths, view.lengths[rows])


async def test_a_scan_leaves_out_what_was_not_asked_for(reader: MemoryReader, serving: ServingCollection) -> None:
    (batch,) = await read(reader, NARROW, "id20", Fields())
    labels = serving.metadata(list(items(serving.view)))
    narrow = [i for i, plain in labels.items() if isinstance(w := plain.get("width"), int) and w < 100 and i > "id20"]
    assert batch.ids == sorted(narrow)
    assert (batch.vectors, batch.lengths, batch.packed) == (None, None, None)
    begun = await reader.scan(collection(), NARROW, "id20", Fields())
    assert begun.total == len(narrow)


async def test_a_scan_shows_the_state_it_began_with(
    reader: MemoryReader, serving: ServingCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "MOST_ITEMS", 3)
    before = items(serving.view)
    begun = await reader.scan(collection(), None, "", EVERYTHING)
    async with aclosing(begun.batches) as batches:
        found = [await anext(batches)]
        ones = np.ones(DIMENSION, np.float32)
        serving.apply([Written.of("id3", ones, {}), Written.of("new", ones, {})], ["id5"], 1)
        serving.table.absorbed(serving.view.graph.count)
        found += [batch async for batch in batches]
    assert all(len(batch.ids) <= 3 for batch in found)
    packed = {i: p for batch in found for i, p in zip(batch.ids, batch.packed or [], strict=True)}
    assert packed == {item_id: stored[0] for item_id, stored in before.items()}
    originals = np.concatenate([array for batch in found if (array := batch.originals()) is not None])
    assert np.array_equal(originals, np.stack([before[i][2] for i in sorted(before)]))


async def test_batches_keep_within_their_bytes(reader: MemoryReader, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = await read(reader)
    monkeypatch.setattr(scan, "BATCH_BYTES", 400)
    found = await read(reader)
    assert [item_id for batch in found for item_id in batch.ids] == whole.ids
    assert len(found) > 3
    for batch in found:
        assert batch.packed is not None
        size = sum(len(p) + 4 * DIMENSION + len(i) for i, p in zip(batch.ids, batch.packed, strict=True))
        assert size <= 400 or len(batch.ids) == 1


async def test_a_scan_that_is_given_up_holds_nothing(reader: MemoryReader, serving: ServingCollection) -> None:
    begun = await reader.scan(collection(), None, "", EVERYTHING)
    view = weakref.ref(serving.view.graph)
    async with aclosing(begun.batches) as batches:
        await anext(batches)
        serving.table = filled()
        gc.collect()
        assert view() is not None
    del begun, batches
    gc.collect()
    assert view() is None


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), unique=True), st.text(max_size=2))
def test_ids_are_put_in_order_behind_one(ids: list[str], after: str) -> None:
    assert scan.ascending(ids, after) == [item_id for item_id in sorted(ids) if item_id > after]


class FromChroma:
    """A collection in Chroma."""

    def __init__(self, connected: Connected) -> None:
        self.connected = connected
        rng = np.random.default_rng(1)
        self.items = [Item(f"i{n:03}é", vector(rng), {"width": n, "text": "x" * 500}) for n in range(600)]
        self.collection: Collection = connected.collection("scanned", Metric.L2, DIMENSION)
        connected.upsert(self.collection, *self.items)
        self.reader = ChromaReader(connected.store, Turnstile(1, 0, "A_SETTING"))


def vector(rng: np.random.Generator) -> Array:
    found: Array = rng.normal(size=DIMENSION).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def chroma(connected: Connected) -> FromChroma:
    return FromChroma(connected)


def test_chroma_gives_the_same_in_the_same_order(chroma: FromChroma) -> None:
    async def scanned(after: str, where: Comparison | None) -> tuple[int, list[Batch]]:
        begun = await chroma.reader.scan(chroma.collection, where, after, EVERYTHING)
        return begun.total, [batch async for batch in begun.batches]

    total, batches = chroma.connected.loop.run(scanned("", None))
    assert total == 600
    assert [item_id for batch in batches for item_id in batch.ids] == [item.id for item in chroma.items]
    for batch, begin in zip(batches, (0, 250, 500), strict=True):
        originals = batch.originals()
        assert originals is not None
        assert np.array_equal(originals, np.stack([i.vector for i in chroma.items[begin : begin + len(batch.ids)]]))
    total, batches = chroma.connected.loop.run(scanned("i050é", NARROW))
    assert total == 0
    assert [item_id for batch in batches for item_id in batch.ids] == [item.id for item in chroma.items[51:100]]


def test_what_no_longer_passes_the_filter_is_left_out(chroma: FromChroma) -> None:
    async def scanned() -> list[str]:
        begun = await chroma.reader.scan(chroma.collection, NARROW, "", Fields())
        changed = Item("i010é", chroma.items[10].vector, {"width": 1000})
        await chroma_write(chroma, changed)
        return [item_id for batch in [b async for b in begun.batches] for item_id in batch.ids]

    found = chroma.connected.loop.run(scanned())
    chroma.connected.loop.run(chroma_write(chroma, chroma.items[10]))
    assert found == [item.id for item in chroma.items[:100] if item.id != "i010é"]


async def chroma_write(chroma: FromChroma, item: Item) -> None:
    await Committer(chroma.collection, chroma.connected.store, Surroundings()).upsert([item])
