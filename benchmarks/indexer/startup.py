"""Starting with and without a serving snapshot, and the memory it takes."""

import shutil
from typing import Any

from benchmarks.embedder.figures import median
from benchmarks.embedder.processes import Contender
from benchmarks.indexer.filled import filled
from benchmarks.indexer.scope import WORK, Scope
from benchmarks.indexer.servers import Indexer, copied

_FOLDER = WORK / "startup"


def run(scope: Scope, size: int) -> dict[str, Any]:
    """Starts without a snapshot once, then with one, each of a process of its own."""
    data_dir = copied(filled(size), _FOLDER)
    try:
        shutil.rmtree(data_dir / "serving")
        with Indexer(f"start {size}, no snapshot", data_dir) as indexer:
            found: dict[str, Any] = {"name": "ours", "without_snapshot_s": indexer.ready()}
            found["graph_complete_s"] = indexer.graph_complete()
            found["stop_s"] = indexer.stop()
        size_on_disk = sum(path.stat().st_size for path in (data_dir / "serving").rglob("*") if path.is_file())
        found["snapshot_mib"] = size_on_disk / 2**20
        times, memory = [], []
        for _ in range(2 if scope.quick else 5):
            with Indexer(f"start {size}, snapshot", data_dir) as indexer:
                times.append(indexer.ready())
                _ask(indexer)
                memory.append(indexer.own_rss_mib())
                found["stated_mib"] = indexer.status().memory_bytes / 2**20
                indexer.stop()
        found |= {"with_snapshot_s": median(times), "with_snapshot_s_rounds": times, "rss_mib": median(memory)}
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
    with Indexer("start, empty", _FOLDER) as indexer:
        found["empty_s"] = indexer.ready()
        found["empty_rss_mib"] = indexer.own_rss_mib()
    shutil.rmtree(_FOLDER, ignore_errors=True)
    rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in found.items()}
    print(f"  startup, {size}: {rounded}", flush=True)
    return {"row": rounded}


def _ask(indexer: Indexer) -> None:
    """Some queries, with a filter and without: what they leave in memory belongs to it."""
    with Contender("startup client", "benchmarks.indexer.callers", {}, ["9"]) as client:
        client.ready()
        told = {"of": "ours", "how": "queries", "address": indexer.address, "collection": "cosine"}
        for where in (None, ("n", 100.0)):
            client.ask(**told, where=where, batch=1, concurrency=8, ramp_s=0, seconds=1.0)
