"""Refuses here what another service, which has too much to do, would refuse.

A refusal costs both services and the way between them some of the time in which calls could be answered: at five times
of what an embedder can do, it and the gateway would spend as much on refusals as on answers. So once it has refused a
call, no more are under way to it at once than it took then, a little less after each refusal and a little more while it
refuses none: additive increase and multiplicative decrease of a limit on concurrency. Whoever comes beyond that is told
so at once.
"""

import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError

Answer = TypeVar("Answer")

# The limit is raised, and lowered, once in so many seconds at most, by a tenth; down to so many calls.
_STEP_S = 0.1
_TENTH = 0.1
_LEAST = 8.0
# When those that are refused here shall come again: so many times of what the service itself told last.
_SPREAD = (0.5, 1.5)


class Throttle:
    """Limits the calls to one service. Used on one event loop."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, chance: Callable[[float, float], float] = random.uniform
    ) -> None:
        """No limit yet.

        Args:
            clock: in seconds.
            chance: a number between two.
        """
        self._clock, self._chance = clock, chance
        self._most = math.inf
        self._under_way = 0
        self._cut = self._changed = -math.inf
        self._told = LikenessError(error_pb2.REASON_OVERLOADED, "")

    async def __call__(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Makes a call, or refuses it.

        Raises:
            LikenessError: OVERLOADED, or what the call raises.
        """
        if self._under_way >= self._most and not self._more():
            # A new one: a traceback grows with every raise.
            after = (self._told.retry_after_s or 1.0) * self._chance(*_SPREAD)
            raise replace(self._told, retry_after_s=after)
        self._under_way += 1
        try:
            return await call()
        except LikenessError as error:
            if error.reason == error_pb2.REASON_OVERLOADED:
                self._refused(error)
            raise
        finally:
            self._under_way -= 1

    def _more(self) -> bool:
        """Raises the limit if it is time to; whether there is room then."""
        now = self._clock()
        if now >= self._changed + _STEP_S:
            self._most, self._changed = self._most * (1 + _TENTH), now
        return self._under_way < self._most

    def _refused(self, error: LikenessError) -> None:
        self._told = error
        now = self._clock()
        if now >= self._cut + _STEP_S:
            self._most = max(_LEAST, min(self._most, self._under_way) * (1 - _TENTH))
            self._cut = self._changed = now
