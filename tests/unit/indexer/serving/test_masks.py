import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.metadata import Plain
from indexer.filters import AllOf, AnyOf, Comparison, Kind, Node, NoneOf, Op
from indexer.serving.columns import Columns
from indexer.serving.masks import Masks
from tests.unit.indexer import model, strategies

Items = list[dict[str, Plain]]

ENOUGH = 1 << 20
items = st.lists(strategies.metadata, min_size=1, max_size=30)


def masks_of(metadata: Items, max_bytes: int = ENOUGH) -> tuple[Columns, Masks]:
    columns = Columns()
    columns.extend(0, metadata)
    return columns, Masks(columns, max_bytes)


def found(node: Node, *values: Plain | None) -> list[Plain | None]:
    """Which values of the key "a" a filter leaves; None: the key is missing."""
    _, masks = masks_of([{} if value is None else {"a": value} for value in values])
    return [value for value, hit in zip(values, masks.mask(node, len(values)).tolist(), strict=True) if hit]


def a(op: Op, *values: str | int | float | bool) -> Comparison:
    kinds = {bool: Kind.BOOL, str: Kind.STRING, int: Kind.NUMBER, float: Kind.NUMBER}
    return Comparison("a", op, kinds[type(values[0])] if values else Kind.NONE, values)


@given(items, strategies.nodes)
def test_a_filter_is_true_where_the_contract_says_so(metadata: Items, node: Node) -> None:
    _, masks = masks_of(metadata)
    assert masks.mask(node, len(metadata)).tolist() == [model.true_for(node, one) for one in metadata]


@given(items, st.lists(strategies.nodes, min_size=1, max_size=3), st.data())
def test_masks_follow_the_rows_that_are_appended(metadata: Items, nodes: list[Node], data: st.DataObject) -> None:
    columns = Columns()
    masks = Masks(columns, data.draw(st.sampled_from([0, 3000, ENOUGH])))
    expected = {node: [model.true_for(node, one) for one in metadata] for node in nodes}
    while columns.count < len(metadata):
        stop = data.draw(st.integers(columns.count + 1, len(metadata)))
        columns.extend(columns.count, metadata[columns.count : stop])
        node, count = data.draw(st.sampled_from(nodes)), data.draw(st.integers(0, stop))
        assert masks.mask(node, count).tolist() == expected[node][:count]


@pytest.mark.parametrize(
    ("node", "leaves"),
    [
        (a(Op.EQ, 1), [1, 1.0]),
        (a(Op.EQ, True), [True]),
        (a(Op.EQ, "1"), ["1"]),
        (a(Op.CONTAINS, "1"), [["1", "2"]]),
        (a(Op.GE, 0), [1, 1.0]),
        (a(Op.IN, "1", "2"), ["1"]),
        (a(Op.NOT_IN, 1, 2), [True, "1", ["1", "2"], None]),
        (a(Op.NE, "1"), [1, 1.0, True, ["1", "2"], None]),
        (a(Op.EXISTS), [1, 1.0, True, "1", ["1", "2"]]),
        (NoneOf((a(Op.EXISTS),)), [None]),
        (NoneOf((NoneOf((AllOf((a(Op.GT, 0), a(Op.LT, 2))),)),)), [1, 1.0]),
        (AnyOf((a(Op.EQ, False), a(Op.EQ, True))), [True]),
    ],
)
def test_values_of_another_type_equal_nothing(node: Node, leaves: list[Plain | None]) -> None:
    hits = found(node, 1, 1.0, True, "1", ["1", "2"], None)
    assert [repr(value) for value in hits] == [repr(value) for value in leaves]


def test_numbers_are_told_apart_up_to_two_to_the_53rd() -> None:
    assert found(a(Op.EQ, 2**53 - 1), 2**53 - 2, 2**53 - 1, 2**53) == [2**53 - 1]
    assert found(a(Op.LT, 2**53), 2**53 - 1, 2**53) == [2**53 - 1]
    assert found(a(Op.EQ, 0), 0, -0.0, 5e-324) == [0, -0.0]
    assert found(a(Op.GE, 2**63 - 1), 2**63 - 1, -(2**63)) == [2**63 - 1]


@pytest.mark.parametrize("wanted", [2, 50, 256])
def test_many_values_are_looked_up_like_few(wanted: int) -> None:
    rows = [*range(1000), 0.5, "3", True, None]
    assert found(a(Op.IN, *range(0, 3 * wanted, 3)), *rows) == list(range(0, min(1000, 3 * wanted), 3))
    assert found(a(Op.IN, *map(str, range(wanted))), *map(str, range(1000))) == [str(i) for i in range(wanted)]


def test_a_mask_is_kept_and_cannot_be_changed_by_whoever_has_it() -> None:
    _, masks = masks_of([{"a": 1}] * 100)
    mask = masks.mask(a(Op.EQ, 1), 100)
    assert np.shares_memory(mask, masks.mask(a(Op.EQ, 1), 100))
    with pytest.raises(ValueError, match="read-only"):
        mask &= False


def test_masks_that_were_not_asked_for_in_a_while_give_way() -> None:
    _, masks = masks_of([{"a": 1}] * 10_000, max_bytes=30_000)
    often = masks.mask(a(Op.EQ, 1), 10_000)
    for i in range(100):
        masks.mask(a(Op.EQ, f"some text {i}"), 10_000)
        assert np.shares_memory(often, masks.mask(a(Op.EQ, 1), 10_000))
        assert masks.nbytes <= 30_000


def test_filters_without_rows_take_no_more_than_allowed_either() -> None:
    masks = Masks(Columns(), 10_000)
    for i in range(1000):
        assert masks.mask(a(Op.EQ, i), 0).tolist() == []
    assert masks.nbytes <= 10_000


def test_a_mask_that_is_larger_than_the_cache_is_answered_all_the_same() -> None:
    _, masks = masks_of([{"a": 1}] * 10_000, max_bytes=100)
    assert masks.mask(a(Op.EQ, 1), 10_000).all()
    assert masks.nbytes == 0


def test_threads_get_right_masks_while_rows_are_appended() -> None:
    columns = Columns()
    masks = Masks(columns, 20_000)
    nodes = [a(Op.EQ, n) for n in range(7)] + [NoneOf((a(Op.EQ, n),)) for n in range(7)]
    wrong: list[str] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            for i, node in enumerate(nodes):
                count = columns.count
                equal = np.arange(count) % 7 == i % 7
                if not np.array_equal(masks.mask(node, count), equal if i < 7 else ~equal):
                    wrong.append(f"{node} of {count}")

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for first in range(0, 300 * 64, 64):
        columns.extend(first, [{"a": row % 7} for row in range(first, first + 64)])
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong
