"""Filters as Chroma answers them, against the contract's words written down in Python."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from chassis.metadata import MAX_STRING_BYTES, Plain
from indexer import store
from indexer.collections import Collection, Metric
from indexer.filters import MAX_VALUES, MAX_VALUES_IN_ALL, AllOf, AnyOf, Comparison, Kind, Node, NoneOf, Op, Scalar
from indexer.reads import Fields, Item
from tests.unit.indexer.conftest import Connected

KEYS = ["a", "b", "Key.c-d_e", "n"]
NUMBERS: list[int | float] = [
    0,
    1,
    -1,
    2,
    2.0,
    1.0,
    0.5,
    -0.0,
    1e300,
    -1e300,
    5e-324,
    0.1 + 0.2,
    1.5,
    -0.5,
    -1.5,
    10**18 + 1,
]
NUMBERS += [2**53, 2**53 + 1, float(2**53), 2**63 - 1, -(2**63), float(2**63), float(-(2**63))]
STRINGS = ["", "x", "X", "x ", "true", "1", "2.0", "ü😀", "%", "_", "'; --", "a\x00b", "$eq", "#a", "a"]
LISTS = [["x"], ["x", "a"], ["1"], ["#a", "a"], ["x", "x"], ["ü😀"]]


def order(stored: int | float, given: int | float) -> int:
    """-1, 0 or 1, exact except for what ``chroma_where`` says of numbers beyond 2^53."""
    if isinstance(stored, float) and isinstance(given, int):
        given = float(given)
    if isinstance(stored, int) and isinstance(given, float) and abs(given) >= 2**63:
        given = 2**63 - 1 if given > 0 else -(2**63)
    return (stored > given) - (stored < given)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def equals(value: Plain | None, wanted: Scalar) -> bool:
    match value, wanted:
        case (bool(), bool()) | (str(), str()):
            return value == wanted
        case (int() | float(), int() | float()) if is_number(value) and is_number(wanted):
            return order(value, wanted) == 0
    return False


def compares(c: Comparison, metadata: dict[str, Plain]) -> bool:
    value = metadata.get(c.key)
    match c.op:
        case Op.EQ | Op.IN:
            return any(equals(value, wanted) for wanted in c.values)
        case Op.NE | Op.NOT_IN:
            return not any(equals(value, wanted) for wanted in c.values)
        case Op.EXISTS:
            return c.key in metadata
        case Op.CONTAINS:
            return isinstance(value, list) and c.values[0] in value
    (limit,) = c.values
    if not isinstance(value, int | float) or isinstance(value, bool) or isinstance(limit, str):
        return False
    accepted = {Op.LT: [-1], Op.LE: [-1, 0], Op.GT: [1], Op.GE: [1, 0]}
    return order(value, limit) in accepted[c.op]


def matches(node: Node, metadata: dict[str, Plain]) -> bool:
    match node:
        case Comparison():
            return compares(node, metadata)
        case AllOf(filters):
            return all(matches(f, metadata) for f in filters)
        case AnyOf(filters):
            return any(matches(f, metadata) for f in filters)
        case NoneOf(filters):
            return not any(matches(f, metadata) for f in filters)


def values_of(kind: Kind) -> st.SearchStrategy[Scalar]:
    match kind:
        case Kind.NUMBER:
            return st.sampled_from(NUMBERS)
        case Kind.STRING:
            return st.sampled_from(STRINGS)
        case _:
            return st.booleans()


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    op = draw(st.sampled_from(Op))
    match op:
        case Op.EXISTS:
            kind, count = Kind.NONE, 0
        case Op.LT | Op.LE | Op.GT | Op.GE:
            kind, count = Kind.NUMBER, 1
        case Op.CONTAINS:
            kind, count = Kind.STRING, 1
        case _:
            kind = draw(st.sampled_from([Kind.NUMBER, Kind.STRING, Kind.BOOL]))
            count = draw(st.integers(1, 5)) if op in (Op.IN, Op.NOT_IN) else 1
    values = tuple(draw(values_of(kind)) for _ in range(count))
    return Comparison(draw(st.sampled_from([*KEYS, "absent"])), op, kind, values)


def groups(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    some = st.lists(children, min_size=1, max_size=3).map(tuple)
    return st.one_of(some.map(AllOf), some.map(AnyOf), some.map(NoneOf))


NODES: st.SearchStrategy[Node] = st.recursive(comparisons(), groups, max_leaves=8)


def any_value(rng: random.Random) -> Plain:
    value: Plain = rng.choice([*NUMBERS, *STRINGS, *LISTS, True, False, True, False])
    return value


@pytest.fixture(scope="module")
def pool(connected: Connected) -> tuple[Collection, dict[str, dict[str, Plain]]]:
    """Items with every mixture of keys and types, some with no metadata at all."""
    rng = random.Random(7)
    metadata = {f"i{n}": {key: any_value(rng) for key in KEYS if rng.random() < 0.7} for n in range(192)}
    metadata |= {f"empty{n}": {} for n in range(4)}
    collection = connected.collection("where", Metric.L2, 4)
    items = [Item(i, np.full(4, n, np.float32), md) for n, (i, md) in enumerate(metadata.items())]
    connected.upsert(collection, *items)
    return collection, metadata


def found(connected: Connected, collection: Collection, node: Node) -> set[str]:
    query = np.zeros((1, 4), np.float32)
    (rows,) = connected.loop.run(connected.store.search(collection, query, node, 1000, Fields()))
    return {row.item.id for row in rows}


@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(node=NODES)
def test_any_filter_finds_what_the_contract_says(
    connected: Connected, pool: tuple[Collection, dict[str, dict[str, Plain]]], node: Node
) -> None:
    collection, metadata = pool
    assert found(connected, collection, node) == {i for i, md in metadata.items() if matches(node, md)}


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("negated", [False, True])
def test_every_operator_and_its_negation_over_every_value(
    connected: Connected, pool: tuple[Collection, dict[str, dict[str, Plain]]], op: Op, negated: bool
) -> None:
    collection, metadata = pool
    match op:
        case Op.EXISTS:
            choices: list[tuple[Kind, Scalar | None]] = [(Kind.NONE, None)]
        case Op.LT | Op.LE | Op.GT | Op.GE:
            choices = [(Kind.NUMBER, v) for v in NUMBERS]
        case Op.CONTAINS:
            choices = [(Kind.STRING, v) for v in STRINGS]
        case _:
            choices = [(Kind.NUMBER, v) for v in NUMBERS] + [(Kind.STRING, v) for v in STRINGS]
            choices += [(Kind.BOOL, True), (Kind.BOOL, False)]
    for kind, value in choices:
        comparison = Comparison("a", op, kind, () if value is None else (value,))
        node = NoneOf((comparison,)) if negated else comparison
        assert found(connected, collection, node) == {i for i, md in metadata.items() if matches(node, md)}, node


def test_the_largest_filter_that_is_taken_can_be_answered(
    connected: Connected, pool: tuple[Collection, dict[str, dict[str, Plain]]]
) -> None:
    collection, metadata = pool
    many: tuple[Scalar, ...] = tuple(math.pi * i for i in range(1, MAX_VALUES + 1))
    node = NoneOf(tuple(Comparison("a", Op.IN, Kind.NUMBER, many) for _ in range(MAX_VALUES_IN_ALL // MAX_VALUES)))
    assert found(connected, collection, node) == set(metadata)
    ranges = AnyOf(tuple(NoneOf((Comparison("n", Op.LT, Kind.NUMBER, (i,)),)) for i in range(127)))
    assert found(connected, collection, ranges) == {i for i, md in metadata.items() if matches(ranges, md)}
    deep: Node = Comparison("a", Op.EXISTS, Kind.NONE, ())
    for level in range(15):
        deep = NoneOf((deep, Comparison("absent", Op.EQ, Kind.NUMBER, (level,))))
    assert found(connected, collection, deep) == {i for i, md in metadata.items() if matches(deep, md)}


def test_the_longest_filter_that_is_sent_can_be_answered_and_a_longer_one_is_refused_by_name(
    connected: Connected, pool: tuple[Collection, dict[str, dict[str, Plain]]]
) -> None:
    """In JSON, which Chroma is spoken to in, this character has six bytes."""
    collection, _ = pool
    text = "\x01" * MAX_STRING_BYTES
    most = (store._MOST_BYTES - store._BESIDE_BYTES) // len(json.dumps([text]))
    assert most < MAX_VALUES_IN_ALL, "more are taken by contract"
    longest, longer = (Comparison("a", Op.IN, Kind.STRING, (text,) * n) for n in (most - 1, most + 1))
    assert connected.loop.run(connected.store.matching(collection, longest)) == []
    assert found(connected, collection, longest) == set()
    for work in (
        connected.store.matching(collection, longer),
        connected.store.search(collection, np.zeros((1, 4), np.float32), longer, 1, Fields()),
    ):
        with pytest.raises(LikenessError) as caught:
            connected.loop.run(work)
        assert caught.value.reason == error_pb2.REASON_FILTER_INVALID
        assert "a request to Chroma has room for 41," in caught.value.message


PLAIN: st.SearchStrategy[Plain] = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=5), min_size=1, max_size=5),
)
METADATA = st.dictionaries(st.sampled_from([*KEYS, "f", "g"]), PLAIN)


def typed(metadata: dict[str, Plain]) -> dict[str, tuple[type, Plain]]:
    return {key: (type(value), value) for key, value in metadata.items()}


@pytest.fixture(scope="module")
def notes(connected: Connected) -> Collection:
    return connected.collection("replaced", Metric.COSINE, 4)


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(first=METADATA, second=METADATA, moved=st.booleans())
def test_replaced_metadata_comes_back_as_written_and_leaves_no_old_key(
    connected: Connected, notes: Collection, first: dict[str, Plain], second: dict[str, Plain], moved: bool
) -> None:
    vector = np.array([1, 2, 3, 4], np.float32)
    connected.upsert(notes, Item("x", vector, first))
    second_vector = vector[::-1].copy() if moved else vector
    connected.upsert(notes, Item("x", second_vector, second))
    (record,) = connected.loop.run(connected.store.read(notes, ["x"]))
    assert typed(record.metadata) == typed(second)
    np.testing.assert_allclose(record.vector, second_vector, rtol=1e-6)
    for key in [*KEYS, "f", "g"]:
        exists = Comparison(key, Op.EXISTS, Kind.NONE, ())
        assert found(connected, notes, exists) == ({"x"} if key in second else set())


def test_doubles_come_back_to_the_last_digit(connected: Connected) -> None:
    collection = connected.collection("doubles", Metric.L2, 2)
    rng = random.Random(3)
    written = {f"d{n}": rng.random() * 10.0 ** rng.randint(-30, 30) * rng.choice([1, -1]) for n in range(512)}
    connected.upsert(collection, *(Item(i, np.ones(2, np.float32), {"x": value}) for i, value in written.items()))
    metadata = connected.loop.run(connected.store.metadata(collection, list(written)))
    assert {item_id: each["x"] for item_id, each in metadata.items()} == written

    def matching(op: Op, *values: float) -> set[str]:
        node = Comparison("x", op, Kind.NUMBER, values)
        return set(connected.loop.run(connected.store.matching(collection, node)))

    for item_id, value in list(written.items())[:20]:
        assert matching(Op.EQ, value) == {item_id}
        assert matching(Op.NE, value) == written.keys() - {item_id}
        for op, passes in ((Op.LT, float.__lt__), (Op.LE, float.__le__), (Op.GT, float.__gt__), (Op.GE, float.__ge__)):
            assert matching(op, value) == {i for i, x in written.items() if passes(x, value)}
    some = list(written)[:256]
    assert matching(Op.IN, *(written[i] for i in some)) == set(some)
    assert matching(Op.NOT_IN, *(written[i] for i in some)) == written.keys() - set(some)
