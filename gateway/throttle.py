"""Refuses here what the embedders, which have too much to do, would refuse.

A refusal costs both services and the way between them some of the time in which calls could be answered. So where two
fifths of the calls sent of late were refused, their number under way is limited: to a tenth less than it is then, and
another tenth less for each tenth of a second in which that goes on. Otherwise the limit grows at the same rate, and it
ends with the refusals. Whoever comes beyond it is told so at once.

One busy embedder of three or more refuses its share and no more, which limits nothing; one of two that refuses
everything leaves room for 16 calls, most of which are at the other.
"""

import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError

Answer = TypeVar("Answer")

# The limit is lowered by this share once in so many seconds at most, down to so many calls, and grows as fast.
_STEP_S, _SHARE, _LEAST = 0.1, 0.1, 16.0
# It is lowered where this share of the calls is refused, of late.
_MANY = 0.4
# A call of so many seconds ago counts 1/e.
_LATELY_S = 1.0
# Fewer refusals than these tell nothing: callers that share a call are refused together.
_FEW = 10.0
# So long after the last refusal there is no limit any more, in seconds.
_OVER_S = 5.0
# Who is refused here shall come after so many times what an embedder said last: they have no turns of their own.
_SPREAD = (1.0, 2.0)


class Throttle:
    """Limits the calls to all embedders together. Used on one event loop."""

    def __init__(
        self,
        told: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """No limit yet.

        Args:
            told: called for every call that is refused here.
            clock: in seconds.
            chance: a number between two.
        """
        self._told, self._clock, self._chance = told, clock, chance
        self._most = math.inf
        self._under_way = 0
        # Of late, by the moment below.
        self._sent = self._refused = 0.0
        self._counted = self._grown = clock()
        self._lowered = self._last_refusal = -math.inf
        self._after_s = 1.0

    async def __call__(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Makes a call, or refuses it.

        Raises:
            LikenessError: OVERLOADED, or what the call raises.
        """
        if self._under_way >= self._limit():
            self._told()
            raise self._overloaded()
        # As they are sent: a refusal comes sooner than an answer, so that of what ended the more was refused.
        self._count(sent=1.0)
        self._under_way += 1
        try:
            return await call()
        except LikenessError as error:
            if error.reason == error_pb2.REASON_OVERLOADED:
                # Not the error: its traceback holds the request.
                self._was_refused(error.retry_after_s or 1.0)
            raise
        finally:
            self._under_way -= 1

    def _limit(self) -> float:
        now = self._clock()
        if now > self._last_refusal + _OVER_S:
            self._most = math.inf
        else:
            self._most *= (1 + _SHARE) ** (min(now - self._grown, _OVER_S) / _STEP_S)
        self._grown = now
        return self._most

    def _was_refused(self, after_s: float) -> None:
        now = self._clock()
        self._count(refused=1.0)
        self._last_refusal, self._after_s = now, after_s
        if self._refused < max(_FEW, _MANY * self._sent) or now < self._lowered + _STEP_S:
            return
        self._most = max(_LEAST, min(self._limit(), self._under_way) * (1 - _SHARE))
        self._lowered = now

    def _count(self, *, sent: float = 0.0, refused: float = 0.0) -> None:
        now = self._clock()
        kept = math.exp((self._counted - now) / _LATELY_S)
        self._sent, self._refused = self._sent * kept + sent, self._refused * kept + refused
        self._counted = now

    def _overloaded(self) -> LikenessError:
        after = self._after_s * self._chance(*_SPREAD)
        message = (
            f"the embedders have too much to do: {self._under_way} calls to them are under way, about as many as they "
            f"take; try again in {after:.1f} s"
        )
        return LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=after)
