"""What Prometheus reads of the collections is what GetStatus says of them, now and later."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from likeness.indexer.v1 import indexer_pb2 as pb
from prometheus_client import CollectorRegistry

from indexer import figures
from indexer.disk_usage import DiskUsage
from indexer.figures import Figures
from indexer.messages import status_message
from indexer.metrics import Metrics
from indexer.reads import Reader
from indexer.registry import Registry
from indexer.settings import IndexerSettings, Reads
from indexer.store import ChromaStore
from tests.unit.indexer.test_registry import Chroma, filled, nothing, write

NAMES = ("rows", "dead_rows", "unindexed_rows", "memory_bytes")


class Running(Metrics):
    """Figures that are kept up to date, of collections that no probe looks at but the test.

    Attributes:
        registry: the collections.
        status: as GetStatus has it, taken at the moment of the last look.
    """

    def __init__(self, folder: Path) -> None:
        self.shown = CollectorRegistry()
        super().__init__(self.shown)
        settings = IndexerSettings(reads=Reads.MEMORY, recall_probe_s=0)
        self.registry = Registry(settings, cast(ChromaStore, Chroma()), cast(Reader, None), self, folder, nothing)
        self.figures = Figures(self, self.registry, DiskUsage(), dict, lambda: 0.0)
        self.status = pb.GetStatusResponse()
        self._looked = asyncio.Event()

    def reader_lag(self, seconds: float) -> None:
        """The last that is told in a look."""
        super().reader_lag(seconds)
        status = self.registry.status()
        self.status = status_message(status, [None] * len(status.collections))
        self._looked.set()

    def probed(self, uid: str, recall: float) -> None:
        """As if a probe had found this."""
        maintenance = self.registry._served[uid].maintenance
        assert maintenance is not None
        maintenance.recall = recall

    async def look(self) -> dict[str, pb.CollectionStatus]:
        """What is said of each collection after the next look, once that is known to be shown as well."""
        self._looked.clear()
        await self._looked.wait()
        for each in self.status.collections:
            assert [self.value(name, each.name) for name in NAMES] == [getattr(each, name) for name in NAMES]
            assert self.value("recall", each.name) == (each.recall if each.HasField("recall") else None)
            assert self.value("items", each.name) == each.rows - each.dead_rows
        assert self.shown.get_sample_value("likeness_indexer_memory_budget_bytes") == self.status.memory_budget_bytes
        assert sum(each.memory_bytes for each in self.status.collections) == self.status.memory_bytes
        return {each.name: each for each in self.status.collections}

    def value(self, name: str, collection: str) -> float | None:
        return self.shown.get_sample_value(f"likeness_indexer_{name}", {"collection": collection})


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(figures, "_LOOK_S", 0.0)
    made = Running(tmp_path)
    made.figures.start()
    yield made
    await made.figures.stop()
    await made.registry.stop()


async def test_memory_rows_and_recall_are_shown_as_the_status_says_and_follow_it(running: Running) -> None:
    first, second = filled(running.registry, "first", 30, dead=10), filled(running.registry, "second", 5)
    running.probed(first.uid, 0.875)
    before = await running.look()
    assert (before["first"].rows, before["first"].dead_rows, before["first"].recall) == (40, 10, 0.875)
    assert not before["second"].HasField("recall"), "no probe has looked at it"
    write(running.registry, first, range(30, 50))
    running.probed(first.uid, 0.75)
    running.probed(second.uid, 1.0)
    after = await running.look()
    assert (after["first"].rows, after["first"].recall, after["second"].recall) == (60, 0.75, 1.0)
    assert after["first"].memory_bytes > before["first"].memory_bytes > 0
