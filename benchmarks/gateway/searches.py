"""Sections "latency" and "rates": where the time of a search goes, and how many there are a second."""

from functools import partial
from typing import Any

from benchmarks.embedder.turns import Measure, in_turn
from benchmarks.gateway.client import ID, IMAGE, IMAGE_AGAIN, TEXT, TEXT_AGAIN
from benchmarks.gateway.scope import CONCURRENCY
from benchmarks.gateway.stack import Stack

DIRECT = "text, without a gateway"
_AT_ONCE = (TEXT, TEXT_AGAIN)


def latency(stack: Stack) -> dict[str, Any]:
    """One caller, every kind of search, in turn; and the same text search made without a gateway."""
    measures: dict[str, Measure] = {
        kind: _search(stack, kind, 1) for kind in (TEXT, TEXT_AGAIN, IMAGE, IMAGE_AGAIN, ID)
    }
    addresses = {name: stack.addresses[name] for name in ("embedder", "indexer")}
    measures[DIRECT] = partial(stack.client.ask, how="direct", **addresses, **_window(stack))
    return {"items": stack.scope.items, "rows": in_turn(measures, stack.scope.rounds, "latency")}


def rates(stack: Stack) -> dict[str, Any]:
    """Several callers at once, texts that are all different and texts that come again."""
    measures = {row(kind, callers): _search(stack, kind, callers) for kind in _AT_ONCE for callers in CONCURRENCY}
    return {"items": stack.scope.items, "rows": in_turn(measures, stack.scope.rounds, "rates")}


def row(kind: str, callers: int) -> str:
    """The row of so many callers."""
    return f"{kind} {callers}"


def _search(stack: Stack, kind: str, concurrency: int) -> Measure:
    address = stack.addresses["gateway"]
    told = {"how": "search", "address": address, "kind": kind, "concurrency": concurrency, **_window(stack)}
    return partial(stack.client.ask, **told)


def _window(stack: Stack) -> dict[str, Any]:
    return {"ramp_s": stack.scope.ramp_s, "seconds": stack.scope.window_s}
