"""Every recipe of docs/operate.md, run as it stands there, and what it promises."""

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from likeness_client import LikenessError, Term
from likeness_client.indexer import IndexerClient, Item, QueryResult
from likeness_client.items import Fingerprint
from tests.integration import recipes
from tests.processes import Service, free_port, start_service

PORT = "LIKENESS_INDEXER_PORT"
DIMENSION = 8
ITEMS = 400
QUERIES = 500
DIGEST = "a1" * 32
NEW_DIGEST = "b2" * 32
MODEL = Fingerprint("my-model", DIGEST, DIMENSION)


def embed(text: str, model: Fingerprint) -> tuple[float, ...]:
    """Stands for a model: a direction of its own for each text and model, in the model's dimension."""
    seed = int.from_bytes(hashlib.sha256(f"{model.digest} {text}".encode()).digest()[:8])
    return tuple(np.random.default_rng(seed).normal(size=model.dimension).astype(np.float32).tolist())


def items() -> list[Item]:
    return [
        Item(
            f"id-{n:03}",
            {
                "n": n,
                "share": n / 8,
                "kind": "cat" if n % 3 else "dog",
                "name": f"the picture of number {n:05}",
                "tags": ["x"],
            },
            embed(f"id-{n:03}", MODEL),
        )
        for n in range(ITEMS)
    ]


@dataclass
class Place:
    """A directory with an indexer in it, as an operator has.

    Attributes:
        path: where the recipes run.
        indexer: the indexer; its data directory is ``path/data``, its backups go to ``path/snapshots``.
        client: of the indexer.
    """

    path: Path
    indexer: Service
    client: IndexerClient
    started: list[Service] = field(default_factory=list)

    def run(self, recipe: str, **variables: str) -> str:
        """Runs a recipe against the indexer."""
        return recipes.run(recipes.block(recipe), self.path, {"LIKENESS_INDEXER": self.indexer.address, **variables})


def start(path: Path) -> Service:
    env = {
        "LIKENESS_DATA_DIR": str(path / "data"),
        "LIKENESS_SNAPSHOTS": str(path / "snapshots"),
        "LIKENESS_INDEXER_METRICS_PORT": "0",
    }
    return start_service("indexer", env, PORT, path)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An indexer with a collection "photos" of 400 items."""
    indexer = start(tmp_path)
    with IndexerClient(indexer.address) as client:
        made = Place(tmp_path, indexer, client)
        client.create_collection("photos", MODEL, description="what the recipes work on")
        client.upsert("photos", items())
        yield made
    made.indexer.kill()


def answers(client: IndexerClient, collection: str = "photos") -> list[QueryResult]:
    """What 500 queries are answered with, every second one exactly: ids, scores, metadata and vectors."""
    model = client.collection(collection).collection.fingerprint
    return [
        client.query(
            collection, Term.vector(embed(f"query {n}", model)), top_k=10, exact=bool(n % 2), include_vectors=True
        )
        for n in range(QUERIES)
    ]


def assert_alike(some: list[QueryResult], others: list[QueryResult]) -> None:
    """The same items with the same metadata in the same order; scores to the last digit but one."""
    told = [[[(hit.item.id, hit.item.metadata) for hit in one.hits] for one in many] for many in (some, others)]
    assert told[0] == told[1]
    one, other = (np.array([hit.score for result in many for hit in result.hits]) for many in (some, others))
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-7)


def traces(path: Path, *sought: bytes) -> list[Path]:
    """The files below a directory that hold one of these."""
    files = [file for file in path.rglob("*") if file.is_file()]
    assert files
    return [file for file in files if any(part in file.read_bytes() for part in sought)]


def test_every_recipe_of_the_document_is_run_by_a_test() -> None:
    tests = [Path(__file__), Path(__file__).with_name("test_reembed.py")]
    run = {
        name for test in tests for name in re.findall(r'(?:run|block)\("([a-z-]+)"', test.read_text(encoding="utf-8"))
    }
    assert set(recipes.blocks()) == run


def test_after_a_total_loss_a_backup_answers_as_the_collection_did(place: Place) -> None:
    before = answers(place.client)
    assert "whole" in place.run("backup")
    place.indexer.kill()
    shutil.rmtree(place.path / "data")
    place.indexer = start(place.path)
    with IndexerClient(place.indexer.address) as client:
        assert client.collections() == []
        assert "Restored collection photos: 400 items" in place.run("restore")
        assert answers(client) == before


def test_a_backup_is_restored_beside_the_collection_and_switched_to(place: Place) -> None:
    before = answers(place.client)
    place.run("backup")
    place.client.delete("photos", where="n >= 100")
    assert "\n400\n" in place.run("restore-beside")
    assert place.client.count("photos") == 100
    assert place.client.count("current") == 400
    assert answers(place.client, "current") == before


def test_an_export_imported_again_answers_as_the_collection_did(place: Place) -> None:
    place.run("export")
    assert len((place.path / "cats.jsonl").read_text().splitlines()) == 1 + place.client.count(
        "photos", where='kind = "cat"'
    )
    assert '"vector"' not in (place.path / "names.jsonl").read_text().split("\n", 1)[1]
    place.run("import")
    assert_alike(answers(place.client, "photos-copy"), answers(place.client))
    copy = place.client.collection("photos-copy").collection
    assert (copy.fingerprint, copy.description) == (MODEL, "what the recipes work on")


def write_arrays(path: Path) -> NDArray[np.float32]:
    vectors = np.array([item.vector for item in items()], np.float32)
    np.save(path / "vectors.npy", vectors)
    rows = [f"{item.id},{item.metadata['n']},{item.metadata['kind']}" for item in items()]
    (path / "items.csv").write_text("\n".join(["id,n,kind", *rows]) + "\n")
    return vectors


def test_an_array_and_a_table_become_a_collection(place: Place) -> None:
    vectors = write_arrays(place.path)
    assert "Stored 400 items" in place.run("import-arrays", DIGEST=DIGEST)
    found = place.client.query("shoes", Term.vector(vectors[7].tolist()), top_k=1).hits[0]
    assert (found.item.id, dict(found.item.metadata)) == ("id-007", {"kind": "cat", "n": 7})
    assert place.client.collection("shoes").collection.fingerprint == Fingerprint("my-model", DIGEST, DIMENSION)


def test_a_library_is_reembedded_and_switched_while_clients_query_it(place: Place) -> None:
    place.run("reembed-alias")
    known: dict[str, object] = {"embed": embed}
    exec(recipes.block("reembed-client"), known)
    search_by: Callable[[IndexerClient, str], Callable[..., QueryResult]] = known["Search"]  # type: ignore[assignment]
    ends, failures, counts = threading.Event(), [], {DIGEST: 0, NEW_DIGEST: 0}

    def ask(number: int) -> None:
        try:
            with IndexerClient(place.indexer.address) as client:
                search = search_by(client, "current")
                turn = number
                while not ends.is_set():
                    turn = (turn + 7) % ITEMS
                    result = search(f"id-{turn:03}", top_k=3)
                    # The nearest of an item's own vector is the item, in its own model's collection and no other.
                    assert result.hits[0].item.id == f"id-{turn:03}"
                    assert result.hits[0].score > 0.999
                    counts[result.fingerprint.digest] += 1
        except BaseException as error:
            failures.append(error)
            raise

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for client in clients:
        client.start()
    try:
        place.run("reembed-create", NEW_DIGEST=NEW_DIGEST)
        here = {"embed": embed, "INDEXER": place.indexer.address}
        code = recipes.block("reembed-fill").replace('"ids.jsonl"', repr(str(place.path / "ids.jsonl")))
        exec(code, here)
        before_the_switch = dict(counts)
        assert place.run("reembed-switch").splitlines()[:2] == ["400", "400"]
        with pytest.raises(LikenessError) as caught:
            place.client.query("current", Term.vector(embed("id-001", MODEL)), expected_fingerprint=MODEL)
        assert caught.value.reason == "MODEL_MISMATCH"
        until = counts[NEW_DIGEST] + 100
        while counts[NEW_DIGEST] < until and not failures:
            assert place.client.count("current") == ITEMS
        place.run("reembed-clean")
        until = counts[NEW_DIGEST] + 100
        while counts[NEW_DIGEST] < until and not failures:
            assert place.client.count("current") == ITEMS
    finally:
        ends.set()
        for client in clients:
            client.join()
    assert not failures
    assert before_the_switch[NEW_DIGEST] == 0
    assert before_the_switch[DIGEST] > 0
    assert [found.name for found in place.client.collections()] == ["photos-v2"]


def test_what_is_erased_is_nowhere_under_the_data_directory(place: Place) -> None:
    read = place.client.get("photos", ["id-007", "id-008"], include_vectors=True).items
    sought = [item.id.encode() for item in read]
    sought += [str(item.metadata["name"]).encode() for item in read]
    sought += [np.array(item.vector, "<f4").tobytes()[4:] for item in read]
    place.run("backup")
    assert traces(place.path / "data", *sought), "it is there before"
    printed = place.run("erase")
    assert "Deleted 2 items." in printed
    assert "Nothing is left of them." in printed
    assert re.search(r"Backups deleted:\n  photos/", printed)
    assert traces(place.path / "data", *sought) == []
    assert not [file for file in (place.path / "snapshots").rglob("*") if file.is_file()]
    assert place.client.count("photos") == ITEMS - 2


def test_a_rebuild_applies_what_was_changed_and_keeps_the_answers(place: Place) -> None:
    place.client.delete("photos", where="n >= 200")
    before = answers(place.client)
    printed = place.run("rebuild")
    assert "applies after `likeness rebuild photos`" in printed
    assert re.search(r"HNSW +max_neighbors 32, ef_construction 200, ef_search default", printed)
    assert_alike(answers(place.client), before)


def documented_ports(*ports: str) -> dict[str, str]:
    return {port: str(free_port()) for port in ports}


def test_readers_with_and_without_memory_answer_what_the_writer_took(tmp_path: Path) -> None:
    write_arrays(tmp_path)
    ports = documented_ports("50052", "50053", "50054", "8000")
    variables = {"LIKENESS_SNAPSHOTS": str(tmp_path / "snapshots")}
    with ExitStack() as stack:
        stack.enter_context(recipes.left_running(recipes.block("readers", ports), tmp_path, variables))
        commands, count = recipes.block("readers-use", ports).rsplit("likeness ", 1)
        recipes.run(commands, tmp_path, {"DIGEST": DIGEST})
        with IndexerClient(f"127.0.0.1:{ports['50053']}") as reader:
            until_it_follows(reader)
            with pytest.raises(LikenessError) as caught:
                reader.delete("photos", ids=["id-000"])
            assert caught.value.reason == "READ_ONLY"
            assert reader.status().role == "reader"
        assert recipes.run(f"likeness {count}", tmp_path, {}) == "400\n"
        stateless = stack.enter_context(recipes.left_running(recipes.block("stateless", ports), tmp_path, variables))
        assert stateless.splitlines()[-1] == "400"


def until_it_follows(reader: IndexerClient) -> None:
    """Returns when a reader has all that the writer took."""
    pause = threading.Event()
    for _ in range(300):
        try:
            if reader.count("photos") == ITEMS:
                return
        except LikenessError as error:
            if error.reason != "COLLECTION_NOT_FOUND":
                raise
        pause.wait(0.1)
    raise AssertionError("the reader does not follow")


def test_a_collection_moves_to_another_chroma(place: Place) -> None:
    ports = documented_ports("50062", "8000") | {"50052": place.indexer.address.rsplit(":", 1)[1]}
    chroma = f"chroma run --path elsewhere --host 127.0.0.1 --port {ports['8000']} > chroma.log 2>&1 &"
    block = recipes.block("move", ports)
    with (
        recipes.left_running(f"{chroma}\n{block}", place.path, {}) as printed,
        IndexerClient(f"127.0.0.1:{ports['50062']}") as moved,
    ):
        assert printed.splitlines()[-1] == "400"
        assert_alike(answers(moved), answers(place.client))


def test_the_metrics_that_the_document_names_exist(place: Place) -> None:
    document = recipes.DOCUMENT.read_text(encoding="utf-8")
    named = set(re.findall(r"`(likeness_indexer_[a-z_]+)`", document))
    place.client.count("photos")
    lines = [json.loads(line) for line in place.indexer.log.splitlines() if line.startswith("{")]
    (port,) = [line["port"] for line in lines if line["event"] == "metrics"]
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=10).raise_for_status().text
    # By their declarations: the values of a collection come with the first refresh, the recall after a minute.
    there = set(re.findall(r"^# TYPE (likeness_indexer_[a-z_]+)", text, re.M))
    assert len(named) >= 10
    assert named <= there
