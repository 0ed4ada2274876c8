"""Rows whose vector another row of the graph had before: pictures stored more than once, items whose metadata changed.

Rows with equal vectors would have links to each other alone, and no search that comes to some of them would come to the
rest. So only the first of them is a node of the graph. The others are its copies: whoever finds the node finds them.
"""

from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
import numpy.typing as npt

from chassis.vectors import Array

Rows = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_HASHED_AT_ONCE = 256
# Rows that are looked for one by one until they are put in order with the rest: a share of those, and never few.
# Putting them in order takes 75 ms for 1,000,000, of which other threads wait for some.
_LEAST_RECENT, _MOST_RECENT, _RECENT_SHARE = 4096, 65_536, 1 / 8
# Of each row that is the first of its vector: a hash and a number in order, and an eighth of an entry in a dict.
FIRST_BYTES = 26


class Copies:
    """The copies of each row that is the first of its vector. One thread may add while others ask.

    A chain for each: the first row leads to the latest copy, and each copy to the one before it. −1: none.

    Attributes:
        exist: whether there are any.
    """

    def __init__(self) -> None:
        self._before = np.full(16, -1, np.int32)
        self._counts = np.zeros(16, np.int32)
        self.exist = False

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return self._before.nbytes + self._counts.nbytes

    def make_room(self, count: int) -> None:
        """Takes the memory for so many rows."""
        if count > len(self._before):
            size = max(count + count // 4, 2 * len(self._before))
            before, counts = np.full(size, -1, np.int32), np.zeros(size, np.int32)
            before[: len(self._before)], counts[: len(self._counts)] = self._before, self._counts
            self._before, self._counts = before, counts

    def add(self, firsts: Rows, rows: Rows) -> None:
        """Copies, with the first row of each; there is room for all."""
        for first, row in zip(firsts.tolist(), rows.tolist(), strict=True):
            self._before[row] = self._before[first]
            self._before[first] = row
            self._counts[first] += 1
        self.exist = self.exist or len(rows) > 0

    def of(self, first: int) -> Iterator[int]:
        """The copies of a row, the latest first."""
        before = self._before.data  # gives a number in a third of the time that numpy takes
        row = before[first]
        while row >= 0:
            yield row
            row = before[row]

    def counts(self, firsts: Rows) -> list[int]:
        """How many copies the rows, int64 [q, n], have together, for each q. −1: no row."""
        if not self.exist:
            return [0] * len(firsts)
        found: list[int] = np.add.reduce(np.where(firsts >= 0, self._counts[firsts], 0), axis=1).tolist()
        return found

    def with_copies(self, firsts: Rows, closeness: Array) -> tuple[Rows, Array]:
        """Rows, int64 [n], each followed by its copies, and the closeness, float32 [n], of each of them. −1: no row."""
        rows = [[first, *self.of(first)] if first >= 0 else [first] for first in firsts.tolist()]
        counts = [len(some) for some in rows]
        return np.fromiter(chain.from_iterable(rows), np.int64, sum(counts)), np.repeat(closeness, counts)


class Firsts:
    """Tells which row was the first to have a vector, by hashes of 64 bits; what is equal is compared."""

    def __init__(self, dimension: int) -> None:
        """Knows of no row yet; DIMENSION of the vectors."""
        factors = np.random.default_rng().integers(1 << 64, size=dimension, dtype=np.uint64)
        self._factors = factors | np.uint64(1)
        self._hashes: Hashes = np.empty(0, np.uint64)  # in order
        self._rows = np.empty(0, np.int32)
        self._recent: dict[int, int] = {}
        self._known = 0

    def take(self, vectors: Array, begin: int, stored: Callable[[Rows], Array]) -> Rows:
        """Takes note of rows that are stored next.

        Args:
            vectors: theirs, float32 [n, dimension].
            begin: the number of the first one, which is how many are stored.
            stored: gives the vectors, float32 [m, dimension], of stored rows, int64 [m].

        Returns:
            int64 [n]: the first row that has this vector; −1: this one.
        """
        while self._known < begin:  # those of a file
            some = np.arange(self._known, min(begin, self._known + _HASHED_AT_ONCE))
            self._take(stored(some), self._known, stored)
        return self._take(vectors, begin, stored)

    def _take(self, vectors: Array, begin: int, stored: Callable[[Rows], Array]) -> Rows:
        hashes = self._hashed(vectors)
        found = self._found(hashes)
        found[found >= begin] = -1  # of an attempt to store them that failed
        _, firsts, which = np.unique(hashes, return_index=True, return_inverse=True)
        here, numbers = firsts[which], np.arange(len(vectors))  # the first of them with this hash
        before, again = found >= 0, (found < 0) & (here < numbers)
        same = np.zeros(len(vectors), np.bool_)
        same[before] = (stored(found[before]) == vectors[before]).all(axis=1)
        same[again] = (vectors[here[again]] == vectors[again]).all(axis=1)
        new = ~(before | again)
        self._recent.update(zip(hashes[new].tolist(), (begin + numbers[new]).tolist(), strict=True))
        self._known = begin + len(vectors)
        if len(self._recent) > min(max(_LEAST_RECENT, _RECENT_SHARE * len(self._rows)), _MOST_RECENT):
            self._put_in_order()
        return np.where(same, np.where(before, found, begin + here), -1)

    def _hashed(self, vectors: Array) -> Hashes:
        """Sums, modulo 2^64, of products with odd factors, whose high bits are also mixed into the low ones."""
        bits = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
        sums = [np.empty(0, np.uint64)]
        for i in range(0, len(bits), _HASHED_AT_ONCE):
            products = bits[i : i + _HASHED_AT_ONCE] * self._factors
            products ^= products >> np.uint64(29)
            sums.append(products.sum(axis=1, dtype=np.uint64))
        return np.concatenate(sums)

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
        order = hashes.argsort(kind="stable")
        self._hashes, self._rows, self._recent = hashes[order], rows[order], {}
