"""``likeness index``: what it sends, what it tells, and what becomes of it when streams break or Ctrl-C is pressed."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from tests.unit.client.command import likeness
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


class Interrupted:
    """Something that is interrupted while it is finalized."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def interrupt_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a stream is opened again, Ctrl-C comes within a finalizer, where Python drops it."""

    def sleep(seconds: float) -> None:
        Interrupted()

    monkeypatch.setattr("likeness_client.ingest.sleep", sleep)


def test_without_a_server_index_says_what_to_do(photos: Path, nobody: str) -> None:
    result = likeness("index", photos, server=nobody)
    assert result.exit_code == 1
    assert "`make up`" in result.stderr
    assert result.stdout == ""


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


@pytest.mark.parametrize("place", ["..", "../beside/.."])
def test_index_labels_by_the_name_of_the_directory_however_it_is_told(
    address: str, gateway: FakeGateway, photos: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    below = photos / "cats" / "below"
    below.mkdir()
    (photos / "cats" / "beside").mkdir()
    monkeypatch.chdir(below)
    assert likeness("index", place, "--label-from-parent", server=address).exit_code == 0
    assert {tuple(item.labels) for item in gateway.stored.values()} == {("cats",)}


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
        "already_there": [],
        "unanswered": [],
        "not_sent": 0,
        "skipped": 1,
        "error": None,
        "interrupted": False,
    }


def test_index_sends_what_is_to_be_left_out_and_kept(address: str, gateway: FakeGateway, photos: Path) -> None:
    likeness("index", photos / "cats", server=address)
    arguments = ["--existing", "skip", "--skip-duplicates", "exact", "--skip-duplicates", "near=0.9"]
    likeness("index", photos / "cats", *arguments, "--keep-originals", "--no-thumbnails", server=address)

    plain, told = (start.options for start in gateway.starts)
    assert (plain.existing, plain.skip_exact_duplicates, plain.HasField("skip_near_duplicates")) == (1, False, False)
    assert (plain.keep_originals, plain.no_thumbnails) == (False, False)
    assert (told.existing, told.skip_exact_duplicates) == (2, True)
    assert told.skip_near_duplicates == pytest.approx(0.9)
    assert (told.keep_originals, told.no_thumbnails) == (True, True)


@pytest.mark.parametrize("value", ["all", "near=close", "exact=1"])
def test_index_refuses_a_way_to_find_duplicates_that_there_is_not(address: str, photos: Path, value: str) -> None:
    result = likeness("index", photos, "--skip-duplicates", value, server=address)
    assert result.exit_code == 2
    assert "--skip-duplicates" in result.stderr


def test_index_counts_what_the_collection_has_already(address: str, photos: Path) -> None:
    likeness("index", photos / "cats", server=address)
    again = likeness("index", photos, "--existing", "skip", server=address)
    assert "Stored 1 picture in collection" in again.stdout
    assert "Left out 2 that the collection has already: 2 EXISTS." in again.stdout

    told = json.loads(likeness("index", photos / "cats", "--existing", "skip", "--format=json", server=address).stdout)
    assert (told["stored"], told["refused"]) == (0, [])
    assert [(entry["path"], entry["reason"]) for entry in told["already_there"]] == [
        (str(photos / "cats" / "1.jpg"), "EXISTS"),
        (str(photos / "cats" / "2.PNG"), "EXISTS"),
    ]


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
    assert "The same command again sends the rest" in result.stdout


def test_index_into_no_collection_fails_at_once(address: str, gateway: FakeGateway, photos: Path) -> None:
    gateway.refusal = status(grpc.StatusCode.NOT_FOUND, "COLLECTION_NOT_FOUND", "no collection pets")
    result = likeness("index", photos, "--collection", "pets", "--no-create", server=address)
    assert result.exit_code == 1
    assert "COLLECTION_NOT_FOUND: no collection pets" in result.stderr
    assert len(gateway.starts) == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.NOT_FOUND, "COLLECTION_NOT_FOUND"),
        (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID"),
        (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_MISMATCH"),
    ],
)
def test_the_same_command_again_is_no_advice_for_an_error_that_stays(
    address: str, gateway: FakeGateway, photos: Path, code: grpc.StatusCode, reason: str
) -> None:
    gateway.refusal = status(code, reason, "no")
    result = likeness("index", photos, server=address)
    assert result.exit_code == 1
    assert result.stderr.endswith(f"{reason}: no\n")
    assert "had no answer" in result.stdout
    assert "may or may not" not in result.stdout
    assert "again" not in result.stdout


@pytest.mark.usefixtures("waits")
def test_the_same_command_again_is_advice_where_the_gateway_let_go(
    address: str, gateway: FakeGateway, photos: Path
) -> None:
    gateway.refusal = status(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "no item came for 300 s")
    result = likeness("index", photos, server=address)
    assert result.exit_code == 1
    assert "The same command again sends the rest" in result.stdout


def test_files_that_were_never_reached_are_counted(address: str, gateway: FakeGateway, tmp_path: Path) -> None:
    for i in range(600):
        (tmp_path / f"{i:04}.jpg").write_bytes(f"picture {i}".encode())
    gateway.breaks.append(Break(100, status(grpc.StatusCode.FAILED_PRECONDITION, "MODEL_MISMATCH", "no")))
    told = json.loads(likeness("index", tmp_path, "--format", "json", server=address).stdout)
    assert told["not_sent"] > 0
    assert told["stored"] + len(told["unanswered"]) + told["not_sent"] == 600


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
    assert re.search(r"[1-4] pictures? had no answer and may or may not be stored\.", out)
    assert "Traceback" not in err


@pytest.mark.usefixtures("interrupt_is_dropped")
def test_an_interrupt_that_python_drops_is_heeded_when_the_stream_would_be_opened_again(
    address: str, gateway: FakeGateway, photos: Path
) -> None:
    gateway.refusal = shutting_down()
    result = likeness("index", photos, server=address)
    assert result.exit_code == 130
    assert len(gateway.starts) == 2
    assert result.stdout.startswith("Interrupted. Stored 0 pictures in collection images.")
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("interrupt_is_dropped")
def test_an_interrupt_that_python_drops_is_heeded_at_the_next_answer(
    address: str, gateway: FakeGateway, tmp_path: Path
) -> None:
    for i in range(600):
        (tmp_path / f"{i:04}.jpg").write_bytes(f"picture {i}".encode())
    gateway.breaks.append(Break(100, shutting_down()))
    result = likeness("index", tmp_path, server=address)
    assert result.exit_code == 130
    assert "Interrupted. Stored 51 pictures" in result.stdout, "50 were answered by the first stream"
    (unanswered,) = re.findall(r"^(\d+) pictures? had no answer", result.stdout, re.MULTILINE)
    (not_sent,) = re.findall(r"^(\d+) pictures were not sent\.$", result.stdout, re.MULTILINE)
    assert 51 + int(unanswered) + int(not_sent) == 600
    assert "The same command again sends the rest" in result.stdout
