"""A start seen from outside, while what was stored is read into memory: Chroma's answers come when the test says."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from chassis.health import serving
from tests.integration.indexer.calls import PORT, Start, Stub, connect, count, create, item, like, query, refusal, unit
from tests.integration.indexer.calls import upsert as write
from tests.integration.indexer.held import held
from tests.processes import Service, eventually, launch, start_chroma

# Items are read in pages of 256.
SMALL, LARGE = 10, 600


@pytest.fixture
def filled(start: Start, tmp_path: Path) -> Iterator[str]:
    """A Chroma that holds two collections; its URL."""
    process, url = start_chroma(tmp_path / "chroma")
    try:
        service = start(LIKENESS_CHROMA_URL=url)
        with connect(service) as channel:
            stub = Stub(channel)
            for name, items in (("small", SMALL), ("large", LARGE)):
                create(stub, name)
                for first in range(0, items, 256):
                    write(stub, name, *(item(n, k=n) for n in range(first, min(items, first + 256))))
        assert service.stop() == 0
        yield url
    finally:
        process.kill()
        process.wait(10)


def told(stub: Stub) -> dict[str, tuple[str, int, int, int]]:
    """Of each collection how it is served, how many items of how many are loaded, and its rows in memory."""
    return {
        each.name: (pb.ServingMode.Name(each.mode).removeprefix("SERVING_MODE_"), each.loaded, each.total, each.rows)
        for each in stub.GetStatus(pb.GetStatusRequest(), timeout=30).collections
    }


def tells(stub: Stub, expected: dict[str, tuple[str, int, int, int]]) -> bool:
    return told(stub) == expected


def assert_not_ready(service: Service, stub: Stub) -> None:
    assert serving(service.address, 30) == "NOT_SERVING"
    assert serving(service.address, 30, service="live") is None
    for call in (lambda: count(stub, "small"), lambda: query(stub, "large", like(unit(0)))):
        error = refusal(call)
        assert error.reason == error_pb2.REASON_NOT_READY
        assert error.retry_after_s is not None


def progress(service: Service) -> list[tuple[int, int]]:
    """What the log says of the large collection."""
    lines = [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]
    of_large = [line for line in lines if (line["event"], line.get("collection")) == ("loading", "large")]
    return [(line["items"], line["of"]) for line in of_large]


def test_a_load_tells_how_far_it_is_and_nothing_is_answered_before_reads_of_all_are_complete(
    filled: str, tmp_path: Path
) -> None:
    with held(filled) as chroma:
        # Another data directory: there is no snapshot.
        env = {"LIKENESS_CHROMA_URL": chroma.url, "LIKENESS_DATA_DIR": str(tmp_path / "another")}
        service = launch("indexer", env, PORT, tmp_path)
        try:
            assert serving(service.address, 60) == "NOT_SERVING"
            with connect(service) as channel:
                stub = Stub(channel)
                started = {"small": ("LOADING", 0, SMALL, 0), "large": ("LOADING", 0, 0, 0)}
                assert eventually(partial(tells, stub, started), 30), told(stub)
                assert_not_ready(service, stub)
                chroma.let_pass(1)
                small = ("MEMORY", 0, 0, SMALL)
                for loaded in (0, 256, 512):
                    now = {"small": small, "large": ("LOADING", loaded, LARGE, 0)}
                    assert eventually(partial(tells, stub, now), 30), told(stub)
                    assert_not_ready(service, stub)
                    chroma.let_pass(1)
                service.wait_until_serving()
                assert told(stub) == {"small": small, "large": ("MEMORY", 0, 0, LARGE)}
                assert progress(service) == [(256, LARGE), (512, LARGE), (LARGE, LARGE)]
                assert (count(stub, "small"), count(stub, "large")) == (SMALL, LARGE)
                found = query(stub, "large", *(like(unit(n), 1) for n in range(0, LARGE, 10))).results
                assert [[hit.id for hit in each.hits] for each in found] == [[f"i{n}"] for n in range(0, LARGE, 10)]
        finally:
            service.kill()
