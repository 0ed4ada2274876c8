"""Which calls of the indexer are recorded: a new rpc must be thought of."""

from typing import Any

import pytest
from likeness.common.v1.metadata_pb2 import Filter
from likeness.indexer.v1 import indexer_pb2 as pb

from indexer.audit import RECORDS

SERVICE = pb.DESCRIPTOR.services_by_name["IndexerService"]
# Of those that change something: items one by one, which come by the thousand.
UNRECORDED = {"UpsertItems", "UpsertItemsStream", "UpdateMetadata"}


def test_what_changes_more_than_items_one_by_one_is_recorded() -> None:
    changing = {m.name for m in SERVICE.methods if m.GetOptions().idempotency_level != m.GetOptions().NO_SIDE_EFFECTS}
    assert set(RECORDS) == {f"/{SERVICE.full_name}/{name}" for name in changing - UNRECORDED}


@pytest.mark.parametrize(
    ("rpc", "request_", "touched"),
    [
        ("CreateCollection", pb.CreateCollectionRequest(name="a"), {"collection": "a"}),
        ("UpdateCollection", pb.UpdateCollectionRequest(name="a"), {"collection": "a"}),
        ("DeleteCollection", pb.DeleteCollectionRequest(name="a"), {"collection": "a"}),
        (
            "SetAlias",
            pb.SetAliasRequest(alias="x", collection="b", expected_collection="a"),
            {"alias": "x", "collection": "b", "expected": "a"},
        ),
        ("DeleteAlias", pb.DeleteAliasRequest(alias="x"), {"alias": "x"}),
        ("DeleteItems", pb.DeleteItemsRequest(collection="a", filter=Filter()), {"collection": "a", "filter": True}),
        ("DeleteItems", pb.DeleteItemsRequest(collection="a", ids=["i"]), None),
        (
            "EraseItems",
            pb.EraseItemsRequest(collection="a", ids=["i", "j"], delete_snapshots=True),
            {"collection": "a", "ids": 2, "delete_snapshots": True},
        ),
        ("CreateSnapshot", pb.CreateSnapshotRequest(collection="a"), {"collection": "a"}),
        ("DeleteSnapshot", pb.DeleteSnapshotRequest(name="a/1"), {"snapshot": "a/1"}),
        ("RestoreSnapshot", pb.RestoreSnapshotRequest(snapshot="a/1"), {"snapshot": "a/1"}),
        (
            "RestoreSnapshot",
            pb.RestoreSnapshotRequest(snapshot="a/1", collection="b"),
            {"snapshot": "a/1", "collection": "b"},
        ),
        ("RebuildCollection", pb.RebuildCollectionRequest(collection="a"), {"collection": "a"}),
    ],
)
def test_what_is_taken_from_a_request(rpc: str, request_: Any, touched: object) -> None:
    assert RECORDS[f"/{SERVICE.full_name}/{rpc}"](request_) == touched
