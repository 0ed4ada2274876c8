"""A Chroma server that somebody else runs."""

import asyncio
import ssl
import time

import httpx
import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.chroma_server import Down, Up, heartbeat, log_failure

log = structlog.get_logger()

WATCH_S = 1.0


class RemoteChroma:
    """A server that somebody else runs: found at start, watched from then on."""

    def __init__(
        self, url: str, headers: dict[str, str], start_s: float, up: Up, down: Down, *, ca_file: str = ""
    ) -> None:
        """A server that has not been looked for yet.

        Args:
            url: where it is.
            headers: sent with every heartbeat, since whatever guards the server may guard that path too.
            start_s: longest wait for it to answer, in seconds.
            up: called with the URL whenever Chroma has begun to answer.
            down: called with the reason whenever it has gone.
            ca_file: of the authority that has signed the server's certificate; empty: the usual ones.
        """
        self._url = url
        self._ca_file = ca_file
        self._headers = headers
        self._start_s = start_s
        self._up = up
        self._down = down
        self._stopping = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Waits until it answers, and watches it from then on."""
        began = time.monotonic()
        why = await self._try()
        while why is not None:
            if time.monotonic() - began > self._start_s:
                message = f"no Chroma server at {self._url} in {self._start_s:g} s ({why}); see LIKENESS_CHROMA_URL"
                raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, message)
            log.info("waiting for Chroma", url=self._url, why=why)
            if await self._stopped_within(WATCH_S):
                return
            why = await self._try()
        self._watch = asyncio.create_task(self._look(), name="watch over Chroma")
        self._watch.add_done_callback(log_failure)

    async def stop(self) -> None:
        """Stops watching."""
        self._stopping.set()
        if self._watch is not None:
            await asyncio.wait({self._watch})

    async def _look(self) -> None:
        serving = True
        verify = ssl.create_default_context(cafile=self._ca_file) if self._ca_file else True
        async with httpx.AsyncClient(timeout=5.0, headers=self._headers, verify=verify) as http:
            while not await self._stopped_within(WATCH_S):
                if serving:
                    # One late answer is no outage: a second look decides.
                    serving = await heartbeat(http, self._url) or await heartbeat(http, self._url)
                    if not serving:
                        await self._down(f"no heartbeat from {self._url}")
                else:
                    serving = await self._try() is None

    async def _try(self) -> str | None:
        try:
            await self._up(self._url)
        except LikenessError as error:
            return error.message
        return None

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stopping.wait()
        except TimeoutError:
            return False
