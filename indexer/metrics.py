"""What the indexer tells Prometheus. See ``chassis.metrics`` for how it is shown.

A method costs one or two microseconds; labels of which there are few are bound beforehand. They may be called from any
thread.
"""

from collections.abc import Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.registry import REGISTRY

from chassis.call_metrics import CallMetrics
from indexer.status import CollectionStatus, Mode

SearchPath = Literal["graph", "exact", "chroma"]
SearchStage = Literal["queue", "filter", "nearest", "score", "rows", "chroma"]
WriteKind = Literal["upsert", "update", "delete"]
Source = Literal["snapshot", "chroma"]
SnapshotResult = Literal["written", "failed"]

PATHS: tuple[SearchPath, ...] = ("graph", "exact", "chroma")
SEARCH_STAGES: tuple[SearchStage, ...] = ("queue", "filter", "nearest", "score", "rows", "chroma")
WRITE_KINDS: tuple[WriteKind, ...] = ("upsert", "update", "delete")
SOURCES: tuple[Source, ...] = ("snapshot", "chroma")
SNAPSHOT_RESULTS: tuple[SnapshotResult, ...] = ("written", "failed")

_NAMESPACE = "likeness_indexer"
_SIZES = tuple(2.0**n for n in range(8))
# A search in memory takes a tenth of a millisecond to some; one that Chroma answers, up to seconds.
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Metrics:
    """The instruments.

    Attributes:
        calls: how calls went.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Makes the instruments, once for each registry."""
        self._registry = registry
        self.calls = CallMetrics(_NAMESPACE, registry)

        queries = self._counter("queries", "Queries by how they were answered.", "path")
        self._queries = {p: queries.labels(p) for p in PATHS}
        seconds = self._histogram(
            "search_seconds", "Searching for a batch of queries, with its waits.", _SECONDS, "path"
        )
        self._seconds = {p: seconds.labels(p) for p in PATHS}
        stages = self._histogram(
            "search_stage_seconds",
            "A call's wait; of a batch of queries each stage of its search, with its waits.",
            _SECONDS,
            "stage",
        )
        self._stages = {s: stages.labels(s) for s in SEARCH_STAGES}
        self._batch = self._histogram("search_batch_size", "Queries that were searched for together.", _SIZES)
        self._waiting = self._gauge("search_queue_queries", "Queries that wait to be searched for.")

        writes = self._counter("writes", "Items written, by kind of write.", "kind")
        self._writes = {k: writes.labels(k) for k in WRITE_KINDS}
        chunks = self._histogram("write_seconds", "Writing a chunk of items to Chroma and to memory.", _SECONDS, "kind")
        self._chunks = {k: chunks.labels(k) for k in WRITE_KINDS}
        self._queue = self._gauge("write_queue_items", "Items that wait to be written.", "collection")
        self._age = self._gauge("write_queue_seconds", "How long the first of them has waited.", "collection")

        self._in_memory = self._gauge("in_memory", "Whether a collection is served from memory.", "collection")
        self._items = self._gauge("items", "Items of a collection; of one that Chroma serves, lately.", "collection")
        self._rows = self._gauge("rows", "Rows in memory, those of dead items included.", "collection")
        self._dead = self._gauge("dead_rows", "Rows of items that were replaced or deleted.", "collection")
        self._unindexed = self._gauge("unindexed_rows", "Rows in memory that are not in the graph yet.", "collection")
        self._bytes = self._gauge("memory_bytes", "Bytes that a collection takes in memory, estimated.", "collection")
        self._disk = self._gauge("disk_bytes", "Bytes of a collection's own files on the disk.", "collection")
        self._recall = self._gauge("recall", "Share of the 10 nearest items found, by the last probe.", "collection")
        self._budget = self._gauge("memory_budget_bytes", "Bytes that all collections in memory may take.")

        rebuilds = self._counter("rebuilds", "Graphs built anew.", "result")
        self._rebuilds = {ok: rebuilds.labels("ok" if ok else "failed") for ok in (True, False)}
        snapshots = self._counter("snapshots", "Serving snapshots by what became of them.", "result")
        self._snapshots = {r: snapshots.labels(r) for r in SNAPSHOT_RESULTS}
        backups = self._counter("backups", "Backups made and restored, or not.", "result")
        self._backups = {ok: backups.labels("made" if ok else "failed") for ok in (True, False)}
        self._restored = {ok: backups.labels("restored" if ok else "restore_failed") for ok in (True, False)}
        loads = self._counter("loads", "Collections read into memory, by where most came from.", "source")
        self._loads = {s: loads.labels(s) for s in SOURCES}
        self._load_seconds = self._histogram("load_seconds", "Reading a collection into memory.", _SECONDS)
        self._store = self._gauge("store_up", "Whether Chroma answers.")
        self._store_bytes = self._gauge("store_bytes", "Bytes of the files of the indexer's own Chroma.")
        filters = self._counter("filter_cache", "Filters by whether their rows were known already.", "result")
        self._filters = {known: filters.labels("hit" if known else "miss") for known in (True, False)}
        self._lag = self._gauge("reader_lag_seconds", "By how much a reader may be behind the writer; of a writer 0.")
        self._restarts = self._counter("store_restarts", "Times that Chroma was back, after it was away or was paused.")
        self._upkeep = self._counter("upkeep", "Collections stored anew, and erasures, or not.", "kind", "result")

    def searched(self, paths: Mapping[SearchPath, int], seconds: float) -> None:
        """Queries were searched for together, so many of them by each path."""
        self._batch.observe(sum(paths.values()))
        for path, count in paths.items():
            self._queries[path].inc(count)
            self._seconds[path].observe(seconds)

    def searched_stage(self, stage: SearchStage, seconds: float) -> None:
        """A stage of answering queries has ended: "queue" of one call, the others of what is searched for together."""
        self._stages[stage].observe(seconds)

    def search_queue(self, queries: int) -> None:
        """So many queries wait."""
        self._waiting.set(queries)

    def wrote(self, kind: WriteKind, items: int, seconds: float) -> None:
        """A chunk of items was written."""
        self._writes[kind].inc(items)
        self._chunks[kind].observe(seconds)

    def write_queue(self, collection: str, items: int, oldest_s: float) -> None:
        """So many items of a collection wait to be written, the first of them for so many seconds."""
        self._queue.labels(collection).set(items)
        self._age.labels(collection).set(oldest_s)

    def disk(self, collection: str, size: int) -> None:
        """Bytes that a collection's own files take on the disk."""
        self._disk.labels(collection).set(size)

    def store_bytes(self, size: int) -> None:
        """Bytes that Chroma's files take on the disk."""
        self._store_bytes.set(size)

    def filters(self, known: int, unknown: int) -> None:
        """So many filters of searches whose rows were known, and whose were not."""
        self._filters[True].inc(known)
        self._filters[False].inc(unknown)

    def reader_lag(self, seconds: float) -> None:
        """By how many seconds a reader may be behind the writer."""
        self._lag.set(seconds)

    def collection(self, status: CollectionStatus) -> None:
        """Where a collection is served from, and what it takes."""
        name = status.name
        self._in_memory.labels(name).set(status.mode is Mode.MEMORY)
        if status.mode is not Mode.CHROMA:
            self._items.labels(name).set(status.rows - status.dead_rows)
        self._rows.labels(name).set(status.rows)
        self._dead.labels(name).set(status.dead_rows)
        self._unindexed.labels(name).set(status.unindexed_rows)
        self._bytes.labels(name).set(status.memory_bytes)
        if status.mode is not Mode.MEMORY:
            self._recall.remove(name)
        elif status.recall is not None:
            self._recall.labels(name).set(status.recall)

    def stored_items(self, collection: str, items: int) -> None:
        """So many items are in a collection that Chroma serves."""
        self._items.labels(collection).set(items)

    def collection_deleted(self, name: str) -> None:
        """Its figures are no longer shown."""
        for gauge in (
            self._queue,
            self._age,
            self._disk,
            self._in_memory,
            self._items,
            self._rows,
            self._dead,
            self._unindexed,
            self._bytes,
            self._recall,
        ):
            gauge.remove(name)

    def budget(self, memory_bytes: int) -> None:
        """Bytes that all collections in memory may take."""
        self._budget.set(memory_bytes)

    def rebuilt(self, ok: bool) -> None:
        """A graph was built anew, or could not be."""
        self._rebuilds[ok].inc()

    def snapshot(self, result: SnapshotResult) -> None:
        """A serving snapshot was written, could not be, or could not be used."""
        self._snapshots[result].inc()

    def backup(self, made: bool) -> None:
        """A backup was made, or could not be."""
        self._backups[made].inc()

    def restored(self, ok: bool) -> None:
        """A backup was made a collection, or could not be."""
        self._restored[ok].inc()

    def loaded(self, source: Source, seconds: float) -> None:
        """A collection was read into memory, from its snapshot and what came after, or all of it from Chroma."""
        self._loads[source].inc()
        self._load_seconds.observe(seconds)

    def store_up(self, up: bool) -> None:
        """Whether Chroma answers."""
        self._store.set(up)

    def store_back(self) -> None:
        """Chroma answers again, after it was away or was stopped to have its files cleared."""
        self._restarts.inc()

    def job(self, kind: str, result: Literal["ok", "failed"]) -> None:
        """A collection was stored anew (rebuild), or items were erased (erasure); or not."""
        self._upkeep.labels(kind, result).inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{_NAMESPACE}_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{_NAMESPACE}_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"{_NAMESPACE}_{name}", text, labels, registry=self._registry, buckets=buckets)
