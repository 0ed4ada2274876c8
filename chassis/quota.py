"""How much one caller may do: items a second and calls at once. Counted by each process for itself."""

import time
from collections.abc import Callable

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from chassis.keys import Caller, Limits

# When a place among the calls at once may be free again: a guess, in seconds.
_ANOTHER_PLACE_S = 0.5


class Allowance:
    """What is left to one caller.

    The rate is kept by the generic cell rate algorithm (ITU-T I.371): one number, the moment at which everything
    taken so far will have been earned. A call of more items than the burst passes when nothing is owed, and is earned
    afterwards, so that no call is too large for ever.

    Calls go before streams: there is one such number for calls alone, and one for everything, by which streams wait. A
    stream takes whatever it can get, and would leave nothing to the calls of the same key.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._calls_earned_at = self._earned_at = clock()
        self._under_way = 0

    def begin(self) -> None:
        """A call begins.

        Raises:
            LikenessError: RATE_LIMITED: as many as are allowed at once are under way.
        """
        most = self.limits.concurrent
        if most is not None and self._under_way >= most:
            at_once = "one call" if most == 1 else f"{most} calls"
            raise _limited(f"{at_once} at once, as many as it may have", _ANOTHER_PLACE_S)
        self._under_way += 1

    def end(self) -> None:
        """A call that began has ended."""
        self._under_way -= 1

    def charge(self, items: int, *, taken: int = 0) -> None:
        """Takes items for a call.

        Args:
            items: how many.
            taken: so many of them have been, before all of them were known.

        Raises:
            LikenessError: RATE_LIMITED: too many lately; none are taken, and it says when to try again.
        """
        if self.limits.rate_per_s is not None:
            back = taken / self.limits.rate_per_s
            self._calls_earned_at, self._earned_at = self._calls_earned_at - back, self._earned_at - back
        wait_s = self._wait_s(items, self._calls_earned_at)
        if wait_s > 0:
            raise _limited(f"more than {self.limits.rate_per_s:g} items a second", wait_s)
        self._calls_earned_at = self._with(items, self._calls_earned_at)
        self._earned_at = self._with(items, self._earned_at)

    def reserve(self, items: int) -> float:
        """Takes items for a stream, come what may; returns how long to wait before going on, in seconds."""
        wait_s = self._wait_s(items, self._earned_at)
        self._earned_at = self._with(items, self._earned_at)
        return max(0.0, wait_s)

    def _wait_s(self, items: int, earned_at: float) -> float:
        if self.limits.rate_per_s is None:
            return 0.0
        spare = self.limits.burst - min(items, self.limits.burst)
        return earned_at - self._clock() - spare / self.limits.rate_per_s

    def _with(self, items: int, earned_at: float) -> float:
        """When these items too will have been earned."""
        if self.limits.rate_per_s is None:
            return earned_at
        return max(earned_at, self._clock()) + items / self.limits.rate_per_s


class Quota:
    """The allowance of every caller."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._allowances: dict[str, Allowance] = {}

    def of(self, caller: Caller) -> Allowance:
        """The caller's: the same one while its name is the same, with the limits that it has now."""
        allowance = self._allowances.get(caller.name)
        if allowance is None:
            allowance = self._allowances[caller.name] = Allowance(caller.limits, self._clock)
        allowance.limits = caller.limits
        return allowance


def _limited(what: str, wait_s: float) -> LikenessError:
    message = f"the API key has had {what}; try again in {wait_s:.2g} s"
    # Never 0, which a client takes as "at once".
    return LikenessError(error_pb2.REASON_RATE_LIMITED, message, retry_after_s=max(0.001, wait_s))
