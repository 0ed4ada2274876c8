"""A gateway whose searches are answered by a reader: with the writer away, with the reader away, and with both back."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from likeness.gateway.v1 import gateway_pb2 as pb
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from chassis.errors import LikenessError
from likeness_client.errors import LikenessError as ClientError
from likeness_client.indexer import IndexerClient
from tests.integration.conftest import Stub, item, read
from tests.integration.indexer.calls import PORT, connect
from tests.pictures import noise
from tests.processes import Service, eventually, free_port, launch, metric, start_chroma, start_service
from tests.unit.embedder import tiny

METRICS = "LIKENESS_INDEXER_METRICS_PORT"
COLLECTION, PICTURES = "photos", 12
RIDE_OUT_S = 6.0


def name(number: int) -> str:
    """The id of a picture; in the order of the numbers."""
    return f"p{number:02}"


@dataclass
class Place:
    """One Chroma, a writer and a reader over it, and a gateway that knows both.

    Attributes:
        gateway: its address.
        stub: calls it.
        writer: the indexer that writes.
        reader: the one that follows.
        environments: of both, by role, each with its ports.
    """

    path: Path
    gateway: Service
    stub: Stub
    writer: Service
    reader: Service
    environments: dict[str, dict[str, str]] = field(default_factory=dict)

    def start(self, role: str) -> Service:
        """Starts one of the indexers again, where it was."""
        return start_service("indexer", self.environments[role], PORT, self.path)

    def queries(self, role: str) -> float:
        """How many searches an indexer has answered since it was started."""
        port = int(self.environments[role][METRICS])
        return metric(port, "likeness_indexer_calls_total", method="Query", transport="grpc", code="OK")

    def store(self, *numbers: int) -> None:
        """Takes pictures in through the gateway."""
        items = [item(n, noise(n), name(n)) for n in numbers]
        answer = self.stub.IndexBatch(
            pb.IndexBatchRequest(collection=COLLECTION, create_collection=True, items=items), timeout=60
        )
        assert [result.WhichOneof("outcome") for result in answer.results] == ["stored"] * len(items)

    def search(self, number: int) -> str:
        """The id of the picture most like one, by way of the gateway."""
        request = pb.SearchRequest(collection=COLLECTION, top_k=1)
        request.terms.add().image.encoded = noise(number)
        return self.stub.Search(request, timeout=60).hits[0].item.id

    def follows(self, count: int) -> bool:
        """Whether the reader has so many items within a while, as it says itself."""
        with IndexerClient(self.reader.address) as reader:

            def there() -> bool:
                try:
                    return reader.count(COLLECTION) == count
                except ClientError as error:
                    if error.reason != "COLLECTION_NOT_FOUND":
                        raise
                    return False

            return eventually(there)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:

        def keep(service: Service) -> Service:
            stack.callback(service.kill)
            return service

        model = {"LIKENESS_MODEL": tiny.save_folder(tmp_path / "model"), "LIKENESS_DEVICE": "cpu"}
        embedder = keep(launch("embedder", {**model, "LIKENESS_BACKEND": "torch"}, "LIKENESS_EMBEDDER_PORT", tmp_path))
        chroma, url = start_chroma(tmp_path / "chroma")
        stack.callback(chroma.wait, 10)
        stack.callback(chroma.kill)
        environments = {
            role: {
                "LIKENESS_ROLE": role,
                "LIKENESS_CHROMA_URL": url,
                "LIKENESS_DATA_DIR": str(tmp_path / role),
                "LIKENESS_FOLLOW_S": "0.2",
                PORT: str(free_port()),
                METRICS: str(free_port()),
            }
            for role in ("writer", "reader")
        }
        writer, reader = (keep(start_service("indexer", each, PORT, tmp_path)) for each in environments.values())
        embedder.wait_until_serving()
        env = {
            "LIKENESS_EMBEDDER_ADDRESS": embedder.address,
            "LIKENESS_INDEXER_ADDRESS": writer.address,
            "LIKENESS_INDEXER_READ_ADDRESS": reader.address,
            "LIKENESS_MEDIA_URL": str(tmp_path / "media"),
            "LIKENESS_RIDE_OUT_S": str(RIDE_OUT_S),
            "LIKENESS_HTTP_PORT": "-1",
        }
        gateway = keep(start_service("gateway", env, "LIKENESS_GATEWAY_PORT", tmp_path))
        channel = stack.enter_context(grpc.insecure_channel(gateway.address))
        made = Place(tmp_path, gateway, Stub(channel), writer, reader, environments)
        yield made
        keep(made.writer)
        keep(made.reader)


def refusal(call: Callable[[], object]) -> LikenessError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return read(caught.value)


def test_searches_outlive_the_writer_and_nothing_but_the_reader_answers_them(place: Place) -> None:
    place.store(*range(PICTURES))
    assert place.follows(PICTURES)
    assert place.search(3) == name(3)
    assert (place.queries("reader"), place.queries("writer")) == (1, 0)
    status = place.stub.GetStatus(pb.GetStatusRequest(), timeout=30)
    assert [each.name for each in status.services if each.serving] == ["embedder", "indexer", "reader"]

    assert place.writer.stop() == 0
    assert place.search(4) == name(4)
    first = place.stub.ListItems(pb.ListItemsRequest(collection=COLLECTION, page_size=7), timeout=60)
    labelling = pb.UpdateLabelsRequest(collection=COLLECTION, ids=[name(1)], add=["x"])
    for write in (lambda: place.store(PICTURES), lambda: place.stub.UpdateLabels(labelling, timeout=60)):
        error = refusal(write)
        assert error.reason_name == "INDEXER_UNAVAILABLE"
        assert f"the indexer at {place.writer.address}" in error.message

    place.writer = place.start("writer")
    place.store(PICTURES)
    assert place.follows(PICTURES + 1)
    assert place.search(PICTURES) == name(PICTURES)
    assert place.queries("writer") == 0

    assert place.reader.stop() == 0
    error = refusal(lambda: place.search(5))
    assert error.reason_name == "INDEXER_UNAVAILABLE"
    assert f"the reader at {place.reader.address}" in error.message
    place.store(PICTURES + 1)
    assert place.queries("writer") == 0, "it is not asked instead"

    place.reader = place.start("reader")
    assert place.search(5) == name(5)
    assert place.search(PICTURES + 1) == name(PICTURES + 1), "a reader is ready when it has everything"
    # The token of a page goes on at any indexer: at the reader's next process, and at the writer.
    rest = pb.ListItemsRequest(collection=COLLECTION, page_size=100, page_token=first.next_page_token)
    listed = [*first.items, *place.stub.ListItems(rest, timeout=60).items]
    assert [each.id for each in listed] == [name(n) for n in range(PICTURES + 2)]
    with connect(place.writer) as channel:
        at_writer = indexer_pb2.ListItemsRequest(collection=COLLECTION, page_size=100, page_token=first.next_page_token)
        page = indexer_pb2_grpc.IndexerServiceStub(channel).ListItems(at_writer, timeout=60)
    assert [each.id for each in page.items] == [each.id for each in listed[len(first.items) :]]
