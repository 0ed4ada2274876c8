import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer import chroma_server
from indexer.chroma_server import LocalChroma
from indexer.store import ChromaStore

# In place of Chroma's command: one that ends, and one that never answers.
ENDING = [sys.executable, "-c", "raise SystemExit(3)"]
DUMB = [sys.executable, "-c", "import signal; signal.pause()"]


class Watched:
    """A Chroma of our own, a store that asks it, and what is told of it."""

    def __init__(self, folder: Path, start_s: float = 60) -> None:
        self.folder = folder
        self.store = ChromaStore({}, 30)
        self.ups: asyncio.Queue[str] = asyncio.Queue()
        self.downs: asyncio.Queue[str] = asyncio.Queue()
        self.failures: list[Exception] = []
        self.chroma = LocalChroma(folder, start_s, self._up, self._down)

    async def _up(self, url: str) -> None:
        await self.store.connect(url)
        await self.ups.put(url)

    async def _down(self, why: str) -> None:
        self.store.disconnect()
        await self.downs.put(why)
        if self.failures:
            raise self.failures.pop()

    @property
    def process(self) -> psutil.Process:
        (found,) = [each for each in psutil.Process().children() if str(self.folder) in " ".join(each.cmdline())]
        return found

    async def compact(self) -> None:
        """As the indexer has it: see ``service``."""
        async with self.store.quiet(), self.chroma.paused():
            raise AssertionError("it was let at the files")


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    made = Watched(tmp_path)
    await made.chroma.start()
    await made.ups.get()
    yield made
    async with asyncio.timeout(20):
        await made.chroma.stop()


def launches(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> asyncio.Queue[None]:
    """Has something else started in Chroma's place from now on; tells of each start."""
    begun: asyncio.Queue[None] = asyncio.Queue()

    def other(*_: object) -> list[str]:
        begun.put_nowait(None)
        return command

    monkeypatch.setattr(chroma_server, "command", other)
    return begun


async def test_a_chroma_that_hangs_is_killed_and_started_anew(tmp_path: Path) -> None:
    urls: asyncio.Queue[str] = asyncio.Queue()
    reasons: asyncio.Queue[str] = asyncio.Queue()
    chroma = LocalChroma(tmp_path, 60, urls.put, reasons.put, silent_s=3.0)
    await chroma.start()
    try:
        async with asyncio.timeout(90):
            before = await urls.get()
            (hung,) = [each for each in psutil.Process().children() if str(tmp_path) in " ".join(each.cmdline())]
            hung.suspend()
            assert "has not answered for 3 s" in await reasons.get()
            assert await urls.get() != before
        assert not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE
    finally:
        await chroma.stop()


async def test_chroma_is_not_started_over_files_that_cannot_be_looked_through(tmp_path: Path) -> None:
    (tmp_path / "chroma").mkdir()
    (tmp_path / "chroma" / "chroma.sqlite3").write_bytes(b"no database" * 100)

    async def never(_: str) -> None:
        raise AssertionError("it was started")

    chroma = LocalChroma(tmp_path, 60, never, never)
    try:
        with pytest.raises(LikenessError, match=r"so that nothing is made worse: .* exit code 1: .*not a database"):
            await chroma.start()
    finally:
        await chroma.stop()


@pytest.mark.parametrize("command", [ENDING, DUMB], ids=["it does not start", "it does not answer"])
async def test_nobody_waits_for_the_files_of_a_chroma_that_is_away(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """Nor for Chroma itself: what is asked of it meanwhile fails at once, and so does what waited for the gate."""
    begun = launches(monkeypatch, command)
    watched.process.kill()
    async with asyncio.timeout(60):
        await begun.get()
        if command is ENDING:  # and is tried again
            await begun.get()
    for _ in range(3):
        async with asyncio.timeout(5):
            with pytest.raises(LikenessError, match="Chroma is away, so its files cannot be worked on"):
                await watched.compact()
            with pytest.raises(LikenessError) as caught:
                await watched.store.collections()
        assert caught.value.reason == error_pb2.REASON_STORE_UNAVAILABLE


async def test_chroma_comes_back_after_its_files_were_asked_for_in_vain(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        begun = launches(patch, ENDING)
        watched.process.kill()
        async with asyncio.timeout(60):
            await begun.get()
            with pytest.raises(LikenessError):
                await watched.compact()
    async with asyncio.timeout(60):
        await watched.ups.get()
        assert await watched.store.collections() == []
        async with watched.store.quiet(), watched.chroma.paused():
            pass
        assert await watched.store.collections() == []


async def test_a_chroma_that_does_not_answer_after_its_files_were_worked_on_does_not_hold_up_a_stop(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chroma_server, "STOP_S", 1.0)

    async def work() -> None:
        async with watched.chroma.paused():
            begun = launches(monkeypatch, DUMB)
            begins.set_result(begun)

    begins: asyncio.Future[asyncio.Queue[None]] = asyncio.get_running_loop().create_future()
    working = asyncio.create_task(work())
    async with asyncio.timeout(60):
        await (await begins).get()
    watched.chroma.hurry()
    async with asyncio.timeout(20):
        with pytest.raises(LikenessError, match="it gave no answer in 1 s"):
            await working


async def test_whoever_cannot_be_told_that_chroma_is_away_does_not_keep_it_away(watched: Watched) -> None:
    watched.failures.append(RuntimeError("as the test wants it"))
    watched.process.kill()
    async with asyncio.timeout(60):
        await watched.downs.get()
        await watched.ups.get()


async def test_chroma_is_looked_after_although_a_look_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file may be opened for a connection, say."""
    failures = [OSError("too many open files")]
    client = httpx.AsyncClient

    def scarce(*arguments: Any, **named: Any) -> Any:
        if failures and named.get("timeout") != 1.0:  # that of the start
            raise failures.pop()
        return client(*arguments, **named)

    monkeypatch.setattr(chroma_server, "LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(httpx, "AsyncClient", scarce)
    watched = Watched(tmp_path)
    monkeypatch.setattr(watched.store, "connect", watched.downs.put)
    await watched.chroma.start()
    try:
        async with asyncio.timeout(60):
            await watched.ups.get()
            watched.process.kill()
            await watched.ups.get()
        assert failures == []
    finally:
        await watched.chroma.stop()


class Ending:
    """A process that ends when it is told to, or when the test says so."""

    returncode: int | None = None
    pid = 0

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def terminate(self) -> None:
        self.returncode = 0

    async def wait(self) -> int:
        await self.ended.wait()
        return 0


async def test_a_cancellation_that_comes_with_the_end_of_chroma_is_not_lost(tmp_path: Path) -> None:
    for turns in range(10):
        chroma, process = LocalChroma(tmp_path, 60, asyncio.Queue[str]().put, asyncio.Queue[str]().put), Ending()
        chroma._process = cast(Any, process)
        ending = asyncio.create_task(chroma._end())
        for _ in range(5):
            await asyncio.sleep(0)
        process.ended.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        if ending.done():
            return
        ending.cancel()
        await asyncio.wait({ending})
        assert ending.cancelled(), f"after {turns} turns"
    raise AssertionError("it did not end")
