"""A gateway and an indexer to ask, and the place where neither is."""

import socket
from collections.abc import Iterator

import pytest

from likeness_client.backoff import backoff_s
from likeness_client.errors import LikenessError
from likeness_client.indexer import Hnsw, IndexerClient, export
from likeness_client.items import Fingerprint
from tests.unit.client import fake_indexer
from tests.unit.client.fake_gateway import FakeGateway, serving
from tests.unit.client.fake_indexer import FakeIndexer


@pytest.fixture
def gateway() -> FakeGateway:
    """What the server at ``address`` answers with, and what it was asked."""
    return FakeGateway()


@pytest.fixture
def address(gateway: FakeGateway) -> Iterator[str]:
    """Where ``gateway`` is served."""
    with serving(gateway) as where:
        yield where


@pytest.fixture
def indexer() -> FakeIndexer:
    """What the server at ``indexer_address`` holds."""
    return FakeIndexer()


@pytest.fixture
def indexer_address(indexer: FakeIndexer) -> Iterator[str]:
    """Where ``indexer`` is served."""
    with fake_indexer.serving(indexer) as where:
        yield where


@pytest.fixture
def client(indexer_address: str) -> Iterator[IndexerClient]:
    """A client of ``indexer``."""
    with IndexerClient(indexer_address) as made:
        yield made


@pytest.fixture
def photos(client: IndexerClient) -> str:
    """An empty collection."""
    fingerprint = Fingerprint("starter", "a1" * 32, 4)
    return client.create_collection("photos", fingerprint, hnsw=Hnsw(ef_search=64), description="tests").name


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nothing listens: bound, so that nobody else takes it, and never listened on."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{reserved.getsockname()[1]}"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that broke is tried again at once, as often as ever."""

    def at_once(error: LikenessError, failures: int, *, may_pass: bool) -> float:
        return 0 * backoff_s(error, failures, may_pass=may_pass)

    monkeypatch.setattr(export, "backoff_s", at_once)
