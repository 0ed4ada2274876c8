"""What the contract takes and Chroma cannot answer is refused by name where Chroma serves, and nowhere else."""

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from chassis.errors import LikenessError, from_rpc_error
from indexer import chroma_reader, store
from indexer.settings import Reads
from tests.integration.indexer.calls import FINGERPRINT, compared, item, like, unit
from tests.unit.indexer.test_service_calls import NAME, serving

ITEMS = 6
ALL = compared("k", "GE", 0)
LONG = compared("s", "NOT_IN", *(f"{n}" + "\x01" * 1000 for n in range(16)))


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chroma_reader, "MOST_READ", ITEMS - 2)
    monkeypatch.setattr(chroma_reader, "MOST_LISTED", ITEMS - 1)
    monkeypatch.setattr(store, "_MOST_BYTES", store._BESIDE_BYTES + 64 * 2**10)


def calls(stub: Any) -> list[tuple[str, Awaitable[Any]]]:
    """Requests, each with what its refusal is to name; the one that deletes comes last."""
    facets = [pb.FacetRequest(key="k", limit=3)]
    return [
        ("facets needs every one", stub.GetFacets(pb.GetFacetsRequest(collection=NAME, facets=facets), timeout=60)),
        (
            "facets needs every one",
            stub.GetFacets(pb.GetFacetsRequest(collection=NAME, facets=facets, filter=ALL), timeout=60),
        ),
        ("an order needs every one", stub.ListItems(pb.ListItemsRequest(collection=NAME, order_by="k"), timeout=60)),
        ("a list needs every one", stub.ListItems(pb.ListItemsRequest(collection=NAME), timeout=60)),
        ("a list needs every one", stub.ListItems(pb.ListItemsRequest(collection=NAME, filter=ALL), timeout=60)),
        ("written out", stub.CountItems(pb.CountItemsRequest(collection=NAME, filter=LONG), timeout=60)),
        ("written out", stub.ListItems(pb.ListItemsRequest(collection=NAME, filter=LONG), timeout=60)),
        ("written out", stub.GetFacets(pb.GetFacetsRequest(collection=NAME, facets=facets, filter=LONG), timeout=60)),
        ("written out", stub.Query(pb.QueryRequest(collection=NAME, queries=[like(unit(0), 10, LONG)]), timeout=60)),
        ("written out", exported(stub)),
        ("written out", stub.DeleteItems(pb.DeleteItemsRequest(collection=NAME, filter=LONG), timeout=60)),
    ]


async def exported(stub: Any) -> list[Any]:
    return [each async for each in stub.ExportItems(pb.ExportItemsRequest(collection=NAME, filter=LONG), timeout=60)]


async def outcome(call: Awaitable[Any]) -> LikenessError | None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error, error_pb2.REASON_UNSPECIFIED, "")
    return None


async def fill(stub: Any) -> None:
    await stub.CreateCollection(pb.CreateCollectionRequest(name=NAME, fingerprint=FINGERPRINT), timeout=60)
    items = [item(n, k=n) for n in range(ITEMS)]
    await stub.UpsertItems(pb.UpsertItemsRequest(collection=NAME, items=items), timeout=60)


async def count(stub: Any) -> int:
    answer = await stub.CountItems(pb.CountItemsRequest(collection=NAME, filter=ALL), timeout=60)
    return int(answer.count)


@pytest.mark.usefixtures("low_limits")
async def test_where_chroma_serves_each_is_refused_by_name_and_nothing_is_done(tmp_path: Path) -> None:
    async with serving(tmp_path, reads=Reads.CHROMA) as stub:
        await fill(stub)
        for name, call in calls(stub):
            error = await outcome(call)
            assert error is not None, name
            assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, error_pb2.REASON_FILTER_INVALID)
            assert error.violations[0].field == "filter"
            assert error.retry_after_s is None
            assert name in error.message
            assert "serve the collection from memory (LIKENESS_READS)" in error.message
        assert await count(stub) == ITEMS


@pytest.mark.usefixtures("low_limits")
async def test_where_memory_serves_all_of_it_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path, reads=Reads.MEMORY) as stub:
        await fill(stub)
        for name, call in calls(stub):
            assert await outcome(call) is None, name
        assert await count(stub) == 0, "the last has deleted what it was true of"
