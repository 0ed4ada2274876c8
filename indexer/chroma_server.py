"""The Chroma server that the indexer starts and looks after; ``chroma_remote`` has those of somebody else.

Either tells the indexer when Chroma can be spoken to, and when it cannot.
"""

import asyncio
import os
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from pathlib import Path
from typing import Protocol

import httpx
import structlog
from likeness.common.v1 import error_pb2

from chassis import tether
from chassis.errors import LikenessError
from chassis.unbroken import unbroken
from indexer.chroma_process import QUIET, command
from indexer.lock import DirectoryLock
from indexer.mending import DamagedIndexError, cause, mended
from indexer.reclaim import COPIES

log = structlog.get_logger()

HOST = "127.0.0.1"
PATIENCE_S = 5.0
STOP_S = 10.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
# For how long, and how often, one that runs may leave its heartbeat unanswered.
SILENT_S, HEARTBEATS = 30.0, 6
_START_TRIES = 3
# Between two looks at an index that cannot be mended, unless somebody puts another in its place.
_DAMAGED_PAUSE_S = 60.0
_TETHER = str(Path(tether.__file__).absolute())


class ChromaServer(Protocol):
    """A Chroma server."""

    async def start(self) -> None:
        """Returns when Chroma can be spoken to, after having said so through ``up``.

        Raises:
            LikenessError: STORE_UNAVAILABLE: it cannot be had.
        """

    def hurry(self) -> None:
        """The indexer stops: a Chroma that is being started is not waited for as long as otherwise."""

    async def stop(self) -> None:
        """Ends what was started. Harmless when nothing was."""


Up = Callable[[str], Awaitable[None]]
Down = Callable[[str], Awaitable[None]]


class LocalChroma:
    """``chroma run`` on a free loopback port, started again whenever it dies or hangs, gone when the indexer is."""

    def __init__(self, data_dir: Path, start_s: float, up: Up, down: Down, *, silent_s: float = SILENT_S) -> None:
        """A server that is not started yet.

        Args:
            data_dir: holds the lock, and Chroma's own directory ``chroma``.
            start_s: longest wait for it to answer, in seconds.
            up: called with the URL whenever Chroma has begun to answer.
            down: called with the reason whenever it has gone.
            silent_s: after how many seconds without an answer it is killed, and started anew.
        """
        self._silent_s = silent_s
        self._url = ""
        self._directory = data_dir.absolute() / "chroma"
        self._copies = data_dir.absolute() / COPIES
        self._lock = DirectoryLock(data_dir)
        self._files_lock = DirectoryLock(self._directory)  # kept by ``chroma_process``, too
        self._start_s = start_s
        self._up = up
        self._down = down
        self._process: asyncio.subprocess.Process | None = None
        self._output: asyncio.Task[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=20)
        self._stopping = asyncio.Event()
        self._supervision: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()  # of whoever ends and starts the process
        self._away = True  # until a launch succeeds

    async def start(self) -> None:
        """Takes the directory, starts Chroma, and keeps it running from then on."""
        await self._lock.acquire(PATIENCE_S)
        await self._files_lock.acquire(PATIENCE_S)
        _no_proxy_to_loopback()
        for failures in range(1, _START_TRIES + 1):
            try:
                await self._launch()
                break
            except LikenessError as error:
                if failures == _START_TRIES or isinstance(error, DamagedIndexError):
                    raise
                log.warning("starting Chroma again", why=error.message)
        self._supervision = asyncio.create_task(self._supervise(), name="supervision of Chroma")
        self._supervision.add_done_callback(log_failure)

    def hurry(self) -> None:
        """See ``ChromaServer``: a start has no more time than an end, from now on."""
        self._start_s = min(self._start_s, STOP_S)

    async def stop(self) -> None:
        """Asks Chroma to end, insists after a while, and gives the directory free."""
        self._stopping.set()
        if self._supervision is not None:
            await asyncio.wait({self._supervision})
        async with self._turn:  # whoever works on Chroma's files is done then
            await self._end()
        self._files_lock.release()
        self._lock.release()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Chroma is ended, and nobody touches its files but the block; then it runs again.

        Whoever calls this keeps requests from it meanwhile. ``down`` is not called, unless it does not come back.

        Raises:
            LikenessError: STORE_UNAVAILABLE: it does not run anyway; or it did not come back at once, and is tried
                again.
        """
        self._require_there()  # nobody waits for one that is being brought back, which takes long
        async with self._turn:
            self._require_there()
            try:
                await self._end()
                yield
            finally:
                await unbroken(self._launch())  # whoever is cancelled just now, others wait for Chroma

    def _require_there(self) -> None:
        if self._away or self._stopping.is_set():
            message = "Chroma is away, so its files cannot be worked on; try again"
            raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, message, retry_after_s=1.0)

    async def _supervise(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stopping.is_set():
            began, process = time.monotonic(), self._running
            if await self._stopped_or(self._watch(process)):
                return
            async with self._turn:
                if not self._away and self._process is not process:  # it was ended on purpose, and another runs
                    continue
                await self._gone(process)
            if time.monotonic() - began > LONGEST_PAUSE_S:
                pause = FIRST_PAUSE_S
            pause = await self._bring_back(pause)

    async def _gone(self, process: asyncio.subprocess.Process) -> None:
        """Says that it is away; one that hangs is killed."""
        self._away = True
        if process.returncode is None:
            why = f"Chroma has not answered for {self._silent_s:g} s"
            process.kill()  # asked to end, one that hangs would take its time
        else:
            why = f"Chroma ended with {cause(process.returncode)}"
        try:
            await self._down(why)
        except Exception as error:  # whatever it is, Chroma is to come back
            log.error("whoever asks Chroma was not told that it is away", exc_info=error)
        log.error("Chroma is away", why=why, last_lines=list(self._last_lines))

    async def _bring_back(self, pause: float) -> float:
        """Tries to start it, ever more rarely, until it answers or ``stop``; returns the pause before the next try."""
        while not await self._stopped_or(asyncio.sleep(pause)):
            pause = min(pause * 2, LONGEST_PAUSE_S)
            try:
                async with self._turn:
                    await self._launch()
                break
            except Exception as error:  # whatever it is (a full disk, say), the next try may succeed
                pause = _DAMAGED_PAUSE_S if isinstance(error, DamagedIndexError) else pause
                log.error("Chroma does not come back yet", why=str(error), next_try_s=pause)
        return pause

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """As ``_ended_or_silent``, which is tried again if it fails, for want of open files say."""
        while True:
            try:
                return await self._ended_or_silent(process)
            except Exception as error:
                log.error("cannot look after Chroma just now", next_try_s=LONGEST_PAUSE_S, exc_info=error)
                await asyncio.sleep(LONGEST_PAUSE_S)  # a pace, not a wait for anything

    async def _ended_or_silent(self, process: asyncio.subprocess.Process) -> None:
        """Returns when the process has ended, or has left a number of heartbeats in a row unanswered."""
        ended = asyncio.create_task(process.wait())
        every, unanswered = self._silent_s / HEARTBEATS, 0
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=every) as http:
                while not ended.done() and unanswered < HEARTBEATS:
                    answered, _ = await asyncio.gather(heartbeat(http, self._url), asyncio.wait({ended}, timeout=every))
                    # While somebody ends it on purpose, it need not answer.
                    unanswered = 0 if answered or self._turn.locked() else unanswered + 1
        finally:
            ended.cancel()

    async def _launch(self) -> None:
        """Starts one in place of what runs; as long as this has not succeeded, it is away."""
        self._away = True
        await self._end()
        await mended(self._spawn, self._directory, self._copies)
        if self._stopping.is_set():
            return
        port = _free_port()
        self._last_lines.clear()
        self._process = await self._spawn(command(self._directory, HOST, port))
        self._lock.name_holders(self._process.pid)
        assert self._process.stdout is not None
        # In no call's trace, though an erasure may have it started.
        output = self._read(self._process.stdout)
        self._output = asyncio.create_task(output, name="output of Chroma", context=Context())
        url = self._url = f"http://{HOST}:{port}"
        if await self._stopped_or(self._answers(url)):
            return
        log.info("Chroma runs", url=url, pid=self._process.pid, path=str(self._directory))
        await self._up(url)
        self._away = False

    async def _spawn(self, command: list[str]) -> asyncio.subprocess.Process:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", _TETHER, str(os.getpid()), *command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                limit=2**20,
                env=_environment(),
                pass_fds=[self._lock.fileno, self._files_lock.fileno],
                # A Ctrl-C in the terminal is for the indexer, which ends Chroma after its last write.
                start_new_session=True,
            )
        except OSError as error:
            message = f"cannot run Chroma over {self._directory}: {error}"
            raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, message) from error

    async def _answers(self, url: str) -> None:
        """Returns when the server answers; raises if it ended before, or takes too long."""
        ended = asyncio.create_task(self._running.wait())
        began = time.monotonic()
        async with httpx.AsyncClient(trust_env=False, timeout=1.0) as http:
            while not await heartbeat(http, url):
                await asyncio.wait({ended}, timeout=0.05)
                if ended.done():
                    why = f"it ended with {cause(ended.result())}"
                elif time.monotonic() - began > self._start_s:
                    ended.cancel()
                    why = f"it gave no answer in {self._start_s:g} s (LIKENESS_CHROMA_START_S, {STOP_S:g} s at a stop)"
                else:
                    continue
                message = f"Chroma does not start over {self._directory}: {why}; {' | '.join(self._last_lines)}"
                raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, message)
        ended.cancel()

    @property
    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "not started"
        return self._process

    async def _end(self) -> None:
        """Ends the process, if there is one, and reads its output to the end."""
        process, output = self._process, self._output
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                log.warning("Chroma did not end when asked to; killing it", pid=process.pid, waited_s=STOP_S)
                process.kill()
                await process.wait()
        if output is not None:
            await output
        self._process = self._output = None

    async def _read(self, output: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await output.readline()
            except ValueError:  # a line longer than the buffer, which is dropped
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            if text:
                self._last_lines.append(text)
                log.debug("chroma", line=text)

    async def _stopped_or(self, work: Awaitable[object]) -> bool:
        """Waits for the work, or for ``stop``, which cancels it; True if it was ``stop``."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not task.done():
                task.cancel()
        if task.done():
            await task
        return self._stopping.is_set()


async def heartbeat(http: httpx.AsyncClient, url: str) -> bool:
    """Whether a server answers at ``url``."""
    try:
        return (await http.get(f"{url}/api/v2/heartbeat")).is_success
    except httpx.RequestError:  # no answer, or one that cannot be read
        return False


def _environment() -> dict[str, str]:
    """The child's: without what would configure Chroma behind our back, quiet, and sending nothing anywhere."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("CHROMA_", "OTEL_", "RUST_LOG"))}
    return inherited | QUIET | {"NO_COLOR": "1"}


def _no_proxy_to_loopback() -> None:
    # Chroma's client takes HTTP_PROXY from the environment, for loopback addresses too.
    exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = ",".join([*([exempt] if exempt else []), HOST])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def log_failure(task: asyncio.Task[None]) -> None:
    """Of what looks after Chroma: it should not end."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("no longer looking after Chroma", task=task.get_name(), exc_info=error)
