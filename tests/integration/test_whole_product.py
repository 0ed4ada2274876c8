"""The whole product through the gateway alone, by gRPC and by HTTP/JSON: the answers are the same."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from likeness.common.v1 import metadata_pb2, types_pb2
from likeness.common.v1.metadata_pb2 import Comparison, Filter, FilterList, Value
from likeness.gateway.v1 import gateway_pb2 as gw
from PIL import Image

from chassis.errors import LikenessError
from deploy.local import Services
from tests.integration.conftest import connect
from tests.pictures import hostile
from tests.transports import ByGrpc, ByHttp, Gateway

CATS, ALL = "animals", 14
# What is another thing at every call, or of the collection that it is about.
_PASSING = {"uid", "create_time", "timings"}


class Walk:
    """One walk through the product, in collections of its own; keeps every answer."""

    def __init__(self, gateway: Gateway, name: str, photographs: dict[str, Path]) -> None:
        self.gateway, self.name = gateway, name
        self.alias, self.next = f"{name}-live", f"{name}-next"
        self.photographs = photographs
        self.seen: list[tuple[str, Any]] = []

    def call(self, method: str, request: Any) -> Any:
        answer = self.gateway.call(method, request)
        self._note(method, MessageToDict(answer, preserving_proto_field_name=True))
        return answer

    def take_in(self, request: gw.IndexBatchRequest) -> gw.IndexBatchResponse:
        """By gRPC in a stream both ways, by HTTP in one call."""
        answer = self.gateway.take_in(request)
        told = json.dumps(MessageToDict(answer, preserving_proto_field_name=True))
        # Where in the request an item stands is another place in each.
        self._note("taken in", json.loads(re.sub(r"\bitems\[\d+\]", "item", told)))
        return answer

    def stream(self, method: str, request: Any) -> list[Any]:
        answers = self.gateway.stream(method, request)
        self._note(method, [MessageToDict(each, preserving_proto_field_name=True) for each in answers])
        return answers

    def refused(self, method: str, request: Any) -> str:
        """The reason for which a call is refused."""
        with pytest.raises(LikenessError) as caught:
            self.gateway.call(method, request)
        error = caught.value
        self._note(method, [error.reason_name, error.message, [(v.field, v.description) for v in error.violations]])
        return error.reason_name

    def search(self, *terms: gw.Term, **more: Any) -> gw.SearchResponse:
        request = gw.SearchRequest(**{"collection": self.name, "terms": terms, **more})
        answer: gw.SearchResponse = self.call("Search", request)
        return answer

    def picture(self, name: str) -> bytes:
        return self.photographs[name].read_bytes()

    def _note(self, method: str, told: Any) -> None:
        self.seen.append((method, _lasting(told, self.name)))


def test_the_whole_product_answers_by_http_as_by_grpc(services: Services, photographs: dict[str, Path]) -> None:
    assert services.http is not None
    http = ByHttp(services.http)
    try:
        with connect(services) as channel:
            walks = [
                Walk(ByGrpc(channel), "walk-a", photographs),
                Walk(http, "walk-b", photographs),
            ]
            for walk in walks:
                for part in (
                    collections,
                    taken_in,
                    searches,
                    pages,
                    lists,
                    labels,
                    metadata,
                    duplicates,
                    deletions,
                    moves,
                ):
                    part(walk)
    finally:
        http.close()

    by_grpc, by_http = walks
    for (method, told), (other_method, other) in zip(by_grpc.seen, by_http.seen, strict=True):
        assert method == other_method
        assert list(_differences(told, other, method)) == []
    every = {m.name for m in gw.DESCRIPTOR.services_by_name["SearchService"].methods if not m.client_streaming}
    assert {method for method, _ in by_grpc.seen} == {*every, "taken in"}


def collections(walk: Walk) -> None:
    status = walk.gateway.call("GetStatus", gw.GetStatusRequest())
    walk.seen.append(("GetStatus", MessageToDict(status.model)))
    assert all(service.serving for service in status.services)
    made = walk.call("CreateCollection", gw.CreateCollectionRequest(name=walk.name, description="to walk through"))
    assert made.collection.fingerprint == status.model.fingerprint
    assert walk.refused("CreateCollection", gw.CreateCollectionRequest(name=walk.name)) == "COLLECTION_EXISTS"
    walk.call("UpdateCollection", gw.UpdateCollectionRequest(name=walk.name, description="walked through"))
    walk.call("SetAlias", gw.SetAliasRequest(alias=walk.alias, collection=walk.name, expected_collection=""))
    stands_for = {a.name: a.collection for a in walk.gateway.call("ListAliases", gw.ListAliasesRequest()).aliases}
    walk.seen.append(("ListAliases", stands_for[walk.alias] == walk.name))
    found = walk.call("GetCollection", gw.GetCollectionRequest(name=walk.alias)).collection
    assert (found.name, found.description, list(found.aliases)) == (walk.name, "walked through", [walk.alias])
    listed = walk.gateway.call("ListCollections", gw.ListCollectionsRequest(page_size=1_000)).collections
    walk.seen.append(("ListCollections", [each.name for each in listed].count(walk.name)))


def taken_in(walk: Walk) -> None:
    items = []
    for number, name in enumerate(walk.photographs):
        items.append(gw.IndexItem(sequence=number, id=name, labels=[name], uri=f"walk/{name}.jpg"))
        items[-1].image.encoded = walk.picture(name)
        items[-1].metadata.fields["number"].int_value = number
        items[-1].metadata.fields["weight"].double_value = number / 4
    copy = gw.IndexItem(sequence=90, id="cat-again", image=types_pb2.Image(encoded=walk.picture("cat")))
    smaller = gw.IndexItem(sequence=91, id="cat-smaller", image=types_pb2.Image(encoded=_recompressed(walk, "cat")))
    bad = [
        gw.IndexItem(sequence=92 + i, id=f"bad{i}", image=types_pb2.Image(encoded=hostile()[kind][0]))
        for i, kind in enumerate(("text", "cut in half"))
    ]
    request = gw.IndexBatchRequest(
        collection=walk.name, options=gw.IngestOptions(keep_originals=True), items=[*items, copy, smaller, *bad]
    )
    results = walk.take_in(request).results
    outcomes = [result.WhichOneof("outcome") for result in results]
    assert outcomes == ["stored"] * ALL + ["error"] * 2
    assert [result.id for result in results[-2:]] == ["bad0", "bad1"]
    skip = gw.IngestOptions(existing=gw.EXISTING_POLICY_SKIP)
    again = walk.call("IndexBatch", gw.IndexBatchRequest(collection=walk.name, options=skip, items=items[:2])).results
    assert [result.skipped.reason for result in again] == [gw.SKIP_REASON_EXISTS] * 2


def searches(walk: Walk) -> None:
    cat = types_pb2.Image(encoded=walk.picture("cat"))
    text, image, stored = gw.Term(text="a photograph of a cat"), gw.Term(image=cat), gw.Term(id="cat")
    assert walk.search(text, top_k=3).hits[0].item.id.startswith("cat")
    assert walk.search(image).hits[0].score == pytest.approx(1, abs=1e-4)
    assert "cat" not in [hit.item.id for hit in walk.search(stored).hits]
    read = gw.GetItemsRequest(collection=walk.name, ids=["rocket-launch"], fields=types_pb2.ItemFields(vector=True))
    vector = walk.call("GetItems", read).items[0].vector
    assert walk.search(gw.Term(vector=vector)).hits[0].item.id == "rocket-launch"
    with Image.open(io.BytesIO(walk.picture("grass"))) as opened:
        small = opened.convert("RGB").resize((64, 64))
    rgb = types_pb2.RgbImage(width=64, height=64, pixels=small.tobytes())
    walk.search(gw.Term(image=types_pb2.Image(rgb=rgb)), top_k=3)
    mixed = walk.search(
        text, gw.Term(id="grass", weight=-0.5), explain=True, filter=_number(metadata_pb2.OPERATOR_LT, 9)
    )
    assert all(len(hit.term_similarities) == 2 for hit in mixed.hits)
    facets = [gw.FacetRequest(key="format"), gw.FacetRequest(key="labels", limit=3)]
    assert walk.search(text, facets=facets).count == ALL
    walk.search(image, min_score=0.99, exact=True)
    walk.search(stored, rescore=gw.Rescore(metric=types_pb2.METRIC_L2, candidates=14), collection=walk.alias)
    batch = [
        gw.SearchRequest(collection=walk.name, terms=[text], top_k=2),
        gw.SearchRequest(collection=walk.name, terms=[gw.Term(image=types_pb2.Image(encoded=b"x"))]),
        gw.SearchRequest(collection="nobody", terms=[text]),
    ]
    results = walk.call("BatchSearch", gw.BatchSearchRequest(searches=batch)).results
    assert [result.WhichOneof("outcome") for result in results] == ["response", "error", "error"]
    assert walk.refused("Search", gw.SearchRequest(collection=walk.name)) == "FIELD_INVALID"
    nobody = gw.Term(id="nobody")
    assert walk.refused("Search", gw.SearchRequest(collection=walk.name, terms=[nobody])) == "ITEM_NOT_FOUND"
    assert walk.refused("Search", gw.SearchRequest(collection="no-such", terms=[text])) == "COLLECTION_NOT_FOUND"


def pages(walk: Walk) -> None:
    found = []
    for offset in range(0, ALL + 5, 5):
        hits = walk.search(gw.Term(text="a photograph of an animal"), top_k=5, offset=offset).hits
        found += [hit.item.id for hit in hits]
    assert sorted(found) == sorted([*walk.photographs, "cat-again", "cat-smaller"])
    assert len(hits) == ALL % 5 or not hits


def lists(walk: Walk) -> None:
    found, token = [], ""
    while True:
        request = gw.ListItemsRequest(
            collection=walk.name, order_by="number", descending=True, page_size=4, page_token=token
        )
        page = walk.call("ListItems", request)
        found += [item.id for item in page.items]
        token = page.next_page_token
        if not token:
            break
    assert found[: len(walk.photographs)] == list(walk.photographs)[::-1]
    assert len(found) == ALL
    few = _number(metadata_pb2.OPERATOR_LT, 4)
    assert walk.call("CountItems", gw.CountItemsRequest(collection=walk.name, filter=few)).count == 4
    none_of = Filter(none_of=FilterList(filters=[few]))
    wanted = [gw.FacetRequest(key="width"), gw.FacetRequest(key="number", limit=5)]
    counted = walk.call("GetFacets", gw.GetFacetsRequest(collection=walk.name, filter=none_of, facets=wanted))
    assert counted.count == ALL - 4


def labels(walk: Walk) -> None:
    labelling = gw.Labelling(labels=["cat", "cup of coffee", "rocket launch", "lawn of grass"])
    inputs = [
        gw.ClassifyInput(id="rocket-launch"),
        gw.ClassifyInput(image=types_pb2.Image(encoded=walk.picture("cat"))),
    ]
    request = gw.ClassifyRequest(collection=walk.name, inputs=inputs, labelling=labelling)
    assert [r.labels[0].label for r in walk.call("Classify", request).results] == ["rocket launch", "cat"]
    suggest = gw.SuggestLabelsRequest(collection=walk.name, labelling=labelling, min_probability=0.8)
    suggested = [each for page in walk.stream("SuggestLabels", suggest) for each in page.suggestions]
    cats = [each.id for each in suggested if each.labels[0].label == "cat"]
    assert {"cat", "cat-again", "cat-smaller"} <= set(cats)
    update = gw.UpdateLabelsRequest(collection=walk.name, ids=cats, add=[CATS])
    assert walk.call("UpdateLabels", update).updated == len(cats)
    rename = [gw.LabelRename(**{"from": "grass"}, to="lawn")]
    assert (
        walk.call("UpdateLabels", gw.UpdateLabelsRequest(collection=walk.name, all_items=True, rename=rename)).updated
        == 1
    )
    labelled = walk.search(gw.Term(text="a photograph of a cat"), filter=_labelled(CATS))
    assert sorted(hit.item.id for hit in labelled.hits) == sorted(cats)


def metadata(walk: Walk) -> None:
    changed = metadata_pb2.Metadata(fields={"mood": Value(string_value="calm"), "year": Value(int_value=2020)})
    updates = [
        gw.MetadataUpdate(id="cat", set=changed, uri="s3://bucket/cat.png"),
        gw.MetadataUpdate(id="nobody", remove_keys=["mood"]),
    ]
    answer = walk.call("UpdateMetadata", gw.UpdateMetadataRequest(collection=walk.name, updates=updates))
    assert (answer.updated, list(answer.missing_ids)) == (1, ["nobody"])
    (cat,) = walk.call("GetItems", gw.GetItemsRequest(collection=walk.name, ids=["cat"])).items
    assert (cat.uri, cat.metadata.fields["year"].int_value) == ("s3://bucket/cat.png", 2020)
    assert CATS in cat.labels
    assert cat.metadata.fields["width"].int_value > 0
    calm = Filter(comparison=Comparison(key="mood", op=metadata_pb2.OPERATOR_EQ, values=[Value(string_value="calm")]))
    assert walk.call("CountItems", gw.CountItemsRequest(collection=walk.name, filter=calm)).count == 1
    own = gw.MetadataUpdate(id="cat", remove_keys=["sha256"])
    asked = gw.UpdateMetadataRequest(collection=walk.name, updates=[own])
    assert walk.refused("UpdateMetadata", asked) == "METADATA_INVALID"


def duplicates(walk: Walk) -> None:
    def groups(request: gw.FindDuplicatesRequest) -> list[list[str]]:
        answers = walk.stream("FindDuplicates", request)
        return [[each.item.id for each in group.items] for answer in answers for group in answer.groups]

    assert groups(gw.FindDuplicatesRequest(collection=walk.name)) == [["cat", "cat-again"]]
    assert groups(gw.FindDuplicatesRequest(collection=walk.name, min_score=0.97)) == [
        ["cat", "cat-again", "cat-smaller"]
    ]


def deletions(walk: Walk) -> None:
    by_id = gw.DeleteItemsRequest(collection=walk.name, ids=["cat-again", "nobody"])
    assert walk.call("DeleteItems", by_id).deleted == 1
    by_filter = gw.DeleteItemsRequest(collection=walk.name, filter=_number(metadata_pb2.OPERATOR_GE, 8))
    assert walk.call("DeleteItems", by_filter).deleted == len(walk.photographs) - 8
    left = walk.call("GetItems", gw.GetItemsRequest(collection=walk.name, ids=["cat-again", "cat-smaller"]))
    assert list(left.missing_ids) == ["cat-again"]


def moves(walk: Walk) -> None:
    request = gw.ReembedCollectionRequest(collection=walk.name, target=walk.next, alias=walk.alias)
    answers = walk.gateway.stream("ReembedCollection", request)
    last = answers[-1]
    walk.seen.append(("ReembedCollection", [last.done, last.embedded, last.failed, last.switched, last.finished]))
    assert (last.embedded, last.failed, last.switched, last.finished) == (9, 0, True, True)
    text = gw.Term(text="a photograph of a cat")
    before, after = walk.search(text), walk.search(text, collection=walk.alias)
    assert walk.call("GetCollection", gw.GetCollectionRequest(name=walk.alias)).collection.name == walk.next
    assert [hit.item for hit in after.hits] == [hit.item for hit in before.hits]
    walk.call("DeleteCollection", gw.DeleteCollectionRequest(name=walk.name))
    assert walk.refused("DeleteCollection", gw.DeleteCollectionRequest(name=walk.next)) == "COLLECTION_ALIASED"
    walk.call("DeleteAlias", gw.DeleteAliasRequest(alias=walk.alias))
    walk.call("DeleteCollection", gw.DeleteCollectionRequest(name=walk.next))
    assert walk.refused("GetCollection", gw.GetCollectionRequest(name=walk.next)) == "COLLECTION_NOT_FOUND"


def _recompressed(walk: Walk, name: str) -> bytes:
    out = io.BytesIO()
    with Image.open(walk.photographs[name]) as opened:
        opened.convert("RGB").save(out, "JPEG", quality=70)
    return out.getvalue()


def _number(op: metadata_pb2.Operator.ValueType, limit: int) -> Filter:
    return Filter(comparison=Comparison(key="number", op=op, values=[Value(int_value=limit)]))


def _labelled(label: str) -> Filter:
    return Filter(
        comparison=Comparison(key="labels", op=metadata_pb2.OPERATOR_CONTAINS, values=[Value(string_value=label)])
    )


def _lasting(told: Any, name: str) -> Any:
    """What was told, without what is another thing at every call, and with the walk's name taken out."""
    if isinstance(told, dict):
        lasting = {key: _lasting(value, name) for key, value in told.items() if key not in _PASSING}
        return {key: "…" if key == "next_page_token" else value for key, value in lasting.items()}
    if isinstance(told, list | tuple):
        return [_lasting(each, name) for each in told]
    return re.sub(rf"\b{name}", "walk", told) if isinstance(told, str) else told


def _differences(one: Any, other: Any, where: str) -> Iterator[str]:
    """Where two answers differ by more than the last digits of numbers."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _differences(one.get(key), other.get(key), f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (each, its) in enumerate(zip(one, other, strict=True)):
            yield from _differences(each, its, f"{where}[{i}]")
    elif isinstance(one, float) and isinstance(other, float):
        if one != pytest.approx(other, abs=1e-4):
            yield f"{where}: {one} and {other}"
    elif one != other:
        yield f"{where}: {one!r} and {other!r}"
