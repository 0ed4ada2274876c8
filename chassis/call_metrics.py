"""What every service tells Prometheus of its calls, and of itself. See ``chassis.metrics`` for how it is shown.

Imported only where there are metrics: a service without them does without the library.
"""

import platform
from collections.abc import Sequence
from functools import cache

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from chassis import __version__
from chassis.call_log import Outcome, Transport

# A search with a remembered vector takes a millisecond; one that waits for a busy embedder, seconds; a stream, hours.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class CallMetrics:
    """The instruments: how calls ended, how long they took, and why those were refused that were turned away."""

    def __init__(self, namespace: str, registry: CollectorRegistry, refusals: Sequence[str] = ("OVERLOADED",)) -> None:
        """Makes the instruments, once for each registry.

        Args:
            namespace: what their names begin with, such as ``likeness_embedder``.
            registry: where they are counted.
            refusals: reasons for which a call can be turned away before anything is done for it.
        """
        _tell_build(namespace.removeprefix("likeness_"), registry)
        names = ("method", "transport", "code")
        calls = Counter(f"{namespace}_calls", "Calls by how they ended.", names, registry=registry)
        text = "Calls and streams from beginning to end."
        seconds = Histogram(f"{namespace}_call_seconds", text, names[:2], registry=registry, buckets=SECONDS)
        text = "Calls turned away before anything was done for them."
        refused = Counter(f"{namespace}_refused", text, ("reason",), registry=registry)
        self._refused = {reason: refused.labels(reason) for reason in refusals}

        # What a call is named by comes from the contract, never from the caller: what is remembered here is bounded.
        @cache
        def ended(method: str, transport: Transport, code: grpc.StatusCode) -> Counter:
            return calls.labels(method.rpartition("/")[2], transport, code.name)

        @cache
        def took(method: str, transport: Transport) -> Histogram:
            return seconds.labels(method.rpartition("/")[2], transport)

        self._ended, self._took = ended, took

    def called(self, outcome: Outcome) -> None:
        """A call has ended, or was turned away."""
        self._ended(outcome.method, outcome.transport, outcome.code).inc()
        if outcome.admitted:
            self._took(outcome.method, outcome.transport).observe(outcome.seconds)
        elif outcome.reason in self._refused:
            self._refused[outcome.reason].inc()


def _tell_build(service: str, registry: CollectorRegistry) -> None:
    """Which release this is. Of a service of several processes one series, while any of them lives."""
    build = Gauge(
        "likeness_build_info",
        "1, labelled with the release that runs.",
        ("version", "service", "python"),
        registry=registry,
        multiprocess_mode="livemax",
    )
    build.labels(__version__, service, platform.python_version()).set(1)
