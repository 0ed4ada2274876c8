"""What a row of items is given: where they go, by whose help, and where their results go."""

from dataclasses import dataclass
from typing import Protocol

from likeness.common.v1.types_pb2 import EmbedLimits, Metric
from likeness.gateway.v1 import gateway_pb2

from gateway.backends import Embedder, Indexer
from gateway.fetch import Fetch
from gateway.ingest_options import Options
from gateway.media import Media
from gateway.metrics import Metrics
from gateway.settings import GatewaySettings


@dataclass(frozen=True)
class Target:
    """Where items go, and how.

    Attributes:
        collection: its own name, no alias.
        uid: the collection's.
        metric: the collection's.
        limits: the embedder's.
        options: the caller's.
    """

    collection: str
    uid: str
    metric: Metric.ValueType
    limits: EmbedLimits
    options: Options


@dataclass(frozen=True)
class Services:
    """What ingest needs of the gateway."""

    embedder: Embedder
    indexer: Indexer
    media: Media
    settings: GatewaySettings
    metrics: Metrics
    fetch: Fetch


class Answers(Protocol):
    """Where results go."""

    async def result(self, place: int, result: gateway_pb2.IndexResult) -> None:
        """What became of the item at a place."""

    async def backoff(self, seconds: float) -> None:
        """Nothing should be sent for so long."""

    def due_in(self) -> float | None:
        """Seconds until a checkpoint is due; None: nothing has happened since the last."""

    async def checkpoint(self) -> None:
        """Tells how far the stream is without a gap."""
