"""The client's calls beside ingest and plain search: pages, batches, labels, classes and duplicates."""

from collections.abc import Iterator

import grpc
import pytest
from likeness.common.v1 import types_pb2
from likeness.gateway.v1 import gateway_pb2 as pb

from likeness_client import (
    Client,
    LabelsUpdated,
    LikenessError,
    MetadataUpdated,
    Rescore,
    RescoreMetric,
    Search,
    Term,
)
from likeness_client.items import SearchTimings
from tests.unit.client.fake_gateway import FakeGateway, shutting_down, status


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


@pytest.fixture
def pets(gateway: FakeGateway) -> dict[str, pb.IndexItem]:
    """Five pictures: a and b the same cat, c a dog, d both and e neither."""
    for item_id, encoded, labels in (
        ("a", b"cat", ["cat"]),
        ("b", b"cat", ["cat", "old"]),
        ("c", b"dog", ["dog"]),
        ("d", b"cat and dog", ["cat", "dog"]),
        ("e", b"lawn", []),
    ):
        gateway.stored[item_id] = pb.IndexItem(id=item_id, image=types_pb2.Image(encoded=encoded), labels=labels)
    return gateway.stored


def test_a_search_sends_what_it_is_to_do_beside_finding(client: Client, gateway: FakeGateway) -> None:
    client.search(
        Term.text("a"),
        offset=20,
        rescore=Rescore(RescoreMetric.CORRELATION, 500),
        exact=True,
        facets=["labels", "camera"],
        facet_limit=3,
        explain=True,
    )
    client.search(Term.text("a"), rescore=Rescore())
    first, second = gateway.search_requests
    assert (first.offset, first.exact, first.explain) == (20, True, True)
    assert (first.rescore.metric, first.rescore.candidates) == (types_pb2.METRIC_CORRELATION, 500)
    assert [(facet.key, facet.limit) for facet in first.facets] == [("labels", 3), ("camera", 3)]
    assert second.HasField("rescore")
    assert second.rescore == pb.Rescore()


def test_explanations_facets_and_timings_come_back_as_plain_values(client: Client, gateway: FakeGateway) -> None:
    gateway.found.hits.add(item=pb.Item(id="a"), score=0.75, distance=0.25, term_similarities=[0.5, -0.25])
    gateway.found.count = 7
    facet = gateway.found.facets.add(key="width", distinct=2, missing=1)
    facet.values.add(count=6).value.int_value = 640
    gateway.found.timings.facets.FromMilliseconds(3)
    found = client.search(Term.text("a"), Term.id("x"), offset=10, facets=["width"], explain=True)
    (hit,) = found.hits
    assert (hit.rank, hit.distance, hit.term_similarities) == (11, 0.25, (0.5, -0.25))
    (width,) = found.facets
    assert (width.key, width.distinct, width.missing, width.values[0].value, width.values[0].count) == (
        ("width", 2, 1, 640, 6)
    )
    assert found.count == 7
    assert found.timings == SearchTimings(0, 0, 0, facets_s=0.003)


def test_each_search_of_a_batch_has_its_own_outcome(client: Client, gateway: FakeGateway) -> None:
    gateway.found.hits.add(item=pb.Item(id="a"), score=0.75)
    good, bad = client.batch_search([Search((Term.text("a"),), where='label = "cat"', offset=4), Search(())])
    (request,) = gateway.requests
    assert isinstance(request, pb.BatchSearchRequest)
    assert request.searches[0].filter.comparison.key == "labels"
    assert good.result is not None
    assert (good.result.hits[0].rank, good.result.timings.total_s, good.error) == (5, 0.007, None)
    assert bad.result is None
    assert bad.error is not None
    assert bad.error.reason == "FIELD_INVALID"


@pytest.mark.usefixtures("pets")
def test_items_are_listed_over_all_pages(client: Client, gateway: FakeGateway) -> None:
    listed = client.items(collection="pets", order_by="width", descending=True, include_vectors=True)
    assert [item.id for item in listed] == ["a", "b", "c", "d", "e"]
    assert len(gateway.requests) == 3
    request = gateway.requests[0]
    assert isinstance(request, pb.ListItemsRequest)
    assert (request.collection, request.order_by, request.descending) == ("pets", "width", True)
    assert request.fields.vector
    assert [item.labels for item in client.items(where='label = "dog"')] == [("dog",), ("cat", "dog")]


@pytest.mark.usefixtures("pets")
def test_items_are_counted_as_a_whole_and_by_value(client: Client) -> None:
    assert (client.count(), client.count(where='label = "cat"')) == (5, 3)
    counted = client.facets(["labels"], limit=2)
    assert (counted.count, counted.facets[0].distinct, counted.facets[0].missing) == (5, 3, 1)
    assert [(entry.value, entry.count) for entry in counted.facets[0].values] == [("cat", 3), ("dog", 2)]


def test_items_are_deleted_by_a_condition(client: Client, pets: dict[str, pb.IndexItem]) -> None:
    assert client.delete(where='label = "cat"') == 3
    assert sorted(pets) == ["c", "e"]


def test_what_to_delete_is_left_to_the_gateway_to_refuse_and_no_ids_are_nothing(
    client: Client, gateway: FakeGateway, pets: dict[str, pb.IndexItem]
) -> None:
    assert client.delete([]) == 0
    assert gateway.delete_requests == []
    client.delete(["a"], where='label = "none"')
    (request,) = gateway.delete_requests
    assert (list(request.ids), request.HasField("filter")) == (["a"], True)
    assert len(pets) == 5


def test_labels_are_changed_over_all_pages(client: Client, gateway: FakeGateway, pets: dict[str, pb.IndexItem]) -> None:
    told: list[tuple[int, int]] = []
    done = client.update_labels(
        all_items=True,
        add=["pet"],
        remove=["old"],
        rename={"cat": "feline"},
        on_progress=lambda looked_at, total: told.append((looked_at, total)),
    )
    assert done == LabelsUpdated(5, 0, ())
    assert len(gateway.requests) == 3
    assert [list(item.labels) for item in pets.values()] == [
        ["feline", "pet"],
        ["feline", "pet"],
        ["dog", "pet"],
        ["feline", "dog", "pet"],
        ["pet"],
    ]
    assert told == [(2, 0), (4, 0), (5, 0)]


def test_labels_are_changed_by_id_in_calls_of_a_thousand_and_unknown_ids_are_named(
    client: Client, gateway: FakeGateway, pets: dict[str, pb.IndexItem]
) -> None:
    ids = ["a", *(f"x{i}" for i in range(1100)), "c"]
    done = client.update_labels(ids, only=["animal"])
    assert (done.updated, done.missing_ids) == (2, tuple(ids[1:-1]))
    assert len(gateway.requests) == 2
    assert (list(pets["a"].labels), list(pets["b"].labels)) == (["animal"], ["cat", "old"])
    assert client.update_labels(["a"], only=[]).updated == 1
    assert list(pets["a"].labels) == []
    assert client.update_labels([], only=[]) == LabelsUpdated(0, 0, ())
    assert len(gateway.requests) == 3


@pytest.mark.usefixtures("pets")
def test_pictures_are_classified_and_each_fails_alone(client: Client, gateway: FakeGateway) -> None:
    told = client.classify(
        [Term.image(b"a dog"), Term.id("a"), Term.id("nobody")],
        ["cat", "dog", "lawn"],
        templates=["a {}."],
        scale=20,
        top_k=2,
        collection="pets",
    )
    dog, cat, nobody = told.results
    assert [(score.label, round(score.probability, 3)) for score in dog.labels] == [("dog", 0.9), ("cat", 0.05)]
    assert (cat.labels[0].label, cat.error) == ("cat", None)
    assert cat.labels[0].similarity == pytest.approx(0.45)
    assert nobody.error is not None
    assert (nobody.error.reason, nobody.labels) == ("ITEM_NOT_FOUND", ())
    assert (told.scale, told.fingerprint.model) == (20, "starter")
    (request,) = gateway.requests
    assert isinstance(request, pb.ClassifyRequest)
    assert (request.collection, list(request.labelling.templates)) == ("pets", ["a {}."])


def test_more_pictures_than_a_call_takes_are_classified_in_several(client: Client, gateway: FakeGateway) -> None:
    told = client.classify([Term.image(b"cat" if i % 2 else b"dog") for i in range(300)], ["cat", "dog"])
    assert [each.labels[0].label for each in told.results] == ["dog", "cat"] * 150
    large = [Term.image(b"cat" + bytes(20 * 2**20))] * 2
    assert len(client.classify(large, ["cat", "dog"]).results) == 2
    sizes = [len(request.inputs) for request in gateway.requests if isinstance(request, pb.ClassifyRequest)]
    assert sizes == [256, 44, 1, 1]


def test_pictures_to_classify_are_taken_as_the_calls_go_and_the_model_stays_the_same(
    client: Client, gateway: FakeGateway
) -> None:
    calls_before: list[int] = []

    def pictures() -> Iterator[Term]:
        for _ in range(600):
            calls_before.append(len(gateway.requests))
            yield Term.image(b"cat")

    assert len(client.classify(pictures(), ["cat", "dog"]).results) == 600
    assert (calls_before[0], calls_before[-1]) == (0, 2)
    expected = [request.expected_fingerprint.model for request in gateway.requests]  # type: ignore[attr-defined]
    assert expected == ["", "starter", "starter"]


def test_a_text_cannot_be_classified(client: Client) -> None:
    with pytest.raises(TypeError, match=r"a text cannot be classified; expected Term\.image or Term\.id"):
        client.classify([Term.text("a cat")], ["cat"])


@pytest.mark.usefixtures("pets")
def test_labels_are_suggested_and_a_broken_stream_goes_on_where_it_was(client: Client, gateway: FakeGateway) -> None:
    gateway.stream_breaks = [
        shutting_down(),
        status(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "nobody has read for 300 s"),
    ]
    told: list[tuple[int, int]] = []
    suggested = client.suggest_labels(
        ["cat", "dog"], min_probability=0.5, on_progress=lambda done, total: told.append((done, total))
    )
    assert [(each.id, each.labels[0].label) for each in suggested] == [
        ("a", "cat"),
        ("b", "cat"),
        ("c", "dog"),
        ("d", "cat"),
    ]
    assert told == [(2, 5), (4, 5), (5, 5)]
    tokens = [request.page_token for request in gateway.requests if isinstance(request, pb.SuggestLabelsRequest)]
    assert tokens == ["", "b", "d"]


@pytest.mark.usefixtures("pets")
def test_a_stream_of_suggestions_that_breaks_behind_its_last_page_is_whole(
    client: Client, gateway: FakeGateway
) -> None:
    for item_id in "cde":
        del gateway.stored[item_id]
    gateway.stream_breaks = [shutting_down()]
    told: list[tuple[int, int]] = []
    suggested = client.suggest_labels(["cat", "dog"], on_progress=lambda done, total: told.append((done, total)))

    assert [each.id for each in suggested] == ["a", "b"]
    assert told == [(2, 2)]
    assert len(gateway.requests) == 1


@pytest.mark.usefixtures("pets")
def test_a_stream_of_suggestions_that_is_refused_is_not_opened_again(client: Client, gateway: FakeGateway) -> None:
    gateway.stream_breaks = [status(grpc.StatusCode.FAILED_PRECONDITION, "MODEL_MISMATCH", "another model")]
    suggested = client.suggest_labels(["cat", "dog"])
    with pytest.raises(LikenessError, match="MODEL_MISMATCH: another model"):
        list(suggested)
    assert len(gateway.requests) == 1


@pytest.mark.usefixtures("pets")
def test_duplicates_come_in_groups(client: Client, gateway: FakeGateway) -> None:
    told: list[tuple[int, int]] = []
    (group,) = client.find_duplicates(
        min_score=0.97, neighbors=5, on_progress=lambda done, total: told.append((done, total))
    )
    assert ([each.item.id for each in group.items], group.count) == (["a", "b"], 2)
    assert (group.items[0].score, group.items[1].item.labels) == (1, ("cat", "old"))
    assert told == [(0, 5), (5, 5)]
    assert list(client.find_duplicates(where='label = "dog"')) == []
    near, exact = gateway.requests
    assert isinstance(near, pb.FindDuplicatesRequest)
    assert isinstance(exact, pb.FindDuplicatesRequest)
    assert near.min_score == pytest.approx(0.97)
    assert near.neighbors == 5
    assert not exact.HasField("min_score")


def test_metadata_is_set_and_removed_by_id(client: Client, pets: dict[str, pb.IndexItem]) -> None:
    pets["a"].metadata.fields["draft"].bool_value = True
    done = client.update_metadata(
        {"a": {"year": 2020, "share": 0.5, "tags": ["x", "y"], "draft": None}, "nobody": {"year": 1}},
        uris={"b": "s3://bucket/b.jpg", "a": ""},
    )
    assert done == MetadataUpdated(2, ("nobody",))
    first, second = client.get(["a", "b"]).items
    assert (first.metadata, first.uri) == ({"year": 2020, "share": 0.5, "tags": ["x", "y"]}, "")
    assert (second.metadata, second.uri) == ({}, "s3://bucket/b.jpg")


def test_an_item_with_nothing_to_change_is_left_out(client: Client, gateway: FakeGateway) -> None:
    assert client.update_metadata({"a": {}}) == MetadataUpdated(0, ())
    assert not gateway.requests


def test_large_changes_go_in_calls_of_about_4_mib(client: Client, gateway: FakeGateway) -> None:
    large = {f"k{n}": "x" * 4096 for n in range(15)}
    client.update_metadata({str(n): large for n in range(300)})
    sent = [request for request in gateway.requests if isinstance(request, pb.UpdateMetadataRequest)]
    assert [len(request.updates) for request in sent] == [68, 68, 68, 68, 28]


def test_changes_of_more_items_than_a_call_takes_go_in_several(client: Client, gateway: FakeGateway) -> None:
    done = client.update_metadata({str(n): {"n": n} for n in range(1030)}, collection="many")
    sent = [request for request in gateway.requests if isinstance(request, pb.UpdateMetadataRequest)]
    assert [(len(request.updates), request.collection) for request in sent] == [(1024, "many"), (6, "many")]
    assert len(done.missing_ids) == 1030
