"""Which calls of the gateway are recorded: those of administrators, and what else takes many items away at once."""

from typing import Any

import pytest
from likeness.common.v1.metadata_pb2 import Filter
from likeness.gateway.v1 import gateway_pb2 as pb

from chassis.keys import Scope
from gateway.audit import RECORDS
from gateway.scopes import RPCS, SERVICE

SOME = Filter()


def test_what_needs_a_key_for_administration_is_recorded_and_of_the_rest_deletion_alone() -> None:
    administration = {method for method, rpc in RPCS.items() if rpc.scope is Scope.ADMIN}
    assert set(RECORDS) == administration | {f"/{SERVICE}/DeleteItems"}


@pytest.mark.parametrize(
    ("rpc", "request_", "touched"),
    [
        ("CreateCollection", pb.CreateCollectionRequest(name="a", description="text"), {"collection": "a"}),
        ("UpdateCollection", pb.UpdateCollectionRequest(name="a", description="text"), {"collection": "a"}),
        ("DeleteCollection", pb.DeleteCollectionRequest(name="a"), {"collection": "a"}),
        ("SetAlias", pb.SetAliasRequest(alias="x", collection="a"), {"alias": "x", "collection": "a"}),
        (
            "SetAlias",
            pb.SetAliasRequest(alias="x", collection="b", expected_collection="a"),
            {"alias": "x", "collection": "b", "expected": "a"},
        ),
        ("DeleteAlias", pb.DeleteAliasRequest(alias="x"), {"alias": "x"}),
        (
            "ReembedCollection",
            pb.ReembedCollectionRequest(collection="a", target="b", alias="x", page_token="t"),
            {"collection": "a", "target": "b", "alias": "x"},
        ),
        ("ReembedCollection", pb.ReembedCollectionRequest(target="b"), {"collection": "images", "target": "b"}),
        ("DeleteItems", pb.DeleteItemsRequest(collection="a", filter=SOME), {"collection": "a", "filter": True}),
        ("DeleteItems", pb.DeleteItemsRequest(filter=SOME), {"collection": "images", "filter": True}),
        ("DeleteItems", pb.DeleteItemsRequest(collection="a", ids=["i"]), None),
    ],
)
def test_what_is_taken_from_a_request(rpc: str, request_: Any, touched: object) -> None:
    assert RECORDS[f"/{SERVICE}/{rpc}"](request_) == touched
