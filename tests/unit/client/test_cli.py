"""The command line but for ``index``."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from likeness.common.v1 import error_pb2
from likeness.gateway.v1 import gateway_pb2 as pb

from tests.unit.client.command import likeness
from tests.unit.client.fake_gateway import FakeGateway, status


def hit(gateway: FakeGateway, item_id: str, score: float, uri: str = "", labels: tuple[str, ...] = ()) -> None:
    item = pb.Item(id=item_id, uri=uri, labels=labels)
    item.metadata.fields["width"].int_value = 640
    item.metadata.fields["height"].int_value = 480
    gateway.found.hits.add(item=item, score=score)


def test_search_as_json_has_exactly_the_promised_shape(address: str, gateway: FakeGateway) -> None:
    hit(gateway, "a", 0.91, "file:///a.jpg", ("cat", "pet"))
    result = likeness("search", "--text", "a cat", "--format", "json", server=address)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "hits": [
            {
                "rank": 1,
                "id": "a",
                "score": 0.91,
                "uri": "file:///a.jpg",
                "labels": ["cat", "pet"],
                "metadata": {"height": 480, "width": 640},
            }
        ]
    }


def test_search_as_csv_has_a_header_and_survives_commas(address: str, gateway: FakeGateway) -> None:
    hit(gateway, "a", 0.91, 'file:///a,"b".jpg', ("cat", "pet"))
    result = likeness("search", "--text", "a cat", "--format", "csv", server=address)
    header, row = csv.reader(io.StringIO(result.stdout))
    assert header == ["rank", "id", "score", "uri", "labels", "metadata"]
    assert row[:5] == ["1", "a", "0.91", 'file:///a,"b".jpg', "cat;pet"]
    assert json.loads(row[5]) == {"height": 480, "width": 640}


def test_search_as_a_table_fits_eighty_columns_and_keeps_the_file_name(address: str, gateway: FakeGateway) -> None:
    hit(gateway, "0f" * 32, 0.91, "file:///" + "long/" * 30 + "cat%20one.jpg", ("cat",))
    hit(gateway, "b", -0.25, "https://example.org/dog.jpg")
    result = likeness("search", "--text", "a cat", server=address, columns=80)
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["Rank", "Score", "Labels", "Picture", "Size", "Id"]
    assert "long/cat one.jpg" in lines[1]
    assert "640×480" in lines[1]
    assert "0f0f0f0f0f0f…" in lines[1]
    assert "-0.250" in lines[2]
    assert "dog.jpg" in lines[2]


def test_ids_of_hits_are_whole_where_asked_for(address: str, gateway: FakeGateway) -> None:
    hit(gateway, "0f" * 32, 0.91, "file:///" + "long/" * 30 + "cat.jpg", ("cat",))
    hit(gateway, "b", 0.9)
    lines = likeness("search", "--text", "a", "--ids", "full", server=address, columns=80).stdout.splitlines()
    assert lines[1].split()[-1] == "0f" * 32
    assert lines[2].split()[-1] == "b"
    assert "long/cat.jpg" in lines[1]


def test_what_a_terminal_would_obey_is_shown_instead(address: str, gateway: FakeGateway) -> None:
    hit(gateway, "a", 0.5, "https://example.org/\x1b[2Jx", ("[red]",))
    result = likeness("search", "--text", "a", server=address)
    assert "\x1b" not in result.stdout
    assert "[red]" in result.stdout


@pytest.mark.parametrize("uri", ["http://[cdn/x.jpg", "s3://bucket[1]/a.jpg", "file://[x]/a"])
def test_a_uri_that_cannot_be_taken_apart_is_shown_as_it_is(address: str, gateway: FakeGateway, uri: str) -> None:
    gateway.found.hits.add(item=pb.Item(id="a", uri=uri), score=0.5)
    result = likeness("search", "--text", "a", server=address)
    assert result.exit_code == 0
    assert uri in result.stdout


def test_search_combines_what_it_should_be_like_and_unlike(address: str, gateway: FakeGateway, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).write_bytes(name.encode())
    arguments = ["--image", tmp_path / "cat", "--text", "red", "--text", "small", "--id", "x"]
    against = ["--not-image", tmp_path / "dog", "--not-text", "blue", "--not-id", "y"]
    narrowed = ["--where", 'label = "pet"', "--top-k", 5, "--min-score", 0.25, "--collection", "pets"]
    result = likeness("search", *arguments, *against, *narrowed, server=address)
    assert result.exit_code == 0
    (request,) = gateway.search_requests
    terms = [(t.image.encoded or t.text or t.id, t.weight) for t in request.terms]
    assert terms == [(b"cat", 1), ("red", 1), ("small", 1), ("x", 1), (b"dog", -1), ("blue", -1), ("y", -1)]
    assert (request.top_k, request.min_score, request.collection) == (5, 0.25, "pets")
    assert request.filter.comparison.key == "labels"


def test_no_hits_are_said_and_are_no_failure(address: str) -> None:
    result = likeness("search", "--text", "a cat", server=address)
    assert result.exit_code == 0
    assert result.stdout == "Nothing in collection images matches.\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search"], "--image FILE, --text TEXT or --id ID"),
        (["search", "--not-text", "a"], "--image FILE, --text TEXT or --id ID"),
        (["search", "--image", "/nowhere/a.jpg"], "does not exist"),
        (["search", "--text", "a", "--top-k", "0"], "--top-k"),
        (["search", "--text", "a", "--format", "xml"], "xml"),
        (["search", "--text", "a", "--where", "width >="], "width >=\n        ^\n"),
        (["index", "/nowhere"], "does not exist"),
        (["get"], "Missing argument"),
        (["find"], "No such command"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what_is_wrong(arguments: list[str], words: str, nobody: str) -> None:
    result = likeness(*arguments, server=nobody)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", [["search", "--text", "a"], ["get", "x"], ["delete", "x"], ["status"]])
def test_without_a_server_each_command_says_what_to_do(command: list[str], nobody: str) -> None:
    result = likeness(*command, server=nobody)
    assert result.exit_code == 1
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first == f"No gateway answers at {nobody} (Connection refused)."
    assert "`make up`" in second
    assert "LIKENESS_GATEWAY" in second


def test_the_server_is_named_before_or_after_the_command(address: str, nobody: str) -> None:
    assert likeness("--server", address, "status", server=nobody).exit_code == 0
    assert likeness("status", "--server", address, server=nobody).exit_code == 0
    assert likeness("--server", nobody, "status", server=address).exit_code == 1


def test_a_refused_search_tells_reason_and_field(address: str, gateway: FakeGateway) -> None:
    gateway.refusal = status(
        grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_DAMAGED", "cannot be read", field="terms[0].image"
    )
    result = likeness("search", "--text", "a", "--format", "json", server=address)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "IMAGE_DAMAGED: cannot be read\n  terms[0].image: cannot be read\n"


def test_get_shows_what_is_known_and_names_what_is_missing(address: str, gateway: FakeGateway) -> None:
    gateway.stored = {"a": pb.IndexItem(labels=["cat"])}
    result = likeness("get", "a", "b", server=address)
    assert result.exit_code == 1
    assert "cat" in result.stdout
    assert result.stderr == "No picture of id b in collection images.\n"
    result = likeness("get", "a", "--format", "json", server=address)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "items": [{"id": "a", "uri": "", "labels": ["cat"], "metadata": {}}],
        "missing_ids": [],
    }


def test_delete_says_how_many_and_minds_no_unknown_id(address: str, gateway: FakeGateway) -> None:
    gateway.stored = {"a": pb.IndexItem(), "b": pb.IndexItem()}
    result = likeness("delete", "a", "c", server=address)
    assert result.exit_code == 0
    assert result.stdout == "Deleted 1 from collection images; 1 of the ids were not there.\n"
    result = likeness("delete", "b", "--format", "json", server=address)
    assert json.loads(result.stdout) == {"deleted": 1, "unknown": 0}


def test_status_as_json_lists_the_collections_with_model_and_count(address: str, gateway: FakeGateway) -> None:
    collection = gateway.status.collections.add(name="images", count=1234, searchable=True)
    collection.fingerprint.model, collection.fingerprint.dimension = "starter", 512
    told = json.loads(likeness("status", "--format", "json", server=address).stdout)
    assert told["collections"][0] == {
        "name": "images",
        "count": 1234,
        "model": "starter",
        "digest": "",
        "dimension": 512,
        "searchable": True,
    }


def test_a_service_that_is_down_is_told_and_is_exit_code_1(address: str, gateway: FakeGateway) -> None:
    gateway.status.services.add(name="embedder", address="e:1", serving=True)
    down = status(grpc.StatusCode.UNAVAILABLE, "INDEXER_UNAVAILABLE", "connection refused")
    error = error_pb2.ItemError(status=down, reason=error_pb2.REASON_INDEXER_UNAVAILABLE)
    gateway.status.services.add(name="indexer", address="i:1", error=error)
    result = likeness("status", server=address)
    assert result.exit_code == 1
    assert "INDEXER_UNAVAILABLE: connection refused" in result.stdout
    result = likeness("status", "--format", "json", server=address)
    assert result.exit_code == 1
    assert [service["serving"] for service in json.loads(result.stdout)["services"]] == [True, False]


def test_a_healthy_status_shows_services_model_and_collections(address: str, gateway: FakeGateway) -> None:
    gateway.status.services.add(name="embedder", address="e:1", serving=True)
    gateway.status.model.fingerprint.model, gateway.status.model.device = "starter", "cpu"
    result = likeness("status", server=address)
    assert result.exit_code == 0
    for words in (address, "embedder", "serving", "starter", "cpu", "No collections yet"):
        assert words in result.stdout


@pytest.mark.parametrize("timeout", ["inf", "1e10"])
def test_any_time_is_a_time_to_wait_before_and_behind_the_command(address: str, timeout: str) -> None:
    assert likeness("--timeout", timeout, "status", server=address).exit_code == 0
    assert likeness("status", "--timeout", timeout, server=address).exit_code == 0


@pytest.mark.parametrize("command", [["--timeout", "nan", "status"], ["status", "--timeout", "nan"]])
def test_no_number_is_no_time_to_wait(command: list[str], nobody: str) -> None:
    result = likeness(*command, server=nobody)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--timeout" in result.stderr


@pytest.mark.parametrize(
    ("output_format", "shown"),
    [("json", '"labels": ["\\u65e5", "caf\\u00e9"]'), ("csv", "?;caf\xe9"), ("table", "?, caf\xe9")],
)
def test_output_in_another_encoding_is_written_as_far_as_that_goes(
    address: str, gateway: FakeGateway, output_format: str, shown: str
) -> None:
    hit(gateway, "a", 0.91, labels=("日", "café"))
    command = [sys.executable, "-c", "from likeness_client.cli import main; main()", "--server", address]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    result = subprocess.run(
        [*command, "search", "--text", "a", "--format", output_format],
        check=False,
        capture_output=True,
        env=environment,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert shown in result.stdout.decode("latin-1")


@pytest.mark.parametrize("output_format", ["json", "csv", "table"])
def test_output_to_nowhere_is_no_complaint(address: str, gateway: FakeGateway, output_format: str) -> None:
    hit(gateway, "a", 0.91)
    line = 'exec "$0" -c "from likeness_client.cli import main; main()" "$@" >&-'
    arguments = ["--server", address, "search", "--text", "a", "--format", output_format]
    result = subprocess.run(
        ["/bin/sh", "-c", line, sys.executable, *arguments], check=False, stderr=subprocess.PIPE, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_an_interrupt_while_the_command_is_loaded_is_told_in_a_line() -> None:
    script = (
        "import signal, sys, types\n"
        "class Loading(types.ModuleType):\n"
        "    def __getattr__(self, name): signal.raise_signal(signal.SIGINT)\n"
        "sys.modules['likeness_client.commands.app'] = Loading('app')\n"
        "from likeness_client.cli import main\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "Interrupted.\n")


@pytest.mark.parametrize("output_format", ["table", "json"])
def test_output_that_cannot_be_written_is_told_in_a_line(address: str, output_format: str) -> None:
    command = [sys.executable, "-c", "from likeness_client.cli import main; main()", "--server", address]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [*command, "status", "--format", output_format], check=False, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (result.returncode, result.stderr) == (1, "standard output: No space left on device\n")


def test_output_that_nobody_reads_is_no_complaint(address: str) -> None:
    command = [sys.executable, "-c", "from likeness_client.cli import main; main()", "--server", address]
    with subprocess.Popen([*command, "status"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_help_and_version_ask_no_server_and_import_no_grpc() -> None:
    assert likeness("--version").stdout.startswith("likeness ")
    slow = "{'grpc', 'lark', 'numpy', 'pyarrow'}"
    script = f"import sys; from likeness_client.commands.app import app; sys.exit(bool({slow} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    plain = (
        "index",
        "search",
        "get",
        "delete",
        "classify",
        "duplicates",
        "status",
        "list",
        "count",
        "facets",
        "export",
        "import",
        "restore",
    )
    families = {
        "label": ("add", "remove", "rename", "set"),
        "collections": ("create", "list", "describe", "update", "delete"),
        "alias": ("set", "delete", "list"),
        "snapshot": ("create", "list", "delete"),
    }
    lines = [[command] for command in (*plain, "rebuild", "erase", *families)]
    lines += [[family, command] for family, commands in families.items() for command in commands]
    for line in lines:
        assert likeness(*line, "--help").exit_code == 0
