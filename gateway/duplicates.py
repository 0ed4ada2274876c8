"""FindDuplicates: groups of items that are the same picture, or nearly, without comparing all pairs.

Exact ones by the counts of "sha256", then by listing the items that have a repeated one. Near ones by the nearest
neighbours of each item, joined into groups.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from likeness.common.v1 import error_pb2
from likeness.common.v1.metadata_pb2 import OPERATOR_EXISTS, OPERATOR_IN, Comparison, Filter, FilterList, Value
from likeness.common.v1.types_pb2 import ItemFields
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis.deadline import Deadline
from chassis.errors import LikenessError, from_status, in_request, invalid
from gateway import items
from gateway.clusters import Clusters
from gateway.indexer_reads import IndexerReads
from gateway.requests import at_token, collection_name, patience, shutting_down
from gateway.streams import MAX_BYTES, STALLED_S, admitted, patient

HASH = "sha256"
MAX_GROUP = 500
MAX_MEMBERS = 1_000_000
MAX_NEIGHBORS = 100
_PAGE = 1000
_FACET_VALUES = 1000
_HASHES_A_FILTER = 256
# Queries of a call: few enough that a search beside it does not wait long, and at most 10,000 hits together.
_QUERIES = 64
# Items that are read and sent together: within 48 MiB even with metadata and vectors as large as they may be.
_ITEMS = 500
# Of a message within another one: its tag and length, and a count.
_ENVELOPE_BYTES = 16

Write = Callable[[gateway_pb2.FindDuplicatesResponse], Awaitable[None]]


@dataclass(frozen=True)
class FindDuplicates:
    """Looks for duplicates.

    Attributes:
        indexer: is asked for them.
        stopping: is set when the gateway stops, which ends streams.
        longest_call_s: longest wait for one call to the indexer, in seconds.
        streams: how many may be open at once.
        stalled_s: how long a message waits for its reader, in seconds.
    """

    indexer: IndexerReads
    stopping: asyncio.Event
    longest_call_s: float
    streams: asyncio.Semaphore
    stalled_s: float = STALLED_S

    async def __call__(self, request: gateway_pb2.FindDuplicatesRequest, write: Write, deadline: Deadline) -> None:
        """Writes progress and groups.

        Raises:
            LikenessError: the request is bad, the collection is unknown, too much is found to be remembered, the
                indexer cannot be reached, nobody reads what is written, or SHUTTING_DOWN.
        """
        least = request.min_score if request.HasField("min_score") else None
        if least is not None and not math.isfinite(least):
            raise invalid("min_score", f"{least}; expected a number")
        if request.neighbors > MAX_NEIGHBORS:
            raise invalid("neighbors", f"{request.neighbors}; expected 1 to {MAX_NEIGHBORS}, or 0 for 10")
        if least is None and request.neighbors:
            raise invalid("neighbors", "is set without min_score; expected it with near duplicates only")
        write = patient(write, self.stalled_s, "begin again, and read what comes")
        async with admitted(self.streams, "searches for duplicates"):
            collection = await self.indexer.collection(
                collection_name(request.collection), patience(deadline, self.longest_call_s)
            )
            search = _Search(self, request, collection.name, write, deadline)
            await (search.exact() if least is None else search.near(least))


@dataclass(frozen=True)
class _Group:
    """A group found.

    Attributes:
        scores: of its items, the first 500 by id, in that order.
        count: how many items it has.
    """

    scores: dict[str, float]
    count: int


@dataclass
class _Search:
    """One stream.

    Attributes:
        done: items looked at.
        total: items to look at.
        found: groups that were not sent yet.
        waiting: items in these.
    """

    of: FindDuplicates
    request: gateway_pb2.FindDuplicatesRequest
    collection: str
    write: Write
    deadline: Deadline
    done: int = 0
    total: int = 0
    found: list[_Group] = field(default_factory=list)
    waiting: int = 0

    async def exact(self) -> None:
        """Groups of equal hashes."""
        hashes = await self._repeated()
        if hashes is not None:
            for start in range(0, len(hashes), _HASHES_A_FILTER):
                values = [Value(string_value=each) for each in hashes[start : start + _HASHES_A_FILTER]]
                await self._runs(Filter(comparison=Comparison(key=HASH, op=OPERATOR_IN, values=values)))
        else:  # more repeated hashes than facets tell of: all items, in the order of their hashes
            hashed = Filter(comparison=Comparison(key=HASH, op=OPERATOR_EXISTS))
            self.total = await self.of.indexer.count(
                indexer_pb2.CountItemsRequest(collection=self.collection, filter=self._where(hashed)), self._patience()
            )
            await self._runs(hashed)
        await self._send()

    async def near(self, least: float) -> None:
        """Groups of items that are neighbours of each other."""
        clusters = Clusters(MAX_MEMBERS)
        where = self._where()
        counting = indexer_pb2.CountItemsRequest(collection=self.collection, filter=where)
        self.total = await self.of.indexer.count(counting, self._patience())
        async for page in self._pages(where, "", ItemFields()):
            ids = [item.id for item in page]
            for start in range(0, len(ids), _QUERIES):
                self._go_on()
                await self._neighbors(ids[start : start + _QUERIES], where, least, clusters)
                await self._send()
        for members in await asyncio.to_thread(clusters.groups):
            self._go_on()
            await self._give(members, len(members))
        await self._send()

    async def _repeated(self) -> list[str] | None:
        """The hashes that several items have; None: there are too many to be told."""
        facet = indexer_pb2.FacetRequest(key=HASH, limit=_FACET_VALUES)
        request = indexer_pb2.GetFacetsRequest(collection=self.collection, filter=self._where(), facets=[facet])
        counted = (await self.of.indexer.facets(request, self._patience())).facets[0]
        repeated = [each for each in counted.values if each.count > 1]
        if len(repeated) == len(counted.values) < counted.distinct:
            return None
        self.total = sum(each.count for each in repeated)
        return sorted(each.value.string_value for each in repeated)

    async def _runs(self, where: Filter) -> None:
        """Reads items in the order of their hashes, and gives each run of equal ones."""
        same, members, count = "", list[tuple[str, float]](), 0
        async for page in self._pages(self._where(where), HASH, ItemFields(metadata=True)):
            for item in page:
                value = item.metadata.fields[HASH].string_value
                if value != same:
                    await self._give(members, count)
                    same, members, count = value, [], 0
                count += 1
                if value and len(members) < MAX_GROUP:  # equal values come in the order of their ids
                    members.append((item.id, 1.0))
            self.done += len(page)
            await self._send()
        await self._give(members, count)

    async def _neighbors(self, ids: Sequence[str], where: Filter | None, least: float, clusters: Clusters) -> None:
        queries = [
            indexer_pb2.Query(
                examples=[indexer_pb2.Example(id=item_id)],
                filter=where,
                min_score=least,
                top_k=self.request.neighbors or 10,
            )
            for item_id in ids
        ]
        request = indexer_pb2.QueryRequest(collection=self.collection, queries=queries)
        try:
            answer = await self.of.indexer.query(request, self._patience())
        except LikenessError as error:
            raise in_request(error, lambda name: name.partition("].")[2] or name) from error
        for item_id, result in zip(ids, answer.results, strict=True):
            if result.HasField("error"):
                failure = from_status(result.error.status)
                if failure.reason != error_pb2.REASON_ITEM_NOT_FOUND:  # deleted since its page was read
                    raise in_request(failure, lambda name: name.partition("].")[2] or name)
            for hit in result.hits:
                clusters.join(item_id, hit.id, hit.score)
        self.done += len(ids)

    async def _give(self, members: Sequence[tuple[str, float]], count: int) -> None:
        """Adds a group, if it is one, and sends what has come together when that is enough for a message."""
        if count < 2:
            return
        shown = dict(members[:MAX_GROUP])
        if self.waiting + len(shown) > _ITEMS:
            await self._send()
        self.found.append(_Group(shown, count))
        self.waiting += len(shown)

    async def _send(self) -> None:
        """Writes how far it is, and the groups that wait."""
        groups, self.found, self.waiting = self.found, [], 0
        self.total = max(self.total, self.done)
        fields = items.wanted(self.request)
        ids = [item_id for group in groups for item_id in group.scores]
        stored: dict[str, indexer_pb2.Item] = {}
        for start in range(0, len(ids), _ITEMS):
            read = indexer_pb2.GetItemsRequest(
                collection=self.collection, ids=ids[start : start + _ITEMS], fields=items.to_read(fields)
            )
            stored |= {item.id: item for item in (await self.of.indexer.get(read, self._patience())).items}
        message, size = self._progress(), 0
        for group in groups:
            shown, its_size = _shown(group, stored, fields)
            if len(shown.items) < 2:
                continue
            if message.groups and size + its_size > MAX_BYTES:
                await self.write(message)
                message, size = self._progress(), 0
            message.groups.append(shown)
            size += its_size
        await self.write(message)

    def _progress(self) -> gateway_pb2.FindDuplicatesResponse:
        return gateway_pb2.FindDuplicatesResponse(done=self.done, total=self.total)

    async def _pages(
        self, where: Filter | None, order_by: str, fields: ItemFields
    ) -> AsyncIterator[Sequence[indexer_pb2.Item]]:
        token = ""
        while True:
            self._go_on()
            listing = indexer_pb2.ListItemsRequest(
                collection=self.collection,
                filter=where,
                order_by=order_by,
                page_size=_PAGE,
                page_token=token,
                fields=fields,
            )
            with at_token(token, "", "FindDuplicates"):
                page = await self.of.indexer.list(listing, self._patience())
            yield page.items
            token = page.next_page_token
            if not token:
                return

    def _where(self, also: Filter | None = None) -> Filter | None:
        """The request's filter, and another condition."""
        if not self.request.HasField("filter"):
            return also
        theirs = self.request.filter
        if also is None:
            return theirs
        # Beside the caller's conditions where they are such a list: the depth of a filter is limited.
        beside = theirs.all_of.filters if theirs.WhichOneof("node") == "all_of" else [theirs]
        return Filter(all_of=FilterList(filters=[*beside, also]))

    def _patience(self) -> float:
        return patience(self.deadline, self.of.longest_call_s)

    def _go_on(self) -> None:
        if self.of.stopping.is_set():
            raise shutting_down("begin again at another gateway")


def _shown(
    group: _Group, stored: Mapping[str, indexer_pb2.Item], fields: ItemFields
) -> tuple[gateway_pb2.DuplicateGroup, int]:
    """The group as clients see it, with as many of its items as a message can carry, and its size in bytes."""
    shown, size = gateway_pb2.DuplicateGroup(count=group.count), _ENVELOPE_BYTES
    for item_id, score in group.scores.items():
        if item_id not in stored:  # deleted since
            continue
        item = gateway_pb2.DuplicateItem(item=items.from_stored(stored[item_id], fields), score=score)
        size += item.ByteSize() + _ENVELOPE_BYTES
        if size > MAX_BYTES:
            break
        shown.items.append(item)
    return shown, size
