"""Makes good what a killed Chroma leaves of an index that it was writing: ``python -m indexer.mend CHROMA COPIES``.

Chroma 1.5.9 writes into the files of an index where they are: how many rows there will be, the rows that are new or
have other links, then the links above them, then the pickle that names them. Started over what a kill has left of that,
it takes rows that were never written for rows, ends with SIGSEGV, or writes them over what was good. What it has
written is noted in its SQLite file only after that, and kept in its log until then. So

- an index is brought back to what its pickle names, and Chroma takes the rest from its log again;
- where the pickle itself was cut off, the index is whole, and the names come from a copy made at the start before, and
  for what was added since from SQLite, where ids are in the order in which their rows got their labels. Without the
  copy that would not be so: what the index held already when it was taken from the log once more, after an earlier
  kill, may have got another label then.
"""

import shutil
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from indexer import durable
from indexer.index_files import DELETED, NAMES, ForeignError, Header, Names
from indexer.index_repair import changes_of, write
from indexer.reclaim import DATABASE

log = structlog.get_logger()

_ALIKE = 0.9999
_BUSY_S = 30.0

_INDEXES = """
    SELECT vectors.id, rest.id, collections.id, collections.name, written.seq_id, known.seq_id
    FROM segments AS vectors
    JOIN collections ON collections.id = vectors.collection
    JOIN segments AS rest ON rest.collection = vectors.collection AND rest.scope = 'METADATA'
    LEFT JOIN max_seq_id AS written ON written.segment_id = vectors.id
    LEFT JOIN max_seq_id AS known ON known.segment_id = rest.id
    WHERE vectors.scope = 'VECTOR'
"""
_IDS = "SELECT embedding_id FROM embeddings WHERE segment_id = ? ORDER BY id"
_LOGGED = """
    SELECT id, vector, seq_id FROM embeddings_queue
    WHERE topic LIKE ? AND seq_id > ? AND vector IS NOT NULL
    ORDER BY seq_id
"""


class DamagedError(Exception):
    """An index is in a state that no kill leaves, and cannot be mended. Chroma must not be started over it."""


@dataclass(frozen=True)
class _Index:
    """An index, and what SQLite knows of it.

    Attributes:
        path: of its files.
        copy: of its pickle, made at the start before; none: it has been made since.
        copied: whether there was a start before that made copies.
        ids: the segment that has the ids of its items.
        key: Chroma's id of the collection.
        name: Chroma's name of it.
        written: up to where the log is in the files; None: they have never been written to the end.
        known: up to where the log is in SQLite's own tables.
    """

    path: Path
    copy: Path
    copied: bool
    ids: str
    key: str
    name: str
    written: int | None
    known: int


def mend(directory: Path, copies: Path) -> int:
    """Looks through the files of all indexes, and mends those that a kill has left in pieces; Chroma must be stopped.

    Args:
        directory: Chroma's own.
        copies: where copies of the pickles are kept, a directory of its own.

    Returns:
        How many were mended.

    Raises:
        DamagedError: one cannot be mended.
        OSError: a file cannot be read or written; what was mended is good, and the rest may be tried again.
        sqlite3.Error: the same of Chroma's SQLite file.
    """
    mended = 0
    if (directory / DATABASE).is_file():
        # Not only for reading: a kill leaves a journal that SQLite has to play back first.
        uri = f"{(directory / DATABASE).absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_S)) as database:
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'max_seq_id'").fetchone():
                mended = _mend_all(database, directory, copies)
    copies.mkdir(parents=True, exist_ok=True)
    return mended


def _mend_all(database: sqlite3.Connection, directory: Path, copies: Path) -> int:
    copied = copies.is_dir()
    indexes = [
        _Index(directory / vectors, copies / vectors, copied, ids, key, name, written, known or 0)
        for vectors, ids, key, name, written, known in database.execute(_INDEXES).fetchall()
    ]
    mended, named, damaged = 0, [], []
    for index in indexes:
        try:
            mended += _mend(database, index)
            if (index.path / NAMES).exists():
                named.append(index)
        except ForeignError as error:
            log.warning("the names of an index of Chroma's are not looked at", collection=index.name, why=str(error))
        except (FileNotFoundError, ValueError, TypeError, OverflowError, MemoryError, DamagedError) as error:
            damaged.append(f"{index.path}, of collection {index.name}: {error}")
    if damaged:
        raise DamagedError("; ".join(damaged))
    # All or none: what has no copy from now on has been made since.
    copies.mkdir(parents=True, exist_ok=True)
    for index in named:
        _keep_copy(index)
    there = {index.copy.name for index in indexes}
    for copy in copies.iterdir():
        if copy.name not in there:
            copy.unlink()
    return mended


def _mend(database: sqlite3.Connection, index: _Index) -> bool:
    """Mends an index, if it needs to be, and keeps a copy of its names.

    Raises:
        OSError: its files cannot be read or written.
        ValueError: it cannot be mended.
        ForeignError: somebody else's version of Chroma wrote its names.
    """
    names, why = None, "whole"
    try:
        names = Names.read(index.path)
    except FileNotFoundError:
        why = "missing"
    except ValueError as error:
        why = str(error)
    ids = [item_id for (item_id,) in database.execute(_IDS, (index.ids,))]
    entries = database.execute(_LOGGED, (f"%/{index.key}", index.written or 0)).fetchall()
    logged = {item_id: vector for item_id, vector, _ in entries}
    # Where the index has taken more from the log than is noted, it has taken what SQLite's tables have.
    taken = {item_id: vector for item_id, vector, place in entries if place <= index.known}
    if names is None and index.written is None:
        return _begun_anew(index, ids, logged)
    header = Header.read(index.path)
    found = None
    if names is None:
        names = found = _names(index, header, ids)
    changes = changes_of(index.path, header, names, found)
    if changes.needed:
        if found is not None and (wrong := _differing(index.path, header, found, taken)):
            raise ValueError(f"{NAMES} cannot be read, and {wrong} rows do not have the vectors of their ids")
        write(index.path, changes)
        if changes_of(index.path, Header.read(index.path), Names.read(index.path), None).needed:
            raise DamagedError("it was mended, and is still not as it should be")
        log.warning(
            "an index of Chroma's was cut off in writing and has been mended; Chroma takes the rest from its log",
            collection=index.name,
            path=str(index.path),
            rows=changes.header.rows,
            rows_dropped=header.rows - changes.header.rows,
            links_dropped=changes.lost,
            names=why,
        )
    lost = sorted(set(ids) - names.labels.keys() - logged.keys())
    if lost:  # as after a power cut; whoever reads them is told by Chroma
        log.error(
            "the vectors of items are neither in Chroma's index nor in its log",
            collection=index.name,
            items=len(lost),
            such_as=lost[:3],
        )
    return changes.needed


def _begun_anew(index: _Index, ids: Sequence[str], logged: Mapping[str, bytes]) -> bool:
    """Of an index that was never written to the end: Chroma makes it from its log, where there are no names."""
    if not (index.path / NAMES).exists():
        return False
    if missing := set(ids) - logged.keys():
        raise DamagedError(f"{NAMES} cannot be read, and {len(missing)} items are not in the log")
    (index.path / NAMES).unlink()
    durable.to_disk(index.path)
    log.warning("an index of Chroma's was cut off in its first writing; Chroma makes it anew", collection=index.name)
    return True


def _names(index: _Index, header: Header, ids: Sequence[str]) -> Names:
    """The names of the rows that exist: those of the copy, and of what was added since.

    Raises:
        ValueError: they cannot be known.
    """
    if not index.copied:
        raise ValueError(f"{NAMES} cannot be read, and there is no copy of it")
    before = Names.read_file(index.copy) if index.copy.exists() else Names(0, {})
    labels = _living(index.path, header)
    kept = {item_id: before.labels[item_id] for item_id in ids if before.labels.get(item_id) in labels}
    new_ids = [item_id for item_id in ids if item_id not in kept]
    new_labels = sorted(labels.keys() - kept.values())
    if len(new_ids) != len(new_labels) or (new_labels and new_labels[0] <= before.total):
        raise ValueError(f"{NAMES} cannot be read, and {len(labels)} rows exist for {len(ids)} ids")
    return Names(header.rows, kept | dict(zip(new_ids, new_labels, strict=True)))


def _living(path: Path, header: Header) -> dict[int, int]:
    """The rows that are not marked as deleted, by their labels."""
    if not header.rows:
        return {}
    rows = header.open_rows(path, header.rows)
    living = np.flatnonzero((rows["mark"] & DELETED) == 0)
    return dict(zip(rows["label"][living].tolist(), living.tolist(), strict=True))


def _differing(path: Path, header: Header, names: Names, logged: Mapping[str, bytes]) -> int:
    """Of how many items the log has another vector than the index."""
    asked = [item_id for item_id in logged if item_id in names.labels]
    if not asked:
        return 0
    row_of = _living(path, header)
    there = header.open_rows(path, header.rows)["vector"][[row_of[names.labels[item_id]] for item_id in asked]]
    given = np.stack([np.frombuffer(logged[item_id], "<f4") for item_id in asked])
    if given.shape != there.shape:
        return len(asked)
    return int((~_alike(given, there)).sum())


def _alike(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Whether each two vectors have the same direction, or are both zero; Chroma may have made them of length 1."""
    lengths = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    near = (one * other).sum(axis=1) >= _ALIKE * lengths[0] * lengths[1]
    return np.asarray(near & ((lengths[0] > 0) == (lengths[1] > 0)), np.bool_)


def _keep_copy(index: _Index) -> None:
    names = index.path / NAMES
    there, copied = names.stat(), index.copy.stat() if index.copy.exists() else None
    if copied is not None and (there.st_size, there.st_mtime_ns) == (copied.st_size, copied.st_mtime_ns):
        return
    new = index.copy.with_name(f"{index.copy.name}.new")
    shutil.copy2(names, new)
    durable.to_disk(new)
    new.replace(index.copy)
    durable.to_disk(index.copy.parent)


def main() -> int:
    """Mends, and prints what it did, a line of JSON for each thing; returns 1 if Chroma must not be started."""
    structlog.configure(processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()])
    try:
        mend(*map(Path, sys.argv[1:]))
    except DamagedError as error:
        log.error("an index of Chroma's is damaged", why=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
