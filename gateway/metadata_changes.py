"""UpdateMetadata: callers' changes as the indexer takes them. Labels and what was read from the picture stay."""

from likeness.common.v1 import error_pb2
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis.errors import invalid
from chassis.metadata import MAX_STRING_BYTES
from gateway.items import LABELS, OWN_KEYS, URI
from gateway.requests import collection_name

MAX_UPDATES = 1024

_INSTEAD = {LABELS: "labels are changed by UpdateLabels", URI: "set the update's uri"}


def to_indexer(request: gateway_pb2.UpdateMetadataRequest) -> indexer_pb2.UpdateMetadataRequest:
    """The same changes for the indexer, which checks the rest: the fields have the same names there.

    Raises:
        LikenessError: BATCH_TOO_LARGE, FIELD_INVALID or METADATA_INVALID, naming the first update that is refused.
    """
    if not 0 < (count := len(request.updates)) <= MAX_UPDATES:
        reason = error_pb2.REASON_BATCH_TOO_LARGE if count else error_pb2.REASON_FIELD_INVALID
        raise invalid("updates", f"{count:,} updates; expected 1 to {MAX_UPDATES:,}", reason)
    changes = [_change(update, f"updates[{i}]") for i, update in enumerate(request.updates)]
    return indexer_pb2.UpdateMetadataRequest(collection=collection_name(request.collection), updates=changes)


def _change(update: gateway_pb2.MetadataUpdate, field: str) -> indexer_pb2.MetadataUpdate:
    for where, keys in (("set.fields", update.set.fields), ("remove_keys", update.remove_keys)):
        for key in sorted(OWN_KEYS.intersection(keys)):
            instead = _INSTEAD.get(key, "it says what the picture is")
            description = f"key {key!r} is written by the gateway; {instead}"
            raise invalid(f"{field}.{where}", description, error_pb2.REASON_METADATA_INVALID)
    if not (update.set.fields or update.remove_keys or update.HasField("uri")):
        raise invalid(field, "changes nothing; expected set, remove_keys or uri")
    change = indexer_pb2.MetadataUpdate(id=update.id, set=update.set, remove_keys=update.remove_keys)
    if (size := len(update.uri.encode())) > MAX_STRING_BYTES:
        raise invalid(f"{field}.uri", f"{size} bytes; at most {MAX_STRING_BYTES} are taken")
    if update.uri:
        change.set.fields[URI].string_value = update.uri
    elif update.HasField("uri"):
        change.remove_keys.append(URI)
    return change
