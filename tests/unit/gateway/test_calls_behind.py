"""What the gateway asks of the services behind it: one Embed and one Query a search, within the time left."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from likeness.common.v1 import error_pb2, types_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from likeness.gateway.v1.gateway_pb2 import SearchRequest, Term
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from chassis.deadline import Deadline
from chassis.errors import LikenessError
from chassis.vectors import to_proto
from gateway.backends import Embedder, Indexer
from gateway.search import Search
from gateway.settings import GatewaySettings
from tests.unit.gateway.behind import embedding

MODEL = types_pb2.ModelFingerprint(model="m", digest="aa", dimension=2)


class Services(embedder_pb2_grpc.EmbedderServiceServicer, indexer_pb2_grpc.IndexerServiceServicer):
    """An embedder and an indexer that write down what they are asked, and how long they may take."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []
        self.requests: list[Any] = []
        self.refuse_first = 0

    async def Embed(self, request: embedder_pb2.EmbedRequest, context: Any) -> embedder_pb2.EmbedResponse:  # noqa: N802
        self.calls.append(("Embed", context.time_remaining()))
        if self.refuse_first:
            self.refuse_first -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        vector = to_proto(np.array([1, 0], np.float32))
        return embedder_pb2.EmbedResponse(
            fingerprint=MODEL, results=[embedder_pb2.EmbedResult(vector=vector) for _ in request.inputs]
        )

    async def Query(self, request: indexer_pb2.QueryRequest, context: Any) -> indexer_pb2.QueryResponse:  # noqa: N802
        self.calls.append(("Query", context.time_remaining()))
        self.requests.append(request)
        return indexer_pb2.QueryResponse(fingerprint=MODEL, results=[indexer_pb2.QueryResult()])


@asynccontextmanager
async def gateway() -> AsyncIterator[tuple[Services, Embedder, Search]]:
    services = Services()  # type: ignore[abstract]  # only what a search calls
    server = grpc.aio.server()
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(services, server)
    indexer_pb2_grpc.add_IndexerServiceServicer_to_server(services, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    settings = GatewaySettings(embedder_address=address, indexer_address=address)
    embedder, indexer = Embedder(settings), Indexer(settings)
    yield services, embedder, Search(embedding(embedder), indexer)
    await embedder.close()
    await indexer.close()
    await server.stop(0)


async def test_a_search_of_many_terms_is_one_embed_and_one_query_within_the_time_left() -> None:
    terms = [Term(text="a"), Term(id="x", weight=-2), Term(image=types_pb2.Image(encoded=b"y")), Term(text="b")]
    async with gateway() as (services, _, search):
        await search(SearchRequest(terms=terms), Deadline(7))

    assert [name for name, _ in services.calls] == ["Embed", "Query"]
    assert all(0 < left <= 7 for _, left in services.calls)
    query = services.requests[0]
    assert query.expected_fingerprint == MODEL
    assert [example.WhichOneof("example") for example in query.queries[0].examples] == [
        "vector",
        "id",
        "vector",
        "vector",
    ]
    assert query.queries[0].examples[1].weight == -2


async def test_a_search_by_id_alone_embeds_nothing() -> None:
    async with gateway() as (services, _, search):
        await search(SearchRequest(terms=[Term(id="x")]), Deadline(7))

    assert [name for name, _ in services.calls] == ["Query"]


async def test_a_search_whose_time_is_up_asks_nobody() -> None:
    async with gateway() as (services, _, search):
        with pytest.raises(LikenessError) as caught:
            await search(SearchRequest(terms=[Term(text="a")]), Deadline(-1))

    assert caught.value.reason == error_pb2.REASON_DEADLINE_EXCEEDED
    assert services.calls == []


@pytest.mark.parametrize("bulk", [False, True])
async def test_a_call_with_a_whole_photograph_in_it_is_repeated_when_the_service_was_away(bulk: bool) -> None:
    picture = embedder_pb2.EmbedInput(image=types_pb2.Image(encoded=bytes(3_000_000)))
    async with gateway() as (services, embedder, _):
        services.refuse_first = 1
        answer = await embedder.embed([picture], 30, bulk=bulk)

    assert len(answer.results) == 1
    assert [name for name, _ in services.calls] == ["Embed", "Embed"]


async def test_bulk_work_that_nobody_takes_in_time_is_a_service_away_and_no_deadline_of_the_caller() -> None:
    settings = GatewaySettings(embedder_address="127.0.0.1:1")
    embedder = Embedder(settings)
    with pytest.raises(LikenessError) as caught:
        await embedder.embed([embedder_pb2.EmbedInput(text="a")], 0.2, bulk=True)
    await embedder.close()

    assert caught.value.reason == error_pb2.REASON_EMBEDDER_UNAVAILABLE
    assert caught.value.retry_after_s is not None
