import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from likeness.common.v1 import error_pb2
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from chassis.errors import LikenessError
from indexer import patience
from indexer.collections import Collection, Fingerprint, Metric
from indexer.metrics import Metrics
from indexer.reads import Reader
from indexer.registry import Registry
from indexer.served import estimate
from indexer.serving import snapshot
from indexer.serving.builder import Builder
from indexer.serving.snapshot import Snapshot
from indexer.serving.table import Table
from indexer.settings import IndexerSettings, Reads
from indexer.status import Mode
from indexer.store import ChromaStore
from indexer.writes import StoredRecord, Written
from tests.unit.indexer.serving.tables import GRAPH, MASK_BYTES, absorb, collection, vectors
from tests.unit.indexer.serving.test_loader import Kept, save


def staged(name: str) -> Collection:
    return Collection(name, name, Fingerprint("m", "d" * 64, 256), Metric.L2, datetime.now(UTC), uid=f"uid of {name}")


async def nothing(_: Collection) -> None:
    pass


async def test_collections_that_are_made_at_once_do_not_pass_the_budget_together(tmp_path: Path) -> None:
    settings, metrics = IndexerSettings(reads=Reads.MEMORY, memory_budget_mb=64), Metrics(CollectorRegistry())
    registry = Registry(settings, cast(ChromaStore, None), cast(Reader, None), metrics, tmp_path, nothing)
    first, second = staged("first"), staged("second")
    two_thirds = 2 * settings.memory_budget_bytes // (3 * estimate(first))
    assert registry.stage(first, two_thirds) is not None
    with pytest.raises(LikenessError) as caught:
        registry.stage(second, two_thirds)
    assert caught.value.reason == error_pb2.REASON_MEMORY_FULL
    registry.deleted(first.uid)  # it failed
    serving = registry.stage(second, two_thirds)
    assert serving is not None
    registry.complete(second, serving)
    assert registry.stage(first, two_thirds) is not None, "what is complete counts as what it takes: nothing, empty"
    await registry.stop()


# Dead rows


class Seen(Metrics):
    """Says when a table was built anew, or could not be."""

    def __init__(self) -> None:
        super().__init__(CollectorRegistry())
        self.done = asyncio.Event()

    def rebuilt(self, ok: bool) -> None:
        super().rebuilt(ok)
        self.done.set()


class Chroma(Kept):
    """What there is in it."""

    connected = True

    async def count(self, collection: Collection) -> int:
        return len(self.records)

    @property
    def read_ids(self) -> int:
        return sum(map(len, self.asked))


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
async def registry(seen: Seen, tmp_path: Path) -> AsyncIterator[Registry]:
    """Of 1 MiB."""
    settings = IndexerSettings(memory_budget_mb=1, recall_probe_s=0)
    made = Registry(settings, cast(ChromaStore, Chroma()), cast(Reader, None), seen, tmp_path, nothing)
    yield made
    await made.stop()


def write(registry: Registry, collection: Collection, ids: range) -> None:
    serving = registry.serving(collection.uid)
    assert serving is not None
    items = zip(ids, vectors(len(ids), dimension=collection.fingerprint.dimension), strict=True)
    serving.apply([Written.of(f"id{i}", vector, {}) for i, vector in items], [], serving.watermark + 1)


def filled(registry: Registry, name: str, live: int, dead: int = 0) -> Collection:
    made = staged(name)
    registry.created(made)
    write(registry, made, range(live))
    for begin in range(0, dead, live):
        write(registry, made, range(min(live, dead - begin)))
    return made


def refusal(registry: Registry, collection: Collection, items: int) -> LikenessError | None:
    try:
        registry.admit(collection, items)
    except LikenessError as error:
        return error
    return None


def modes(registry: Registry) -> dict[str, Mode]:
    return {each.name: each.mode for each in registry.status().collections}


async def test_dead_rows_are_cleared_away_and_no_collection_leaves_memory_for_them(
    registry: Registry, seen: Seen
) -> None:
    col = filled(registry, "col", 300)
    refused = 0
    for _ in range(40):
        if (error := refusal(registry, col, 64)) is not None:
            refused += 1
            assert (error.reason, error.retry_after_s) == (error_pb2.REASON_OVERLOADED, 1.0)
            assert registry.status().memory_bytes < 9 * 2**20 // 8
            seen.done.clear()
            await seen.done.wait()
            registry.admit(col, 64)
        write(registry, col, range(64))
    assert modes(registry) == {"col": Mode.MEMORY}
    assert 0 < refused < 20


async def test_what_is_in_memory_and_fits_when_dead_rows_are_cleared_is_written_to_meanwhile(
    registry: Registry, seen: Seen
) -> None:
    col, other = filled(registry, "col", 300, dead=550), filled(registry, "other", 2)
    assert registry.status().memory_bytes > 2**20
    registry.admit(other, 2)
    await seen.done.wait()
    assert registry.status().memory_bytes < 2**20
    assert registry.status_of(col).dead_rows == 0


async def test_where_dead_rows_cannot_be_cleared_the_largest_leaves_memory(
    registry: Registry, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Builder, "run", fail)
    col, other = filled(registry, "col", 300, dead=550), filled(registry, "other", 2)
    registry.admit(other, 2)
    assert modes(registry) == {"col": Mode.MEMORY, "other": Mode.MEMORY}
    with capture_logs():
        await seen.done.wait()
    registry.admit(other, 2)
    assert modes(registry) == {"col": Mode.CHROMA, "other": Mode.MEMORY}
    assert "does not fit" in registry.status_of(col).reason


async def test_what_does_not_fit_alive_leaves_memory_and_that_is_the_one_with_most_alive(registry: Registry) -> None:
    small = filled(registry, "small", 100, dead=400)
    filled(registry, "large", 400)
    registry.admit(small, 300)
    assert modes(registry) == {"small": Mode.MEMORY, "large": Mode.CHROMA}


async def test_a_reader_that_is_over_the_budget_clears_dead_rows_away_first(registry: Registry, seen: Seen) -> None:
    async def told(_: Collection) -> int:
        return 0

    registry.told = told
    col = filled(registry, "col", 300, dead=550)
    registry.keep_in_budget()
    await seen.done.wait()
    assert modes(registry) == {"col": Mode.MEMORY}
    assert registry.status().memory_bytes < 2**20
    for _ in range(20):  # nothing can be refused here
        write(registry, col, range(64))
    registry.keep_in_budget()
    assert modes(registry) == {"col": Mode.CHROMA}


async def test_what_is_restored_fits_where_dead_rows_can_be_cleared_away(registry: Registry, seen: Seen) -> None:
    filled(registry, "col", 100, dead=600)
    more = staged("more")
    assert registry.stage(more, 300) is not None
    await seen.done.wait()
    assert registry.stage(staged("another"), 300) is None


# Loading


COLLECTION = collection()


def served_by(store: Chroma, seen: Seen, folder: Path, mb: int = 1) -> Registry:
    settings = IndexerSettings(memory_budget_mb=mb, recall_probe_s=0, graph_neighbors=8, ef_construction=40)
    return Registry(settings, cast(ChromaStore, store), cast(Reader, None), seen, folder, nothing)


def large(store: Chroma, count: int) -> None:
    for i, vector in enumerate(vectors(count)):
        store.put(f"id{i}", vector, {"text": f"{i}" * 2000})


async def test_a_load_ends_when_what_it_has_read_does_not_fit(seen: Seen, tmp_path: Path) -> None:
    store = Chroma()
    large(store, 1000)
    assert 1000 * estimate(COLLECTION) < 2**20
    registry = served_by(store, seen, tmp_path)
    await registry.load([COLLECTION])
    status = registry.status_of(COLLECTION)
    assert (status.mode, "does not fit" in status.reason) == (Mode.CHROMA, True)
    assert store.read_ids < 1000
    await registry.stop()


async def test_a_snapshot_that_does_not_fit_is_not_read(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Chroma()
    large(store, 1000)
    await save(store, tmp_path / COLLECTION.uid)
    store.asked.clear()
    monkeypatch.setattr(snapshot, "read", None)
    registry = served_by(store, seen, tmp_path)
    await registry.load([COLLECTION])
    status = registry.status_of(COLLECTION)
    assert (status.mode, "does not fit" in status.reason) == (Mode.CHROMA, True)
    assert store.asked == []
    await registry.stop()


async def test_a_snapshot_of_much_that_is_gone_keeps_no_collection_out_of_memory(seen: Seen, tmp_path: Path) -> None:
    store = Chroma()
    large(store, 1000)
    await save(store, tmp_path / COLLECTION.uid)
    for i in range(20, 1000):
        del store.records[f"id{i}"]
    registry = served_by(store, seen, tmp_path)
    await registry.load([COLLECTION])
    assert registry.status_of(COLLECTION).mode is Mode.MEMORY
    await registry.stop()


async def test_the_dead_rows_of_a_snapshot_are_cleared_away(seen: Seen, tmp_path: Path) -> None:
    store = Chroma()
    wide = collection(dimension=256)
    for i, vector in enumerate(vectors(300, dimension=256)):
        store.put(f"id{i}", vector, {})
    table = Table(256, wide.metric, GRAPH, MASK_BYTES)
    for others in vectors(600, seed=1, dimension=256).reshape(30, 20, 256):
        table.apply([Written.of(f"id{i}", vector, {}) for i, vector in enumerate(others, 100)], [])
    table.apply([record.written() for record in store.records.values()], [])
    assert table.nbytes > 1.05 * 2**20
    absorb(table, table.view.count)
    snapshot.write(tmp_path / wide.uid, wide, GRAPH, Snapshot(store.stamp, table.state()))
    registry = served_by(store, seen, tmp_path)
    await registry.load([wide])
    assert registry.status_of(wide).mode is Mode.MEMORY
    await seen.done.wait()
    assert registry.status_of(wide).dead_rows == 0
    await registry.stop()


async def test_room_for_what_is_to_come_keeps_no_collection_out_of_memory(seen: Seen, tmp_path: Path) -> None:
    store = Chroma()
    wide = collection(dimension=2048)
    for i, vector in enumerate(vectors(800, dimension=2048)):
        store.put(f"id{i}", vector, {})
    assert 800 * estimate(wide) < 8 * 2**20
    registry = served_by(store, seen, tmp_path, mb=8)
    await registry.load([wide])
    assert registry.status_of(wide).mode is Mode.MEMORY
    await registry.stop()


# What Chroma cannot read


class Unreadable(Chroma):
    """Fails at one thing, of one collection."""

    def __init__(self, name: str, at: str) -> None:
        super().__init__()
        self.name, self.at = name, at

    def _check(self, collection: Collection, doing: str) -> None:
        if (collection.name, doing) == (self.name, self.at):
            raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, f"Chroma failed ({doing}): Error finding id")

    async def count(self, collection: Collection) -> int:
        self._check(collection, "count")
        return await super().count(collection)

    async def ids(self, collection: Collection) -> list[str]:
        self._check(collection, "ids")
        return await super().ids(collection)

    async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
        self._check(collection, "read")
        return await super().read(collection, ids)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_TRY_AGAIN_S", 0.0)


# Long enough for a machine that is busy; what is not given up would take for ever.
_SOON_S = 30.0


@pytest.mark.parametrize("at", ["count", "ids", "read"])
@pytest.mark.usefixtures("no_pauses")
async def test_a_collection_that_chroma_cannot_read_keeps_no_other_out_of_memory(
    seen: Seen, tmp_path: Path, at: str
) -> None:
    store, broken = Unreadable("broken", at), replace(COLLECTION, name="broken", uid="broken")
    large(store, 20)
    registry = served_by(store, seen, tmp_path)
    with capture_logs():
        async with asyncio.timeout(_SOON_S):
            await registry.load([broken, COLLECTION])
    assert modes(registry) == {"broken": Mode.CHROMA, COLLECTION.name: Mode.MEMORY}
    why = f"it could not be loaded (STORE_UNAVAILABLE: Chroma failed ({at}): Error finding id)"
    assert registry.status_of(broken).reason == why
    assert registry.needs_store
    await registry.stop()


@pytest.mark.parametrize("at", ["count", "read"])
@pytest.mark.usefixtures("no_pauses")
async def test_a_reader_leaves_a_new_collection_to_chroma_that_chroma_cannot_read(
    seen: Seen, tmp_path: Path, at: str
) -> None:
    store = Unreadable(COLLECTION.name, at)
    large(store, 20)
    registry = served_by(store, seen, tmp_path)
    with capture_logs():
        async with asyncio.timeout(_SOON_S):
            await registry.add(COLLECTION)
    assert modes(registry) == {COLLECTION.name: Mode.CHROMA}
    await registry.stop()


@pytest.mark.usefixtures("no_pauses")
async def test_with_all_reads_from_chroma_nothing_is_read_at_the_start(seen: Seen, tmp_path: Path) -> None:
    settings = IndexerSettings(reads=Reads.CHROMA)
    store = Unreadable(COLLECTION.name, "count")
    registry = Registry(settings, cast(ChromaStore, store), cast(Reader, None), seen, tmp_path, nothing)
    async with asyncio.timeout(_SOON_S):
        await registry.load([COLLECTION])
    status = registry.status_of(COLLECTION)
    assert (status.mode, status.reason) == (Mode.CHROMA, "LIKENESS_READS is chroma")
    await registry.stop()
