"""Messages of the contract ↔ the values that the indexer works with, checked on the way in."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from likeness.common.v1 import error_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis import metadata, names, vectors
from chassis.errors import LikenessError, Violation, invalid
from chassis.vectors import Array
from indexer import filters
from indexer.collections import Collection, Fingerprint, Metric, NewerCollection
from indexer.query import Example, Query
from indexer.reads import Fields, Item, Row

MAX_ITEMS = 1024
MAX_QUERIES = 128
MAX_HITS_IN_ALL = 10_000
MAX_TOP_K = 1000
DEFAULT_TOP_K = 10
MAX_EXAMPLES = 64
MAX_WEIGHT = 100
MAX_DIMENSION = 4096
MAX_MODEL_BYTES = 1024
# Squares of longer vectors overflow float32, in which Chroma computes; those of shorter ones vanish in it.
LONGEST, SHORTEST = 1e18, 1e-18
# gRPC clients refuse trailers beyond 8 KiB, so a bad call's violations must fit in fewer.
MAX_VIOLATION_BYTES = 2000

_METRICS = {
    types_pb2.METRIC_COSINE: Metric.COSINE,
    types_pb2.METRIC_L2: Metric.L2,
    types_pb2.METRIC_INNER_PRODUCT: Metric.INNER_PRODUCT,
}
_METRIC_MESSAGES = {metric: number for number, metric in _METRICS.items()}


def fingerprint(message: types_pb2.ModelFingerprint, field: str) -> Fingerprint:
    """A fingerprint, complete.

    Raises:
        LikenessError: FIELD_INVALID, naming the field.
    """
    if len(message.model.encode()) > MAX_MODEL_BYTES:
        raise invalid(f"{field}.model", f"longer than {MAX_MODEL_BYTES} bytes")
    if len(message.digest) != 64 or not set(message.digest) <= set("0123456789abcdef"):
        raise invalid(f"{field}.digest", f"{message.digest[:80]!r}; expected 64 lower-case hexadecimal digits")
    if not 1 <= message.dimension <= MAX_DIMENSION:
        raise invalid(f"{field}.dimension", f"{message.dimension}; expected 1 to {MAX_DIMENSION:,}")
    return Fingerprint(message.model, message.digest, message.dimension)


def expected_fingerprint(
    request: indexer_pb2.UpsertItemsRequest | indexer_pb2.QueryRequest,
) -> Fingerprint | None:
    """The fingerprint that the call's vectors come from, if it names one.

    Raises:
        LikenessError: FIELD_INVALID: no digest to compare.
    """
    if not request.HasField("expected_fingerprint"):
        return None
    expected = request.expected_fingerprint
    if not expected.digest:
        raise invalid("expected_fingerprint.digest", "empty; expected the digest, or no fingerprint at all")
    return Fingerprint(expected.model, expected.digest, expected.dimension)


def metric(number: int) -> Metric:
    """The metric of a collection to make.

    Raises:
        LikenessError: FIELD_INVALID.
    """
    known = _METRICS.get(types_pb2.Metric.ValueType(number or types_pb2.METRIC_COSINE))
    if known is None:
        raise invalid("metric", f"{number} is no metric; expected METRIC_COSINE, METRIC_L2 or METRIC_INNER_PRODUCT")
    return known


def fields(message: types_pb2.ItemFields) -> Fields:
    """What comes back of each item."""
    return Fields(metadata=message.metadata, vector=message.vector)


def ids(values: Sequence[str], field: str = "ids") -> list[str]:
    """Ids, in the order given.

    Raises:
        LikenessError: BATCH_TOO_LARGE or FIELD_INVALID, naming every bad one.
    """
    _check_count(len(values), MAX_ITEMS, field, "ids")
    violations = _Violations()
    for i, value in enumerate(values):
        with violations:
            names.check_item_id(value, f"{field}[{i}]")
    violations.raise_any()
    return list(values)


def items(messages: Sequence[indexer_pb2.Item], collection: Collection) -> list[Item]:
    """Items to write.

    Raises:
        LikenessError: BATCH_TOO_LARGE, or the first bad item's reason, naming every bad field.
    """
    _check_count(len(messages), MAX_ITEMS, "items", "items")
    violations = _Violations()
    read: list[Item] = []
    for i, message in enumerate(messages):
        vector, plain = None, {}
        with violations:
            names.check_item_id(message.id, f"items[{i}].id")
        with violations:
            vector = _vector(message.vector, f"items[{i}].vector", collection)
        with violations:
            plain = metadata.from_proto(message.metadata, f"items[{i}].metadata")
        read.append(Item(message.id, vector, plain))
    violations.raise_any()
    return read


def queries(messages: Sequence[indexer_pb2.Query], collection: Collection) -> list[Query | LikenessError]:
    """Queries, or what is wrong with each.

    Raises:
        LikenessError: BATCH_TOO_LARGE or FIELD_INVALID, for what concerns the whole call.
    """
    _check_count(len(messages), MAX_QUERIES, "queries", "queries")
    read: list[Query | LikenessError] = []
    for i, message in enumerate(messages):
        try:
            read.append(_query(message, f"queries[{i}]", collection))
        except LikenessError as error:
            read.append(error)
    hits = sum(q.top_k for q in read if isinstance(q, Query))
    if hits > MAX_HITS_IN_ALL:
        description = f"ask for {hits:,} hits together; at most {MAX_HITS_IN_ALL:,} are given"
        raise invalid("queries", description, error_pb2.REASON_BATCH_TOO_LARGE)
    return read


def collection_message(collection: Collection | NewerCollection, count: int) -> indexer_pb2.Collection:
    """A collection; of one that a newer release wrote, only the name, the schema version and the count."""
    message = indexer_pb2.Collection(name=collection.name, schema_version=collection.schema_version, count=count)
    if isinstance(collection, Collection):
        message.fingerprint.CopyFrom(fingerprint_message(collection.fingerprint))
        message.metric = _METRIC_MESSAGES[collection.metric]
        message.create_time.FromDatetime(collection.created)
    return message


def fingerprint_message(value: Fingerprint) -> types_pb2.ModelFingerprint:
    """A fingerprint."""
    return types_pb2.ModelFingerprint(model=value.model, digest=value.digest, dimension=value.dimension)


def item_message(item: Item, wanted: Fields) -> indexer_pb2.Item:
    """An item, with what was asked for."""
    message = indexer_pb2.Item(id=item.id)
    _fill(message, item, wanted)
    return message


def hit_messages(rows: Iterable[Row], wanted: Fields) -> list[indexer_pb2.Hit]:
    """Hits, with what was asked for."""
    hits = []
    for row in rows:
        hit = indexer_pb2.Hit(id=row.item.id, score=row.score)
        _fill(hit, row.item, wanted)
        hits.append(hit)
    return hits


def _fill(message: indexer_pb2.Item | indexer_pb2.Hit, item: Item, wanted: Fields) -> None:
    if wanted.metadata:
        message.metadata.CopyFrom(metadata.to_proto(item.metadata))
    if item.vector is not None:
        message.vector.CopyFrom(vectors.to_proto(item.vector))


def _query(message: indexer_pb2.Query, field: str, collection: Collection) -> Query:
    if message.top_k > MAX_TOP_K:
        raise invalid(f"{field}.top_k", f"{message.top_k:,}; expected 1 to {MAX_TOP_K:,}, or 0 for {DEFAULT_TOP_K}")
    least = message.min_score if message.HasField("min_score") else None
    if least is not None and math.isnan(least):
        raise invalid(f"{field}.min_score", "NaN; expected a number")
    if not 1 <= len(message.examples) <= MAX_EXAMPLES:
        raise invalid(f"{field}.examples", f"{len(message.examples)} of them; expected 1 to {MAX_EXAMPLES}")
    examples = [_example(e, f"{field}.examples[{i}]", collection) for i, e in enumerate(message.examples)]
    where = filters.from_proto(message.filter, f"{field}.filter") if message.HasField("filter") else None
    return Query(field, tuple(examples), where, least, message.top_k or DEFAULT_TOP_K)


def _example(message: indexer_pb2.Example, field: str, collection: Collection) -> Example:
    weight = message.weight if message.HasField("weight") else 1.0
    if not 0 < abs(weight) <= MAX_WEIGHT:
        raise invalid(f"{field}.weight", f"{weight:g}; expected −{MAX_WEIGHT} to {MAX_WEIGHT} and not 0")
    match message.WhichOneof("example"):
        case "vector":
            return Example(weight, _vector(message.vector, f"{field}.vector", collection))
        case "id":
            return Example(weight, id=names.check_item_id(message.id, f"{field}.id"))
        case None:
            raise invalid(field, "nothing is set; expected a vector or an id")


def _vector(message: types_pb2.Vector, field: str, collection: Collection) -> Array:
    vector = vectors.from_proto(message, field, collection.fingerprint.dimension)
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if collection.metric is Metric.COSINE and length < SHORTEST:
        raise _bad_length(field, f"of length {length:g}, which has no direction; expected one longer than {SHORTEST:g}")
    if length > LONGEST:
        raise _bad_length(field, f"of length {length:g}; expected one of at most {LONGEST:g}")
    return vector


def _bad_length(field: str, description: str) -> LikenessError:
    return invalid(field, f"a vector {description}", error_pb2.REASON_VECTOR_INVALID)


def _check_count(count: int, most: int, field: str, what: str) -> None:
    if count == 0:
        raise invalid(field, f"empty; expected 1 to {most:,} {what}")
    if count > most:
        raise invalid(field, f"{count:,} {what}; expected 1 to {most:,}", error_pb2.REASON_BATCH_TOO_LARGE)


class _Violations:
    """Collects what is wrong with a call, field by field: ``with violations: check(…)``."""

    def __init__(self) -> None:
        self._found: list[LikenessError] = []

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if isinstance(error, LikenessError):
            self._found.append(error)
            return True
        return False

    def raise_any(self) -> None:
        """Raises one error for all, under the first one's reason and message."""
        if not self._found:
            return
        named: list[Violation] = []
        room = MAX_VIOLATION_BYTES
        for error in self._found:
            room -= sum(len(v.field.encode()) + len(v.description.encode()) for v in error.violations)
            if room < 0 and named:
                break
            named.extend(error.violations)
        unnamed = len(self._found) - len(named)
        message = self._found[0].message
        if len(self._found) > 1:
            message += f" (and {len(self._found) - 1} more bad fields)"
        if unnamed:
            root = named[0].field.split("[")[0]
            named.append(Violation(root, f"{unnamed} more bad fields, not named here"))
        raise LikenessError(self._found[0].reason, message, named)
