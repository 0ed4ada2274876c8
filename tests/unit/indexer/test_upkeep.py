import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from chassis import trace
from indexer import reclaim, upkeep
from indexer.catalog import Collections
from indexer.collections import Collection
from indexer.upkeep import OwnFiles, Upkeep

NOTHING = cast(Any, None)


class Left:
    """What an earlier run left; there are no collections."""

    def __init__(self, gone: bool) -> None:
        self.dropped = asyncio.Event()
        self.asked = asyncio.Event()
        self._gone = gone
        if gone:
            self.dropped.set()

    async def left_dropped(self) -> bool:
        self.asked.set()
        await self.dropped.wait()
        return self._gone

    async def list(self, after: str, size: int) -> tuple[list[Collection], bool]:
        return [], False


def upkeep_of(folder: Path, left: Left, pause: Callable[[], AbstractAsyncContextManager[None]]) -> Upkeep:
    return Upkeep(
        jobs=NOTHING,
        collections=cast(Collections, left),
        rebuild=NOTHING,
        erasure=NOTHING,
        serving=NOTHING,
        files=OwnFiles(folder, NOTHING, pause),
        unfinished=folder / "unfinished",
        waiting=lambda: 0,
        observer=NOTHING,
    )


@pytest.mark.parametrize("gone", [True, False])
async def test_the_traces_of_a_deleted_collection_are_cleared_once_what_was_left_of_it_is_dropped(
    gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    paused = asyncio.Event()

    @asynccontextmanager
    async def pause() -> AsyncIterator[None]:
        yield
        steps.append("compacted")
        paused.set()

    monkeypatch.setattr(upkeep, "_DEBOUNCE_S", 0.0)
    monkeypatch.setattr(reclaim, "remove_orphans", lambda _: None)
    monkeypatch.setattr(reclaim, "worth_compacting", lambda _: True)
    monkeypatch.setattr(reclaim, "compact", lambda _: None)
    unfinished = tmp_path / "unfinished" / "uid of one that was deleted"
    unfinished.parent.mkdir()
    unfinished.write_text("erasure")
    left = Left(gone)
    left.dropped.clear()
    tidied = upkeep_of(tmp_path, left, pause)
    await tidied.resume()
    await left.asked.wait()
    assert steps == []
    left.dropped.set()
    await paused.wait()
    assert tidied._tidying is not None
    await tidied._tidying
    assert unfinished.exists() is not gone, "the next start clears what could not be dropped"
    await tidied.stop()


async def test_a_failure_that_nobody_thought_of_does_not_end_the_reclaiming_of_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chroma left a journal when it was stopped, say. A deletion meanwhile is tidied up after all the same.

    Nor is it in the trace of the call that deleted first.
    """
    traces: list[trace.Trace | None] = []
    failures = [RuntimeError("a journal is left")]
    compacted = asyncio.Event()
    loop = asyncio.get_running_loop()

    def compact(_: Path) -> None:
        traces.append(trace.current())
        if failures:
            loop.call_soon_threadsafe(tidied.deleted)
            raise failures.pop()
        loop.call_soon_threadsafe(compacted.set)

    @asynccontextmanager
    async def pause() -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(upkeep, "_DEBOUNCE_S", 0.01)
    monkeypatch.setattr(reclaim, "remove_orphans", lambda _: None)
    monkeypatch.setattr(reclaim, "worth_compacting", lambda _: True)
    monkeypatch.setattr(reclaim, "compact", compact)
    tidied = upkeep_of(tmp_path, Left(gone=True), pause)
    entered = trace.enter(trace.Trace.of([]))
    tidied.deleted()
    trace.leave(entered)
    async with asyncio.timeout(20):
        await compacted.wait()
    await tidied.stop()
    assert traces == [None, None]
