"""Page tokens: what goes in comes out, and nothing else does."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from likeness.common.v1 import error_pb2, metadata_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from chassis.errors import LikenessError
from indexer import tokens
from indexer.reads import After

UID = "0f" * 16
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=50),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)


def request(
    collection: str = "c", label: str = "", order_by: str = "", token: str = "", *, descending: bool = False
) -> pb.ListItemsRequest:
    made = pb.ListItemsRequest(collection=collection, order_by=order_by, descending=descending, page_token=token)
    if label:
        made.filter.comparison.key = "label"
        made.filter.comparison.op = metadata_pb2.OPERATOR_EQ
        made.filter.comparison.values.add(string_value=label)
    return made


def refused(token: str) -> None:
    for read in (
        lambda: tokens.items_behind(request(token=token), UID),
        lambda: tokens.collections_behind(pb.ListCollectionsRequest(page_token=token)),
    ):
        with pytest.raises(LikenessError) as caught:
            read()
        assert caught.value.reason == error_pb2.REASON_FIELD_INVALID
        assert caught.value.violations[0].field == "page_token"


@given(st.text(min_size=1, max_size=50), VALUES)
def test_the_place_in_a_list_comes_back_in_value_and_type(item_id: str, value: str | int | float | bool | None) -> None:
    token = tokens.of_items(request(order_by="width"), UID, After(item_id, value))
    back = tokens.items_behind(request(order_by="width", token=token), UID)
    assert back == After(item_id, value)
    assert back is not None
    assert type(back.value) is type(value)


@given(st.text(max_size=50))
def test_the_place_among_collections_comes_back(name: str) -> None:
    token = tokens.of_collections(name)
    assert tokens.collections_behind(pb.ListCollectionsRequest(page_token=token)) == name


def test_no_token_begins_at_the_beginning() -> None:
    assert tokens.items_behind(request(), UID) is None
    assert tokens.collections_behind(pb.ListCollectionsRequest()) == ""


@pytest.mark.parametrize(
    "other",
    [
        request(label="y"),
        request(order_by="width"),
        request(descending=True),
        request(),
    ],
)
def test_a_token_of_another_list_is_refused(other: pb.ListItemsRequest) -> None:
    other.page_token = tokens.of_items(request(label="x"), UID, After("i1"))
    with pytest.raises(LikenessError) as caught:
        tokens.items_behind(other, UID)
    assert caught.value.violations[0].field == "page_token"


def test_a_token_is_of_a_collection_whatever_it_is_called() -> None:
    token = tokens.of_items(request("photos-v1"), UID, After("i1"))
    assert tokens.items_behind(request("photos", token=token), UID) == After("i1")
    with pytest.raises(LikenessError) as caught:
        tokens.items_behind(request("photos", token=token), "e1" * 16)
    assert caught.value.violations[0].field == "page_token"


def test_page_size_and_fields_may_change_on_the_way() -> None:
    first = request(label="x")
    following = request(label="x", token=tokens.of_items(first, UID, After("i1")))
    following.page_size = 7
    following.fields.vector = True
    assert tokens.items_behind(following, UID) == After("i1")


def test_a_token_of_the_other_rpc_is_refused() -> None:
    with pytest.raises(LikenessError):
        tokens.items_behind(request(token=tokens.of_collections("c")), UID)
    with pytest.raises(LikenessError):
        tokens.collections_behind(pb.ListCollectionsRequest(page_token=tokens.of_items(request(), UID, After("i1"))))


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "1",
        "null",
        "{}",
        '{"id":1}',
        '{"collections":1}',
        "NaN",
        "[" * 20_000,
        "\udcff".encode(errors="surrogateescape").decode("latin-1"),
    ],
)
def test_what_is_no_token_is_refused(content: str) -> None:
    refused(base64.urlsafe_b64encode(content.encode()).decode())


@pytest.mark.parametrize("value", ['"value":NaN', '"value":1e999', '"value":[1]', f'"value":{2**63}', '"value":{}'])
def test_a_value_that_no_item_can_have_is_refused(value: str) -> None:
    padding = "=" * 3
    good = json.loads(base64.urlsafe_b64decode(tokens.of_items(request(), UID, After("i1")) + padding))
    forged = f'{{"list":"{good["list"]}","id":"i1",{value}}}'
    refused(base64.urlsafe_b64encode(forged.encode()).decode())


@given(st.text(max_size=60))
def test_any_other_text_is_refused_as_a_bad_field(text: str) -> None:
    if text:
        refused(text)


def test_a_token_without_end_is_refused() -> None:
    refused("A" * 1_000_000)
