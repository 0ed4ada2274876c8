from collections.abc import Iterator

import pytest
from hypothesis import assume, given
from likeness.common.v1 import metadata_pb2 as m
from likeness.common.v1.error_pb2 import REASON_FILTER_INVALID

from chassis.errors import LikenessError
from chassis.metadata import Plain
from indexer import filters
from indexer.filters import AllOf, AnyOf, Comparison, Kind, Node, NoneOf, Op, Scalar
from tests.unit.indexer.model import true_for
from tests.unit.indexer.strategies import metadata, nodes


def comparison(key: str, op: m.Operator.ValueType, *values: str | int | float | bool | list[str]) -> m.Filter:
    message = m.Filter(comparison=m.Comparison(key=key, op=op))
    for value in values:
        added = message.comparison.values.add()
        match value:
            case bool():
                added.bool_value = value
            case int():
                added.int_value = value
            case float():
                added.double_value = value
            case str():
                added.string_value = value
            case list():
                added.strings_value.values.extend(value)
    return message


WIDE = comparison("width", m.OPERATOR_GE, 300)


def group(kind: str, *children: m.Filter) -> m.Filter:
    message = m.Filter()
    getattr(message, kind).filters.extend(children)
    return message


def refused(message: m.Filter) -> tuple[str, str]:
    with pytest.raises(LikenessError) as caught:
        filters.from_proto(message, "queries[0].filter")
    assert caught.value.reason == REASON_FILTER_INVALID
    (violation,) = caught.value.violations
    return violation.field, violation.description


@given(node=nodes, of=metadata)
def test_it_is_true_of_what_the_contract_says(node: Node, of: dict[str, Plain]) -> None:
    whole = [v for v in (*of.values(), *_values(node)) if isinstance(v, int)]
    assume(all(abs(value) <= 2**53 for value in whole))
    assert filters.true_of(node, of) is true_for(node, of)


def _values(node: Node) -> Iterator[Scalar]:
    if isinstance(node, Comparison):
        yield from node.values
        return
    for child in node.filters:
        yield from _values(child)


def test_a_tree_is_read_as_it_was_written() -> None:
    message = group("all_of", WIDE, group("none_of", comparison("a", m.OPERATOR_EXISTS)), group("any_of", WIDE))
    wide = Comparison("width", Op.GE, Kind.NUMBER, (300,))
    assert filters.from_proto(message, "f") == AllOf(
        (wide, NoneOf((Comparison("a", Op.EXISTS, Kind.NONE, ()),)), AnyOf((wide,)))
    )


def test_the_place_of_a_bad_comparison_is_named() -> None:
    field, _ = refused(group("all_of", WIDE, comparison("width", m.OPERATOR_LT, "wide")))
    assert field == "queries[0].filter.all_of.filters[1].comparison.values"


@pytest.mark.parametrize(
    ("message", "place", "says"),
    [
        (m.Filter(), "queries[0].filter", "nothing is set"),
        (group("any_of"), "queries[0].filter.any_of.filters", "at least one"),
        (comparison("", m.OPERATOR_EQ, 1), "queries[0].filter.comparison.key", "does not match"),
        (comparison("_keys", m.OPERATOR_EQ, 1), "queries[0].filter.comparison.key", "does not match"),
        (comparison("a", m.OPERATOR_UNSPECIFIED, 1), "queries[0].filter.comparison.op", "no operator"),
        (comparison("a", m.OPERATOR_EQ), "queries[0].filter.comparison.values", "EQ takes one"),
        (comparison("a", m.OPERATOR_NE, 1, 2), "queries[0].filter.comparison.values", "NE takes one"),
        (comparison("a", m.OPERATOR_GT, True), "queries[0].filter.comparison.values", "takes a number"),
        (comparison("a", m.OPERATOR_CONTAINS, 1), "queries[0].filter.comparison.values", "takes a string"),
        (comparison("a", m.OPERATOR_EXISTS, 1), "queries[0].filter.comparison.values", "takes none"),
        (comparison("a", m.OPERATOR_IN), "queries[0].filter.comparison.values", "at least one"),
        (comparison("a", m.OPERATOR_IN, 1, "b"), "queries[0].filter.comparison.values", "several types"),
        (comparison("a", m.OPERATOR_NOT_IN, True, 1), "queries[0].filter.comparison.values", "several types"),
        (comparison("a", m.OPERATOR_IN, *range(257)), "queries[0].filter.comparison.values", "at most 256"),
        (comparison("a", m.OPERATOR_EQ, ["b"]), "queries[0].filter.comparison.values[0]", "list of strings"),
        (comparison("a", m.OPERATOR_EQ, float("nan")), "queries[0].filter.comparison.values[0]", "nan"),
        (comparison("a", m.OPERATOR_LT, float("inf")), "queries[0].filter.comparison.values[0]", "inf"),
        (comparison("a", m.OPERATOR_EQ, "x" * 4097), "queries[0].filter.comparison.values[0]", "4097 bytes"),
    ],
)
def test_what_the_contract_forbids_is_refused(message: m.Filter, place: str, says: str) -> None:
    field, description = refused(message)
    assert field == place
    assert says in description


def test_an_unset_value_is_refused() -> None:
    message = m.Filter(comparison=m.Comparison(key="a", op=m.OPERATOR_EQ, values=[m.Value()]))
    assert refused(message)[0] == "queries[0].filter.comparison.values[0]"


def test_an_operator_of_a_newer_contract_is_refused() -> None:
    assert refused(comparison("a", m.Operator.ValueType(99), 1))[0] == "queries[0].filter.comparison.op"


def nested(levels: int) -> m.Filter:
    message = WIDE
    for _ in range(levels - 1):
        message = group("all_of", message)
    return message


def test_sixteen_levels_are_taken_and_seventeen_refused() -> None:
    filters.from_proto(nested(16), "f")
    assert "16 levels" in refused(nested(17))[1]


def test_256_nodes_are_taken_and_257_refused() -> None:
    filters.from_proto(group("any_of", *[WIDE] * 255), "f")
    assert "256 nodes" in refused(group("any_of", *[WIDE] * 256))[1]


def test_more_values_in_all_than_the_store_can_take_are_refused() -> None:
    many = comparison("a", m.OPERATOR_IN, *range(256))
    filters.from_proto(group("any_of", *[many] * 16), "f")
    assert "4,096 values" in refused(group("any_of", *[many] * 17))[1]
