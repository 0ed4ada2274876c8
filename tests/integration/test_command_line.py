"""The ``likeness`` command against the real services: index, search, get, delete, collections, status."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.demo import SAMPLES
from deploy.local import ROOT, Services, free_ports
from tests.pictures import hostile, samples

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def likeness(services: Services) -> Run:
    def run(*arguments: str | Path, server: str = services.addresses["gateway"]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("likeness"), *arguments],
            env={
                **os.environ,
                "LIKENESS_GATEWAY": server,
                "LIKENESS_INDEXER": services.addresses["indexer"],
                "COLUMNS": "120",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    return run


@pytest.fixture
def library(likeness: Run, tmp_path: Path) -> Path:
    """A directory of labelled pictures, indexed into the collection "cli"."""
    for name, path in samples(tmp_path / "flat").items():
        label = "space" if name in ("astronaut", "galaxies", "rocket-launch") else "earth"
        (tmp_path / "library" / label).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "library" / label / path.name)
    done = likeness("index", tmp_path / "library", "--label-from-parent", "--collection", "cli")
    assert done.returncode == 0, done.stderr
    return tmp_path / "library"


def hits(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["hits"]
    return found


def test_what_was_indexed_is_found_by_picture_text_and_condition(likeness: Run, library: Path) -> None:
    cat = library / "earth" / "cat.png"
    common = ("--collection", "cli", "--format", "json")

    by_picture = hits(likeness("search", "--image", cat, "--top-k", "1", *common))[0]
    by_text = hits(likeness("search", "--text", "a rocket launch", "--top-k", "1", *common))[0]
    space = hits(likeness("search", "--text", "a cat", "--where", 'label = "space" and width >= 300', *common))
    more = hits(likeness("search", "--id", by_picture["id"], *common))

    assert set(by_picture) == {"rank", "id", "score", "uri", "labels", "metadata"}
    assert (by_picture["rank"], by_picture["uri"], by_picture["labels"]) == (1, cat.as_uri(), ["earth"])
    assert by_picture["score"] == pytest.approx(1, abs=1e-4)
    assert by_text["uri"].endswith("rocket-launch.jpg")
    assert {tuple(hit["labels"]) for hit in space} == {("space",)}
    assert by_picture["id"] not in [hit["id"] for hit in more]


def test_csv_has_a_header_and_a_row_a_hit(likeness: Run, library: Path) -> None:
    done = likeness("search", "--text", "a cat", "--top-k", "3", "--collection", "cli", "--format", "csv")

    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert rows[0]["uri"] == (library / "earth" / "cat.png").as_uri()


def test_a_refused_file_is_named_with_its_reason_and_the_rest_is_stored(likeness: Run, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    samples(mixed)
    (mixed / "broken.jpg").write_bytes(hostile()["cut in half"][0])

    done = likeness("index", mixed, "--collection", "mixed")

    assert done.returncode == 1
    assert "broken.jpg" in done.stdout + done.stderr
    assert "IMAGE_DAMAGED" in done.stdout + done.stderr
    collections = json.loads(likeness("collections", "list", "--format", "json").stdout)["collections"]
    assert "mixed" in [collection["name"] for collection in collections]


def test_items_are_shown_and_deleted_by_id(likeness: Run, library: Path) -> None:
    common = ("--collection", "cli", "--format", "json")
    item_id = hits(likeness("search", "--text", "gravel", "--top-k", "1", *common))[0]["id"]

    shown = likeness("get", item_id, *common)
    deleted = likeness("delete", item_id, "--collection", "cli")
    gone = likeness("get", item_id, *common)

    assert shown.returncode == 0
    assert item_id in shown.stdout
    assert deleted.returncode == 0
    assert gone.returncode == 1


def test_the_gateway_and_the_indexer_tell_the_same_of_collections_and_items(
    likeness: Run, library: Path, services: Services
) -> None:
    def told(*arguments: str) -> dict[str, Any]:
        done = likeness(*arguments, "--format", "json")
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    at_indexer = ("--indexer", services.addresses["indexer"])
    made = told("collections", "create", "empty", "--metric", "l2", "--description", "nothing yet")["collection"]
    known = told("collections", "describe", "empty", *at_indexer)["collection"]
    assert made == {key: value for key, value in known.items() if key not in ("hnsw", "earlier_uids")}
    assert told("alias", "set", "also-cli", "cli")["previous"] == ""
    assert told("alias", "list") == told("alias", "list", *at_indexer)
    (item,) = told("list", "--collection", "also-cli", "--order-by", "uri", "--limit", "1")["items"]
    (stored,) = told("list", "--collection", "also-cli", "--order-by", "uri", "--limit", "1", *at_indexer)["items"]
    assert {**item["metadata"], "uri": item["uri"], "labels": item["labels"]} == stored["metadata"]
    labels = ("facets", "labels", "--collection", "cli")
    assert told(*labels) == told(*labels, *at_indexer)
    assert told("alias", "delete", "also-cli", *at_indexer)["collection"] == "cli"
    assert told("collections", "delete", "empty", "--yes") == {"deleted": "empty"}


def test_status_names_services_model_and_collections(likeness: Run, library: Path) -> None:
    done = likeness("status")

    assert done.returncode == 0
    for word in ("embedder", "indexer", "starter", "cli"):
        assert word in done.stdout


def test_wrong_usage_exits_with_2_and_a_refused_search_with_1(likeness: Run, library: Path) -> None:
    assert likeness("search", "--collection", "cli").returncode == 2
    assert likeness("search", "--text", "x", "--where", "width >=", "--collection", "cli").returncode == 2
    nowhere = likeness("search", "--text", "x", "--collection", "nowhere")
    assert nowhere.returncode == 1
    assert "nowhere" in nowhere.stderr
    assert "Traceback" not in nowhere.stderr


def test_with_no_server_the_command_says_where_it_looked_and_what_to_do(likeness: Run) -> None:
    address = f"127.0.0.1:{free_ports()['LIKENESS_GATEWAY_PORT']}"

    done = likeness("search", "--text", "x", server=address)

    assert done.returncode == 1
    assert address in done.stderr
    assert "make up" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_ends_with_the_right_pictures_first() -> None:
    environment = {**os.environ, "COLUMNS": "120"}
    for name in ("IMAGES", "QUERY", "TEXT"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "deploy.demo"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    sections = done.stdout.split("── ")[1:]
    firsts = {section.splitlines()[0]: first_hit(section) for section in sections if ": likeness search" in section}
    assert len(firsts) == 4
    for heading, first in firsts.items():
        expected = "rocket-launch" if "rocket" in heading and "cat" not in heading else "cat"
        if "--image" in heading and "--text" in heading:
            assert first in ("rocket-launch", "cat"), done.stdout
        else:
            assert first == expected, done.stdout


def first_hit(section: str) -> str:
    """The name of the first picture that a table of hits shows."""
    table = section.split("\n", 1)[1]
    names = [Path(name).stem for name in SAMPLES.values()]
    return min((name for name in names if name in table), key=table.index)
