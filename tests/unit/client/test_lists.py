"""A text where a list is meant is refused, not taken letter by letter."""

from collections.abc import Callable

import pytest

from likeness_client import Client, Comparison, Operator, Picture, Search, Term
from likeness_client.indexer import IndexerClient
from tests.unit.client.fake_gateway import FakeGateway

# Each passes a text where its type asks for a list, which a str is to mypy too where that is a Sequence[str].
CALLS: dict[str, Callable[[Client], object]] = {
    "get": lambda c: c.get("abc"),
    "facets": lambda c: c.facets("abc"),
    "delete": lambda c: c.delete("abc"),
    "delete where": lambda c: c.delete("abc", where="n = 1"),
    "update_labels": lambda c: c.update_labels("abc", add=["cat"]),
    "add": lambda c: c.update_labels(["a"], add="abc"),
    "remove": lambda c: c.update_labels(["a"], remove="abc"),
    "only": lambda c: c.update_labels(["a"], only="abc"),
    "suggest_labels": lambda c: c.suggest_labels("abc"),
    "suggest_labels' templates": lambda c: c.suggest_labels(["cat"], templates="abc"),
    "classify": lambda c: c.classify([Term.id("a")], "abc"),
    "search": lambda c: c.search(Term.text("a"), facets="abc"),
    "batch_search": lambda c: c.batch_search([Search((Term.text("a"),), facets="abc")]),  # type: ignore[arg-type]
    "Picture": lambda c: Picture(b"", labels="abc"),  # type: ignore[arg-type]
    "Comparison": lambda c: Comparison("camera", Operator.IN, "abc"),  # type: ignore[arg-type]
}
INDEXER_CALLS: dict[str, Callable[[IndexerClient], object]] = {
    "get": lambda c: c.get("photos", "abc"),
    "facets": lambda c: c.facets("photos", "abc"),
    "delete": lambda c: c.delete("photos", ids="abc"),
    "delete where": lambda c: c.delete("photos", ids="abc", where="n = 1"),
    "erase": lambda c: c.erase("photos", "abc"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_text_is_no_list_of_ids_labels_or_keys(
    call: Callable[[Client], object], address: str, gateway: FakeGateway
) -> None:
    with Client(address) as client, pytest.raises(TypeError, match=r"'abc' is a text; expected a list of .*\['abc'\]"):
        call(client)
    assert [gateway.requests, gateway.get_requests, gateway.delete_requests, gateway.search_requests] == [[]] * 4


@pytest.mark.parametrize("call", INDEXER_CALLS.values(), ids=INDEXER_CALLS)
@pytest.mark.usefixtures("photos")
def test_a_text_is_no_list_of_an_indexers_ids_or_keys(
    call: Callable[[IndexerClient], object], client: IndexerClient
) -> None:
    with pytest.raises(TypeError, match=r"'abc' is a text; expected a list of (ids|keys), such as \['abc'\]"):
        call(client)


def test_a_files_name_is_no_list_of_pictures(address: str) -> None:
    with Client(address) as client:
        with pytest.raises(TypeError, match=r"'a.jpg' is a text; .* such as \[Term.image\('a.jpg'\)\]"):
            client.classify("a.jpg", ["cat"])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"'a.jpg' is a text; .* such as \[Picture\('a.jpg'\)\]"):
            list(client.index("a.jpg"))  # type: ignore[arg-type]
