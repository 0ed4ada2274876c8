"""The indexer as its clients call it: requests and answers over one gRPC channel."""

import asyncio
import itertools
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
from likeness.common.v1 import metadata_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from benchmarks.desk import Answer, Request
from benchmarks.embedder.figures import rate
from benchmarks.embedder.loops import Reply, closed, end
from benchmarks.indexer import data
from benchmarks.indexer.scope import K

METRICS: dict[str, types_pb2.Metric.ValueType] = {
    "cosine": types_pb2.METRIC_COSINE,
    "euclidean": types_pb2.METRIC_L2,
    "product": types_pb2.METRIC_INNER_PRODUCT,
}
FINGERPRINT = types_pb2.ModelFingerprint(model="benchmark", digest="b" * 64, dimension=data.DIMENSION)
OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
_DEADLINE_S = 120.0
# More than one window asks for: an answer that is remembered would be no answer.
_POOL = 4_096
_CALL = 64
_PAUSE_S = 0.1


def item(row: int, vector: data.Array, number: float, cluster: int) -> indexer_pb2.Item:
    """A row as an item."""
    made = indexer_pb2.Item(id=data.item_id(row), vector=types_pb2.Vector(f32=vector.tobytes()))
    made.metadata.fields["n"].double_value = number
    made.metadata.fields["c"].int_value = cluster
    return made


def query(vector: data.Array, where: data.Where | None) -> indexer_pb2.Query:
    """One query."""
    example = indexer_pb2.Example(vector=types_pb2.Vector(f32=vector.tobytes()))
    return indexer_pb2.Query(examples=[example], filter=_filter(where), top_k=K)


def _filter(where: data.Where | None) -> metadata_pb2.Filter | None:
    if where is None:
        return None
    value = metadata_pb2.Value(double_value=where[1])
    comparison = metadata_pb2.Comparison(key=where[0], op=metadata_pb2.OPERATOR_LT, values=[value])
    return metadata_pb2.Filter(comparison=comparison)


class Requests:
    """Query requests as bytes, made beforehand, since the client shares the server's cores."""

    def __init__(self, seed: int) -> None:
        self._vectors = data.queries(_POOL, seed)
        self._numbers = itertools.count()

    def of(self, collection: str, where: data.Where | None, batch: int) -> Iterator[bytes]:
        """An endless row; a filter's limit is another one in each request, so that its mask is not a remembered one."""
        place = struct.pack("<d", where[1]) if where is not None else b""
        prepared = []
        for begin in range(0, _POOL, batch):
            wanted = [query(vector, where) for vector in self._vectors[begin : begin + batch]]
            prepared.append(indexer_pb2.QueryRequest(collection=collection, queries=wanted).SerializeToString())
        for request in itertools.cycle(prepared):
            if where is None:
                yield request
            else:
                yield request.replace(place, struct.pack("<d", where[1] * (1 + 1e-9 * next(self._numbers))))


class Ours:
    """What a client process does with the indexer."""

    def __init__(self, seed: int) -> None:
        self._requests = Requests(seed)

    async def queries(self, request: Request) -> Answer:
        """Queries for so many seconds, from so many callers."""
        batch = request["batch"]
        requests = self._requests.of(request["collection"], _where(request), batch)
        async with _channel(request) as channel:
            call: Any = channel.unary_unary("/likeness.indexer.v1.IndexerService/Query")

            async def send() -> Reply:
                _checked(await call(next(requests), timeout=_DEADLINE_S), batch)
                return Reply()

            answer = await closed(send, request["concurrency"], request["ramp_s"], request["seconds"])
        return {**answer, "per_s": answer["per_s"] * batch}

    async def answers(self, request: Request) -> Answer:
        """The rows that are found for the first so many queries."""
        asked, found = data.queries(request["queries"]), []
        async with _channel(request) as channel:
            stub = indexer_pb2_grpc.IndexerServiceStub(channel)
            for begin in range(0, len(asked), 16):
                wanted = [query(vector, _where(request)) for vector in asked[begin : begin + 16]]
                message = indexer_pb2.QueryRequest(collection=request["collection"], queries=wanted)
                answer = await stub.Query(message, timeout=_DEADLINE_S)
                found += [data.rows_of([hit.id for hit in result.hits]) for result in answer.results]
        return {"rows": found}

    async def ingest(self, request: Request) -> Answer:
        """So many items into a new collection, in calls of 64 or as streams of those; ends when all are in the graph.

        The collection stays: what is deleted goes behind the answer, and takes its time from whatever is measured next.
        """
        name = request["collection"]
        vectors = data.more_vectors(request["items"], request["seed"])
        calls = iter(_calls(name, vectors, 0))
        async with _channel(request) as channel:
            stub: Any = indexer_pb2_grpc.IndexerServiceStub(channel)
            made = indexer_pb2.CreateCollectionRequest(name=name, fingerprint=FINGERPRINT)
            await stub.CreateCollection(made, timeout=_DEADLINE_S)
            begun = time.perf_counter()

            async def call() -> None:
                if request["stream"]:
                    await stub.UpsertItemsStream(_parts(calls))
                    return
                for message in calls:
                    await stub.UpsertItems(message, timeout=_DEADLINE_S)

            async with asyncio.TaskGroup() as callers:
                for _ in range(request["concurrency"]):
                    callers.create_task(call())
            took = time.perf_counter() - begun
            await _settled(stub, name)
        return {"per_s": len(vectors) / took, "error": None}

    async def ingest_for(self, request: Request) -> Answer:
        """Items into a collection that is there, as fast as they are taken, for so many seconds."""
        calls = iter(_calls(request["collection"], data.more_vectors(50_000, request["seed"]), request["first"]))
        done: list[float] = []
        begun = time.perf_counter()
        async with _channel(request) as channel:
            stub: Any = indexer_pb2_grpc.IndexerServiceStub(channel)

            async def call() -> None:
                for message in calls:
                    await stub.UpsertItems(message, timeout=_DEADLINE_S)
                    done.extend([time.perf_counter() - begun] * _CALL)

            callers = [asyncio.create_task(call()) for _ in range(request["concurrency"])]
            _, left = await asyncio.wait(callers, timeout=request["seconds"])
            failed = next((t.exception() for t in callers if t.done() and t.exception()), None)
            await end(list(left))
        return {"per_s": rate(done, request["seconds"]), "items": len(done), "error": failed and str(failed)}


async def _settled(stub: Any, name: str) -> None:
    async with asyncio.timeout(_DEADLINE_S):
        while True:
            status = await stub.GetStatus(indexer_pb2.GetStatusRequest(), timeout=_DEADLINE_S)
            if not any(each.unindexed_rows for each in status.collections if each.name == name):
                return
            await asyncio.sleep(_PAUSE_S)


def _calls(collection: str, vectors: data.Array, first: int) -> Iterator[indexer_pb2.UpsertItemsRequest]:
    rng = np.random.default_rng(first)
    for begin in range(0, len(vectors), _CALL):
        items = [
            item(first + begin + i, vector, float(rng.uniform(0, 1000)), int(rng.integers(1000)))
            for i, vector in enumerate(vectors[begin : begin + _CALL])
        ]
        yield indexer_pb2.UpsertItemsRequest(collection=collection, items=items)


async def _parts(
    calls: Iterator[indexer_pb2.UpsertItemsRequest],
) -> AsyncIterator[indexer_pb2.UpsertItemsStreamRequest]:
    for message in calls:
        yield indexer_pb2.UpsertItemsStreamRequest(collection=message.collection, items=message.items)


def _where(request: Request) -> data.Where | None:
    where = request.get("where")
    return (where[0], where[1]) if where else None


def _checked(raw: bytes, batch: int) -> list[list[tuple[str, float]]]:
    """The answer as a client would use it."""
    answer = indexer_pb2.QueryResponse.FromString(raw)
    found = [[(hit.id, hit.score) for hit in result.hits] for result in answer.results]
    if len(found) != batch or not all(found):
        raise RuntimeError(f"an empty answer: {answer}")
    return found


@asynccontextmanager
async def _channel(request: Request) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(request["address"], options=OPTIONS) as channel:
        async with asyncio.timeout(_DEADLINE_S):
            await channel.channel_ready()
        yield channel
