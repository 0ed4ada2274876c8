"""Rows whose vector another row of the graph had before: pictures stored more than once, items whose metadata changed.

Rows with equal vectors would have links to each other alone, and no search that comes to some of them would come to the
rest. So only the first of them is a node of the graph. The others, its copies, have their vectors in the graph's
storage, like every row, but no row links to them: whoever finds the node finds them with it.

That a row is a copy is written where its links would be, so that a graph's file tells it: the node, then the row
itself. No node links to itself.
"""

from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np
import numpy.typing as npt

from chassis.vectors import Array

Rows = npt.NDArray[np.int64]
Links = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]

_HASHED_AT_ONCE = 256
# Rows that are looked for one by one until they are put in order with the rest: a share of those, and never few.
_LEAST_RECENT, _RECENT_SHARE = 4096, 1 / 8
_ROW_BYTES = 26  # a hash and a row's number in order, and an eighth of an entry in a dict
_COPY_BYTES = 40  # a number in a list


def marked(links: Links, begins: Rows) -> npt.NDArray[np.bool_]:
    """Which rows are copies.

    Args:
        links: of all rows, with two or more places for each.
        begins: where each row's begin.
    """
    found: npt.NDArray[np.bool_] = links[begins + 1] == np.arange(len(begins))
    return found


class Copies:
    """The copies of each node. One thread may add while others ask."""

    def __init__(self) -> None:
        self._of: dict[int, list[int]] = {}
        self._count = 0

    @property
    def nbytes(self) -> int:
        """Bytes it takes, estimated."""
        return self._count * _COPY_BYTES

    def add(self, nodes: Iterable[int], rows: Iterable[int]) -> None:
        """Rows with the nodes whose copies they are."""
        for node, row in zip(nodes, rows, strict=True):
            self._of.setdefault(node, []).append(row)
            self._count += 1

    def any(self, nodes: Rows) -> list[bool]:
        """Whether there are copies of any of the nodes [q, n], for each q."""
        of = self._of.keys()
        return [not of.isdisjoint(some) for some in nodes.tolist()] if of else [False] * len(nodes)

    def with_copies(self, nodes: Rows, closeness: Array) -> tuple[Rows, Array]:
        """Nodes, int64 [n], each followed by its copies, and the closeness, float32 [n], of each of them."""
        rows = [[node, *self._of.get(node, ())] for node in nodes.tolist()]
        counts = [len(some) for some in rows]
        return np.fromiter(chain.from_iterable(rows), np.int64, sum(counts)), np.repeat(closeness, counts)


class Firsts:
    """Tells which row was the first to have a vector, by hashes of 64 bits; what is equal is compared."""

    def __init__(self, dimension: int, stored: Callable[[Rows], Array]) -> None:
        """Knows of no row yet.

        Args:
            dimension: of the vectors.
            stored: gives the vectors, float32 [n, dimension], of rows, int64 [n].
        """
        self._stored = stored
        factors = np.random.default_rng().integers(1 << 64, size=dimension, dtype=np.uint64)
        self._factors = factors | np.uint64(1)
        self._hashes: Hashes = np.empty(0, np.uint64)  # in order
        self._rows = np.empty(0, np.int32)
        self._recent: dict[int, int] = {}
        self._known = 0

    @property
    def nbytes(self) -> int:
        """Bytes it takes, about."""
        return self._known * _ROW_BYTES

    def take(self, vectors: Array, begin: int) -> Rows:
        """Takes note of rows that are stored next.

        Args:
            vectors: theirs, float32 [n, dimension].
            begin: the number of the first one, which is how many are stored.

        Returns:
            int64 [n]: the first row that has this vector; −1: this one.
        """
        while self._known < begin:  # those of a file
            some = np.arange(self._known, min(begin, self._known + _HASHED_AT_ONCE))
            self._take(self._stored(some), self._known)
        return self._take(vectors, begin)

    def _take(self, vectors: Array, begin: int) -> Rows:
        hashes = self._hashed(vectors)
        found = self._found(hashes)
        found[found >= begin] = -1  # of an attempt to store them that failed
        _, firsts, which = np.unique(hashes, return_index=True, return_inverse=True)
        here, numbers = firsts[which], np.arange(len(vectors))  # the first of them with this hash
        before, again = found >= 0, (found < 0) & (here < numbers)
        same = np.zeros(len(vectors), np.bool_)
        same[before] = (self._stored(found[before]) == vectors[before]).all(axis=1)
        same[again] = (vectors[here[again]] == vectors[again]).all(axis=1)
        new = ~(before | again)
        self._recent.update(zip(hashes[new].tolist(), (begin + numbers[new]).tolist(), strict=True))
        self._known = begin + len(vectors)
        if len(self._recent) > max(_LEAST_RECENT, _RECENT_SHARE * len(self._rows)):
            self._put_in_order()
        return np.where(same, np.where(before, found, begin + here), -1)

    def _hashed(self, vectors: Array) -> Hashes:
        """Sums of products with odd factors, modulo 2^64."""
        bits = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
        parts = [bits[i : i + _HASHED_AT_ONCE] * self._factors for i in range(0, len(bits), _HASHED_AT_ONCE)]
        return np.concatenate([part.sum(axis=1, dtype=np.uint64) for part in parts] or [np.empty(0, np.uint64)])

    def _found(self, hashes: Hashes) -> Rows:
        """The first row with each hash; −1: none."""
        found = np.array([self._recent.get(each, -1) for each in hashes.tolist()], np.int64)
        if len(self._rows):
            at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._rows) - 1)
            found = np.where(self._hashes[at] == hashes, self._rows[at], found)
        return found

    def _put_in_order(self) -> None:
        hashes = np.concatenate((self._hashes, np.fromiter(self._recent.keys(), np.uint64, len(self._recent))))
        rows = np.concatenate((self._rows, np.fromiter(self._recent.values(), np.int32, len(self._recent))))
        order = hashes.argsort()
        self._hashes, self._rows, self._recent = hashes[order], rows[order], {}
