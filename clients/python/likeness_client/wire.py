"""Between the client's values and the contract's messages; nothing else here or above touches protobuf."""

import os
import sys
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from likeness.common.v1 import metadata_pb2, types_pb2
from likeness.gateway.v1 import gateway_pb2

from likeness_client.filters import AllOf, AnyOf, Comparison, Filter, NoneOf, Operator, Value
from likeness_client.items import (
    Fingerprint,
    GetResult,
    Hit,
    Item,
    MetadataValue,
    Picture,
    SearchResult,
    SearchTimings,
    Term,
    TermKind,
)
from likeness_client.rpc_errors import from_item_error
from likeness_client.status import CollectionStatus, Limits, ModelStatus, ServiceStatus, Status

_OPERATORS = {op: metadata_pb2.Operator.Value(f"OPERATOR_{op.name}") for op in Operator}


def term_to_proto(term: Term) -> gateway_pb2.Term:
    """One part of a search."""
    message = gateway_pb2.Term(weight=term.weight)
    match term.kind, term.value:
        case TermKind.IMAGE, bytes(encoded):
            message.image.encoded = encoded
        case TermKind.TEXT, str(text):
            message.text = text
        case TermKind.ID, str(item_id):
            message.id = item_id
        case TermKind.VECTOR, tuple(numbers):
            message.vector.f32 = _floats_to_bytes(numbers)
        case kind, value:
            raise TypeError(f"a term of kind {kind.value} cannot hold a {type(value).__name__}")
    return message


def filter_to_proto(node: Filter) -> metadata_pb2.Filter:
    """A condition over metadata."""
    match node:
        case Comparison(key, op, values):
            comparison = metadata_pb2.Comparison(key=key, op=_OPERATORS[op], values=map(_value_to_proto, values))
            return metadata_pb2.Filter(comparison=comparison)
        case AllOf(filters):
            return metadata_pb2.Filter(all_of=_list_to_proto(filters))
        case AnyOf(filters):
            return metadata_pb2.Filter(any_of=_list_to_proto(filters))
        case NoneOf(filters):
            return metadata_pb2.Filter(none_of=_list_to_proto(filters))


def picture_to_proto(picture: Picture, encoded: bytes, sequence: int) -> gateway_pb2.IndexItem:
    """A picture to take in, with the bytes of its file.

    Raises:
        ValueError: a text cannot be written as UTF-8, or a number does not fit.
        TypeError: a value is of a type that the contract does not know.
    """
    uri = picture.uri
    if uri is None:
        # Without "..", and without following links: the name the caller knows it by.
        uri = Path(os.path.abspath(picture.path)).as_uri() if picture.path else ""  # noqa: PTH100
    item = gateway_pb2.IndexItem(sequence=sequence, id=picture.id, uri=uri, labels=picture.labels)
    item.image.encoded = encoded
    for key, value in picture.metadata.items():
        item.metadata.fields[key].CopyFrom(_value_to_proto(value))
    return item


def fingerprint_to_proto(fingerprint: Fingerprint | None) -> types_pb2.ModelFingerprint | None:
    """The identity of a model; None stays None."""
    if fingerprint is None:
        return None
    return types_pb2.ModelFingerprint(
        model=fingerprint.model, digest=fingerprint.digest, dimension=fingerprint.dimension
    )


def fingerprint_from_proto(message: types_pb2.ModelFingerprint) -> Fingerprint:
    """The identity of a model."""
    return Fingerprint(message.model, message.digest, message.dimension)


def item_from_proto(message: gateway_pb2.Item) -> Item:
    """A stored picture."""
    return Item(
        id=message.id,
        uri=message.uri,
        labels=tuple(message.labels),
        metadata=_metadata_from_proto(message.metadata.fields),
        vector=_bytes_to_floats(message.vector.f32) if message.HasField("vector") else None,
    )


def search_from_proto(message: gateway_pb2.SearchResponse) -> SearchResult:
    """What was found."""
    hits = (Hit(rank, item_from_proto(hit.item), hit.score) for rank, hit in enumerate(message.hits, start=1))
    timings = message.timings
    return SearchResult(
        hits=tuple(hits),
        collection=message.collection,
        fingerprint=fingerprint_from_proto(message.fingerprint),
        timings=SearchTimings(_seconds(timings.embed), _seconds(timings.query), _seconds(timings.total)),
    )


def get_from_proto(messages: Iterable[gateway_pb2.GetItemsResponse]) -> GetResult:
    """The answers of one or more calls, as one."""
    items: list[Item] = []
    missing: list[str] = []
    for message in messages:
        items.extend(map(item_from_proto, message.items))
        missing.extend(message.missing_ids)
    return GetResult(tuple(items), tuple(missing))


def status_from_proto(message: gateway_pb2.GetStatusResponse) -> Status:
    """The state of the whole."""
    services = [
        ServiceStatus(s.name, s.address, s.serving, from_item_error(s.error) if s.HasField("error") else None)
        for s in message.services
    ]
    collections = [
        CollectionStatus(c.name, fingerprint_from_proto(c.fingerprint), c.count, c.searchable)
        for c in message.collections
    ]
    model = _model_from_proto(message.model) if message.HasField("model") else None
    return Status(message.version, tuple(services), model, tuple(collections))


def _model_from_proto(message: gateway_pb2.ModelStatus) -> ModelStatus:
    limits = message.limits
    return ModelStatus(
        fingerprint=fingerprint_from_proto(message.fingerprint),
        device=message.device,
        precision=message.precision,
        limits=Limits(
            max_inputs=limits.max_inputs,
            max_encoded_bytes=limits.max_encoded_bytes,
            max_pixels=limits.max_pixels,
            max_message_bytes=limits.max_message_bytes,
            max_text_bytes=limits.max_text_bytes,
            context_length=limits.context_length,
        ),
    )


def _list_to_proto(filters: Iterable[Filter]) -> metadata_pb2.FilterList:
    return metadata_pb2.FilterList(filters=map(filter_to_proto, filters))


def _value_to_proto(value: Value | list[str]) -> metadata_pb2.Value:
    match value:
        case bool():
            return metadata_pb2.Value(bool_value=value)
        case int():
            return metadata_pb2.Value(int_value=value)
        case float():
            return metadata_pb2.Value(double_value=value)
        case str():
            return metadata_pb2.Value(string_value=value)
        case list():
            return metadata_pb2.Value(strings_value=metadata_pb2.StringList(values=value))
    raise TypeError(f"{type(value).__name__} is no metadata value; expected str, int, float, bool or a list of str")


def _metadata_from_proto(fields: Mapping[str, metadata_pb2.Value]) -> dict[str, MetadataValue]:
    # Sorted: the order of a protobuf map differs from one call to the next.
    return {key: _value_from_proto(fields[key]) for key in sorted(fields) if fields[key].WhichOneof("kind")}


def _value_from_proto(value: metadata_pb2.Value) -> MetadataValue:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "bool_value":
            return value.bool_value
        case _:
            return list(value.strings_value.values)


def _floats_to_bytes(numbers: Iterable[float]) -> bytes:
    floats = array("f", numbers)
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tobytes()


def _bytes_to_floats(f32: bytes) -> tuple[float, ...]:
    floats = array("f", f32)
    if sys.byteorder == "big":
        floats.byteswap()
    return tuple(floats)


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
