"""What many calls have in common, and messages about collections: contract ↔ the indexer's values."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Literal, Protocol

from likeness.common.v1 import error_pb2, metadata_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis import names
from chassis.errors import LikenessError, invalid
from chassis.metadata import KEY
from indexer import filters
from indexer.collections import UID, Collection, Fingerprint, Hnsw, Metric, NewerCollection
from indexer.filters import Node
from indexer.listing import text_bytes
from indexer.reads import Facet, Fields
from indexer.scoring import Scoring
from indexer.status import CollectionStatus, Mode, Role, Status
from indexer.violations import Violations, check_count

MAX_IDS = 1024
MAX_DIMENSION = 4096
MAX_MODEL_BYTES = 1024
MAX_DESCRIPTION_BYTES = 1024
MAX_EARLIER_UIDS = 1000
# Of HnswParameters; 0 is the default of each.
HNSW_RANGES = {"max_neighbors": (4, 128), "ef_construction": (16, 2000), "ef_search": (10, 10_000)}
MAX_PAGE = 1000
DEFAULT_PAGE = 100
MAX_FACETS = 32
MAX_FACET_VALUES = 1000
DEFAULT_FACET_VALUES = 10
# Of an answer's ids, metadata, vectors and values: what is around them fits beside that in a message, which takes
# 64 MiB unless LIKENESS_MAX_MESSAGE_MB says otherwise.
MAX_ANSWER_BYTES = 48 * 2**20
# Up to here a float64 tells every whole number from the next.
EXACT = 2**53

_METRICS = {
    types_pb2.METRIC_COSINE: Metric.COSINE,
    types_pb2.METRIC_L2: Metric.L2,
    types_pb2.METRIC_INNER_PRODUCT: Metric.INNER_PRODUCT,
}
_METRIC_MESSAGES = {metric: number for number, metric in _METRICS.items()}
SCORINGS: dict[types_pb2.Metric.ValueType, Scoring] = {
    types_pb2.Metric.Value(f"METRIC_{scoring.value}"): scoring for scoring in Scoring
}
ROLES = {role: indexer_pb2.Role.Value(f"ROLE_{role.name}") for role in Role}
_MODES = {mode: indexer_pb2.ServingMode.Value(f"SERVING_MODE_{mode.value}") for mode in Mode}


class NamesModel(Protocol):
    """A request that may say which model its vectors come from."""

    @property
    def expected_fingerprint(self) -> types_pb2.ModelFingerprint:
        """That model."""

    def HasField(self, field_name: Literal["expected_fingerprint"], /) -> bool:  # noqa: N802 (protobuf's name)
        """Whether it does."""


class Filters(Protocol):
    """A request that may concern some of the items only."""

    @property
    def filter(self) -> metadata_pb2.Filter:
        """Which."""

    def HasField(self, field_name: Literal["filter"], /) -> bool:  # noqa: N802 (protobuf's name)
        """Whether it does."""


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


def expected_fingerprint(request: NamesModel) -> Fingerprint | None:
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
        raise invalid("metric", f"{number} is none here; expected METRIC_COSINE, METRIC_L2 or METRIC_INNER_PRODUCT")
    return known


def hnsw(message: indexer_pb2.HnswParameters, field: str = "hnsw") -> Hnsw:
    """How an index is to be made and searched.

    Raises:
        LikenessError: FIELD_INVALID, naming every bad parameter.
    """
    violations = Violations()
    for name, (least, most) in HNSW_RANGES.items():
        with violations:
            value: int = getattr(message, name)
            if value and not least <= value <= most:
                raise invalid(f"{field}.{name}", f"{value:,}; expected {least:,} to {most:,}, or 0 for the default")
    violations.raise_any()
    return Hnsw(message.max_neighbors, message.ef_construction, message.ef_search)


def description(text: str) -> str:
    """What a collection is for.

    Raises:
        LikenessError: FIELD_INVALID.
    """
    if (size := len(text.encode())) > MAX_DESCRIPTION_BYTES:
        raise invalid("description", f"{size:,} bytes; expected at most {MAX_DESCRIPTION_BYTES:,}")
    return text


def earlier_uids(values: Sequence[str]) -> list[str]:
    """The uids of what a collection to make is a copy of, in the order given.

    Raises:
        LikenessError: BATCH_TOO_LARGE or FIELD_INVALID, naming every bad one.
    """
    if values:
        check_count(len(values), MAX_EARLIER_UIDS, "earlier_uids", "uids")
    violations = Violations()
    for i, value in enumerate(values):
        with violations:
            if not UID.fullmatch(value):
                raise invalid(f"earlier_uids[{i}]", f"{value[:200]!r} does not match {UID.pattern}")
    violations.raise_any()
    return list(values)


def fields(message: types_pb2.ItemFields) -> Fields:
    """What comes back of each item."""
    return Fields(metadata=message.metadata, vector=message.vector)


def where(request: Filters, field: str = "filter") -> Node | None:
    """The filter of a request, if it has one.

    Raises:
        LikenessError: FILTER_INVALID, naming the place in its tree.
    """
    return filters.from_proto(request.filter, field) if request.HasField("filter") else None


def page_size(number: int) -> int:
    """Most items, or collections, of a page.

    Raises:
        LikenessError: FIELD_INVALID.
    """
    if number > MAX_PAGE:
        raise invalid("page_size", f"{number:,}; expected 1 to {MAX_PAGE:,}, or 0 for {DEFAULT_PAGE}")
    return number or DEFAULT_PAGE


def key(text: str, field: str) -> str:
    """A metadata key.

    Raises:
        LikenessError: FIELD_INVALID, naming the field.
    """
    if not KEY.fullmatch(text):
        raise invalid(field, f"{text[:200]!r} does not match {KEY.pattern}")
    return text


def ids(values: Sequence[str], field: str = "ids") -> list[str]:
    """Ids, in the order given.

    Raises:
        LikenessError: BATCH_TOO_LARGE or FIELD_INVALID, naming every bad one.
    """
    check_count(len(values), MAX_IDS, field, "ids")
    violations = Violations()
    for i, value in enumerate(values):
        with violations:
            names.check_item_id(value, f"{field}[{i}]")
    violations.raise_any()
    return list(values)


def facets(messages: Sequence[indexer_pb2.FacetRequest]) -> dict[str, int]:
    """The keys to count the values of, in the order given, and the most values of each.

    Raises:
        LikenessError: BATCH_TOO_LARGE or FIELD_INVALID, naming every bad one.
    """
    check_count(len(messages), MAX_FACETS, "facets", "facets")
    wanted: dict[str, int] = {}
    violations = Violations()
    for i, message in enumerate(messages):
        with violations:
            name = key(message.key, f"facets[{i}].key")
            if name in wanted:
                raise invalid(f"facets[{i}].key", f"{name!r} again; expected each key once")
            if message.limit > MAX_FACET_VALUES:
                description = f"{message.limit:,}; expected 1 to {MAX_FACET_VALUES:,}, or 0 for {DEFAULT_FACET_VALUES}"
                raise invalid(f"facets[{i}].limit", description)
            wanted[name] = message.limit or DEFAULT_FACET_VALUES
    violations.raise_any()
    return wanted


def collection_message(
    collection: Collection | NewerCollection, count: int, aliases: Sequence[str] = ()
) -> indexer_pb2.Collection:
    """A collection; of one that a newer release wrote, only what it is called, its uids, schema version and count."""
    message = indexer_pb2.Collection(
        name=collection.name,
        uid=collection.uid,
        schema_version=collection.schema_version,
        earlier_uids=collection.earlier_uids,
        aliases=aliases,
        count=count,
    )
    if isinstance(collection, Collection):
        message.hnsw.CopyFrom(indexer_pb2.HnswParameters(**asdict(collection.hnsw)))
        message.description = collection.description
        message.fingerprint.CopyFrom(fingerprint_message(collection.fingerprint))
        message.metric = _METRIC_MESSAGES[collection.metric]
        message.create_time.FromDatetime(collection.created)
    return message


def fingerprint_message(value: Fingerprint) -> types_pb2.ModelFingerprint:
    """A fingerprint."""
    return types_pb2.ModelFingerprint(model=value.model, digest=value.digest, dimension=value.dimension)


def facets_response(count: int, facets: Sequence[Facet]) -> indexer_pb2.GetFacetsResponse:
    """The answer to a call for facets.

    Args:
        count: how many items were counted.
        facets: the counts of each key.

    Raises:
        LikenessError: BATCH_TOO_LARGE.
    """
    texts = (text_bytes(value) for facet in facets for value, _ in facet.values if isinstance(value, str))
    check_answer(texts, "facets", "ask for fewer facets, or with lower limits")
    return indexer_pb2.GetFacetsResponse(count=count, facets=map(facet_message, facets))


def facet_message(facet: Facet) -> indexer_pb2.Facet:
    """The counts of one key's values."""
    message = indexer_pb2.Facet(key=facet.key, distinct=facet.distinct, missing=facet.missing)
    for value, count in facet.values:
        _set(message.values.add(count=count).value, value)
    return message


def status_message(status: Status, disk_bytes: Sequence[int | None]) -> indexer_pb2.GetStatusResponse:
    """What the indexer says of itself, its collections by name.

    Args:
        status: it.
        disk_bytes: of each collection, in the order of ``status.collections``; None: unknown.
    """
    each = zip(status.collections, disk_bytes, strict=True)
    return indexer_pb2.GetStatusResponse(
        store_available=status.store_available,
        memory_bytes=status.memory_bytes,
        memory_budget_bytes=status.memory_budget_bytes,
        collections=[collection_status(c, size) for c, size in sorted(each, key=lambda pair: pair[0].name)],
    )


def collection_status(status: CollectionStatus, disk_bytes: int | None) -> indexer_pb2.CollectionStatus:
    """Where a collection is served from, and what it takes; ``disk_bytes`` None: unknown."""
    message = indexer_pb2.CollectionStatus(
        name=status.name,
        mode=_MODES[status.mode],
        reason=status.reason,
        loaded=status.loaded,
        total=status.total,
        rows=status.rows,
        dead_rows=status.dead_rows,
        unindexed_rows=status.unindexed_rows,
        memory_bytes=status.memory_bytes,
        recall=status.recall,
        dead_share=status.dead_rows / status.rows if status.rows else 0.0,
        disk_bytes=disk_bytes,
    )
    if status.last_write:
        message.last_write_time.FromMicroseconds(status.last_write)
    return message


def _set(message: metadata_pb2.Value, value: str | int | float | bool) -> None:
    match value:
        case bool():
            message.bool_value = value
        case str():
            message.string_value = value
        case _ if abs(value) < EXACT and value == int(value):
            message.int_value = int(value)
        case _:
            message.double_value = value


def refused_page_token(token: str, rpc: str) -> LikenessError:
    """FIELD_INVALID for a page token."""
    return invalid("page_token", f"{token[:100]!r} is none that {rpc} gave for this request; begin without one")


def check_answer(sizes: Iterable[int], field: str, remedy: str) -> None:
    """Refuses an answer that would not fit a message, before any of it is built.

    Args:
        sizes: bytes of its parts.
        field: of the request, what asks for so much.
        remedy: how to ask for less.

    Raises:
        LikenessError: BATCH_TOO_LARGE, naming the field.
    """
    total = 0
    for size in sizes:
        total += size
        if total > MAX_ANSWER_BYTES:
            most = f"{MAX_ANSWER_BYTES >> 20} MiB, the most that one takes"
            raise too_large(field, f"the answer would be larger than {most}; {remedy}")


def too_large(field: str, description: str) -> LikenessError:
    """BATCH_TOO_LARGE."""
    return invalid(field, description, error_pb2.REASON_BATCH_TOO_LARGE)
