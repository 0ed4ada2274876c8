"""Disk space and traces that Chroma leaves behind in its own files.

Chroma 1.5.9 leaves the directory of a deleted collection's index where it is, and what was deleted in its SQLite file,
in pages and in rows that belong to nothing any more. The files of an index that is smaller than a page of it hold what
happened to be in Chroma's memory when they were made, which may be what is to be erased. Directories can go while it
runs; the file is written anew, and the rest of an index's files cleared, while it is stopped.
"""

import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import structlog
from likeness.common.v1 import error_pb2

from chassis.durable import to_disk
from chassis.errors import LikenessError
from indexer.index_files import LENGTH_BYTES, LENGTHS, ROWS, Header

log = structlog.get_logger()

DATABASE = "chroma.sqlite3"
# Beside Chroma's directory: copies of what names the rows of its indexes (``mend``).
COPIES = "names"
_NEW = "chroma.sqlite3.compacted"
# Free pages beyond which writing the file anew is worth a moment in which writes wait.
_WORTH_SHARE, _WORTH_BYTES = 0.25, 64 * 2**20
_BUSY_S = 30.0
_REMEDY = "make room, then rebuild again"

_CLEARED_AT_ONCE = 2**20


def remove_orphans(directory: Path) -> int:
    """Removes the indexes of collections that are no more, also while Chroma runs.

    Args:
        directory: Chroma's own.

    Returns:
        How many there were.
    """
    # In this order: an index has its row before it has a directory, so one that has none now has been deleted.
    there = (
        [path for path in directory.iterdir() if path.is_dir() and _is_uuid(path.name)] if directory.is_dir() else []
    )
    if not there or not (directory / DATABASE).is_file():
        return 0
    with _reading(directory) as database:
        wanted = {str(row[0]) for row in database.execute("SELECT id FROM segments")}
    orphans = [path for path in there if path.name not in wanted]
    for path in orphans:
        shutil.rmtree(path, onerror=_unless_gone)
        (directory.parent / COPIES / path.name).unlink(missing_ok=True)
        log.info("removed the index of a collection that is no more", path=str(path))
    return len(orphans)


def _unless_gone(_function: object, _path: str, fault: tuple[type[BaseException], BaseException, object]) -> None:
    """Two may be removing the same."""
    if not isinstance(fault[1], FileNotFoundError):
        raise fault[1]


def index_directory(directory: Path, key: str) -> Path | None:
    """Where Chroma keeps the index of a collection, also while it runs; None: it is not on the disk yet.

    Args:
        directory: Chroma's own.
        key: the collection's id there.
    """
    if not (directory / DATABASE).is_file():
        return None
    with _reading(directory) as database:
        row = database.execute("SELECT id FROM segments WHERE collection = ? AND scope = 'VECTOR'", (key,)).fetchone()
    path = None if row is None else directory / str(row[0])
    return path if path is not None and path.is_dir() else None


def worth_compacting(directory: Path) -> bool:
    """Whether much of the file is free; also while Chroma runs."""
    with _reading(directory) as database:
        pages, free, size = (
            _number(database, f"PRAGMA {name}") for name in ("page_count", "freelist_count", "page_size")
        )
    return free * size > _WORTH_BYTES and free > _WORTH_SHARE * pages


def compact(directory: Path) -> None:
    """Writes Chroma's file anew, with only what belongs to a collection; clears the rest of its indexes' files.

    Takes long, some 5 s for each GB; Chroma must be stopped. The new file takes the old one's place at once and whole.

    Args:
        directory: Chroma's own.

    Raises:
        LikenessError: STORE_FULL: there is no room for a second file beside the first. Nothing of it is left then,
            whatever it raises.
    """
    path, new = directory / DATABASE, directory / _NEW
    new.unlink(missing_ok=True)
    before, began = path.stat().st_size, time.monotonic()
    _require_room(directory, before)
    try:
        lists = _write_anew(path, new)
        # A journal beside it would be of the old file. SQLite removes it with the last connection.
        left = [name for name in (f"{DATABASE}-journal", f"{DATABASE}-wal") if (directory / name).exists()]
        if left:
            raise RuntimeError(f"{directory} holds {left[0]} with Chroma stopped; nothing was replaced")
        to_disk(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    to_disk(directory)
    cleared = clear_unused(directory)
    log.info(
        "Chroma's file written anew",
        megabytes_before=round(before / 1e6, 1),
        megabytes=round(path.stat().st_size / 1e6, 1),
        lists_of_nothing=lists,
        bytes_cleared=cleared,
        seconds=round(time.monotonic() - began, 2),
    )


def _write_anew(path: Path, new: Path) -> int:
    """Writes Chroma's file to another; returns how many lists belonged to nothing.

    Raises:
        LikenessError: STORE_FULL.
        sqlite3.Error: it cannot be read or written for another reason.
    """
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)) as database:
            # Chroma deletes items whole, and collections without the lists of their items.
            lists = database.execute(
                "DELETE FROM embedding_metadata_array WHERE id NOT IN (SELECT id FROM embeddings)"
            ).rowcount
            database.execute("VACUUM INTO ?", (str(new),))
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
            raise
        message = f"the disk under {path.parent} has filled up while Chroma's file was written anew; {_REMEDY}"
        raise LikenessError(error_pb2.REASON_STORE_FULL, message) from error
    return lists


def clear_unused(directory: Path) -> int:
    """Overwrites with zeros what the files of indexes hold beyond their rows; Chroma must be stopped.

    An index whose files are not as they should be is left as it is, and named in the log.

    Args:
        directory: Chroma's own.

    Returns:
        How many bytes other than zero there were.
    """
    cleared = 0
    for path in sorted(path for path in directory.iterdir() if path.is_dir() and _is_uuid(path.name)):
        try:
            ends = _ends(path)
        except (OSError, ValueError) as error:
            log.warning("an index's files are left as they are", path=str(path), why=str(error))
            continue
        cleared += sum(_clear_from(path / name, end) for name, end in ends.items())
    return cleared


def _ends(path: Path) -> dict[str, int]:
    """Where the rows end in each file of an index.

    Raises:
        OSError: one cannot be read.
        ValueError: they do not fit together.
    """
    header = Header.read(path)
    ends = {ROWS: header.rows * header.row_bytes, LENGTHS: header.rows * LENGTH_BYTES}
    sizes = {name: (path / name).stat().st_size for name in ends}
    if any(sizes[name] < end for name, end in ends.items()):
        raise ValueError(f"{header.rows} rows, in files of {sizes}")
    return ends


def _clear_from(path: Path, begin: int) -> int:
    cleared = 0
    with path.open("r+b") as file:
        file.seek(begin)
        while rest := file.read(_CLEARED_AT_ONCE):
            if used := len(rest) - rest.count(0):
                cleared += used
                file.seek(-len(rest), os.SEEK_CUR)
                file.write(bytes(len(rest)))
    if cleared:
        to_disk(path)
    return cleared


def _require_room(directory: Path, size: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < 2 * size:  # deleting rows before takes a journal of up to as much again
        message = (
            f"the disk under {directory} has {free >> 20:,} MiB free, and writing Chroma's file anew needs "
            f"{2 * size >> 20:,}; {_REMEDY}"
        )
        raise LikenessError(error_pb2.REASON_STORE_FULL, message)


@contextmanager
def _reading(directory: Path) -> Iterator[sqlite3.Connection]:
    uri = f"{(directory / DATABASE).absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_S)) as database:
        yield database


def _number(database: sqlite3.Connection, statement: str) -> int:
    return int(database.execute(statement).fetchone()[0])


def _is_uuid(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False
