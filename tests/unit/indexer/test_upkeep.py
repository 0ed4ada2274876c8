import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from indexer import reclaim, upkeep
from indexer.upkeep import OwnFiles, Upkeep


async def test_a_failure_that_nobody_thought_of_does_not_end_the_reclaiming_of_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chroma left a journal when it was stopped, say. A deletion meanwhile is tidied up after all the same."""
    failures = [RuntimeError("a journal is left")]
    compacted = asyncio.Event()
    loop = asyncio.get_running_loop()

    def compact(_: Path) -> None:
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
    nothing = cast(Any, None)
    tidied = Upkeep(
        jobs=nothing,
        collections=nothing,
        rebuild=nothing,
        erasure=nothing,
        serving=nothing,
        files=OwnFiles(tmp_path, nothing, pause),
        unfinished=tmp_path / "unfinished",
        waiting=lambda: 0,
        observer=nothing,
    )
    tidied.deleted()
    async with asyncio.timeout(20):
        await compacted.wait()
    await tidied.stop()
