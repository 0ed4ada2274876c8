"""What is done around every call, whatever brought it: gRPC or HTTP.

1. ``Calls.admit``, before anything of the request is read: its trace, room, API key, scope, rate, calls at once
2. ``Call.under_way``, around its answering: readiness, the deadline, and every failure as ``LikenessError``
3. ``Call.received``, once its request is read, where it has one: items against the rate, what it touches for the log
4. ``Call.end``, once, when nothing of it is left: gives its place back, writes its log line

A call whose key is revoked meanwhile ends with KEY_INVALID.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Protocol, Self

import grpc
from likeness.common.v1 import error_pb2

from chassis import trace
from chassis.audit import Record, Touched
from chassis.call_log import CallLog, Outcome, Transport
from chassis.deadline import Timed
from chassis.errors import LikenessError, incident
from chassis.guard import Guard, Metadata
from chassis.keys import Caller, Limits
from chassis.quota import Allowance
from chassis.readiness import Readiness
from chassis.settings import ServiceSettings
from chassis.trace import Trace

# How a client sees what a service that is starting waits for.
ANSWERED_WHILE_STARTING = frozenset({"GetStatus"})
# Between two looks at the file of keys, in seconds.
LOOK_S = 1.0

# The name of the metadata, or of the header, in which a deadline that the caller did not ask for is told.
DEADLINE_APPLIED = "likeness-deadline-ms"
# What a call has not failed with: it ends the task, or the process.
_ENDS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)


class CallContext(Timed, Protocol):
    """What a servicer needs of a call, whatever brought it; gRPC's own context is one."""

    async def write(self, message: Any, /) -> None:
        """Sends a message of a stream; returns when there is room for the next."""


def _unobserved(_outcome: Outcome) -> None:
    pass


def _welcome(_method: str, _metadata: Metadata) -> None:
    pass


class Call:
    """One call that has been admitted."""

    def __init__(
        self,
        calls: "Calls",
        method: str,
        transport: Transport,
        trace: Trace,
        *,
        caller: Caller | None,
        allowance: Allowance,
    ) -> None:
        self.method = method
        self.transport = transport
        self.trace = trace
        self.caller = caller
        self.allowance = allowance
        # The deadline that the caller did not ask for, in milliseconds; None: the caller's own holds, or none.
        self.deadline_ms: int | None = None
        self._calls = calls
        self._started = time.perf_counter()
        self._code = grpc.StatusCode.CANCELLED  # unless it is answered
        self._reason: str | None = None
        self._limit: asyncio.Timeout | None = None
        self._revoked: LikenessError | None = None
        self._touched: Touched | None = None
        # Whether it was closed without a request, or its client went before that had come, which looks the same.
        self.unasked = False
        # Tells the address that it came from, while it is under way; None: it is not known. gRPC's own, asked once
        # nothing is left of the call, is a segmentation fault.
        self.peer: Callable[[], str] | None = None
        self._peer: str | None = None
        self._ended = False

    @asynccontextmanager
    async def under_way(self, time_remaining: float | None, *, stream: bool = False) -> AsyncIterator[None]:
        """Answering the call. Leaves with ``LikenessError``, a cancellation, or gRPC's own abortion alone.

        Args:
            time_remaining: seconds to the caller's deadline; None: it has none, and gets the default one.
            stream: no deadline is added: how long a stream lasts is for its client to say.
        """
        token, entered = _current.set(self), trace.enter(self.trace)
        try:
            if self._revoked is not None:
                raise self._revoked
            if self.method.rpartition("/")[2] not in ANSWERED_WHILE_STARTING:
                self._calls.readiness.require_started()
            async with asyncio.timeout(None if stream else self._added_deadline(time_remaining)) as self._limit:
                yield
            self._code = grpc.StatusCode.OK
        except TimeoutError as error:
            raise self.failed(self._overdue(error)) from error
        except (*_ENDS, grpc.aio.AbortError):
            raise
        except BaseException as error:  # of libraries in Rust some are no ``Exception``
            if isinstance(error, BaseExceptionGroup) and error.subgroup(_ENDS) is not None:
                raise
            raise self.failed(error) from error
        finally:
            self._limit = self.peer = None
            trace.leave(entered)
            _current.reset(token)

    def received(self, request: Any) -> None:
        """Its request has come: the items count against the caller's rate, but for the one that its admission took.

        Args:
            request: the only one, of an rpc that takes one.

        Raises:
            LikenessError: RATE_LIMITED.
        """
        record = self._calls.records.get(self.method)
        if record is not None and (touched := record(request)) is not None:
            self.touch(touched)
        if self._calls.guard is not None:
            items = self._calls.guard.items(self.method, request)
            if items > 1:
                self.allowance.charge(items, taken=1)

    def touch(self, what: Touched) -> None:
        """Has its line logged at INFO, however it ends, with this beside what was said before."""
        if self._ended:
            return
        self._touched = {**(self._touched or {}), **what}
        if self._peer is None and self.peer is not None:
            self._peer = self.peer()

    def failed(self, error: BaseException) -> LikenessError:
        """Takes down what it failed with, also before it was under way; a fault of ours is logged whole.

        Returns:
            what its caller may see of it: the same, with the call's trace.
        """
        if not isinstance(error, LikenessError):
            entered = trace.enter(self.trace)
            error = incident(f"unexpected error in {self.method}", error)
            trace.leave(entered)
        self._code, self._reason = error.code, error.reason_name
        return _traced(error, self.trace)

    def unheard(self) -> None:
        """Its client has gone before it was told of the failure: what had no request then had no client."""
        if self.unasked:
            self._code, self._reason = grpc.StatusCode.CANCELLED, None

    def end(self) -> None:
        """Nothing of it is left. May be called again."""
        if not self._ended:
            self._ended = True
            self.peer = None
            self._calls.forget(self)
            self.allowance.end()
            self._calls.tell(self._outcome())

    def revoke(self, why: LikenessError) -> None:
        """Ends the answering with this failure."""
        self._revoked = why
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

    def _added_deadline(self, left: float | None) -> float | None:
        longest = self._calls.default_deadline_s if left is None else self._calls.max_deadline_s
        if left is not None and left <= longest:
            return None
        self.deadline_ms = round(longest * 1000)
        return longest

    def _overdue(self, error: TimeoutError) -> Exception:
        if self._revoked is not None:
            return self._revoked
        if self.deadline_ms is None or self._limit is None or not self._limit.expired():
            return error
        message = f"no answer within {self.deadline_ms / 1000:g} s, the default deadline or the longest one allowed"
        return LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, message)

    def _outcome(self) -> Outcome:
        seconds = time.perf_counter() - self._started
        key = None if self.caller is None else self.caller.name
        told = (self.trace, self._touched, self._peer)
        return Outcome(self.method, self.transport, True, self._code, self._reason, seconds, key, *told)


class Calls:
    """All calls of a process."""

    def __init__(
        self,
        readiness: Readiness,
        *,
        default_deadline_s: float = 60.0,
        max_deadline_s: float = 3600.0,
        max_calls: int = 1000,
        guard: Guard | None = None,
        observe: Callable[[Outcome], None] = _unobserved,
        turn_away: Callable[[str, Metadata], None] = _welcome,
        records: Mapping[str, Record] = {},
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is under way yet.

        Args:
            readiness: before the first readiness calls are refused.
            default_deadline_s: of a call without one.
            max_deadline_s: longest deadline of a call; a longer one is cut.
            max_calls: most calls and streams under way at once; more are refused with OVERLOADED.
            guard: who may call what; None: anybody anything.
            observe: told how each call went, refused ones too.
            turn_away: asked with method and metadata of each call before anything of its request is read; raises
                LikenessError where the service has no room for it.
            records: the methods whose calls are logged when they succeed too, and what of them.
            clock: in seconds.
        """
        self.readiness = readiness
        self.default_deadline_s = min(default_deadline_s, max_deadline_s)
        self.max_deadline_s = max_deadline_s
        self.guard = guard
        self.records = records
        self._max_calls = max_calls
        self._observe = observe
        self._turn_away = turn_away
        self._open: set[Call] = set()
        self._log = CallLog(clock)

    @classmethod
    def of(
        cls,
        settings: ServiceSettings,
        readiness: Readiness,
        guard: Guard | None = None,
        observe: Callable[[Outcome], None] = _unobserved,
        turn_away: Callable[[str, Metadata], None] = _welcome,
        *,
        records: Mapping[str, Record] = {},
    ) -> Self:
        """With the limits of the settings."""
        return cls(
            readiness,
            default_deadline_s=settings.default_deadline_s,
            max_deadline_s=settings.max_deadline_s,
            max_calls=settings.max_concurrent_calls,
            guard=guard,
            observe=observe,
            turn_away=turn_away,
            records=records,
        )

    def admit(self, method: str, metadata: Metadata, transport: Transport) -> Call:
        """Lets a call in; ``end`` must be called on it.

        Args:
            method: ``/package.Service/Method``.
            metadata: what came with it, names in lower case.
            transport: what brought it.

        Raises:
            LikenessError: OVERLOADED, KEY_MISSING, KEY_INVALID, SCOPE_MISSING, RATE_LIMITED.
        """
        started, caller, traced = time.perf_counter(), None, Trace.of(metadata)
        try:
            allowance = Allowance(Limits())
            if self.guard is not None:
                caller = self.guard.caller(metadata)
                self.guard.check_scope(caller, method)
                allowance = self.guard.allowance(caller)
            if len(self._open) >= self._max_calls:
                message = f"{self._max_calls} calls are under way, as many as LIKENESS_MAX_CONCURRENT_CALLS allows"
                raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=1.0)
            self._turn_away(method, metadata)
            allowance.begin()
            try:
                allowance.charge(1)
            except LikenessError:
                allowance.end()
                raise
        except LikenessError as error:
            key = None if caller is None else caller.name
            seconds = time.perf_counter() - started
            self.tell(Outcome(method, transport, False, error.code, error.reason_name, seconds, key, traced))
            raise _traced(error, traced) from None
        call = Call(self, method, transport, traced, caller=caller, allowance=allowance)
        self._open.add(call)
        return call

    async def watch_keys(self) -> None:
        """Looks at the file of keys, until cancelled, and ends the calls of those that are revoked."""
        changed = False
        while self.guard is not None:
            await asyncio.sleep(LOOK_S)
            try:
                changed = await asyncio.to_thread(self.guard.keys.refresh) or changed
                if changed:
                    self.check_keys()
                    changed = False
            except Exception as error:  # nobody else looks: revoked keys would stay valid
                incident("cannot look whether API keys have changed", error)

    def check_keys(self) -> None:
        """Ends every call whose key is no longer known, or no longer has the scope."""
        for call in tuple(self._open):
            if self.guard is None or call.caller is None:
                continue
            now = self.guard.keys.ring.now(call.caller)
            try:
                if now is None:
                    raise LikenessError(error_pb2.REASON_KEY_INVALID, "the API key has been revoked")
                self.guard.check_scope(now, call.method)
            except LikenessError as error:
                call.revoke(error)

    @property
    def under_way(self) -> int:
        """How many calls are."""
        return len(self._open)

    def forget(self, call: Call) -> None:
        """The call has ended."""
        self._open.discard(call)

    def tell(self, outcome: Outcome) -> None:
        """A call has ended, or was refused."""
        self._log.write(outcome)
        self._observe(outcome)


def _traced(error: LikenessError, of: Trace) -> LikenessError:
    """A copy: what several calls fail with at once may be one object."""
    return replace(error, trace_id=error.trace_id or of.id)


_current: ContextVar[Call | None] = ContextVar("call", default=None)
_UNLIMITED = Allowance(Limits())


def allowance() -> Allowance:
    """What is left to the caller of the call that is being answered; without limits where there are no keys."""
    call = _current.get()
    return _UNLIMITED if call is None else call.allowance


def touch(**what: object) -> None:
    """Has the line of the call that is being answered logged at INFO, with this; see ``chassis.audit``."""
    call = _current.get()
    if call is not None:
        call.touch(what)
