"""Between the values of ``indexer.types`` and the indexer's messages."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from likeness.common.v1 import types_pb2
from likeness.indexer.v1 import indexer_pb2
from numpy.typing import NDArray

from likeness_client.facets import Facet, Facets, FacetValue
from likeness_client.indexer.types import (
    Batch,
    Collection,
    ErasureReport,
    Hit,
    Hnsw,
    IndexerStatus,
    Item,
    Limits,
    Metric,
    Progress,
    QueryResult,
    ServingStatus,
    Snapshot,
)
from likeness_client.items import MetadataValue, Term, TermKind
from likeness_client.rpc_errors import from_item_error
from likeness_client.wire import (
    bytes_to_floats,
    fingerprint_from_proto,
    floats_to_bytes,
    metadata_from_proto,
    value_from_proto,
    value_to_proto,
)

_METRICS = {metric: types_pb2.Metric.Value(f"METRIC_{metric.name}") for metric in Metric}
_METRIC_OF = {number: metric for metric, number in _METRICS.items()}
_F32 = np.dtype("<f4")


def metric_to_proto(metric: Metric) -> types_pb2.Metric.ValueType:
    """How likeness is measured."""
    return _METRICS[metric]


def hnsw_to_proto(hnsw: Hnsw | None) -> indexer_pb2.HnswParameters | None:
    """How an index is made; None stays None."""
    if hnsw is None:
        return None
    return indexer_pb2.HnswParameters(
        max_neighbors=hnsw.max_neighbors, ef_construction=hnsw.ef_construction, ef_search=hnsw.ef_search
    )


def item_to_proto(item: Item) -> indexer_pb2.Item:
    """An item to write.

    Raises:
        ValueError: it has no vector, or a value that cannot be written.
    """
    if item.vector is None:
        raise ValueError(f"item {item.id!r} has no vector; expected one of the collection's dimension")
    return message_of(item.id, floats_to_bytes(item.vector), item.metadata)


def message_of(item_id: str, f32: bytes, metadata: Mapping[str, MetadataValue]) -> indexer_pb2.Item:
    """An item to write, whose vector is little-endian float32 already.

    Raises:
        ValueError: a text cannot be written as UTF-8, or a whole number does not fit 64 bits.
        TypeError: a value is of a type that the contract does not know.
    """
    message = indexer_pb2.Item(id=item_id, vector=types_pb2.Vector(f32=f32))
    for key, value in metadata.items():
        message.metadata.fields[key].CopyFrom(value_to_proto(value))
    return message


def example_to_proto(term: Term) -> indexer_pb2.Example:
    """What to be like.

    Raises:
        TypeError: the term is a picture or a text, which the indexer does not know.
    """
    match term.kind, term.value:
        case TermKind.ID, str(item_id):
            return indexer_pb2.Example(id=item_id, weight=term.weight)
        case TermKind.VECTOR, tuple(numbers):
            return indexer_pb2.Example(vector=types_pb2.Vector(f32=floats_to_bytes(numbers)), weight=term.weight)
    raise TypeError(f"an indexer knows no {term.kind.value}: expected Term.vector or Term.id, or ask a gateway")


def collection_from_proto(message: indexer_pb2.Collection) -> Collection:
    """A collection."""
    return Collection(
        name=message.name,
        uid=message.uid,
        fingerprint=fingerprint_from_proto(message.fingerprint),
        metric=_METRIC_OF.get(message.metric, Metric.COSINE),
        hnsw=Hnsw(message.hnsw.max_neighbors, message.hnsw.ef_construction, message.hnsw.ef_search),
        description=message.description,
        aliases=tuple(message.aliases),
        count=message.count,
        create_time=_time(message.create_time) if message.HasField("create_time") else None,
        earlier_uids=tuple(message.earlier_uids),
    )


def serving_from_proto(message: indexer_pb2.CollectionStatus) -> ServingStatus:
    """Where a collection is served from."""
    mode = indexer_pb2.ServingMode.Name(message.mode).removeprefix("SERVING_MODE_").lower()
    return ServingStatus(
        name=message.name,
        mode=mode,
        reason=message.reason,
        loaded=message.loaded,
        total=message.total,
        rows=message.rows,
        dead_rows=message.dead_rows,
        unindexed_rows=message.unindexed_rows,
        dead_share=message.dead_share,
        memory_bytes=message.memory_bytes,
        disk_bytes=message.disk_bytes if message.HasField("disk_bytes") else None,
        recall=message.recall if message.HasField("recall") else None,
        last_write_time=_time(message.last_write_time) if message.HasField("last_write_time") else None,
    )


def limits_from_proto(message: indexer_pb2.Limits) -> Limits:
    """What a request may ask for."""
    return Limits(**{field.name: getattr(message, field.name) for field in indexer_pb2.Limits.DESCRIPTOR.fields})


def status_from_proto(message: indexer_pb2.GetStatusResponse) -> IndexerStatus:
    """What the indexer is doing."""
    return IndexerStatus(
        store_available=message.store_available,
        memory_bytes=message.memory_bytes,
        memory_budget_bytes=message.memory_budget_bytes,
        collections=tuple(map(serving_from_proto, message.collections)),
        limits=limits_from_proto(message.limits),
        role=indexer_pb2.Role.Name(message.role).removeprefix("ROLE_").lower(),
        lag_s=message.lag_seconds,
        store_bytes=message.store_bytes if message.HasField("store_bytes") else None,
    )


def item_from_proto(message: indexer_pb2.Item) -> Item:
    """A stored item."""
    vector = bytes_to_floats(message.vector.f32) if message.HasField("vector") else None
    return Item(message.id, metadata_from_proto(message.metadata.fields), vector)


def batch_from_proto(messages: Sequence[indexer_pb2.Item]) -> Batch:
    """Items beside one another; their vectors if the first has one (of one answer, all have or none has)."""
    vectors: NDArray[np.float32] | None = None
    if messages and messages[0].HasField("vector"):
        joined = b"".join(message.vector.f32 for message in messages)
        vectors = np.frombuffer(joined, _F32).reshape(len(messages), -1)
    metadata = [metadata_from_proto(message.metadata.fields) for message in messages]
    return Batch([message.id for message in messages], metadata, vectors)


def query_from_proto(message: indexer_pb2.QueryResponse) -> QueryResult:
    """The answer to the one query of a call.

    Raises:
        LikenessError: the query failed.
    """
    (result,) = message.results
    if result.HasField("error"):
        raise from_item_error(result.error)
    hits = (
        Hit(
            Item(
                hit.id,
                metadata_from_proto(hit.metadata.fields),
                bytes_to_floats(hit.vector.f32) if hit.HasField("vector") else None,
            ),
            hit.score,
        )
        for hit in result.hits
    )
    return QueryResult(tuple(hits), fingerprint_from_proto(message.fingerprint))


def facets_from_proto(message: indexer_pb2.GetFacetsResponse) -> Facets:
    """Counts by value; the contract knows no lists here."""
    facets = []
    for facet in message.facets:
        values = [FacetValue(value_from_proto(entry.value), entry.count) for entry in facet.values]  # type: ignore[arg-type]
        facets.append(Facet(facet.key, tuple(values), facet.distinct, facet.missing))
    return Facets(message.count, tuple(facets))


def progress_from_proto(message: indexer_pb2.Progress) -> Progress:
    """How far something is."""
    return Progress(message.stage, message.done, message.total)


def snapshot_from_proto(message: indexer_pb2.Snapshot) -> Snapshot:
    """A backup."""
    return Snapshot(
        name=message.name,
        collection=collection_from_proto(message.collection),
        create_time=_time(message.create_time) if message.HasField("create_time") else None,
        size=message.bytes,
        fault=message.fault,
    )


def report_from_proto(message: indexer_pb2.ErasureReport) -> ErasureReport:
    """What was erased."""
    return ErasureReport(
        deleted=message.deleted,
        files_searched=message.files_searched,
        bytes_searched=message.bytes_searched,
        traces=message.traces,
        strings_left_out=message.strings_left_out,
        found_in=_texts(message.found_in),
        other_collections=_texts(message.other_collections),
        snapshots=_texts(message.snapshots),
        deleted_snapshots=_texts(message.deleted_snapshots),
        end_time=_time(message.end_time) if message.HasField("end_time") else None,
    )


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


def _time(moment: Timestamp) -> datetime:
    return moment.ToDatetime(tzinfo=UTC)
