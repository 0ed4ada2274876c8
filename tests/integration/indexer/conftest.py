"""Indexers as processes of their own, each with the Chroma it starts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.indexer.calls import PORT, Start, Stub, connect
from tests.processes import Service, start_service


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts indexers over one data directory; whatever still runs is killed afterwards."""
    started: list[Service] = []

    def start_one(**env: str) -> Service:
        places = {"LIKENESS_DATA_DIR": str(tmp_path / "data"), "LIKENESS_SNAPSHOTS": str(tmp_path / "snapshots")}
        service = start_service("indexer", {**places, **env}, PORT, tmp_path)
        started.append(service)
        return service

    yield start_one
    for service in started:
        service.kill()


@pytest.fixture(scope="module", params=["memory", "chroma"])
def indexer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One indexer for the tests that do it no harm: answering from memory, then from Chroma."""
    tmp_path = tmp_path_factory.mktemp("indexer")
    # A proxy in the environment must not come between the indexer and its Chroma.
    env = {
        "LIKENESS_DATA_DIR": str(tmp_path / "data"),
        "LIKENESS_SNAPSHOTS": str(tmp_path / "snapshots"),
        "LIKENESS_READS": request.param,
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    service = start_service("indexer", env, PORT, tmp_path)
    yield service
    service.stop()


@pytest.fixture(scope="module")
def stub(indexer: Service) -> Iterator[Stub]:
    with connect(indexer) as channel:
        yield Stub(channel)
