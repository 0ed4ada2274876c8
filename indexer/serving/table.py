"""The rows of a collection in memory, and the states of it that readers see.

A row never changes once it is written: a change of an item makes its row dead and appends another. So a state, a
``View``, is the number of rows there were and which of them were alive, and arrays that only grow are shared by all
views. Whatever changes a table runs on the event loop; views are read by any thread.

Rows begin in the tail, an array that is searched row by row; maintenance moves them into the graph.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chassis.vectors import Array
from indexer.collections import Metric
from indexer.reads import Fields, StoredItem
from indexer.serving.columns import Columns, Dumped
from indexer.serving.graph import Graph, GraphSettings
from indexer.serving.growing import Growing
from indexer.serving.masks import Masks
from indexer.serving.orders import Orders
from indexer.writes import Written

Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]

# What CPython takes for an id (a str, its place in the list of ids, its entry in ``row_of`` and the row's number) and
# for packed metadata (a bytes object and its place), beyond their characters: measured with tracemalloc.
_OVERHEAD = 230
# How far the length of a vector of float32 numbers is from 1 where it should be 1.
_OF_LENGTH_1 = 1e-6
_BUILT_AT_ONCE = 1024  # about a second's work: so long a rebuild goes on when it is told to stop


class StoppedError(Exception):
    """What was being made is not wanted any more."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One state of a collection.

    Attributes:
        count: rows, dead ones included.
        live: bool [count]; false for rows that were replaced or deleted.
        live_count: rows that are alive, which is the number of items.
        ids: row → id; may have grown behind ``count`` since.
        row_of: id → row of the items that there are just now, which may be others than this state has.
        packed: row → serialised metadata; likewise.
        lengths: float32 [count], of the vectors of a cosine collection as they were written; None for other metrics.
        columns: metadata by key; rows behind ``count`` do not belong to this state.
        masks: of filters over ``columns``.
        orders: of the rows.
        graph: holds the vectors of the rows before ``tail_from``; may have grown since.
        tail_from: the first row of the tail.
        tail: float32 [count − tail_from, dimension].
    """

    count: int
    live: Bools
    live_count: int
    ids: list[str]
    row_of: Mapping[str, int]
    packed: list[bytes]
    lengths: Array | None
    columns: Columns
    masks: Masks
    orders: Orders
    graph: Graph
    tail_from: int
    tail: Array

    @property
    def dead_count(self) -> int:
        """Rows that were replaced or deleted."""
        return self.count - self.live_count

    def vectors(self, rows: Rows) -> Array:
        """The rows' vectors as they are searched, float32 [len(rows), dimension]; of length 1 for the cosine."""
        in_tail = rows >= self.tail_from
        if not in_tail.any():
            return self.graph.vectors(rows)
        found = np.empty((len(rows), self.tail.shape[1]), np.float32)
        found[in_tail] = self.tail[rows[in_tail] - self.tail_from]
        if not in_tail.all():
            found[~in_tail] = self.graph.vectors(rows[~in_tail])
        return found

    def originals(self, rows: Rows) -> Array:
        """The rows' vectors as they were written (of a cosine collection, with the last digit rounded)."""
        vectors = self.vectors(rows)
        return vectors if self.lengths is None else vectors * self.lengths[rows, None]

    def items(self, rows: Sequence[int], fields: Fields) -> list[StoredItem]:
        """What was asked for of the rows."""
        vectors = self.originals(np.array(rows, np.int64)) if fields.vector and rows else None
        return [
            StoredItem(
                self.ids[row],
                None if vectors is None else vectors[i],
                self.packed[row] if fields.metadata else None,
            )
            for i, row in enumerate(rows)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class TableState:
    """Everything a table holds, for a snapshot. Arrays as in ``View``.

    Attributes:
        words: of the columns.
        columns: as ``Columns.dump`` gives them: to be gone through once.
    """

    ids: list[str]
    packed: list[bytes]
    lengths: Array | None
    live: Bools
    words: list[str]
    columns: Iterable[Dumped]
    graph: Graph
    tail_from: int
    tail: Array


class Table:
    """The rows of one collection."""

    def __init__(self, dimension: int, metric: Metric, graph_settings: GraphSettings, mask_bytes: int) -> None:
        """An empty table.

        Args:
            dimension: of the vectors.
            metric: of the collection.
            graph_settings: how graphs are made.
            mask_bytes: most bytes of remembered filters.
        """
        self._metric = metric
        self._settings = graph_settings
        self._mask_bytes = mask_bytes
        self._dimension = dimension
        self._ids: list[str] = []
        self._packed: list[bytes] = []
        self._lengths = Growing(np.float32) if metric is Metric.COSINE else None
        self._columns = Columns()
        self._graph = Graph(dimension, metric, graph_settings)
        self._tail_from = self._tail_begins = 0  # the array begins with rows that are in the graph by now
        self._tail = Growing(np.float32, dimension)
        # Of a compacted table: its rows' numbers in the other, and how many of the other's it has taken over.
        self._sources: Rows = np.empty(0, np.int64)
        self.caught_up = 0
        self._text_bytes = 0
        self.row_of: dict[str, int] = {}
        self._share()
        self.view = self._seen(np.zeros(0, np.bool_))

    @classmethod
    def from_state(cls, metric: Metric, graph_settings: GraphSettings, mask_bytes: int, state: TableState) -> "Table":
        """A table as ``state()`` gave it."""
        table = cls(state.tail.shape[1], metric, graph_settings, mask_bytes)
        table._ids, table._packed = state.ids, state.packed
        if table._lengths is not None and state.lengths is not None:
            table._lengths.extend(state.lengths)
        table._columns = Columns.load(state.words, state.columns, len(state.ids))
        table._graph = state.graph
        table._tail_from = table._tail_begins = state.tail_from
        table._tail.extend(state.tail)
        table._text_bytes = sum(map(len, state.ids)) + sum(map(len, state.packed)) + _OVERHEAD * len(state.ids)
        table.row_of = {state.ids[row]: row for row in np.flatnonzero(state.live).tolist()}
        table._share()
        table.view = table._seen(state.live)
        return table

    @property
    def nbytes(self) -> int:
        """Bytes it takes, estimated."""
        lengths = 0 if self._lengths is None else self._lengths.nbytes
        # Of the tail what is filled: its room for what is to come, up to as much again, takes nothing until it is used.
        arrays = self._graph.nbytes + self._tail.values.nbytes + lengths + self._columns.nbytes + self.view.live.nbytes
        return arrays + self._masks.nbytes + self._orders.nbytes + self._text_bytes

    def state(self) -> TableState:
        """Everything it holds now: quick, since nothing large is copied."""
        (words, columns), view = self._columns.dump(), self.view
        return TableState(
            list(self._ids),
            list(self._packed),
            view.lengths,
            view.live,
            words,
            columns,
            self._graph,
            self._tail_from,
            view.tail,
        )

    def apply(self, written: Sequence[Written], deleted: Iterable[str]) -> None:
        """Makes one new state.

        Args:
            written: items, each id once; what was there under an id is replaced.
            deleted: ids; unknown ones are ignored.
        """
        first = len(self._ids)
        unit, lengths = self._as_searched(written)
        dead = [row for item_id in deleted if (row := self.row_of.pop(item_id, None)) is not None]
        for row, item in enumerate(written, first):
            if (old := self.row_of.get(item.id)) is not None:
                dead.append(old)
            self.row_of[item.id] = row
        if written:
            self._append([item.id for item in written], [item.packed for item in written], unit, lengths)
            self._columns.extend(first, [item.metadata for item in written])
        live = np.ones(len(self._ids), np.bool_)
        live[:first] = self.view.live
        live[dead] = False
        self.view = self._seen(live)

    def absorbed(self, upto: int) -> None:
        """The graph holds the vectors of all rows before ``upto`` now."""
        self._tail_from = upto
        gone = upto - self._tail_begins
        if 2 * gone >= len(self._tail):  # so that a long tail is copied a few times, not at every step
            rest = self._tail.values[gone:]
            self._tail_begins, self._tail = upto, Growing(np.float32, self._dimension)
            self._tail.extend(rest)
        self.view = self._seen(self.view.live)

    def compacted(
        self,
        view: View,
        stopped: Callable[[], bool],
        build: Callable[[Graph, Array], None] = Graph.build,
        settings: GraphSettings | None = None,
    ) -> "Table":
        """A table with only the live rows of a view, all of them in its graph. Takes long; runs in a thread.

        Args:
            view: of this table.
            stopped: whether to give up.
            build: adds rows to a graph that nobody reads yet.
            settings: how its graph is made; None: as this one's.

        Raises:
            StoppedError: ``stopped`` said so.
        """
        rows = np.flatnonzero(view.live)
        table = Table(self._dimension, self._metric, settings or self._settings, self._mask_bytes)
        for begin in range(0, len(rows), _BUILT_AT_ONCE):
            if stopped():
                raise StoppedError
            build(table._graph, view.vectors(rows[begin : begin + _BUILT_AT_ONCE]))
        table._graph.relink()
        table._tail_from = table._tail_begins = len(rows)
        table._columns = view.columns.kept(rows)
        table._ids = [view.ids[row] for row in rows.tolist()]
        table._packed = [view.packed[row] for row in rows.tolist()]
        if table._lengths is not None and view.lengths is not None:
            table._lengths.extend(view.lengths[rows])
        table._text_bytes = sum(map(len, table._ids)) + sum(map(len, table._packed)) + _OVERHEAD * len(rows)
        table.row_of = {item_id: row for row, item_id in enumerate(table._ids)}
        table._sources, table.caught_up = rows, view.count
        table._share()
        table.view = table._seen(np.ones(len(rows), np.bool_))
        return table

    def catch_up(self, now: View) -> None:
        """Takes over what has happened, up to ``now``, to the table that this one was compacted from.

        May be called again and again, from a thread as long as nobody else uses this table.
        """
        first, since = len(self._ids), self.caught_up
        live = np.ones(first + now.count - since, np.bool_)
        live[:first] = self.view.live & now.live[self._sources]
        for row in np.flatnonzero(self.view.live & ~live[:first]).tolist():
            if self.row_of.get(self._ids[row]) == row:
                del self.row_of[self._ids[row]]
        if now.count > since:
            live[first:] = now.live[since:]
            new = np.arange(since, now.count)
            lengths = None if now.lengths is None else now.lengths[since:]
            ids, packed = now.ids[since : now.count], now.packed[since : now.count]
            self._append(ids, packed, now.vectors(new), lengths)
            self._columns.copy_from(now.columns, since, now.count, first)
            for row in np.flatnonzero(live[first:]).tolist():
                self.row_of[ids[row]] = first + row
            self._sources, self.caught_up = np.concatenate((self._sources, new)), now.count
        self.view = self._seen(live)

    def build_tail(self, stopped: Callable[[], bool], build: Callable[[Graph, Array], None] = Graph.build) -> None:
        """Moves the tail into the graph; in a thread, while nobody else uses this table.

        Raises:
            StoppedError: ``stopped`` said so.
        """
        tail = self.view.tail
        for begin in range(0, len(tail), _BUILT_AT_ONCE):
            if stopped():
                raise StoppedError
            build(self._graph, tail[begin : begin + _BUILT_AT_ONCE])
        self._graph.relink()
        self.absorbed(self._graph.count)

    def _append(self, ids: list[str], packed: list[bytes], vectors: Array, lengths: Array | None) -> None:
        self._ids.extend(ids)
        self._packed.extend(packed)
        self._tail.extend(vectors)
        if self._lengths is not None and lengths is not None:
            self._lengths.extend(lengths)
        self._text_bytes += sum(map(len, ids)) + sum(map(len, packed)) + _OVERHEAD * len(ids)

    def _as_searched(self, written: Sequence[Written]) -> tuple[Array, Array | None]:
        """The vectors and, in a cosine collection, the lengths that were taken off them."""
        vectors = np.stack([item.vector for item in written]) if written else np.empty((0, self._dimension), np.float32)
        if self._metric is not Metric.COSINE:
            return vectors, None
        exact = vectors.astype(np.float64)
        norms = np.linalg.norm(exact, axis=1)
        unit, lengths = (exact / norms[:, None]).astype(np.float32), norms.astype(np.float32)
        # What a model made of length 1 comes back as it was written, so that an export that is imported again is equal.
        as_given = np.abs(norms - 1) < _OF_LENGTH_1
        unit[as_given], lengths[as_given] = vectors[as_given], 1
        for i, item in enumerate(written):
            if item.length is not None:  # doing it once more could change the last digit
                unit[i], lengths[i] = item.vector, item.length
        return unit, lengths

    def _share(self) -> None:
        """Makes what all views share, once ids and columns are in place."""
        self._masks = Masks(self._columns, self._mask_bytes)
        self._orders = Orders(self._ids, self._columns)

    def _seen(self, live: Bools) -> View:
        return View(
            count=len(self._ids),
            live=live,
            live_count=int(np.count_nonzero(live)),
            ids=self._ids,
            row_of=self.row_of,
            packed=self._packed,
            lengths=None if self._lengths is None else self._lengths.values,
            columns=self._columns,
            masks=self._masks,
            orders=self._orders,
            graph=self._graph,
            tail_from=self._tail_from,
            tail=self._tail.values[self._tail_from - self._tail_begins :],
        )
