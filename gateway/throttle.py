"""Refuses here what the embedders, which have too much to do, would refuse.

A refusal costs both services and the way between them some of the time in which calls could be answered: at five times
of what an embedder can do, it and the gateway would spend as much on refusals as on answers. So once a third of the
calls is refused, no more are under way at once than were then, a tenth less after each tenth of a second in which that
goes on; otherwise the limit grows at the same rate, and ends with the refusals. Whoever comes beyond it is told so at
once. One busy replica of several refuses its share and no more: of three or more that limits nothing.
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
# It is lowered where so many times as many are refused as are taken, of late.
_MANY = 0.5
# What became of a call so many seconds ago counts 1/e.
_LATELY_S = 1.0
# Fewer refusals than these tell nothing.
_FEW = 5.0
# So long after the last refusal there is no limit any more, in seconds.
_OVER_S = 5.0
# Who is refused here shall come after so many times what an embedder said last: they have no turns of their own.
_SPREAD = (1.0, 2.0)


def _untold() -> None:
    pass


class Throttle:
    """Limits the calls to all embedders together. Used on one event loop."""

    def __init__(
        self,
        told: Callable[[], None] = _untold,
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
        self._taken = self._refused = 0.0
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
        self._under_way += 1
        try:
            answer = await call()
        except LikenessError as error:
            if error.reason == error_pb2.REASON_OVERLOADED:
                # Not the error: its traceback holds the request.
                self._was_refused(error.retry_after_s or 1.0)
            raise
        else:
            self._count(taken=1.0)
        finally:
            self._under_way -= 1
        return answer

    def _limit(self) -> float:
        now = self._clock()
        if now > self._last_refusal + _OVER_S:
            self._most = math.inf
        self._most *= (1 + _SHARE) ** ((now - self._grown) / _STEP_S)
        self._grown = now
        return self._most

    def _was_refused(self, after_s: float) -> None:
        now = self._clock()
        self._count(refused=1.0)
        self._last_refusal, self._after_s = now, after_s
        if self._refused < max(_FEW, _MANY * self._taken) or now < self._lowered + _STEP_S:
            return
        self._most = max(_LEAST, min(self._limit(), self._under_way) * (1 - _SHARE))
        self._lowered = now

    def _count(self, *, taken: float = 0.0, refused: float = 0.0) -> None:
        now = self._clock()
        kept = math.exp((self._counted - now) / _LATELY_S)
        self._taken, self._refused = self._taken * kept + taken, self._refused * kept + refused
        self._counted = now

    def _overloaded(self) -> LikenessError:
        after = self._after_s * self._chance(*_SPREAD)
        message = (
            f"the embedders have too much to do: {self._under_way} calls to them are under way, about as many as they "
            f"take; try again in {after:.1f} s"
        )
        return LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=after)
