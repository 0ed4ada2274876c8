"""Filters and metadata in the form that Chroma stores and searches.

Chroma has no negation and no test for a key's presence (``$not`` and ``$exists`` are unknown to 1.5.9), so

- a negation is pushed down to the comparisons: ``$ne``, ``$nin`` and ``$not_contains`` match items without the key, as
  the contract wants of NE, NOT_IN and a negated CONTAINS;
- beside an item's metadata stands a list of its keys, under a key that no caller can use: ``_keys`` holds ``key`` for
  each key, and ``#key`` instead where the value is a number. EXISTS asks that list; "not less than 5" is "at least 5,
  or not a number".

Chroma compares a stored whole number with a double by cutting off the double's fraction (measured: ``k = 1.5`` finds
the whole number 1, ``k < 0.5`` does not find 0), so a comparison with a fraction is corrected by one with what is left
of it. Without a fraction the comparison is exact up to 2^53. Beyond: a stored double is compared with a given whole
number rounded to a double, and a stored whole number with a given double beyond the range of int64 as with the end of
that range.
"""

from collections.abc import Mapping
from typing import Any, TypeGuard

from chassis.metadata import Plain
from indexer.filters import AllOf, AnyOf, Comparison, Kind, Node, NoneOf, Op

# Callers' keys begin with a letter.
KEYS = "_keys"
STAMP = "_seq"
DOUBLES = "_doubles"

_EXACT_DIGITS, _EXACT_EXPONENT = 15, 22

Where = dict[str, Any]
StoredMetadata = dict[str, Any]

_OPERATORS = {Op.EQ: "$eq", Op.NE: "$ne", Op.LT: "$lt", Op.LE: "$lte", Op.GT: "$gt", Op.GE: "$gte"}
_OPPOSITES = {
    Op.EQ: Op.NE,
    Op.NE: Op.EQ,
    Op.LT: Op.GE,
    Op.LE: Op.GT,
    Op.GT: Op.LE,
    Op.GE: Op.LT,
    Op.IN: Op.NOT_IN,
    Op.NOT_IN: Op.IN,
}
_RANGES = {Op.LT, Op.LE, Op.GT, Op.GE}


def to_stored(metadata: Mapping[str, Plain], stamp: int) -> StoredMetadata:
    """An item's metadata as it is written: with the stamp and, where there is any, the lists beside it."""
    stored: StoredMetadata = {**metadata, STAMP: stamp}
    if metadata:
        stored[KEYS] = [f"#{key}" if _is_number(value) else key for key, value in metadata.items()]
    doubles = [_double(key, value) for key, value in metadata.items() if _is_altered(value)]
    if doubles:
        stored[DOUBLES] = doubles
    return stored


def replacing(old: Mapping[str, Plain], new: Mapping[str, Plain], stamp: int) -> StoredMetadata:
    """What is sent to make new metadata of old: Chroma merges it into what is there, and None deletes a key."""
    stored = to_stored(new, stamp)
    return {**dict.fromkeys(to_stored(old, stamp).keys() - stored.keys()), **stored} if old else stored


def from_stored(stored: Mapping[str, Any] | None) -> dict[str, Plain]:
    """An item's metadata as its writer gave it."""
    metadata = {key: value for key, value in (stored or {}).items() if not key.startswith("_")}
    for entry in (stored or {}).get(DOUBLES, ()):
        key, _, digits = entry.partition("=")
        metadata[key] = float.fromhex(digits)
    return metadata


def stamp_of(stored: Mapping[str, Any] | None) -> int:
    """When an item was written last; 0: by a release that gave no stamps."""
    return int((stored or {}).get(STAMP, 0))


def to_where(node: Node) -> Where:
    """A filter as Chroma's ``where``."""
    return _where(node, negated=False)


def _where(node: Node, negated: bool) -> Where:
    match node:
        case Comparison():
            return _negated(node) if negated else _plain(node)
        case AllOf(filters):
            return _join("$or" if negated else "$and", [_where(f, negated) for f in filters])
        case AnyOf(filters):
            return _join("$and" if negated else "$or", [_where(f, negated) for f in filters])
        case NoneOf(filters):
            return _join("$or" if negated else "$and", [_where(f, not negated) for f in filters])


def _plain(c: Comparison) -> Where:
    match c.op:
        case Op.IN:
            return _join("$or", _one_of(c))
        case Op.NOT_IN:
            return _join("$and", _none_of(c))
        case Op.EXISTS:
            return _join("$or", [{KEYS: {"$contains": c.key}}, {KEYS: {"$contains": f"#{c.key}"}}])
        case Op.CONTAINS:
            return {c.key: {"$contains": c.values[0]}}
        case _:
            return _compared(c)


def _compared(c: Comparison) -> Where:
    value, comparison = c.values[0], _as_read(c)
    if not _is_altered(value):
        return comparison
    equal, unequal = ({DOUBLES: {operator: _double(c.key, value)}} for operator in ("$contains", "$not_contains"))
    # A whole double equals a whole number too, which is in no list.
    match c.op:
        case Op.EQ:
            return equal if _has_fraction(value) else _join("$or", [equal, comparison])
        case Op.NE:
            return unequal if _has_fraction(value) else _join("$and", [unequal, comparison])
        case Op.LE | Op.GE:
            return _join("$or", [equal, comparison])
        case _:
            return _join("$and", [unequal, comparison])


def _as_read(c: Comparison) -> Where:
    """A comparison with what Chroma makes of the value."""
    comparison: Where = {c.key: {_OPERATORS[c.op]: c.values[0]}}
    if not _has_fraction(c.values[0]):
        return comparison
    # What Chroma takes for the value, where that is a stored whole number: it must not match, or must match too.
    whole, positive = int(c.values[0]), c.values[0] > 0
    if c.op is Op.EQ or (c.op is Op.GE and positive) or (c.op is Op.LE and not positive):
        return _join("$and", [comparison, {c.key: {"$ne": whole}}])
    if c.op is Op.NE or (c.op is Op.LT and positive) or (c.op is Op.GT and not positive):
        return _join("$or", [comparison, {c.key: {"$eq": whole}}])
    return comparison


def _one_of(c: Comparison) -> list[Where]:
    plain, fractions, altered = _by_type(c)
    alternatives: list[Where] = [{c.key: {"$in": values}} for values in plain]
    if fractions:
        cut = {c.key: {"$nin": [int(f) for f in fractions]}}
        alternatives.append(_join("$and", [{c.key: {"$in": fractions}}, cut]))
    return alternatives + [{DOUBLES: {"$contains": _double(c.key, value)}} for value in altered]


def _none_of(c: Comparison) -> list[Where]:
    plain, fractions, altered = _by_type(c)
    conditions: list[Where] = [{c.key: {"$nin": values}} for values in plain]
    if fractions:
        cut = {c.key: {"$in": [int(f) for f in fractions]}}
        conditions.append(_join("$or", [{c.key: {"$nin": fractions}}, cut]))
    return conditions + [{DOUBLES: {"$not_contains": _double(c.key, value)}} for value in altered]


def _negated(c: Comparison) -> Where:
    match c.op:
        case Op.EXISTS:
            return _join("$and", [{KEYS: {"$not_contains": c.key}}, {KEYS: {"$not_contains": f"#{c.key}"}}])
        case Op.CONTAINS:
            return {c.key: {"$not_contains": c.values[0]}}
    opposite = _plain(Comparison(c.key, _OPPOSITES[c.op], c.kind, c.values))
    if c.op in _RANGES:
        return _join("$or", [opposite, {KEYS: {"$not_contains": f"#{c.key}"}}])
    return opposite


def _by_type(c: Comparison) -> tuple[list[list[Any]], list[float], list[float]]:
    """The values in lists of one Python type each, as Chroma's client wants them; apart those with fractions, altered.

    A whole double that is altered is among the first too, since it equals a whole number.
    """
    if c.kind is not Kind.NUMBER:
        return [list(c.values)], [], []
    altered = [v for v in c.values if _is_altered(v)]
    fractions = [v for v in c.values if _has_fraction(v) and not _is_altered(v)]
    whole = [[v for v in c.values if isinstance(v, t) and not _has_fraction(v)] for t in (int, float)]
    return [values for values in whole if values], fractions, altered


def _has_fraction(value: object) -> TypeGuard[float]:
    return isinstance(value, float) and not value.is_integer()


def _join(operator: str, parts: list[Where]) -> Where:
    """Chroma refuses ``$and`` and ``$or`` of fewer than two."""
    return parts[0] if len(parts) == 1 else {operator: parts}


def _is_number(value: Plain) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _double(key: str, value: float) -> str:
    return f"{key}={value.hex()}"


def _is_altered(value: Plain) -> TypeGuard[float]:
    """Whether Chroma may store it as a neighbour: more digits than a double holds exactly, or a large power of ten."""
    if not isinstance(value, float):
        return False
    digits, _, exponent = repr(abs(value)).partition("e")
    return len(digits.replace(".", "").lstrip("0")) > _EXACT_DIGITS or abs(int(exponent or 0)) > _EXACT_EXPONENT
