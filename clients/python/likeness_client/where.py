"""The filter language: ``label = "cat" and (width >= 300 or not camera exists)``, read into a filter.

``label`` is the one word with a meaning of its own: it stands for the list ``labels``, and equals what that contains.
A metadata key of that name, or one that is a word of the language, goes between backticks.
"""

import json
import math
import re
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedInput, UnexpectedToken, v_args

from likeness_client.filters import AllOf, AnyOf, Comparison, Filter, NoneOf, Operator, Value, nodes

MAX_LEVELS = 16
MAX_NODES = 256
MAX_VALUES = 256
MAX_KEY_LENGTH = 128

_LABELS = "labels"
_ORDERED = (Operator.LT, Operator.LE, Operator.GT, Operator.GE)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "\\": "\\"}
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|(.))", re.DOTALL)
_EXPECTED = {
    "COMPARE": "`=`, `!=`, `<`, `<=`, `>`, `>=`",
    "_IN": "`in`",
    "_NOT": "`not`",
    "_EXISTS": "`exists`",
    "_CONTAINS": "`contains`",
    "_AND": "`and`",
    "_OR": "`or`",
    "KEY": "a key",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "COMMA": "`,`",
    "STRING": "a string in quotes",
    "NUMBER": "a number",
    "DATE": "a date",
    "TRUE": "`true`",
    "FALSE": "`false`",
    "$END": "the end",
}


class WhereError(ValueError):
    """A text that is no condition.

    Attributes:
        text: the condition as it was given.
        position: where in it the fault is, counted in characters from 0.
        problem: what was wrong there, and what was expected.
    """

    def __init__(self, text: str, position: int, problem: str) -> None:
        self.text = text
        self.position = position
        self.problem = problem
        start = text.rfind("\n", 0, position) + 1
        line = text[start:].split("\n", 1)[0]
        # Tabs stay, so that the caret stands under its character however wide the terminal makes them.
        indent = "".join("\t" if c == "\t" else " " for c in text[start:position])
        super().__init__(f"{line}\n{indent}^\n{problem}")


def parse_where(text: str) -> Filter:
    """Reads a condition.

    Raises:
        WhereError: the text is none; the message shows the place with a caret and says what was expected.
    """
    try:
        root: Filter = _parser().parse(text)  # type: ignore[assignment]  # the reader builds filters, not trees
    except UnexpectedInput as error:
        raise _syntax_error(text, error) from None
    except _FaultError as fault:
        raise WhereError(text, fault.position, fault.problem) from None
    for count, (_, level) in enumerate(nodes(root), start=1):
        if level > MAX_LEVELS or count > MAX_NODES:
            raise WhereError(text, 0, f"expected at most {MAX_LEVELS} levels and {MAX_NODES} conditions in all")
    return root


@cache
def _parser() -> Lark:
    grammar = files("likeness_client").joinpath("where.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", transformer=_Reader(), maybe_placeholders=False)


class _FaultError(Exception):
    def __init__(self, token: Token, problem: str) -> None:
        self.position = token.start_pos or 0
        self.problem = problem


class _Literal:
    """A value with the place where it stands."""

    def __init__(self, token: Token, value: Value) -> None:
        self.token = token
        self.value = value


@v_args(inline=True)
class _Reader(Transformer[Token, Any]):
    """Builds the filter, from the leaves up."""

    def any_of(self, *filters: Filter) -> Filter:
        return AnyOf(filters)

    def all_of(self, *filters: Filter) -> Filter:
        return AllOf(filters)

    def none_of(self, node: Filter) -> Filter:
        return NoneOf(node.filters if isinstance(node, AnyOf) else (node,))

    def group(self, node: Filter) -> Filter:
        return node

    def key(self, token: Token) -> Token:
        if len(token.strip("`")) > MAX_KEY_LENGTH:
            raise _FaultError(token, f"expected a key of at most {MAX_KEY_LENGTH} characters")
        return token

    def compare(self, key: Token, symbol: Token, literal: _Literal) -> Filter:
        op = Operator(str(symbol))
        if key.type == "LABEL":
            if op in _ORDERED:
                raise _FaultError(symbol, "labels have no order: expected =, !=, in, not in, contains or exists")
            contains = self.contains(key, literal)
            return contains if op is Operator.EQ else NoneOf((contains,))
        if op in _ORDERED and not _is_number(literal.value):
            raise _FaultError(literal.token, f"expected a number or a date after {symbol}")
        return Comparison(_name(key), op, (literal.value,))

    def contains(self, key: Token, literal: _Literal) -> Filter:
        if not isinstance(literal.value, str):
            raise _FaultError(literal.token, "expected a string in quotes")
        return Comparison(_name(key), Operator.CONTAINS, (literal.value,))

    def exists(self, key: Token) -> Filter:
        return Comparison(_name(key), Operator.EXISTS)

    def one_of(self, key: Token, literals: list[_Literal]) -> Filter:
        if key.type == "LABEL":
            either = tuple(self.contains(key, literal) for literal in literals)
            return AnyOf(either) if len(either) > 1 else either[0]
        return Comparison(_name(key), Operator.IN, tuple(literal.value for literal in literals))

    def not_one_of(self, key: Token, literals: list[_Literal]) -> Filter:
        if key.type == "LABEL":
            return NoneOf(tuple(self.contains(key, literal) for literal in literals))
        return Comparison(_name(key), Operator.NOT_IN, tuple(literal.value for literal in literals))

    def values(self, *literals: _Literal) -> list[_Literal]:
        first = literals[0]
        if len(literals) > MAX_VALUES:
            raise _FaultError(literals[MAX_VALUES].token, f"expected at most {MAX_VALUES} values")
        for literal in literals:
            if _kind(literal.value) != _kind(first.value):
                raise _FaultError(literal.token, f"expected a {_kind(first.value)}, like the values before it")
        return list(literals)

    def value(self, token: Token) -> _Literal:
        match token.type:
            case "STRING":
                return _Literal(token, _unquote(token))
            case "NUMBER":
                return _Literal(token, _number(token))
            case "DATE":
                return _Literal(token, _seconds(token))
            case _:
                return _Literal(token, token.type == "TRUE")


def _name(key: Token) -> str:
    return _LABELS if key.type == "LABEL" else key.strip("`")


def _number(token: Token) -> int | float:
    if token.lstrip("-").isdigit():
        # The length first: reading a million digits takes its time.
        if len(token) > 20 or not -(2**63) <= int(token) < 2**63:
            raise _FaultError(token, "expected a whole number of 64 bits")
        return int(token)
    number = float(token)
    if not math.isfinite(number):
        raise _FaultError(token, "expected a number of at most 1.8e308")
    return number


def _seconds(token: Token) -> int:
    try:
        moment = datetime.fromisoformat(token)
    except ValueError:
        raise _FaultError(
            token, "no such day or time: expected a date such as 2019-01-31 or 2019-01-31T10:00"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp())


def _unquote(token: Token) -> str:
    def character(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        if match[2] not in _ESCAPES:
            raise _FaultError(token, rf"\{match[2]} is no escape: expected \\ \" \' \n \t \r or \u and four digits")
        return _ESCAPES[match[2]]

    text = _ESCAPE.sub(character, token[1:-1])
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _FaultError(token, "expected characters that UTF-8 can write, and no half of one") from None
    return text


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: Value) -> str:
    if isinstance(value, bool):
        return "bool"
    return "string" if isinstance(value, str) else "number"


def _syntax_error(text: str, error: UnexpectedInput) -> WhereError:
    position = len(text) if error.pos_in_stream is None else error.pos_in_stream
    if isinstance(error, UnexpectedToken):
        wanted, position = error.accepts or error.expected, len(text) if error.token.type == "$END" else position
    elif isinstance(error, UnexpectedCharacters):
        wanted = error.allowed or set()
    else:
        wanted = set()
    if text[position : position + 1] in ('"', "'") and "STRING" in wanted:
        return WhereError(
            text, position, f"the string that begins here does not end: expected another {text[position]}"
        )
    names = [name for terminal, name in _EXPECTED.items() if terminal in wanted]
    found = (
        "the condition ends here"
        if position >= len(text.rstrip())
        else f"found {json.dumps(text[position : position + 12], ensure_ascii=False)}"
    )
    return WhereError(text, position, f"{found}: expected {_either(names)}")


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
