"""Makes good what a killed Chroma leaves of an index that it was writing.

Chroma 1.5.9 writes into the files of an index where they are: how many rows there will be, the rows that are new or
have other links, then the links above them, then the pickle that names them. Started over what a kill has left of that,
it takes rows that were never written for rows, ends with SIGSEGV, or writes them over what was good. What it has
written is noted in its SQLite file only after that, and kept in its log until then. So

- an index is brought back to what its pickle names, and Chroma takes the rest from its log again;
- where the disk was full, so that the pickle names rows that Chroma could not write, and did not notice, it is brought
  back to those that are there, if the log has the others;
- where the pickle itself was cut off, the index is whole, and the names come from a copy made at the start before, and
  for what was added since from SQLite, where ids are in the order in which their rows got their labels. Without the
  copy that would not be so: what the index held already when it was taken from the log once more, after an earlier
  kill, may have got another label then.
"""

import shutil
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from chassis import durable
from indexer.index_files import DELETED, NAMES, ForeignError, Header, Names
from indexer.index_repair import Repair, repair_of, whole_rows, write
from indexer.reclaim import DATABASE

log = structlog.get_logger()

_ALIKE = 0.9999
# What ``main`` returns.
DAMAGED = 3
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
# Of all collections at once: the log has no order by them.
_LOGGED = "SELECT topic, id, seq_id FROM embeddings_queue WHERE vector IS NOT NULL"
_VECTORS = """
    SELECT id, vector FROM embeddings_queue
    WHERE topic LIKE ? AND seq_id > ? AND seq_id <= ? AND vector IS NOT NULL
    ORDER BY seq_id
"""
# In the directory of copies, when there is one of everything that had names at the start before.
_COMPLETE = "complete"


class DamagedError(Exception):
    """An index cannot be mended. Chroma must not be started over it."""


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
    mended, kept = 0, dict[str, bool]()
    if (directory / DATABASE).is_file():
        # Not only for reading: a kill leaves a journal that SQLite has to play back first.
        uri = f"{(directory / DATABASE).absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_S)) as database:
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'max_seq_id'").fetchone():
                mended, kept = _mend_all(database, directory, copies)
    try:
        _keep_copies(directory, copies, kept)
    except OSError as error:  # with a full disk, say, what can be read should be
        log.error("an index that Chroma is killed in writing next may not be mended: no copies", why=str(error))
    return mended


def _mend_all(database: sqlite3.Connection, directory: Path, copies: Path) -> tuple[int, dict[str, bool]]:
    """How many were mended; and the indexes that have names now, and whether SQLite's order is that of their labels."""
    copied = (copies / _COMPLETE).exists()
    indexes = [
        _Index(directory / vectors, copies / vectors, copied, ids, key, name, written, known or 0)
        for vectors, ids, key, name, written, known in database.execute(_INDEXES).fetchall()
    ]
    logged: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for topic, item_id, place in database.execute(_LOGGED):
        logged[topic.rpartition("/")[2]].append((item_id, place))
    mended, kept, damaged = 0, dict[str, bool](), []
    for index in indexes:
        ids = [item_id for (item_id,) in database.execute(_IDS, (index.ids,))]
        there = {item_id for item_id, place in logged.get(index.key, ()) if place > (index.written or 0)}
        try:
            changed, names = _mend(database, index, ids, there)
        except ForeignError as error:
            log.warning("the names of an index of Chroma's are not looked at", collection=index.name, why=str(error))
            kept[index.path.name] = False
            continue
        except (FileNotFoundError, ValueError, TypeError, OverflowError, DamagedError) as error:
            damaged.append(f"{index.path}, of collection {index.name}: {error}")
            continue
        mended += changed
        if names is not None:
            kept[index.path.name] = not _lost(index, names, ids, there)
    if damaged:
        raise DamagedError("; ".join(damaged))
    return mended, kept


def _mend(
    database: sqlite3.Connection, index: _Index, ids: Sequence[str], logged: AbstractSet[str]
) -> tuple[bool, Names | None]:
    """Mends an index, if it needs to be.

    Args:
        database: Chroma's.
        index: which.
        ids: of its items, in the order in which they were added.
        logged: those whose vectors are in the log behind what is noted of the index.

    Returns:
        Whether it needed to be, and the names of its rows; None: it has none.

    Raises:
        OSError: its files cannot be read or written.
        ValueError, DamagedError: it cannot be mended.
        ForeignError: another version of Chroma wrote its names.
    """
    names, why = None, "whole"
    try:
        names = Names.read(index.path)
    except FileNotFoundError:
        why = "missing"
    except ValueError as error:
        why = str(error)
    if names is None and index.written is None:
        return _begun_anew(index, ids, logged), None
    if names is not None and not names.labels:  # Chroma makes it anew, and gives labels from 1 again
        return False, names
    header = Header.read(index.path)
    found = None
    if names is None:
        names = found = _names(index, header, ids)
    repair, names = _repair(index, header, names, found, logged)
    if not repair.needed:
        return False, names
    if found is not None and (wrong := _differing(database, index, header, found)):
        raise ValueError(f"{NAMES} cannot be read, and {wrong} rows do not have the vectors of their ids")
    write(index.path, repair)
    if repair_of(index.path, Header.read(index.path), Names.read(index.path), None).needed:
        raise DamagedError("it was mended, and is still not as it should be")
    log.warning(
        "an index of Chroma's was cut off in writing and has been mended; Chroma takes the rest from its log",
        collection=index.name,
        path=str(index.path),
        rows=repair.header.rows,
        rows_dropped=header.rows - repair.header.rows,
        links_dropped=repair.lost,
        names=why,
    )
    return True, names


def _repair(
    index: _Index, header: Header, names: Names, found: Names | None, logged: AbstractSet[str]
) -> tuple[Repair, Names]:
    """What has to change, and what the names are then: fewer, where the others' rows are missing and in the log.

    Raises:
        OSError, ValueError: as ``repair_of``.
    """
    try:
        return repair_of(index.path, header, names, found), names
    except ValueError:
        rows = whole_rows(index.path, header, names.total)
        left = Names(rows, {item_id: label for item_id, label in names.labels.items() if label <= rows})
        if found is not None or rows == names.total or not names.labels.keys() - left.labels.keys() <= logged:
            raise
    return repair_of(index.path, header, left, left), left


def _begun_anew(index: _Index, ids: Sequence[str], logged: AbstractSet[str]) -> bool:
    """Of an index that was never written to the end: Chroma makes it from its log, where there are no names."""
    index.copy.unlink(missing_ok=True)  # its labels are given anew
    if not (index.path / NAMES).exists():
        return False
    if missing := set(ids) - logged:
        raise DamagedError(f"{NAMES} cannot be read, and {len(missing)} items are not in the log")
    (index.path / NAMES).unlink()
    durable.to_disk(index.path)
    log.warning("an index of Chroma's was cut off in its first writing; Chroma makes it anew", collection=index.name)
    return True


def _lost(index: _Index, names: Names, ids: Sequence[str], logged: AbstractSet[str]) -> bool:
    """Whether items are neither in the index nor in the log, as after a power cut. Who reads them is told by Chroma."""
    lost = sorted(set(ids) - names.labels.keys() - logged)
    if lost:
        log.error(
            "the vectors of items are neither in Chroma's index nor in its log",
            collection=index.name,
            items=len(lost),
            such_as=lost[:3],
        )
    return bool(lost)


def _names(index: _Index, header: Header, ids: Sequence[str]) -> Names:
    """The names of the rows that exist: those of the copy, and of what was added since.

    Raises:
        ValueError: they cannot be known.
    """
    if not index.copied:
        raise ValueError(f"{NAMES} cannot be read, and there is no copy of it")
    before = Names.read_file(index.copy) if index.copy.exists() else Names(0, {})
    if not before.labels:  # labels were given from 1 again
        before = Names(0, {})
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


def _differing(database: sqlite3.Connection, index: _Index, header: Header, names: Names) -> int:
    """Of how many items the log has another vector than the index, which has all of it that SQLite's tables have."""
    entries = database.execute(_VECTORS, (f"%/{index.key}", index.written or 0, index.known))
    logged = {item_id: vector for item_id, vector in entries if item_id in names.labels}
    if not logged:
        return 0
    row_of = _living(index.path, header)
    places = [row_of[names.labels[item_id]] for item_id in logged]
    there = header.open_rows(index.path, header.rows)["vector"][places]
    given = np.stack([np.frombuffer(vector, "<f4") for vector in logged.values()])
    return int((~_alike(given, there)).sum()) if given.shape == there.shape else len(logged)


def _alike(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Whether each two vectors have the same direction, or are both zero; Chroma may have made them of length 1."""
    lengths = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    near = (one * other).sum(axis=1) >= _ALIKE * lengths[0] * lengths[1]
    return np.asarray(near & ((lengths[0] > 0) == (lengths[1] > 0)), np.bool_)


def _keep_copies(directory: Path, copies: Path, kept: Mapping[str, bool]) -> None:
    """All or none: what has no copy beside complete ones has been made since.

    Args:
        directory: Chroma's own.
        copies: where they are kept.
        kept: the indexes that have names, and whether SQLite's order can be relied on from now on; else the copy is one
            that cannot be read.

    Raises:
        OSError: there are none now.
    """
    copies.mkdir(parents=True, exist_ok=True)
    (copies / _COMPLETE).unlink(missing_ok=True)
    durable.to_disk(copies)
    for name, relied_on in kept.items():
        if relied_on:
            _copy(directory / name / NAMES, copies / name)
        else:
            (copies / name).write_bytes(b"")
    for copy in copies.iterdir():
        if copy.name not in kept and copy.is_file():
            copy.unlink()
    (copies / _COMPLETE).touch()
    durable.to_disk(copies)


def _copy(names: Path, copy: Path) -> None:
    there, copied = names.stat(), copy.stat() if copy.exists() else None
    if copied is not None and (there.st_size, there.st_mtime_ns) == (copied.st_size, copied.st_mtime_ns):
        return
    new = copy.with_name(f"{copy.name}.new")
    shutil.copy2(names, new)
    durable.to_disk(new)
    new.replace(copy)


def look_through(directory: Path, copies: Path) -> int:
    """As ``mend``; returns 0, or ``DAMAGED`` if an index cannot be mended, which is logged.

    Raises:
        OSError, sqlite3.Error: as ``mend``.
    """
    try:
        mend(directory, copies)
    except DamagedError as error:
        log.error("an index of Chroma's is damaged", why=str(error))
        return DAMAGED
    return 0


def main() -> int:
    """Mends, and prints a line of JSON for each thing it did; returns ``DAMAGED`` if trying again is of no use."""
    structlog.configure(processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()])
    return look_through(*map(Path, sys.argv[1:]))
