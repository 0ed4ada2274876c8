"""The files of a snapshot: the graph as faiss writes it, rows, columns and words as Arrow, the tail as numpy."""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from indexer.collections import Collection, Metric
from indexer.serving.columns import Dumped, Kind
from indexer.serving.graph import Graph, GraphSettings
from indexer.serving.table import TableState

GRAPH, NODES, ROWS, COLUMNS = "graph.faiss", "nodes.npy", "rows.arrow", "columns.arrow"
WORDS, TAIL = "words.arrow", "tail.npy"
FILES = (GRAPH, NODES, ROWS, COLUMNS, WORDS, TAIL)

# So many texts, and values of columns, are in Arrow at once beside what they are made of.
_TEXTS_AT_ONCE = 16_384
_VALUES_AT_ONCE = 1_000_000

_ROWS = pa.schema(
    [("id", pa.large_string()), ("packed", pa.large_binary()), ("live", pa.bool_()), ("length", pa.float32())]
)
# Codes or numbers, whichever the column's kind is made of; the other list is empty.
_COLUMNS = pa.schema(
    [
        ("key", pa.large_string()),
        ("kind", pa.large_string()),
        ("rows", pa.large_list(pa.int32())),
        ("codes", pa.large_list(pa.int32())),
        ("numbers", pa.large_list(pa.float64())),
    ]
)
_WORDS = pa.schema([("word", pa.large_string())])


def write_files(folder: Path, state: TableState) -> None:
    """Writes ``FILES``.

    Raises:
        OSError: the disk is full or fails.
        RuntimeError: the same, from faiss.
    """
    _write_graph(folder / GRAPH, folder / NODES, state.graph)
    _write_rows(folder / ROWS, state)
    _write_columns(folder / COLUMNS, state.columns)
    with _written(folder / WORDS, _WORDS) as words:
        for begin in range(0, len(state.words), _TEXTS_AT_ONCE):
            words.write_batch(pa.record_batch([state.words[begin : begin + _TEXTS_AT_ONCE]], schema=_WORDS))
    with (folder / TAIL).open("wb") as tail:
        np.save(tail, state.tail, allow_pickle=False)


def read_files(folder: Path, collection: Collection, graph: GraphSettings, tail_from: int) -> TableState:
    """Reads ``FILES``, which are as they were written, for such a collection and such a graph."""
    ids, packed, live, lengths = _read_rows(folder / ROWS)
    return TableState(
        ids,
        packed,
        lengths if collection.metric is Metric.COSINE else None,
        live,
        [word for batch in _batches(folder / WORDS) for word in batch.column("word").to_pylist()],
        _read_columns(folder / COLUMNS),
        Graph.read(folder / GRAPH, folder / NODES, collection.fingerprint.dimension, collection.metric, graph),
        tail_from,
        np.load(folder / TAIL, allow_pickle=False),
    )


def _write_graph(file: Path, nodes: Path, graph: Graph) -> None:
    graph.write(file, nodes)
    # faiss only prints that closing a file failed, and then the end of it is missing: what it writes last is the
    # vector of the last node.
    last = graph.vectors(graph.firsts[-1:].astype(np.int64)).tobytes()
    with file.open("rb") as written:
        written.seek(-min(len(last), file.stat().st_size), os.SEEK_END)
        if written.read() != last:
            raise OSError(errno.EIO, "the end of the graph was not written", str(file))


def _write_rows(file: Path, state: TableState) -> None:
    with _written(file, _ROWS) as rows:
        for begin in range(0, len(state.ids), _TEXTS_AT_ONCE):
            part = slice(begin, begin + _TEXTS_AT_ONCE)
            live = state.live[part]
            lengths = pa.nulls(len(live), pa.float32()) if state.lengths is None else state.lengths[part]
            columns = [state.ids[part], state.packed[part], live, lengths]
            rows.write_batch(pa.record_batch(columns, schema=_ROWS))


def _read_rows(
    file: Path,
) -> tuple[list[str], list[bytes], npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    ids: list[str] = []
    packed: list[bytes] = []
    live, lengths = [np.zeros(0, np.bool_)], [np.zeros(0, np.float32)]
    for batch in _batches(file):
        ids += batch.column("id").to_pylist()
        packed += batch.column("packed").to_pylist()
        live.append(batch.column("live").to_numpy(zero_copy_only=False))
        lengths.append(batch.column("length").to_numpy(zero_copy_only=False))
    return ids, packed, np.concatenate(live), np.concatenate(lengths)


def _write_columns(file: Path, columns: Iterable[Dumped]) -> None:
    with _written(file, _COLUMNS) as written:
        part: list[Dumped] = []
        values = 0
        for column in columns:
            part.append(column)
            values += len(column[2])
            if values >= _VALUES_AT_ONCE:
                written.write_batch(_to_batch(part))
                part, values = [], 0
        if part:
            written.write_batch(_to_batch(part))


def _to_batch(columns: Sequence[Dumped]) -> pa.RecordBatch:
    def lists(arrays: list[npt.NDArray[Any]], dtype: npt.DTypeLike) -> pa.LargeListArray:
        offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        return pa.LargeListArray.from_arrays(offsets, np.concatenate(arrays).astype(dtype, copy=False))

    none = np.zeros(0, np.int32)
    keys, kinds = [key for key, _, _, _ in columns], [kind.name for _, kind, _, _ in columns]
    rows = lists([rows for _, _, rows, _ in columns], np.int32)
    codes = lists([none if kind is Kind.NUMBER else values for _, kind, _, values in columns], np.int32)
    numbers = lists([values if kind is Kind.NUMBER else none for _, kind, _, values in columns], np.float64)
    return pa.record_batch([keys, kinds, rows, codes, numbers], schema=_COLUMNS)


def _read_columns(file: Path) -> Iterator[Dumped]:
    def arrays(lists: pa.LargeListArray) -> list[npt.NDArray[Any]]:
        offsets, values = lists.offsets.to_numpy().tolist(), lists.values.to_numpy()
        return [values[begin:end] for begin, end in pairwise(offsets)]

    for batch in _batches(file):
        keys, kinds = batch.column("key").to_pylist(), [Kind[name] for name in batch.column("kind").to_pylist()]
        rows, codes, numbers = (arrays(batch.column(name)) for name in ("rows", "codes", "numbers"))
        for i, (key, kind) in enumerate(zip(keys, kinds, strict=True)):
            values = numbers[i] if kind is Kind.NUMBER else codes[i]
            yield key, kind, rows[i], values.astype(np.int8) if kind is Kind.BOOL else values


@contextmanager
def _written(file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatchFileWriter]:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        yield writer


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(file), "rb") as source, pa.ipc.open_file(source) as reader:
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)
