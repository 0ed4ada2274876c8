"""Requests of every kind, mostly sensible and now and then wild, made from their protobuf descriptors."""

import json
import struct
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from likeness.common.v1 import metadata_pb2
from likeness.common.v1.metadata_pb2 import Comparison, Filter, FilterList, Value

from tests.pictures import noise

T = TypeVar("T")

COLLECTION, OTHER_COLLECTION, ALIAS = "fuzzed", "fuzzed-too", "fuzzed-alias"
IDS = tuple(f"f{i}" for i in range(8))
DIMENSION = 512
_DEPTH = 5
# Filters in filters; a message of some fifty cannot be made in Python.
_LEVELS = 30
# Of ten, in one message: how many fields hold what nobody should send. A message with none is answered, as a rule.
_WILDNESS = (0, 0, 0, 1, 4)
# Of ten: how many fields that may be left out are.
_LEFT_OUT = 4

_PICTURES = (*(noise(i) for i in range(4)), noise(5)[:400], b"\x89PNG\r\n\x1a\n" + bytes(64), b"GIF89a", b"<svg/>")
_KEYS = ("labels", "uri", "width", "height", "sha256", "format", "number", "likeness.x", "no such")


def _large(values: Sequence[T]) -> SearchStrategy[T]:
    """One of them; named by its number where hypothesis says what it has drawn from."""
    return st.integers(0, len(values) - 1).map(lambda i: values[i])


_TEXTS = st.one_of(
    st.sampled_from(
        ["a cat", "x", "", " ", "\0", "\x1b[2J\r\n", "\u202eevil", "\u0301" * 40, "🂡" * 9, "../../etc/passwd", "%00%2e"]
    ),
    st.text(max_size=40),
    _large(["long " * 2_000, "é" * 5_000]),
)
_BYTES = st.one_of(st.binary(max_size=64), _large([b"\0" * 3_000]))
_INT_EDGES = (
    0,
    1,
    -1,
    2,
    10,
    100,
    1_000,
    1_001,
    10_001,
    2**31 - 1,
    2**32 - 1,
    -(2**31),
    2**63 - 1,
    -(2**63),
    2**64 - 1,
)
_FLOATS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5, 100.0, 1e30, -1e30, 1e-40, float("nan"), float("inf"), float("-inf")]),
    st.floats(width=32),
)
_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}


def _vector(numbers: tuple[float, ...], length: int = DIMENSION) -> bytes:
    return struct.pack(f"<{length}f", *(numbers[i % len(numbers)] for i in range(length)))


_VECTORS = _large(
    [
        _vector((1.0, -0.5, 0.25)),
        _vector((0.0, 1.0)),
        _vector((0.0,)),
        _vector((float("nan"),)),
        _vector((float("inf"), 1.0)),
        _vector((3e38,)),
        _vector((1e-42,)),
        _vector((1.0,), 8),
        b"abc",
        b"",
    ]
)
_NAMES = st.sampled_from([*[COLLECTION] * 8, OTHER_COLLECTION, ALIAS, "nobody"])

# Fields that a sensible message of theirs has.
_NEEDED = {
    *("terms", "searches", "inputs", "labelling", "facets", "items", "ids", "key", "labels", "target", "from", "to"),
    *("collection", "alias", "start", "item", "image"),
}


def _where(key: str, op: int, *values: Value) -> Filter:
    return Filter(comparison=Comparison(key=key, op=op, values=values))  # type: ignore[arg-type]


_CATS = _where("labels", metadata_pb2.OPERATOR_CONTAINS, Value(string_value="cat"))
_WIDE = _where("width", metadata_pb2.OPERATOR_GE, Value(double_value=10))
_FILTERS = st.sampled_from(
    [
        _CATS,
        _WIDE,
        _where("number", metadata_pb2.OPERATOR_EXISTS),
        _where("format", metadata_pb2.OPERATOR_NOT_IN, Value(string_value="PNG"), Value(string_value="GIF")),
        Filter(any_of=FilterList(filters=[_CATS, Filter(none_of=FilterList(filters=[_WIDE]))])),
    ]
)
_VALUES = st.sampled_from(
    [Value(int_value=3), Value(double_value=-0.5), Value(bool_value=True), Value(string_value="x"), Value()]
)

# What sensible values look like, by the name of the field.
_SENSIBLE: dict[str, SearchStrategy[Any]] = {
    "collection": _NAMES,
    "target": _NAMES,
    "expected_collection": _NAMES,
    "name": _NAMES,
    "alias": st.sampled_from([ALIAS, "fuzzed-alias-2", COLLECTION]),
    "id": st.sampled_from([*IDS, "nobody"]),
    "ids": st.sampled_from([*IDS, "nobody"]),
    "key": st.sampled_from(_KEYS),
    "labels": st.sampled_from(["cat", "dog", "noise", ""]),
    "add": st.sampled_from(["cat", "dog"]),
    "remove": st.sampled_from(["noise", "bird"]),
    "templates": st.sampled_from(["a photo of a {}.", "{}", "no place"]),
    "text": st.sampled_from(["a cat", "a photo of a dog"]),
    "encoded": _large(_PICTURES),
    "f32": _VECTORS,
    "pixels": st.sampled_from([bytes(12), bytes(3 * 64), b""]),
    "width": st.sampled_from([1, 2, 8]),
    "height": st.sampled_from([1, 2, 8]),
    "digest": st.sampled_from(["ab" * 32, ""]),
    "dimension": st.just(DIMENSION),
    "top_k": st.integers(0, 20),
    "offset": st.integers(0, 20),
    "page_size": st.integers(0, 20),
    "limit": st.integers(0, 20),
    "candidates": st.integers(0, 50),
    "neighbors": st.integers(0, 20),
    "weight": st.sampled_from([1.0, -0.5, 2.0, 0.0]),
    "min_score": st.sampled_from([0.97, 0.0, -1.0, 2.0]),
    "skip_near_duplicates": st.sampled_from([0.97, 1.0]),
    "scale": st.sampled_from([50.0, 1.0]),
    "page_token": st.sampled_from(["", "AA", "e30=", "f1"]),
    "resume_token": st.sampled_from(["", "AA", "e30="]),
    "uri": st.sampled_from(["http://localhost:1/x", "file:///etc/passwd", "http://169.254.169.254/", "photo.jpg"]),
    "from": st.sampled_from(["noise", "bird"]),
    "to": st.just("sound"),
    "exact": st.booleans(),
    "all_items": st.just(False),
    "op": st.sampled_from([metadata_pb2.OPERATOR_EQ, metadata_pb2.OPERATOR_NE]),
    "metric": st.sampled_from([0, 1, 2, 3]),
    "existing": st.sampled_from([0, 1, 2]),
    "sequence": st.integers(0, 2**32 - 1),
    "description": st.sampled_from(["", "of the tests"]),
    "order_by": st.sampled_from(["", "number", "taken_at"]),
    "min_probability": st.sampled_from([0.0, 0.5, 1.0]),
}


def messages(descriptor: Descriptor) -> SearchStrategy[Message]:
    """Messages of a type, from sensible ones to such with empty oneofs, fields out of range, filters too deep."""
    return st.sampled_from(_WILDNESS).flatmap(lambda wildness: _messages(descriptor, _DEPTH, wildness))


@cache
def _messages(descriptor: Descriptor, depth: int, wildness: int) -> SearchStrategy[Message]:
    if descriptor is Filter.DESCRIPTOR and not wildness:
        return _FILTERS
    if descriptor is Filter.DESCRIPTOR:
        return st.one_of(_made(descriptor, depth, wildness), st.integers(1, _LEVELS).map(_nested))
    return _made(descriptor, depth, wildness)


def _made(descriptor: Descriptor, depth: int, wildness: int) -> SearchStrategy[Message]:
    plans = {field: _values(field, depth, wildness) for field in descriptor.fields}
    choices = [list(oneof.fields) for oneof in descriptor.oneofs if len(oneof.fields) > 1]

    @st.composite
    def made(draw: DrawFn) -> Message:
        message = GetMessageClass(descriptor)()
        chosen = [draw(st.sampled_from(fields)) for fields in choices]
        for field, (sensible, wild) in plans.items():
            chance = draw(st.integers(0, 9))
            if chance >= 10 - wildness:
                _put(message, field, draw(wild))
            elif field in chosen or (not _is_choice(field) and (field.name in _NEEDED or chance >= _LEFT_OUT)):
                _put(message, field, draw(sensible))
        return message

    return made()


def _is_choice(field: FieldDescriptor) -> bool:
    """Whether it is one of several, of which a sensible message has one."""
    return field.containing_oneof is not None and len(field.containing_oneof.fields) > 1


def _values(field: FieldDescriptor, depth: int, wildness: int) -> tuple[SearchStrategy[Any], SearchStrategy[Any]]:
    """What a field may hold, sensible and wild; None: nothing."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        sensible: SearchStrategy[Any] = st.dictionaries(st.sampled_from(["number", "shelf"]), _VALUES, max_size=2)
        value_type = field.message_type.fields_by_name["value"].message_type
        assert value_type is not None
        return sensible, st.dictionaries(
            st.sampled_from(_KEYS) | _TEXTS, _below(value_type, depth, wildness), max_size=3
        )
    if field.message_type is not None:
        each = wild = _below(field.message_type, depth, wildness)
        if field.name == "expected_fingerprint":
            each = st.none()
        unique = None
    else:
        wild = _scalars(field)
        each = _SENSIBLE.get(field.name, wild)
        unique = hash
    if field.is_repeated:
        few = (
            st.lists(each, min_size=1, max_size=4, unique_by=unique)
            if unique
            else st.lists(each, min_size=1, max_size=3)
        )
        return few, st.lists(wild, max_size=40)
    return each, wild


def _below(descriptor: Descriptor, depth: int, wildness: int) -> SearchStrategy[Any]:
    return st.deferred(lambda: _messages(descriptor, depth - 1, wildness)) if depth > 0 else st.none()


def _scalars(field: FieldDescriptor) -> SearchStrategy[Any]:
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        return _TEXTS
    if kind == FieldDescriptor.TYPE_BYTES:
        return _BYTES
    if kind == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.enum_type is not None:
        return st.sampled_from([*(value.number for value in field.enum_type.values), 99, -1])
    if kind in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return _FLOATS
    least, most = _RANGES[kind]
    return st.sampled_from([edge for edge in _INT_EDGES if least <= edge <= most])


def _put(message: Message, field: FieldDescriptor, value: Any) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for key, entry in value.items():
            if entry is not None:
                getattr(message, field.name)[key].CopyFrom(entry)
    elif field.is_repeated:
        getattr(message, field.name).extend(each for each in value if each is not None)
    elif field.message_type is not None:
        if value is not None:
            getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


def _nested(levels: int) -> Filter:
    whole = node = Filter()
    for _ in range(levels):
        node = node.none_of.filters.add()
    node.comparison.key = "number"
    return whole


@st.composite
def encoded(draw: DrawFn, descriptor: Descriptor) -> bytes:
    """What may stand for a message of a type: any bytes, a message that is cut or changed, filters without end."""
    match draw(st.integers(0, 3)):
        case 0:
            return draw(st.binary(max_size=200))
        case 1:
            whole = draw(messages(descriptor)).SerializeToString()
            return whole[: draw(st.integers(0, len(whole)))]
        case 2:
            changed = bytearray(draw(messages(descriptor)).SerializeToString() or b"\0")
            for place, byte in draw(
                st.lists(st.tuples(st.integers(0, len(changed) - 1), st.integers(0, 255)), max_size=5)
            ):
                changed[place] = byte
            return bytes(changed)
        case _:
            field = descriptor.fields_by_name.get("filter")
            return _in_one_another(1 if field is None else field.number, draw(st.sampled_from([17, 60, 101, 5_000])))


def _in_one_another(number: int, levels: int) -> bytes:
    """A field of that number that holds so many filters, each the none_of of the one before, as bytes."""
    body = b""
    for _ in range(levels):
        body = _delimited(3, _delimited(1, body))
    return _delimited(number, body)


def _delimited(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@st.composite
def bodies(draw: DrawFn, sensible: SearchStrategy[bytes]) -> bytes:
    """What may stand for a JSON body: any bytes, JSON of another form, JSON that is cut or changed, or has no end."""
    match draw(st.integers(0, 3)):
        case 0:
            return draw(st.binary(max_size=200))
        case 1:
            return json.dumps(draw(_JSON)).encode()
        case 2:
            whole = draw(sensible)
            return whole[: draw(st.integers(0, len(whole)))]
        case _:
            return draw(_large(_ENDLESS))


_JSON_VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _TEXTS)
_JSON_KEYS = (
    st.sampled_from(["collection", "ids", "terms", "text", "filter", "topK", "page_size", "image", "encoded"]) | _TEXTS
)
_JSON: SearchStrategy[Any] = st.recursive(
    st.dictionaries(_JSON_KEYS, _JSON_VALUES, max_size=4),
    lambda inner: st.dictionaries(_JSON_KEYS, inner | st.lists(inner | _JSON_VALUES, max_size=4), max_size=4),
    max_leaves=8,
)
_ENDLESS = [
    b'{"filter":{"noneOf":{"filters":[' * 3_000,
    b"[" * 100_000,
    b'{"filter":' * 200 + b"{}" + b"}" * 200,
    b'{"collection":"fuzzed","topK":' + b"9" * 5_000 + b"}",
    b'{"collection":"fuzzed","topK":1e400}',
    b'{"terms":[{"text":"\\ud800"}]}',
    b'{"terms":[{"image":{"encoded":"%%%"}}]}',
    b'{"collection":"fuzzed","collection":"fuzzed"}',
    b"\xff\xfe{}",
    b'\xef\xbb\xbf{"collection":"fuzzed"}',
]
