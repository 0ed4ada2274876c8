import asyncio
from pathlib import Path

import psutil
import pytest

from chassis.errors import LikenessError
from indexer.chroma_server import LocalChroma


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
