"""BatchSearch: many searches in one call."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from likeness.common.v1 import error_pb2
from likeness.gateway.v1 import gateway_pb2

from chassis.deadline import Deadline
from chassis.errors import LikenessError, invalid, to_item_error
from gateway import queries
from gateway.search import INLINE_ROWS, Search, no_room, rows
from gateway.streams import MAX_BYTES

MAX_SEARCHES = 128
# Of all searches of a call, as the indexer takes them of a Query call, and, of facets, as many as it has time for.
MAX_HITS, MAX_CANDIDATES, MAX_FACETS = queries.MAX_HITS, 20_000, 128


@dataclass(frozen=True)
class BatchSearch:
    """Answers searches together: one round to the embedder, one to the indexer."""

    search: Search

    async def __call__(
        self, request: gateway_pb2.BatchSearchRequest, deadline: Deadline
    ) -> gateway_pb2.BatchSearchResponse:
        """Every search gets an answer or an error of its own.

        Raises:
            LikenessError: there are too many searches, or they ask for too much together.
        """
        check(request)
        outcomes, timings = await self.search.many(request.searches, deadline, split=True)
        if sum(map(rows, outcomes)) > INLINE_ROWS:
            return await asyncio.to_thread(_together, outcomes, timings)
        return _together(outcomes, timings)


def check(request: gateway_pb2.BatchSearchRequest) -> None:
    """Checks what the searches ask for together; one that is refused by itself does not count.

    Raises:
        LikenessError: FIELD_INVALID or BATCH_TOO_LARGE.
    """
    searches = request.searches
    if not searches:
        raise invalid("searches", f"is empty; expected 1 to {MAX_SEARCHES} searches")
    if len(searches) > MAX_SEARCHES:
        raise _too_large(f"{len(searches)} searches; expected 1 to {MAX_SEARCHES}")
    fair = [each for each in searches if not queries.asks_too_much(each)]
    for asked, most, what in (
        (sum(map(queries.hits, fair)), MAX_HITS, "hits, those before their offsets included,"),
        (sum(map(queries.candidates, fair)), MAX_CANDIDATES, "candidates of a rescore"),
        (sum(len(each.facets) for each in fair), MAX_FACETS, "facets"),
    ):
        if asked > most:
            raise _too_large(f"ask for {asked:,} {what} together; at most {most:,} are given: send several calls")


def _together(
    outcomes: Sequence[gateway_pb2.SearchResponse | LikenessError], timings: gateway_pb2.SearchTimings
) -> gateway_pb2.BatchSearchResponse:
    """The answer: as much of what was found as there is room for."""
    response = gateway_pb2.BatchSearchResponse(timings=timings)
    size = 0
    for outcome in outcomes:
        if isinstance(outcome, LikenessError):
            response.results.add(error=to_item_error(outcome))
            continue
        its_size = outcome.ByteSize()
        if size + its_size > MAX_BYTES:
            response.results.add(error=to_item_error(no_room()))
        else:
            size += its_size
            response.results.add(response=outcome)
    return response


def _too_large(description: str) -> LikenessError:
    return invalid("searches", description, error_pb2.REASON_BATCH_TOO_LARGE)
