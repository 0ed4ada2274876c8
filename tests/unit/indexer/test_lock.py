import asyncio
import os
import sys
from pathlib import Path

import pytest

from chassis.errors import LikenessError
from indexer.lock import DirectoryLock


async def test_a_second_holder_is_refused_with_the_directory_and_the_first_ones_id(tmp_path: Path) -> None:
    first, second = DirectoryLock(tmp_path / "data"), DirectoryLock(tmp_path / "data")
    await first.acquire(0)
    first.name_holders(chroma_pid=4711)
    with pytest.raises(LikenessError) as caught:
        await second.acquire(0.05)
    assert str(tmp_path / "data") in caught.value.message
    assert f"indexer {os.getpid()}, chroma 4711" in caught.value.message
    first.release()


async def test_one_who_waits_gets_it_when_it_is_released(tmp_path: Path) -> None:
    first, second = DirectoryLock(tmp_path), DirectoryLock(tmp_path)
    await first.acquire(0)
    waiting = asyncio.create_task(second.acquire(30))
    await asyncio.sleep(0)
    first.release()
    await waiting
    second.release()
    second.release()


async def test_a_child_that_inherited_it_keeps_it_after_its_parent_let_go(tmp_path: Path) -> None:
    first, second = DirectoryLock(tmp_path), DirectoryLock(tmp_path)
    await first.acquire(0)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import sys; sys.stdin.read()", stdin=asyncio.subprocess.PIPE, pass_fds=[first.fileno]
    )
    first.release()
    with pytest.raises(LikenessError):
        await second.acquire(0.05)
    await child.communicate(b"")
    await second.acquire(10)
    second.release()


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LikenessError, match="LIKENESS_DATA_DIR"):
        await DirectoryLock(tmp_path / "file" / "data").acquire(0)
