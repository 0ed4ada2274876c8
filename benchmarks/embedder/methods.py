"""Section 1: the same work by every method, in turn."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from benchmarks import environments
from benchmarks.embedder.contenders import Field, Missing
from benchmarks.embedder.inputs import is_text
from benchmarks.embedder.models import STARTER
from benchmarks.embedder.peers import MEASURED, PEERS
from benchmarks.embedder.processes import Contender, FailedError
from benchmarks.embedder.scope import Scope
from benchmarks.embedder.turns import Measure, in_turn

Started = TypeVar("Started")

PICTURE, SHORT_TEXT = "500x334", "words_10"
CONCURRENCY = (1, 8, 32, 64)
QUICK_CONCURRENCY = (8, 32)
PEER_CONCURRENCY = (1, 8, 32)
COURSE, LOOP, FORWARD, STREAM = "course", "batched loop", "forward", "stream"
TWO = "two processes 32"


def pipeline(concurrency: int) -> str:
    """The row of the pipeline in process."""
    return f"pipeline {concurrency}"


def served(concurrency: int) -> str:
    """The row of single calls through gRPC."""
    return f"grpc {concurrency}"


def infinity(concurrency: int) -> str:
    """The row of infinity-emb."""
    return f"infinity {concurrency}"


def batches(scope: Scope, kind: str, device: str) -> tuple[int, ...]:
    """Batch sizes of the bare forward pass that are tried on the device that the model was loaded on."""
    if device != "cpu":
        return (8, 32, 64, 128, 256, 512)
    if is_text(kind):
        return (8, 32, 64) if scope.quick else (1, 4, 8, 16, 32, 64, 128)
    return (1, 4, 8, 16) if scope.quick else (1, 2, 4, 8, 16, 32)


def by_batch(scope: Scope, forward: Contender, kind: str) -> dict[int, float]:
    """Items a second of the bare forward pass, by batch size."""
    seconds, sizes = scope.window_s / 5, batches(scope, kind, forward.about["device"])
    return {n: forward.ask(kind=kind, batch=n, seconds=seconds)["per_s"] for n in sizes}


def run(scope: Scope) -> dict[str, Any]:
    """Measures pictures and short texts by every method."""
    if scope.peers:
        # What is installed and not measured can wait for the whole measurement.
        environments.set_up(MEASURED if scope.quick else PEERS, scope.install_s)
    with Field(scope) as field:
        contenders = _Started(field)
        found: dict[str, Any] = {"about": contenders.about}
        for name, kind in (("images", PICTURE), ("texts", SHORT_TEXT)):
            sizes = by_batch(scope, contenders.forward, kind) if contenders.forward else {}
            best = max(sizes, key=lambda n: sizes[n]) if sizes else None
            measures = contenders.measures(kind, best)
            found[name] = {
                "kind": kind,
                "forward_by_batch": sizes,
                "best_batch": best,
                "rows": in_turn(measures, scope.rounds_of(kind), f"methods, {kind}"),
            }
    return found


class _Started:
    """All that take part; who does not start has a row that says so."""

    def __init__(self, field: Field) -> None:
        self._field, self._scope = field, field.scope
        self._missing: dict[str, FailedError] = {}
        states = {peer.name: environments.state(peer.name) for peer in PEERS} if self._scope.peers else None
        self.forward = self._start(FORWARD, field.forward)
        self._pipeline = self._start("pipeline", field.pipeline)
        self._one = self._start("grpc", field.service)
        self._two = self._start("two processes", partial(field.service, 2))
        self._clients = field.clients()
        open_clip = field.target.model != STARTER
        self._course = self._start(COURSE, field.course) if open_clip else None
        has_infinity = states is not None and bool(states["infinity"]["installed"])
        self._infinity = self._start("infinity", field.infinity) if open_clip and has_infinity else None
        # What runs: the service's settings are the pipeline's.
        said = {FORWARD: self.forward, "served": self._pipeline, COURSE: self._course}
        specs = {name: one.about for name, one in said.items() if one is not None}
        self.about: dict[str, Any] = {"specs": specs, "peers": states}

    def measures(self, kind: str, best_batch: int | None) -> dict[str, Measure]:
        """Every method's measurement of one kind, those that are compared closely next to each other."""
        scope, seconds = self._scope, self._scope.seconds(kind)
        found: dict[str, Measure] = {}
        if course := self._course:
            for name, method in ((COURSE, "one"), (LOOP, "loop")):
                found[name] = partial(course.ask, kind=kind, method=method, seconds=seconds)
        if self._infinity is not None:
            server, client = self._infinity
            # Its batches of 32 take seconds on few cores: a window must hold several.
            window = {"seconds": seconds + (1.0 if is_text(kind) else 3.0), "ramp_s": scope.ramp_s}
            for n in PEER_CONCURRENCY[-1:] if scope.quick else PEER_CONCURRENCY:
                found[infinity(n)] = partial(client.ask, kind=kind, concurrency=n, port=server.port, **window)
        if (two := self._two) is not None and not (scope.quick and is_text(kind)):
            found[TWO] = self._clients.closed(two, kind, 32, scope)
        if (one := self._one) is not None:
            for n in QUICK_CONCURRENCY if scope.quick else CONCURRENCY:
                found[served(n)] = self._clients.closed(one, kind, n, scope)
            found[STREAM] = self._clients.stream(one, kind, scope)
            # Those that are compared most closely stand next to each other.
            found[served(32)] = found.pop(served(32))
        if pipe := self._pipeline:
            found[pipeline(32)] = partial(pipe.ask, kind=kind, concurrency=32, ramp_s=scope.ramp_s, seconds=seconds)
        if (bare := self.forward) and best_batch is not None:
            found[FORWARD] = partial(bare.ask, kind=kind, batch=best_batch, seconds=seconds)
        return {**found, **{name: Missing(why) for name, why in self._missing.items()}}

    def _start(self, name: str, start: Callable[[], Started]) -> Started | None:
        try:
            return start()
        except FailedError as error:
            print(f"  {name} did not start: {error}", flush=True)
            self._missing[name] = error
            return None
