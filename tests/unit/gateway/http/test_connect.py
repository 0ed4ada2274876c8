"""The service by HTTP/JSON: the same answers and errors as by gRPC, in Connect's form."""

import asyncio
import gzip
import json
import socket
import threading
from base64 import b64decode
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, Parse
from google.rpc import error_details_pb2
from likeness.common.v1 import error_pb2
from likeness.gateway.v1 import gateway_pb2

from chassis.errors import LikenessError
from gateway.http import messages
from tests.unit.gateway.behind import Behind, vector
from tests.unit.gateway.http.serving import SERVICE, serving


def library() -> Behind:
    services = Behind()  # type: ignore[abstract]  # only what the gateway calls
    services.meaning = {"red": vector(1), "blue": vector(0, 1)}
    services.put("a", vector(1, 0.1), colour="red", tags=["x", "y"])
    services.put("b", vector(0.1, 1), colour="blue", size=2**60)
    return services


def enveloped(request: Any) -> bytes:
    body = json.dumps(request).encode()
    return b"\0" + len(body).to_bytes(4, "big") + body


def envelopes(body: bytes) -> list[tuple[int, Any]]:
    """Flags and content of each."""
    found = []
    while body:
        size = int.from_bytes(body[1:5], "big")
        found.append((body[0], json.loads(body[5 : 5 + size])))
        body = body[5 + size :]
    return found


REQUESTS = {
    "Search": {"terms": [{"text": "red"}, {"id": "b", "weight": -0.5}], "fields": {"metadata": True}, "topK": 5},
    "GetItems": {"ids": ["b", "nothing"], "fields": {"metadata": True, "vector": True}},
    "ListItems": {"filter": {"comparison": {"key": "colour", "op": "OPERATOR_EQ", "values": [{"stringValue": "red"}]}}},
    "CountItems": {},
    "GetFacets": {"facets": [{"key": "colour"}]},
    "Classify": {"inputs": [{"id": "a"}], "labelling": {"labels": ["red", "blue"], "templates": ["{}"]}},
}


async def test_an_rpc_answers_in_json_and_in_binary_what_it_answers_by_grpc() -> None:
    async with serving(library()) as gateway:
        for rpc, asked in REQUESTS.items():
            request = Parse(json.dumps(asked), getattr(gateway_pb2, f"{rpc}Request")())
            by_grpc = await getattr(gateway.grpc, rpc)(request)
            as_json = await gateway.call(rpc, asked)
            binary = await gateway.call(rpc, request.SerializeToString(), content_type="application/proto")

            from_binary, shown = type(by_grpc).FromString(binary.content), as_json.json()
            if rpc == "Search":
                by_grpc.ClearField("timings")
                from_binary.ClearField("timings")
                del shown["timings"]
            assert as_json.status_code == binary.status_code == 200
            assert as_json.headers["content-type"] == "application/json"
            assert binary.headers["content-type"] == "application/proto"
            assert shown == MessageToDict(by_grpc)
            assert from_binary == by_grpc


async def test_a_64_bit_number_keeps_its_digits() -> None:
    async with serving(library()) as gateway:
        answer = await gateway.call("GetItems", {"ids": ["b"], "fields": {"metadata": True}})

    assert answer.json()["items"][0]["metadata"]["fields"]["size"] == {"intValue": str(2**60)}


async def test_a_stream_comes_enveloped_and_ends_with_its_status() -> None:
    services = library()
    services.put("twin-1", vector(1), sha256="00")
    services.put("twin-2", vector(1), sha256="00")
    async with serving(services) as gateway:
        kind = {"content-type": "application/connect+json"}
        found = await gateway.http.post(f"{SERVICE}/FindDuplicates", content=enveloped({}), headers=kind)
        failed = await gateway.http.post(
            f"{SERVICE}/FindDuplicates", content=enveloped({"collection": "nowhere"}), headers=kind
        )

    assert found.status_code == failed.status_code == 200
    *parts, last = envelopes(found.content)
    groups = [group for _, part in parts for group in part.get("groups", [])]
    assert [[each["item"]["id"] for each in group["items"]] for group in groups] == [["twin-1", "twin-2"]]
    assert last == (2, {})
    (flags, end), *more = envelopes(failed.content)
    assert flags == 2
    assert not more
    assert end["error"]["code"] == "not_found"
    assert end["error"]["details"][0]["debug"]["reason"] == "COLLECTION_NOT_FOUND"


async def test_an_error_has_connects_code_and_status_and_the_details_that_grpc_sends() -> None:
    services = library()
    wait = LikenessError(error_pb2.REASON_OVERLOADED, "too much", retry_after_s=2.5)
    async with serving(services) as gateway:
        services.fail = {"Embed": wait}
        busy = await gateway.call("Search", {"terms": [{"text": "red"}]})
        services.fail = {}
        bad = await gateway.call("Search", {"terms": [{"text": "red", "weight": 1000}]})

    assert busy.status_code == 429
    assert busy.headers["retry-after"] == "3"
    body = busy.json()
    assert body["code"] == "resource_exhausted"
    kinds = {each["type"]: each for each in body["details"]}
    info = error_details_pb2.ErrorInfo.FromString(b64decode(kinds["google.rpc.ErrorInfo"]["value"] + "=="))
    assert (info.domain, info.reason) == ("likeness", "OVERLOADED")
    assert kinds["google.rpc.RetryInfo"]["debug"] == {"retryDelay": "2.500s"}
    assert bad.status_code == 400
    assert bad.json()["details"][1]["debug"]["fieldViolations"][0]["field"] == "terms[0].weight"


async def test_an_items_error_is_printed_with_its_details() -> None:
    async with serving(library()) as gateway:
        answer = await gateway.call("BatchSearch", {"searches": [{"terms": [{"text": "bad"}]}]})

    error = answer.json()["results"][0]["error"]
    assert error["status"]["details"][0] == {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "FIELD_INVALID",
        "domain": "likeness",
    }


async def test_json_that_cannot_be_read_is_the_callers_fault() -> None:
    async with serving(library()) as gateway:
        answers = [await gateway.call("Search", body) for body in (b"", b"{", b'{"colour": "red"}', b'{"topK": -1}')]

    for answer in answers:
        assert answer.status_code == 400
        assert answer.json()["code"] == "invalid_argument"
        assert answer.json()["details"][0]["debug"]["reason"] == "FIELD_INVALID"


async def test_binary_that_cannot_be_read_is_the_callers_fault() -> None:
    async with serving(library()) as gateway:
        answer = await gateway.call("Search", b"\xff" * 100, content_type="application/proto")

    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_argument"


async def test_a_broken_envelope_is_the_callers_fault() -> None:
    broken = [b"\x01\0\0\0\x02{}", b"\xf0\0\0\0\x02{}", b"\0\0\0\0", b"", enveloped({}) * 2]
    async with serving(library()) as gateway:
        kind = {"content-type": "application/connect+json"}
        answers = [
            await gateway.http.post(f"{SERVICE}/FindDuplicates", content=content, headers=kind) for content in broken
        ]

    for answer in answers:
        *_, (flags, end) = envelopes(answer.content)
        assert flags == 2
        assert end["error"]["code"] == "invalid_argument"
        assert end["error"]["details"][0]["debug"]["reason"] == "FIELD_INVALID"


async def test_a_gzipped_request_is_unpacked_and_a_bomb_is_not() -> None:
    request = gzip.compress(json.dumps(REQUESTS["Search"]).encode())
    bomb = gzip.compress(b'{"terms": [{"text": "' + b"x" * 8 * 2**20 + b'"}]}')
    async with serving(library(), max_message_mb=4) as gateway:
        unpacked = await gateway.call("Search", request, content_encoding="gzip")
        refused = await gateway.call("Search", bomb, content_encoding="gzip")
        cut = await gateway.call("Search", request[:-9], content_encoding="gzip")
        other = await gateway.call("Search", request, content_encoding="br")
        plain = await gateway.call("Search", REQUESTS["Search"], content_encoding="gzip")
        held = gateway.registry.get_sample_value("likeness_gateway_http_request_bytes")

    assert unpacked.status_code == 200
    assert [(each.status_code, each.json()["code"]) for each in (refused, cut, other, plain)] == [
        (400, "invalid_argument")
    ] * 4
    assert "larger than" in refused.json()["message"]
    assert held == 0


async def test_an_answer_is_never_compressed() -> None:
    async with serving(library()) as gateway:
        answer = await gateway.call("Search", REQUESTS["Search"], accept_encoding="gzip, br")

    assert answer.status_code == 200
    assert answer.headers["content-encoding"] == "identity"


async def test_what_is_no_call_is_refused_with_a_reason() -> None:
    refused = [
        ("POST", f"{SERVICE}/IndexImages", "application/connect+json", 404),
        ("POST", f"{SERVICE}/Nothing", "application/json", 404),
        ("POST", f"{SERVICE}/Search/", "application/json", 404),
        ("GET", f"{SERVICE}/Search?encoding=json&message=%7B%7D", "application/json", 405),
        ("PUT", f"{SERVICE}/Search", "application/json", 405),
        ("POST", f"{SERVICE}/Search", "text/plain", 415),
        ("POST", f"{SERVICE}/Search", "application/grpc", 415),
        ("POST", f"{SERVICE}/Search", "application/grpc-web+proto", 415),
        ("POST", f"{SERVICE}/FindDuplicates", "application/json", 415),
        ("POST", "/healthz", "application/json", 405),
        ("GET", "/nothing", "application/json", 404),
    ]
    async with serving(library()) as gateway:
        answers = [
            await gateway.http.request(method, path, content=b"{}", headers={"content-type": kind})
            for method, path, kind, _ in refused
        ]

    assert [answer.status_code for answer in answers] == [status for *_, status in refused]
    assert all(answer.json()["message"] for answer in answers)


async def test_the_default_deadline_is_told_and_the_callers_own_is_kept() -> None:
    services = library()
    async with serving(services, default_deadline_s=30) as gateway:
        without = await gateway.call("CountItems", {})
        within = await gateway.call("CountItems", {}, connect_timeout_ms="5000")
        wrong = await gateway.call("CountItems", {}, connect_timeout_ms="soon")

    assert without.headers["likeness-deadline-ms"] == "30000"
    assert "likeness-deadline-ms" not in within.headers
    assert wrong.status_code == 400


async def test_a_call_that_is_not_answered_in_time_ends_with_deadline_exceeded() -> None:
    never = asyncio.Event()

    class Stuck(Behind):
        async def CountItems(self, request: Any, context: Any) -> Any:  # noqa: N802
            await never.wait()

    services = Stuck()  # type: ignore[abstract]  # only what the gateway calls
    async with serving(services, default_deadline_s=0.2) as gateway:
        by_default = await gateway.call("CountItems", {})
        by_caller = await gateway.call("CountItems", {}, connect_timeout_ms="100")
        never.set()

    for answer in (by_default, by_caller):
        assert answer.status_code == 504
        assert answer.json()["code"] == "deadline_exceeded"
        assert answer.json()["details"][0]["debug"]["reason"] == "DEADLINE_EXCEEDED"


async def test_before_it_is_ready_probes_say_why_and_calls_are_told_to_come_again() -> None:
    async with serving(library(), started=False) as gateway:
        probes = [await gateway.http.get(path) for path in ("/healthz", "/readyz")]
        early = await gateway.call("CountItems", {})
        await gateway.readiness.set(True, "warmed up")
        ready = await gateway.http.get("/readyz")
        await gateway.readiness.set(False, "the embedder is away")
        away = await gateway.http.get("/readyz")

    assert [each.status_code for each in (*probes, ready, away)] == [200, 503, 200, 503]
    assert "starting" in probes[1].text
    assert "the embedder is away" in away.text
    assert early.status_code == 503
    assert early.headers["retry-after"] == "1"
    assert early.json()["details"][0]["debug"]["reason"] == "NOT_READY"


async def test_a_gateway_that_has_stopped_leaves_no_thread_behind_that_read_messages() -> None:
    padded, before = b"{}" + b" " * messages.INLINE_BYTES, set(threading.enumerate())
    async with serving(library()) as gateway:
        answer = await gateway.call("CountItems", padded)
        now = set(threading.enumerate()) - before
        reading = [each for each in now if each.name.startswith("http-message")]

    assert answer.status_code == 200
    assert reading
    for thread in reading:
        await asyncio.to_thread(thread.join, 60)
        assert not thread.is_alive()


async def test_a_port_that_is_taken_ends_the_start_and_names_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(LikenessError, match=f"port {port}.*LIKENESS_HTTP_PORT"):
            async with serving(library(), http_port=port):
                pass


async def test_the_status_tells_the_limits() -> None:
    async with serving(library(), default_deadline_s=7, max_message_mb=4) as gateway:
        status = (await gateway.call("GetStatus", {})).json()

    assert status["limits"] == {"defaultDeadline": "7s", "maxMessageBytes": str(4 * 2**20)}


async def test_calls_are_counted_by_transport() -> None:
    async with serving(library()) as gateway:
        await gateway.call("CountItems", {})
        await gateway.grpc.CountItems(gateway_pb2.CountItemsRequest())
        lines = [
            f'likeness_gateway_calls_total{{code="OK",method="CountItems",transport="{transport}"}} 1.0'
            for transport in ("grpc", "http")
        ]
        async with asyncio.timeout(60):  # a call by gRPC may be counted a moment after its answer has arrived
            shown = ""
            while not all(line in shown for line in lines):
                shown = (await gateway.http.get("/metrics")).text

    assert "_created" not in shown


class Slow(Behind):
    """Answers counts and facets when it is let, and knows whether somebody still waits."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.let, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def _wait(self) -> None:
        self.begun.set()
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def CountItems(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._wait()
        return await super().CountItems(request, context)

    async def GetFacets(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._wait()
        return await super().GetFacets(request, context)


@pytest.mark.parametrize(
    ("rpc", "kind", "body"),
    [("CountItems", "application/json", b"{}"), ("FindDuplicates", "application/connect+json", enveloped({}))],
)
async def test_a_client_that_goes_away_has_its_call_cancelled(rpc: str, kind: str, body: bytes) -> None:
    services = Slow()  # type: ignore[abstract]  # only what the gateway calls
    async with serving(services) as gateway:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        head = f"POST {SERVICE}/{rpc} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await asyncio.wait_for(services.begun.wait(), 30)
        writer.close()
        await asyncio.wait_for(services.cancelled.wait(), 30)


async def test_a_call_under_way_is_answered_while_the_gateway_stops_and_no_other_comes_in() -> None:
    services = Slow()  # type: ignore[abstract]  # only what the gateway calls
    services.put("a", vector(1))
    async with serving(services, drain_s=30) as gateway:
        under_way = asyncio.create_task(gateway.call("CountItems", {}))
        await asyncio.wait_for(services.begun.wait(), 30)
        await gateway.readiness.stop()
        async with asyncio.timeout(30):
            while await reachable(gateway.port):  # noqa: ASYNC110  (no event tells)
                await asyncio.sleep(0.01)
        services.let.set()
        answer = await under_way

    assert answer.json() == {"count": "1"}


async def reachable(port: int) -> bool:
    """Whether something listens there."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
