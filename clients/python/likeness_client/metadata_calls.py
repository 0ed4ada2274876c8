"""Changes of what is known of items."""

from collections.abc import Mapping

from likeness.gateway.v1 import gateway_pb2

from likeness_client import wire
from likeness_client.connection import Connection
from likeness_client.item_calls import MAX_IDS, batches
from likeness_client.items import MetadataUpdated, MetadataValue


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
                that the gateway writes itself, such as ``width``, are refused.
            uris: by id, where a picture came from; empty: unknown.
            collection: its name; empty: the gateway's default, ``images``.

        Raises:
            TypeError: a value is none of metadata.
            ValueError: a text cannot be written as UTF-8, or a whole number does not fit 64 bits.
            LikenessError: the gateway refused, or could not be reached.
        """
        sources = uris or {}
        updated = 0
        missing: list[str] = []
        for some in batches(dict.fromkeys([*changes, *sources]), MAX_IDS):
            request = gateway_pb2.UpdateMetadataRequest(collection=collection)
            for item_id in some:
                update = request.updates.add(id=item_id, uri=sources.get(item_id))
                for key, value in changes.get(item_id, {}).items():
                    if value is None:
                        update.remove_keys.append(key)
                    else:
                        update.set.fields[key].CopyFrom(wire.value_to_proto(value))
            answer = self._call(self._stub.UpdateMetadata, request)
            updated += answer.updated
            missing.extend(answer.missing_ids)
        return MetadataUpdated(updated, tuple(missing))
