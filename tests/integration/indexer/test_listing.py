"""Lists, counts and facets."""

import itertools

import grpc
import pytest
from likeness.common.v1 import metadata_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from tests.integration.indexer.calls import (
    EVERYTHING,
    LABELLED,
    Stub,
    compared,
    count,
    create,
    item,
    negated,
    pages,
    refusal,
    upsert,
)
from tests.processes import Service

NAME = "listed"


@pytest.fixture(scope="module")
def listed(stub: Stub) -> str:
    """Ten items: numbers, strings, bools, a list and nothing under the key "value"."""
    create(stub, NAME)
    upsert(
        stub,
        NAME,
        item(0, value=3, group="a", labels=["x", "y"]),
        item(1, value=2.5, group="b", labels=["y"]),
        item(2, value="b", group="a"),
        item(3, value="B", group="a"),
        item(4, value=True, group="b"),
        item(5, value=False, group="c"),
        item(6, value=["list"], group="a"),
        item(7),
        item(8, value=3.0, group="a", labels=["x"]),
        item(9, value=-1),
    )
    return NAME


def listing(stub: Stub, name: str, **changes: object) -> list[str]:
    request = pb.ListItemsRequest(collection=name, **changes)  # type: ignore[arg-type]
    return [i.id for page in pages(stub, request) for i in page]


def test_items_are_listed_by_id(stub: Stub, listed: str) -> None:
    everything = [f"i{n}" for n in range(10)]
    assert listing(stub, listed) == everything
    assert listing(stub, listed, descending=True) == everything[::-1]
    for size in (1, 3, 10, 11):
        assert listing(stub, listed, page_size=size) == everything


@pytest.mark.parametrize("size", [1, 4, 100])
def test_items_are_listed_by_a_key_in_the_contract_s_order(stub: Stub, listed: str, size: int) -> None:
    ascending = ["i9", "i1", "i0", "i8", "i3", "i2", "i5", "i4", "i6", "i7"]
    descending = ["i0", "i8", "i1", "i9", "i2", "i3", "i4", "i5", "i6", "i7"]
    assert listing(stub, listed, order_by="value", page_size=size) == ascending
    assert listing(stub, listed, order_by="value", page_size=size, descending=True) == descending


def test_a_list_is_filtered_and_carries_what_was_asked_for(stub: Stub, listed: str) -> None:
    where = compared("labels", "CONTAINS", "x")
    request = pb.ListItemsRequest(collection=listed, filter=where, fields=LABELLED)
    (page,) = pages(stub, request)
    assert [i.id for i in page] == ["i0", "i8"]
    assert page[0].metadata == item(0, value=3, group="a", labels=["x", "y"]).metadata
    assert not page[0].HasField("vector")


def test_a_page_token_stays_good_while_others_write(stub: Stub) -> None:
    name = create(stub, "listed-while-written")
    upsert(stub, name, *(item(n, width=n) for n in range(100, 200)))
    seen: list[str] = []
    request = pb.ListItemsRequest(collection=name, order_by="width", page_size=7)
    for turn, page in enumerate(pages(stub, request)):
        seen += [i.id for i in page]
        upsert(stub, name, item(1000 + turn, width=turn), item(2000 + turn, width=150))
        stub.DeleteItems(pb.DeleteItemsRequest(collection=name, ids=[page[-1].id, f"i{1000 + turn}"]))
    original = [i for i in seen if int(i[1:]) < 1000]
    assert original == [f"i{n}" for n in range(100, 200)], "each comes exactly once"
    assert len(seen) == len(set(seen))


def test_a_page_token_of_another_list_is_refused(stub: Stub, listed: str) -> None:
    first = stub.ListItems(pb.ListItemsRequest(collection=listed, page_size=1))
    for other in (
        pb.ListItemsRequest(collection=listed, order_by="value"),
        pb.ListItemsRequest(collection=listed, descending=True),
        pb.ListItemsRequest(collection=listed, filter=compared("value", "EXISTS")),
    ):
        other.page_token = first.next_page_token
        assert refusal(lambda other=other: stub.ListItems(other)).violations[0].field == "page_token"  # type: ignore[misc]


@pytest.fixture(scope="module")
def large(stub: Stub) -> list[str]:
    """The ids, in order, of 600 items of 60 KiB in the collection "listed-large": 35 MiB."""
    name = create(stub, "listed-large")
    text = {f"k{n}": "x" * 4096 for n in range(15)}
    items = [item(n, rank=-n, **text) for n in range(100, 700)]
    for first in range(0, len(items), 100):
        upsert(stub, name, *items[first : first + 100])
    return [i.id for i in items]


@pytest.mark.parametrize("order_by", ["", "rank"])
def test_a_page_of_large_items_ends_early_and_the_next_goes_on_from_there(
    indexer: Service, large: list[str], order_by: str
) -> None:
    # A client that was told nothing of message sizes takes 4 MiB.
    with grpc.insecure_channel(indexer.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        request = pb.ListItemsRequest(collection="listed-large", order_by=order_by, page_size=1000, fields=EVERYTHING)
        read = list(pages(Stub(channel), request))
    assert min(len(page) for page in read[:-1]) > 45, "pages as large as can be"
    assert [i.id for page in read for i in page] == (large[::-1] if order_by else large)


def test_an_answer_that_fits_no_message_is_refused_with_a_way_out(stub: Stub, large: list[str]) -> None:
    request = pb.GetItemsRequest(collection="listed-large", ids=large[:500] * 2, fields=LABELLED)
    error = refusal(lambda: stub.GetItems(request))
    assert (error.reason_name, error.violations[0].field) == ("BATCH_TOO_LARGE", "ids")


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (compared("value", "EQ", 3), 2),
        (compared("value", "EQ", "b"), 1),
        (compared("value", "EQ", True), 1),
        (compared("value", "EQ", 1), 0),
        (compared("value", "NE", 3), 8),
        (compared("value", "GT", 2.4), 3),
        (compared("value", "LE", 2.5), 2),
        (compared("value", "IN", -1, 2.5, 99), 2),
        (compared("value", "NOT_IN", -1, 2.5, 99), 8),
        (compared("value", "EXISTS"), 9),
        (negated(compared("value", "EXISTS")), 1),
        (compared("labels", "CONTAINS", "y"), 2),
        (compared("labels", "EQ", "y"), 0),
        (compared("nothing", "EXISTS"), 0),
    ],
)
def test_items_are_counted_by_filter(stub: Stub, listed: str, where: metadata_pb2.Filter, expected: int) -> None:
    assert count(stub, listed, where) == expected
    assert count(stub, listed, negated(where)) == 10 - expected


def values(facet: pb.Facet) -> list[tuple[object, int]]:
    kinds = [(v.value.WhichOneof("kind"), v) for v in facet.values]
    assert all(kind is not None for kind, _ in kinds)
    return [(getattr(v.value, kind), v.count) for kind, v in kinds if kind is not None]


def test_facets_count_values_with_the_most_frequent_first(stub: Stub, listed: str) -> None:
    wanted = [pb.FacetRequest(key=k) for k in ("group", "labels", "value", "nothing")]
    answer = stub.GetFacets(pb.GetFacetsRequest(collection=listed, facets=wanted))
    assert answer.count == 10
    group, labels, value, nothing = answer.facets
    assert [f.key for f in answer.facets] == ["group", "labels", "value", "nothing"]
    assert (values(group), group.distinct, group.missing) == ([("a", 5), ("b", 2), ("c", 1)], 3, 2)
    assert (values(labels), labels.distinct, labels.missing) == ([("x", 2), ("y", 2)], 2, 7)
    assert values(value) == [
        (3, 2), (-1, 1), (2.5, 1), ("B", 1), ("b", 1), ("list", 1), (False, 1), (True, 1),
    ]  # fmt: skip
    assert (value.distinct, value.missing) == (8, 1)
    assert (values(nothing), nothing.distinct, nothing.missing) == ([], 0, 10)


def test_facets_are_counted_under_a_filter_and_cut_at_their_limit(stub: Stub, listed: str) -> None:
    request = pb.GetFacetsRequest(
        collection=listed, filter=compared("group", "EQ", "a"), facets=[pb.FacetRequest(key="value", limit=1)]
    )
    answer = stub.GetFacets(request)
    assert answer.count == 5
    (value,) = answer.facets
    assert (values(value), value.distinct, value.missing) == ([(3, 2)], 4, 0)


def test_lists_and_facets_of_an_empty_collection_are_empty(stub: Stub) -> None:
    name = create(stub, "listed-empty")
    assert listing(stub, name, order_by="value") == []
    answer = stub.GetFacets(pb.GetFacetsRequest(collection=name, facets=[pb.FacetRequest(key="value")]))
    assert (answer.count, answer.facets[0].distinct) == (0, 0)
    assert list(itertools.chain.from_iterable(pages(stub, pb.ListItemsRequest(collection=name)))) == []
