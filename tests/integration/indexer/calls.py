"""Calls of the indexer's contract, as the tests of this folder make them."""

import itertools
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import psutil
import pytest
from google.rpc import status_pb2
from grpc_status import rpc_status
from likeness.common.v1 import metadata_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2 as pb
from likeness.indexer.v1 import indexer_pb2_grpc

from chassis import metadata
from chassis.errors import LikenessError, from_status
from chassis.metadata import Plain
from tests.processes import Service

PORT = "LIKENESS_INDEXER_PORT"
DIMENSION = 8
FINGERPRINT = types_pb2.ModelFingerprint(model="starter", digest="a1" * 32, dimension=DIMENSION)
OTHER_MODEL = types_pb2.ModelFingerprint(model="ViT-B-32", digest="b2" * 32, dimension=512)
EVERYTHING = types_pb2.ItemFields(metadata=True, vector=True)
LABELLED = types_pb2.ItemFields(metadata=True)

Stub = indexer_pb2_grpc.IndexerServiceStub
Start = Callable[..., Service]


def connect(service: Service) -> grpc.Channel:
    """A channel to the indexer."""
    again = [(f"grpc.{kind}_reconnect_backoff_ms", 200) for kind in ("initial", "max")]
    return grpc.insecure_channel(service.address, options=[("grpc.enable_http_proxy", 0), *again])


def unit(n: int) -> types_pb2.Vector:
    """One of as many directions as one likes."""
    vector = np.random.default_rng(n).normal(size=DIMENSION).astype("<f4")
    return types_pb2.Vector(f32=vector.tobytes())


def numbers(*values: float) -> types_pb2.Vector:
    """A vector of these."""
    return types_pb2.Vector(f32=np.array(values, "<f4").tobytes())


def item(n: int, **keys: Plain) -> pb.Item:
    """The item "i{n}" in the direction ``unit(n)``."""
    return pb.Item(id=f"i{n}", vector=unit(n), metadata=metadata.to_proto(keys) if keys else None)


def create(stub: Stub, name: str, metric: types_pb2.Metric.ValueType = types_pb2.METRIC_COSINE) -> str:
    """Makes a collection."""
    stub.CreateCollection(pb.CreateCollectionRequest(name=name, fingerprint=FINGERPRINT, metric=metric))
    return name


def upsert(stub: Stub, name: str, *items: pb.Item) -> int:
    """Writes items; returns how many were stored."""
    return stub.UpsertItems(pb.UpsertItemsRequest(collection=name, items=items)).stored


def compared(key: str, op: str, *values: str | int | float | bool) -> metadata_pb2.Filter:
    """The filter of one comparison; the operator without its prefix."""
    made = metadata_pb2.Filter()
    made.comparison.key, made.comparison.op = key, metadata_pb2.Operator.Value(f"OPERATOR_{op}")
    for value in values:
        made.comparison.values.append(metadata.to_proto({"v": value}).fields["v"])
    return made


def negated(of: metadata_pb2.Filter) -> metadata_pb2.Filter:
    """True where another filter is not."""
    return metadata_pb2.Filter(none_of=metadata_pb2.FilterList(filters=[of]))


def like(vector: types_pb2.Vector, top_k: int = 10, where: metadata_pb2.Filter | None = None) -> pb.Query:
    """A query of one vector."""
    return pb.Query(examples=[pb.Example(vector=vector)], top_k=top_k, filter=where)


def query(stub: Stub, name: str, *queries: pb.Query) -> pb.QueryResponse:
    """Asks queries in one call."""
    return stub.Query(pb.QueryRequest(collection=name, queries=queries))


def ids(stub: Stub, name: str, *wanted: str) -> list[str]:
    """Which of the items exist."""
    return [i.id for i in stub.GetItems(pb.GetItemsRequest(collection=name, ids=wanted)).items]


def count(stub: Stub, name: str, where: metadata_pb2.Filter | None = None) -> int:
    """How many items a filter leaves."""
    return stub.CountItems(pb.CountItemsRequest(collection=name, filter=where)).count


def pages(stub: Stub, request: pb.ListItemsRequest) -> Iterator[list[pb.Item]]:
    """The pages of a list, each asked for when it is wanted."""
    for _ in itertools.count():
        page = stub.ListItems(request)
        yield list(page.items)
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def refusal(call: Callable[[], object]) -> LikenessError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert status is not None, caught.value
    error = from_status(status)
    assert caught.value.code() is error.code
    return error


def failure(result: pb.QueryResult) -> LikenessError:
    status = status_pb2.Status()
    status.CopyFrom(result.error.status)
    error = from_status(status)
    assert result.error.reason == error.reason
    assert not result.hits
    return error


def chroma_of(service: Service) -> psutil.Process:
    (child,) = psutil.Process(service.process.pid).children()
    assert "chroma" in " ".join(child.cmdline())
    return child
