"""Metadata between the contract and plain Python values, with the contract's rules."""

import math
import re
from collections.abc import Mapping

from likeness.common.v1 import error_pb2
from likeness.common.v1.metadata_pb2 import Metadata, Value

from chassis.errors import LikenessError, invalid

Plain = str | int | float | bool | list[str]

MAX_KEYS = 64
MAX_BYTES = 64 * 1024
MAX_STRING_BYTES = 4096
MAX_LIST_LENGTH = 256
MAX_KEY_BYTES = 128
KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")
RESERVED_PREFIX = "likeness."


def from_proto(metadata: Metadata, field: str) -> dict[str, Plain]:
    """The message as a dictionary; an empty list is left out.

    Args:
        metadata: the message.
        field: where it stands in the request, for the error.

    Raises:
        LikenessError: METADATA_INVALID, naming the key that breaks a rule.
    """
    if len(metadata.fields) > MAX_KEYS:
        raise _refused(field, f"{len(metadata.fields)} keys; at most {MAX_KEYS} are taken")
    if metadata.ByteSize() > MAX_BYTES:
        raise _refused(field, f"{metadata.ByteSize()} bytes; at most {MAX_BYTES} are taken")
    plain: dict[str, Plain] = {}
    for key, value in metadata.fields.items():
        if not KEY.fullmatch(key):
            raise _refused(f"{field}.fields", f"key {key[:200]!r} does not match {KEY.pattern}")
        if key.startswith(RESERVED_PREFIX):
            raise _refused(f"{field}.fields", f"key {key!r}: the prefix {RESERVED_PREFIX!r} is reserved")
        read = value_from_proto(value, f"{field}.fields[{key!r}]")
        if read != []:
            plain[key] = read
    return plain


def value_from_proto(
    value: Value, field: str, reason: error_pb2.Reason.ValueType = error_pb2.REASON_METADATA_INVALID
) -> Plain:
    """One value.

    Raises:
        LikenessError: with ``reason``, naming the field: unset, too long, or not finite.
    """
    match value.WhichOneof("kind"):
        case "string_value":
            return _string(value.string_value, field, reason)
        case "int_value":
            return value.int_value
        case "double_value":
            if not math.isfinite(value.double_value):
                raise _refused(field, f"{value.double_value} is no number that can be stored or compared", reason)
            return value.double_value
        case "bool_value":
            return value.bool_value
        case "strings_value":
            strings = value.strings_value.values
            if len(strings) > MAX_LIST_LENGTH:
                raise _refused(field, f"{len(strings)} strings; at most {MAX_LIST_LENGTH} are taken", reason)
            if "" in strings:
                raise _refused(field, "holds an empty string; expected non-empty ones", reason)
            return [_string(s, field, reason) for s in strings]
        case None:
            raise _refused(field, "no value is set; expected a string, number, bool or list of strings", reason)


def to_proto(plain: Mapping[str, Plain]) -> Metadata:
    """A dictionary as a message."""
    metadata = Metadata()
    for key, value in plain.items():
        field = metadata.fields[key]
        match value:
            case bool():
                field.bool_value = value
            case int():
                field.int_value = value
            case float():
                field.double_value = value
            case str():
                field.string_value = value
            case list():
                field.strings_value.values.extend(value)
    return metadata


def _string(text: str, field: str, reason: error_pb2.Reason.ValueType) -> str:
    if len(text.encode()) > MAX_STRING_BYTES:
        raise _refused(field, f"{len(text.encode())} bytes of UTF-8; at most {MAX_STRING_BYTES} are taken", reason)
    return text


def _refused(
    field: str, description: str, reason: error_pb2.Reason.ValueType = error_pb2.REASON_METADATA_INVALID
) -> LikenessError:
    return invalid(field, description, reason)
