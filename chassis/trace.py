"""One id for everything that is done for a call, in all services: W3C's ``traceparent``.

1. ``Trace.of`` takes what the caller sent, or begins a trace where it sent none
2. ``enter``: while the call is answered, the log's lines carry the id (``in_log``)
3. ``passed_on`` goes with the calls that are made for it; the answer tells the id, as ``TRACE_ID``
"""

import random
import re
from collections.abc import Iterable, MutableMapping
from contextvars import ContextVar, Token
from typing import Any, Self

TRACEPARENT = "traceparent"
# The name of the metadata, or of the header, in which an answer tells the id.
TRACE_ID = "likeness-trace-id"

Metadata = tuple[tuple[str, str], ...]

# Version, trace id, parent id, flags. Version ff is none; behind 00 nothing may follow; later versions may say more.
_SENT = re.compile(r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
# The flags that are passed on: sampled, and that the id is random. What others mean is not known here.
_KNOWN_FLAGS = 0x03


class Trace:
    """A call's place in a trace.

    Attributes:
        id: the trace's: 32 hexadecimal digits.
        parent_id: the caller's part of it, 16 hexadecimal digits; None: the trace begins here.
    """

    __slots__ = ("_flags", "_metadata", "_span_id", "id", "parent_id")

    def __init__(self, trace_id: str, parent_id: str | None = None, flags: str = "00") -> None:
        self.id = trace_id
        self.parent_id = parent_id
        self._flags = flags
        self._span_id = ""
        self._metadata: Metadata = ()

    @classmethod
    def of(cls, metadata: Iterable[tuple[str, str | bytes]]) -> Self:
        """The trace that a call's metadata tell of; a new one where they tell of none, or of two.

        Args:
            metadata: names in lower case.
        """
        sent: str | bytes | None = None
        for name, value in metadata:
            if name == TRACEPARENT:
                sent = value if sent is None else ""
        if isinstance(sent, str) and (found := _SENT.fullmatch(sent)) is not None:
            return cls(*found.groups())
        # Not secret, only unlike any other: the operating system need not be asked.
        return cls(f"{random.getrandbits(128) or 1:032x}")

    @property
    def span_id(self) -> str:
        """This call's own part of the trace: the parent of what is done for it elsewhere; 16 hexadecimal digits."""
        if not self._span_id:  # few are ever asked for
            self._span_id = f"{random.getrandbits(64) or 1:016x}"
        return self._span_id

    @property
    def metadata(self) -> Metadata:
        """What goes with a call that is made for this one."""
        if not self._metadata:
            flags = int(self._flags, 16) & _KNOWN_FLAGS
            self._metadata = ((TRACEPARENT, f"00-{self.id}-{self.span_id}-{flags:02x}"),)
        return self._metadata


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current() -> Trace | None:
    """The trace of the call that is being answered; None: there is none."""
    return _current.get()


def enter(trace: Trace | None) -> Token[Trace | None]:
    """What this task, or thread, does from now on is done for that call; ``leave`` ends it."""
    return _current.set(trace)


def leave(token: Token[Trace | None]) -> None:
    """Ends what ``enter`` began."""
    _current.reset(token)


def passed_on() -> Metadata:
    """The metadata of calls that are made for the call that is being answered; empty where there is none."""
    trace = _current.get()
    return () if trace is None else trace.metadata


def in_log(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor of structlog's: adds the id to what is logged, unless the line says whose it is."""
    trace = _current.get()
    if trace is not None:
        event.setdefault("trace_id", trace.id)
    return event
