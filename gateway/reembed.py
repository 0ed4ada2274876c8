"""ReembedCollection: fills a collection of the embedder's model with the pictures of another one, then moves an alias.

1. the source is gone through page by page; what the target lacks is embedded and stored there
2. it is gone through again, and what it does not have is deleted from the target, until a round changes nothing
3. the alias is moved, if it still stands for what it stood for at the beginning

One at a time of each collection, within this gateway.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import ItemFields
from likeness.embedder.v1 import embedder_pb2
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis import names
from chassis.deadline import Deadline
from chassis.errors import LikenessError, invalid
from gateway.backends import Embedder, Indexer
from gateway.collections import find_or_create
from gateway.fetch import Fetch, disabled
from gateway.media import Media
from gateway.originals import Originals
from gateway.reembed_page import PageFiller, Tally
from gateway.requests import at_token, collection_name, expected_fingerprint, mismatch, patience, shutting_down
from gateway.settings import GatewaySettings
from gateway.streams import STALLED_S, patient
from gateway.uids import forgettable, sharing

Write = Callable[[gateway_pb2.ReembedCollectionResponse], Awaitable[None]]

# Rounds behind the first.
_ROUNDS = 5
_PAGE = 256
_TELL_S = 2.0
_MOVES = 3
# What a message to the embedder holds besides the pictures.
_ENVELOPE_BYTES = 64 * 1024
_GO_ON = "go on at the last next_page_token that came"


@dataclass(frozen=True)
class Plan:
    """What a call is to do.

    Attributes:
        source: where the pictures are.
        target: the collection to fill.
        model: the embedder's.
        expected: what the alias stood for at the beginning; empty: there was none.
    """

    source: indexer_pb2.Collection
    target: indexer_pb2.Collection
    model: embedder_pb2.GetModelResponse
    expected: str


@dataclass(frozen=True)
class Reembed:
    """Embeds collections anew.

    Attributes:
        embedder: makes the new vectors, behind whatever is interactive.
        indexer: has both collections.
        media: has the originals.
        fetch: gives what is behind uris.
        settings: how many at once, and how long a call may take.
        stopping: is set when the gateway stops.
        under_way: uids of the collections that are being read or filled.
        stalled_s: how long a message waits for its reader, in seconds.
    """

    embedder: Embedder
    indexer: Indexer
    media: Media
    fetch: Fetch
    settings: GatewaySettings
    stopping: asyncio.Event
    under_way: set[str] = field(default_factory=set)
    stalled_s: float = STALLED_S

    async def __call__(self, request: gateway_pb2.ReembedCollectionRequest, write: Write, deadline: Deadline) -> None:
        """Tells page by page how far it is.

        Raises:
            LikenessError: the request is refused, the alias was moved by somebody else (ALIAS_MOVED), the embedder's
                model changed (MODEL_MISMATCH), a service cannot be reached, the gateway stops (SHUTTING_DOWN), or
                nobody reads (DEADLINE_EXCEEDED).
        """
        plan = await self._plan(request, deadline)
        with self._alone(plan):
            await _Run(self, request, plan, patient(write, self.stalled_s, _GO_ON), deadline).run()

    async def _plan(self, request: gateway_pb2.ReembedCollectionRequest, deadline: Deadline) -> Plan:
        name = collection_name(request.collection)
        names.check_collection(request.target, "target")
        if request.alias:
            names.check_collection(request.alias, "alias")
            if request.alias == request.target:
                raise invalid("alias", f"{request.alias!r} is the target's own name; expected another one")
        if request.fetch_uris and not self.fetch.enabled:
            raise disabled("fetch_uris")
        expected = expected_fingerprint(request)
        model = await self.embedder.model(self.time(deadline))
        if expected is not None and expected.digest != model.fingerprint.digest:
            raise mismatch(model.fingerprint, expected, "the model that the request expects")
        source = await self.indexer.collection(name, self.time(deadline))
        stood_for = await self._check_alias(request, name, source.name, deadline)
        target, _ = await find_or_create(
            self.indexer, request.target, model.fingerprint, self.time(deadline), create=True, metric=source.metric
        )
        if target.uid == source.uid:
            raise invalid("target", f"{request.target!r} is the collection itself; expected another one")
        if target.name != request.target:
            raise invalid("target", f"{request.target!r} is an alias; expected a collection that is not in use yet")
        _check_unused(request, target)
        return Plan(source, target, model, stood_for)

    async def _check_alias(
        self, request: gateway_pb2.ReembedCollectionRequest, named: str, source: str, deadline: Deadline
    ) -> str:
        """What the alias stands for; once it stands for the target, a repeated call must not write to that any more.

        Args:
            request: names the alias and the target.
            named: what the request calls the source, maybe by that alias, which then leads to the target by now.
            source: the source's own name.
            deadline: by when.
        """
        if not request.alias:
            return ""
        aliases = {alias.name: alias.collection for alias in await self.indexer.aliases(self.time(deadline))}
        stands_for = aliases.get(request.alias, "")
        if stands_for == request.target != named:
            message = (
                f"alias {request.alias!r} stands for the target {stands_for!r} already; nothing was done: an earlier "
                "call has moved it"
            )
            raise LikenessError(error_pb2.REASON_ALIAS_MOVED, message)
        if stands_for not in ("", source):
            message = f"alias {request.alias!r} stands for {stands_for!r}, not for {source!r}; nothing was done"
            raise LikenessError(error_pb2.REASON_ALIAS_MOVED, message)
        if not stands_for and await self._is_collection(request.alias, deadline):
            message = f"alias: {request.alias!r} is the name of a collection"
            raise LikenessError(error_pb2.REASON_COLLECTION_EXISTS, message)
        return stands_for

    async def _is_collection(self, name: str, deadline: Deadline) -> bool:
        try:
            await self.indexer.collection(name, self.time(deadline))
        except LikenessError as error:
            if error.reason != error_pb2.REASON_COLLECTION_NOT_FOUND:
                raise
            return False
        return True

    @contextmanager
    def _alone(self, plan: Plan) -> Iterator[None]:
        both = {plan.source.uid: plan.source.name, plan.target.uid: plan.target.name}
        for uid, name in both.items():
            if uid in self.under_way:
                message = f"collection {name!r} is being embedded anew already; wait for that, or end it"
                raise LikenessError(error_pb2.REASON_COLLECTION_BUSY, message)
        self.under_way.update(both)
        try:
            yield
        finally:
            self.under_way.difference_update(both)

    def time(self, deadline: Deadline) -> float:
        """Seconds for one call."""
        return patience(deadline, self.settings.default_deadline_s)


class _Run:
    """One call under way."""

    def __init__(
        self,
        reembed: Reembed,
        request: gateway_pb2.ReembedCollectionRequest,
        plan: Plan,
        write: Write,
        deadline: Deadline,
    ) -> None:
        self._reembed = reembed
        self._indexer = reembed.indexer
        self._request = request
        self._plan = plan
        self._write = write
        self._deadline = deadline
        self._tally = Tally()
        self._total = 0
        self._token = request.page_token
        limits, settings = plan.model.limits, reembed.settings
        largest_message = min(settings.max_message_mb * 2**20, limits.max_message_bytes or 2**40)
        fetch = reembed.fetch if request.fetch_uris else None
        self._filler = PageFiller(
            embedder=reembed.embedder,
            indexer=reembed.indexer,
            media=reembed.media,
            originals=Originals(
                reembed.media,
                fetch,
                plan.source.uid,
                limits.max_encoded_bytes or 2**40,
                plan.source.earlier_uids,
            ),
            source=plan.source,
            target=plan.target,
            settings=settings,
            max_inputs=limits.max_inputs,
            max_message_bytes=largest_message - _ENVELOPE_BYTES,
            keep_originals=request.keep_originals,
            stopping=reembed.stopping,
            tally=self._tally,
        )

    async def run(self) -> None:
        """To the end."""
        counting = indexer_pb2.CountItemsRequest(collection=self._plan.source.name)
        self._total = await self._indexer.count(counting, self._time())
        await self._go_through(self._request.page_token, first=True)
        for _ in range(_ROUNDS):
            before = self._tally.changes
            self._tally.begin_round()
            await self._go_through("", first=False)
            self._tally.end_round()
            if not self._request.keep_extra_items:
                await self._telling(self._remove_extra())
            if self._tally.changes == before:
                break
        switched = False
        if self._request.alias and (not self._tally.failed or self._request.switch_despite_failures):
            await self._move()
            switched = True
        await self._tell(switched=switched, finished=True)

    async def _go_through(self, token: str, *, first: bool) -> None:
        """Every page of the source behind a token."""
        listing = indexer_pb2.ListItemsRequest(
            collection=self._plan.source.name, page_size=_PAGE, page_token=token, fields=ItemFields(metadata=True)
        )
        while True:
            self._check_stopping()
            with at_token(listing.page_token, token, "ReembedCollection"):
                page = await self._indexer.list(listing, self._time())
            await self._check_same()
            await self._telling(self._filler.fill(page.items, again=not first))
            self._check_stopping()
            listing.page_token = page.next_page_token
            self._token = page.next_page_token if first else ""
            await self._tell()
            if not page.next_page_token:
                return

    async def _remove_extra(self) -> None:
        """Deletes from the target what the source does not have."""
        source, target = self._plan.source, self._plan.target
        # Somebody may have put it to use since the last look.
        _check_unused(self._request, await self._indexer.collection(target.name, self._time()))
        shared = await sharing(self._indexer, target, self._time)
        listing = indexer_pb2.ListItemsRequest(collection=target.name, page_size=_PAGE, fields=ItemFields())
        while True:
            self._check_stopping()
            with at_token(listing.page_token, "", "ReembedCollection"):
                page = await self._indexer.list(listing, self._time())
            ids = [item.id for item in page.items]
            if ids:
                looking = indexer_pb2.GetItemsRequest(collection=source.name, ids=ids, fields=ItemFields())
                extra = (await self._indexer.get(looking, self._time())).missing_ids
                if extra:
                    media = self._reembed.media
                    async with media.leaving([target.uid, *shared], extra):
                        elsewhere = await forgettable(self._indexer, extra, shared, self._time)
                        await self._check_same()  # to a source made anew, everything would be too much
                        for uid, theirs in [(target.uid, extra), *elsewhere]:
                            await media.forget(uid, theirs)
                        gone = indexer_pb2.DeleteItemsRequest(collection=target.name, ids=extra)
                        await self._indexer.delete(gone, self._time())
                    self._tally.remove(len(extra))
            if not page.next_page_token:
                return
            listing.page_token = page.next_page_token

    async def _move(self) -> None:
        """Moves the alias. Whether it was moved by a call that got no answer shows by what it stands for then."""
        await self._check_same()
        moving = indexer_pb2.SetAliasRequest(
            alias=self._request.alias, collection=self._plan.target.name, expected_collection=self._plan.expected
        )
        for attempt in range(_MOVES):
            try:
                await self._indexer.set_alias(moving, self._time())
            except LikenessError as error:
                uncertain = (error_pb2.REASON_INDEXER_UNAVAILABLE, error_pb2.REASON_STORE_UNAVAILABLE)
                if error.reason not in uncertain or attempt == _MOVES - 1:
                    raise
                aliases = await self._indexer.aliases(self._time())
                if any((each.name, each.collection) == (moving.alias, moving.collection) for each in aliases):
                    return
            else:
                return

    async def _telling(self, work: Coroutine[Any, Any, None]) -> None:
        """Does the work, and says every few seconds how far it is."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=_TELL_S))[0]:
                await self._tell()
            task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    async def _tell(self, *, switched: bool = False, finished: bool = False) -> None:
        tally = self._tally
        await self._write(
            gateway_pb2.ReembedCollectionResponse(
                done=tally.done,
                total=max(self._total, tally.done),
                embedded=tally.embedded,
                unchanged=tally.unchanged,
                failed=tally.failed,
                failures=tally.take_failures(),
                next_page_token=self._token,
                removed=tally.removed,
                switched=switched,
                finished=finished,
            )
        )

    async def _check_same(self) -> None:
        """Ends the call if one of the collections was deleted, also where another one has its name by now."""
        for each in (self._plan.source, self._plan.target):
            if await self._indexer.uid(each.name, self._time()) != each.uid:
                message = f"collection {each.name!r} was deleted and made anew meanwhile; begin again for the new one"
                raise LikenessError(error_pb2.REASON_COLLECTION_NOT_FOUND, message)

    def _check_stopping(self) -> None:
        if self._reembed.stopping.is_set():
            raise shutting_down(f"{_GO_ON} in a new stream")

    def _time(self) -> float:
        return self._reembed.time(self._deadline)


def _check_unused(request: gateway_pb2.ReembedCollectionRequest, target: indexer_pb2.Collection) -> None:
    """What serves already has items of its own, which must not be deleted because the source does not have them."""
    if target.aliases and not request.keep_extra_items:
        message = (
            f"target {target.name!r} is in use: alias {target.aliases[0]!r} stands for it, and what the source does "
            "not have would be deleted; set keep_extra_items, or name another target"
        )
        raise LikenessError(error_pb2.REASON_COLLECTION_ALIASED, message)
