"""Between the client's values and the contract's messages; nothing else here or above touches protobuf."""

import os
import sys
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path

from likeness.common.v1 import metadata_pb2, types_pb2
from likeness.gateway.v1 import gateway_pb2

from likeness_client.filters import AllOf, AnyOf, Comparison, Filter, NoneOf, Operator, Value
from likeness_client.items import (
    Fingerprint,
    GetResult,
    IngestOptions,
    Item,
    MetadataValue,
    Picture,
    Skipped,
    Term,
    TermKind,
)
from likeness_client.rpc_errors import from_item_error
from likeness_client.status import CollectionStatus, Limits, ModelStatus, ServiceStatus, Status
from likeness_client.where import parse_where

# Bytes of a uri that the gateway takes.
_LONGEST_URI = 4096
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
            message.vector.f32 = floats_to_bytes(numbers)
        case kind, value:
            raise TypeError(f"a term of kind {kind.value} cannot hold a {type(value).__name__}")
    return message


def filter_to_proto(node: Filter) -> metadata_pb2.Filter:
    """A condition over metadata."""
    match node:
        case Comparison(key, op, values):
            comparison = metadata_pb2.Comparison(key=key, op=_OPERATORS[op], values=map(value_to_proto, values))
            return metadata_pb2.Filter(comparison=comparison)
        case AllOf(filters):
            return metadata_pb2.Filter(all_of=_list_to_proto(filters))
        case AnyOf(filters):
            return metadata_pb2.Filter(any_of=_list_to_proto(filters))
        case NoneOf(filters):
            return metadata_pb2.Filter(none_of=_list_to_proto(filters))


def condition_to_proto(where: str | Filter | None) -> metadata_pb2.Filter | None:
    """A condition, as a text or as a filter; None stays None.

    Raises:
        WhereError: the text is none.
    """
    if where is None:
        return None
    return filter_to_proto(parse_where(where) if isinstance(where, str) else where)


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
        if len(uri) > _LONGEST_URI:  # a deep path in a script of many bytes a character, each of which takes three
            uri = ""
    item = gateway_pb2.IndexItem(sequence=sequence, id=picture.id, uri=uri, labels=picture.labels)
    item.image.encoded = encoded
    for key, value in picture.metadata.items():
        item.metadata.fields[key].CopyFrom(value_to_proto(value))
    return item


def options_to_proto(options: IngestOptions) -> gateway_pb2.IngestOptions:
    """How pictures are taken in."""
    return gateway_pb2.IngestOptions(
        existing=gateway_pb2.EXISTING_POLICY_SKIP if options.skip_existing else gateway_pb2.EXISTING_POLICY_REPLACE,
        skip_exact_duplicates=options.skip_exact_duplicates,
        skip_near_duplicates=options.skip_near_duplicates,
        keep_originals=options.keep_originals,
        no_thumbnails=not options.thumbnails,
    )


def skipped_from_proto(message: gateway_pb2.IndexSkipped) -> Skipped:
    """Why a picture was left out."""
    known = message.reason in gateway_pb2.SkipReason.values()
    name = gateway_pb2.SkipReason.Name(message.reason) if known else str(message.reason)
    return Skipped(name.removeprefix("SKIP_REASON_"), message.existing_id, message.score)


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
        metadata=metadata_from_proto(message.metadata.fields),
        vector=bytes_to_floats(message.vector.f32) if message.HasField("vector") else None,
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


def value_to_proto(value: Value | list[str]) -> metadata_pb2.Value:
    """A value of metadata; int and float stay apart.

    Raises:
        ValueError: a text cannot be written as UTF-8, or a whole number does not fit 64 bits.
        TypeError: a value is of a type that the contract does not know.
    """
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


def metadata_from_proto(fields: Mapping[str, metadata_pb2.Value]) -> dict[str, MetadataValue]:
    """Metadata by key, in the order of the keys."""
    # Sorted: the order of a protobuf map differs from one call to the next.
    return {key: value_from_proto(fields[key]) for key in sorted(fields) if fields[key].WhichOneof("kind")}


def value_from_proto(value: metadata_pb2.Value) -> MetadataValue:
    """A value of metadata."""
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


def floats_to_bytes(numbers: Iterable[float]) -> bytes:
    """Little-endian float32, one number after another."""
    floats = array("f", numbers)
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tobytes()


def bytes_to_floats(f32: bytes) -> tuple[float, ...]:
    """The numbers of little-endian float32."""
    floats = array("f", f32)
    if sys.byteorder == "big":
        floats.byteswap()
    return tuple(floats)
