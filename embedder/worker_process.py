"""The serving process's end of a model process: start, speak, notice its end, kill."""

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import structlog
from google.rpc import status_pb2

from chassis.errors import from_status, incident
from embedder.inputs import Array, Tokens
from embedder.metrics import LostWhy
from embedder.settings import EmbedderSettings
from embedder.slab import SlabShape
from embedder.spec import ModelSpec
from embedder.wire import Head, pack, read

log = structlog.get_logger()

COMMAND = (sys.executable, "-m", "embedder.worker")

# How long a model process that was killed may take to end, in seconds. One that hangs in a driver never does.
GONE_S = 10.0


class WorkerLostError(Exception):
    """The model process has died, does not answer or fails always: ``why`` is "died", "stuck" or "failing"."""

    def __init__(self, why: LostWhy) -> None:
        super().__init__(why)
        self.why = why


class ForwardError(Exception):
    """The model process lives, but could not run the batch."""

    def __init__(self, message: str, *, out_of_memory: bool) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


class WorkerProcess:
    """A running model process.

    Attributes:
        spec: what it runs.
        lost: done once it is lost; the result says why.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        spec: ModelSpec,
        stuck_s: float,
    ) -> None:
        self.spec = spec
        self.lost: asyncio.Future[LostWhy] = asyncio.get_running_loop().create_future()
        self._process, self._reader, self._writer = process, reader, writer
        self._stuck_s = stuck_s
        self._sent = 0
        self._answers: dict[int, asyncio.Future[tuple[Head, bytes]]] = {}
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, settings: EmbedderSettings, shared: int, command: Sequence[str] = COMMAND) -> "WorkerProcess":
        """Starts one and waits, without limit, until it has loaded its model: a download may take long.

        Args:
            settings: the embedder's.
            shared: descriptor of the file for pixels.
            command: what to run; two descriptors are added.

        Raises:
            LikenessError: it says why it cannot load the model.
            WorkerLostError: it died while loading.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            # In a session of its own: Ctrl-C goes to a whole process group, and calls under way need the model.
            process = await asyncio.create_subprocess_exec(
                *command,
                str(theirs.fileno()),
                str(shared),
                pass_fds=(theirs.fileno(), shared),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection(sock=ours, limit=2**22)
            writer.write(pack({}, settings.model_dump_json().encode()))
            head, body = await read(reader)
            if head.get("failed"):
                raise from_status(status_pb2.Status.FromString(body))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            _kill(process)
            await _gone(process)
            log.error("the model process died while loading", exit_code=process.returncode)
            raise WorkerLostError("died") from error
        except BaseException:
            _kill(process)
            await _gone(process)
            if writer is not None:
                writer.close()
            raise
        return cls(process, reader, writer, ModelSpec.from_json(body), settings.stuck_s)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def share(self, slab: SlabShape) -> None:
        """Tells it how the pixels lie; once, before the first batch."""
        self._writer.write(pack({"slab": vars(slab)}))

    async def encode_images(self, slots: Sequence[int]) -> Array:
        """Embeds the pictures in these slots: float32 [n, dimension]; raises ForwardError or WorkerLostError."""
        return await self._ask({"kind": "image", "slots": list(slots)})

    async def encode_texts(self, tokens: Tokens) -> Array:
        """Embeds int64 [n, length]: float32 [n, dimension]; raises ForwardError or WorkerLostError."""
        return await self._ask({"kind": "text", "shape": tokens.shape}, tokens.tobytes())

    async def _ask(self, head: Head, body: bytes = b"") -> Array:
        if self.lost.done():
            raise WorkerLostError(self.lost.result())
        self._sent += 1
        number = self._sent
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._writer.write(pack({"seq": number, **head}, body))
        try:
            async with asyncio.timeout(self._stuck_s):
                answered, content = await answer
        except TimeoutError:
            log.error("the model process does not answer", seconds=self._stuck_s, pid=self.pid)
            self.lose("stuck")
            raise WorkerLostError("stuck") from None
        finally:
            self._answers.pop(number, None)
        if "error" in answered:
            raise ForwardError(answered["error"], out_of_memory=answered["memory"])
        return np.frombuffer(content, np.float32).reshape(answered["shape"])

    async def close(self) -> None:
        """Ends it at once and waits until it is gone, or ``GONE_S``: see ``_gone``."""
        self.lose("died")
        await asyncio.wait({self._reading})  # a cancellation of the caller's own goes on to the caller
        self._writer.close()
        await _gone(self._process)

    async def _read(self) -> None:
        try:
            while True:
                head, body = await read(self._reader)
                answer = self._answers.get(head["seq"])
                if answer is not None and not answer.done():
                    answer.set_result((head, body))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.lose("died")
        except Exception as error:
            incident("the model process's answers cannot be read", error)
            self.lose("died")

    def lose(self, why: LostWhy) -> None:
        """Kills it and says so to all who wait for it; once."""
        if self.lost.done():
            return
        self.lost.set_result(why)
        _kill(self._process)
        self._reading.cancel()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(WorkerLostError(why))


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        process.kill()


async def _gone(process: asyncio.subprocess.Process) -> None:
    """Waits for the end of a process that was killed, but not for ever: its successor may find the device free.

    If it does not, it says so, and the embedder stays NOT_SERVING, for an orchestrator to act.
    """
    try:
        async with asyncio.timeout(GONE_S):
            await process.wait()
    except TimeoutError:
        log.error(
            "the model process was killed and does not end; does its device hang?", pid=process.pid, seconds=GONE_S
        )
