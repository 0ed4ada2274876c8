"""``python -m indexer.chroma_process --path DIRECTORY``: a Chroma server whose files are looked through before.

For a Chroma that no indexer starts, such as one in a container of its own: what a kill has torn is mended first (see
``mend``), as the indexer does it for its own. Then this process becomes Chroma's.
"""

import argparse
import asyncio
import os
import sqlite3
import sys
from pathlib import Path

import structlog

from chassis.errors import LikenessError
from indexer.lock import DirectoryLock
from indexer.mend import look_through
from indexer.reclaim import COPIES, remove_orphans

log = structlog.get_logger()

# What the command ``chroma`` does in the end. It imports chromadb's client before, which took 4 of the 5 seconds of a
# start.
_CHROMA = "import sys, chromadb_rust_bindings as chroma; chroma.cli(['chroma', *sys.argv[1:]])"
_PATIENCE_S = 5.0
# At its own level Chroma writes 1.5 kB for every request.
QUIET = {"ANONYMIZED_TELEMETRY": "False", "RUST_LOG": "warn"}


def command(directory: Path, host: str, port: int) -> list[str]:
    """Runs Chroma's server.

    Args:
        directory: where it keeps its files.
        host: where it listens.
        port: likewise.
    """
    told = ["--path", str(directory), "--host", host, "--port", str(port)]
    return [sys.executable, "-I", "-c", _CHROMA, "run", *told]


def main() -> int:
    """Becomes Chroma; returns ``mend.DAMAGED`` if trying again is of no use, and 1 if it may be."""
    told = _told()
    directory = told.path.absolute()
    copies = (told.names or directory.parent / COPIES).absolute()
    structlog.configure(processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()])
    lock = DirectoryLock(directory)
    code = _prepare(lock, directory, copies)
    if not code:
        lock.name_holders(os.getpid())
        os.set_inheritable(lock.fileno, True)
        sys.stdout.flush()
        run = command(directory, told.host, told.port)
        os.execve(run[0], run, QUIET | os.environ)  # noqa: S606 (no shell is wanted)
    return code


def _prepare(lock: DirectoryLock, directory: Path, copies: Path) -> int:
    """Takes the lock and looks through the files; 0 if Chroma may be started over them."""
    try:
        asyncio.run(lock.acquire(_PATIENCE_S))
        if code := look_through(directory, copies):
            return code
        remove_orphans(directory)
    except LikenessError as error:
        log.error("Chroma is not started", why=error.message)
        return 1
    except (OSError, sqlite3.Error) as error:
        log.error("Chroma is not started: its files could not be looked through", path=str(directory), why=str(error))
        return 1
    return 0


def _told() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m indexer.chroma_process", description=__doc__)
    parser.add_argument("--path", type=Path, required=True, help="where Chroma keeps its files")
    parser.add_argument("--host", default="127.0.0.1", help="where it listens (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="likewise (%(default)s)")
    parser.add_argument(
        "--names",
        type=Path,
        help=f"where copies that mending needs are kept (PATH/../{COPIES})",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
