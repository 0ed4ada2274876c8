"""The contract's Filter as a validated tree that knows nothing of the store that will answer it."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from likeness.common.v1 import error_pb2, metadata_pb2

from chassis.errors import LikenessError, invalid
from chassis.metadata import KEY, Plain, value_from_proto

MAX_DEPTH = 16
MAX_NODES = 256
MAX_VALUES = 256
# SQLite under Chroma takes 32,766 parameters a statement; a value of a filter needs up to four of them.
MAX_VALUES_IN_ALL = 4096

Scalar = str | int | float | bool


class Op(Enum):
    """How a comparison compares; names as in the contract."""

    EQ = metadata_pb2.OPERATOR_EQ
    NE = metadata_pb2.OPERATOR_NE
    LT = metadata_pb2.OPERATOR_LT
    LE = metadata_pb2.OPERATOR_LE
    GT = metadata_pb2.OPERATOR_GT
    GE = metadata_pb2.OPERATOR_GE
    IN = metadata_pb2.OPERATOR_IN
    NOT_IN = metadata_pb2.OPERATOR_NOT_IN
    EXISTS = metadata_pb2.OPERATOR_EXISTS
    CONTAINS = metadata_pb2.OPERATOR_CONTAINS


class Kind(Enum):
    """The type of a comparison's values. Kept beside them, since in Python ``True == 1``."""

    NONE = "no value"
    STRING = "a string"
    NUMBER = "a number"
    BOOL = "a bool"


@dataclass(frozen=True)
class Comparison:
    """One key compared with values that are all of one kind."""

    key: str
    op: Op
    kind: Kind
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class AllOf:
    """True when every one is."""

    filters: tuple["Node", ...]


@dataclass(frozen=True)
class AnyOf:
    """True when at least one is."""

    filters: tuple["Node", ...]


@dataclass(frozen=True)
class NoneOf:
    """True when none is."""

    filters: tuple["Node", ...]


Node = Comparison | AllOf | AnyOf | NoneOf

_GROUPS: dict[str, type[AllOf] | type[AnyOf] | type[NoneOf]] = {"all_of": AllOf, "any_of": AnyOf, "none_of": NoneOf}
_COMPARED: dict[Op, Callable[[Any, Any], bool]] = {
    Op.LT: operator.lt,
    Op.LE: operator.le,
    Op.GT: operator.gt,
    Op.GE: operator.ge,
}


def from_proto(message: metadata_pb2.Filter, field: str) -> Node:
    """The message as a tree.

    Args:
        message: the filter.
        field: where it stands in the request, such as ``queries[0].filter``.

    Raises:
        LikenessError: FILTER_INVALID, naming the place in the tree.
    """
    return _Reader(field).node(message, field, 1)


def true_of(node: Node, metadata: Mapping[str, Plain]) -> bool:
    """Whether a filter is true of an item with this metadata."""
    match node:
        case AllOf(filters):
            return all(true_of(each, metadata) for each in filters)
        case AnyOf(filters):
            return any(true_of(each, metadata) for each in filters)
        case NoneOf(filters):
            return not any(true_of(each, metadata) for each in filters)
        case Comparison():
            return _true_of(node, metadata.get(node.key))


def _true_of(comparison: Comparison, value: Plain | None) -> bool:
    op, values = comparison.op, comparison.values
    if op is Op.EXISTS:
        return value is not None and value != []
    if op is Op.CONTAINS:
        return isinstance(value, list) and values[0] in value
    # A list equals nothing, and is in no order.
    alike = value is not None and not isinstance(value, list) and _kind(value) is comparison.kind
    if op in _COMPARED:
        return alike and _COMPARED[op](value, values[0])
    return (alike and value in values) is (op in (Op.EQ, Op.IN))


class _Reader:
    """Reads one filter, counting what it has read."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._nodes = 0
        self._values = 0

    def node(self, message: metadata_pb2.Filter, field: str, depth: int) -> Node:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _refused(self._root, f"more than {MAX_NODES} nodes")
        if depth > MAX_DEPTH:
            raise _refused(field, f"nested more than {MAX_DEPTH} levels deep")
        match message.WhichOneof("node"):
            case None:
                raise _refused(field, "nothing is set; expected all_of, any_of, none_of or comparison")
            case "comparison":
                return self._comparison(message.comparison, f"{field}.comparison")
            case name:
                filters = getattr(message, name).filters
                if not filters:
                    raise _refused(f"{field}.{name}.filters", "empty; expected at least one filter")
                children = [
                    self.node(child, f"{field}.{name}.filters[{i}]", depth + 1) for i, child in enumerate(filters)
                ]
                return _GROUPS[name](tuple(children))

    def _comparison(self, message: metadata_pb2.Comparison, field: str) -> Comparison:
        if not KEY.fullmatch(message.key):
            raise _refused(f"{field}.key", f"{message.key[:200]!r} does not match {KEY.pattern}")
        try:
            op = Op(message.op)
        except ValueError:
            raise _refused(f"{field}.op", f"{message.op} is no operator that can be used") from None
        values = self._scalars(message, f"{field}.values")
        kinds = {_kind(v) for v in values}
        _check(op, kinds, len(values), f"{field}.values")
        return Comparison(message.key, op, kinds.pop() if kinds else Kind.NONE, values)

    def _scalars(self, message: metadata_pb2.Comparison, field: str) -> tuple[Scalar, ...]:
        if len(message.values) > MAX_VALUES:
            raise _refused(field, f"{len(message.values)} values; at most {MAX_VALUES} are taken")
        self._values += len(message.values)
        if self._values > MAX_VALUES_IN_ALL:
            raise _refused(self._root, f"more than {MAX_VALUES_IN_ALL:,} values in all")
        scalars: list[Scalar] = []
        for i, value in enumerate(message.values):
            read = value_from_proto(value, f"{field}[{i}]", error_pb2.REASON_FILTER_INVALID)
            if isinstance(read, list):
                raise _refused(f"{field}[{i}]", "a list of strings; expected a string, number or bool")
            scalars.append(read)
        return tuple(scalars)


def _kind(value: Scalar) -> Kind:
    match value:
        case bool():
            return Kind.BOOL
        case str():
            return Kind.STRING
        case _:
            return Kind.NUMBER


def _check(op: Op, kinds: set[Kind], count: int, field: str) -> None:
    if op is Op.EXISTS:
        if count:
            raise _refused(field, f"{count} values; EXISTS takes none")
        return
    if op in (Op.IN, Op.NOT_IN):
        if count == 0:
            raise _refused(field, f"empty; {op.name} takes at least one value")
        if len(kinds) > 1:
            raise _refused(field, "values of several types; expected all strings, all numbers or all bools")
        return
    if count != 1:
        raise _refused(field, f"{count} values; {op.name} takes one")
    wanted = Kind.NUMBER if op in _COMPARED else Kind.STRING if op is Op.CONTAINS else None
    if wanted and kinds != {wanted}:
        raise _refused(field, f"{next(iter(kinds)).value}; {op.name} takes {wanted.value}")


def _refused(field: str, description: str) -> LikenessError:
    return invalid(field, description, error_pb2.REASON_FILTER_INVALID)
