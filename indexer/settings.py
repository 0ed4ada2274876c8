"""What the indexer can be told."""

from enum import StrEnum
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from chassis.places import Place
from chassis.settings import ServiceSettings
from indexer.memory import memory_bytes
from indexer.status import Role


class Reads(StrEnum):
    """Where reads are answered."""

    AUTO = "auto"
    MEMORY = "memory"
    CHROMA = "chroma"


class IndexerSettings(ServiceSettings):
    """Settings of the indexer, the owner of the collections and only client of Chroma."""

    port: int = Field(
        50052,
        ge=0,
        le=65535,
        validation_alias="LIKENESS_INDEXER_PORT",
        description="Port to listen on, 0 to 65535; 0: a free one, which the log names.",
    )
    role: Role = Field(
        Role.WRITER,
        description="writer: changes collections and items. reader: follows the writer of the same "
        "LIKENESS_CHROMA_URL, answers reads, and refuses everything that changes something. One writer for each "
        "Chroma; any number of readers.",
    )
    data_dir: Path = Field(
        Path("data/indexer"),
        description="Directory of the lock, the serving snapshots and, without LIKENESS_CHROMA_URL, of everything "
        "stored. One indexer each.",
    )
    chroma_url: str = Field(
        "",
        description="Chroma server to use, such as http://chroma:8000. Empty: start one on loopback over the data "
        "directory and look after it. Of several indexers over one server, all but one are readers (LIKENESS_ROLE).",
    )
    chroma_ca_file: Path | None = Field(
        None,
        description="File with the certificates (PEM) of the authority that has signed LIKENESS_CHROMA_URL's, for "
        "https. Empty: the usual authorities.",
    )
    lease_s: float = Field(
        15,
        ge=3,
        le=3600,
        description="Seconds for which a writer that is not heard of still counts as alive, 3 to 3,600: so long a "
        "second one waits before it takes over, and so long the first may be cut off or stopped. Only with "
        "LIKENESS_CHROMA_URL.",
    )
    follow_s: float = Field(
        1,
        ge=0.1,
        le=3600,
        description="Seconds between two looks of a reader at what the writer has done, 0.1 to 3,600. What is written "
        "is seen by readers after this, a second of the writer's, and the time to read it.",
    )
    chroma_token: SecretStr = Field(
        SecretStr(""), description="Sent to LIKENESS_CHROMA_URL as the header x-chroma-token. Empty: not sent."
    )
    chroma_start_s: float = Field(
        60, gt=0, le=3600, description="Longest wait for Chroma when starting, in seconds; then the indexer gives up."
    )
    store_timeout_s: float = Field(
        60, gt=0, le=3600, description="Longest wait for one answer of Chroma, in seconds; then it counts as away."
    )
    write_chunk: int = Field(
        256,
        ge=1,
        le=1024,
        description="Most items written to Chroma at once, 1 to 1,024; at most 64 where this indexer leaves reads to "
        "Chroma, which a chunk holds up while it is written.",
    )
    write_queue: int = Field(
        4096,
        ge=1024,
        le=1_000_000,
        description="Most items of one collection waiting to be written, 1,024 to 1,000,000; beyond: OVERLOADED.",
    )
    min_free_disk_mb: int = Field(
        256,
        ge=0,
        le=1_000_000_000,
        description="Free megabytes on the disk under the data directory below which writes are refused (STORE_FULL), "
        "lest Chroma run into its end, which can cost it an index; deletions below 32. 0: no limit. Without effect on "
        "LIKENESS_CHROMA_URL.",
    )
    reads: Reads = Field(
        Reads.AUTO,
        description="Where reads are answered. memory: from the indexer's memory; chroma: from Chroma, which answers "
        "1.8 to 3.6 times fewer plain queries a second, and ten to fifty times fewer with filters than without, for "
        "collections beyond memory; auto: from memory while the collections fit "
        "LIKENESS_MEMORY_BUDGET_MB, from Chroma those that do not.",
    )
    memory_budget_mb: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="Megabytes that the collections in memory may take. With LIKENESS_READS=memory writes beyond are "
        "refused (MEMORY_FULL). 0: half of what the machine or container has.",
    )
    searches: int = Field(4, ge=1, le=256, description="Most searches under way in Chroma at once, 1 to 256.")
    search_queue: int = Field(
        1024,
        ge=128,
        le=1_000_000,
        description="Most searches waiting for their turn, 128 to 1,000,000; in memory for each collection; beyond: "
        "OVERLOADED.",
    )
    read_queue: int = Field(
        128,
        ge=1,
        le=1_000_000,
        description="Most lists, counts with a filter and facets that wait to be answered from memory, 1 to 1,000,000, "
        "all collections together; beyond: OVERLOADED.",
    )
    search_threads: int = Field(
        0,
        ge=0,
        le=256,
        description="Threads that search in memory, 1 to 256; beside one or two of them, as many more for what takes a "
        "few milliseconds, and half as many, one to four, for lists, counts, facets and exports. 0: one for each "
        "core that the process may use.",
    )
    ef_search: int = Field(
        96,
        ge=10,
        le=10_000,
        description="How wide the graph in memory is searched (HNSW's efSearch), 10 to 10,000: more finds more and "
        "takes longer. Of a collection of METRIC_L2, a third more. See docs/performance.md.",
    )
    ef_construction: int = Field(
        128,
        ge=16,
        le=2000,
        description="How wide the graph is searched when a row is added (HNSW's efConstruction), 16 to 2,000; "
        "twice as many for METRIC_L2. For graphs made from then on.",
    )
    graph_neighbors: int = Field(
        16, ge=4, le=128, description="Links of a row in the graph (HNSW's M), 4 to 128. For graphs made from then on."
    )
    rows_per_step: float = Field(
        25,
        gt=0,
        le=10_000,
        description="How many rows are compared one by one in the time of one step of LIKENESS_EF_SEARCH: what decides "
        "between graph and comparing every row that a filter leaves. python -m benchmarks.serving_plan measures it.",
    )
    mask_cache_mb: int = Field(
        64, ge=0, le=100_000, description="Most megabytes of remembered filters for each collection in memory."
    )
    rebuild_dead_share: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of replaced and deleted rows in memory beyond which a collection's index is built anew, in "
        "the background.",
    )
    snapshot_share: float = Field(
        0.05,
        gt=0,
        le=1,
        description="Share of a collection's rows that must have changed since the last serving snapshot before "
        "another is written (and at least 2,000 rows; one is also written when the indexer stops).",
    )
    snapshots: Place = Field(
        "data/snapshots",
        description="Where backups of collections are: a directory, or a URL that fsspec knows, such as "
        "s3://bucket/backups (which needs the package s3fs). No other indexer may use the same.",
    )
    snapshot_keep: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Most backups that are kept of a collection; older ones are deleted when another was made. 0: all.",
    )
    recall_probe_s: float = Field(
        60,
        ge=0,
        le=604_800,
        description="Seconds between two comparisons of a collection's index with exact search, up to 604,800, a week. "
        "0: never.",
    )
    metrics_port: int = Field(
        0,
        ge=-1,
        le=65535,
        validation_alias="LIKENESS_INDEXER_METRICS_PORT",
        description="TCP port of /metrics (Prometheus), 0 to 65535; 0: any free one, named in the log; -1: none.",
    )

    @property
    def memory_budget_bytes(self) -> int:
        """Bytes that the collections in memory may take."""
        return self.memory_budget_mb * 2**20 or memory_bytes() // 2

    @property
    def chroma_headers(self) -> dict[str, str]:
        """What every request to Chroma carries."""
        token = self.chroma_token.get_secret_value()
        return {"x-chroma-token": token} if token else {}

    @property
    def chroma_ca(self) -> str:
        """Where the authority's certificates are; empty: the usual ones."""
        return str(self.chroma_ca_file) if self.chroma_ca_file is not None else ""

    @field_validator("chroma_ca_file")
    @classmethod
    def _is_a_file(cls, file: Path | None) -> Path | None:
        if file is not None and not file.is_file():
            raise ValueError("expected a file that exists")
        return file

    @model_validator(mode="after")
    def _has_somebody_to_follow(self) -> Self:
        if self.role is Role.READER and not self.chroma_url:
            raise ValueError(
                "LIKENESS_ROLE=reader follows a writer over one Chroma server: set LIKENESS_CHROMA_URL to the writer's"
            )
        return self

    @field_validator("chroma_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        if url:
            parts = urlsplit(url)
            if parts.username or parts.password:
                raise ValueError("expected no name and password in it; see LIKENESS_CHROMA_TOKEN")
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
                raise ValueError("expected http://HOST:PORT or https://HOST:PORT")
            _ = parts.port  # raises ValueError itself when out of range
        return url
