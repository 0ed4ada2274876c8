"""EmbedStream: an endless row of inputs, each answered by its number, in any order.

1. say which model and how large the window is
2. read a message whenever fewer inputs than the window are unanswered, and memory allows; each becomes a task
3. write answers as they come, one at a time
4. end when all that was read is answered and nothing more will be read: the client has ended its side, has sent
   something that ends the stream, or this process stops
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from likeness.common.v1 import types_pb2
from likeness.embedder.v1 import embedder_pb2

from chassis.errors import LikenessError, incident, invalid
from embedder.inputs import Faulty, Input, Lane, Outcome

Requests = AsyncIterator[embedder_pb2.EmbedStreamRequest]
Write = Callable[[embedder_pb2.EmbedStreamResponse], Awaitable[None]]
ToInput = Callable[[embedder_pb2.EmbedInput, str], Input]
ToResult = Callable[[Outcome], embedder_pb2.EmbedResult]

_LANES = {
    embedder_pb2.PRIORITY_UNSPECIFIED: Lane.BULK,
    embedder_pb2.PRIORITY_INTERACTIVE: Lane.INTERACTIVE,
    embedder_pb2.PRIORITY_BULK: Lane.BULK,
}


class Embedder(Protocol):
    """What turns an input into a vector."""

    async def embed_one(self, wanted: Input, lane: Lane) -> Outcome:
        """Waits for room, never refuses for overload; a bad input's outcome is its error."""

    async def wait_for_room(self, lane: Lane) -> None:
        """Returns when another input of this lane would not have to wait for room."""


class EmbedStream:
    """Serves every open EmbedStream of this process."""

    def __init__(
        self,
        fingerprint: types_pb2.ModelFingerprint,
        window: int,
        embedder: Embedder,
        to_input: ToInput,
        to_result: ToResult,
        *,
        max_held_bytes: int = 512 * 2**20,
    ) -> None:
        """Streams over one model.

        Args:
            fingerprint: of the model.
            window: most unanswered inputs of a stream, at least 1.
            embedder: what embeds them.
            to_input: a message and its name in the request, for errors → an input.
            to_result: what became of it → a message.
            max_held_bytes: no stream reads on while the inputs of all streams that were read and are not embedded yet
                take more than this.
        """
        self._opened = embedder_pb2.EmbedStreamOpened(fingerprint=fingerprint, window=window)
        self._shared = _Shared(window, embedder, to_input, to_result, _Held(max_held_bytes))
        self._open: set[_Stream] = set()
        self._stopping = False

    async def __call__(self, requests: Requests, write: Write) -> None:
        """Serves one stream to its end.

        Raises:
            LikenessError: a message that no stream takes; everything before it was then answered.
        """
        stream = _Stream(self._shared, write)
        await write(embedder_pb2.EmbedStreamResponse(opened=self._opened))
        self._open.add(stream)
        try:
            await stream.run(requests, stopping=self._stopping)
        finally:
            self._open.discard(stream)

    def stop(self) -> None:
        """Has every stream, open now or later, read nothing more, answer what it has read, and end."""
        if not self._stopping:
            self._stopping = True
            for stream in self._open:
                stream.stop()


class _Held:
    """Bytes of all streams' inputs that were read and are not embedded yet."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._below = asyncio.Event()
        self._below.set()

    def add(self, change: int) -> None:
        """So many bytes more, or fewer."""
        self._bytes += change
        if self._bytes < self._limit:
            self._below.set()
        else:
            self._below.clear()

    async def wait_until_below(self) -> None:
        """Returns at once while there is room for another input; a single one may be larger than the limit."""
        while self._bytes >= self._limit:
            await self._below.wait()


@dataclass(frozen=True)
class _Shared:
    """What all streams have in common."""

    window: int
    embedder: Embedder
    to_input: ToInput
    to_result: ToResult
    held: _Held


class _Stream:
    """One open stream."""

    def __init__(self, shared: _Shared, write: Write) -> None:
        self._shared = shared
        self._write = write
        self._room = asyncio.Semaphore(shared.window)
        self._tasks = asyncio.TaskGroup()
        self._reader: asyncio.Task[None] | None = None
        self._unanswered: set[int] = set()
        # Of the last input that was read, and so, as far as one can tell, of the next. A first one is read at once, or
        # an interactive one would wait for the room that bulk work leaves.
        self._lane = Lane.INTERACTIVE
        # None: nothing follows. Bounded by the window.
        self._answers: asyncio.Queue[embedder_pb2.EmbedStreamResponse | None] = asyncio.Queue()
        self._failure: Exception | None = None

    async def run(self, requests: Requests, *, stopping: bool) -> None:
        """Serves it; everything that was read is answered before a failure is raised."""
        async with self._tasks:
            self._reader = self._tasks.create_task(self._read(requests))
            self._reader.add_done_callback(self._end_if_answered)
            if stopping:
                self.stop()
            while (answer := await self._answers.get()) is not None:
                await self._write(answer)
                if answer.HasField("result"):
                    self._room.release()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Reads nothing more. A message that gRPC has, but has not handed over yet, counts as unread."""
        if self._reader is not None and not self._reader.done():
            stopping = embedder_pb2.EmbedStreamStopping()
            self._answers.put_nowait(embedder_pb2.EmbedStreamResponse(stopping=stopping))
            self._reader.cancel()

    async def _read(self, requests: Requests) -> None:
        try:
            while True:
                await self._room.acquire()
                await self._shared.held.wait_until_below()
                await self._shared.embedder.wait_for_room(self._lane)
                self._take(await anext(requests))
        except StopAsyncIteration:
            pass
        except Exception as error:  # raised by ``run``, after what came before was answered
            self._failure = error

    def _take(self, request: embedder_pb2.EmbedStreamRequest) -> None:
        # Without an await, so that a reader that is cancelled has either read a message and owes an answer, or not.
        number = request.correlation_id
        if number in self._unanswered:
            raise invalid("correlation_id", f"{number} was sent before and is still unanswered; expected another")
        self._lane = lane = _LANES.get(request.priority, Lane.BULK)
        if request.priority in _LANES:
            wanted = self._shared.to_input(request.input, "input")
        else:
            wanted = Faulty(invalid("priority", f"{request.priority}; expected a value of Priority"))
        self._unanswered.add(number)
        size = request.ByteSize()
        self._shared.held.add(size)
        task = self._tasks.create_task(self._answer(number, wanted, lane))
        task.add_done_callback(lambda _: self._shared.held.add(-size))  # also if it is cancelled before it begins

    async def _answer(self, number: int, wanted: Input, lane: Lane) -> None:
        try:
            outcome = await self._shared.embedder.embed_one(wanted, lane)
        except LikenessError as error:
            outcome = Outcome(error)
        except Exception as error:  # a fault of ours costs this input, not the stream
            outcome = Outcome(incident("cannot embed an input of a stream", error))
        result = embedder_pb2.EmbedStreamResult(correlation_id=number, result=self._shared.to_result(outcome))
        self._answers.put_nowait(embedder_pb2.EmbedStreamResponse(result=result))
        # Before it is written: a client that has the answer may use the number again at once.
        self._unanswered.remove(number)
        self._end_if_answered()

    def _end_if_answered(self, _: object = None) -> None:
        assert self._reader is not None
        if self._reader.done() and not self._unanswered:
            self._answers.put_nowait(None)
