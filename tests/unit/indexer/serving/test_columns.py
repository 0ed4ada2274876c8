import threading
import tracemalloc
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.metadata import Plain
from indexer.serving.columns import Columns, Kind
from indexer.serving.growing import Growing
from tests.unit.indexer import strategies

Items = list[dict[str, Plain]]

items = st.lists(strategies.metadata, max_size=30)


def columns_of(metadata: Sequence[Mapping[str, Plain]], chunk: int = 1000) -> Columns:
    columns = Columns()
    for first in range(0, len(metadata), chunk):
        columns.extend(first, metadata[first : first + chunk])
    return columns


def read_back(columns: Columns) -> list[dict[str, Plain]]:
    """The metadata of every row; of a list its distinct texts, sorted."""
    read: list[dict[str, Plain]] = [{} for _ in range(columns.count)]
    for key in columns.keys():  # noqa: SIM118
        for kind in Kind:
            rows, values = columns.column(key, kind, columns.count)
            for row, value in zip(rows.tolist(), values.tolist(), strict=True):
                match kind:
                    case Kind.STRING:
                        read[row][key] = columns.words[value]
                    case Kind.NUMBER:
                        read[row][key] = value
                    case Kind.BOOL:
                        read[row][key] = bool(value)
                    case Kind.ELEMENT:
                        known = read[row].setdefault(key, [])
                        assert isinstance(known, list)
                        known.append(columns.words[value])
    return [{key: sorted(v) if isinstance(v, list) else v for key, v in one.items()} for one in read]


def expected(metadata: Sequence[Mapping[str, Plain]]) -> list[dict[str, Plain]]:
    def stored(value: Plain) -> Plain:
        match value:
            case bool() | str():
                return value
            case list():
                return sorted(set(value))
        return float(value)

    return [{key: stored(value) for key, value in one.items() if value != []} for one in metadata]


def same(found: list[dict[str, Plain]], metadata: Sequence[Mapping[str, Plain]]) -> None:
    assert found == expected(metadata)
    # True == 1 in Python.
    assert [{k: type(v) for k, v in one.items()} for one in found] == [
        {k: type(v) for k, v in one.items()} for one in expected(metadata)
    ]


@given(items, st.integers(1, 7))
def test_what_was_put_in_is_read_back(metadata: Items, chunk: int) -> None:
    same(read_back(columns_of(metadata, chunk)), metadata)


@given(items, st.data())
def test_a_column_that_was_read_goes_on_with_the_rows_that_came_since(metadata: Items, data: st.DataObject) -> None:
    columns = Columns()
    while columns.count < len(metadata):
        stop = data.draw(st.integers(columns.count + 1, len(metadata)))
        columns.extend(columns.count, metadata[columns.count : stop])
        same(read_back(columns), metadata[:stop])


@given(items, st.integers(0, 30))
def test_rows_behind_the_count_are_not_given(metadata: Items, count: int) -> None:
    columns = columns_of(metadata)
    read_back(columns)
    for key in strategies.KEYS:
        for kind in Kind:
            rows, values = columns.column(key, kind, count)
            short_rows, short_values = columns_of(metadata[:count]).column(key, kind, min(count, len(metadata)))
            assert rows.tolist() == short_rows.tolist()
            assert len(values) == len(short_values)


@given(items, st.data())
def test_kept_rows_are_numbered_anew_and_bring_their_own_words_only(metadata: Items, data: st.DataObject) -> None:
    columns = columns_of(metadata)
    rows = sorted(data.draw(st.sets(st.sampled_from(range(len(metadata)))))) if metadata else []
    kept = columns.kept(np.array(rows, np.int64))
    same(read_back(kept), [metadata[row] for row in rows])
    texts = [
        v for row in rows for value in metadata[row].values() for v in (value if isinstance(value, list) else [value])
    ]
    assert set(kept.words) == {text for text in texts if isinstance(text, str)}
    assert len(kept.words) == len(set(kept.words))


@given(items, items, st.data())
def test_rows_of_others_are_appended(metadata: Items, others: Items, data: st.DataObject) -> None:
    columns = columns_of(metadata)
    read_back(columns)
    first = data.draw(st.integers(0, len(others)))
    stop = data.draw(st.integers(first, len(others)))
    columns.copy_from(columns_of(others), first, stop, len(metadata))
    same(read_back(columns), metadata + others[first:stop])


@given(items)
def test_what_is_dumped_can_be_loaded(metadata: Items) -> None:
    columns = columns_of(metadata)
    words, dumped = columns.dump()
    columns.extend(len(metadata), [{"a": "written since"}])
    loaded = Columns.load(words, list(dumped), len(metadata))
    same(read_back(loaded), metadata)
    loaded.extend(len(metadata), metadata)
    same(read_back(loaded), metadata + metadata)


def test_rows_are_appended_in_their_order() -> None:
    columns = columns_of([{"a": 1}])
    for wrong in (0, 2):
        with pytest.raises(ValueError, match="cannot be the next"):
            columns.extend(wrong, [{}])
        with pytest.raises(ValueError, match="cannot be the next"):
            columns.copy_from(columns_of([{}]), 0, 1, wrong)
    with pytest.raises(ValueError, match="rows 0 to 2 of 1"):
        columns.copy_from(columns_of([{}]), 0, 2, 1)


def test_an_item_with_a_value_that_is_no_metadata_leaves_nothing_behind() -> None:
    columns = columns_of([{"a": 1}])
    with pytest.raises((TypeError, ValueError)):
        columns.extend(1, [{"a": 2}, {"a": object()}])  # type: ignore[dict-item]
    columns.extend(1, [{"a": 3}])
    same(read_back(columns), [{"a": 1}, {"a": 3}])


def test_items_that_each_bring_a_key_of_their_own_take_no_more_than_others() -> None:
    count = 200_000
    own = columns_of([{f"key-{i}": i} for i in range(count)])
    rows, values = own.column("key-123456", Kind.NUMBER, count)
    assert (rows.tolist(), values.tolist()) == ([123456], [123456.0])
    assert own.nbytes / count < 256
    kept = own.kept(np.arange(0, count, 2))
    assert kept.column("key-100000", Kind.NUMBER, count // 2)[0].tolist() == [50_000]
    assert len(list(kept.dump()[1])) == count // 2


@pytest.mark.parametrize("of_each", [lambda i: {f"key-{i}": i}, lambda i: {"name": f"picture number {i}.jpeg"}])
def test_the_memory_held_is_told(of_each: Callable[[int], dict[str, Plain]]) -> None:
    columns = Columns()
    tracemalloc.start()
    for first in range(0, 20_000, 500):
        columns.extend(first, [of_each(i) for i in range(first, first + 500)])
    columns.column("name", Kind.STRING, columns.count)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 0.6 * taken < columns.nbytes < 1.6 * taken


def test_threads_read_whole_rows_while_others_are_appended() -> None:
    columns = Columns()
    chunks, of_each, stop = 300, 64, threading.Event()
    wrong: list[str] = []

    def read() -> None:
        while not stop.is_set():
            count = columns.count
            for key, kind in (("n", Kind.NUMBER), ("s", Kind.STRING), ("own-0", Kind.NUMBER), ("own-299", Kind.NUMBER)):
                rows, values = columns.column(key, kind, count)
                numbers = values if kind is Kind.NUMBER else [int(columns.words[code]) for code in values.tolist()]
                if key in ("n", "s") and rows.tolist() != list(range(count)):
                    wrong.append(f"{key}: {len(rows)} of {count} rows")
                if not np.array_equal(rows, numbers):
                    wrong.append(f"{key}: values of other rows")

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for chunk in range(chunks):
        first = chunk * of_each
        columns.extend(first, [{"n": row, "s": str(row), f"own-{chunk}": row} for row in range(first, first + of_each)])
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert columns.count == chunks * of_each


@given(st.lists(st.lists(st.floats(width=32), max_size=20), max_size=20), st.sampled_from([None, 2]))
def test_what_a_growing_array_handed_out_stays_as_it_was(parts: list[list[float]], width: int | None) -> None:
    growing = Growing(np.float32, width)
    handed_out: list[tuple[np.ndarray, list[object]]] = []
    for part in parts:
        added = np.array(part, np.float32)
        growing.extend(added if width is None else np.stack([added, -added], axis=1))
        handed_out.append((growing.values, growing.values.tolist()))
        assert growing.nbytes >= growing.values.nbytes
    assert len(growing) == sum(map(len, parts))
    for array, was in handed_out:
        np.testing.assert_array_equal(array, np.array(was, np.float32).reshape(array.shape))
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
