"""Building a table anew because somebody waits for it, and forgetting what is on the disk."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from indexer.collections import Metric
from indexer.serving.builder import Builder
from indexer.serving.collection import ServingCollection
from indexer.serving.graph import GraphSettings
from indexer.serving.maintenance import Maintenance
from indexer.serving.table import StoppedError
from tests.unit.indexer.serving.tables import GRAPH, collection, filled
from tests.unit.indexer.serving.test_maintenance import QUIET, Seen, answer

OTHER = GraphSettings(neighbors=4, ef_construction=20)


async def test_a_renewal_leaves_only_what_is_alive_and_makes_the_graph_as_asked(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        builder = Builder()
        serving = ServingCollection(collection(Metric.COSINE), filled(), 0)
        alive = {i for i, live in zip(serving.view.ids, serving.view.live, strict=False) if live}
        maintenance = Maintenance(
            serving,
            folder=tmp_path / "kept",
            graph=GRAPH,
            answer=answer,
            threads=threads,
            builder=builder,
            settings=QUIET,
            observer=Seen(),
        )
        maintenance.start()
        await maintenance.renew(OTHER)
        view = serving.view
        assert (view.dead_count, set(view.ids)) == (0, alive)
        (tmp_path / "kept" / "00000001").mkdir(parents=True)
        await maintenance.forget_snapshots()
        assert not (tmp_path / "kept").exists()
        assert serving.changed_rows >= view.count
        await maintenance.stop(save=False)
        with pytest.raises(StoppedError):
            await maintenance.renew(OTHER)
        builder.close()


async def test_who_waits_for_a_renewal_is_told_when_maintenance_ends(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        builder = Builder()
        serving = ServingCollection(collection(Metric.COSINE), filled(), 0)
        maintenance = Maintenance(
            serving,
            folder=tmp_path / "kept",
            graph=GRAPH,
            answer=answer,
            threads=threads,
            builder=builder,
            settings=QUIET,
            observer=Seen(),
        )
        waiting = asyncio.create_task(maintenance.renew(OTHER))
        await asyncio.sleep(0)
        await maintenance.stop(save=False)
        with pytest.raises(StoppedError):
            await waiting
        builder.close()
