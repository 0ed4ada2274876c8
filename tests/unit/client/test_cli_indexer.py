"""The commands that speak to the indexer."""

import json
import os
from collections import deque
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from likeness_client.indexer import IndexerClient, Item
from tests.unit.client.command import likeness
from tests.unit.client.fake_gateway import status
from tests.unit.client.fake_indexer import FakeIndexer

DIGEST = "a1" * 32
COLLECTION = {
    "name": "photos",
    "uid": "uid of photos",
    "earlier_uids": [],
    "model": "starter",
    "digest": DIGEST,
    "dimension": 4,
    "metric": "cosine",
    "hnsw": {"max_neighbors": 0, "ef_construction": 0, "ef_search": 64},
    "description": "tests",
    "aliases": [],
    "count": 0,
    "created": "2026-09-21T14:13:20+00:00",
}


def fill(client: IndexerClient, number: int) -> None:
    items = [Item(f"i{n:03}", {"n": n, "kind": "cat" if n % 2 else "dog"}, (1.0, 0.0, 0.0, n)) for n in range(number)]
    for start in range(0, number, 64):
        client.upsert("photos", items[start : start + 64])


def told(*arguments: object, indexer: str, code: int = 0) -> dict[str, Any]:
    """What a command prints as JSON."""
    result = likeness(*arguments, "--format", "json", indexer=indexer)
    assert result.exit_code == code, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_collections_are_made_listed_described_changed_and_deleted(indexer_address: str) -> None:
    model = ("--model", "starter", "--digest", DIGEST, "--dimension", "4")
    made = told(
        "collections", "create", "photos", *model, "--ef-search", 64, "--description", "tests", indexer=indexer_address
    )
    assert made == {"collection": COLLECTION}
    assert told("collections", "list", indexer=indexer_address) == {"collections": [COLLECTION]}
    described = told("collections", "describe", "photos", indexer=indexer_address)
    assert described["collection"] == COLLECTION
    assert described["status"] == {
        "mode": "memory",
        "reason": "",
        "loaded": 0,
        "total": 0,
        "rows": 5,
        "dead_rows": 1,
        "dead_share": 0.2,
        "unindexed_rows": 0,
        "memory_bytes": 2048,
        "disk_bytes": 4096,
        "recall": None,
        "last_write": None,
    }
    changed = told("collections", "update", "photos", "--max-neighbors", 32, indexer=indexer_address)
    assert changed["collection"]["hnsw"] == {"max_neighbors": 32, "ef_construction": 0, "ef_search": 64}
    assert changed["needs_rebuild"]
    assert told("collections", "delete", "photos", "--yes", indexer=indexer_address) == {"deleted": "photos"}
    assert told("collections", "list", indexer=indexer_address) == {"collections": []}


def test_tables_name_what_people_look_for(indexer_address: str, client: IndexerClient, photos: str) -> None:
    fill(client, 3)
    client.set_alias("current", photos)
    listed = likeness("collections", "list", indexer=indexer_address).stdout.splitlines()
    assert listed[1].split() == ["photos", "3", "starter", "4", "cosine", "current"]
    described = likeness("collections", "describe", "current", indexer=indexer_address).stdout
    for words in ("uid of photos", "20.0%", "not measured yet", "ef_search 64", "4.1 kB"):
        assert words in described
    assert "n: 1" in likeness("list", "--collection", photos, indexer=indexer_address).stdout
    assert likeness("count", "--collection", photos, indexer=indexer_address).stdout == "3\n"
    counted = likeness("facets", "kind", "--collection", photos, indexer=indexer_address).stdout.splitlines()
    assert counted == ["kind: 2 values in 3 of 3 items", "Value  Items", "dog        2", "cat        1"]


def test_listed_ids_are_whole_where_asked_for(indexer_address: str, client: IndexerClient, photos: str) -> None:
    client.upsert(photos, [Item("0f" * 32, {"text": "long " * 30}, (1.0, 0.0, 0.0, 1.0))])
    command = ("list", "--collection", photos)
    assert "0f0f0f0f0f0f…" in likeness(*command, indexer=indexer_address, columns=80).stdout
    assert "0f" * 32 + "  text: long" in likeness(*command, "--ids", "full", indexer=indexer_address, columns=80).stdout


def test_a_collection_is_deleted_only_after_a_yes(
    indexer_address: str, client: IndexerClient, indexer: FakeIndexer, photos: str
) -> None:
    fill(client, 3)
    for answer in ("n\n", ""):
        result = likeness("collections", "delete", photos, indexer=indexer_address, stdin=answer)
        assert result.exit_code == 1
        assert "its 3 items" in result.stderr
    assert photos in indexer.collections
    assert likeness("collections", "delete", photos, indexer=indexer_address, stdin="y\n").exit_code == 0
    assert photos not in indexer.collections


def test_aliases_are_set_moved_listed_and_deleted(indexer_address: str, client: IndexerClient, photos: str) -> None:
    client.create_collection("photos-v2", client.collection(photos).collection.fingerprint)
    first = told("alias", "set", "current", "photos", "--expected", "", indexer=indexer_address)
    assert first == {"alias": "current", "collection": "photos", "previous": ""}
    result = likeness("alias", "set", "current", "photos-v2", "--expected", "x-y-z", indexer=indexer_address)
    assert (result.exit_code, result.stderr) == (1, "ALIAS_MOVED: it stands for 'photos'\n")
    moved = likeness("alias", "set", "current", "photos-v2", indexer=indexer_address)
    assert moved.stdout == "current stands for photos-v2, no longer for photos.\n"
    listed = told("alias", "list", indexer=indexer_address)
    assert listed == {"aliases": [{"name": "current", "collection": "photos-v2"}]}
    gone = told("alias", "delete", "current", indexer=indexer_address)
    assert gone == {"alias": "current", "collection": "photos-v2"}


def test_backups_are_made_listed_restored_and_deleted(indexer_address: str, client: IndexerClient, photos: str) -> None:
    fill(client, 3)
    backup = {
        "name": "photos/0",
        "collection": {**COLLECTION, "count": 3},
        "created": None,
        "bytes": 1234,
        "fault": "",
    }
    made = told("snapshot", "create", photos, indexer=indexer_address)
    assert made == {"snapshot": backup, "deleted": ["photos/old"]}
    assert told("snapshot", "list", "--collection", photos, indexer=indexer_address) == {"snapshots": [backup]}
    assert "whole" in likeness("snapshot", "list", indexer=indexer_address).stdout
    restored = told("restore", "photos/0", "--to", "again", indexer=indexer_address)
    assert (restored["collection"]["name"], restored["collection"]["count"]) == ("again", 3)
    client.create_snapshot(photos)
    assert told("restore", photos, "--to", "newest", indexer=indexer_address)["snapshot"] == "photos/1"
    nothing = likeness("restore", "nothing", indexer=indexer_address)
    assert (nothing.exit_code, nothing.stderr) == (1, "There is no whole backup of collection nothing.\n")
    assert told("snapshot", "delete", "photos/0", indexer=indexer_address) == {"deleted": "photos/0"}
    assert likeness("snapshot", "delete", "photos/0", indexer=indexer_address).exit_code == 1


def test_a_rebuild_says_what_it_gave_back(indexer_address: str, photos: str) -> None:
    assert told("rebuild", photos, indexer=indexer_address) == {
        "collection": COLLECTION,
        "bytes_before": 2000,
        "bytes_after": 1000,
    }
    assert "1.0 kB, before 2.0 kB" in likeness("rebuild", photos, indexer=indexer_address).stdout


def test_an_erasure_that_leaves_something_is_exit_code_1(
    indexer_address: str, client: IndexerClient, indexer: FakeIndexer, photos: str
) -> None:
    fill(client, 3)
    erase = ("erase", "i000", "i001", "--collection", photos)
    report = told(*erase, indexer=indexer_address)["report"]
    assert (report["deleted"], report["files_searched"], report["found_in"], report["traces"]) == (2, 3, [], 6)
    assert "Nothing is left of them." in likeness(*erase, indexer=indexer_address).stdout
    indexer.report.snapshots.append("photos/0")
    result = likeness(*erase, indexer=indexer_address)
    assert result.exit_code == 1
    assert "photos/0" in result.stdout
    report = told(*erase, "--delete-snapshots", indexer=indexer_address)["report"]
    assert (report["snapshots"], report["deleted_snapshots"]) == ([], ["photos/0"])
    indexer.report.found_in.append("chroma/x/data_level0.bin")
    assert told(*erase, "--delete-snapshots", indexer=indexer_address, code=1)["report"]["found_in"]


def test_a_list_pages_by_itself_and_says_whether_there_is_more(
    indexer_address: str, client: IndexerClient, photos: str
) -> None:
    fill(client, 35)
    listed = told("list", "--collection", photos, "--limit", 25, indexer=indexer_address)
    assert [item["id"] for item in listed["items"]] == [f"i{n:03}" for n in range(25)]
    assert listed["items"][1] == {"id": "i001", "metadata": {"kind": "cat", "n": 1}}
    assert listed["more"]
    cats = told("list", "--collection", photos, "--where", 'kind = "cat"', indexer=indexer_address)
    assert (len(cats["items"]), cats["more"]) == (17, False)
    assert told("count", "--collection", photos, "--where", 'kind = "cat"', indexer=indexer_address) == {"count": 17}
    counted = told("facets", "kind", "--collection", photos, "--limit", 1, indexer=indexer_address)
    assert counted == {
        "count": 35,
        "facets": [{"key": "kind", "values": [{"value": "dog", "count": 18}], "distinct": 2, "missing": 0}],
    }


def test_export_and_import_carry_a_collection_over(
    indexer_address: str, client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path
) -> None:
    fill(client, 100)
    path = tmp_path / "photos.parquet"
    done = told("export", path, "--collection", photos, indexer=indexer_address)
    assert done.pop("seconds") >= 0
    assert done == {
        "file": str(path),
        "format": "parquet",
        "collection": "photos",
        "uid": "uid of photos",
        "rows": 100,
        "resumed": 0,
        "bytes": path.stat().st_size,
    }
    client.delete_collection(photos)
    assert likeness("import", path, indexer=indexer_address).exit_code == 1
    back = told("import", path, "--create", indexer=indexer_address)
    assert back.pop("seconds") >= 0
    assert back == {
        "file": str(path),
        "collection": "photos",
        "stored": 100,
        "refused": 0,
        "refusals": [],
        "skipped": 0,
        "error": None,
        "interrupted": False,
    }
    assert len(indexer.items["photos"]) == 100
    assert client.collection(photos).collection.earlier_uids == ("uid of photos",), "where its pictures are"
    lines = tmp_path / "photos"
    command = ("export", lines, "--as", "jsonl", "--collection", photos, "--where", 'kind = "cat"')
    assert "Exported 50 items" in likeness(*command, indexer=indexer_address).stdout
    assert len(lines.read_text().splitlines()) == 51


def test_a_file_whose_name_is_no_utf_8_is_written_and_read(
    indexer_address: str, client: IndexerClient, photos: str, tmp_path: Path
) -> None:
    fill(client, 10)
    path, shown = tmp_path / os.fsdecode(b"\xff.jsonl"), f"{tmp_path}/\N{REPLACEMENT CHARACTER}.jsonl"
    command = ("export", path, "--collection", photos)

    assert told(*command, indexer=indexer_address)["file"] == shown
    assert "Exported 10 items" in likeness(*command, "--overwrite", indexer=indexer_address).stdout
    assert path.exists()
    back = told("import", path, indexer=indexer_address)
    assert (back["file"], back["stored"]) == (shown, 10)


def test_a_bad_row_of_a_file_whose_name_is_no_utf_8_is_named(indexer_address: str, photos: str, tmp_path: Path) -> None:
    path, shown = tmp_path / os.fsdecode(b"\xff.jsonl"), f"{tmp_path}/\N{REPLACEMENT CHARACTER}.jsonl"
    path.write_text('{"id": "a"}\n')
    command = ("import", path, "--collection", photos)

    assert told(*command, indexer=indexer_address, code=1)["refusals"][0]["file"] == shown
    assert f"{shown}, line 1 (a): " in likeness(*command, indexer=indexer_address).stdout


def test_a_parquet_file_whose_name_is_no_utf_8_is_wrong_usage(nobody: str, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.parquet")
    path.touch()
    for command in (["export", path, "--overwrite"], ["import", path]):
        result = likeness(*command, indexer=nobody)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "no UTF-8" in result.stderr


def test_an_error_that_names_a_file_whose_name_is_no_utf_8_is_told_as_json(
    indexer_address: str, tmp_path: Path
) -> None:
    path = tmp_path / os.fsdecode(b"\xff.jsonl")
    path.write_text('{"id": "a", "vector": [1, 2, 3, 4]}\n')

    failed = told("import", path, indexer=indexer_address, code=1)

    assert f"{tmp_path}/?.jsonl does not tell where it came from" in failed["error"]


def test_an_array_with_its_table_is_imported_into_a_new_collection(
    indexer_address: str, indexer: FakeIndexer, tmp_path: Path
) -> None:
    np.save(tmp_path / "v.npy", np.eye(4, dtype=np.float16))
    (tmp_path / "v.csv").write_text("id,width\na,1\nb,2\n,3\nd,4\n")
    command = ("import", tmp_path / "v.npy", "--csv", tmp_path / "v.csv", "--collection", "new", "--create")
    model = ("--model", "starter", "--digest", DIGEST, "--metric", "l2")
    result = likeness(*command, *model, indexer=indexer_address)
    assert result.exit_code == 1
    assert f"{tmp_path / 'v.npy'}, row 3: ROW_INVALID: id is empty" in result.stdout
    assert sorted(indexer.items["new"]) == ["a", "b", "d"]
    made = indexer.collections["new"]
    assert (made.fingerprint.digest, made.fingerprint.dimension, made.metric) == (DIGEST, 4, 2)


def test_vectors_of_another_model_are_refused_as_a_whole(
    indexer_address: str, photos: str, indexer: FakeIndexer, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a", "vector": [1, 2, 3, 4]}\n')
    other = ("--model", "ViT-B-32", "--digest", "b2" * 32)
    command = ("import", tmp_path / "a.jsonl", "--collection", photos, *other)
    failed = told(*command, indexer=indexer_address, code=1)
    assert failed["error"].startswith("MODEL_MISMATCH")
    assert not indexer.items[photos]


def test_an_interrupted_export_says_how_to_go_on(
    indexer_address: str, client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path
) -> None:
    fill(client, 40)
    gone = status(grpc.StatusCode.FAILED_PRECONDITION, "SCHEMA_UNSUPPORTED", "no")
    indexer.export_breaks.append(20)
    path = tmp_path / "a.parquet"
    # The first call breaks off, the next one is refused for good.
    indexer.failures["ExportItems"] = deque([None, gone])
    command = ("export", path, "--collection", photos)
    result = likeness(*command, indexer=indexer_address)
    assert result.exit_code == 1
    assert "--resume goes on" in result.stderr
    assert not path.exists()
    done = told(*command, "--resume", indexer=indexer_address)
    assert (done["rows"], done["resumed"]) == (40, 20)


def test_going_on_is_advice_only_where_this_import_has_begun(
    indexer_address: str, indexer: FakeIndexer, photos: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a", "vector": [1, 2, 3, 4]}\n')
    full = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL", "the disk is full")
    indexer.failures["UpsertItems"] = deque([full, full])

    failed = likeness("import", path, "--collection", photos, indexer=indexer_address)
    assert (failed.exit_code, "--resume goes on" in failed.stdout) == (1, True)
    elsewhere = likeness("import", path, "--collection", "nowhere", indexer=indexer_address)
    assert (elsewhere.exit_code, "--resume" in elsewhere.stdout) == (1, False)
    again = likeness("import", path, "--collection", photos, "--resume", indexer=indexer_address)
    assert (again.exit_code, "--resume goes on" in again.stdout) == (1, True)
    indexer.collections[photos].uid = "another"
    other = likeness("import", path, "--collection", photos, "--resume", indexer=indexer_address)
    assert (other.exit_code, "--resume goes on" in other.stdout) == (1, False)


def test_going_on_is_no_advice_where_an_export_could_not_begin(
    indexer_address: str, photos: str, tmp_path: Path
) -> None:
    path = tmp_path / ("a" * 245 + ".jsonl")  # with .part behind it too long for a file's name
    result = likeness("export", path, "--collection", photos, indexer=indexer_address)
    assert result.exit_code == 1
    assert "File name too long" in result.stderr
    assert "--resume" not in result.stderr


def test_an_import_tells_that_it_is_not_remembered(
    indexer_address: str, indexer: FakeIndexer, photos: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a", "vector": [1, 2, 3, 4]}\n')
    (tmp_path / "a.jsonl.import.json.new").mkdir()
    indexer.failures["UpsertItems"] = deque([status(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL", "full")])
    result = likeness("import", path, "--collection", photos, indexer=indexer_address)
    assert "a.jsonl.import.json cannot be written (Is a directory): how far the import is" in result.stderr
    assert "STORE_FULL: full" in result.stderr
    assert "--resume" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "a.txt"], "--as parquet or --as jsonl"),
        (["erase", "\udcff"], "is no text"),
        (["snapshot", "list", "--collection", "\udcff"], "is no text"),
        (["snapshot", "create", "\udcff"], "is no text"),
        (["snapshot", "delete", "\udcff"], "is no text"),
        (["restore", "\udcff"], "is no text"),
        (["restore", "photos", "--to", "\udcff"], "is no text"),
        (["rebuild", "\udcff"], "is no text"),
        (["collections", "create", "a", "--model", "\udcff", "--digest", "0", "--dimension", "1"], "is no text"),
        (["collections", "create", "a", "--model", "m", "--digest", "\udcff", "--dimension", "1"], "is no text"),
        (["collections", "create", "a", "--model", "m", "--digest", "0", "--dimension", "-1"], "--dimension"),
        (["collections", "update", "a", "--max-neighbors", "-1"], "--max-neighbors"),
        (["collections", "update", "a", "--ef-construction", "99999999999"], "--ef-construction"),
        (["collections", "update", "a", "--ef-search", "99999999999"], "--ef-search"),
        (["export", "a.parquet", "--where", "width >="], "width >=\n        ^\n"),
        (["import", "/nowhere.parquet"], "does not exist"),
        (["count", "--where", "width >="], "width >=\n        ^\n"),
        (["collections", "update", "photos"], "Say what to change"),
        (["collections", "create", "photos"], "--model, --digest and --dimension"),
        (["facets"], "Missing argument"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], words: str, nobody: str) -> None:
    result = likeness(*arguments, indexer=nobody)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "command",
    [
        ["collections", "list"],
        ["alias", "list"],
        ["snapshot", "list"],
        ["snapshot", "create", "photos"],
        ["restore", "photos/x"],
        ["rebuild", "photos"],
        ["erase", "a"],
        ["list"],
        ["count"],
        ["facets", "a"],
        ["export", "a.parquet"],
    ],
)
def test_without_an_indexer_each_command_says_what_to_do(
    command: list[str], nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = likeness(*command, indexer=nobody)
    assert result.exit_code == 1
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first == f"No indexer answers at {nobody} (Connection refused)."
    assert "--indexer ADDRESS" in second
    assert "LIKENESS_INDEXER" in second


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("snapshot list", []), ("export", ["a.parquet"]), ("rebuild", ["photos"]), ("erase", ["a"])],
)
def test_a_command_of_the_indexer_refuses_to_look_at_a_gateway(
    name: str, arguments: list[str], indexer_address: str
) -> None:
    result = likeness("--server", "a:1", *name.split(), *arguments, indexer=indexer_address)
    assert (result.exit_code, result.stdout) == (2, "")
    asked = f"`likeness {name}`, which speaks to the indexer"
    assert result.stderr == f"--server is not for {asked}: use --indexer ADDRESS.\n"


def test_a_gateway_named_beside_the_indexer_or_by_the_environment_is_no_fault(indexer_address: str) -> None:
    assert likeness("--server", "a:1", "--indexer", indexer_address, "snapshot", "list").exit_code == 0
    assert likeness("--server", "a:1", "snapshot", "list", "--indexer", indexer_address).exit_code == 0
    assert likeness("snapshot", "list", server="a:1", indexer=indexer_address).exit_code == 0


def test_a_command_of_the_gateway_refuses_to_look_at_an_indexer(indexer_address: str, nobody: str) -> None:
    result = likeness("--indexer", indexer_address, "status", server=nobody)
    assert result.exit_code == 2
    assert "`likeness status`, which speaks to the gateway: use --server ADDRESS." in result.stderr


def test_the_indexer_is_named_before_or_after_the_command(indexer_address: str, nobody: str) -> None:
    assert likeness("--indexer", indexer_address, "snapshot", "list", indexer=nobody).exit_code == 0
    assert likeness("snapshot", "list", "--indexer", indexer_address, indexer=nobody).exit_code == 0
    assert likeness("--indexer", nobody, "snapshot", "list", indexer=indexer_address).exit_code == 1
