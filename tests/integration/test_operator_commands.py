"""The commands that speak to the indexer, as processes against a real one: interrupted, killed, restarted under."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from likeness_client.indexer import IndexerClient
from likeness_client.items import Fingerprint
from tests.processes import Service, free_port, start_service

PORT = "LIKENESS_INDEXER_PORT"
DIMENSION = 64
DIGEST = "a1" * 32
MODEL = Fingerprint("my-model", DIGEST, DIMENSION)
ROWS = 3000

Start = Callable[[], Service]


@pytest.fixture
def port() -> str:
    return str(free_port())


@pytest.fixture
def start(tmp_path: Path, port: str) -> Iterator[Start]:
    """Starts the indexer, again and again over the same data and on the same port."""
    started: list[Service] = []

    def start_one() -> Service:
        places = {"LIKENESS_DATA_DIR": str(tmp_path / "data"), "LIKENESS_SNAPSHOTS": str(tmp_path / "snapshots")}
        started.append(start_service("indexer", {**places, PORT: port}, PORT, tmp_path))
        return started[-1]

    yield start_one
    for service in started:
        service.kill()


@pytest.fixture
def indexer(start: Start) -> Service:
    return start()


@pytest.fixture
def client(indexer: Service) -> Iterator[IndexerClient]:
    with IndexerClient(indexer.address) as made:
        yield made


def begin(indexer: Service, *arguments: str | Path) -> "subprocess.Popen[str]":
    """A command under way."""
    return subprocess.Popen(
        [Path(sys.executable).with_name("likeness"), *arguments],
        env={**os.environ, "LIKENESS_INDEXER": indexer.address, "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def likeness(indexer: Service, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """What a command prints as JSON, once it has ended as it should."""
    process = begin(indexer, *arguments, "--format", "json")
    printed, said = process.communicate(timeout=110)
    assert process.returncode == code, said
    told: dict[str, Any] = json.loads(printed) if printed else {}
    return told


def write_rows(path: Path, rows: int = ROWS, prefix: str = "r") -> Path:
    """JSON Lines of random items."""
    vectors = np.random.default_rng(1).normal(size=(rows, DIMENSION)).astype(np.float32)
    with path.open("w") as file:
        for n in range(rows):
            row = {"id": f"{prefix}{n:06}", "vector": vectors[n].tolist(), "metadata": {"n": n, "even": n % 2 == 0}}
            file.write(json.dumps(row) + "\n")
    return path


def until(holds: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Returns when something holds; fails if the process ends before."""
    while not holds():
        assert process.poll() is None, process.communicate()


def test_an_interrupted_import_goes_on_where_it_was(indexer: Service, client: IndexerClient, tmp_path: Path) -> None:
    client.create_collection("photos", MODEL)
    path = write_rows(tmp_path / "rows.jsonl")
    process = begin(indexer, "import", path, "--collection", "photos", "--format", "json")
    until(lambda: client.count("photos") >= 500, process)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    told = json.loads(printed)
    assert told["interrupted"]
    assert 0 < told["stored"] < ROWS
    rest = likeness(indexer, "import", path, "--collection", "photos", "--resume")
    # What was under way at the interrupt may be stored too; it is sent again, and stored once.
    assert rest["stored"] == ROWS - told["stored"]
    assert rest["skipped"] == told["stored"]
    assert client.count("photos") == ROWS
    assert [file.name for file in tmp_path.glob("rows*")] == ["rows.jsonl"]


def test_an_import_outlives_the_restart_of_the_indexer(
    indexer: Service, start: Start, client: IndexerClient, tmp_path: Path
) -> None:
    client.create_collection("photos", MODEL)
    path = write_rows(tmp_path / "rows.jsonl")
    process = begin(indexer, "import", path, "--collection", "photos", "--format", "json")
    until(lambda: client.count("photos") >= 300, process)
    indexer.kill()
    start()
    printed, said = process.communicate(timeout=110)
    assert process.returncode == 0, said
    told = json.loads(printed)
    assert (told["refused"], told["error"]) == (0, None)
    assert client.count("photos") == ROWS


def test_a_killed_export_goes_on_and_the_result_is_whole(
    indexer: Service, client: IndexerClient, tmp_path: Path
) -> None:
    client.create_collection("photos", MODEL)
    likeness(indexer, "import", write_rows(tmp_path / "rows.jsonl", 1000), "--collection", "photos")
    whole = tmp_path / "whole.jsonl"
    likeness(indexer, "export", whole, "--collection", "photos")
    path = tmp_path / "photos.jsonl"
    process = begin(indexer, "export", path, "--collection", "photos")
    folder = tmp_path / "photos.jsonl.part"
    until((folder / "state.json").exists, process)
    process.kill()
    process.communicate(timeout=60)
    if not path.exists():  # it may have ended a moment before
        likeness(indexer, "export", path, "--collection", "photos", "--resume")
    # The first line says when it was made.
    assert path.read_text().split("\n", 1)[1] == whole.read_text().split("\n", 1)[1]
    assert not folder.exists()


def test_an_export_is_not_resumed_after_the_collection_was_made_anew(
    indexer: Service, client: IndexerClient, tmp_path: Path
) -> None:
    client.create_collection("photos", MODEL)
    likeness(indexer, "import", write_rows(tmp_path / "rows.jsonl", 100), "--collection", "photos")
    path = tmp_path / "photos.parquet"
    likeness(indexer, "export", path, "--collection", "photos")
    folder = tmp_path / "photos.parquet.part"
    folder.mkdir()
    path.rename(folder / "0000.parquet")
    told = client.collection("photos").collection
    state = {"version": 1, "format": "parquet", "where": "", "vectors": True, "last_id": "r000050", "rows": 51}
    begun = {**state, "collection": {"uid": told.uid, "dimension": DIMENSION}, "checkpoint": {"parts": 0}}
    (folder / "state.json").write_text(json.dumps(begun))
    client.delete_collection("photos")
    client.create_collection("photos", MODEL)
    process = begin(indexer, "export", path, "--collection", "photos", "--resume")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "RESUME_REFUSED" in said
    assert not path.exists()


def test_rows_that_the_indexer_refuses_are_named_by_file_and_line(
    indexer: Service, client: IndexerClient, tmp_path: Path
) -> None:
    client.create_collection("photos", MODEL)
    path = write_rows(tmp_path / "rows.jsonl", 300)
    good = path.read_text().splitlines()
    bad = [
        {"id": "zero", "vector": [0.0] * DIMENSION},
        {"id": "short", "vector": [1.0] * (DIMENSION - 1)},
        {"id": "", "vector": [1.0] * DIMENSION},
        {"id": "reserved", "vector": [1.0] * DIMENSION, "metadata": {"likeness.x": 1}},
        {"id": "large", "vector": [1e39] * DIMENSION},
    ]
    path.write_text("\n".join([*good[:100], *map(json.dumps, bad), *good[100:]]) + "\n")
    told = likeness(indexer, "import", path, "--collection", "photos", code=1)
    assert (told["stored"], told["refused"]) == (300, 5)
    assert [(r["line"], r["id"]) for r in told["refusals"]] == [
        (101, "zero"),
        (102, "short"),
        (103, ""),
        (104, "reserved"),
        (105, "large"),
    ]
    reasons = [refusal["reason"] for refusal in told["refusals"]]
    assert reasons == ["VECTOR_INVALID", "VECTOR_INVALID", "FIELD_INVALID", "METADATA_INVALID", "VECTOR_INVALID"]
    assert all(refusal["file"] == str(path) for refusal in told["refusals"])
    assert client.count("photos") == 300


def test_vectors_of_another_model_are_refused_at_once(indexer: Service, client: IndexerClient, tmp_path: Path) -> None:
    client.create_collection("photos", MODEL)
    path = write_rows(tmp_path / "rows.jsonl", 300)
    other = ("--model", "ViT-B-32", "--digest", "b2" * 32)
    told = likeness(indexer, "import", path, "--collection", "photos", *other, code=1)
    assert told["error"].startswith("MODEL_MISMATCH")
    assert client.count("photos") == 0


def test_lists_counts_and_facets_agree_with_what_is_stored(
    indexer: Service, client: IndexerClient, tmp_path: Path
) -> None:
    client.create_collection("photos", MODEL)
    likeness(indexer, "import", write_rows(tmp_path / "rows.jsonl", 1500), "--collection", "photos")
    of = ("--collection", "photos")
    listed = likeness(indexer, "list", *of, "--order-by", "n", "--descending", "--limit", "1200")
    assert [item["metadata"]["n"] for item in listed["items"]] == list(range(1499, 299, -1))
    assert listed["more"]
    assert likeness(indexer, "count", *of, "--where", "n < 100 and even = true") == {"count": 50}
    counted = likeness(indexer, "facets", "even", *of)
    assert {(v["value"], v["count"]) for v in counted["facets"][0]["values"]} == {(True, 750), (False, 750)}
