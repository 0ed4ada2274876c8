"""Traces and records of calls by HTTP: as by gRPC."""

import re
from typing import Any

import pytest
from likeness.common.v1.metadata_pb2 import OPERATOR_EQ, Comparison, Filter, Value
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2
from structlog.testing import capture_logs

from tests.unit.gateway.behind import MODEL, Behind, vector
from tests.unit.gateway.http.serving import SERVICE, serving
from tests.unit.gateway.http.test_guarding import KEYS

ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SENT = f"00-{ID}-00f067aa0ba902b7-01"
TRACE_ID = "likeness-trace-id"
ONE_RED = Filter(comparison=Comparison(key="red", op=OPERATOR_EQ, values=[Value(bool_value=True)]))


class Traced(Behind):
    """Writes down with what trace it is called. Makes collections."""

    def __init__(self) -> None:
        super().__init__()
        self.traces: list[object] = []

    async def _begin(self, method: str, request: Any, context: Any, collection: str = "images") -> None:
        self.traces.append(dict(context.invocation_metadata()).get("traceparent"))
        await super()._begin(method, request, context, collection)

    async def CreateCollection(  # noqa: N802
        self, request: indexer_pb2.CreateCollectionRequest, context: Any
    ) -> indexer_pb2.CreateCollectionResponse:
        self.collections[request.name] = MODEL
        made = indexer_pb2.Collection(name=request.name, uid="uid-new", fingerprint=MODEL)
        return indexer_pb2.CreateCollectionResponse(collection=made)


def library() -> Traced:
    services = Traced()  # type: ignore[abstract]  # only what the gateway calls
    services.put("a", vector(1), red=True)
    services.put("b", vector(1), red=False)
    return services


def in_details(answer: dict[str, Any]) -> object:
    return answer["details"][0]["debug"]["metadata"]["traceId"]


async def test_an_answer_tells_the_id_and_the_services_behind_are_called_with_it() -> None:
    services = library()
    async with serving(services) as gateway:
        search = {"terms": [{"text": "a cat"}]}
        sent = await gateway.call("Search", search, traceparent=SENT)
        unsent = await gateway.call("Search", {"terms": [{"id": "a"}]})
        stream = await gateway.http.post(
            f"{SERVICE}/FindDuplicates",
            content=b"\0\0\0\0\2{}",
            headers={"content-type": "application/connect+json", "traceparent": SENT},
        )
    assert sent.headers[TRACE_ID] == stream.headers[TRACE_ID] == ID
    new = unsent.headers[TRACE_ID]
    assert re.fullmatch(r"[0-9a-f]{32}", new)
    assert new != ID
    ids = [str(each).split("-")[1] for each in services.traces]
    assert len(ids) >= 4
    assert set(ids) == {ID, new}
    parents = {str(each).split("-")[2] for each in services.traces}
    assert len(parents) == 3  # one for each call of a client
    assert "00f067aa0ba902b7" not in parents


@pytest.mark.parametrize(
    ("rpc", "request_", "headers"),
    [
        ("CountItems", {"collection": "none"}, {"x_api_key": "reader-key"}),  # fails while it is answered
        ("CountItems", {"no": "field"}, {"x_api_key": "reader-key"}),  # while it is read
        ("CountItems", {"collection": "c" * 2_000_000}, {"x_api_key": "reader-key"}),  # before that
        ("CountItems", {}, {}),  # is refused at the door
    ],
)
async def test_a_failure_tells_it_too(rpc: str, request_: Any, headers: dict[str, str]) -> None:
    async with serving(library(), api_keys=KEYS, max_message_mb=1) as gateway:
        answer = await gateway.call(rpc, request_, traceparent=SENT, **headers)
    assert answer.status_code in (400, 401, 404)
    assert answer.headers[TRACE_ID] == ID
    assert in_details(answer.json()) == ID


async def test_a_thumbnail_tells_it_and_so_does_its_failure() -> None:
    async with serving(library()) as gateway:
        missing = await gateway.http.get("/thumbnails/images/a", headers={"traceparent": SENT})
    assert missing.headers[TRACE_ID] == ID
    assert in_details(missing.json()) == ID


async def test_a_deletion_by_filter_is_recorded_with_its_key_by_either_transport() -> None:
    with capture_logs() as lines:
        async with serving(library(), api_keys=KEYS) as gateway:
            red = {"comparison": {"key": "red", "op": "OPERATOR_EQ", "values": [{"boolValue": True}]}}
            await gateway.call("DeleteItems", {"filter": red}, x_api_key="writer-key", traceparent=SENT)
            request = gateway_pb2.DeleteItemsRequest(filter=ONE_RED)
            await gateway.grpc.DeleteItems(request, metadata=(("x-api-key", "admin-key"),))
            await gateway.call("DeleteItems", {"ids": ["b"]}, x_api_key="writer-key")
    recorded = [line for line in lines if line["event"] == "call" and line["log_level"] == "info"]
    assert [(line["transport"], line["key"], line["touched"]) for line in recorded] == [
        ("http", "writer", {"collection": "images", "filter": True, "deleted": 1}),
        ("grpc", "admin", {"collection": "images", "filter": True}),
    ]
    assert all("127.0.0.1" in line["peer"] for line in recorded)
    assert recorded[0]["trace_id"] == ID


async def test_an_ingest_that_makes_its_collection_is_recorded_and_one_that_finds_it_is_not() -> None:
    batch = {"collection": "new", "createCollection": True, "items": [{"id": "a", "image": {"encoded": "YQ=="}}]}
    with capture_logs() as lines:
        async with serving(library(), api_keys=KEYS) as gateway:
            answers = [await gateway.call("IndexBatch", batch, x_api_key="writer-key") for _ in range(2)]
    assert [answer.json().get("created", False) for answer in answers] == [True, False]
    recorded = [line for line in lines if line["event"] == "call" and line["log_level"] == "info"]
    assert [(line["key"], line["touched"]) for line in recorded] == [("writer", {"collection": "new", "created": True})]
