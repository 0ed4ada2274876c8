"""Changes of what is known of items."""

from collections.abc import Mapping

from likeness.gateway.v1 import gateway_pb2

from likeness_client import wire
from likeness_client.connection import Connection
from likeness_client.items import MetadataUpdated, MetadataValue
from likeness_client.lists import MAX_IDS, of_a_size

# An item's metadata takes up to 64 KiB: 1,024 of them would be more than a message, of which a gateway takes 64 MiB
# unless it is told otherwise.
_MAX_BYTES = 4 * 2**20


class MetadataCalls(Connection):
    """The part of ``Client`` that changes metadata."""

    def update_metadata(
        self,
        changes: Mapping[str, Mapping[str, MetadataValue | None]],
        *,
        uris: Mapping[str, str] | None = None,
        collection: str = "",
    ) -> MetadataUpdated:
        """Sets and removes metadata of items, in calls of at most 1,024; pictures, vectors and labels stay.

        If a call fails on the way, some items are changed: repeat it, which is harmless.

        Args:
            changes: by id, what to set; None instead of a value removes the key. Keys that are not named stay; those
                that the gateway writes itself, such as ``width``, are refused. An id with nothing to change is left
                out.
            uris: by id, where a picture came from; empty: unknown.
            collection: its name; empty: the gateway's default, ``images``.

        Raises:
            TypeError: a value is none of metadata.
            ValueError: a text cannot be written as UTF-8, or a whole number does not fit 64 bits.
            LikenessError: the gateway refused, or could not be reached.
        """
        sources = uris or {}
        wanted = [
            item_id for item_id in dict.fromkeys([*changes, *sources]) if changes.get(item_id) or item_id in sources
        ]
        updates = [_update(item_id, changes.get(item_id, {}), sources.get(item_id)) for item_id in wanted]
        updated = 0
        missing: list[str] = []
        for some in of_a_size(updates, MAX_IDS, _MAX_BYTES):
            request = gateway_pb2.UpdateMetadataRequest(collection=collection, updates=some)
            answer = self._call(self._stub.UpdateMetadata, request)
            updated += answer.updated
            missing.extend(answer.missing_ids)
        return MetadataUpdated(updated, tuple(missing))


def _update(item_id: str, change: Mapping[str, MetadataValue | None], uri: str | None) -> gateway_pb2.MetadataUpdate:
    update = gateway_pb2.MetadataUpdate(id=item_id, uri=uri)
    for key, value in change.items():
        if value is None:
            update.remove_keys.append(key)
        else:
            update.set.fields[key].CopyFrom(wire.value_to_proto(value))
    return update
