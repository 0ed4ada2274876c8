"""Bodies of requests while they come, and large answers until they are taken: how much all hold together.

Of a request also how large it may be, and how long it may take.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from gateway.http.answers import PART_BYTES
from gateway.http.errors import CallError

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]


def _unobserved(_held: int) -> None:
    pass


class Bodies:
    """All that are held at present.

    Attributes:
        most_bytes: of one body.
        seconds: within which one must be whole.
        held: bytes of all together.
    """

    def __init__(
        self,
        most_bytes: int,
        most_in_flight: int,
        seconds: float,
        observe: Callable[[int], None] = _unobserved,
        observe_answers: Callable[[int], None] = _unobserved,
    ) -> None:
        """Nothing is held yet.

        Args:
            most_bytes: of one body.
            most_in_flight: bytes of all together, and of all answers together; more are refused with OVERLOADED.
            seconds: within which a body must be whole.
            observe: told how many bytes are held whenever that changes.
            observe_answers: likewise, of answers.
        """
        self.most_bytes = most_bytes
        self.seconds = seconds
        self._most = most_in_flight
        self._observe = observe
        self.held = 0
        self._observe_answers = observe_answers
        self._answers = 0

    def take(self, size: int) -> None:
        """Holds so many bytes more; raises OVERLOADED where that would be too many."""
        if self.held + size > self._most:
            message = "the gateway holds as many bytes of requests as LIKENESS_HTTP_IN_FLIGHT_MB allows; try again"
            raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=1.0)
        self.held += size
        self._observe(self.held)

    def give(self, size: int) -> None:
        """Holds so many bytes less."""
        self.held -= size
        self._observe(self.held)

    def take_answer(self, size: int) -> None:
        """Holds an answer; raises OVERLOADED where that would be too many bytes, unless it is the only one."""
        if self._answers and self._answers + size > self._most:
            message = (
                "clients have as many bytes of answers still to take as LIKENESS_HTTP_IN_FLIGHT_MB allows; try again, "
                "or ask for less"
            )
            raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=1.0)
        self._answers += size
        self._observe_answers(self._answers)

    def give_answer(self, size: int) -> None:
        """Holds an answer of this size no more."""
        self._answers -= size
        self._observe_answers(self._answers)


class Body:
    """One of them: an ASGI ``receive`` that raises, as Connect's library takes it, where a limit is passed."""

    def __init__(self, bodies: Bodies, receive: Receive, seconds: float | None, announced: int = 0) -> None:
        """Nothing has come yet.

        Args:
            bodies: where it is counted.
            receive: what brings it.
            seconds: to the call's deadline; None: it has none.
            announced: bytes that it will have, as far as its sender says.
        """
        self._announced = announced
        self._bodies = bodies
        self._receive = receive
        self._seconds = bodies.seconds if seconds is None else min(seconds, bodies.seconds)
        self._until = asyncio.get_running_loop().time() + self._seconds
        self._size = 0
        self._held = 0
        self._answer = 0
        self._whole = False

    async def receive(self) -> Message:
        """The next part, or the news that the client has gone."""
        if self._whole:
            return await self._next()
        if self._announced > self._bodies.most_bytes:
            raise CallError(too_large(self._bodies.most_bytes))
        try:
            async with asyncio.timeout_at(self._until) as limit:
                message = await self._next()
        except TimeoutError:
            if not limit.expired():
                raise
            late = f"the request's body was not whole within {self._seconds:g} s"
            raise CallError(LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, late)) from None
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        size = len(message.get("body", b""))
        self._size += size
        try:
            if self._size > self._bodies.most_bytes:
                raise too_large(self._bodies.most_bytes)
            self.hold(size)
        except LikenessError as error:
            raise CallError(error) from None
        return message

    def hold(self, size: int) -> None:
        """Counts bytes that are needed besides, or, less than 0, no longer; raises OVERLOADED: they are too many."""
        self._bodies.take(size)
        self._held += size

    def answered(self, size: int) -> None:
        """It is done with, and what is to be sent instead has this size; raises OVERLOADED where that is too many."""
        self.release()
        if size > PART_BYTES:
            self._bodies.take_answer(size)
            self._answer = size

    def release(self) -> None:
        """Nothing is left of it, or of its answer."""
        self._bodies.give(self._held)
        self._held = 0
        if self._answer:
            self._bodies.give_answer(self._answer)
            self._answer = 0

    async def _next(self) -> Message:
        message: Message = await self._receive()
        return message


def too_large(most_bytes: int) -> LikenessError:
    """A request above the limit."""
    message = f"the request is larger than {most_bytes:,} bytes; send less at a time, or raise LIKENESS_MAX_MESSAGE_MB"
    return LikenessError(error_pb2.REASON_BATCH_TOO_LARGE, message)
