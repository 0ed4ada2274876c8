"""A collection moves to another model through the gateway, while clients go on asking by the alias."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from likeness.gateway.v1 import gateway_pb2 as pb
from likeness.gateway.v1 import gateway_pb2_grpc

from likeness_client import Client, LikenessError, Term
from likeness_client.indexer import IndexerClient
from tests.integration import recipes
from tests.pictures import noise
from tests.processes import Service, launch, start_service
from tests.unit.embedder import tiny

PICTURES = [noise(seed) for seed in range(40)]
# Answers of each client that must come before, during and after the move.
ENOUGH = 20


@dataclass
class Place:
    """Two embedders of two models, a gateway in front of each, one indexer, one place for originals."""

    path: Path
    indexer: str
    old: str
    new: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    path = tmp_path_factory.mktemp("reembed")
    with ExitStack() as stack:

        def keep(service: Service) -> Service:
            stack.callback(service.kill)
            return service

        models = [tiny.save_folder(path / f"model-{seed}", seed) for seed in (1, 2)]
        embedders = [
            keep(
                launch(
                    "embedder",
                    {"LIKENESS_MODEL": each, "LIKENESS_DEVICE": "cpu", "LIKENESS_BACKEND": "torch"},
                    "LIKENESS_EMBEDDER_PORT",
                    path,
                )
            )
            for each in models
        ]
        indexer = keep(
            start_service("indexer", {"LIKENESS_DATA_DIR": str(path / "data")}, "LIKENESS_INDEXER_PORT", path)
        )
        gateways = []
        for embedder in embedders:
            embedder.wait_until_serving()
            env = {
                "LIKENESS_EMBEDDER_ADDRESS": embedder.address,
                "LIKENESS_INDEXER_ADDRESS": indexer.address,
                "LIKENESS_MEDIA_URL": str(path / "media"),
                "LIKENESS_HTTP_PORT": "-1",
            }
            gateways.append(keep(start_service("gateway", env, "LIKENESS_GATEWAY_PORT", path)))
        yield Place(path, indexer.address, gateways[0].address, gateways[1].address)


def take_in(address: str) -> None:
    options = pb.IngestOptions(keep_originals=True, no_thumbnails=True)

    def messages() -> Iterator[pb.IndexImagesRequest]:
        yield pb.IndexImagesRequest(start=pb.IndexStart(collection="photos", create_collection=True, options=options))
        for i, encoded in enumerate(PICTURES):
            item = pb.IndexItem(sequence=i, id=f"p{i}", labels=["photo"])
            item.image.encoded = encoded
            yield pb.IndexImagesRequest(item=item)

    with grpc.insecure_channel(address) as channel:
        answers = list(gateway_pb2_grpc.SearchServiceStub(channel).IndexImages(messages(), timeout=100))
    assert sum(answer.result.HasField("stored") for answer in answers) == len(PICTURES)


class Asking:
    """A client that asks by the alias, over and over, at the gateway of whichever model the alias is of."""

    def __init__(self, place: Place, ask: Callable[[Client, int], str]) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[Exception] = []
        self._place, self._ask = place, ask
        self._ends = threading.Event()
        self._progress = threading.Condition()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with Client(self._place.old) as old, Client(self._place.new) as new:
            client, turn = old, 0
            while not self._ends.is_set():
                turn = (turn + 1) % len(PICTURES)
                try:
                    answered = self._ask(client, turn)
                except LikenessError as error:
                    if error.reason == "MODEL_MISMATCH" and client is old:
                        client = new
                        continue
                    answered, failure = "", error
                    self.failures.append(failure)
                except AssertionError as error:
                    answered = ""
                    self.failures.append(error)
                with self._progress:
                    self.answers[answered] += 1
                    self._progress.notify_all()

    def until(self, digest: str, more: int = ENOUGH) -> None:
        """Waits for so many more answers of a model."""
        with self._progress:
            wanted = self.answers[digest] + more
            assert self._progress.wait_for(lambda: self.failures or self.answers[digest] >= wanted, 100)
        assert not self.failures

    def stop(self) -> None:
        self._ends.set()
        self._thread.join()


def by_picture(client: Client, turn: int) -> str:
    """The picture itself is found first, and as alike as can be: vector and collection are of one model."""
    found = client.search(Term.image(PICTURES[turn]), collection="current", top_k=1)
    assert found.hits[0].item.id == f"p{turn}"
    assert found.hits[0].score > 0.999
    return found.fingerprint.digest


def by_text(client: Client, turn: int) -> str:
    """All that is answered is of the model that is told, also what the gateway remembers of the text."""
    found = client.search(Term.text("a photo"), collection="current", top_k=5)
    assert len(found.hits) == 5
    return found.fingerprint.digest


def by_id(client: Client, turn: int) -> str:
    """Without a picture or text any gateway will do."""
    found = client.search(Term.id(f"p{turn}"), collection="current", top_k=3)
    assert len(found.hits) == 3
    return found.fingerprint.digest


def test_while_a_collection_moves_to_another_model_no_query_fails_and_none_mixes_the_two(place: Place) -> None:
    take_in(place.old)
    with Client(place.old) as old, Client(place.new) as new:
        old.set_alias("current", "photos")
        before, after = old.collection("current").fingerprint.digest, new.status().model.fingerprint.digest  # type: ignore[union-attr]
        assert before != after
        clients = [Asking(place, ask) for ask in (by_picture, by_text, by_id)]
        try:
            for client in clients:
                client.until(before)
            printed = recipes.run(
                recipes.block("reembed-gateway"), place.path, {"NEW_GATEWAY": place.new, "LIKENESS_GATEWAY": place.old}
            )
            for client in clients:
                client.until(after)
            new.delete_collection("photos")
            for client in clients:
                client.until(after)
        finally:
            for client in clients:
                client.stop()
        told = json.loads(printed)
        remembered = new.search(Term.id("p3"), collection="photos-v2", top_k=1)

    assert (told["embedded"], told["failed"], told["switched"]) == (len(PICTURES), 0, True)
    assert all(set(client.answers) == {before, after} for client in clients)
    assert remembered.fingerprint.digest == after
    assert remembered.hits[0].item.labels == ("photo",)


def test_originals_of_items_that_the_indexer_has_erased_go_when_these_are_deleted_at_the_gateway(place: Place) -> None:
    take_in(place.old)
    with Client(place.old) as gateway, IndexerClient(place.indexer) as indexer:
        folder = place.path / "media" / gateway.collection("photos").uid
        assert indexer.delete("photos", ids=["p0", "p1"]) == 2
    assert len(list(folder.rglob("*.original"))) == len(PICTURES)

    block = recipes.block("erase-media", {"id-007": "p0", "id-008": "p1"})
    printed = recipes.run(block, place.path, {"LIKENESS_GATEWAY": place.old})

    assert printed.startswith("Deleted 0 from collection photos; 2 of the ids were not there")
    assert len(list(folder.rglob("*.original"))) == len(PICTURES) - 2
