"""What the tests of EmbedStream put around it: an embedder that answers when told to, a client without a network."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from likeness.common.v1 import types_pb2
from likeness.embedder.v1 import embedder_pb2

from chassis import vectors
from chassis.errors import LikenessError, to_item_error
from embedder.inputs import Faulty, Input, Lane, Outcome, Text
from embedder.stream import EmbedStream

Request = embedder_pb2.EmbedStreamRequest
Response = embedder_pb2.EmbedStreamResponse
FINGERPRINT = types_pb2.ModelFingerprint(model="m", digest="d", dimension=2)


class Embedder:
    """Answers a text when the test says so, or at once."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.at_once = at_once
        self.seen: list[tuple[str, Lane]] = []
        self.waiting: dict[str, asyncio.Future[Outcome]] = {}
        self.cancelled = 0
        self.room = {lane: asyncio.Event() for lane in Lane}
        for room in self.room.values():
            room.set()

    async def embed_one(self, wanted: Input, lane: Lane) -> Outcome:
        if isinstance(wanted, Faulty):
            return Outcome(wanted.error)
        assert isinstance(wanted, Text)
        self.seen.append((wanted.text, lane))
        if self.at_once:
            return good()
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.waiting[wanted.text] = future
        try:
            return await future
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            del self.waiting[wanted.text]

    async def wait_for_room(self, lane: Lane) -> None:
        await self.room[lane].wait()

    def answer(self, text: str, outcome: Outcome | Exception | None = None) -> None:
        if isinstance(outcome, Exception):
            self.waiting[text].set_exception(outcome)
        else:
            self.waiting[text].set_result(outcome or good())


class Client:
    """The other end of one stream, without a network."""

    def __init__(self) -> None:
        self._sent: asyncio.Queue[Request | Exception | None] = asyncio.Queue()
        self.taken = 0
        self.answers: list[Response] = []
        self.gone: Exception | None = None
        self.writing = 0
        self.may_write = asyncio.Event()
        self.may_write.set()

    def send(self, number: int, text: str = "", priority: Any = embedder_pb2.PRIORITY_UNSPECIFIED) -> None:
        request = Request(correlation_id=number, priority=priority)
        request.input.text = text or str(number)
        self._sent.put_nowait(request)

    def send_raw(self, item: Request | Exception) -> None:
        self._sent.put_nowait(item)

    def half_close(self) -> None:
        self._sent.put_nowait(None)

    async def requests(self) -> AsyncIterator[Request]:
        while (item := await self._sent.get()) is not None:
            if isinstance(item, Exception):
                raise item
            self.taken += 1
            yield item

    async def write(self, response: Response) -> None:
        self.writing += 1
        assert self.writing == 1, "two writes at a time"
        await asyncio.sleep(0)
        await self.may_write.wait()
        self.writing -= 1
        if self.gone is not None:
            raise self.gone
        self.answers.append(response)

    @property
    def kinds(self) -> list[str | None]:
        return [answer.WhichOneof("message") for answer in self.answers]

    @property
    def answered(self) -> list[int]:
        return [answer.result.correlation_id for answer in self.answers if answer.HasField("result")]


def good() -> Outcome:
    return Outcome(np.array([1, 0], np.float32))


def to_input(message: embedder_pb2.EmbedInput, field: str) -> Input:
    assert field == "input"
    return Text(message.text)


def to_result(outcome: Outcome) -> embedder_pb2.EmbedResult:
    if isinstance(outcome.result, LikenessError):
        return embedder_pb2.EmbedResult(error=to_item_error(outcome.result))
    return embedder_pb2.EmbedResult(vector=vectors.to_proto(outcome.result), truncated=outcome.truncated)


def serving(embedder: Embedder, window: int = 4, max_held_bytes: int = 2**20) -> EmbedStream:
    return EmbedStream(FINGERPRINT, window, embedder, to_input, to_result, max_held_bytes=max_held_bytes)


async def settled() -> None:
    """Returns when nothing moves on by itself any more."""
    for _ in range(50):
        await asyncio.sleep(0)


def undecided(embedder: Embedder) -> list[str]:
    return sorted(text for text, future in embedder.waiting.items() if not future.done())
