"""The contract's values: vectors, metadata, names and deadlines keep their rules."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from likeness.common.v1 import error_pb2
from likeness.common.v1.metadata_pb2 import Metadata, StringList, Value
from likeness.common.v1.types_pb2 import Vector

from chassis import metadata, names, vectors
from chassis.deadline import Deadline
from chassis.errors import LikenessError

_KEYS = st.from_regex(metadata.KEY, fullmatch=True).filter(lambda key: not key.startswith("likeness."))
_STRINGS = st.text(max_size=50)
_VALUES = st.one_of(
    _STRINGS,
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=5),
)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_a_vector_survives_the_way_through_its_message(numbers: list[float]) -> None:
    array = np.array(numbers, np.float32)

    np.testing.assert_array_equal(vectors.from_proto(vectors.to_proto(array), "v"), array)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (Vector(), "0 bytes"),
        (Vector(f32=b"\0" * 7), "7 bytes"),
        (Vector(f32=np.zeros(3, "<f4").tobytes()), "expected 4"),
        (Vector(f32=np.array([1, np.nan, 0, 0], "<f4").tobytes()), "position 1"),
        (Vector(f32=np.array([np.inf, 0, 0, 0], "<f4").tobytes()), "position 0"),
    ],
)
def test_a_bad_vector_is_refused_by_the_name_of_its_field(message: Vector, said: str) -> None:
    with pytest.raises(LikenessError, match=said) as caught:
        vectors.from_proto(message, "items[3].vector", dimension=4)

    assert caught.value.reason == error_pb2.REASON_VECTOR_INVALID
    assert caught.value.violations[0].field == "items[3].vector"


@given(st.dictionaries(_KEYS, _VALUES, max_size=10))
def test_metadata_survives_the_way_through_its_message_with_its_types(plain: dict[str, metadata.Plain]) -> None:
    back = metadata.from_proto(Metadata.FromString(metadata.to_proto(plain).SerializeToString()), "m")

    assert back == plain
    assert {k: type(v) for k, v in back.items()} == {k: type(v) for k, v in plain.items()}


def test_an_empty_list_is_an_absent_key() -> None:
    assert metadata.from_proto(metadata.to_proto({"labels": []}), "m") == {}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"": Value(int_value=1)}, "does not match"),
        ({"1st": Value(int_value=1)}, "does not match"),
        ({"likeness.x": Value(int_value=1)}, "reserved"),
        ({"a": Value()}, "no value is set"),
        ({"a": Value(double_value=math.nan)}, "nan"),
        ({"a": Value(string_value="ü" * 3000)}, "6000 bytes"),
        ({"a": Value(strings_value=StringList(values=["x", ""]))}, "empty string"),
        ({"a": Value(strings_value=StringList(values=["x"] * 257))}, "257 strings"),
        ({f"k{i}": Value(int_value=1) for i in range(65)}, "65 keys"),
        ({f"k{i}": Value(string_value="x" * 4000) for i in range(20)}, "at most 65536"),
    ],
)
def test_metadata_that_breaks_a_rule_is_refused(fields: dict[str, Value], said: str) -> None:
    with pytest.raises(LikenessError, match=said) as caught:
        metadata.from_proto(Metadata(fields=fields), "items[0].metadata")

    assert caught.value.reason == error_pb2.REASON_METADATA_INVALID
    assert caught.value.violations[0].field.startswith("items[0].metadata")


@pytest.mark.parametrize("name", ["images", "a-b", "abc", "a.b_c-1", "x" * 128, "10.0.0", "10.0.0.1.2"])
def test_a_good_collection_name_is_taken(name: str) -> None:
    assert names.check_collection(name, "collection") == name


@pytest.mark.parametrize(
    "name", ["", "ab", "x" * 129, "Images", "-abc", "abc-", "a..b", "a/b", "../etc", "ab c", "äöü", "10.0.0.1"]
)
def test_a_bad_collection_name_is_refused(name: str) -> None:
    with pytest.raises(LikenessError, match="no collection name"):
        names.check_collection(name, "collection")


@pytest.mark.parametrize("item_id", ["", "x" * 513, "é" * 257, "a\x00b", "a\nb"])
def test_a_bad_item_id_is_refused(item_id: str) -> None:
    with pytest.raises(LikenessError) as caught:
        names.check_item_id(item_id, "ids[0]")

    assert caught.value.violations[0].field == "ids[0]"


def test_a_deadline_counts_down_and_then_says_so() -> None:
    assert 9 < Deadline(10).left() <= 10
    with pytest.raises(LikenessError) as caught:
        Deadline(-1).left()
    assert caught.value.reason == error_pb2.REASON_DEADLINE_EXCEEDED
