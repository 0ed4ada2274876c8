"""The client's traces: a caller's own goes with calls of every kind, and an error tells what the server says."""

import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from likeness.common.v1 import error_pb2
from likeness.gateway.v1 import gateway_pb2_grpc
from likeness.indexer.v1 import indexer_pb2_grpc

from chassis.errors import LikenessError as ServerError
from chassis.errors import to_status
from likeness_client import Client, IndexInterruptedError, IngestLimits, LikenessError, Picture, Security, Term
from likeness_client.indexer import IndexerClient
from tests.unit.client.fake_gateway import FakeGateway
from tests.unit.client.fake_indexer import FakeIndexer

ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SENT = f"00-{ID}-00f067aa0ba902b7-01"


class Recorder(grpc.ServerInterceptor):
    """What came as traceparent, by method."""

    def __init__(self) -> None:
        self.seen: dict[str, object] = {}
        self.keys: set[object] = set()

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        metadata = dict(handler_call_details.invocation_metadata)
        self.seen[handler_call_details.method.rpartition("/")[2]] = metadata.get("traceparent")
        self.keys.add(metadata.get("authorization"))
        return continuation(handler_call_details)


@contextmanager
def listening(gateway: FakeGateway) -> Iterator[tuple[str, Recorder]]:
    """A gateway and an indexer on one port; yields the address, and what has come."""
    recorder = Recorder()
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[recorder])
    gateway_pb2_grpc.add_SearchServiceServicer_to_server(gateway, server)
    indexer_pb2_grpc.add_IndexerServiceServicer_to_server(FakeIndexer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", recorder
    finally:
        server.stop(None).wait()


def test_a_caller_s_trace_goes_with_calls_of_every_kind_beside_the_key(gateway: FakeGateway) -> None:
    with listening(gateway) as (address, recorder):
        with Client(address, security=Security(api_key="secret"), traceparent=lambda: SENT) as client:
            list(client.index([Picture(b"a", id="a")]))
            list(client.find_duplicates())
        assert recorder.seen == dict.fromkeys(("GetStatus", "IndexImages", "FindDuplicates"), SENT)
        assert recorder.keys == {"Bearer secret"}
        recorder.seen.clear()
        with IndexerClient(address, traceparent=lambda: SENT) as indexer:
            indexer.status()
        assert recorder.seen == {"GetStatus": SENT}


def test_it_is_asked_for_at_each_call_and_may_be_none(gateway: FakeGateway) -> None:
    traces = iter([SENT, None])
    with listening(gateway) as (address, recorder), Client(address, traceparent=lambda: next(traces)) as client:
        client.status()
        assert recorder.seen == {"GetStatus": SENT}
        client.status()
        assert recorder.seen == {"GetStatus": None}


def failing(gateway: FakeGateway, trace_id: str | None) -> None:
    gateway.refusal = to_status(ServerError(error_pb2.REASON_COLLECTION_NOT_FOUND, "no such", trace_id=trace_id))


@pytest.mark.parametrize("trace_id", [ID, None])
def test_an_error_tells_the_id_that_the_server_told_and_a_traceback_shows_it(
    gateway: FakeGateway, trace_id: str | None
) -> None:
    failing(gateway, trace_id)
    with listening(gateway) as (address, _), Client(address) as client, pytest.raises(LikenessError) as caught:
        client.search(Term.text("a"))
    assert caught.value.trace_id == trace_id
    assert str(caught.value) == "COLLECTION_NOT_FOUND: no such"
    assert (ID in "".join(traceback.format_exception(caught.value))) == (trace_id is not None)


def test_so_does_that_of_an_ingest_that_broke(gateway: FakeGateway) -> None:
    failing(gateway, ID)
    with listening(gateway) as (address, _), Client(address) as client, pytest.raises(IndexInterruptedError) as caught:
        list(client.index([Picture(b"a", id="a")], limits=IngestLimits(reconnects=0)))
    assert caught.value.trace_id == ID
