"""What the embedder tells Prometheus. See ``chassis.metrics`` for how it is shown.

A method costs one or two microseconds (twice that where several processes serve): every label is bound beforehand, but
for those of calls. They may be called from any thread.
"""

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.registry import REGISTRY

from chassis.call_metrics import CallMetrics
from embedder.inputs import KINDS, Kind, Lane

Result = Literal["ok", "invalid", "overloaded", "expired", "cancelled", "failed"]
Stage = Literal["decode", "model"]
DropStage = Literal["decode", "inference"]
DropWhy = Literal["cancelled", "expired"]
LostWhy = Literal["died", "stuck", "failing"]
FailureWhy = Literal["error", "out_of_memory", "lost"]

RESULTS: tuple[Result, ...] = ("ok", "invalid", "overloaded", "expired", "cancelled", "failed")
STAGES: tuple[Stage, ...] = ("decode", "model")
DROP_STAGES: tuple[DropStage, ...] = ("decode", "inference")
DROP_WHYS: tuple[DropWhy, ...] = ("cancelled", "expired")
LOST_WHYS: tuple[LostWhy, ...] = ("died", "stuck", "failing")
FAILURE_WHYS: tuple[FailureWhy, ...] = ("error", "out_of_memory", "lost")

_NAMESPACE = "likeness_embedder"
_SIZES = tuple(2.0**n for n in range(11))
# A text is decoded in a tenth of a millisecond, a large picture in some hundred; a forward pass takes 1 ms to seconds.
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Metrics:
    """The instruments. In a service of several processes, gauges are those of the processes that live.

    Attributes:
        calls: how calls went.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Makes the instruments, once for each registry."""
        self._registry = registry
        self.calls = CallMetrics(_NAMESPACE, registry)
        lanes = [lane.name.lower() for lane in Lane]

        items = self._counter("items", "Inputs by what became of them.", "kind", "lane", "result")
        self._items = [{(k, r): items.labels(k, lane, r) for k in KINDS for r in RESULTS} for lane in lanes]

        queue = self._gauge("queue_items", "Inputs that wait, by what they wait for.", "livesum", "stage", "lane")
        self._queue = [{stage: queue.labels(stage, lane) for stage in STAGES} for lane in lanes]
        oldest = self._gauge("queue_oldest_seconds", "Age of the input that has waited longest.", "livemax", "lane")
        self._oldest = [oldest.labels(lane) for lane in lanes]

        sizes = self._histogram("batch_size", "Inputs in a forward pass.", _SIZES, "kind")
        self._sizes = {kind: sizes.labels(kind) for kind in KINDS}
        decode = self._histogram("decode_seconds", "Decoding and resizing, or tokenizing, an input.", _SECONDS, "kind")
        self._decode = {kind: decode.labels(kind) for kind in KINDS}
        waits = self._histogram("queue_seconds", "Time an input waited, all stages.", _SECONDS, "kind", "lane")
        self._waits = [{kind: waits.labels(kind, lane) for kind in KINDS} for lane in lanes]
        inference = self._histogram("inference_seconds", "A forward pass.", _SECONDS, "kind")
        self._inference = {kind: inference.labels(kind) for kind in KINDS}

        self._tokens = self._counter("tokens", "Tokens of texts that the model read, padding included.")
        self._padding = self._counter("padding_tokens", "Those of them that only fill a batch's shorter texts.")
        dropped = self._counter("dropped", "Inputs on which no more work was spent, by the stage.", "stage", "why")
        self._dropped = {(s, w): dropped.labels(s, w) for s in DROP_STAGES for w in DROP_WHYS}
        hits = self._counter("cache_hits", "Inputs whose vector was remembered.", "kind")
        misses = self._counter("cache_misses", "Inputs whose vector was looked for and not remembered.", "kind")
        # Only texts are remembered: pictures would be a series that is always 0.
        self._hits, self._misses = hits.labels("text"), misses.labels("text")
        joined = self._counter("joined", "Inputs that shared the work of an equal one under way.", "kind")
        self._joined = {kind: joined.labels(kind) for kind in KINDS}

        restarts = self._counter("model_restarts", "Model processes that were lost and started anew.", "why")
        self._restarts = {why: restarts.labels(why) for why in LOST_WHYS}
        self._up = self._gauge("model_up", "Model processes that answer.", "livesum")
        limit = self._gauge("batch_limit", "Most inputs in a forward pass, at present.", "livemin", "kind")
        self._limit = {kind: limit.labels(kind) for kind in KINDS}
        failures = self._counter("batch_failures", "Forward passes that failed.", "why")
        self._failures = {why: failures.labels(why) for why in FAILURE_WHYS}

    def item(self, kind: Kind, lane: Lane, result: Result) -> None:
        """An input has come to its end."""
        self._items[lane][kind, result].inc()

    def queue_length(self, stage: Stage, lane: Lane, items: int) -> None:
        """So many inputs wait for a stage."""
        self._queue[lane][stage].set(items)

    def oldest(self, lane: Lane, seconds: float) -> None:
        """How long the longest-waiting input of a lane has waited; 0 when none waits."""
        self._oldest[lane].set(seconds)

    def batch(self, kind: Kind, size: int, seconds: float) -> None:
        """A forward pass of ``size`` inputs went well."""
        self._sizes[kind].observe(size)
        self._inference[kind].observe(seconds)

    def decoded(self, kind: Kind, seconds: float) -> None:
        """An input was decoded and resized, or tokenized."""
        self._decode[kind].observe(seconds)

    def waited(self, kind: Kind, lane: Lane, seconds: float) -> None:
        """An input has waited so long in all before its forward pass, without the time of its decoding."""
        self._waits[lane][kind].observe(seconds)

    def tokens(self, count: int, padding: int) -> None:
        """A batch of texts held ``count`` tokens, ``padding`` of which only fill it up."""
        self._tokens.inc(count)
        self._padding.inc(padding)

    def dropped(self, stage: DropStage, why: DropWhy) -> None:
        """An input whose callers have gone, or whose deadline is over, was dropped before this stage."""
        self._dropped[stage, why].inc()

    def cache_hit(self) -> None:
        """A text's vector was remembered."""
        self._hits.inc()

    def cache_missed(self) -> None:
        """A text's vector was not remembered."""
        self._misses.inc()

    def joined(self, kind: Kind) -> None:
        """An input shares the work of an equal one."""
        self._joined[kind].inc()

    def model_restarted(self, why: LostWhy) -> None:
        """A model process was lost and is started anew."""
        self._restarts[why].inc()

    def model_up(self, up: bool) -> None:
        """Whether the model process answers."""
        self._up.set(up)

    def batch_limit(self, kind: Kind, limit: int) -> None:
        """Most inputs in a forward pass from now on."""
        self._limit[kind].set(limit)

    def batch_failed(self, why: FailureWhy) -> None:
        """A forward pass failed; its inputs may still succeed."""
        self._failures[why].inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{_NAMESPACE}_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, mode: Literal["livesum", "livemax", "livemin"], *labels: str) -> Gauge:
        return Gauge(f"{_NAMESPACE}_{name}", text, labels, registry=self._registry, multiprocess_mode=mode)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"{_NAMESPACE}_{name}", text, labels, registry=self._registry, buckets=buckets)
