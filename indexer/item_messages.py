"""Items to write, changes of metadata, and items as they are sent: contract ↔ the indexer's values."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

from likeness.indexer.v1 import indexer_pb2

from chassis import metadata, names
from chassis.errors import LikenessError, invalid
from chassis.metadata import Plain
from indexer import messages, vector_messages
from indexer.answers import put_together
from indexer.collections import Collection
from indexer.listing import nbytes
from indexer.reads import Item, StoredItem
from indexer.scan import Batch
from indexer.violations import Violations, check_count, merged
from indexer.writes import Update

MAX_ITEMS = 1024
# Read between two turns of the event loop, which other calls wait for: about a millisecond's work.
SLICE = 64


async def items(received: Sequence[indexer_pb2.Item], collection: Collection) -> list[Item]:
    """Items to write; other calls get their turn in between.

    Raises:
        LikenessError: BATCH_TOO_LARGE, or the first bad item's reason, naming every bad field.
    """
    check_count(len(received), MAX_ITEMS, "items", "items")
    good: list[Item] = []
    wrong: list[LikenessError] = []
    for first in range(0, len(received), SLICE):
        if first:
            await asyncio.sleep(0)
        for item in each_item(received[first : first + SLICE], collection, first):
            if isinstance(item, Item):
                good.append(item)
            else:
                wrong.extend(item)
    if wrong:
        raise merged(wrong)
    return good


def each_item(
    received: Sequence[indexer_pb2.Item], collection: Collection, first: int
) -> list[Item | list[LikenessError]]:
    """Items to write, or everything that is wrong with each.

    Args:
        received: some of a request's items.
        collection: that they are for.
        first: the place in the request of the first one.
    """
    read: list[Item | list[LikenessError]] = []
    numbers = vector_messages.read(
        [message.vector for message in received], collection, lambda i: f"items[{first + i}].vector"
    )
    for i, (message, vector) in enumerate(zip(received, numbers, strict=True), first):
        violations = Violations()
        plain: dict[str, Plain] = {}
        with violations:
            names.check_item_id(message.id, f"items[{i}].id")
        if isinstance(vector, LikenessError):
            violations.found.append(vector)
        with violations:
            plain = metadata.from_proto(message.metadata, f"items[{i}].metadata")
        if violations.found or isinstance(vector, LikenessError):
            read.append(violations.found)
        else:
            read.append(Item(message.id, vector, plain))
    return read


def updates(received: Sequence[indexer_pb2.MetadataUpdate]) -> list[Update]:
    """Changes of items' metadata, each of another item.

    Raises:
        LikenessError: BATCH_TOO_LARGE, or the first bad change's reason, naming every bad field.
    """
    check_count(len(received), MAX_ITEMS, "updates", "updates")
    read: dict[str, Update] = {}
    violations = Violations()
    for i, message in enumerate(received):
        with violations:
            names.check_item_id(message.id, f"updates[{i}].id")
            if message.id in read:
                raise invalid(f"updates[{i}].id", f"{message.id!r} again; expected each item once")
        with violations:
            read[message.id] = _update(message, f"updates[{i}]")
    violations.raise_any()
    return list(read.values())


def found_response(ids: Sequence[str], found: Mapping[str, StoredItem]) -> indexer_pb2.GetItemsResponse:
    """The answer to a call for items.

    Args:
        ids: those asked for, in order; an item comes as often as its id.
        found: those that exist, by id.

    Raises:
        LikenessError: BATCH_TOO_LARGE.
    """
    items = [found[i] for i in ids if i in found]
    messages.check_answer(map(nbytes, items), "ids", "ask for fewer ids, or for less of each item (fields)")
    return indexer_pb2.GetItemsResponse(items=map(item_message, items), missing_ids=[i for i in ids if i not in found])


async def respond_found(ids: Sequence[str], found: Mapping[str, StoredItem]) -> indexer_pb2.GetItemsResponse:
    """As ``found_response``; other calls get their turn while a large one is put together."""
    return await put_together(partial(found_response, ids, found), [found[i] for i in ids if i in found])


def export_message(batch: Batch) -> indexer_pb2.ExportItemsResponse:
    """A part of an export. For a thread: some milliseconds."""
    message, vectors = indexer_pb2.ExportItemsResponse(), batch.originals()
    for i, item_id in enumerate(batch.ids):
        packed = None if batch.packed is None else batch.packed[i]
        fill(message.items.add(id=item_id), StoredItem(item_id, None if vectors is None else vectors[i], packed))
    return message


def item_message(item: StoredItem) -> indexer_pb2.Item:
    """An item, with what was read of it."""
    message = indexer_pb2.Item(id=item.id)
    fill(message, item)
    return message


def fill(message: indexer_pb2.Item | indexer_pb2.Hit, item: StoredItem) -> None:
    """Puts what was read of an item beside its id; metadata goes from bytes to message, with nothing in between."""
    if item.packed is not None:
        message.metadata.SetInParent()
        message.metadata.MergeFromString(item.packed)
    if item.vector is not None:
        message.vector.f32 = item.vector.astype("<f4", copy=False).tobytes()


def _update(message: indexer_pb2.MetadataUpdate, field: str) -> Update:
    for i, name in enumerate(message.remove_keys):
        messages.key(name, f"{field}.remove_keys[{i}]")
    plain = metadata.from_proto(message.set, f"{field}.set")
    # A key that is set to an empty list is absent afterwards.
    emptied = message.set.fields.keys() - plain.keys()
    removed = dict.fromkeys(name for name in (*message.remove_keys, *sorted(emptied)) if name not in plain)
    return Update(message.id, plain, tuple(removed), message.replace)
