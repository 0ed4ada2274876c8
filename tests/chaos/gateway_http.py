"""Calls to the gateway as a client without gRPC makes them: JSON by HTTP/1.1, with a deadline."""

import base64
import json
from types import TracebackType
from typing import Any, Self

import grpc
import httpx
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import status_pb2

_SERVICE = "likeness.gateway.v1.SearchService"
_CODES = {code.name.lower(): code.value[0] for code in grpc.StatusCode} | {"canceled": 1}
# A client waits so much longer than it says, so that it hears of its deadline from the gateway if it can.
_LONGER_S = 1.0


class RefusedError(Exception):
    """The gateway said that a call has failed.

    Attributes:
        status: as it told.
    """

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


class ByHttp:
    """A client with connections of its own."""

    def __init__(self, url: str) -> None:
        """To ``http://host:port``."""
        self._http = httpx.Client(base_url=url, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def call(self, method: str, request: Message, answer: Any, timeout_s: float) -> Any:
        """One answer.

        Args:
            method: of SearchService.
            request: what it takes.
            answer: what is filled with what it answers.
            timeout_s: the deadline.

        Raises:
            RefusedError: the gateway said why not.
            httpx.TransportError: nothing was heard.
        """
        sent = self._http.post(
            f"/{_SERVICE}/{method}",
            content=json_format.MessageToJson(request, indent=None).encode(),
            headers={"content-type": "application/json", "connect-timeout-ms": str(int(timeout_s * 1000))},
            timeout=timeout_s + _LONGER_S,
        )
        if sent.status_code != httpx.codes.OK:
            raise RefusedError(_status(json.loads(sent.content)))
        return json_format.Parse(sent.content, answer)


def _status(told: Any) -> status_pb2.Status:
    """Reads what Connect tells: details as their type's name and base64 without padding."""
    status = status_pb2.Status(code=_CODES[told["code"]], message=told.get("message", ""))
    for detail in told.get("details", ()):
        value = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
        status.details.append(AnyMessage(type_url=f"type.googleapis.com/{detail['type']}", value=value))
    return status
