"""A running indexer's /metrics beside what it says by GetStatus."""

from likeness.indexer.v1 import indexer_pb2 as pb

from tests.integration.indexer.calls import Start, Stub, connect, create, item, upsert
from tests.processes import eventually, free_port, metric


def test_what_a_probe_finds_and_what_a_collection_takes_are_shown_as_the_status_says(start: Start) -> None:
    port = free_port()
    service = start(LIKENESS_READS="memory", LIKENESS_RECALL_PROBE_S="1", LIKENESS_INDEXER_METRICS_PORT=str(port))
    with connect(service) as channel:
        stub = Stub(channel)
        create(stub, "probed")
        upsert(stub, "probed", *(item(n, k=n) for n in range(200)))
        stub.DeleteItems(pb.DeleteItemsRequest(collection="probed", ids=[f"i{n}" for n in range(50)]))

        def said() -> pb.CollectionStatus:
            (found,) = stub.GetStatus(pb.GetStatusRequest()).collections
            return found

        # Once all rows are in the graph and it has been probed, nothing changes any more.
        assert eventually(lambda: said().HasField("recall") and not said().unindexed_rows)

        def shown(name: str) -> float:
            return metric(port, f"likeness_indexer_{name}", collection="probed")

        names = ("recall", "memory_bytes", "rows", "dead_rows", "unindexed_rows")
        assert eventually(lambda: [shown(name) for name in names] == [getattr(said(), name) for name in names], 30)
        assert 0.9 <= said().recall <= 1.0
        assert (said().rows, said().dead_rows, shown("items")) == (200, 50, 150)
        status = stub.GetStatus(pb.GetStatusRequest())
        assert status.memory_bytes == shown("memory_bytes") > 200 * 4 * 8
        assert metric(port, "likeness_indexer_memory_budget_bytes") == status.memory_budget_bytes
