"""Conditions over metadata, as plain values: what a ``--where`` text is read into, and what a program can build."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from likeness_client.lists import listed

Value = str | int | float | bool


class Operator(Enum):
    """How a comparison compares; the names are the contract's."""

    EQ = "="
    NE = "!="
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="
    IN = "in"
    NOT_IN = "not in"
    EXISTS = "exists"
    CONTAINS = "contains"


@dataclass(frozen=True)
class Comparison:
    """One metadata key compared with given values.

    An item that lacks the key, or has a value of another type, equals nothing: only NE and NOT_IN are true for it.

    Attributes:
        key: such as ``"width"``; ``"labels"`` (a list: use CONTAINS) and ``"uri"`` too.
        op: how to compare.
        values: one for EQ and NE; one number for LT, LE, GT and GE; one string for CONTAINS; none for EXISTS; 1 to 256,
            all strings or all numbers or all bools, for IN and NOT_IN.
    """

    key: str
    op: Operator
    values: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        listed(self.values, "values")


@dataclass(frozen=True)
class AllOf:
    """True when every one of at least one filter is."""

    filters: tuple["Filter", ...]


@dataclass(frozen=True)
class AnyOf:
    """True when at least one of the filters is."""

    filters: tuple["Filter", ...]


@dataclass(frozen=True)
class NoneOf:
    """True when none of at least one filter is."""

    filters: tuple["Filter", ...]


Filter = AllOf | AnyOf | NoneOf | Comparison


def nodes(root: Filter) -> Iterator[tuple[Filter, int]]:
    """Every node of the tree with its level, the root's being 1."""
    stack: list[tuple[Filter, int]] = [(root, 1)]
    while stack:
        node, level = stack.pop()
        yield node, level
        if not isinstance(node, Comparison):
            stack.extend((child, level + 1) for child in node.filters)
