"""The vectors of a collection's rows, and an approximate index over them: faiss's HNSW graph.

HNSW: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small
World graphs" (2018). The graph's own storage is the only place of the vectors. Rows with equal vectors share a node,
which to whoever searches is the first of them (``copies``).

Closeness is what rows are compared by: the inner product, or the negative squared Euclidean distance; more is nearer.
It is of float32 precision, and good for finding candidates; scores are computed from the vectors (``indexer.scoring``).
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chassis.cores import cores
from chassis.vectors import Array
from indexer.collections import Metric
from indexer.serving import relink
from indexer.serving.copies import FIRST_BYTES, Copies, Firsts
from indexer.serving.growing import Growing
from indexer.serving.phases import PhaseFairLock

# Each Python thread that searches with several OpenMP threads has a pool of them, and by default each of those spins
# for a while when its work is done, on a core that others need. Read by libgomp as faiss loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

faiss: Any = import_module("faiss")  # its own types lack most of what is used here

Rows = npt.NDArray[np.int64]

# How long adding may keep readers out at once, in seconds. A row takes 0.5 to 1 ms (512 numbers).
_HOLD_S = 0.0015
_MOST_AT_ONCE = 256
# How much a graph grows before rows that few link to are looked for again: all of it costs as much as eleven times at
# the end. Once at the end was not enough: lengths that spread by 20 %, L2, ``ef`` 128, of the nearest 10 0.991, 0.990
# and 0.994 were found in 5,000, 10,000 and 20,000 × 512, and 0.995, 0.997 and 0.999 with it.
_RELINK_GROWTH = 1.1
# How much searching may keep the one that adds out at once, and with it whoever comes later: some 20 ms.
_STEPS_AT_ONCE = 8192  # of ef, 5 µs each
_SCORES_AT_ONCE = 2**17  # 0.05 to 0.2 µs each
# Starting OpenMP threads takes 20 to 50 µs.
_STEPS_FOR_THREADS = 512
_SCORES_FOR_THREADS = 4096
# Rows scored for every query of a batch while they are in the processor's cache.
_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class GraphSettings:
    """How a graph is made.

    Attributes:
        neighbors: links of a row, and twice as many in the lowest layer (HNSW's M), 4 to 128. Half as many more for
            L2 and inner products, whose lists are also kept full with links that the usual rule would prune: rows link
            to those of fitting length, and many get no link back otherwise. Lengths that spread by 20 % and queries of
            length 1, ``ef`` 96, 12,000 × 512: L2 75 % of the nearest 10 were found with 16 links, 95 % with full lists,
            96 % with 24 and full lists (98 % with what ``indexer.serving.relink`` adds); inner product 99.0 % and, with
            full lists, 99.97 %.
        ef_construction: rows looked at to find them, 16 to 2,000; twice as many for L2. Lengths as above, ``ef`` 96, of
            the nearest 10 in 5,000, 10,000 and 20,000 × 512: 0.978, 0.989 and 0.995 with 128, 0.986, 0.993 and 0.998
            with 256.
    """

    neighbors: int = 16
    ef_construction: int = 128


class Graph:
    """Rows 0 … count − 1. Any threads may search while one adds."""

    def __init__(self, dimension: int, metric: Metric, settings: GraphSettings) -> None:
        """An empty graph.

        Args:
            dimension: of the vectors.
            metric: the collection's. COSINE: vectors and queries come in with length 1.
            settings: how it is made.
        """
        kind = faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
        neighbors = settings.neighbors if metric is Metric.COSINE else settings.neighbors * 3 // 2
        self._take(faiss.IndexHNSWFlat(dimension, neighbors, kind), metric, settings)

    @classmethod
    def read(cls, path: Path, nodes: Path, dimension: int, metric: Metric, settings: GraphSettings) -> "Graph":
        """A graph that ``write`` wrote. Takes 60 ms for each 100 MB.

        Raises:
            ValueError: the files hold something else: another dimension or metric, other links, or no graph.
            RuntimeError: the graph's file cannot be read.
            OSError: the nodes' cannot.
        """
        graph = cls(dimension, metric, settings)
        index = faiss.read_index(str(path))
        wanted = graph._index
        if not isinstance(index, faiss.IndexHNSWFlat):
            raise ValueError(f"{path} holds no HNSW graph over plain vectors")  # noqa: TRY004
        found = (index.d, index.metric_type, index.hnsw.nb_neighbors(0))
        expected = (wanted.d, wanted.metric_type, wanted.hnsw.nb_neighbors(0))
        if found != expected:
            raise ValueError(f"{path} holds a graph of dimension, metric and links {found}; expected {expected}")
        of_rows = np.load(nodes, allow_pickle=False)
        there, firsts = np.unique(of_rows, return_index=True)
        whole = of_rows.dtype == np.int32 and of_rows.ndim == 1 and np.array_equal(there, np.arange(index.ntotal))
        if not whole or (np.diff(firsts) < 0).any():
            raise ValueError(f"{nodes} holds the nodes of another graph: expected {index.ntotal}, from 0 on")
        graph._take(index, metric, settings)
        graph._reserve()
        graph._know(firsts, of_rows)
        copies = np.setdiff1d(np.arange(len(of_rows)), firsts, assume_unique=True)
        graph.copies.add(firsts[of_rows[copies]], copies)
        graph._count, graph._relinked = len(of_rows), len(firsts)
        return graph

    def _take(self, index: Any, metric: Metric, settings: GraphSettings) -> None:
        index.hnsw.efConstruction = settings.ef_construction * (2 if metric is Metric.L2 else 1)
        index.keep_max_size_level0 = metric is not Metric.COSINE
        self.metric = metric
        self.dimension: int = index.d
        # Of a row, in the lowest layer: of more rows that are alike a search may find a part.
        self.links = int(index.hnsw.nb_neighbors(0))
        self._index = index
        self._flat = faiss.downcast_index(index.storage)
        self._lock = PhaseFairLock()
        self._at_once = 1
        self._count = 0  # rows; faiss counts nodes, and before they have links
        self._searches = 0  # about: threads that count at the same moment count once
        self._sound = True
        self._relinked = 0  # nodes there were then
        self._nodes = Growing(np.int32)  # of the rows
        self._rows = Growing(np.int32)  # of the nodes: the first of each
        self.copies = Copies()  # some may be of rows that are just being added
        self._firsts = Firsts(self.dimension)

    @property
    def sound(self) -> bool:
        """Whether rows can be added: not after memory ran out while some were."""
        return self._sound

    @property
    def count(self) -> int:
        """Rows in it."""
        return self._count

    @property
    def firsts(self) -> npt.NDArray[np.int32]:
        """The rows that are nodes, in order."""
        return self._rows.values

    @property
    def nbytes(self) -> int:
        """Bytes it takes: vectors, links, the places of each node's links and its top layer, and what rows are."""
        hnsw = self._index.hnsw
        index = self._flat.codes.size() + 4 * hnsw.neighbors.size() + 8 * hnsw.offsets.size()
        rows = self._nodes.nbytes + self._rows.nbytes + self.copies.nbytes
        return int(index) + rows + (4 + FIRST_BYTES) * len(self._rows)

    def add(self, vectors: Array) -> None:
        """Appends rows, float32 [n, dimension], a few at a time: readers get in between.

        When the storage is full, which is whenever the rows have doubled, one of those takes as long as copying it.

        Raises:
            RuntimeError: no memory; now, or at an earlier call, after which nothing can be added any more.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        of = self._first(vectors)
        nodes = np.concatenate(([0], np.cumsum(of < 0)))  # new ones before each row
        done, searches = 0, self._searches
        while done < len(vectors):
            # Copies take next to nothing, and so say nothing of how many nodes fit.
            stop = int(np.searchsorted(nodes, nodes[done] + self._at_once, side="right")) - 1
            stop = min(stop, done + _MOST_AT_ONCE)
            with self._lock.writing():
                began = time.perf_counter()
                _use_threads(1)
                self._append(vectors[done:stop], of[done:stop])
                took = time.perf_counter() - began
            new, done = int(nodes[stop] - nodes[done]), stop
            if self._searches != searches:  # a pace, not a wait for anything: half of the time is for searches
                searches = self._searches
                time.sleep(min(took, 10 * _HOLD_S))
            # Towards what fits, and at most doubled, so that one quick call does not make the next one long.
            if new:
                fits = int(new * _HOLD_S / max(took, 1e-6))
                self._at_once = max(1, min(fits, 2 * self._at_once, _MOST_AT_ONCE))
        self._relink_if_grown()

    def build(self, vectors: Array) -> None:
        """Appends rows, float32 [n, dimension], at once and with all cores. For a graph that nobody reads yet.

        Raises:
            RuntimeError: as ``add``.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        of = self._first(vectors)
        with self._lock.writing():
            _use_threads(cores())
            self._append(vectors, of)
            self._reserve()
        self._relink_if_grown()

    def reading_now(self) -> AbstractContextManager[bool]:
        """In the block this thread reads the graph and never waits for one that adds; False: one adds just now.

        For the event loop, which must not wait. One that adds waits for the block's end.
        """
        return self._lock.reading_now()

    def nearest(self, vectors: Array, ef: int) -> tuple[Rows, Array]:
        """The nodes nearest to each vector that a search ``ef`` wide finds: nearly always the nearest there are.

        Args:
            vectors: float32 [q, dimension].
            ef: how many to find, and how wide to search.

        Returns:
            Their first rows int64 [q, ef], nearest first, −1 where there are no more, and their closeness float32
            [q, ef]. The ``copies`` of those rows are as close.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        rows, closeness = np.empty((len(vectors), ef), np.int64), np.empty((len(vectors), ef), np.float32)
        wide = _wide(ef)
        self._searches += 1
        at_once = max(1, _STEPS_AT_ONCE // ef)
        for i in range(0, len(vectors), at_once):
            some, found, near = vectors[i : i + at_once], rows[i : i + at_once], closeness[i : i + at_once]
            _use_threads(cores() if len(some) > 1 and len(some) * ef >= _STEPS_FOR_THREADS else 1)
            with self._lock.reading():
                self._index.search_c(
                    len(some), faiss.swig_ptr(some), ef, faiss.swig_ptr(near), faiss.swig_ptr(found), wide
                )
        if self.copies.exist:  # until then each row is a node, of the same number
            rows = np.where(rows >= 0, self._rows.values[rows], np.int64(-1))
        return rows, closeness if self.metric is not Metric.L2 else np.negative(closeness, out=closeness)

    def nodes(self, rows: Rows) -> Rows:
        """The nodes of rows, int64 [m], all in the graph: the same for rows with equal vectors."""
        return self._nodes.values[rows].astype(np.int64) if self.copies.exist else rows

    def closeness(self, vectors: Array, rows: Rows) -> Array:
        """How close each vector is to each of the rows.

        Args:
            vectors: float32 [q, dimension].
            rows: int64 [m], all in the graph; quickest in ascending order.

        Returns:
            float32 [q, m].
        """

        def measure(asking: Array, asked: Rows, out: Array) -> None:
            with self._lock.reading():
                self._measure(self._flat.get_xb(), asking, asked, out)

        return self._blocks(measure, vectors, self.nodes(rows))

    def closeness_to(self, others: Array, vectors: Array, rows: Rows) -> Array:
        """As ``closeness``, to rows of ``others``, float32 [n, dimension]."""
        others = np.ascontiguousarray(others, np.float32)
        return self._blocks(lambda *args: self._measure(faiss.swig_ptr(others), *args), vectors, rows)

    def vectors(self, rows: Rows) -> Array:
        """The rows' vectors, float32 [len(rows), dimension]. Rows are int64 [m], all in the graph."""
        found = np.empty((len(rows), self.dimension), np.float32)
        nodes = np.ascontiguousarray(self.nodes(rows), np.int64)
        if len(nodes):
            _use_threads(1)
            with self._lock.reading():
                self._flat.reconstruct_batch_c(len(nodes), faiss.swig_ptr(nodes), faiss.swig_ptr(found))
        return found

    def write(self, path: Path, nodes: Path) -> None:
        """Writes it to files, the graph and which node each row is of; rows to add wait meanwhile, searches do not.

        Raises:
            RuntimeError: a file cannot be written, or nothing can be added any more, and the last rows may not be in.
            OSError: a file cannot be written.
        """
        with self._lock.unchanging():
            self._require_sound()
            faiss.write_index(self._index, str(path))
            with nodes.open("wb") as file:
                np.save(file, self._nodes.values, allow_pickle=False)

    def _require_sound(self) -> None:
        if not self._sound:
            raise RuntimeError("the graph takes no more rows since memory ran out while some were added")

    def _first(self, vectors: Array) -> Rows:
        """The row whose copy each of the next rows is; −1: it is the first of its vector, and a node."""
        self._require_sound()
        return self._firsts.take(vectors, self._count, self.vectors)

    def _append(self, vectors: Array, of: Rows) -> None:
        self._sound = False  # the vectors may be in, and their links not
        begin, new, copies = self._count, of < 0, np.flatnonzero(of >= 0)
        nodes = len(self._rows) + np.cumsum(new) - 1
        for row in copies.tolist():  # in order, since some are copies of those before them
            first = int(of[row])
            nodes[row] = nodes[first - begin] if first >= begin else self._nodes.values[first]
        self._know(begin + np.flatnonzero(new), nodes)
        self.copies.add(of[copies], begin + copies)
        if new.any():
            self._index.add(vectors if len(copies) == 0 else vectors[new])
        self._count += len(vectors)
        self._sound = True

    def _know(self, firsts: Rows, nodes: Rows) -> None:
        """Takes note of nodes' first rows and of the rows that come next, before a search can come to any of them."""
        self._rows.extend(firsts)
        self._nodes.extend(nodes)
        self.copies.make_room(len(self._nodes))

    def _relink_if_grown(self) -> None:
        if len(self._rows) >= self._relinked * _RELINK_GROWTH:
            self.relink()

    def relink(self) -> None:
        """Has rows found that few others link to. Searches wait for a moment now and then.

        Adding rows does it by itself as a graph grows; to be called when the last of many was added.
        """
        nodes = len(self._rows)
        if self.metric is Metric.COSINE or nodes == self._relinked:
            return
        with self._lock.unchanging():
            edits = relink.missing(*relink.lowest_layer(faiss, self._index.hnsw, nodes))
        for begin in range(0, len(edits), _MOST_AT_ONCE):
            with self._lock.writing():
                links, _, _ = relink.lowest_layer(faiss, self._index.hnsw, 0)
                relink.apply(links, edits[begin : begin + _MOST_AT_ONCE])
        self._relinked = nodes

    def _reserve(self) -> None:
        """Has the storage grow now, and not while readers wait. Room takes no memory before it is written to.

        One element more makes std::vector take room for twice as many; taking that element away keeps the room.
        """
        hnsw = self._index.hnsw
        for array in (self._flat.codes, hnsw.neighbors, hnsw.offsets, hnsw.levels):
            size = array.size()
            array.resize(size + 1)
            array.resize(size)

    def _measure(self, base: Any, asking: Array, asked: Rows, out: Array) -> None:
        measure = faiss.fvec_L2sqr_by_idx if self.metric is Metric.L2 else faiss.fvec_inner_products_by_idx
        pointers = [faiss.swig_ptr(array) for array in (out, asking, asked)]
        measure(pointers[0], pointers[1], base, pointers[2], self.dimension, *asked.shape)

    def _blocks(self, measure: Callable[[Array, Rows, Array], None], vectors: Array, rows: Rows) -> Array:
        """Measures blocks of rows, each for all vectors while it is in the processor's cache, blocks side by side.

        Not by a matrix product, for which rows would have to be copied together: that is slower for few vectors, and
        numpy's takes threads of its own.
        """
        count = len(vectors)
        found = np.empty((count, len(rows)), np.float32)
        block = min(len(rows), max(64, _BLOCK_BYTES // (4 * self.dimension)))
        at_once = block * max(1, _SCORES_AT_ONCE // max(1, block * count))
        _use_threads(cores() if found.size >= _SCORES_FOR_THREADS else 1)
        for begin in range(0, len(rows), max(1, at_once)):
            some = rows[begin : begin + at_once]
            blocks = -(-len(some) // block)
            padded = np.full(blocks * block, -1, np.int64)  # −1: none
            padded[: len(some)] = some
            asked = np.broadcast_to(padded.reshape(blocks, 1, block), (blocks, count, block)).reshape(-1, block)
            asking = np.broadcast_to(vectors, (blocks, *vectors.shape)).reshape(-1, self.dimension)
            out = np.empty(asked.shape, np.float32)
            measure(np.ascontiguousarray(asking, np.float32), np.ascontiguousarray(asked), out)
            by_vector = out.reshape(blocks, count, block).swapaxes(0, 1).reshape(count, -1)
            found[:, begin : begin + len(some)] = by_vector[:, : len(some)]
        return found if self.metric is not Metric.L2 else np.negative(found, out=found)


# Each call of faiss, however small, gives Python's lock away, and whoever wants it back waits for the event loop. So
# what a search can remember it does not ask for again.
_threads = threading.local()


def limit_threads(most: int) -> None:
    """Has faiss use so many OpenMP threads at most when this thread calls it."""
    _threads.most = most


def _use_threads(count: int) -> None:
    """How many OpenMP threads faiss uses when this thread calls it, if it may."""
    count = min(count, getattr(_threads, "most", count))
    if getattr(_threads, "count", None) != count:
        faiss.omp_set_num_threads(count)
        _threads.count = count


@lru_cache(maxsize=64)
def _wide(ef: int) -> Any:
    """What makes a search so wide; nobody changes it, so searches share it.

    Rows to go on from are kept in a heap: faiss's default, an array of ``ef`` that is gone through at every step, found
    the same rows in 3 to 12 % more time (20,000 × 512, ``ef`` 32 to 512, one by one and 16 at once).
    """
    return faiss.SearchParametersHNSW(efSearch=ef, bounded_queue=False)
