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
        self._told = ""  # in the log, of what nobody expected

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

    def hurry(self) -> None:
        """See ``ChromaServer``: none is started here."""

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
                if not serving:
                    serving = await self._try() is None
                # One late answer is no outage: a second look decides.
                elif not (await heartbeat(http, self._url) or await heartbeat(http, self._url)):
                    serving = False
                    await self._gone(f"no heartbeat from {self._url}")

    async def _gone(self, why: str) -> None:
        try:
            await self._down(why)
        except Exception as error:  # whatever it is, Chroma is to be found again
            log.error("whoever asks Chroma was not told that it is away", exc_info=error)

    async def _try(self) -> str | None:
        """Why it cannot be had; None: it can."""
        try:
            await self._up(self._url)
        except LikenessError as error:
            return error.message
        except Exception as error:  # such as what its client makes of the page that a proxy answers with
            why = f"not an answer of Chroma's: {type(error).__name__}: {error}"
            if why != self._told:  # and not once a second
                log.error("cannot connect to Chroma", url=self._url, exc_info=error)
            self._told = why
            return why
        self._told = ""
        return None

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stopping.wait()
        except TimeoutError:
            return False
