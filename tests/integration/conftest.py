"""The whole system as real processes on free ports, with a real Chroma and the starter model."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_status import rpc_status
from likeness.gateway.v1 import gateway_pb2, gateway_pb2_grpc

from chassis.errors import LikenessError, from_status
from deploy.local import Services, running
from tests.pictures import samples
from tests.processes import environment

Stub = gateway_pb2_grpc.SearchServiceStub
Item = gateway_pb2.IndexItem


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """The three services, shared by tests that do them no harm."""
    with running(tmp_path_factory.mktemp("services"), environment({})) as started:
        yield started


@pytest.fixture
def own_services(tmp_path: Path) -> Iterator[Callable[..., Services]]:
    """Starts three services that the test may kill, stop and start again; more settings as keyword arguments."""
    with ExitStack() as stack:

        def start(**settings: str) -> Services:
            return stack.enter_context(running(tmp_path, environment(settings)))

        yield start


@pytest.fixture
def stub(services: Services) -> Iterator[Stub]:
    """The shared gateway."""
    with connect(services) as channel:
        yield Stub(channel)


@pytest.fixture(scope="session")
def photographs(services: Services, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dozen photographs, by name; each is in the collection "photographs" under its name, labelled with it."""
    paths = samples(tmp_path_factory.mktemp("photographs") / "pictures")
    with connect(services) as channel:
        index(Stub(channel), (item(i, path, name) for i, (name, path) in enumerate(paths.items())), "photographs")
    return paths


def connect(services: Services) -> grpc.Channel:
    """A channel to the gateway."""
    again = [(f"grpc.{kind}_reconnect_backoff_ms", 200) for kind in ("initial", "max")]
    return grpc.insecure_channel(services.addresses["gateway"], options=[("grpc.max_send_message_length", -1), *again])


def item(sequence: int, picture: Path | bytes, item_id: str = "", label: str = "") -> Item:
    """A picture to take in, labelled with its id unless another label is given."""
    encoded = picture if isinstance(picture, bytes) else picture.read_bytes()
    made = Item(sequence=sequence, id=item_id, labels=[label or item_id] if label or item_id else [])
    made.image.encoded = encoded
    return made


def messages(
    items: Iterable[Item], collection: str, *, create: bool = True
) -> Iterator[gateway_pb2.IndexImagesRequest]:
    """What a client sends in IndexImages."""
    start = gateway_pb2.IndexStart(collection=collection, create_collection=create)
    yield gateway_pb2.IndexImagesRequest(start=start)
    for each in items:
        yield gateway_pb2.IndexImagesRequest(item=each)


def index(stub: Stub, items: Iterable[Item], collection: str) -> dict[int, gateway_pb2.IndexResult]:
    """Takes pictures in; returns the results by sequence, each asserted to come once."""
    results: dict[int, gateway_pb2.IndexResult] = {}
    for answer in stub.IndexImages(messages(items, collection), timeout=110):
        if answer.WhichOneof("message") == "result":
            assert answer.result.sequence not in results
            results[answer.result.sequence] = answer.result
    return results


def read(error: grpc.RpcError) -> LikenessError:
    """The typed error behind a failed call."""
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    assert status is not None, f"no details: {error.code()}: {error.details()}"
    return from_status(status)


def count(stub: Stub, collection: str) -> int:
    """How many items a collection holds."""
    status = stub.GetStatus(gateway_pb2.GetStatusRequest(), timeout=30)
    return next((int(found.count) for found in status.collections if found.name == collection), 0)
