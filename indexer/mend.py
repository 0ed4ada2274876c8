"""Makes good what a killed Chroma leaves of an index that it was writing.

Chroma 1.5.9 writes into the files of an index where they are: how many rows there will be, the rows that are new or
have other links, then the links above them, then the pickle that names them. Started over what a kill has left of that,
it takes rows that were never written for rows, and ends with SIGSEGV, then or later, and for ever. What it has written
is noted in its SQLite file only after that, and kept in its log until then. So an index is brought back to what the
pickle names, and Chroma takes the rest from its log again. If the pickle itself was cut off, the index is whole, and
its ids are those that SQLite has: in the order in which they were added, as the labels of the rows are.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from indexer import durable
from indexer.index_files import DELETED, HEADER, NAMES, UPPER, Header, Names, Numbers, Upper

log = structlog.get_logger()

_DATABASE = "chroma.sqlite3"
# A place in the log behind all others.
_END = 2**63 - 1
_AT_ONCE = 65_536
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
_LOGGED = (
    "SELECT id, vector FROM embeddings_queue WHERE topic LIKE ? AND seq_id <= ? AND vector IS NOT NULL ORDER BY seq_id"
)


@dataclass(frozen=True)
class _Index:
    """An index, and what SQLite knows of it.

    Attributes:
        path: of its files.
        ids: the segment that has the ids of its items.
        key: Chroma's id of the collection.
        name: Chroma's name of it.
        written: up to where the log is in the files; None: they have never been written to the end.
        known: up to where the log is in SQLite's own tables.
    """

    path: Path
    ids: str
    key: str
    name: str
    written: int | None
    known: int


@dataclass(frozen=True)
class _Lists:
    """Lists of links as they should be.

    Attributes:
        number: int64 [lists], which they are.
        count: int64 [lists], how many links there are in each.
        links: uint32 [lists, most], these, and zeros behind them.
        lost: how many there were beside these.
    """

    number: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]
    links: Numbers
    lost: int


@dataclass(frozen=True)
class _Changes:
    """How the files of an index have to change.

    Attributes:
        old: the header it has.
        header: the header it should have.
        lists: of rows on the lowest level.
        marks: uint16 by number of a row, where they are wrong.
        upper: the links above, if they are wrong.
        names: the pickle, if it cannot be read.
        lost: links to what is not there.
    """

    old: Header
    header: Header
    lists: Sequence[_Lists] = ()
    marks: Mapping[int, int] = field(default_factory=dict)
    upper: Upper | None = None
    names: Names | None = None
    lost: int = 0

    def __bool__(self) -> bool:
        return self.header != self.old or bool(self.lost or self.marks or self.upper or self.names)


def mend(directory: Path) -> int:
    """Looks through the files of all indexes, and mends those that a kill has left in pieces; Chroma must be stopped.

    Takes about a second for a million rows. One that cannot be mended is left as it is, and named in the log.

    Args:
        directory: Chroma's own.

    Returns:
        How many were mended.

    Raises:
        sqlite3.Error: Chroma's SQLite file cannot be read.
    """
    if not (directory / _DATABASE).is_file():
        return 0
    mended = 0
    # Not only for reading: a kill leaves a journal that SQLite has to play back first.
    uri = f"{(directory / _DATABASE).absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_S)) as database:
        for index in _indexes(database, directory):
            try:
                mended += _mend(database, index)
            except (OSError, ValueError) as error:
                log.error(
                    "an index of Chroma's is damaged; restore the collection from a snapshot",
                    collection=index.name,
                    path=str(index.path),
                    why=str(error),
                )
    return mended


def _indexes(database: sqlite3.Connection, directory: Path) -> list[_Index]:
    rows = database.execute(_INDEXES).fetchall()
    return [
        _Index(directory / vectors, ids, key, name, written, known or 0)
        for vectors, ids, key, name, written, known in rows
        if (directory / vectors / HEADER).is_file()
    ]


def _mend(database: sqlite3.Connection, index: _Index) -> bool:
    """Mends an index, if it needs to be.

    Raises:
        OSError: its files cannot be read or written.
        ValueError: it cannot be mended.
    """
    names, why = None, ""
    try:
        names = Names.read(index.path)
    except (FileNotFoundError, ValueError) as error:
        why = str(error)
    if names is None and index.written is None:
        # All that it should hold is in the log, from which Chroma makes it where there are no names.
        if not (index.path / NAMES).exists():
            return False
        (index.path / NAMES).unlink()
        durable.to_disk(index.path)
        log.warning(
            "an index of Chroma's was cut off in its first writing; Chroma makes it anew", collection=index.name
        )
        return True
    header = Header.read(index.path)
    if names is not None:
        changes = _changes(index.path, header, names, None)
    else:
        found = _names(database, index, header)
        changes = _changes(index.path, header, found, found)
    if not changes:
        return False
    _write(index.path, changes)
    now = Names.read(index.path)
    if left := _changes(index.path, Header.read(index.path), now, None):
        raise ValueError(f"it was mended, and is still not as it should be: {left}")
    log.warning(
        "an index of Chroma's was cut off in writing and has been mended; Chroma takes the rest from its log",
        collection=index.name,
        path=str(index.path),
        rows=changes.header.rows,
        rows_dropped=header.rows - changes.header.rows,
        links_dropped=changes.lost,
        names=why or "whole",
    )
    if lost := _lost(database, index, now):
        raise ValueError(f"it was mended, and the vectors of {len(lost)} items are lost, such as {lost[:3]}")
    return True


def _lost(database: sqlite3.Connection, index: _Index, names: Names) -> list[str]:
    """The ids of items that are neither in the index nor in the log, as after a power cut."""
    logged = {item_id for item_id, _ in database.execute(_LOGGED, (f"%/{index.key}", _END))}
    return sorted({item_id for (item_id,) in database.execute(_IDS, (index.ids,))} - names.labels.keys() - logged)


def _names(database: sqlite3.Connection, index: _Index, header: Header) -> Names:
    """The ids of the rows that exist, from SQLite.

    Raises:
        ValueError: they are others, by the vectors of those that are still in the log.
    """
    rows = header.open_rows(index.path, header.rows)
    order = np.argsort(rows["label"], kind="stable")
    living = order[(rows["mark"][order] & DELETED) == 0]
    ids = [item_id for (item_id,) in database.execute(_IDS, (index.ids,))]
    if len(ids) != len(living):
        raise ValueError(f"{NAMES} cannot be read, and {len(living)} rows exist for {len(ids)} ids")
    row_of = dict(zip(ids, living.tolist(), strict=True))
    logged = dict(database.execute(_LOGGED, (f"%/{index.key}", index.known)))
    compared = [item_id for item_id in logged if item_id in row_of]
    if not compared:
        raise ValueError(f"{NAMES} cannot be read, and nothing is in the log that tells whose the rows are")
    given = np.stack([np.frombuffer(logged[item_id], "<f4") for item_id in compared])
    there = rows["vector"][[row_of[item_id] for item_id in compared]]
    if given.shape != there.shape or not _alike(given, there).all():
        raise ValueError(f"{NAMES} cannot be read, and the rows are not in the order of the ids")
    labels = {item_id: int(rows["label"][row]) for item_id, row in row_of.items()}
    return Names(int(rows["label"].max()), labels)


def _alike(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Whether each two vectors have the same direction, or are both zero; Chroma may have made them of length 1."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) >= _ALIKE * lengths, np.bool_)


def _changes(path: Path, header: Header, names: Names, found: Names | None) -> _Changes:
    """What has to change for an index to be what ``names`` says; ``found``: these, if the pickle is not.

    Raises:
        OSError: its files cannot be read.
        ValueError: it cannot be made so.
    """
    count = names.total
    if count > header.rows:
        raise ValueError(f"{count} rows have names, and there are {header.rows}")
    if not count:
        return _Changes(header, replace(header, rows=0), names=found)
    rows = header.open_rows(path, count)
    labels = rows["label"]
    known = np.fromiter(names.labels.values(), np.uint64, len(names.labels))
    if len(np.unique(labels)) != count or labels.max() > count or not labels.min() or not np.isin(known, labels).all():
        raise ValueError(f"the {count} rows that have names are not all there")
    marks = np.where(np.isin(labels, known), 0, DELETED)
    parts = range(0, count, _AT_ONCE)
    lists = [_shorter(rows[at : at + _AT_ONCE], at, count) for at in parts]
    upper = Upper.read(path, count, header.most_upper)
    above = _shorter_above(upper)
    if above.lost or upper.readable < count:
        every = upper.lists.copy()
        every[above.number, 0], every[above.number, 1:] = above.count, above.links
        upper = replace(upper, lists=every)
        changed: Upper | None = upper
    else:
        changed = None
    new = replace(header, rows=count)
    if header.entry >= count or not 0 <= header.top_level <= upper.levels[header.entry]:
        new = replace(new, top_level=int(upper.levels.max()), entry=int(upper.levels.argmax()))
    return _Changes(
        header,
        new,
        [each for each in lists if each.lost],
        {int(row): int(marks[row]) for row in np.flatnonzero(rows["mark"] != marks)},
        changed,
        found,
        sum(each.lost for each in lists) + above.lost,
    )


def _shorter(rows: npt.NDArray[Any], first: int, count: int) -> _Lists:
    """Of some rows, the first of which has a number, the lists that link to others than the first ``count``."""
    shorter = _without(rows["degree"].astype(np.int64), rows["links"], rows["links"] < count)
    return replace(shorter, number=shorter.number + first)


def _shorter_above(upper: Upper) -> _Lists:
    """The lists that link to rows that are not on their level, or not there."""
    links, levels = upper.lists[:, 1:], upper.levels
    there = links < len(levels)
    there &= levels[np.where(there, links, 0)] >= upper.level[:, None]
    return _without(upper.lists[:, 0].astype(np.int64), links, there)


def _without(degrees: npt.NDArray[np.int64], links: Numbers, there: npt.NDArray[np.bool_]) -> _Lists:
    """The lists that link to what is not there, without those links.

    Args:
        degrees: [n], how many links each list has.
        links: [n, most].
        there: [n, most], whether that to which a link goes is there.
    """
    good = there & (np.arange(links.shape[1]) < degrees[:, None])
    number = np.flatnonzero(good.sum(axis=1) != degrees)
    good = good[number]
    count = good.sum(axis=1)
    kept = np.take_along_axis(links[number], np.argsort(~good, axis=1, kind="stable"), axis=1)
    kept[np.arange(links.shape[1]) >= count[:, None]] = 0
    return _Lists(number, count, kept, int((degrees[number] - count).sum()))


def _write(path: Path, changes: _Changes) -> None:
    """The header last: cut off before that, it is done once more."""
    if changes.header.rows:
        rows = changes.header.open_rows(path, changes.header.rows, writable=True)
        for each in changes.lists:
            rows["degree"][each.number], rows["links"][each.number] = each.count, each.links
        for row, mark in changes.marks.items():
            rows["mark"][row] = mark
        rows.flush()  # type: ignore[attr-defined]
    if changes.upper is not None:
        durable.replace(path / UPPER, changes.upper.packed())
    if changes.names is not None:
        durable.replace(path / NAMES, changes.names.packed())
    durable.replace(path / HEADER, changes.header.packed())
