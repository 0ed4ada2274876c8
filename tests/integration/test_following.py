"""One call, followed by its trace through the logs of all three services; and who did what to a collection."""

import json
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest
from likeness.gateway.v1 import gateway_pb2

from chassis import __version__
from deploy.local import Services
from tests.integration.conftest import Stub, connect, item, messages, read
from tests.pictures import noise

SEARCHED, FAILED, TAKEN_IN, DELETED = ("abcdef0123456789" * 2, "1" * 32, "2" * 32, "3" * 32)
PARENT = "00f067aa0ba902b7"


def following(trace_id: str) -> tuple[tuple[str, str], ...]:
    """What a client sends."""
    return (("traceparent", f"00-{trace_id}-{PARENT}-01"),)


def lines(services: Services, name: str) -> list[dict[str, Any]]:
    """What a service has logged, but for what Chroma and libraries print."""
    return [json.loads(line) for line in services.log(name).read_text().splitlines() if line.startswith("{")]


def calls(services: Services, name: str, trace_id: str) -> dict[str, dict[str, Any]]:
    """The lines of the calls in a trace, by method."""
    found = [line for line in lines(services, name) if line["event"] == "call" and line["trace_id"] == trace_id]
    return {line["method"].rpartition("/")[2]: line for line in found}


def test_the_logs_of_all_three_services_tell_of_one_search_under_one_id(
    own_services: Callable[..., Services],
) -> None:
    services = own_services(LIKENESS_LOG_LEVEL="DEBUG")
    with connect(services) as channel:
        stub: Any = Stub(channel)
        items = messages([item(n, noise(n), f"n{n}") for n in range(3)], "noises")
        taken_in = stub.IndexImages(items, timeout=110, metadata=following(TAKEN_IN))
        assert [answer for answer in taken_in if answer.HasField("result")]

        request = gateway_pb2.SearchRequest(collection="noises", terms=[gateway_pb2.Term(text="noise")])
        stub.Search(request, timeout=60, metadata=following(SEARCHED))
        _, again = stub.Search.with_call(request, timeout=60)
        begun = dict(again.trailing_metadata())["likeness-trace-id"]

        request.collection = "nothing-there"
        with pytest.raises(grpc.RpcError) as caught:
            stub.Search(request, timeout=60, metadata=following(FAILED))
        failed: Any = caught.value
        assert read(failed).reason_name == "COLLECTION_NOT_FOUND"
        assert dict(failed.trailing_metadata())["likeness-trace-id"] == FAILED
    deleted = httpx.post(
        f"http://{services.http}/likeness.gateway.v1.SearchService/DeleteCollection",
        json={"name": "noises"},
        headers=dict(following(DELETED)),
        trust_env=False,
        timeout=60,
    )
    assert (deleted.status_code, deleted.headers["likeness-trace-id"]) == (200, DELETED)
    figures = httpx.get(f"http://{services.http}/metrics", trust_env=False, timeout=10).text
    assert 'likeness_build_info{python="' in figures
    services.stop()  # all that is to be logged is

    search, embed, query = (calls(services, name, SEARCHED) for name in ("gateway", "embedder", "indexer"))
    assert (set(search), set(embed)) == ({"Search"}, {"Embed"})
    assert {"Query"} <= set(query)
    assert search["Search"]["parent_id"] == PARENT
    behind = [*embed.values(), *query.values()]
    assert {line["parent_id"] for line in behind} == {search["Search"]["span_id"]}
    assert len({line["span_id"] for line in behind}) == len(behind)

    assert set(calls(services, "gateway", begun)) == {"Search"}
    assert "Query" in calls(services, "indexer", begun)

    assert {line["code"] for line in calls(services, "gateway", FAILED).values()} == {"NOT_FOUND"}
    assert {line["code"] for line in calls(services, "indexer", FAILED).values()} == {"NOT_FOUND"}

    ingest = calls(services, "gateway", TAKEN_IN)
    assert set(ingest) == {"IndexImages"}
    assert ingest["IndexImages"]["touched"] == {"collection": "noises", "created": True}
    assert {"GetModel", "Embed"} <= set(calls(services, "embedder", TAKEN_IN))
    assert {"CreateCollection", "UpsertItems"} <= set(calls(services, "indexer", TAKEN_IN))

    for name in ("gateway", "indexer"):
        line = calls(services, name, DELETED)["DeleteCollection"]
        assert (line["level"], line["code"], line["touched"]) == ("info", "OK", {"collection": "noises"})
        assert "127.0.0.1" in line["peer"]
    for name in ("gateway", "embedder", "indexer"):
        assert {line["version"] for line in lines(services, name) if "tls" in line} == {__version__}
