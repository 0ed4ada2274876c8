"""The pictures of one ingest that are given by a uri: a few fetched at once, and again while a host is unavailable."""

import asyncio
from urllib.parse import urlsplit

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from gateway.backoff import growing_s
from gateway.fetch import Fetch

# Of one stream, or batch.
_AT_ONCE = 8
_FIELD = "item.image.uri"


class PatientFetch:
    """Fetches for one stream."""

    def __init__(self, fetch: Fetch, longest_s: float, max_bytes: int) -> None:
        """Fetches nothing yet.

        Args:
            fetch: does it.
            longest_s: how long one picture is waited for, all tries together.
            max_bytes: the most that one picture may have.
        """
        self._fetch = fetch
        self._longest_s = longest_s
        self._max_bytes = max_bytes
        self._places = asyncio.Semaphore(_AT_ONCE)
        # Hosts that were unavailable for all of that time: asked once for each picture, until they answer again.
        self._given_up: set[str] = set()

    async def __call__(self, uri: str) -> bytes:
        """The bytes behind a uri.

        Raises:
            LikenessError: it is not fetched; FETCH_UNAVAILABLE, after a while of it, says when to try again.
        """
        clock = asyncio.get_running_loop().time
        until, refused = clock() + self._longest_s, 0
        while True:
            try:
                async with self._places:
                    encoded = await self._fetch(uri, _FIELD, max(0.0, until - clock()), self._max_bytes)
            except LikenessError as error:
                if error.reason == error_pb2.REASON_DEADLINE_EXCEEDED:
                    raise self._late() from error
                if error.reason != error_pb2.REASON_FETCH_UNAVAILABLE:
                    raise
                host = urlsplit(uri).netloc
                # Not what the error says: that is meant for callers who would begin anew.
                wait_s = growing_s(refused)
                if host in self._given_up or clock() + wait_s > until:
                    self._given_up.add(host)
                    raise
            else:
                if self._given_up:
                    self._given_up.discard(urlsplit(uri).netloc)
                return encoded
            refused += 1
            await asyncio.sleep(wait_s)

    def _late(self) -> LikenessError:
        message = f"{_FIELD}: did not come within {self._longest_s:g} s; try again"
        return LikenessError(error_pb2.REASON_FETCH_UNAVAILABLE, message, retry_after_s=5.0)
