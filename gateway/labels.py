"""UpdateLabels: read labels, change them, write them back."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self
from weakref import WeakValueDictionary

from likeness.common.v1 import error_pb2
from likeness.common.v1.metadata_pb2 import OPERATOR_CONTAINS, Comparison, Filter, FilterList, Metadata, Value
from likeness.common.v1.types_pb2 import ItemFields
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis.deadline import Deadline
from chassis.errors import LikenessError, in_request, invalid
from chassis.metadata import MAX_LIST_LENGTH, MAX_STRING_BYTES, to_proto
from gateway.backends import Indexer
from gateway.items import LABELS
from gateway.requests import at_token, collection_name

MAX_IDS = 1024
MAX_ITEMS = 10_000
_PAGE = 1000

# Comparisons in a filter over the labels that a change concerns; with more of them all items are read.
_MAX_COMPARISONS = 200

# How many times as long as the slowest page must be left for another one to be begun.
_PAGES_LEFT = 3


@dataclass(frozen=True)
class Change:
    """What becomes of an item's labels.

    Attributes:
        add: labels to have.
        remove: labels not to have.
        only: what takes the place of the labels that are there; None: they stay.
        rename: what they are called from now on, by what they are called now.
    """

    add: Sequence[str] = ()
    remove: frozenset[str] = frozenset()
    only: Sequence[str] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, request: gateway_pb2.UpdateLabelsRequest) -> Self:
        """The change that a request asks for.

        Raises:
            LikenessError: FIELD_INVALID: there is none, or its parts contradict each other.
        """
        only = _read(request.set.labels, "set.labels") if request.HasField("set") else None
        add, remove = _read(request.add, "add"), _read(request.remove, "remove")
        if len(request.rename) > MAX_LIST_LENGTH:
            raise invalid("rename", f"{len(request.rename)} of them; at most {MAX_LIST_LENGTH} are taken")
        old = [getattr(each, "from") for each in request.rename]  # a Python keyword
        rename: dict[str, str] = {}
        for i, each in enumerate(request.rename):
            before, after = _label(old[i], f"rename[{i}].from"), _label(each.to, f"rename[{i}].to")
            if before in rename:
                raise invalid(f"rename[{i}].from", f"{before[:200]!r} again; expected each label once")
            if after in old:
                raise invalid(f"rename[{i}].to", f"{after[:200]!r} is renamed itself; make two calls of it")
            rename[before] = after
        if only is not None and rename:
            raise invalid("rename", "set beside set; expected one of them")
        if both := sorted(set(add) & set(remove)):
            raise invalid("remove", f"{both[0][:200]!r} is in add as well; expected it in one of them")
        if only is None and not (add or remove or rename):
            raise invalid("add", "is empty, and so are remove, set and rename; expected a change")
        return cls(add, frozenset(remove), only, rename)

    def __call__(self, labels: Sequence[str]) -> list[str]:
        """The labels after the change, each once."""
        kept = [self.rename.get(label, label) for label in labels] if self.only is None else self.only
        return list(dict.fromkeys([*(label for label in kept if label not in self.remove), *self.add]))

    @property
    def concerned(self) -> Filter | None:
        """True for the items that the change may change; None: any."""
        labels = [*self.remove, *self.rename]
        if self.only is not None or self.add or len(labels) > _MAX_COMPARISONS:
            return None
        return Filter(any_of=FilterList(filters=map(_has, sorted(labels))))


class Labels:
    """Answers UpdateLabels. Changes to one collection take turns, so that none overwrites another's."""

    def __init__(self, indexer: Indexer) -> None:
        self._indexer = indexer
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def update(
        self, request: gateway_pb2.UpdateLabelsRequest, deadline: Deadline
    ) -> gateway_pb2.UpdateLabelsResponse:
        """Changes labels; what is as asked for already is not written.

        Raises:
            LikenessError: the change is none, an item would have too many labels, the collection is unknown, or the
                indexer cannot be reached. Some items may be changed by then.
        """
        change = Change.of(request)
        _check_items(request)
        name = collection_name(request.collection)
        # An alias and its collection's name take turns together.
        collection = await self._indexer.collection(name, deadline.left())
        turn = self._turns.setdefault(collection.uid or collection.name, asyncio.Lock())
        if request.ids:
            return await self._by_ids(collection.name, request.ids, change, deadline, turn)
        where = request.filter if request.HasField("filter") else change.concerned
        response, longest = gateway_pb2.UpdateLabelsResponse(), 0.0
        token, left = request.page_token, request.page_size or MAX_ITEMS
        while True:
            listing = indexer_pb2.ListItemsRequest(
                collection=collection.name,
                filter=where,
                page_size=min(left, _PAGE),
                page_token=token,
                fields=ItemFields(metadata=True),
            )
            async with turn:
                started = time.monotonic()
                with at_token(token, request.page_token, "UpdateLabels"):
                    page = await self._indexer.list(listing, deadline.left())
                await self._write(collection.name, page.items, change, deadline, response)
            longest = max(longest, time.monotonic() - started)
            token, left = page.next_page_token, left - len(page.items)
            if not token or left <= 0 or deadline.left() < _PAGES_LEFT * longest:
                response.next_page_token = token
                return response

    async def _by_ids(
        self, collection: str, ids: Sequence[str], change: Change, deadline: Deadline, turn: asyncio.Lock
    ) -> gateway_pb2.UpdateLabelsResponse:
        response = gateway_pb2.UpdateLabelsResponse()
        distinct = list(dict.fromkeys(ids))
        read = indexer_pb2.GetItemsRequest(collection=collection, ids=distinct, fields=ItemFields(metadata=True))
        async with turn:
            found = await self._indexer.get(read, deadline.left())
            gone = await self._write(collection, found.items, change, deadline, response)
        missing = {*found.missing_ids, *gone}
        response.missing_ids.extend(item_id for item_id in distinct if item_id in missing)
        return response

    async def _write(
        self,
        collection: str,
        items: Iterable[indexer_pb2.Item],
        change: Change,
        deadline: Deadline,
        response: gateway_pb2.UpdateLabelsResponse,
    ) -> Sequence[str]:
        """Changes these items and counts them; returns the ids of those that were deleted since they were read."""
        request = indexer_pb2.UpdateMetadataRequest(collection=collection)
        for item in items:
            present = labels_of(item.metadata)
            wanted = change(present)
            if wanted == present:
                response.unchanged += 1
                continue
            if len(wanted) > MAX_LIST_LENGTH:
                description = f"item {item.id!r} would have {len(wanted)} labels; at most {MAX_LIST_LENGTH} are kept"
                raise invalid("add", description)
            request.updates.add(id=item.id, set=to_proto({LABELS: wanted}))
        if not request.updates:
            return ()
        try:
            answer = await self._indexer.update_metadata(request, deadline.left())
        except LikenessError as error:  # the labels made an item's metadata too large
            raise in_request(error, lambda name: "add" if name.startswith("updates") else name) from error
        response.updated += answer.updated
        return answer.missing_ids


def labels_of(metadata: Metadata) -> list[str]:
    """An item's labels, from the metadata under which the indexer keeps it."""
    # Looking a missing key up would add it to the message.
    return list(metadata.fields[LABELS].strings_value.values) if LABELS in metadata.fields else []


def _check_items(request: gateway_pb2.UpdateLabelsRequest) -> None:
    given = [bool(request.ids), request.HasField("filter"), request.all_items]
    if sum(given) != 1:
        raise invalid("ids", f"{sum(given)} of ids, filter and all_items are set; expected exactly one")
    if len(request.ids) > MAX_IDS:
        raise invalid("ids", f"{len(request.ids)} ids; expected 1 to {MAX_IDS}", error_pb2.REASON_BATCH_TOO_LARGE)
    if request.page_size > MAX_ITEMS:
        raise invalid("page_size", f"{request.page_size:,}; expected 1 to {MAX_ITEMS:,}, or 0 for {MAX_ITEMS:,}")
    if request.ids and (request.page_size or request.page_token):
        raise invalid("page_size", "page_size or page_token is set beside ids; expected them with filter or all_items")


def _read(labels: Sequence[str], where: str) -> list[str]:
    if len(labels) > MAX_LIST_LENGTH:
        raise invalid(where, f"{len(labels)} labels; at most {MAX_LIST_LENGTH} are taken")
    return [_label(label, f"{where}[{i}]") for i, label in enumerate(labels)]


def _label(label: str, where: str) -> str:
    if not 0 < len(label.encode()) <= MAX_STRING_BYTES:
        raise invalid(where, f"{len(label.encode())} bytes; expected 1 to {MAX_STRING_BYTES}")
    return label


def _has(label: str) -> Filter:
    return Filter(comparison=Comparison(key=LABELS, op=OPERATOR_CONTAINS, values=[Value(string_value=label)]))
