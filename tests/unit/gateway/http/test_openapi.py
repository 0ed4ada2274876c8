"""The OpenAPI document: all of the contract that HTTP has, and nothing that real answers contradict."""

import copy
import json
from importlib import resources
from typing import Any

import jsonschema
import pytest
from likeness.gateway.v1 import gateway_pb2

from tests.unit.gateway.behind import Behind, vector
from tests.unit.gateway.http.serving import SERVICE, serving

METHODS = gateway_pb2.DESCRIPTOR.services_by_name["SearchService"].methods


@pytest.fixture(scope="module")
def document() -> Any:
    return json.loads(resources.files("likeness.gateway.v1").joinpath("openapi.json").read_text())


def references(part: Any) -> set[str]:
    if isinstance(part, list):
        return set().union(*map(references, part))
    if not isinstance(part, dict):
        return set()
    own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
    return own.union(*map(references, part.values()))


def exact(document: Any) -> Any:
    """The same document, in which messages have no other fields."""
    strict = copy.deepcopy(document)
    for schema in strict["components"]["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return strict


def check(document: Any, schema: str, value: Any) -> None:
    whole = {**exact(document), "$ref": f"#/components/schemas/{schema}"}
    jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker()).validate(value)


def test_every_rpc_but_the_stream_both_ways_is_described(document: Any) -> None:
    described = {path.removeprefix(f"{SERVICE}/") for path in document["paths"] if path.startswith(SERVICE)}

    assert described == {method.name for method in METHODS} - {"IndexImages"}
    for method in METHODS:
        if method.name in described:
            operation = document["paths"][f"{SERVICE}/{method.name}"]["post"]
            assert operation["operationId"] == method.name
            assert operation["description"]
            assert operation["summary"]


def test_every_field_is_described_under_its_json_name(document: Any) -> None:
    schemas = document["components"]["schemas"]
    for message in gateway_pb2.DESCRIPTOR.message_types_by_name.values():
        if message.name in ("IndexImagesRequest", "IndexImagesResponse"):
            continue
        if message.full_name in schemas:
            shown = schemas[message.full_name]["properties"]
            assert set(shown) == {field.json_name for field in message.fields}
            assert all(each["description"] for each in shown.values()), message.full_name


def test_everything_referred_to_is_there(document: Any) -> None:
    for reference in references(document):
        found = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
        assert found


async def test_it_is_served_and_real_answers_and_errors_agree_with_it(document: Any) -> None:
    services = Behind()  # type: ignore[abstract]  # only what the gateway calls
    services.put("a", vector(1), size=7, share=0.5, tags=["x"], seen=True, name="a")
    services.put("b", vector(0, 1), sha256="00")
    requests: dict[str, Any] = {
        "Search": {
            "terms": [{"text": "x"}],
            "fields": {"metadata": True, "vector": True},
            "facets": [{"key": "tags"}],
            "explain": True,
        },
        "BatchSearch": {"searches": [{"terms": [{"text": "x"}]}, {"terms": [{"text": "bad"}]}]},
        "GetItems": {"ids": ["a", "nothing"], "fields": {"metadata": True, "vector": True}},
        "ListItems": {"pageSize": 1},
        "CountItems": {},
        "GetFacets": {"facets": [{"key": "tags"}]},
        "Classify": {"inputs": [{"id": "a"}, {"id": "nothing"}], "labelling": {"labels": ["x", "y"]}},
        "UpdateLabels": {"ids": ["a"], "add": ["new"]},
        "UpdateMetadata": {"updates": [{"id": "a", "set": {"fields": {"year": {"intValue": "2020"}}}, "uri": ""}]},
        "GetStatus": {},
    }
    async with serving(services) as gateway:
        served = (await gateway.http.get("/openapi.json")).json()
        answers = {rpc: await gateway.call(rpc, request) for rpc, request in requests.items()}
        failed = await gateway.call("Search", {"terms": [{"text": "x", "weight": 1000}]})

    assert served == document
    for rpc, answer in answers.items():
        assert answer.status_code == 200, (rpc, answer.text)
        check(document, f"likeness.gateway.v1.{rpc}Response", answer.json())
        check(document, f"likeness.gateway.v1.{rpc}Request", requests[rpc])
    assert failed.status_code == 400
    check(document, "connect.Error", failed.json())
    with pytest.raises(jsonschema.ValidationError):
        check(document, "likeness.gateway.v1.SearchRequest", {"top_k": "many"})
