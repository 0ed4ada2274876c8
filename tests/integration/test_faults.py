"""Services killed, restarted and stopped while clients work: nothing acknowledged is lost, and the client is told."""

import signal
import threading
from collections.abc import Callable, Iterator

import grpc
import psutil
import pytest
from likeness.gateway.v1 import gateway_pb2

from chassis.health import wait_until_serving
from deploy.local import Services
from tests.integration.conftest import Item, Stub, connect, count, index, item, messages, read
from tests.pictures import noise

PICTURES = 240


def pictures() -> list[Item]:
    return [item(i, noise(i), f"p{i}") for i in range(PICTURES)]


class Ingest:
    """An ingest under way in a thread; what it was told is kept."""

    def __init__(self, services: Services, items: list[Item], collection: str) -> None:
        self.stored: set[str] = set()
        self.error: grpc.RpcError | None = None
        self.first_stored = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(services, items, collection))
        self._thread.start()

    def _run(self, services: Services, items: list[Item], collection: str) -> None:
        with connect(services) as channel:
            try:
                for answer in Stub(channel).IndexImages(messages(items, collection), timeout=100):
                    if answer.result.HasField("stored"):
                        self.stored.add(answer.result.id)
                        self.first_stored.set()
            except grpc.RpcError as error:
                self.error = error
                self.first_stored.set()

    def join(self) -> None:
        self._thread.join(110)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("victim", ["embedder", "indexer", "gateway"])
def test_killing_a_service_during_indexing_loses_nothing_acknowledged(
    own_services: Callable[..., Services], victim: str
) -> None:
    services = own_services(LIKENESS_RIDE_OUT_S="100")
    ingest = Ingest(services, pictures(), "killed")
    assert ingest.first_stored.wait(60)
    assert 0 < len(ingest.stored) < PICTURES, ingest.error  # the ingest is under way

    services.processes[victim].send_signal(signal.SIGKILL)
    services.processes[victim].wait()
    search = gateway_pb2.SearchRequest(collection="killed", terms=[gateway_pb2.Term(text="noise")])
    with connect(services) as channel:
        waiting = None if victim == "gateway" else Stub(channel).Search.future(search, timeout=110)
        services.start(victim)
        assert wait_until_serving(services.addresses["gateway"], 60) is None
        assert waiting is None or waiting.result().hits, "a search in between waits for the service to be back"
    ingest.join()

    with connect(services) as channel:
        stub = Stub(channel)
        request = gateway_pb2.GetItemsRequest(collection="killed", ids=sorted(ingest.stored))
        assert not stub.GetItems(request, timeout=30, wait_for_ready=True).missing_ids
        if victim == "gateway":
            assert ingest.error is not None
            assert ingest.error.code() is grpc.StatusCode.UNAVAILABLE
        again = index(stub, pictures(), "killed")
        assert {result.WhichOneof("outcome") for result in again.values()} == {"stored"}
        assert count(stub, "killed") == PICTURES


def test_a_stopping_gateway_answers_what_it_read_and_tells_the_client(own_services: Callable[..., Services]) -> None:
    services = own_services()
    over = threading.Event()

    def items() -> Iterator[Item]:
        yield from pictures()
        over.wait(60)  # the client would go on: the stream's end is the gateway's doing

    stored: set[str] = set()
    with connect(services) as channel, pytest.raises(grpc.RpcError) as caught:
        for answer in Stub(channel).IndexImages(messages(items(), "stopped"), timeout=100):
            if answer.result.HasField("stored"):
                if not stored:
                    services.processes["gateway"].send_signal(signal.SIGTERM)
                stored.add(answer.result.id)

    over.set()
    error = read(caught.value)
    assert (error.reason_name, error.code) == ("SHUTTING_DOWN", grpc.StatusCode.UNAVAILABLE)
    assert services.processes["gateway"].wait(60) == 0
    assert 0 < len(stored) <= PICTURES

    services.start("gateway")
    with connect(services) as channel:
        stub = Stub(channel)
        request = gateway_pb2.GetItemsRequest(collection="stopped", ids=sorted(stored))
        assert not stub.GetItems(request, timeout=30).missing_ids
        assert count(stub, "stopped") == len(stored)  # everything stored was also acknowledged


def test_chroma_killed_under_the_indexer_comes_back_and_so_do_answers(own_services: Callable[..., Services]) -> None:
    services = own_services()
    with connect(services) as channel:
        stub = Stub(channel)
        index(stub, pictures()[:40], "chroma")
        search = gateway_pb2.SearchRequest(collection="chroma", terms=[gateway_pb2.Term(id="p0")], top_k=39)
        before = [hit.item.id for hit in stub.Search(search, timeout=30).hits]
        chroma = [
            p for p in services.processes["indexer"].children(recursive=True) if "chroma" in " ".join(p.cmdline())
        ]
        assert chroma

        for process in chroma:
            process.kill()
        psutil.wait_procs(chroma)
        outcome = None
        try:
            stub.Search(search, timeout=30)
        except grpc.RpcError as error:
            outcome = read(error)
        assert outcome is None or outcome.code is grpc.StatusCode.UNAVAILABLE
        assert wait_until_serving(services.addresses["indexer"], 60) is None

        assert [hit.item.id for hit in stub.Search(search, timeout=30).hits] == before
        assert {r.WhichOneof("outcome") for r in index(stub, pictures()[40:80], "chroma").values()} == {"stored"}
        assert count(stub, "chroma") == 80


def test_with_a_service_down_the_gateway_says_which_and_answers_what_it_can(
    own_services: Callable[..., Services],
) -> None:
    services = own_services(LIKENESS_RIDE_OUT_S="2")
    with connect(services) as channel:
        stub = Stub(channel)
        index(stub, pictures()[:10], "down")
        services.processes["embedder"].kill()
        services.processes["embedder"].wait()

        by_id = stub.Search(gateway_pb2.SearchRequest(collection="down", terms=[gateway_pb2.Term(id="p0")]), timeout=30)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Search(gateway_pb2.SearchRequest(collection="down", terms=[gateway_pb2.Term(text="x")]), timeout=30)
        status = stub.GetStatus(gateway_pb2.GetStatusRequest(), timeout=30)

    assert len(by_id.hits) == 9
    error = read(caught.value)
    assert error.reason_name == "EMBEDDER_UNAVAILABLE"
    assert services.addresses["embedder"] in error.message
    assert {service.name: service.serving for service in status.services} == {"embedder": False, "indexer": True}
    assert not status.HasField("model")
    assert [collection.name for collection in status.collections] == ["down"]
