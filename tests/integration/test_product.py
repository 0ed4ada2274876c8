"""The gateway's product with everything real: pages, facets, explanations, batches, labels, classes, duplicates."""

import io
from pathlib import Path

import grpc
import pytest
from likeness.common.v1 import types_pb2
from likeness.common.v1.metadata_pb2 import (
    OPERATOR_CONTAINS,
    OPERATOR_EXISTS,
    OPERATOR_LT,
    Comparison,
    Filter,
    FilterList,
    Value,
)
from likeness.gateway.v1 import gateway_pb2
from PIL import Image

from chassis.errors import from_status
from tests.integration.conftest import Stub, index, item, read
from tests.pictures import noise

NAMES = {"cat": "cat", "coffee-cup": "cup of coffee", "rocket-launch": "rocket launch", "grass": "lawn of grass"}
TIME_S = 60


def labelled(label: str) -> Filter:
    return Filter(comparison=Comparison(key="labels", op=OPERATOR_CONTAINS, values=[Value(string_value=label)]))


def search(terms: list[gateway_pb2.Term], **more: object) -> gateway_pb2.SearchRequest:
    return gateway_pb2.SearchRequest(collection="photographs", terms=terms, **more)  # type: ignore[arg-type]


def ids(response: gateway_pb2.SearchResponse) -> list[str]:
    return [hit.item.id for hit in response.hits]


@pytest.fixture
def noises(stub: Stub, request: pytest.FixtureRequest) -> str:
    """A collection of a test's own: pictures n0 to n5, labelled "noise" and with their number's parity."""
    name = "noises-" + str(abs(hash(request.node.name)) % 10**9)
    pictures = [item(i, noise(1000 + i), f"n{i}", "noise") for i in range(6)]
    for i, picture in enumerate(pictures):
        picture.labels.append("odd" if i % 2 else "even")
        picture.metadata.fields["number"].int_value = i
    assert all(result.HasField("stored") for result in index(stub, pictures, name).values())
    return name


@pytest.mark.usefixtures("photographs")
def test_pages_together_are_what_one_page_would_have_been(stub: Stub) -> None:
    terms = [gateway_pb2.Term(text="a photograph of an animal")]
    whole = stub.Search(search(terms, top_k=12), timeout=TIME_S)
    pages = [stub.Search(search(terms, top_k=5, offset=start), timeout=TIME_S) for start in (0, 5, 10, 15)]

    assert [found for page in pages for found in ids(page)] == ids(whole)
    assert len(whole.hits) == 12
    assert all(hit.distance == pytest.approx(1 - hit.score, abs=1e-6) for hit in whole.hits)


@pytest.mark.usefixtures("photographs")
def test_a_rescored_and_an_exact_search_find_the_same_first(stub: Stub) -> None:
    terms = [gateway_pb2.Term(text="a cat")]
    rescored = stub.Search(search(terms, rescore=gateway_pb2.Rescore(metric=types_pb2.METRIC_L1)), timeout=TIME_S)
    exact = stub.Search(search(terms, exact=True), timeout=TIME_S)

    assert ids(rescored)[0] == ids(exact)[0] == "cat"
    assert rescored.hits[0].score == -rescored.hits[0].distance


@pytest.mark.usefixtures("photographs")
def test_hits_explained_and_facets_counted_in_one_call(stub: Stub) -> None:
    terms = [gateway_pb2.Term(text="a cat and no lawn"), gateway_pb2.Term(id="grass", weight=-0.5)]
    facets = [gateway_pb2.FacetRequest(key="format"), gateway_pb2.FacetRequest(key="labels", limit=2)]
    response = stub.Search(search(terms, explain=True, facets=facets, top_k=3), timeout=TIME_S)

    assert ids(response)[0] == "cat"
    first, last = response.hits[0].term_similarities, response.hits[2].term_similarities
    assert first[0] > last[0]
    assert response.count == sum(each.count for each in response.facets[0].values) == 12
    assert (len(response.facets[1].values), response.facets[1].distinct) == (2, 12)
    timings = response.timings
    parts = (timings.embed, timings.query, timings.facets, timings.explain, timings.embed_inference)
    assert all(part.ToNanoseconds() > 0 for part in parts)


def test_a_batch_answers_each_search_as_it_would_alone(stub: Stub, photographs: dict[str, Path]) -> None:
    picture = gateway_pb2.Term(image=types_pb2.Image(encoded=photographs["cat"].read_bytes()))
    searches = [
        search([gateway_pb2.Term(text="a rocket launch")]),
        search([picture], top_k=3),
        search([gateway_pb2.Term(image=types_pb2.Image(encoded=b"x"))]),
        search([gateway_pb2.Term(id="nobody")]),
        search([gateway_pb2.Term(id="cat"), gateway_pb2.Term(text="grass")], top_k=2),
        search([gateway_pb2.Term(text="x")], top_k=1001),
    ]
    answer = stub.BatchSearch(gateway_pb2.BatchSearchRequest(searches=searches), timeout=TIME_S)

    for i in (0, 1, 4):
        alone = stub.Search(searches[i], timeout=TIME_S)
        assert ids(answer.results[i].response) == ids(alone)
    errors = [from_status(answer.results[i].error.status) for i in (2, 3, 5)]
    assert [error.reason_name for error in errors] == ["IMAGE_FORMAT_UNSUPPORTED", "ITEM_NOT_FOUND", "FIELD_INVALID"]
    assert [error.violations[0].field for error in errors if error.violations] == ["terms[0].image.encoded", "top_k"]
    assert "queries" not in errors[1].message


def test_items_are_listed_counted_and_deleted_by_filter(stub: Stub, noises: str) -> None:
    few = Filter(comparison=Comparison(key="number", op=OPERATOR_LT, values=[Value(int_value=4)]))
    found: list[str] = []
    token = ""
    while True:
        page = stub.ListItems(
            gateway_pb2.ListItemsRequest(
                collection=noises, filter=few, order_by="number", descending=True, page_size=3, page_token=token
            ),
            timeout=TIME_S,
        )
        found += [each.id for each in page.items]
        token = page.next_page_token
        if not token:
            break
    odd = stub.DeleteItems(gateway_pb2.DeleteItemsRequest(collection=noises, filter=labelled("odd")), timeout=TIME_S)
    left = stub.CountItems(gateway_pb2.CountItemsRequest(collection=noises), timeout=TIME_S)

    assert found == ["n3", "n2", "n1", "n0"]
    assert list(page.items[0].labels) == ["noise", "even"]
    assert (odd.deleted, left.count) == (3, 3)
    with pytest.raises(grpc.RpcError) as caught:
        stub.DeleteItems(gateway_pb2.DeleteItemsRequest(collection=noises, ids=["a"], filter=few), timeout=TIME_S)
    assert read(caught.value).violations[0].field == "filter"


def test_labels_are_changed_on_items_and_renamed_over_the_collection(stub: Stub, noises: str) -> None:
    def update(**fields: object) -> gateway_pb2.UpdateLabelsResponse:
        request = gateway_pb2.UpdateLabelsRequest(collection=noises, **fields)  # type: ignore[arg-type]
        return stub.UpdateLabels(request, timeout=TIME_S)

    rename = [gateway_pb2.LabelRename(**{"from": "odd"}, to="strange")]
    renamed, again = update(all_items=True, rename=rename), update(all_items=True, rename=rename)
    given = update(ids=["n0", "nobody"], add=["first"], remove=["noise"])
    bare = update(filter=labelled("strange"), set=gateway_pb2.LabelList())
    facets = stub.GetFacets(
        gateway_pb2.GetFacetsRequest(collection=noises, facets=[gateway_pb2.FacetRequest(key="labels")]), timeout=TIME_S
    )
    stored = stub.GetItems(gateway_pb2.GetItemsRequest(collection=noises, ids=["n0", "n1"]), timeout=TIME_S)

    assert (renamed.updated, again.updated) == (3, 0)
    assert (given.updated, list(given.missing_ids)) == (1, ["nobody"])
    assert bare.updated == 3
    assert {each.value.string_value: each.count for each in facets.facets[0].values} == {
        "even": 3,
        "noise": 2,
        "first": 1,
    }
    assert facets.facets[0].missing == 3
    assert [list(each.labels) for each in stored.items] == [["even", "first"], []]
    assert stored.items[1].metadata.fields["number"].int_value == 1


def test_photographs_are_told_apart_without_training(stub: Stub, photographs: dict[str, Path]) -> None:
    labelling = gateway_pb2.Labelling(labels=NAMES.values(), templates=["a photo of a {}.", "a picture of a {}."])
    inputs = [
        gateway_pb2.ClassifyInput(image=types_pb2.Image(encoded=photographs["cat"].read_bytes())),
        gateway_pb2.ClassifyInput(id="rocket-launch"),
        gateway_pb2.ClassifyInput(image=types_pb2.Image(encoded=b"x")),
        gateway_pb2.ClassifyInput(id="nobody"),
    ]
    answer = stub.Classify(
        gateway_pb2.ClassifyRequest(collection="photographs", inputs=inputs, labelling=labelling, top_k=4),
        timeout=TIME_S,
    )

    cat, rocket, broken, nobody = answer.results
    assert (cat.labels[0].label, rocket.labels[0].label) == ("cat", "rocket launch")
    assert cat.labels[0].probability > 0.9
    assert sum(label.probability for label in cat.labels) == pytest.approx(1, abs=1e-5)
    assert answer.scale == 50
    assert from_status(broken.error.status).violations[0].field == "inputs[2].image.encoded"
    assert from_status(nobody.error.status).reason_name == "ITEM_NOT_FOUND"


@pytest.mark.usefixtures("photographs")
def test_labels_are_suggested_for_what_a_filter_leaves(stub: Stub) -> None:
    any_of = Filter(any_of=FilterList(filters=[labelled(name) for name in NAMES]))
    request = gateway_pb2.SuggestLabelsRequest(
        collection="photographs",
        filter=any_of,
        labelling=gateway_pb2.Labelling(labels=NAMES.values()),
        min_probability=0.5,
    )
    pages = list(stub.SuggestLabels(request, timeout=TIME_S))

    suggested = {each.id: each.labels[0].label for page in pages for each in page.suggestions}
    assert suggested["cat"] == "cat"
    assert suggested["rocket-launch"] == "rocket launch"
    assert (pages[-1].done, pages[-1].total, pages[-1].next_page_token) == (4, 4, "")


def test_equal_and_recompressed_pictures_are_found_as_duplicates(
    stub: Stub, noises: str, photographs: dict[str, Path]
) -> None:
    smaller = io.BytesIO()
    with Image.open(photographs["cat"]) as opened:
        opened.convert("RGB").save(smaller, "JPEG", quality=70)
    copies = [
        item(0, photographs["cat"], "cat"),
        item(1, smaller.getvalue(), "cat-smaller"),
        item(2, noise(1000), "n0-again"),
        item(3, photographs["grass"], "grass"),
    ]
    index(stub, copies, noises)

    def groups(**fields: object) -> list[list[str]]:
        request = gateway_pb2.FindDuplicatesRequest(collection=noises, **fields)  # type: ignore[arg-type]
        messages = list(stub.FindDuplicates(request, timeout=TIME_S))
        assert messages[-1].done == messages[-1].total
        return [[each.item.id for each in group.items] for message in messages for group in message.groups]

    hashed = Filter(comparison=Comparison(key="number", op=OPERATOR_EXISTS))
    assert groups() == [["n0", "n0-again"]]
    assert groups(filter=hashed) == []
    near = groups(min_score=0.95)
    assert ["cat", "cat-smaller"] in near
    assert not any("grass" in group for group in near)
