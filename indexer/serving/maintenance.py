"""What keeps a serving collection quick, small and soon loaded, behind the readers' backs.

A task a collection does one thing after another, each in a thread:

1. The tail is absorbed into the graph, a slice at a time.
2. When many rows are dead, or the tail is long, the table is built anew aside, with only its live rows. Meanwhile
   everything else goes on; then the table is swapped for the new one, which first takes over what has changed.
3. When enough has changed, a snapshot is written; and when the indexer stops.
4. Recall is probed.

What fails is logged and tried again later, ever later as long as it fails.
"""

import asyncio
import errno
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
import structlog

from indexer.serving import probe, snapshot
from indexer.serving.builder import Builder
from indexer.serving.collection import ServingCollection
from indexer.serving.graph import GraphSettings
from indexer.serving.schedule import Job, MaintenanceSettings, Renewal
from indexer.serving.table import StoppedError, Table, View

log = structlog.get_logger()

Result = TypeVar("Result")

# How often a collection that nobody writes to looks whether something is due.
_TICK_S = 1.0

# Rows that a rebuild takes over at the swap, on the event loop: some 2 ms.
_LEFT_TO_SWAP = 256

# When the indexer stops, so much less must have changed: nobody waits for the disk then.
_WORTH_SAVING_AT_END = 0.05


class Observer(Protocol):
    """Counts what was done: see ``metrics.Metrics``."""

    def rebuilt(self, ok: bool) -> None:
        """A table was built anew, or could not be."""

    def snapshot(self, result: Literal["written", "failed"]) -> None:
        """A snapshot was written, or could not be."""


class Maintenance:
    """Looks after one collection in memory.

    Attributes:
        recall: what the last probe found, 0 to 1; None: there was none yet.
    """

    def __init__(
        self,
        serving: ServingCollection,
        *,
        folder: Path,
        graph: GraphSettings,
        answer: probe.Answer,
        threads: Executor,
        builder: Builder,
        settings: MaintenanceSettings,
        observer: Observer,
    ) -> None:
        """Not running yet.

        Args:
            serving: the collection.
            folder: of its snapshots.
            graph: how its graph is made.
            answer: searches, as for everybody.
            threads: for the rest; all collections may share them.
            builder: for rebuilds; one for all collections.
            settings: when what is done.
            observer: told what was done.
        """
        self._serving = serving
        self._folder = folder
        self._graph = graph
        self._answer = answer
        self._threads = threads
        self._builder = builder
        self._settings = settings
        self._observer = observer
        self._name = serving.collection.name
        self.recall: float | None = None
        self._random = np.random.default_rng()
        # Of the view probed last; not the view itself, which would keep a table that is no more.
        self._probed: tuple[int, int] | None = None
        self._next_probe = 0.0
        # The first may follow at once: it holds what had to be read from Chroma.
        self._snapshot_ended = time.monotonic() - settings.snapshot_every_s
        self._snapshot_took = 0.0
        self._stopping = False
        self._room_wanted = False
        self._renewals: list[Renewal] = []
        self._saving_turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._rebuilding: asyncio.Task[None] | None = None
        self._saving = Job("snapshot", self._snapshot_due, self._save)
        self._rebuild = Job("rebuild", self._rebuild_due, self._build_anew)
        # Those that are rarely due come first: a tail that never ends must not hold them up.
        self._jobs = [
            self._saving,
            Job("probe", self._probe_due, self._probe),
            Job("absorb", self._tail_due, self._absorb),
        ]

    def start(self) -> None:
        """Begins, in no call's trace, though one may have it begin."""
        self._task = asyncio.create_task(self._run(), name=f"maintenance of {self._name}", context=Context())

    @property
    def clears(self) -> bool:
        """Whether dead rows are cleared away when that is asked for: not while it fails, for want of memory say."""
        return not (self._stopping or self._rebuild.failures)

    def make_room(self) -> None:
        """Has dead rows cleared away, however few."""
        self._room_wanted = True
        self._serving.changed.set()

    async def renew(self, graph: GraphSettings) -> None:
        """Builds the table anew with only the rows that are alive now; returns when it is what reads see.

        Args:
            graph: how its graph is made, from now on.

        Raises:
            StoppedError: the collection is no longer served from memory.
            Exception: it could not be built, for want of memory say; the old one is served.
        """
        if self._stopping:
            raise StoppedError
        self._renewals.append(renewal := Renewal(graph, asyncio.get_running_loop().create_future()))
        self._rebuild.not_before = 0.0
        self._serving.changed.set()
        await renewal.done

    async def forget_snapshots(self) -> None:
        """Removes what is on the disk; the next one is due as soon as one may be."""
        async with self._saving_turn:
            await self._in_thread(lambda: snapshot.remove(self._folder))
            self._serving.changed_rows = max(self._serving.changed_rows, self._serving.view.count)

    async def stop(self, *, save: bool = True) -> None:
        """Ends, once what is being done is done; a rebuild is given up.

        Args:
            save: whether the collection will be wanted again: then a snapshot is written, if enough has changed.
        """
        self._stopping = True
        self._serving.changed.set()
        if self._rebuilding is not None:
            self._rebuilding.cancel()
            await asyncio.wait([self._rebuilding])
        for renewal in self._renewals:
            renewal.fail(StoppedError())
        if self._task is not None:
            await self._task
        if save and self._serving.changed_rows > self._worth_saving() * _WORTH_SAVING_AT_END:
            await self._attempt(self._saving)

    async def _run(self) -> None:
        while not self._stopping:
            self._serving.changed.clear()
            if self._is_due(self._rebuild):
                self._rebuilding = asyncio.create_task(self._attempt(self._rebuild), name=f"rebuild of {self._name}")
                self._rebuilding.add_done_callback(lambda _: self._serving.changed.set())
            job = next(filter(self._is_due, self._jobs), None)
            if job is not None:
                await self._attempt(job)
            else:
                await self._pause()

    async def _pause(self) -> None:
        now = time.monotonic()
        waits = [job.not_before - now for job in (self._rebuild, *self._jobs) if job.not_before > now]
        try:
            async with asyncio.timeout(min([_TICK_S, *waits])):
                await self._serving.changed.wait()
        except TimeoutError:
            return

    def _is_due(self, job: Job) -> bool:
        return time.monotonic() >= job.not_before and job.due()

    async def _attempt(self, job: Job) -> None:
        try:
            await job.work()
        except Exception as error:
            # Nobody waits for it, and what is served is right without it.
            wait = min(self._settings.retry_s * 2**job.failures, self._settings.longest_retry_s)
            job.failures = min(job.failures + 1, 30)
            job.not_before = time.monotonic() + wait
            log.error("maintenance failed", job=job.name, collection=self._name, retry_in_s=wait, exc_info=error)
        else:
            job.failures = 0

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _tail_due(self) -> bool:
        # A table that is built because of the tail will hold the tail. Beside one that is built because of the dead,
        # what is written meanwhile goes into the old graph, so that searches stay quick.
        if self._is_rebuilding() and self._tail_is_long():
            return False
        rows, settings = len(self._serving.view.tail), self._settings
        at_rest = time.monotonic() - self._serving.changed_at >= settings.rest_s
        return rows > 0 and (rows >= settings.tail_rows or at_rest)

    async def _absorb(self) -> None:
        view = self._serving.view
        begin = view.graph.count - view.tail_from  # an attempt that failed may have added some
        part = view.tail[begin : begin + self._settings.slice_rows]
        if len(part):
            await self._in_thread(lambda: view.graph.add(part))
        if self._serving.view.graph is view.graph:  # and not that of a table built anew meanwhile
            self._serving.absorbed(view.graph.count)

    def _is_rebuilding(self) -> bool:
        return self._rebuilding is not None and not self._rebuilding.done()

    def _rebuild_due(self) -> bool:
        view, settings = self._serving.view, self._settings
        many_dead = view.dead_count >= max(settings.least_dead, settings.dead_share * view.count)
        for_room = self._room_wanted and view.dead_count > 0
        wanted = many_dead or for_room or self._renewals or self._tail_is_long() or not view.graph.sound
        return bool(wanted) and not self._is_rebuilding()

    def _tail_is_long(self) -> bool:
        view = self._serving.view
        return len(view.tail) > max(self._settings.long_tail, view.count / 2)

    async def _build_anew(self) -> None:
        table, since, began = self._serving.table, self._serving.view, time.monotonic()
        renewals, self._renewals = self._renewals, []
        graph = renewals[-1].graph if renewals else self._graph
        log.info(
            "index is being built anew",
            collection=self._name,
            items=since.live_count,
            dead_rows=since.dead_count,
            tail_rows=len(since.tail),
        )
        try:
            compacted = await self._builder.run(
                lambda: table.compacted(since, lambda: self._stopping, self._builder.build, graph)
            )
            # What is written meanwhile goes into the new graph as well, until so little is left that the swap takes
            # a moment.
            while len(self._serving.view.ids) - compacted.caught_up > _LEFT_TO_SWAP:
                await self._builder.run(partial(self._follow, compacted, self._serving.view))
            self._serving.replace(compacted)
            self._graph, self._room_wanted = graph, False
        except BaseException as error:
            for renewal in renewals:
                renewal.fail(error if isinstance(error, Exception) else StoppedError())
            if isinstance(error, StoppedError):
                return
            if isinstance(error, Exception):
                self._observer.rebuilt(ok=False)
            raise
        for renewal in renewals:
            renewal.succeed()
        log.info("index built anew", collection=self._name, seconds=round(time.monotonic() - began, 1))
        self._observer.rebuilt(ok=True)

    def _worth_saving(self) -> float:
        return max(self._settings.snapshot_rows, self._settings.snapshot_share * self._serving.view.count)

    def _snapshot_due(self) -> bool:
        if self._serving.changed_rows < self._worth_saving():
            return False
        # A long tail is work that the next start would have again: better wait for it, but not for ever.
        pause = max(self._settings.snapshot_every_s, self._settings.snapshot_pause * self._snapshot_took)
        turns = 1 if len(self._serving.view.tail) < self._worth_saving() else 2
        return time.monotonic() - self._snapshot_ended >= turns * pause

    async def _save(self) -> None:
        async with self._saving_turn:
            await self._write_snapshot()

    async def _write_snapshot(self) -> None:
        serving, graph, began = self._serving, self._graph, time.monotonic()
        state, changed = snapshot.Snapshot(serving.watermark, serving.table.state()), serving.changed_rows
        try:
            self._require_disk(serving.table.nbytes)
            size = await self._in_thread(lambda: snapshot.write(self._folder, serving.collection, graph, state))
        except Exception:
            self._observer.snapshot("failed")
            raise
        serving.changed_rows -= changed
        self._snapshot_ended = time.monotonic()
        self._snapshot_took = self._snapshot_ended - began
        log.info(
            "snapshot written",
            collection=self._name,
            rows=len(state.state.ids),
            megabytes=round(size / 1e6, 1),
            seconds=round(self._snapshot_took, 1),
        )
        self._observer.snapshot("written")

    def _probe_due(self) -> bool:
        return (
            self._settings.probe_s > 0
            and self._next_probe <= time.monotonic()
            and self._probed != (self._serving.view.count, self._serving.view.live_count)
        )

    def _follow(self, compacted: Table, now: View) -> None:
        compacted.catch_up(now)
        compacted.build_tail(lambda: self._stopping, self._builder.build)

    def _require_disk(self, size: int) -> None:
        """Raises OSError where a snapshot would fill the disk that Chroma needs."""
        there = next(path for path in (self._folder, *self._folder.absolute().parents) if path.exists())
        free, needed = shutil.disk_usage(there).free, size + self._settings.free_bytes
        if free < needed:
            raise OSError(errno.ENOSPC, f"{free >> 20:,} MiB are free, a snapshot needs {needed >> 20:,}", str(there))

    async def _probe(self) -> None:
        view, metric = self._serving.view, self._serving.collection.metric
        self._next_probe = time.monotonic() + self._settings.probe_s
        self.recall = await self._in_thread(lambda: probe.recall(view, metric, self._answer, self._random))
        self._probed = (view.count, view.live_count)
