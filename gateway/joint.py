"""What different callers want of another service at the same moment, asked for in one call.

A call costs the two services that it is between more than a little work in it does. Where a shared call fails for what
may be one caller's fault, each sends its own; where it fails for want of room, that is for whoever uses this to say.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import structlog
from likeness.common.v1 import error_pb2

from chassis import trace
from chassis.deadline import Deadline
from chassis.errors import LikenessError, incident
from chassis.trace import Trace
from gateway.gathering import Gathering

log = structlog.get_logger()

Part = TypeVar("Part")
Answer = TypeVar("Answer")

# Callers that share a call, at most. All of them are answered when the last one's answer is there.
_MOST = 8
# Callers that share a call have as much time left, but for a tenth or so.
_ABOUT = math.log(1.1)
# Where the other service is away, it is so for each of them.
_AWAY = frozenset(
    {
        error_pb2.REASON_EMBEDDER_UNAVAILABLE,
        error_pb2.REASON_INDEXER_UNAVAILABLE,
        error_pb2.REASON_STORE_UNAVAILABLE,
        error_pb2.REASON_NOT_READY,
        error_pb2.REASON_SHUTTING_DOWN,
    }
)


@dataclass(eq=False)
class _Asked(Generic[Part, Answer]):
    """What a caller wants, and until when, by the loop's clock.

    Attributes:
        trace: of the caller's call.
        answer: None: the caller is to send a call of its own.
    """

    part: Part
    until: float
    trace: Trace | None
    answer: "asyncio.Future[Answer | None]"


class JointCalls(Generic[Part, Answer]):
    """Sends calls that several share. Used on one event loop."""

    def __init__(
        self, call: Callable[[Sequence[Part], float], Awaitable[Sequence[Answer]]], *, busy_for_all: bool = False
    ) -> None:
        """Sends nothing yet.

        Args:
            call: asks for at least two parts together, with a timeout in seconds; gives an answer for each, in order.
            busy_for_all: whether a service that has too much to do for a shared call has so for each of those who share
                it, whatever it brings.
        """
        self._call = call
        self._for_all = _AWAY | {error_pb2.REASON_OVERLOADED} if busy_for_all else _AWAY
        self._gathering = Gathering[tuple[Hashable, _Asked[Part, Answer]]](self._send, _MOST)
        self._under_way: set[asyncio.Task[None]] = set()

    async def __call__(self, part: Part, alike: Hashable, deadline: Deadline) -> Answer | None:
        """Asks for something together with others, if there are any just now.

        Args:
            part: what the caller wants; little work.
            alike: what it must have in common with others to share a call with them.
            deadline: by when. Callers share a call with those that have about as much time.

        Returns:
            None: there was nobody to share a call with, or it failed: the caller is to send its own.

        Raises:
            LikenessError: the other service is away or has too much to do, or the time is over.
        """
        left, loop = deadline.left(), asyncio.get_running_loop()
        asked = _Asked[Part, Answer](part, loop.time() + left, trace.current(), loop.create_future())
        self._gathering.add(((alike, round(math.log(left) / _ABOUT)), asked))
        try:
            async with asyncio.timeout_at(asked.until):
                return await asked.answer
        except TimeoutError:
            deadline.left()
            raise

    def _send(self, together: list[tuple[Hashable, _Asked[Part, Answer]]]) -> int:
        groups = defaultdict[Hashable, list[_Asked[Part, Answer]]](list)
        for alike, asked in together:
            if not asked.answer.done():  # its caller has gone
                groups[alike].append(asked)
        for group in groups.values():
            if len(group) == 1:
                group[0].answer.set_result(None)
                continue
            task = asyncio.create_task(self._ask(group))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            _end_with_the_last(task, group)
        return max(map(len, groups.values()), default=1)

    async def _ask(self, group: Sequence[_Asked[Part, Answer]]) -> None:
        # Whoever began to wait first has it done; in the log of the other service the call bears that one's id.
        trace.enter(group[0].trace)
        log.debug("calls share one", trace_ids=[asked.trace.id for asked in group if asked.trace is not None])
        left = max(asked.until for asked in group) - asyncio.get_running_loop().time()
        answers: Sequence[Answer | None] = [None] * len(group)
        try:
            found = await self._call([asked.part for asked in group], left)
            if len(found) == len(group):
                answers = found
        except LikenessError as error:
            if error.reason in self._for_all:
                for asked in group:
                    if not asked.answer.done():
                        asked.answer.set_exception(replace(error))  # one each: a traceback grows with every raise
        except Exception as error:  # a fault of ours costs the sharing, and no caller its answer
            incident("a shared call failed", error)
        finally:
            for asked, answer in zip(group, answers, strict=True):
                if not asked.answer.done():
                    asked.answer.set_result(answer)


def _end_with_the_last(task: "asyncio.Task[None]", group: Sequence[_Asked[Part, Answer]]) -> None:
    """Has a call end when nobody waits for it any more."""

    def gone(_answer: object) -> None:
        if all(asked.answer.cancelled() for asked in group):
            task.cancel()

    for asked in group:
        asked.answer.add_done_callback(gone)
