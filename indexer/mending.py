"""Has Chroma's files looked through before it is started (``mend``)."""

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.mend import DAMAGED

log = structlog.get_logger()

_MEND = f"import sys; sys.path[:] = {sys.path!r}; from indexer.mend import main; sys.exit(main())"

Spawn = Callable[[list[str]], Awaitable[asyncio.subprocess.Process]]


class DamagedIndexError(LikenessError):
    """An index cannot be mended: trying again is of no use."""

    def __init__(self, message: str) -> None:
        super().__init__(error_pb2.REASON_STORE_UNAVAILABLE, message)


async def mended(spawn: Spawn, directory: Path, copies: Path) -> None:
    """Returns when all indexes can be opened. In a process of its own: to read a million names takes Python's lock.

    Args:
        spawn: starts a command whose output is a pipe.
        directory: Chroma's own.
        copies: where copies of the names are kept.

    Raises:
        DamagedIndexError: one cannot be.
        LikenessError: STORE_UNAVAILABLE: it is not known.
    """
    process = await spawn([sys.executable, "-I", "-c", _MEND, str(directory), str(copies)])
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    other, why = [""], ""
    for line in output.decode(errors="replace").splitlines():
        try:
            told = json.loads(line)
            level = logging.getLevelNamesMapping()[told.pop("level").upper()]
            log.log(level, told.pop("event"), **told)
        except (ValueError, LookupError, TypeError, AttributeError):
            other.append(line)
        else:
            why = told.get("why", "")
    message = f"Chroma is not started over {directory}, so that nothing is made worse: "
    if process.returncode == DAMAGED:
        raise DamagedIndexError(f"{message}{why}; restore a backup into a new data directory")
    if process.returncode:
        log.error("Chroma's files were not looked through", output=other)
        message += f"looking through its files ended with {cause(process.returncode)}: {other[-1]}"
        raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, message)


def cause(code: int | None) -> str:
    """What a process ended with, in words."""
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
