import csv
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from likeness.common.v1 import error_pb2
from likeness.gateway.v1 import gateway_pb2 as pb
from typer.testing import CliRunner, Result

from likeness_client.cli import app
from tests.unit.client.fake_gateway import BAD, Break, FakeGateway, shutting_down, status


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits before streams are opened again, which are not waited for."""
    waited: list[float] = []
    monkeypatch.setattr("likeness_client.ingest.sleep", waited.append)
    return waited


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """cats/1.jpg cats/2.PNG dogs/3.jpg dogs/bad.jpg notes.txt."""
    for name in ("cats/1.jpg", "cats/2.PNG", "dogs/3.jpg", "dogs/bad.jpg", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(BAD if "bad" in name else name.encode())
    return tmp_path


def likeness(*arguments: object, server: str | None = None, columns: int = 200) -> Result:
    environment = {"COLUMNS": str(columns), "LIKENESS_GATEWAY": server}
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


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


def test_what_a_terminal_would_obey_is_shown_instead(address: str, gateway: FakeGateway) -> None:
    hit(gateway, "a", 0.5, "https://example.org/\x1b[2Jx", ("[red]",))
    result = likeness("search", "--text", "a", server=address)
    assert "\x1b" not in result.stdout
    assert "[red]" in result.stdout


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


@pytest.mark.parametrize(
    "command", [["search", "--text", "a"], ["get", "x"], ["delete", "x"], ["status"], ["collections"]]
)
def test_without_a_server_each_command_says_what_to_do(command: list[str], nobody: str) -> None:
    result = likeness(*command, server=nobody)
    assert result.exit_code == 1
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first == f"No gateway answers at {nobody} (Connection refused)."
    assert "`make up`" in second
    assert "LIKENESS_GATEWAY" in second


def test_without_a_server_index_says_what_to_do(photos: Path, nobody: str) -> None:
    result = likeness("index", photos, server=nobody)
    assert result.exit_code == 1
    assert "`make up`" in result.stderr
    assert result.stdout == ""


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


def test_index_takes_pictures_from_directories_and_labels_them(
    address: str, gateway: FakeGateway, photos: Path
) -> None:
    (photos / "dogs" / "bad.jpg").unlink()
    result = likeness("index", photos, "--label-from-parent", "--label", "mine", "--collection", "pets", server=address)
    assert result.exit_code == 0
    assert "Stored 3 pictures in collection pets" in result.stdout
    assert "Skipped 1 not named like a picture" in result.stdout
    sent = sorted((item.uri, tuple(item.labels)) for item in gateway.stored.values())
    assert sent == [
        ((photos / "cats" / "1.jpg").as_uri(), ("mine", "cats")),
        ((photos / "cats" / "2.PNG").as_uri(), ("mine", "cats")),
        ((photos / "dogs" / "3.jpg").as_uri(), ("mine", "dogs")),
    ]
    assert {item.id for item in gateway.stored.values()} == {""}
    (start,) = gateway.starts
    assert (start.collection, start.create_collection) == ("pets", True)


def test_index_sends_every_file_that_is_named_and_with_all_files_every_one(
    address: str, gateway: FakeGateway, photos: Path
) -> None:
    assert likeness("index", photos / "notes.txt", "--no-create", server=address).exit_code == 0
    assert len(gateway.stored) == 1
    assert not gateway.starts[0].create_collection
    likeness("index", photos, "--all-files", server=address)
    assert len(gateway.stored) == 4


def test_index_groups_what_was_refused_by_its_reason(address: str, gateway: FakeGateway, photos: Path) -> None:
    for i in range(12):
        (photos / f"bad{i:02}.jpg").write_bytes(BAD)
    (photos / "gone.jpg").symlink_to(photos / "nowhere")
    result = likeness("index", photos, server=address)
    assert result.exit_code == 1
    assert "Stored 3 pictures" in result.stdout
    assert "Refused 14:" in result.stdout
    assert "  IMAGE_DAMAGED: 13\n" in result.stdout
    assert "… and 3 more; --format json lists them all" in result.stdout
    assert f"  FILE_UNREADABLE: 1\n    {photos / 'gone.jpg'}: cannot be read (No such file" in result.stdout


def test_index_as_json_lists_everything_refused_and_nothing_else_on_stdout(address: str, photos: Path) -> None:
    result = likeness("index", photos, "--format", "json", server=address)
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told.pop("seconds") >= 0
    assert told == {
        "collection": "images",
        "stored": 3,
        "refused": [
            {
                "path": str(photos / "dogs" / "bad.jpg"),
                "reason": "IMAGE_DAMAGED",
                "message": "image: cannot be read",
            }
        ],
        "unanswered": [],
        "skipped": 1,
        "error": None,
        "interrupted": False,
    }


def test_index_refuses_by_name_what_is_larger_than_the_limit(address: str, gateway: FakeGateway, photos: Path) -> None:
    limits = gateway.status.model.limits
    limits.max_encoded_bytes, limits.max_message_bytes = 1000, 2000
    (photos / "large.jpg").write_bytes(bytes(1001))
    result = likeness("index", photos / "large.jpg", photos / "cats", server=address)
    assert result.exit_code == 1
    assert "IMAGE_TOO_LARGE: 1" in result.stdout
    assert "large.jpg: 1,001 bytes; at most 1,000 are taken" in result.stdout
    assert len(gateway.stored) == 2


def test_index_goes_on_over_a_new_stream_when_one_breaks(
    address: str, gateway: FakeGateway, tmp_path: Path, waits: list[float]
) -> None:
    for i in range(600):
        (tmp_path / f"{i:04}.jpg").write_bytes(f"picture {i}".encode())
    gateway.breaks.extend([Break(100, shutting_down()), Break(301, shutting_down())])
    result = likeness("index", tmp_path, server=address)
    assert result.exit_code == 0
    assert "Stored 600 pictures" in result.stdout
    assert len(gateway.stored) == 600
    assert len(gateway.starts) == 3
    assert waits == [0.5, 0.5]
    assert "SHUTTING_DOWN: the gateway is stopping" in result.stderr
    assert "Connecting again in 0.5 s" in result.stderr


def test_index_gives_up_after_a_few_streams_and_says_what_is_stored(
    address: str, gateway: FakeGateway, photos: Path, waits: list[float]
) -> None:
    gateway.refusal = shutting_down()
    result = likeness("index", photos, server=address)
    assert result.exit_code == 1
    assert waits == [0.5, 1, 2, 4, 8]
    assert len(gateway.starts) == 6
    assert "Stored 0 pictures" in result.stdout
    assert "may or may not be stored" in result.stdout


def test_index_into_no_collection_fails_at_once(address: str, gateway: FakeGateway, photos: Path) -> None:
    gateway.refusal = status(grpc.StatusCode.NOT_FOUND, "COLLECTION_NOT_FOUND", "no collection pets")
    result = likeness("index", photos, "--collection", "pets", "--no-create", server=address)
    assert result.exit_code == 1
    assert "COLLECTION_NOT_FOUND: no collection pets" in result.stderr
    assert len(gateway.starts) == 1


def test_an_interrupted_index_says_what_is_stored(address: str, gateway: FakeGateway, photos: Path) -> None:
    gateway.silent = True
    command = [sys.executable, "-c", "from likeness_client.cli import main; main()", "--server", address]
    with subprocess.Popen(
        [*command, "index", str(photos)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert gateway.item_arrived.wait(60)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert out.startswith("Interrupted. Stored 0 pictures in collection images.")
    assert "Traceback" not in err


def test_get_shows_what_is_known_and_names_what_is_missing(address: str, gateway: FakeGateway) -> None:
    gateway.stored = {"a": pb.IndexItem()}
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


def test_collections_are_listed_with_model_and_count(address: str, gateway: FakeGateway) -> None:
    gateway.status.model.device = "cpu"
    collection = gateway.status.collections.add(name="images", count=1234, searchable=True)
    collection.fingerprint.model, collection.fingerprint.dimension = "starter", 512
    result = likeness("collections", server=address)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split() == ["images", "1,234", "starter", "512", "yes"]
    told = json.loads(likeness("collections", "--format", "json", server=address).stdout)
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
    result = likeness("collections", server=address)
    assert result.exit_code == 1
    assert "the indexer is down" in result.stderr


def test_a_healthy_status_shows_services_model_and_collections(address: str, gateway: FakeGateway) -> None:
    gateway.status.services.add(name="embedder", address="e:1", serving=True)
    gateway.status.model.fingerprint.model, gateway.status.model.device = "starter", "cpu"
    result = likeness("status", server=address)
    assert result.exit_code == 0
    for words in (address, "embedder", "serving", "starter", "cpu", "No collections yet"):
        assert words in result.stdout


def test_help_and_version_ask_no_server_and_import_no_grpc() -> None:
    assert likeness("--version").stdout.startswith("likeness ")
    script = "import sys; from likeness_client.cli import app; sys.exit('grpc' in sys.modules or 'lark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    for command in ("index", "search", "get", "delete", "collections", "status"):
        assert likeness(command, "--help").exit_code == 0
