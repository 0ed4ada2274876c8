"""Writes a filter in the filter language that ``where`` reads."""

import math
import re

from likeness_client.filters import AllOf, AnyOf, Comparison, Filter, NoneOf, Operator, Value

_KEYWORDS = ("and", "or", "not", "in", "exists", "contains", "true", "false")
_ESCAPED = re.compile(r'["\\\x00-\x1f\x7f]')


def to_where(node: Filter) -> str:
    """Writes a filter as a text that ``parse_where`` reads as the same filter, or as an equivalent one.

    Raises:
        ValueError: a number is not finite, which the language cannot say.
    """
    match node:
        case Comparison():
            return _comparison(node)
        case AllOf(filters):
            return _joined(" and ", filters)
        case AnyOf(filters):
            return _joined(" or ", filters)
        case NoneOf((single,)):
            return f"not {to_where(single)}"
        case NoneOf(filters):
            return f"not {_joined(' or ', filters)}"


def _comparison(node: Comparison) -> str:
    key = _key(node.key)
    if node.op is Operator.EXISTS:
        return f"{key} exists"
    if node.op in (Operator.IN, Operator.NOT_IN):
        return f"{key} {node.op.value} ({', '.join(map(_literal, node.values))})"
    return f"{key} {node.op.value} {_literal(node.values[0])}"


def _joined(word: str, filters: tuple[Filter, ...]) -> str:
    return f"({word.join(map(to_where, filters))})"


def _key(key: str) -> str:
    return f"`{key}`" if key == "label" or key.lower() in _KEYWORDS else key


def _literal(value: Value) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return '"' + _ESCAPED.sub(lambda c: _written(c[0]), value) + '"'
        case float() if not math.isfinite(value):
            raise ValueError(f"{value} cannot be written as a condition")
        case _:
            return repr(value)


def _written(character: str) -> str:
    return f"\\{character}" if character in '"\\' else f"\\u{ord(character):04x}"
