"""The gateway by gRPC and by HTTP/JSON, behind one small interface, for tests that want the same of both."""

import base64
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import grpc
import httpx
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from grpc_status import rpc_status
from likeness.gateway.v1 import gateway_pb2

from chassis.errors import LikenessError, from_status

SERVICE = gateway_pb2.DESCRIPTOR.services_by_name["SearchService"]
CALL_S = 60.0
_CODES = {code.name.lower(): code.value[0] for code in grpc.StatusCode} | {"canceled": 1}
# In a message of a Connect stream: this one ends it.
_END = 0b10


class Gateway(Protocol):
    """A way to call it. Failures are raised as ``LikenessError``."""

    def call(self, method: str, request: Message) -> Any:
        """One answer."""

    def stream(self, method: str, request: Message) -> list[Any]:
        """All answers of a stream."""

    def take_in(self, request: gateway_pb2.IndexBatchRequest) -> gateway_pb2.IndexBatchResponse:
        """Takes pictures in, in the way that suits it; the results in the order of the items."""


class ByGrpc:
    """Calls through a channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def call(self, method: str, request: Message) -> Any:
        with _typed():
            return self._channel.unary_unary(_path(method), _encoded, _reader(method))(request, timeout=CALL_S)

    def stream(self, method: str, request: Message) -> list[Any]:
        with _typed():
            return list(self._channel.unary_stream(_path(method), _encoded, _reader(method))(request, timeout=CALL_S))

    def take_in(self, request: gateway_pb2.IndexBatchRequest) -> gateway_pb2.IndexBatchResponse:
        """By the stream both ways, whose results come in any order."""
        start = gateway_pb2.IndexStart(collection=request.collection, options=request.options)
        sent = [gateway_pb2.IndexImagesRequest(item=each) for each in request.items]
        call = self._channel.stream_stream(_path("IndexImages"), _encoded, _reader("IndexImages"))
        with _typed():
            first = gateway_pb2.IndexImagesRequest(start=start)
            answers = list(call(iter([first, *sent]), timeout=CALL_S))
        assert [each.WhichOneof("message") for each in answers].count("started") == 1
        assert answers[-1].checkpoint.items_done == len(sent)
        results = [each.result for each in answers if each.HasField("result")]
        assert sorted(each.sequence for each in results) == sorted(each.sequence for each in request.items)
        by_sequence = {each.sequence: each for each in results}
        return gateway_pb2.IndexBatchResponse(
            collection=answers[0].started.collection,
            fingerprint=answers[0].started.fingerprint,
            results=[by_sequence[each.sequence] for each in request.items],
        )


class ByHttp:
    """Calls by Connect's protocol with JSON bodies, as a client without protobuf would make them."""

    def __init__(self, address: str) -> None:
        """To ``host:port``."""
        self._http = httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=CALL_S)

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def call(self, method: str, request: Message) -> Any:
        body = json_format.MessageToJson(request, indent=None).encode()
        return self.call_with(method, body)

    def call_with(self, method: str, body: bytes, *, binary: bool = False) -> Any:
        """One answer to a body of whatever bytes, JSON or binary."""
        kind = "proto" if binary else "json"
        answer = self._http.post(_path(method), content=body, headers={"content-type": f"application/{kind}"})
        if answer.status_code != httpx.codes.OK:
            raise _error(answer.json())
        return _message(method, answer.content, binary)

    def take_in(self, request: gateway_pb2.IndexBatchRequest) -> gateway_pb2.IndexBatchResponse:
        """In one call: HTTP has no stream both ways."""
        answer: gateway_pb2.IndexBatchResponse = self.call("IndexBatch", request)
        return answer

    def stream(self, method: str, request: Message) -> list[Any]:
        return self.stream_with(method, json_format.MessageToJson(request, indent=None).encode())

    def stream_with(self, method: str, body: bytes, *, binary: bool = False, bare: bool = False) -> list[Any]:
        """All answers to a body of whatever bytes, JSON or binary; ``bare``: the envelope is not put around them."""
        headers = {"content-type": f"application/connect+{'proto' if binary else 'json'}"}
        sent = body if bare else struct.pack(">BI", 0, len(body)) + body
        answer = self._http.post(_path(method), content=sent, headers=headers)
        assert answer.status_code == httpx.codes.OK, answer.text
        found: list[Any] = []
        for flags, part in _parts(answer.content):
            if flags & _END:
                error = json.loads(part).get("error")
                if error is not None:
                    raise _error(error)
                return found
            found.append(_message(method, part, binary))
        raise AssertionError("the stream has no end")


@contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise _read(error) from error


def _read(error: grpc.RpcError) -> LikenessError:
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    assert status is not None, f"no details: {error.code()}: {error.details()}"
    return from_status(status)


def _path(method: str) -> str:
    return f"/{SERVICE.full_name}/{method}"


def _output(method: str) -> type[Message]:
    return GetMessageClass(SERVICE.methods_by_name[method].output_type)


def _message(method: str, sent: bytes, binary: bool) -> Any:
    kind = _output(method)
    return kind.FromString(sent) if binary else json_format.Parse(sent, kind())


def _reader(method: str) -> Any:
    return _output(method).FromString


def _encoded(request: Message) -> bytes:
    return request.SerializeToString()


def _error(told: Any) -> LikenessError:
    """Reads what Connect tells: details as their type's name and base64 without padding."""
    status = status_pb2.Status(code=_CODES[told["code"]], message=told.get("message", ""))
    assert told.get("details"), f"no details: {told}"
    for detail in told["details"]:
        value = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
        status.details.append(AnyMessage(type_url=f"type.googleapis.com/{detail['type']}", value=value))
    return from_status(status)


def _parts(body: bytes) -> Iterator[tuple[int, bytes]]:
    while body:
        flags, size = struct.unpack(">BI", body[:5])
        yield flags, body[5 : 5 + size]
        body = body[5 + size :]
