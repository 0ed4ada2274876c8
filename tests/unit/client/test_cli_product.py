"""The commands that classify, label, compare and delete by condition, and what ``search`` has besides hits."""

import csv
import io
import json
import os
from pathlib import Path

import pytest
from likeness.common.v1 import types_pb2
from likeness.gateway.v1 import gateway_pb2 as pb

from likeness_client.client import Client
from likeness_client.commands.app import app
from tests.unit.client.command import likeness
from tests.unit.client.fake_gateway import FakeGateway, shutting_down


@pytest.fixture
def pets(gateway: FakeGateway) -> dict[str, pb.IndexItem]:
    """Three pictures: a and b the same cat, c a dog."""
    for item_id, encoded in (("a", b"cat"), ("b", b"cat"), ("c", b"dog")):
        image = types_pb2.Image(encoded=encoded)
        item = pb.IndexItem(id=item_id, uri=f"https://x/{item_id}.jpg", image=image, labels=[encoded.decode()])
        gateway.stored[item_id] = item
    return gateway.stored


@pytest.fixture
def two_hits(gateway: FakeGateway) -> None:
    gateway.found.hits.add(item=pb.Item(id="a", uri="https://x/a.jpg"), score=0.75, term_similarities=[0.5, -0.25])
    gateway.found.hits.add(item=pb.Item(id="b", uri="https://x/b.jpg"), score=0.5, term_similarities=[0.4, 0.125])
    gateway.found.count = 9
    facet = gateway.found.facets.add(key="labels", distinct=2, missing=1)
    facet.values.add(count=8).value.string_value = "cat"


EXPLAINED = ["search", "--text", "a cat", "--not-id", "x", "--explain"]


@pytest.mark.usefixtures("two_hits")
def test_search_sends_pages_rescoring_and_facets(address: str, gateway: FakeGateway) -> None:
    more = ["--offset", 10, "--rescore", "l1", "--candidates", 300, "--exact", "--facet", "labels", "--facet", "width"]
    assert likeness(*EXPLAINED, *more, server=address).exit_code == 0
    assert likeness("search", "--text", "a", server=address).exit_code == 0
    request, plain = gateway.search_requests
    assert (request.offset, request.exact, request.explain) == (10, True, True)
    assert (request.rescore.metric, request.rescore.candidates) == (types_pb2.METRIC_L1, 300)
    assert [facet.key for facet in request.facets] == ["labels", "width"]
    assert not plain.HasField("rescore")
    assert not plain.facets


@pytest.mark.usefixtures("two_hits")
def test_explained_hits_and_facets_as_json_have_the_promised_shape(address: str) -> None:
    told = json.loads(likeness(*EXPLAINED, "--facet", "labels", "--format", "json", server=address).stdout)
    assert set(told) == {"hits", "count", "facets"}
    assert set(told["hits"][0]) == {"rank", "id", "score", "uri", "labels", "metadata", "term_similarities"}
    assert told["hits"][0]["term_similarities"] == [0.5, -0.25]
    assert told["count"] == 9
    facet = {"key": "labels", "values": [{"value": "cat", "count": 8}], "distinct": 2, "missing": 1}
    assert told["facets"] == [facet]


@pytest.mark.usefixtures("two_hits")
def test_an_explained_table_names_the_terms_and_fits_eighty_columns(address: str) -> None:
    lines = likeness(*EXPLAINED, "--facet", "labels", server=address, columns=80).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split()[:4] == ["Rank", "Score", "~1", "~2"]
    assert lines[1].split()[:4] == ["1", "0.750", "0.500", "-0.250"]
    assert lines[3:5] == ["~1: like “a cat”", "~2: unlike item x"]
    assert lines[6] == "labels: 2 values in 8 of 9 items"
    assert lines[8].split() == ["cat", "8"]


@pytest.mark.usefixtures("two_hits")
def test_explained_csv_has_one_column_more(address: str) -> None:
    rows = list(csv.DictReader(io.StringIO(likeness(*EXPLAINED, "--format", "csv", server=address).stdout)))
    assert [row["term_similarities"] for row in rows] == ["0.5;-0.25", "0.4;0.125"]


@pytest.mark.usefixtures("pets")
def test_pictures_are_classified_as_a_table_and_as_json(address: str, tmp_path: Path) -> None:
    (tmp_path / "dog.jpg").write_bytes(b"a dog")
    arguments = ["classify", tmp_path / "dog.jpg", "--id", "a", "--label", "cat", "--label", "dog"]
    table = likeness(*arguments, server=address)
    assert table.exit_code == 0
    lines = [line.split() for line in table.stdout.splitlines()]
    assert lines[0] == ["Picture", "Label", "Probability", "Similarity"]
    assert [line[-3:] for line in lines[1:4]] == [
        ["dog", "90.0%", "0.450"],
        ["cat", "10.0%", "0.050"],
        ["cat", "90.0%", "0.450"],
    ]
    told = json.loads(likeness(*arguments, "--top-k", 1, "--format", "json", server=address).stdout)
    dog = [{"label": "dog", "probability": 0.9, "similarity": 0.45}]
    cat = [{"label": "cat", "probability": 0.9, "similarity": 0.45}]
    assert told == {
        "model": "starter",
        "digest": "",
        "scale": 50,
        "results": [
            {"picture": str(tmp_path / "dog.jpg"), "id": None, "labels": dog, "error": None},
            {"picture": None, "id": "a", "labels": cat, "error": None},
        ],
    }


@pytest.mark.usefixtures("pets")
def test_a_file_whose_name_is_no_utf_8_is_classified(address: str, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"dog-\xff.jpg")
    odd.write_bytes(b"a dog")
    arguments = ["classify", odd, "--label", "cat", "--label", "dog"]

    assert "dog-\N{REPLACEMENT CHARACTER}.jpg" in likeness(*arguments, server=address).stdout
    told = json.loads(likeness(*arguments, "--format", "json", server=address).stdout)
    assert told["results"][0]["picture"] == f"{tmp_path}/dog-\N{REPLACEMENT CHARACTER}.jpg"


@pytest.mark.usefixtures("pets")
def test_a_picture_that_cannot_be_classified_is_told_and_is_exit_code_1(address: str, gateway: FakeGateway) -> None:
    templates = ["--template", "a {}.", "--template", "the {}."]
    result = likeness("classify", "--id", "x", "--id", "a", "--label", "cat", *templates, server=address)
    assert result.exit_code == 1
    assert "cat" in result.stdout
    assert result.stderr == "x: ITEM_NOT_FOUND: there is no item 'x'\n"
    (request,) = gateway.requests
    assert isinstance(request, pb.ClassifyRequest)
    assert list(request.labelling.templates) == ["a {}.", "the {}."]


@pytest.mark.usefixtures("pets")
def test_labels_are_suggested_for_a_whole_collection_as_a_table_and_as_json(address: str) -> None:
    table = likeness("label", "suggest", "cat", "dog", server=address, columns=80)
    assert table.exit_code == 0
    lines = table.stdout.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["Id", "Label", "Probability", "Similarity"],
        ["a", "cat", "90.0%", "0.450"],
        ["b", "cat", "90.0%", "0.450"],
        ["c", "dog", "90.0%", "0.450"],
    ]
    assert lines[4:] == ["3 pictures."]
    only = ["--where", 'label = "dog"', "--top-k", 2, "--format", "json"]
    told = json.loads(likeness("label", "suggest", "cat", "dog", *only, server=address).stdout)
    labels = [
        {"label": "dog", "probability": 0.9, "similarity": 0.45},
        {"label": "cat", "probability": 0.1, "similarity": 0.05},
    ]
    assert told == {"suggestions": [{"id": "c", "labels": labels}]}


def test_suggestions_ask_in_the_words_given_and_change_nothing(
    address: str, gateway: FakeGateway, pets: dict[str, pb.IndexItem]
) -> None:
    before = {item_id: list(item.labels) for item_id, item in pets.items()}
    words = ["--template", "a {}.", "--template", "the {}.", "--scale", 20, "--min-probability", 0.95]
    none = likeness("label", "suggest", "cat", "dog", *words, "--collection", "pets", server=address)
    assert (none.exit_code, none.stdout) == (0, "No suggestions.\n")
    likeness("label", "suggest", "cat", server=address)
    asked, plain = gateway.requests
    assert isinstance(asked, pb.SuggestLabelsRequest)
    assert isinstance(plain, pb.SuggestLabelsRequest)
    assert list(asked.labelling.labels) == ["cat", "dog"]
    assert list(asked.labelling.templates) == ["a {}.", "the {}."]
    assert (asked.labelling.scale, asked.collection) == (20, "pets")
    assert asked.min_probability == pytest.approx(0.95)
    assert not asked.HasField("filter")
    assert not plain.HasField("min_probability")
    assert not plain.labelling.HasField("scale")
    assert before == {item_id: list(item.labels) for item_id, item in pets.items()}


@pytest.mark.usefixtures("pets")
def test_a_broken_stream_of_suggestions_is_told_and_goes_on(address: str, gateway: FakeGateway) -> None:
    gateway.stream_breaks = [shutting_down()]
    result = likeness("label", "suggest", "cat", "dog", "--format", "json", server=address)
    assert result.exit_code == 0
    assert [each["id"] for each in json.loads(result.stdout)["suggestions"]] == ["a", "b", "c"]
    assert result.stderr == "SHUTTING_DOWN: the gateway is stopping\nGoing on in 0.5 s.\n"


def test_ids_of_suggestions_are_whole_where_asked_for(address: str, gateway: FakeGateway) -> None:
    gateway.stored["0a" * 32] = pb.IndexItem(image=types_pb2.Image(encoded=b"cat"))
    assert "0a0a0a0a0a0a…" in likeness("label", "suggest", "cat", server=address, columns=80).stdout
    assert "0a" * 32 in likeness("label", "suggest", "cat", "--ids", "full", server=address, columns=80).stdout


@pytest.mark.usefixtures("pets")
def test_duplicates_are_shown_in_groups(address: str, gateway: FakeGateway) -> None:
    result = likeness("duplicates", "--near", 0.97, server=address, columns=80)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["Group", "1", "1.000"]
    assert "https://x/b.jpg" in lines[2]
    assert lines[3] == "1 group, 2 pictures."
    told = json.loads(likeness("duplicates", "--format", "json", server=address).stdout)
    items = [{"id": i, "score": 1, "uri": f"https://x/{i}.jpg", "labels": ["cat"], "metadata": {}} for i in "ab"]
    assert told == {"groups": [{"count": 2, "items": items}]}
    near, exact = gateway.requests
    assert isinstance(near, pb.FindDuplicatesRequest)
    assert isinstance(exact, pb.FindDuplicatesRequest)
    assert (near.HasField("min_score"), near.neighbors) == (True, 10)
    assert not exact.HasField("min_score")
    none = likeness("duplicates", "--where", 'label = "dog"', server=address)
    assert (none.exit_code, none.stdout) == (0, "No duplicates.\n")


def test_ids_of_duplicates_are_whole_where_asked_for(address: str, gateway: FakeGateway) -> None:
    for item_id in ("0a" * 32, "0b" * 32):
        image = types_pb2.Image(encoded=b"cat")
        gateway.stored[item_id] = pb.IndexItem(id=item_id, uri="https://x/" + "long/" * 30, image=image)
    assert "0a0a0a0a0a0a…" in likeness("duplicates", server=address, columns=80).stdout
    whole = likeness("duplicates", "--ids", "full", server=address, columns=80).stdout
    assert "0a" * 32 in whole
    assert "0b" * 32 in whole


def test_labels_are_added_removed_renamed_and_set(address: str, pets: dict[str, pb.IndexItem]) -> None:
    def label(*arguments: object) -> str:
        result = likeness("label", *arguments, server=address)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert label("add", "pet", "old", "--all") == "Changed the labels of 3 pictures in collection images.\n"
    assert label("remove", "old", "--where", 'label = "cat"').startswith("Changed the labels of 2 pictures")
    label("rename", "cat", "feline", "--all")
    assert [list(item.labels) for item in pets.values()] == [["feline", "pet"]] * 2 + [["dog", "pet", "old"]]
    told = json.loads(label("set", "animal", "--id", "a", "--id", "a", "--format", "json"))
    assert told == {"updated": 1, "unchanged": 0, "missing_ids": []}
    again = label("set", "animal", "--id", "a")
    assert again == "Changed the labels of 0 pictures in collection images; 1 had them so already.\n"
    label("set", "--none", "--id", "b")
    assert [list(pets[i].labels) for i in ("a", "b")] == [["animal"], []]


@pytest.mark.usefixtures("pets")
def test_an_id_whose_labels_cannot_be_changed_is_named_and_is_exit_code_1(address: str) -> None:
    result = likeness("label", "add", "pet", "--id", "a", "--id", "x", "--format", "json", server=address)
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"updated": 1, "unchanged": 0, "missing_ids": ["x"]}
    assert result.stderr == "No picture of id x in collection images.\n"


def test_metadata_is_set_as_json_or_text_and_removed(address: str, pets: dict[str, pb.IndexItem]) -> None:
    values = ["year=2020", "share=0.5", "public=true", 'tags=["x", "y"]', 'code="2020"', "title=a = b", "list=[1]"]
    more = ["long=12345678901234567890", "odd=NaN", "empty=", 'half="\\ud800"', "uri=7"]
    set_all = likeness("metadata", "set", *values, *more, "--all", server=address)
    assert (set_all.exit_code, set_all.stdout) == (0, "Changed 3 pictures in collection images.\n")
    with Client(address) as client:
        (item,) = client.get(["c"]).items
    assert item.metadata == {
        "year": 2020,
        "share": 0.5,
        "public": True,
        "tags": ["x", "y"],
        "code": "2020",
        "title": "a = b",
        "list": "[1]",
        "long": "12345678901234567890",
        "odd": "NaN",
        "empty": "",
        "half": '"\\ud800"',
    }
    assert item.uri == "7"
    keys = ["share", "public", "tags", "code", "title", "list", "long", "odd", "empty", "half", "uri"]
    told = likeness("metadata", "remove", *keys, "--where", 'label = "cat"', "--format", "json", server=address)
    assert json.loads(told.stdout) == {"updated": 2, "missing_ids": []}
    assert [set(pets[i].metadata.fields) for i in ("a", "b")] == [{"year"}, {"year"}]
    assert [pets[i].uri for i in "abc"] == ["", "", "7"]


@pytest.mark.usefixtures("pets")
def test_an_id_whose_metadata_cannot_be_changed_is_named_and_is_exit_code_1(address: str) -> None:
    result = likeness("metadata", "set", "year=1", "--id", "x", "--id", "a", "--format", "json", server=address)
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"updated": 1, "missing_ids": ["x"]}
    assert result.stderr == "No picture of id x in collection images.\n"


def test_deleting_by_a_condition_asks_first(address: str, pets: dict[str, pb.IndexItem]) -> None:
    line = ["delete", "--where", 'label = "cat"']
    refused = likeness(*line, server=address, stdin="n\n")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Delete 2 pictures from collection images?")
    assert len(pets) == 3
    result = likeness(*line, "--format", "json", server=address, stdin="y\n")
    assert json.loads(result.stdout.splitlines()[-1]) == {"deleted": 2, "unknown": 0}  # the runner echoes the answer
    result = likeness("delete", "--where", 'label = "dog"', "--yes", server=address)
    assert (result.exit_code, result.stdout) == (0, "Deleted 1 from collection images.\n")
    assert not pets


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["classify", "--label", "cat"], "PICTURE or --id ID"),
        (["classify", "--id", "a"], "--label"),
        (["classify", "/nowhere/a.jpg", "--label", "cat"], "does not exist"),
        (["label", "add", "--all"], "Missing argument"),
        (["label", "add", "cat"], "--id ID, --where CONDITION or --all"),
        (["label", "remove", "cat", "--all", "--id", "a"], "--id ID, --where CONDITION or --all"),
        (["label", "remove", "cat", "--where", "width >="], "width >=\n        ^\n"),
        (["metadata", "set", "year", "--all"], "'year' is no KEY=VALUE"),
        (["metadata", "set", "=1", "--all"], "'=1' is no KEY=VALUE"),
        (["metadata", "set", "a=1", "a=2", "--all"], "a is set twice"),
        (["metadata", "remove", "year"], "--id ID, --where CONDITION or --all"),
        (["metadata", "set", "a=\udcff", "--all"], "is no text"),
        (["metadata", "remove", "\udcff", "--all"], "is no text"),
        (["label", "add", "cat", "--id", "\udcff"], "is no text"),
        (["label", "add", "\udcff", "--all"], "is no text"),
        (["label", "remove", "\udcff", "--all"], "is no text"),
        (["label", "rename", "\udcff", "cat", "--all"], "is no text"),
        (["label", "rename", "cat", "\udcff", "--all"], "is no text"),
        (["label", "set", "\udcff", "--all"], "is no text"),
        (["get", "a", "\udcff"], "is no text"),
        (["get", "a", "--collection", "\udcff"], "is no text"),
        (["delete", "\udcff"], "is no text"),
        (["delete", "--where", 'label = "\udcff"'], "is no text"),
        (["search", "--text", "\udcff"], "is no text"),
        (["search", "--id", "\udcff"], "is no text"),
        (["search", "--text", "a", "--not-text", "\udcff"], "is no text"),
        (["search", "--text", "a", "--not-id", "\udcff"], "is no text"),
        (["search", "--text", "a", "--facet", "\udcff"], "is no text"),
        (["facets", "\udcff"], "is no text"),
        (["classify", "--id", "\udcff", "--label", "cat"], "is no text"),
        (["classify", "--id", "a", "--label", "\udcff"], "is no text"),
        (["classify", "--id", "a", "--label", "cat", "--template", "{}\udcff"], "is no text"),
        (["label", "suggest"], "Missing argument"),
        (["label", "suggest", "cat", "--where", "width >="], "width >=\n        ^\n"),
        (["label", "suggest", "cat", "--min-probability", "1.5"], "--min-probability"),
        (["label", "suggest", "\udcff"], "is no text"),
        (["label", "suggest", "cat", "--template", "{}\udcff"], "is no text"),
        (["alias", "set", "\udcff", "photos"], "is no text"),
        (["alias", "set", "now", "\udcff"], "is no text"),
        (["alias", "set", "now", "photos", "--expected", "\udcff"], "is no text"),
        (["alias", "delete", "\udcff"], "is no text"),
        (["collections", "create", "\udcff"], "is no text"),
        (["collections", "create", "photos", "--description", "\udcff"], "is no text"),
        (["collections", "describe", "\udcff"], "is no text"),
        (["collections", "delete", "\udcff", "--yes"], "is no text"),
        (["collections", "update", "photos", "--description", "\udcff"], "is no text"),
        (["reembed", "\udcff", "new"], "is no text"),
        (["reembed", "photos", "\udcff"], "is no text"),
        (["reembed", "photos", "new", "--alias", "\udcff"], "is no text"),
        (["list", "--order-by", "\udcff"], "is no text"),
        (["label", "set", "--all"], "--none"),
        (["label", "set", "cat", "--none", "--all"], "--none"),
        (["delete"], "ID... or --where CONDITION"),
        (["delete", "a", "--where", "n = 1"], "ID... or --where CONDITION"),
        (["duplicates", "--neighbors", "101"], "--neighbors"),
        (["search", "--text", "a", "--candidates", "5"], "--candidates is for --rescore"),
        (["search", "--text", "a", "--rescore", "l3"], "l3"),
        (["search", "--text", "a", "--facet", "n", "--format", "csv"], "--facet has no place in CSV"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_asks_no_server(arguments: list[str], words: str, nobody: str) -> None:
    result = likeness(*arguments, server=nobody)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "command", [["classify", "--id", "a", "--label", "b"], ["duplicates"], ["label", "add", "x", "--all"]]
)
def test_without_a_server_each_command_says_where_it_looked(command: list[str], nobody: str) -> None:
    result = likeness(*command, server=nobody)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"No gateway answers at {nobody}")


class Interrupted:
    """A terminal at which Ctrl-C is pressed."""

    def readline(self, *_: object) -> str:
        raise KeyboardInterrupt


@pytest.mark.parametrize("command", [["delete", "--where", 'label = "cat"'], ["collections", "delete", "photos"]])
def test_an_interrupt_at_a_question_is_told_and_is_exit_code_130(
    *,
    command: list[str],
    address: str,
    gateway: FakeGateway,
    pets: dict[str, pb.IndexItem],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gateway.collections["photos"] = pb.Collection(name="photos")
    monkeypatch.setattr("sys.stdin", Interrupted())
    with pytest.raises(SystemExit) as ended:
        app(["--server", address, *command])
    assert ended.value.code == 130
    assert capsys.readouterr().err.endswith("\nInterrupted.\n")
    assert len(pets) == 3
    assert "photos" in gateway.collections


@pytest.mark.parametrize(
    ("method", "command"),
    [
        ("_groups", ["duplicates"]),
        ("_updates", ["label", "add", "x", "--all"]),
        ("_suggestions", ["label", "suggest", "x"]),
    ],
)
def test_an_interrupt_is_told_and_is_exit_code_130(
    method: str, command: list[str], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, method, interrupted)
    result = likeness(*command, server=address)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.startswith("Interrupted")
