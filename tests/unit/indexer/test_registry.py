from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from likeness.common.v1 import error_pb2
from prometheus_client import CollectorRegistry

from chassis.errors import LikenessError
from indexer.collections import Collection, Fingerprint, Metric
from indexer.metrics import Metrics
from indexer.reads import Reader
from indexer.registry import Registry
from indexer.served import estimate
from indexer.settings import IndexerSettings, Reads
from indexer.store import ChromaStore


def staged(name: str) -> Collection:
    return Collection(name, name, Fingerprint("m", "d" * 64, 256), Metric.L2, datetime.now(UTC), uid=f"uid of {name}")


async def nothing(_: Collection) -> None:
    pass


async def test_collections_that_are_made_at_once_do_not_pass_the_budget_together(tmp_path: Path) -> None:
    settings, metrics = IndexerSettings(reads=Reads.MEMORY, memory_budget_mb=64), Metrics(CollectorRegistry())
    registry = Registry(settings, cast(ChromaStore, None), cast(Reader, None), metrics, tmp_path, nothing)
    first, second = staged("first"), staged("second")
    two_thirds = 2 * settings.memory_budget_bytes // (3 * estimate(first))
    assert registry.stage(first, two_thirds) is not None
    with pytest.raises(LikenessError) as caught:
        registry.stage(second, two_thirds)
    assert caught.value.reason == error_pb2.REASON_MEMORY_FULL
    registry.deleted(first.uid)  # it failed
    serving = registry.stage(second, two_thirds)
    assert serving is not None
    registry.complete(second, serving)
    assert registry.stage(first, two_thirds) is not None, "what is complete counts as what it takes: nothing, empty"
    await registry.stop()
