import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from structlog.testing import capture_logs

from chassis import trace
from chassis.vectors import Array
from indexer.collections import Metric
from indexer.reads import Fields, Row, Search
from indexer.scoring import Scoring
from indexer.serving import probe, search, snapshot
from indexer.serving.builder import Builder
from indexer.serving.collection import ServingCollection
from indexer.serving.graph import Graph, Rows
from indexer.serving.maintenance import Maintenance
from indexer.serving.planner import Planner, PlannerSettings
from indexer.serving.schedule import MaintenanceSettings
from indexer.serving.table import Table, View
from tests.unit.indexer.serving.tables import GRAPH, MASK_BYTES, absorb, assert_same_items, collection, empty, written

NEVER = 10**9
# Nothing but the tail is looked after; each test asks for more.
QUIET = MaintenanceSettings(
    tail_rows=1,
    least_dead=NEVER,
    long_tail=NEVER,
    snapshot_rows=NEVER,
    snapshot_every_s=0,
    snapshot_pause=0,
    probe_s=0,
    retry_s=0.001,
)
PLANNER = Planner(PlannerSettings())


def answer(view: View, searches: Sequence[Search], fields: Fields) -> list[list[Row]]:
    return search.answer(view, searches, fields, PLANNER)


class Seen:
    """What maintenance says of itself; a test can wait for it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.traces: list[trace.Trace | None] = []
        self._changed = asyncio.Event()

    def rebuilt(self, ok: bool) -> None:
        self._add("rebuilt" if ok else "rebuild failed")

    def snapshot(self, result: Literal["written", "failed"]) -> None:
        self._add(f"snapshot {result}")

    async def wait_for(self, what: str, times: int = 1) -> None:
        while self.done.count(what) < times:
            self._changed.clear()
            await self._changed.wait()

    def _add(self, what: str) -> None:
        self.done.append(what)
        self.traces.append(trace.current())
        self._changed.set()


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    """Kept from the terminal, where every traceback with all its variables takes seconds."""
    with capture_logs():
        yield


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


class Watched(ServingCollection):
    """One that says when there is another view."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.moved = asyncio.Event()

    def absorbed(self, upto: int) -> None:
        super().absorbed(upto)
        self.moved.set()

    def replace(self, compacted: Table) -> None:
        super().replace(compacted)
        self.moved.set()


class Kept:
    """A collection under maintenance."""

    def __init__(self, folder: Path, threads: ThreadPoolExecutor, settings: MaintenanceSettings, table: Table) -> None:
        self.serving = Watched(collection(), table, 0)
        self.seen = Seen()
        self.folder = folder
        self.builder = Builder()
        self.maintenance = Maintenance(
            self.serving,
            folder=folder,
            graph=GRAPH,
            answer=answer,
            threads=threads,
            builder=self.builder,
            settings=settings,
            observer=self.seen,
        )

    def write(self, ids: range, seed: int = 0, deleted: Sequence[str] = ()) -> None:
        self.serving.apply(written(ids, seed), deleted, self.serving.watermark + 1)

    async def until(self, true: Callable[[View], bool]) -> View:
        """Waits for a view."""
        while not true(self.serving.view):
            self.serving.moved.clear()
            await self.serving.moved.wait()
        return self.serving.view

    def saved(self) -> Table | None:
        found = snapshot.read(self.folder, collection(), GRAPH)
        return None if found is None else Table.from_state(Metric.COSINE, GRAPH, MASK_BYTES, found.state)


@asynccontextmanager
async def kept(
    folder: Path, threads: ThreadPoolExecutor, settings: MaintenanceSettings = QUIET, table: Table | None = None
) -> AsyncIterator[Kept]:
    under = Kept(folder, threads, settings, table or empty())
    under.maintenance.start()
    yield under
    await under.maintenance.stop(save=False)
    under.builder.close()


async def test_the_tail_goes_into_the_graph(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    async with kept(tmp_path, threads, replace(QUIET, slice_rows=7)) as under:
        under.write(range(50))
        view = await under.until(lambda view: view.tail_from == 50)
        under.write(range(25, 60), seed=1)
        view = await under.until(lambda view: view.tail_from == 85)
        assert (view.graph.count, len(view.tail), view.live_count) == (85, 0, 60)
        expected = empty()
        expected.apply(written(range(50)), [])
        expected.apply(written(range(25, 60), seed=1), [])
        assert_same_items(view, expected.view)
        assert not under.saved()


async def test_it_is_in_nobody_s_trace_not_in_that_of_the_call_that_made_the_collection(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    entered = trace.enter(trace.Trace.of([]))
    async with kept(tmp_path, threads, replace(QUIET, least_dead=10, dead_share=0.3)) as under:
        trace.leave(entered)
        under.write(range(100))
        under.write(range(50), seed=1)
        await under.seen.wait_for("rebuilt")
    assert under.seen.traces == [None]


async def test_an_absorption_that_failed_half_way_goes_on_where_it_was(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, failures = Graph.add, 0

    def fail_half_way(self: Graph, vectors: Any) -> None:
        nonlocal failures
        if failures < 3:
            failures += 1
            add(self, vectors[:5])
            raise MemoryError("of a test")
        add(self, vectors)

    monkeypatch.setattr(Graph, "add", fail_half_way)
    async with kept(tmp_path, threads) as under:
        under.write(range(50))
        view = await under.until(lambda view: view.tail_from == 50)
        assert view.graph.count == 50
        expected = empty()
        expected.apply(written(range(50)), [])
        assert_same_items(view, expected.view)
    assert failures == 3


async def test_a_short_tail_waits_until_writing_rests(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    async with kept(tmp_path, threads, replace(QUIET, tail_rows=40, rest_s=NEVER)) as under:
        under.write(range(39))
        under.write(range(39, 40))
        await under.until(lambda view: view.tail_from == 40)
    async with kept(tmp_path, threads, replace(QUIET, tail_rows=NEVER, rest_s=0.0)) as under:
        under.write(range(3))
        await under.until(lambda view: view.tail_from == 3)


async def test_many_dead_rows_are_cleared_away(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    settings = replace(QUIET, least_dead=10, dead_share=0.3)
    async with kept(tmp_path, threads, settings) as under:
        under.write(range(100))
        under.write(range(20), seed=1)  # 20 of 120: too few
        await under.until(lambda view: view.tail_from == 120)
        assert under.seen.done == []
        under.write(range(0), deleted=[f"id{i}" for i in range(50, 80)])
        await under.seen.wait_for("rebuilt")
        view = under.serving.view
        assert (view.count, view.live_count, view.dead_count) == (70, 70, 0)
        assert sorted(view.ids) == sorted(under.serving.table.row_of)


async def test_a_long_tail_is_built_aside(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Graph, "add", lambda *_: pytest.fail("absorbed, while it was being built"))
    async with kept(tmp_path, threads, replace(QUIET, long_tail=20)) as under:
        under.write(range(100))
        await under.seen.wait_for("rebuilt")
        view = under.serving.view
        assert (view.tail_from, view.graph.count, len(view.tail)) == (100, 100, 0)


async def test_a_graph_that_memory_ran_out_for_is_built_anew(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, failing = Graph._append, True

    def fail(graph: Graph, vectors: Array, of: Rows) -> None:
        nonlocal failing
        if not failing or graph.count == 0:
            return append(graph, vectors, of)
        failing, graph._sound = False, False
        raise MemoryError("of a test")

    async with kept(tmp_path, threads) as under:
        under.write(range(50))
        await under.until(lambda view: view.tail_from == 50)
        monkeypatch.setattr(Graph, "_append", fail)
        under.write(range(50, 80))
        await under.seen.wait_for("rebuilt")
        view = under.serving.view
        assert (view.graph.sound, view.graph.count, view.live_count) == (True, view.tail_from, 80)
        assert sorted(view.ids[:80]) == sorted(f"id{item}" for item in range(80))


async def test_room_is_made_when_it_is_wanted(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    async with kept(tmp_path, threads) as under:
        under.write(range(50), deleted=[])
        under.write(range(0), deleted=["id7"])
        under.maintenance.make_room()
        await under.seen.wait_for("rebuilt")
        assert under.serving.view.count == 49


class Gate:
    """Holds a rebuild up, in its thread, until the test lets it go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        compacted = Table.compacted

        def held(table: Table, view: View, *more: Any) -> Table:
            done = compacted(table, view, *more)
            self.entered.set()
            assert self.opened.wait(30)
            return done

        monkeypatch.setattr(Table, "compacted", held)

    async def wait_until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 30)


def found(view: View, item: int, seed: int) -> str:
    """The id nearest to what was written of an item."""
    vector = written(range(item + 1), seed)[item].vector
    query = vector / np.linalg.norm(vector)
    ((row,),) = answer(view, [Search(query, None, 1, 0, None, Scoring.COSINE, 1)], Fields())
    return row.item.id


async def test_what_is_written_during_a_rebuild_is_kept_and_old_views_stay_right(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    expected = empty()
    async with kept(tmp_path, threads, replace(QUIET, least_dead=10)) as under:

        def write(ids: range, seed: int = 0, deleted: Sequence[str] = ()) -> None:
            under.write(ids, seed, deleted)
            expected.apply(written(ids, seed), deleted)

        write(range(100))
        write(range(50), seed=1)
        await gate.wait_until_entered()
        old = under.serving.view
        write(range(40, 60), seed=2, deleted=["id70"])  # replaced: some once more, some for the first time
        write(range(100, 130))  # added, of which some are replaced and some deleted while it goes on
        write(range(110, 115), seed=4, deleted=["id0", "id120", "unknown"])
        write(range(70, 71), seed=5)  # deleted, and written again
        await under.until(lambda view: view.tail_from == view.count)  # absorbed, beside the rebuild
        assert under.seen.done == []
        gate.opened.set()
        await under.seen.wait_for("rebuilt")
        assert_same_items(under.serving.view, expected.view)
        assert under.serving.view.ids[:3] != old.ids[:3]
        assert under.serving.table.row_of.keys() == expected.row_of.keys()
        # Who still reads the state before sees it as it was.
        assert (old.live_count, found(old, 70, 0), found(old, 3, 1)) == (100, "id70", "id3")
        assert found(under.serving.view, 0, 5) == "id70"
        write(range(125, 140), seed=6, deleted=["id1"])
        await under.until(lambda view: view.tail_from == view.count)
        assert_same_items(under.serving.view, expected.view)


def all_found(view: View, seed: int) -> list[str]:
    return [found(view, item, seed) for item in range(0, 100, 17)]


async def test_searches_are_answered_right_all_the_while(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    settings = replace(QUIET, least_dead=30, dead_share=0.1, snapshot_rows=40, slice_rows=16, long_tail=60)
    async with kept(tmp_path, threads, settings) as under:
        for round_ in range(30):
            under.write(range(100), seed=round_)
            view = under.serving.view
            there = await asyncio.to_thread(all_found, view, round_)
            assert there == [f"id{item}" for item in range(0, 100, 17)]
            assert view.live_count == 100
        await under.seen.wait_for("rebuilt")
        await under.seen.wait_for("snapshot written")


async def test_a_rebuild_that_fails_is_tried_again(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    compacted, tries = Table.compacted, 0

    def fail(table: Table, view: View, *more: Any) -> Table:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise MemoryError("of a test")
        return compacted(table, view, *more)

    monkeypatch.setattr(Table, "compacted", fail)
    async with kept(tmp_path, threads, replace(QUIET, least_dead=10)) as under:
        under.write(range(50))
        under.write(range(50), seed=1)
        await under.seen.wait_for("rebuilt")
        assert under.seen.done == ["rebuild failed", "rebuild failed", "rebuilt"]
        assert under.serving.view.count == 50


async def test_a_snapshot_is_written_when_enough_has_changed(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    async with kept(tmp_path, threads, replace(QUIET, snapshot_rows=100)) as under:
        under.write(range(60))
        await under.until(lambda view: view.tail_from == 60)
        assert not tmp_path.joinpath("00000001").exists()
        under.write(range(30, 70), seed=1)
        await under.seen.wait_for("snapshot written")
        assert under.serving.changed_rows == 0
        found = under.saved()
        assert found is not None
        assert_same_items(found.view, under.serving.view)
        assert snapshot.read(tmp_path, collection(), GRAPH).watermark == 2  # type: ignore[union-attr]


async def test_a_large_collection_waits_for_a_share_of_it_to_change(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    table = empty()
    table.apply(written(range(1000)), [])
    absorb(table, 1000)
    async with kept(tmp_path, threads, replace(QUIET, snapshot_rows=10, snapshot_share=0.2), table) as under:
        under.write(range(150))
        await under.until(lambda view: view.tail_from == 1150)
        assert under.seen.done == []
        under.write(range(150, 250))
        await under.seen.wait_for("snapshot written")


async def test_snapshots_keep_their_distance(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    async with kept(tmp_path, threads, replace(QUIET, snapshot_rows=10, snapshot_every_s=NEVER)) as under:
        under.write(range(10))
        await under.seen.wait_for("snapshot written")  # what was loaded is saved at once
        under.write(range(100))
        await under.until(lambda view: view.tail_from == view.count)
        assert under.seen.done == ["snapshot written"]
        assert under.serving.changed_rows == 100


async def test_a_full_disk_is_tried_again_and_leaves_the_old_snapshot(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(tmp_path, threads, replace(QUIET, snapshot_rows=10)) as under:
        under.write(range(20))
        await under.seen.wait_for("snapshot written")
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(full))
        under.write(range(20, 40))
        await under.seen.wait_for("snapshot failed", 3)
        found = under.saved()
        assert found is not None
        assert found.view.count == 20
        assert under.serving.changed_rows == 20
        under.write(range(40, 45))  # and all else goes on
        await under.until(lambda view: view.tail_from == view.count == 45)
        monkeypatch.undo()
        await under.seen.wait_for("snapshot written", 2)
        assert under.serving.changed_rows == 0


async def test_stopping_saves_what_has_changed(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    under = Kept(tmp_path, threads, replace(QUIET, snapshot_rows=1000), empty())
    under.maintenance.start()
    under.write(range(100))
    await under.maintenance.stop()
    found = under.saved()
    assert found is not None
    assert_same_items(found.view, under.serving.view)


@pytest.mark.parametrize(("changes", "save"), [(10, True), (100, False)])
async def test_stopping_saves_nothing_that_is_not_worth_it(
    changes: int, save: bool, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    under = Kept(tmp_path, threads, replace(QUIET, snapshot_rows=1000), empty())
    under.maintenance.start()
    under.write(range(changes))
    await under.maintenance.stop(save=save)
    assert under.saved() is None


async def test_stopping_does_not_wait_for_a_rebuild(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    under = Kept(tmp_path, threads, replace(QUIET, least_dead=10, snapshot_rows=200), empty())
    under.maintenance.start()
    under.write(range(50))
    under.write(range(50), seed=1)
    await gate.wait_until_entered()
    await under.maintenance.stop()
    gate.opened.set()
    found = under.saved()
    assert found is not None
    assert found.view.count == 100
    assert under.seen.done == ["snapshot written"]


async def test_one_that_never_ran_stops(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    await Kept(tmp_path, threads, QUIET, empty()).maintenance.stop()


async def test_recall_is_probed(tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    recall, probed = probe.recall, asyncio.Event()
    loop = asyncio.get_running_loop()

    def told(*args: Any) -> float | None:
        loop.call_soon_threadsafe(probed.set)
        return recall(*args)

    monkeypatch.setattr(probe, "recall", told)
    table = empty()
    table.apply(written(range(50)), [])
    async with kept(tmp_path, threads, replace(QUIET, probe_s=60), table) as under:
        assert under.maintenance.recall is None
        await probed.wait()
    assert under.maintenance.recall == 1.0


async def test_only_the_thread_that_builds_graphs_steps_back() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    seen: list[int] = []

    class Asked(Graph):
        def build(self, vectors: Array) -> None:
            seen.append(niceness())

    builder, graph = Builder(), Asked(4, Metric.COSINE, GRAPH)
    builder.build(graph, np.zeros((1, 4), np.float32))
    assert [await builder.run(niceness), *seen] == [niceness(), min(niceness() + 10, 19)]
    builder.close()


async def test_a_cancellation_that_comes_with_a_change_is_not_lost(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    for turns in range(10):
        under = Kept(tmp_path, threads, QUIET, empty())
        pausing = asyncio.create_task(under.maintenance._pause())
        for _ in range(5):
            await asyncio.sleep(0)
        under.serving.changed.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        if pausing.done():
            return
        pausing.cancel()
        await asyncio.wait({pausing})
        assert pausing.cancelled(), f"after {turns} turns"
    raise AssertionError("the pause did not end")
