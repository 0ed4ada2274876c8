"""The commands that both services answer: which of them is asked, and what is told of a gateway."""

import json
from typing import Any

import pytest
from likeness.common.v1 import metadata_pb2
from likeness.gateway.v1 import gateway_pb2 as pb

from likeness_client.client import Client
from likeness_client.indexer import IndexerClient, Item
from likeness_client.items import Fingerprint
from tests.unit.client.command import likeness
from tests.unit.client.fake_gateway import FakeGateway

DIGEST = "a1" * 32
COLLECTION = {
    "name": "photos",
    "uid": "u",
    "model": "starter",
    "digest": "",
    "dimension": 0,
    "metric": "l2",
    "description": "holidays",
    "aliases": [],
    "count": 0,
    "created": None,
}
COMMANDS = [
    ["list"],
    ["count"],
    ["facets", "labels"],
    ["collections", "create", "photos"],
    ["collections", "list"],
    ["collections", "describe", "photos"],
    ["collections", "update", "photos", "--description", "holidays"],
    ["collections", "delete", "photos", "--yes"],
    ["alias", "set", "current", "photos"],
    ["alias", "delete", "current"],
    ["alias", "list"],
]
AT_GATEWAY, AT_INDEXER = 3, 5


@pytest.fixture
def places(address: str, gateway: FakeGateway, indexer_address: str, client: IndexerClient) -> dict[str, str]:
    """Where a gateway and an indexer are; so many items are in "images" there."""
    gateway.stored = {f"g{n}": pb.IndexItem() for n in range(AT_GATEWAY)}
    client.create_collection("images", Fingerprint("starter", DIGEST, 4))
    client.upsert("images", [Item(f"i{n}", {}, (1.0, 0.0, 0.0, n)) for n in range(AT_INDEXER)])
    return {"server": address, "indexer": indexer_address}


@pytest.fixture(params=["server", "indexer"])
def either(request: pytest.FixtureRequest, address: str, indexer_address: str) -> tuple[str, str]:
    """The option that names one of them."""
    return f"--{request.param}", {"server": address, "indexer": indexer_address}[request.param]


def told(*arguments: object) -> dict[str, Any]:
    """What a command prints as JSON."""
    result = likeness(*arguments, "--format", "json")
    assert result.exit_code == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@pytest.mark.parametrize(
    ("before", "behind", "environment", "asked"),
    [
        ("", "", "server", AT_GATEWAY),
        ("", "", "indexer", AT_INDEXER),
        ("", "", "server indexer", AT_GATEWAY),
        ("indexer", "", "server", AT_INDEXER),
        ("server", "", "indexer", AT_GATEWAY),
        ("", "indexer", "server", AT_INDEXER),
        ("", "server", "indexer", AT_GATEWAY),
        ("server", "indexer", "", AT_INDEXER),
        ("indexer", "server", "", AT_GATEWAY),
        ("server indexer", "indexer", "", AT_INDEXER),
        ("server indexer", "server", "", AT_GATEWAY),
    ],
)
def test_the_service_named_nearest_to_the_command_is_asked(
    before: str, behind: str, environment: str, asked: int, places: dict[str, str]
) -> None:
    def options(names: str) -> list[str]:
        return [word for name in names.split() for word in (f"--{name}", places[name])]

    variables = {name: places[name] for name in environment.split()}
    command = (*options(before), "count", *options(behind))
    result = likeness(*command, server=variables.get("server"), indexer=variables.get("indexer"))
    assert (result.exit_code, result.stdout) == (0, f"{asked}\n")


def test_an_empty_variable_names_nobody(places: dict[str, str]) -> None:
    assert likeness("count", server="", indexer=places["indexer"]).stdout == f"{AT_INDEXER}\n"


def test_where_nobody_is_named_a_gateway_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "count", lambda *_, **__: 7)
    assert likeness("count").stdout == "7\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_naming_both_at_one_place_is_wrong_usage(command: list[str], nobody: str) -> None:
    both = ("--server", nobody, "--indexer", nobody)
    name = " ".join(command[: 2 if command[0] in ("collections", "alias") else 1])
    for line in ((*command, *both), (*both, *command)):
        result = likeness(*line)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"`likeness {name}` asks one service: use --server ADDRESS or --indexer ADDRESS.\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_asks_the_gateway_and_says_if_there_is_none(command: list[str], nobody: str) -> None:
    for result in (likeness(*command, server=nobody), likeness(*command, "--server", nobody)):
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"No gateway answers at {nobody}")


@pytest.mark.parametrize("command", [command for command in COMMANDS if "create" not in command])
def test_each_command_asks_the_indexer_where_it_is_named(command: list[str], nobody: str) -> None:
    result = likeness(*command, "--indexer", nobody)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"No indexer answers at {nobody}")


def test_collections_are_made_listed_described_changed_and_deleted(address: str, gateway: FakeGateway) -> None:
    there = ("--server", address)
    made = told("collections", "create", "photos", "--metric", "l2", "--description", "holidays", *there)
    assert made == {"collection": COLLECTION}
    assert told("collections", "list", *there) == {"collections": [COLLECTION]}
    assert told("collections", "describe", "photos", *there) == {"collection": COLLECTION}
    changed = told("collections", "update", "photos", "--description", "", *there)
    assert changed == {"collection": {**COLLECTION, "description": ""}, "needs_rebuild": False}
    assert told("collections", "delete", "photos", "--yes", *there) == {"deleted": "photos"}
    assert not gateway.collections


def test_the_gateway_tells_of_a_collection_what_the_indexer_tells_but_hnsw_and_status(
    address: str, indexer_address: str, photos: str
) -> None:
    likeness("collections", "create", photos, server=address)
    described = ("collections", "describe", photos)
    through, at = told(*described, "--server", address), told(*described, "--indexer", indexer_address)
    assert set(through) == set(at) - {"status"}
    assert set(through["collection"]) == set(at["collection"]) - {"hnsw", "earlier_uids"}


def test_tables_of_a_gateway_name_what_it_knows(address: str) -> None:
    there = ("--server", address)
    assert likeness("collections", "create", "photos", *there).stdout == "Made collection photos.\n"
    listed = likeness("collections", "list", *there).stdout.splitlines()
    assert listed[1].split() == ["photos", "0", "starter", "0", "cosine"]
    described = likeness("collections", "describe", "photos", *there).stdout
    assert "starter, 0 numbers" in described
    for unknown in ("HNSW", "served from", "last write"):
        assert unknown not in described
    changed = likeness("collections", "update", "photos", "--description", "holidays", *there)
    assert changed.stdout == "Changed collection photos.\n"
    assert likeness("collections", "delete", "photos", "--yes", *there).stdout == "Deleted collection photos.\n"


def test_a_collection_is_deleted_through_the_gateway_only_after_a_yes(address: str, gateway: FakeGateway) -> None:
    gateway.collections["photos"] = pb.Collection(name="photos", count=3)
    for answer in ("n\n", ""):
        result = likeness("collections", "delete", "photos", server=address, stdin=answer)
        assert result.exit_code == 1
        assert "its 3 items" in result.stderr
    assert "photos" in gateway.collections
    assert likeness("collections", "delete", "photos", server=address, stdin="y\n").exit_code == 0
    assert "photos" not in gateway.collections


def test_aliases_are_set_moved_listed_and_deleted_at_either(either: tuple[str, str]) -> None:
    first = told("alias", "set", "current", "photos", "--expected", "", *either)
    assert first == {"alias": "current", "collection": "photos", "previous": ""}
    moved = likeness("alias", "set", "current", "photos-v2", *either)
    assert moved.stdout == "current stands for photos-v2, no longer for photos.\n"
    assert told("alias", "list", *either) == {"aliases": [{"name": "current", "collection": "photos-v2"}]}
    assert likeness("alias", "list", *either).stdout.splitlines()[1].split() == ["current", "photos-v2"]
    assert told("alias", "delete", "current", *either) == {"alias": "current", "collection": "photos-v2"}
    assert likeness("alias", "list", *either).stdout.startswith("No aliases")


@pytest.fixture
def pictures(gateway: FakeGateway) -> None:
    """Three cats, two of which are known to have come from somewhere."""
    for item_id, uri in (("a", "https://x/a.jpg"), ("b", "https://x/b.jpg"), ("c", "")):
        item = pb.IndexItem(id=item_id, uri=uri, labels=["cat", "pet"] if uri else [])
        item.metadata.fields["width"].int_value = 640
        gateway.stored[item_id] = item


@pytest.mark.usefixtures("pictures")
def test_items_of_a_gateway_are_listed_with_uri_and_labels(address: str, gateway: FakeGateway) -> None:
    listed = told("list", "--limit", 2, "--server", address)
    known = {"labels": ["cat", "pet"], "metadata": {"width": 640}}
    assert listed == {"items": [{"id": i, "uri": f"https://x/{i}.jpg", **known} for i in "ab"], "more": True}
    table = [line.rstrip() for line in likeness("list", server=address).stdout.splitlines()]
    assert table[1] == "a   uri: https://x/a.jpg; labels: cat, pet; width: 640"
    assert table[3] == "c   width: 640"
    narrowed = ("--where", 'label = "cat"', "--order-by", "width", "--descending", "--collection", "pets")
    assert [item["id"] for item in told("list", *narrowed, "--server", address)["items"]] == ["a", "b"]
    request = gateway.requests[-1]
    assert isinstance(request, pb.ListItemsRequest)
    assert (request.collection, request.order_by, request.descending, request.page_size) == ("pets", "width", True, 101)


@pytest.mark.usefixtures("pictures")
def test_items_of_a_gateway_are_counted_in_all_and_by_value(address: str, gateway: FakeGateway) -> None:
    there = ("--collection", "pets", "--server", address)
    assert told("count", *there) == {"count": 3}
    assert likeness("count", "--where", 'label = "cat"', *there).stdout == "2\n"
    assert told("facets", "labels", "--limit", 1, *there) == {
        "count": 3,
        "facets": [{"key": "labels", "values": [{"value": "cat", "count": 2}], "distinct": 2, "missing": 1}],
    }
    table = likeness("facets", "labels", "--where", 'label = "cat"', *there).stdout.splitlines()
    assert table[0] == "labels: 2 values in 2 of 2 items"
    assert table[2].split() == ["cat", "2"]
    request = gateway.requests[-1]
    assert isinstance(request, pb.GetFacetsRequest)
    assert (request.collection, request.filter.comparison.op) == ("pets", metadata_pb2.OPERATOR_CONTAINS)


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["create", "photos", "--model", "m", "--digest", DIGEST, "--dimension", 4], "--model, --digest, --dimension"),
        (["create", "photos", "--digest", DIGEST, "--ef-search", 64], "--digest, --ef-search"),
        (["create", "photos", "--max-neighbors", 0], "--max-neighbors"),
        (["update", "photos", "--ef-construction", 100], "--ef-construction"),
        (["update", "photos", "--description", "", "--max-neighbors", 32], "--max-neighbors"),
    ],
)
def test_what_only_the_indexer_takes_is_wrong_usage_at_the_gateway(
    arguments: list[object], refused: str, nobody: str
) -> None:
    result = likeness("collections", *arguments, server=nobody)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"The gateway does not take {refused}: ")
    assert "ask the indexer by --indexer ADDRESS" in result.stderr


@pytest.mark.parametrize("missing", ["--model", "--digest", "--dimension"])
def test_at_the_indexer_a_collection_is_made_for_a_model_that_is_named_whole(missing: str, nobody: str) -> None:
    model = {"--model": "starter", "--digest": DIGEST, "--dimension": "4"}
    del model[missing]
    named = [word for option in model.items() for word in option]
    result = likeness("collections", "create", "photos", *named, "--indexer", nobody)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "name it by --model, --digest and --dimension" in result.stderr
    assert "--server ADDRESS" in result.stderr


def test_an_update_of_nothing_is_wrong_usage(nobody: str) -> None:
    result = likeness("collections", "update", "photos", server=nobody)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Say what to change: --description" in result.stderr
