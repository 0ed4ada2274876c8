"""What the OpenAPI document says beside the contract: errors, keys, and the paths that are no rpc."""

from typing import Any

DESCRIPTION = """\
Finds pictures by likeness: the gateway's service by HTTP, in the Connect protocol (https://connectrpc.com). A call is a
POST whose body is the request as JSON, or as binary protobuf with Content-Type application/proto.

JSON is protobuf's own mapping: field names in lowerCamelCase (names as in the .proto files are taken too), 64-bit
integers as strings (numbers are taken too), bytes in base64, durations such as "1.5s", fields that have their default
value left out. A field that the contract does not have is refused.

IndexImages, a stream both ways, is for gRPC alone; IndexBatch does the same for a batch."""

STREAMED = (
    "The answer is a stream. Request and answers are enveloped as the Connect protocol has it: one byte of flags, the "
    "length as 4 bytes big-endian, then the message; the last envelope, with flag 2, is JSON and holds any error."
)

_TRACE_HEADER = {
    "Likeness-Trace-Id": {
        "description": "The trace's id, 32 hexadecimal digits, under which the services' logs have the call.",
        "schema": {"type": "string"},
    }
}

HEADERS = _TRACE_HEADER | {
    "Likeness-Deadline-Ms": {
        "description": "The deadline that was applied, in milliseconds, where the call brought none or a later one.",
        "schema": {"type": "integer"},
    }
}

PARAMETERS = {
    "Timeout": {
        "name": "Connect-Timeout-Ms",
        "in": "header",
        "description": "The call's deadline, in milliseconds from now. Left out: GatewayLimits.default_deadline.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 9_999_999_999},
    },
    "Traceparent": {
        "name": "Traceparent",
        "in": "header",
        "description": "What the call belongs to, as W3C's Trace Context has it. Left out: a trace begins here.",
        "schema": {"type": "string", "examples": ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]},
    },
}

SCHEMAS: dict[str, Any] = {
    "connect.Error": {
        "type": "object",
        "description": "Why a call failed.",
        "required": ["code"],
        "properties": {
            "code": {
                "type": "string",
                "description": "The canonical code; the HTTP status follows from it.",
                "enum": [
                    "canceled",
                    "unknown",
                    "invalid_argument",
                    "deadline_exceeded",
                    "not_found",
                    "already_exists",
                    "permission_denied",
                    "resource_exhausted",
                    "failed_precondition",
                    "aborted",
                    "out_of_range",
                    "unimplemented",
                    "internal",
                    "unavailable",
                    "data_loss",
                    "unauthenticated",
                ],
            },
            "message": {"type": "string", "description": "What was wrong, what was expected and what to do."},
            "details": {
                "type": "array",
                "description": "google.rpc.ErrorInfo with the reason; BadRequest and RetryInfo where they say more.",
                "items": {"$ref": "#/components/schemas/connect.ErrorDetail"},
            },
        },
    },
    "connect.ErrorDetail": {
        "type": "object",
        "required": ["type", "value"],
        "properties": {
            "type": {"type": "string", "examples": ["google.rpc.ErrorInfo"]},
            "value": {"type": "string", "contentEncoding": "base64", "description": "The message, binary."},
            "debug": {"type": "object", "additionalProperties": True, "description": "The same message as JSON."},
        },
    },
}

RESPONSES = {
    "Error": {
        "description": "The call failed.",
        "headers": _TRACE_HEADER
        | {
            "Retry-After": {
                "description": "Seconds after which trying again may help (with 429 and 503).",
                "schema": {"type": "integer"},
            }
        },
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/connect.Error"}}},
    }
}

SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "An API key."},
}
# The last one: a gateway without keys.
SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"apiKey": []}, {}]

_COLLECTION = {"name": "collection", "in": "path", "required": True, "schema": {"type": "string"}}
_ID = {"description": "The item's id.", "required": True, "schema": {"type": "string"}}
_FAILED = {"$ref": "#/components/responses/Error"}
_STATE = {"text/plain": {"schema": {"type": "string"}}}

SERVERS = [{"url": "http://localhost:8080", "description": "A gateway on this machine, at its default port."}]


def _thumbnail(identifier: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "get": {
            "operationId": name,
            "summary": "An item's thumbnail",
            "description": "The picture within 256 × 256 pixels, if thumbnails are kept and the item has one.",
            "parameters": [_COLLECTION, identifier],
            "responses": {
                "200": {
                    "description": "The thumbnail.",
                    "content": {"image/webp": {"schema": {"contentMediaType": "image/webp"}}},
                },
                "304": {"description": "It is the one that If-None-Match names."},
                "404": _FAILED,
                "default": _FAILED,
            },
        }
    }


def _state(name: str, summary: str, responses: dict[str, Any], security: list[Any] | None = None) -> dict[str, Any]:
    operation = {"operationId": name, "summary": summary, "responses": responses}
    return {"get": operation if security is None else operation | {"security": security}}


PATHS: dict[str, Any] = {
    "/thumbnails/{collection}/{id}": _thumbnail({"name": "id", "in": "path"} | _ID, "GetThumbnail"),
    "/thumbnails/{collection}": _thumbnail({"name": "id", "in": "query"} | _ID, "GetThumbnailByQuery"),
    "/healthz": _state("Healthz", "Whether the process lives", {"200": {"description": "It does."}}, []),
    "/readyz": _state(
        "Readyz",
        "Whether calls can be answered",
        {
            "200": {"description": "They can.", "content": _STATE},
            "503": {"description": "They cannot; the answer says why.", "content": _STATE},
        },
        [],
    ),
    "/metrics": _state("Metrics", "Figures for Prometheus", {"200": {"description": "Figures.", "content": _STATE}}),
    "/openapi.json": _state("Openapi", "This document", {"200": {"description": "This document."}}, []),
}
