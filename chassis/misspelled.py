"""Variables of the environment that look like settings and are none, which nobody would notice otherwise."""

import difflib
import re
from collections.abc import Iterable, Mapping

PREFIX = "LIKENESS_"

# What some of the programs are told and others are not, without the prefix: several may share an environment.
ELSEWHERE = frozenset(
    """
    ANONYMOUS API_KEY API_KEYS API_KEYS_FILE API_KEY_FILE BACKEND BATCH_WAIT_MS CACHE_DIR CHROMA_CA_FILE CHROMA_START_S
    CHROMA_TOKEN CHROMA_URL CLIENT_TLS_CA CLIENT_TLS_CERT CLIENT_TLS_KEY COMPILE COPIES CORS_ORIGINS DATA_DIR
    DECODE_THREADS DEVICE DUPLICATE_STREAMS EF_CONSTRUCTION EF_SEARCH EMBEDDER_ADDRESS EMBEDDER_CONNECTIONS
    EMBEDDER_METRICS_PORT EMBEDDER_PORT FETCH FETCH_AT_ONCE FETCH_HOSTS FETCH_MAX_MB FETCH_PORTS FETCH_REDIRECTS
    FETCH_SCHEMES FETCH_TIMEOUT_S FOLLOW_S GATEWAY GATEWAY_HOST GATEWAY_PORT GRAPH_NEIGHBORS HTTP_BODY_S
    HTTP_CONNECTIONS HTTP_HEADERS_S HTTP_HOSTS HTTP_IN_FLIGHT_MB HTTP_PORT INDEXER INDEXER_ADDRESS INDEXER_METRICS_PORT
    INDEXER_PORT INDEXER_READ_ADDRESS INGEST_BATCHES INGEST_BATCH_ITEMS INGEST_BATCH_MB INGEST_CALL_S INGEST_STREAMS
    INGEST_WINDOW_MB LABEL_CACHE LEASE_S MASK_CACHE_MB MAX_BATCH MAX_BULK_QUEUE_S MAX_ENCODED_MB MAX_INPUTS MAX_PIXELS
    MAX_QUEUE_S MAX_TEXT_BYTES MAX_WAITING_INPUTS MAX_WAITING_MB MAX_WAITING_PIXELS MEDIA_URL MEMORY_BUDGET_MB
    MIN_FREE_DISK_MB MODEL MODEL_THREADS PRECISION PREPROCESS_LIKE PRETRAINED READS READ_QUEUE REBUILD_DEAD_SHARE
    RECALL_PROBE_S RIDE_OUT_S ROLE ROWS_PER_STEP SEARCHES SEARCH_QUEUE SEARCH_THREADS SHARED SNAPSHOTS SNAPSHOT_KEEP
    SNAPSHOT_SHARE STORE_TIMEOUT_S STREAM_WINDOW STUCK_S SUGGESTION_STREAMS TEXT_CACHE THUMBNAILS UPSTREAM_TLS_CA
    UPSTREAM_TLS_CERT UPSTREAM_TLS_KEY VECTOR_CACHE VERSION WORKERS WORKER_INDEX WORKER_LATE WORKER_PARENT WORKER_READY
    WRITE_CHUNK WRITE_QUEUE
    """.split()  # noqa: SIM905 (a list of them fills a page)
)

# What Kubernetes tells pods of a Service, such as one that is named likeness-embedder:
# LIKENESS_EMBEDDER_PORT=tcp://10.0.0.1:50051, LIKENESS_EMBEDDER_SERVICE_HOST, LIKENESS_EMBEDDER_PORT_50051_TCP_ADDR …
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)(_\w+)?|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?")
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://\S+:\d+")


def misspelled(environment: Mapping[str, str], own: Iterable[str]) -> dict[str, str | None]:
    """The names that are no setting of any program, with the one of this program's that each resembles, if any does.

    Args:
        environment: all variables.
        own: names of this program's settings, with the prefix.
    """
    settings = set(own)
    known = settings | {PREFIX + name for name in ELSEWHERE}
    unknown = [
        name
        for name, value in sorted(environment.items())
        if name.startswith(PREFIX) and name not in known and not is_service_link(name, value)
    ]
    return {name: next(iter(difflib.get_close_matches(name, settings, 1, 0.8)), None) for name in unknown}


def is_service_link(name: str, value: object) -> bool:
    """Whether it is Kubernetes that says this, of a Service; NAME may be a setting's too, then the value tells."""
    if _SERVICE_LINK.search(name):
        return True
    return name.upper().endswith("PORT") and isinstance(value, str) and bool(_SERVICE_LINK_VALUE.fullmatch(value))
