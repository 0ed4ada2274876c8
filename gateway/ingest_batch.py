"""IndexBatch: a bounded batch of pictures, for clients without streams; the same stream takes them, and ends."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from likeness.common.v1 import error_pb2
from likeness.gateway.v1 import gateway_pb2

from chassis.deadline import Deadline
from chassis.errors import from_status, invalid, to_item_error
from gateway.ingest import Ingest
from gateway.ingest_stream import Stream
from gateway.requests import renamed

MAX_ITEMS = 64


@dataclass(frozen=True)
class IngestBatch:
    """Takes batches in."""

    ingest: Ingest

    async def __call__(
        self, request: gateway_pb2.IndexBatchRequest, deadline: Deadline
    ) -> gateway_pb2.IndexBatchResponse:
        """Results in the order of the items.

        Raises:
            LikenessError: the collection or the options are refused, there are too many items, too many batches or
                streams are under way, or a service behind the gateway cannot be reached or has too much to do.
        """
        count = len(request.items)
        if count == 0:
            raise invalid("items", f"is empty; expected 1 to {MAX_ITEMS} items")
        if count > MAX_ITEMS:
            description = f"{count} items; at most {MAX_ITEMS} are taken: send several calls, or a stream"
            raise invalid("items", description, error_pb2.REASON_BATCH_TOO_LARGE)
        async with self.ingest.place():
            opened = await self.ingest.open(request, "", deadline)
            collected = _Collected()
            # A host that does not answer must leave time for the other pictures.
            fetch_s = min(self.ingest.services.settings.ingest_call_s, deadline.left() / 2)
            # When the gateway stops, a call that has come is seen through.
            stream = Stream(self.ingest.services, opened.target, asyncio.Event(), fetch_s=fetch_s)
            await stream.run(_each(request.items), collected)
        return gateway_pb2.IndexBatchResponse(
            collection=opened.target.collection,
            fingerprint=opened.fingerprint,
            created=opened.created,
            results=[collected.results[place] for place in range(count)],
        )


@dataclass
class _Collected:
    """Results by place."""

    results: dict[int, gateway_pb2.IndexResult] = field(default_factory=dict)

    async def result(self, place: int, result: gateway_pb2.IndexResult) -> None:
        if result.HasField("error"):
            error = renamed(from_status(result.error.status), lambda name: _in_batch(name, place))
            result.error.CopyFrom(to_item_error(error))
        self.results[place] = result

    async def backoff(self, seconds: float) -> None:
        """Nobody is there to be told: the call takes longer."""

    def due_in(self) -> float | None:
        return None

    async def checkpoint(self) -> None:
        """The answer tells everything."""


async def _each(items: Sequence[gateway_pb2.IndexItem]) -> AsyncIterator[gateway_pb2.IndexItem]:
    for item in items:
        yield item


def _in_batch(name: str, place: int) -> str:
    """The name, in an IndexBatchRequest, of a field that is named in its item."""
    return re.sub(r"^item\b", f"items[{place}]", name)
