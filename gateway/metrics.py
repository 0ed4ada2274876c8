"""What the gateway tells Prometheus, at ``/metrics`` of its HTTP port.

A method costs one or two microseconds; labels of which there are few are bound beforehand. They may be called from any
thread.
"""

from typing import Literal

from likeness.gateway.v1.gateway_pb2 import SearchTimings
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.registry import REGISTRY

from chassis.call_metrics import SECONDS, CallMetrics

Stage = Literal["embed", "query", "total"]
IngestOutcome = Literal["stored", "skipped", "failed"]
Cache = Literal["text", "picture", "label"]
FetchOutcome = Literal["ok", "refused", "failed", "unavailable"]
BackoffCause = Literal["embedder", "indexer", "rate"]

STAGES: tuple[Stage, ...] = ("embed", "query", "total")
INGEST_OUTCOMES: tuple[IngestOutcome, ...] = ("stored", "skipped", "failed")
CACHES: tuple[Cache, ...] = ("text", "picture", "label")
FETCH_OUTCOMES: tuple[FetchOutcome, ...] = ("ok", "refused", "failed", "unavailable")
BACKOFF_CAUSES: tuple[BackoffCause, ...] = ("embedder", "indexer", "rate")
# Why a call can be turned away before anything is done for it.
REFUSALS = ("KEY_MISSING", "KEY_INVALID", "SCOPE_MISSING", "RATE_LIMITED", "OVERLOADED")

_NAMESPACE = "likeness_gateway"


class Metrics:
    """The instruments.

    Attributes:
        registry: where they are counted.
        calls: how calls went.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Makes the instruments, once for each registry."""
        self.registry = registry
        self.calls = CallMetrics(_NAMESPACE, registry, REFUSALS)

        search = self._histogram("search_seconds", "Searches and batches of them, by stage.", "stage")
        self._search = {stage: search.labels(stage) for stage in STAGES}

        items = self._counter("ingest_items", "Items of ingest by what became of them.", "outcome")
        self._items = {outcome: items.labels(outcome) for outcome in INGEST_OUTCOMES}
        backoffs = self._counter("ingest_backoffs", "Times that ingest was told to pause, by what was busy.", "cause")
        self._backoffs = {cause: backoffs.labels(cause) for cause in BACKOFF_CAUSES}
        fetches = self._counter("fetches", "Pictures fetched from a uri, or not.", "outcome")
        self._fetches = {outcome: fetches.labels(outcome) for outcome in FETCH_OUTCOMES}

        hits = self._counter("cache_hits", "Vectors that were remembered.", "cache")
        self._hits = {cache: hits.labels(cache) for cache in CACHES}
        misses = self._counter("cache_misses", "Vectors that were looked for and not remembered.", "cache")
        self._misses = {cache: misses.labels(cache) for cache in CACHES}
        entries = self._gauge("cache_entries", "Vectors remembered at present.", "cache")
        self._entries = {cache: entries.labels(cache) for cache in CACHES}

        self._throttled = self._counter("throttled", "Calls refused for the embedders, which were refusing many.")
        self._connections = self._gauge("http_connections", "HTTP connections open at present.")
        self._turned_away = self._counter("http_connections_refused", "HTTP connections above the most allowed.")
        self._body_bytes = self._gauge("http_request_bytes", "Bytes of HTTP requests held at present.")
        self._answer_bytes = self._gauge("http_answer_bytes", "Bytes of HTTP answers above 64 KiB, not yet taken.")

    def searched(self, timings: SearchTimings) -> None:
        """A search, or a batch of them, has taken so long. A stage that it did without does not count."""
        for stage in STAGES:
            if timings.HasField(stage):
                self._search[stage].observe(getattr(timings, stage).ToNanoseconds() / 1e9)

    def ingested(self, outcome: IngestOutcome, items: int = 1) -> None:
        """So many items came to this end."""
        self._items[outcome].inc(items)

    def backed_off(self, cause: BackoffCause) -> None:
        """A stream was told to pause."""
        self._backoffs[cause].inc()

    def fetched(self, outcome: FetchOutcome) -> None:
        """A picture was fetched, or not."""
        self._fetches[outcome].inc()

    def cache_hit(self, cache: Cache, vectors: int = 1) -> None:
        """So many vectors were remembered."""
        self._hits[cache].inc(vectors)

    def cache_missed(self, cache: Cache, vectors: int = 1) -> None:
        """So many vectors were not remembered."""
        self._misses[cache].inc(vectors)

    def cache_size(self, cache: Cache, vectors: int) -> None:
        """So many vectors are remembered."""
        self._entries[cache].set(vectors)

    def throttled(self) -> None:
        """A call that needed an embedder was refused without asking one."""
        self._throttled.inc()

    def http_connections(self, count: int, refused: bool) -> None:
        """So many connections are open; whether the last one was closed at once, since there were too many."""
        self._connections.set(count)
        if refused:
            self._turned_away.inc()

    def http_request_bytes(self, size: int) -> None:
        """So many bytes of requests are held."""
        self._body_bytes.set(size)

    def http_answer_bytes(self, size: int) -> None:
        """So many bytes of answers are held."""
        self._answer_bytes.set(size)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{_NAMESPACE}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{_NAMESPACE}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"{_NAMESPACE}_{name}", text, labels, registry=self.registry, buckets=SECONDS)
