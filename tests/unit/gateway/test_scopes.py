"""Which rpc needs which scope."""

from likeness.gateway.v1 import gateway_pb2

from chassis.keys import Scope
from gateway.scopes import RPCS, SERVICE


def test_every_rpc_of_the_contract_has_a_scope_and_nothing_else_has() -> None:
    service = gateway_pb2.DESCRIPTOR.services_by_name["SearchService"]
    assert service.full_name == SERVICE
    assert set(RPCS) == {f"/{SERVICE}/{method.name}" for method in service.methods}


def test_what_changes_something_needs_more_than_reading() -> None:
    service = gateway_pb2.DESCRIPTOR.services_by_name["SearchService"]
    changing = {m.name for m in service.methods if m.GetOptions().idempotency_level != m.GetOptions().NO_SIDE_EFFECTS}
    assert {path.rpartition("/")[2] for path, rpc in RPCS.items() if rpc.scope > Scope.READ} == changing


def test_a_batch_counts_by_what_is_in_it() -> None:
    batch = gateway_pb2.BatchSearchRequest(searches=[gateway_pb2.SearchRequest()] * 7)
    assert RPCS[f"/{SERVICE}/BatchSearch"].items(batch) == 7
    assert RPCS[f"/{SERVICE}/IndexBatch"].items(gateway_pb2.IndexBatchRequest(items=[gateway_pb2.IndexItem()] * 5)) == 5
    assert (
        RPCS[f"/{SERVICE}/Classify"].items(gateway_pb2.ClassifyRequest(inputs=[gateway_pb2.ClassifyInput()] * 3)) == 3
    )
    changes = gateway_pb2.UpdateMetadataRequest(updates=[gateway_pb2.MetadataUpdate()] * 4)
    assert RPCS[f"/{SERVICE}/UpdateMetadata"].items(changes) == 4
    assert RPCS[f"/{SERVICE}/GetItems"].items(gateway_pb2.GetItemsRequest(ids=["a", "b"])) == 2
    labels = gateway_pb2.UpdateLabelsRequest(ids=["a", "b", "c"])
    assert RPCS[f"/{SERVICE}/UpdateLabels"].items(labels) == 3
    assert RPCS[f"/{SERVICE}/DeleteItems"].items(gateway_pb2.DeleteItemsRequest(ids=["a", "b", "c", "d"])) == 4
    assert RPCS[f"/{SERVICE}/Search"].items(gateway_pb2.SearchRequest()) == 1
