"""What has to change in the files of an index for its rows to be those that are named, and to link to nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chassis import durable
from indexer.index_files import (
    DELETED,
    HEADER,
    LENGTH_BYTES,
    LENGTHS,
    NAMES,
    ROWS,
    UPPER,
    Header,
    Names,
    Numbers,
    Upper,
)

_AT_ONCE = 65_536


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
class Repair:
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

    @property
    def needed(self) -> bool:
        """Whether anything is to be changed."""
        return self.header != self.old or bool(self.lost or self.marks or self.upper or self.names)


def repair_of(path: Path, header: Header, names: Names, found: Names | None) -> Repair:
    """What has to change for an index to be what ``names`` says; ``found``: these, if the pickle is not.

    Raises:
        OSError: its files cannot be read.
        ValueError: it cannot be made so.
    """
    count = names.total
    if count > header.rows:
        raise ValueError(f"{count} rows have names, and there are {header.rows}")
    if not count:
        return Repair(header, replace(header, rows=0, entry=-1, top_level=-1), names=found)
    if (path / LENGTHS).stat().st_size < count * LENGTH_BYTES:
        raise ValueError(f"{LENGTHS} ends before {count} rows do")
    rows = header.open_rows(path, count)
    labels = rows["label"]
    known = np.fromiter(names.labels.values(), np.uint64, len(names.labels))
    if len(np.unique(labels)) != count or labels.max() > count or not labels.min() or not np.isin(known, labels).all():
        raise ValueError(f"the {count} rows that have names are not all there")
    marks = np.where(np.isin(labels, known), 0, DELETED)
    parts = range(0, count, _AT_ONCE)
    lists = [_shorter(rows[at : at + _AT_ONCE], at, count) for at in parts]
    upper = Upper.read(path, count, header.most_upper)
    new = replace(header, rows=count)
    if not 0 <= header.entry < count or not 0 <= header.top_level <= upper.levels[header.entry]:
        new = replace(new, top_level=int(upper.levels.max()), entry=int(upper.levels.argmax()))
    above = _shorter_above(upper)
    wrong_above = above.lost > 0 or upper.readable < count
    if wrong_above:
        every = upper.lists.copy()
        _keep_linked(above, upper.row[above.number], new.entry)
        every[above.number, 0], every[above.number, 1:] = above.count, above.links
        upper = replace(upper, lists=every)
    for each in lists:
        _keep_linked(each, each.number, new.entry)
    return Repair(
        header,
        new,
        [each for each in lists if each.lost],
        {int(row): int(marks[row]) for row in np.flatnonzero(rows["mark"] != marks)},
        upper if wrong_above else None,
        found,
        sum(each.lost for each in lists) + above.lost,
    )


def whole_rows(path: Path, header: Header, most: int) -> int:
    """How many rows, at most ``most``, there are from the first on without a gap, with all the labels up to that.

    Raises:
        OSError: its files cannot be read.
    """
    there = min(
        most,
        header.rows,
        (path / ROWS).stat().st_size // header.row_bytes,
        (path / LENGTHS).stat().st_size // LENGTH_BYTES,
    )
    if not there:
        return 0
    labels = header.open_rows(path, there)["label"].astype(np.int64)
    numbers = np.arange(1, there + 1)
    # So many different labels, none of them 0 and none greater than their number, are all of those.
    fit = (np.maximum.accumulate(labels) == numbers) & (np.cumsum(labels) == np.cumsum(numbers))
    return int(numbers[fit].max(initial=0))


def _keep_linked(lists: _Lists, rows: npt.NDArray[np.int64], entry: int) -> None:
    """Has lists of ``rows`` that have become empty link to where searches begin: from no row there is no way out."""
    empty = (lists.count == 0) & (rows != entry)
    lists.links[empty, 0] = entry
    lists.count[empty] = 1


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


def write(path: Path, repair: Repair) -> None:
    """The header last: cut off before that, it is done once more."""
    if repair.header.rows:
        rows = repair.header.open_rows(path, repair.header.rows, writable=True)
        for each in repair.lists:
            rows["degree"][each.number], rows["links"][each.number] = each.count, each.links
        for row, mark in repair.marks.items():
            rows["mark"][row] = mark
        rows.flush()  # type: ignore[attr-defined]
    if repair.upper is not None:
        durable.replace(path / UPPER, repair.upper.packed())
    if repair.names is not None:
        durable.replace(path / NAMES, repair.names.packed())
    durable.replace(path / HEADER, repair.header.packed())
