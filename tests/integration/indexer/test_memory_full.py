"""The end of the memory that collections may take: writes are refused, everything else goes on."""

from functools import partial

import grpc
from likeness.common.v1 import error_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from chassis.errors import LikenessError
from tests.integration.indexer.calls import (
    LABELLED,
    Start,
    Stub,
    connect,
    count,
    create,
    item,
    like,
    query,
    refusal,
    unit,
    upsert,
)
from tests.processes import eventually

SETTINGS = {"LIKENESS_READS": "memory", "LIKENESS_MEMORY_BUDGET_MB": "1"}
NAME, OTHER = "full", "other"
TEXT = "much " * 800
CHUNK = 64


def chunk(first: int) -> list[pb.Item]:
    return [item(n, text=TEXT) for n in range(first, first + CHUNK)]


def fill(stub: Stub, first: int) -> tuple[int, LikenessError]:
    """Writes until that is refused; returns the number of the first item that was, and why."""
    for begin in range(first, first + 100 * CHUNK, CHUNK):
        try:
            assert upsert(stub, NAME, *chunk(begin)) == CHUNK
        except grpc.RpcError:
            return begin, refusal(partial(upsert, stub, NAME, *chunk(begin)))
    raise AssertionError("nothing was refused")


def named(first: int, end: int) -> set[str]:
    return {f"i{n}" for n in range(first, end)}


def listed(stub: Stub) -> set[str]:
    return {each.id for each in stub.ListItems(pb.ListItemsRequest(collection=NAME, page_size=1000)).items}


def taken(stub: Stub, n: int) -> bool:
    try:
        return upsert(stub, NAME, item(n, text=TEXT)) == 1
    except grpc.RpcError:
        return False


def refused_writes(stub: Stub, end: int) -> list[LikenessError]:
    """What the other kinds of write fail with."""
    updates = [pb.MetadataUpdate(id=f"i{n}", set=item(n, more=n).metadata) for n in range(CHUNK)]
    return [
        refusal(lambda: stub.UpdateMetadata(pb.UpdateMetadataRequest(collection=NAME, updates=updates))),
        refusal(lambda: stub.UpsertItemsStream(iter([pb.UpsertItemsStreamRequest(collection=NAME, items=chunk(end))]))),
    ]


def assert_read(stub: Stub, end: int) -> None:
    """What was acknowledged is there, and nothing of what was refused."""
    status = stub.GetStatus(pb.GetStatusRequest())
    assert status.memory_budget_bytes == 2**20
    assert {each.mode for each in status.collections} == {pb.SERVING_MODE_MEMORY}
    assert listed(stub) == named(0, end)
    assert count(stub, NAME) == end
    (found,) = query(stub, NAME, like(unit(end - 1), 1)).results
    assert [hit.id for hit in found.hits] == [f"i{end - 1}"]
    got = stub.GetItems(pb.GetItemsRequest(collection=NAME, ids=["i0"], fields=LABELLED))
    assert got.items[0].metadata == item(0, text=TEXT).metadata


def test_with_the_memory_full_writes_are_refused_reads_and_deletions_go_on_and_room_brings_writes_back(
    start: Start,
) -> None:
    service = start(**SETTINGS)
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, OTHER)
        upsert(stub, OTHER, *chunk(0))
        create(stub, NAME)
        end, refused = fill(stub, 0)
        for error in (refused, *refused_writes(stub, end)):
            assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, error_pb2.REASON_MEMORY_FULL)
            assert error.retry_after_s is None, "waiting alone does not help"
            for part in (" MiB of 1;", "raise LIKENESS_MEMORY_BUDGET_MB", "delete collections or items"):
                assert part in error.message
        assert_read(stub, end)

        stub.DeleteCollection(pb.DeleteCollectionRequest(name=OTHER))
        assert taken(stub, end), "a deleted collection makes room at once"
        more, refused = fill(stub, end)
        assert more > end
        assert refused.reason == error_pb2.REASON_MEMORY_FULL
        assert stub.DeleteItems(pb.DeleteItemsRequest(collection=NAME, ids=named(0, end))).deleted == end
        assert listed(stub) == named(end, more)
        # A write that is refused has what was deleted cleared away.
        assert eventually(lambda: taken(stub, more))
        assert listed(stub) == named(end, more + 1)
    service.kill()
    with connect(start(**SETTINGS)) as channel:
        assert listed(Stub(channel)) == named(end, more + 1), "nothing acknowledged is lost"
