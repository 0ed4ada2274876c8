"""Reading a collection as a stream."""

import threading
import time
from collections.abc import Iterator

import grpc
import psutil
import pytest
from likeness.common.v1 import error_pb2, metadata_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from chassis import metadata
from tests.integration.indexer.calls import (
    EVERYTHING,
    FINGERPRINT,
    LABELLED,
    Start,
    Stub,
    compared,
    connect,
    create,
    item,
    refusal,
    unit,
    upsert,
)
from tests.processes import Service

COUNT = 700
# Ids whose order by code point is neither that of UTF-16 nor that of a language.
AWKWARD = ["Z", "a", "é", "\uffff", "𝄞", "i10", "i1", "i 1"]


@pytest.fixture(scope="module")
def exported(stub: Stub) -> str:
    create(stub, "exported")
    upsert(stub, "exported", *(item(n, width=n, tags=["a", f"t{n}"]) for n in range(COUNT)))
    upsert(stub, "exported", *(pb.Item(id=item_id, vector=unit(n)) for n, item_id in enumerate(AWKWARD)))
    return "exported"


def export(stub: Stub, name: str, **asked: object) -> tuple[pb.ExportItemsResponse, list[pb.Item]]:
    first, *rest = stub.ExportItems(pb.ExportItemsRequest(collection=name, **asked))  # type: ignore[arg-type]
    assert not first.items
    assert all(part.items for part in rest)
    assert all(part.ByteSize() < 2 * 2**20 for part in rest)
    return first, [each for part in rest for each in part.items]


def test_an_export_has_every_item_once_in_the_order_of_the_ids(stub: Stub, exported: str) -> None:
    first, items = export(stub, exported, fields=EVERYTHING)
    expected = sorted({*(f"i{n}" for n in range(COUNT)), *AWKWARD})
    assert [each.id for each in items] == expected
    assert (first.total, first.collection.count) == (len(expected), len(expected))
    assert (first.collection.name, first.collection.fingerprint) == (exported, FINGERPRINT)
    request = pb.GetItemsRequest(collection=exported, ids=expected, fields=EVERYTHING)
    assert items == list(stub.GetItems(request).items)


def test_an_export_holds_what_was_asked_for(stub: Stub, exported: str) -> None:
    _, bare = export(stub, exported)
    _, labelled = export(stub, exported, fields=LABELLED)
    assert not any(each.HasField("vector") or each.HasField("metadata") for each in bare)
    assert all(each.HasField("metadata") and not each.HasField("vector") for each in labelled)


def test_an_export_goes_on_behind_an_id_and_leaves_out_what_the_filter_does(
    stub: Stub, exported: str, indexer: Service
) -> None:
    ids = sorted(f"i{n}" for n in range(200))
    first, items = export(stub, exported, after_id="i150", filter=compared("width", "LT", 200))
    assert [each.id for each in items] == [item_id for item_id in ids if item_id > "i150"]
    assert first.total in (0, len(items))
    _, from_nowhere = export(stub, exported, after_id="i150x", filter=compared("width", "LT", 200))
    assert from_nowhere == items
    last, none = export(stub, exported, after_id="\U0010ffff")
    assert (last.total, none) == (0, [])


def test_an_export_of_nothing_says_so(stub: Stub) -> None:
    create(stub, "nothing")
    first, items = export(stub, "nothing", fields=EVERYTHING)
    assert (first.total, items) == (0, [])


def test_an_alias_is_exported_as_its_collection(stub: Stub, exported: str) -> None:
    stub.SetAlias(pb.SetAliasRequest(alias="current", collection=exported))
    first, _ = export(stub, "current", filter=compared("width", "EQ", 1))
    assert first.collection.name == exported


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (pb.ExportItemsRequest(collection="absent"), error_pb2.REASON_COLLECTION_NOT_FOUND),
        (pb.ExportItemsRequest(collection="../x"), error_pb2.REASON_FIELD_INVALID),
        (pb.ExportItemsRequest(collection="exported", after_id="a\nb"), error_pb2.REASON_FIELD_INVALID),
        (pb.ExportItemsRequest(collection="exported", filter=metadata_pb2.Filter()), error_pb2.REASON_FILTER_INVALID),
    ],
)
def test_a_bad_request_is_refused(
    stub: Stub, exported: str, request_: pb.ExportItemsRequest, reason: error_pb2.Reason.ValueType
) -> None:
    assert refusal(lambda: list(stub.ExportItems(request_))).reason == reason


def large(n: int, version: int) -> pb.Item:
    """An item of some 8 kB."""
    return pb.Item(
        id=f"i{n:04}",
        vector=unit(n + version),
        metadata=metadata.to_proto({"version": version, "a": "x" * 4000, "b": "y" * 4000}),
    )


def test_large_items_make_messages_with_fewer(stub: Stub) -> None:
    create(stub, "large")
    upsert(stub, "large", *(large(n, 0) for n in range(300)))
    _, items = export(stub, "large", fields=EVERYTHING)
    assert len(items) == 300


def test_an_export_beside_writes_shows_one_state(start: Start) -> None:
    service, count = start(LIKENESS_READS="memory"), 2000
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "moving")
        for begin in range(0, count, 1000):
            upsert(stub, "moving", *(large(n, 0) for n in range(begin, begin + 1000)))
        parts = stub.ExportItems(pb.ExportItemsRequest(collection="moving", fields=EVERYTHING))
        assert next(parts).total == count
        read = list(next(parts).items)
        # 16 MB are more than what is under way between the two: the rest is read from now on.
        stub.DeleteItems(pb.DeleteItemsRequest(collection="moving", ids=[f"i{n:04}" for n in range(1000, 1500)]))
        upsert(stub, "moving", *(large(n, 1) for n in range(1500, count)), large(count, 1))
        read += [each for part in parts for each in part.items]
        assert [each.id for each in read] == [f"i{n:04}" for n in range(count)]
        assert {each.metadata.fields["version"].int_value for each in read} == {0}
        _, now = export(stub, "moving", fields=LABELLED)
        assert len(now) == count - 500 + 1


def test_clients_that_read_slowly_or_vanish_take_no_memory(start: Start) -> None:
    service, count = start(LIKENESS_READS="memory"), 2000
    request = pb.ExportItemsRequest(collection="slow", fields=EVERYTHING)
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "slow")
        for begin in range(0, count, 1000):
            upsert(stub, "slow", *(large(n, 0) for n in range(begin, begin + 1000)))
        assert sum(len(part.items) for part in stub.ExportItems(request)) == count
        memory = psutil.Process(service.process.pid).memory_info
        before = memory().rss
        for _ in range(20):
            with connect(service) as own:
                parts = Stub(own).ExportItems(request)
                next(parts)
                next(parts)
                # 16 MB each if they were all read at once.
                assert memory().rss - before < 200 * 2**20
        wait_for(lambda: service.log.count('"CANCELLED"') >= 20)
        assert "INTERNAL" not in service.log
        assert memory().rss - before < 100 * 2**20
        assert sum(len(part.items) for part in stub.ExportItems(request)) == count


def test_an_export_under_way_ends_when_the_indexer_stops(start: Start) -> None:
    service = start(LIKENESS_READS="memory")
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "ending")
        for begin in range(0, 2000, 1000):
            upsert(stub, "ending", *(large(n, 0) for n in range(begin, begin + 1000)))
        parts = stub.ExportItems(pb.ExportItemsRequest(collection="ending", fields=EVERYTHING))
        next(parts)
        stopping = threading.Thread(target=service.stop)
        stopping.start()
        with pytest.raises(grpc.RpcError) as caught:
            wait_for(lambda: b"stopping" in service.log.encode())
            for _ in parts:
                pass
        stopping.join(60)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert service.process.returncode == 0


def test_deleting_a_collection_does_not_hurt_its_export(start: Start) -> None:
    service = start(LIKENESS_READS="memory")
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "going")
        for begin in range(0, 2000, 1000):
            upsert(stub, "going", *(large(n, 0) for n in range(begin, begin + 1000)))
        parts: Iterator[pb.ExportItemsResponse] = stub.ExportItems(
            pb.ExportItemsRequest(collection="going", fields=types_pb2.ItemFields(vector=True, metadata=True))
        )
        next(parts)
        stub.DeleteCollection(pb.DeleteCollectionRequest(name="going"))
        assert sum(len(part.items) for part in parts) == 2000


def wait_for(condition: object, timeout_s: float = 60) -> None:
    """Returns when a condition is true that nobody tells of."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)
