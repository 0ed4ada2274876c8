"""The contract as OpenAPI 3.1, for clients by HTTP/JSON: ``python -m gateway.http.openapi DESCRIPTORS DOCUMENT``.

DESCRIPTORS is a FileDescriptorSet with comments, as ``protoc --include_imports --include_source_info`` writes it. Types
are those of protobuf's JSON mapping. Needs protobuf, and no stubs: it runs while they are made.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

from chassis import __version__
from gateway.http import openapi_routes

SERVICE = "likeness.gateway.v1.SearchService"

Schema = dict[str, Any]
_F = FieldDescriptorProto

# 64-bit integers are strings in JSON: a double holds 53 bits.
_SCALARS: Mapping[int, Schema] = {
    _F.TYPE_DOUBLE: {"type": "number", "format": "double"},
    _F.TYPE_FLOAT: {"type": "number", "format": "float"},
    _F.TYPE_INT32: {"type": "integer", "format": "int32"},
    _F.TYPE_UINT32: {"type": "integer", "format": "int64", "minimum": 0, "maximum": 2**32 - 1},
    _F.TYPE_INT64: {"type": "string", "format": "int64", "pattern": "^-?[0-9]+$"},
    _F.TYPE_UINT64: {"type": "string", "format": "uint64", "pattern": "^[0-9]+$"},
    _F.TYPE_BOOL: {"type": "boolean"},
    _F.TYPE_STRING: {"type": "string"},
    _F.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}
_WELL_KNOWN: Mapping[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$", "examples": ["1.5s"]},
    "google.protobuf.Any": {
        "type": "object",
        "required": ["@type"],
        "properties": {"@type": {"type": "string", "examples": ["type.googleapis.com/google.rpc.ErrorInfo"]}},
        "additionalProperties": True,
        "description": "A message of the type named, its fields beside the name.",
    },
}


class _Contract:
    """All files: messages and enums by full name, and every comment."""

    def __init__(self, files: FileDescriptorSet) -> None:
        self.messages: dict[str, DescriptorProto] = {}
        self.enums: dict[str, EnumDescriptorProto] = {}
        self.methods: dict[str, MethodDescriptorProto] = {}
        self._comments: dict[str, str] = {}
        for file in files.file:
            self._read(file)

    def comment(self, name: str) -> str:
        """What is written above a message, a field, an enum, one of its values, a service or an rpc: by full name."""
        return self._comments.get(name, "")

    def _read(self, file: FileDescriptorProto) -> None:
        comments = {tuple(at.path): _text(at.leading_comments) for at in file.source_code_info.location}
        for name, path, message in _messages(file.package, (4,), file.message_type):
            self.messages[name] = message
            self._note(name, comments.get(path))
            for k, field in enumerate(message.field):
                self._note(f"{name}.{field.name}", comments.get((*path, 2, k)))
            for k, enum in enumerate(message.enum_type):
                self._enum(f"{name}.{enum.name}", enum, comments, (*path, 4, k))
        for k, enum in enumerate(file.enum_type):
            self._enum(f"{file.package}.{enum.name}", enum, comments, (5, k))
        for i, service in enumerate(file.service):
            name = f"{file.package}.{service.name}"
            self._note(name, comments.get((6, i)))
            for k, method in enumerate(service.method):
                self.methods[f"{name}.{method.name}"] = method
                self._note(f"{name}.{method.name}", comments.get((6, i, 2, k)))

    def _enum(
        self, name: str, enum: EnumDescriptorProto, comments: Mapping[tuple[int, ...], str], path: tuple[int, ...]
    ) -> None:
        self.enums[name] = enum
        self._note(name, comments.get(path))
        for k, value in enumerate(enum.value):
            self._note(f"{name}.{value.name}", comments.get((*path, 2, k)))

    def _note(self, name: str, comment: str | None) -> None:
        if comment:
            self._comments[name] = comment


def document(files: FileDescriptorSet) -> dict[str, Any]:
    """The OpenAPI document of a contract with comments."""
    contract = _Contract(files)
    paths: dict[str, Any] = {}
    roots: list[str] = []
    for name, method in contract.methods.items():
        if name.rpartition(".")[0] != SERVICE or method.client_streaming:
            continue  # neither HTTP/1.1 nor a browser can stream both ways
        paths[f"/{SERVICE}/{method.name}"] = {"post": _operation(contract, name, method)}
        roots += [method.input_type.lstrip("."), method.output_type.lstrip(".")]
    schemas = {name: _schema(contract, name) for name in sorted(_reachable(contract, roots))}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Likeness", "version": __version__, "description": openapi_routes.DESCRIPTION},
        "servers": openapi_routes.SERVERS,
        "paths": paths | openapi_routes.PATHS,
        "components": {
            "schemas": schemas | openapi_routes.SCHEMAS,
            "responses": openapi_routes.RESPONSES,
            "parameters": openapi_routes.PARAMETERS,
            "securitySchemes": openapi_routes.SECURITY_SCHEMES,
        },
        "security": openapi_routes.SECURITY,
    }


def _operation(contract: _Contract, name: str, method: MethodDescriptorProto) -> dict[str, Any]:
    comment = contract.comment(name)
    asked, answered = method.input_type.lstrip("."), method.output_type.lstrip(".")
    if method.server_streaming:
        comment = f"{comment}\n\n{openapi_routes.STREAMED} The request is {asked}, an answer {answered}."
    return {
        "operationId": method.name,
        "summary": _first_sentence(comment),
        "description": comment,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in openapi_routes.PARAMETERS],
        "requestBody": {"required": True, "content": _content(asked, enveloped=method.server_streaming)},
        "responses": {
            "200": {
                "description": contract.comment(answered),
                "headers": openapi_routes.HEADERS,
                "content": _content(answered, enveloped=method.server_streaming),
            },
            "default": {"$ref": "#/components/responses/Error"},
        },
    }


def _content(message: str, *, enveloped: bool) -> dict[str, Any]:
    """A body in either form. To whoever reads only this document an envelope is bytes."""
    kinds = ("application/connect+json", "application/connect+proto") if enveloped else ("application/proto",)
    content: dict[str, Any] = {kind: {"schema": {"contentMediaType": kind}} for kind in kinds}
    return content if enveloped else {"application/json": {"schema": _reference(message)}, **content}


def _reachable(contract: _Contract, roots: Sequence[str]) -> set[str]:
    found: set[str] = set()
    left = list(roots)
    while left:
        name = left.pop()
        if name in found or name in _WELL_KNOWN:
            continue
        if name in contract.messages and not contract.messages[name].options.map_entry:
            found.add(name)
        if name in contract.enums:
            found.add(name)
            continue
        left += [f.type_name.lstrip(".") for f in contract.messages[name].field if f.type_name]
    return found


def _schema(contract: _Contract, name: str) -> Schema:
    if name in contract.enums:
        values = contract.enums[name].value
        lines = [f"- `{v.name}`: {contract.comment(f'{name}.{v.name}')}".rstrip(": ") for v in values]
        text = "\n".join([contract.comment(name), "", *lines])
        return {"type": "string", "enum": [v.name for v in values], "description": text.strip()}
    message = contract.messages[name]
    text = "\n\n".join(filter(None, [contract.comment(name), *_alternatives(message)]))
    properties = {f.json_name: _property(contract, f"{name}.{f.name}", f) for f in message.field}
    return {"type": "object", "description": text, "properties": properties}


def _alternatives(message: DescriptorProto) -> Iterator[str]:
    for k in range(len(message.oneof_decl)):
        names = [
            f"`{f.json_name}`"
            for f in message.field
            if f.HasField("oneof_index") and f.oneof_index == k and not f.proto3_optional
        ]
        if names:
            yield f"At most one of {', '.join(names)} is set."


def _property(contract: _Contract, name: str, field: FieldDescriptorProto) -> Schema:
    entry = contract.messages.get(field.type_name.lstrip("."))
    if entry is not None and entry.options.map_entry:
        schema: Schema = {"type": "object", "additionalProperties": _type(entry.field[1])}
    elif field.label == _F.LABEL_REPEATED:
        schema = {"type": "array", "items": _type(field)}
    else:
        schema = dict(_type(field))
    comment = contract.comment(name)
    return schema | {"description": comment} if comment else schema


def _type(field: FieldDescriptorProto) -> Schema:
    return _reference(field.type_name) if field.type_name else _SCALARS[field.type]


def _reference(type_name: str) -> Schema:
    name = type_name.lstrip(".")
    return dict(_WELL_KNOWN.get(name, {"$ref": f"#/components/schemas/{name}"}))


def _messages(
    prefix: str, path: tuple[int, ...], messages: Sequence[DescriptorProto]
) -> Iterator[tuple[str, tuple[int, ...], DescriptorProto]]:
    for i, message in enumerate(messages):
        name, at = f"{prefix}.{message.name}", (*path, i)
        yield name, at, message
        yield from _messages(name, (*at, 3), message.nested_type)


def _text(comment: str) -> str:
    """A comment as paragraphs without line breaks of their own."""
    lines = [line.strip() for line in comment.strip().splitlines()]
    return "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in "\n".join(lines).split("\n\n"))


def _first_sentence(text: str) -> str:
    end = min((at for mark in (". ", ": ", "\n") if (at := text.find(mark)) >= 0), default=len(text))
    return text[:end].rstrip(".")


def main() -> None:
    """The command line."""
    source, target = map(Path, sys.argv[1:])
    made = document(FileDescriptorSet.FromString(source.read_bytes()))
    target.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
