"""LIKENESS_WORKERS: several serving processes on one port, kept alive by a parent that does nothing else.

1. hold the port, so that nobody else has it and 0 means the same free one for all
2. start the first replica; when it serves, the others: what it downloads and converts they find
3. start anew what dies, after a pause that grows while it keeps dying
4. on SIGTERM or SIGINT have all finish their calls and end; on a second one, without LIKENESS_STOP_DELAY_S

The kernel gives each connection to one of the processes that listen. Metrics go from the replicas through files to
the parent, which shows them (``replica_metrics``). A replica that cannot start at all ends everything with its exit
code.
"""

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from chassis import logs
from chassis.stopping import HURRY
from chassis.tether import die_with
from embedder import replica_metrics
from embedder.settings import EmbedderSettings

log = structlog.get_logger()

COMMAND = (sys.executable, "-m", "embedder")

# What a parent tells its replicas. Not for users.
INDEX_VARIABLE = "LIKENESS_WORKER_INDEX"
PARENT_VARIABLE = "LIKENESS_WORKER_PARENT"
READY_VARIABLE = "LIKENESS_WORKER_READY"
LATE_VARIABLE = "LIKENESS_WORKER_LATE"

# What a replica may take to stop beyond the delay and the wait for its calls, in seconds: giving its model back.
STOP_S = 10.0

# Exit codes of a service that cannot start with these settings, on this machine.
_HOPELESS = (1, 2)


def _forget(_index: int) -> None:
    pass


@dataclass(frozen=True)
class Pauses:
    """Times of a parent, in seconds.

    Attributes:
        first: from a replica's first death to its next start; doubled with every death after that.
        longest: where that ends.
        healthy: a replica that served so long begins again with ``first``.
    """

    first: float = 0.5
    longest: float = 30.0
    healthy: float = 60.0


@dataclass(frozen=True)
class Replica:
    """What a replica knows of itself.

    Attributes:
        index: its number, from 0.
        late: whether others serve already, and it is to listen only when it can answer.
        ready: tells its parent that it serves; to be called once.
    """

    index: int
    late: bool
    ready: Callable[[], None]

    @classmethod
    def of_this_process(cls) -> "Replica | None":
        """What this process was started as; None if by no parent of replicas. To be called once, first of all.

        From here on the process dies with its parent.
        """
        index = os.environ.get(INDEX_VARIABLE)
        if index is None:
            return None
        die_with(int(os.environ.pop(PARENT_VARIABLE)))
        pipe = int(os.environ.pop(READY_VARIABLE))
        os.set_inheritable(pipe, False)

        def ready() -> None:
            os.write(pipe, b"1")
            os.close(pipe)

        return cls(int(index), os.environ.pop(LATE_VARIABLE) == "1", ready)


class Replicas:
    """Keeps processes alive until told to stop."""

    def __init__(
        self,
        count: int,
        stop_s: float,
        environment: Mapping[str, str],
        *,
        command: Sequence[str] = COMMAND,
        pauses: Pauses = Pauses(),
        died: Callable[[int], None] = _forget,
    ) -> None:
        """Nothing is started yet.

        Args:
            count: how many.
            stop_s: longest wait, in seconds, for a replica that was told to stop; it is killed then.
            environment: variables of a replica.
            command: what to run as one.
            pauses: before a dead one is started anew.
            died: called with the number of every replica that has died unasked, once it has and before the next one of
                that number is started.
        """
        self._count = count
        self._stop_s = stop_s
        self._environment = environment
        self._command = command
        self._pauses = pauses
        self._died = died
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        self._first_serves = asyncio.Event()
        self._exit_code = 0

    def stop(self) -> None:
        """Has every replica stop, and ``run`` return when all have; if called again, has them hurry."""
        (self._hurry if self._stop.is_set() else self._stop).set()

    async def run(self) -> int:
        """Returns the exit code once all have ended: 0; 1 if one had to be killed; that of one that cannot start."""
        stopping = asyncio.create_task(self._stop.wait())
        serves = asyncio.create_task(self._first_serves.wait())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep(0, stopping))
            await asyncio.wait({serves, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serves.done():
                for index in range(1, self._count):
                    tasks.create_task(self._keep(index, stopping))
            serves.cancel()
        return self._exit_code

    async def _keep(self, index: int, stopping: "asyncio.Task[Literal[True]]") -> None:
        """Has a replica run, one process after another, until all are told to stop."""
        pause, has_served = self._pauses.first, False
        while not stopping.done():
            try:
                pid, code, served_s = await self._run_one(index, stopping)
            except OSError as error:  # no file handle, no process to be had just now: the others serve on
                log.error("a replica cannot be started just now", replica=index, why=str(error), again_in_s=pause)
            else:
                if stopping.done():
                    return
                has_served = has_served or served_s > 0
                if not has_served and code in _HOPELESS:
                    log.error("a replica cannot start", replica=index, pid=pid, exit_code=code)
                    self._exit_code = code
                    self._stop.set()
                    return
                if served_s >= self._pauses.healthy:
                    pause = self._pauses.first
                log.error("a replica died", replica=index, pid=pid, exit_code=code, again_in_s=pause)
                self._died(index)
            await asyncio.wait({stopping}, timeout=pause)
            pause = min(2 * pause, self._pauses.longest)

    async def _run_one(self, index: int, stopping: "asyncio.Task[Literal[True]]") -> tuple[int, int, float]:
        """One process from its start to its end: its id, exit code, and how long it served, in seconds."""
        ready, theirs = os.pipe()
        os.set_blocking(ready, False)
        served = _readable(ready)
        try:
            process = await self._start(index, theirs)
        except BaseException:
            _close(ready)
            raise
        finally:
            os.close(theirs)
        ended = asyncio.create_task(process.wait())
        try:
            events: set[asyncio.Future[Any]] = {served, ended, stopping}
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            began = None
            if _told(ready):
                began = time.monotonic()
                log.info("a replica serves", replica=index, pid=process.pid)
                self._first_serves.set()
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._end(process, ended)
            return process.pid, await ended, 0.0 if began is None else time.monotonic() - began
        finally:
            _close(ready)
            if process.returncode is None:
                process.kill()

    async def _start(self, index: int, ready: int) -> asyncio.subprocess.Process:
        told = {
            INDEX_VARIABLE: str(index),
            PARENT_VARIABLE: str(os.getpid()),
            READY_VARIABLE: str(ready),
            LATE_VARIABLE: str(int(self._first_serves.is_set())),
        }
        return await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.DEVNULL, env={**self._environment, **told}, pass_fds=[ready]
        )

    async def _end(self, process: asyncio.subprocess.Process, ended: "asyncio.Task[int]") -> None:
        with suppress(ProcessLookupError):  # it has just ended
            process.terminate()
        hurried = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({ended, hurried}, timeout=self._stop_s, return_when=asyncio.FIRST_COMPLETED)
        if hurried.done() and not ended.done():
            with suppress(ProcessLookupError):
                process.send_signal(HURRY)
            await asyncio.wait({ended}, timeout=self._stop_s)
        hurried.cancel()
        if not ended.done():
            log.error("a replica did not stop and is killed", pid=process.pid, seconds=self._stop_s)
            self._exit_code = self._exit_code or 1
            with suppress(ProcessLookupError):
                process.kill()


def run(settings: EmbedderSettings) -> int:
    """Serves with ``settings.workers`` processes until told to stop; returns the exit code.

    0 after a clean stop; 1 or 2 if a replica cannot start, the port is taken, or metrics cannot be shown.
    """
    logs.configure(settings.log_level, settings.log_style, "EmbedderReplicas")
    with ExitStack() as held:
        try:
            port = held.enter_context(reserve(settings.host, settings.port)).getsockname()[1]
        except OSError as error:
            why = "cannot listen; is the address this machine's, and the port free?"
            log.error(why, address=settings.address, error=str(error))
            return 1
        environment = {**os.environ, "LIKENESS_EMBEDDER_PORT": str(port), "LIKENESS_EMBEDDER_METRICS_PORT": "-1"}
        environment.pop(replica_metrics.FOLDER_VARIABLE, None)  # one that is not ours others may write to as well
        died: Callable[[int], None] = _forget
        if settings.metrics_port >= 0:
            try:
                folder = held.enter_context(tempfile.TemporaryDirectory(prefix="likeness-metrics-"))
                died = replica_metrics.show(settings, folder, held)
            except OSError as error:
                log.error("cannot show metrics", host=settings.host, port=settings.metrics_port, why=str(error))
                return 1
            environment[replica_metrics.FOLDER_VARIABLE] = folder
        log.info("holds the port", host=settings.host, port=port, replicas=settings.workers)
        stop_s = settings.stop_delay_s + settings.drain_s + STOP_S
        replicas = Replicas(settings.workers, stop_s, environment, died=died)
        code = asyncio.run(_until_told(replicas))
        log.info("stopped", exit_code=code)
        return code


def reserve(host: str, port: int) -> socket.socket:
    """Takes the port for this process's replicas, and for nobody else; closing the socket gives it back.

    Args:
        host: an address of this machine, or a name of one.
        port: 0 to 65535; 0: any free one.

    Raises:
        OSError: somebody listens there, or it is no address of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    held = socket.socket(family, kind, protocol)
    try:
        # Bound as a port of one's own is, so that a listener that shares its port (a second parent's replica) is in
        # the way too; shared from then on. It never listens: connections go to those that do.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(address)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        held.close()
        raise
    return held


async def _until_told(replicas: Replicas) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, replicas.stop)
    return await replicas.run()


def _readable(pipe: int) -> "asyncio.Future[None]":
    """Done when something can be read from the pipe, be it its end."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        loop.remove_reader(pipe)
        readable.set_result(None)

    loop.add_reader(pipe, note)
    return readable


def _told(pipe: int) -> bool:
    """Whether something was written to the pipe; its end, of a process that never served, is nothing."""
    try:
        return bool(os.read(pipe, 1))
    except BlockingIOError:
        return False


def _close(pipe: int) -> None:
    asyncio.get_running_loop().remove_reader(pipe)
    os.close(pipe)
