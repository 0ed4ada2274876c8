"""Data directories with the benchmark's items in them, stored through the indexer once and kept for the next run."""

import shutil
import time
from pathlib import Path

import grpc
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from benchmarks.indexer import data
from benchmarks.indexer.ours import FINGERPRINT, METRICS, OPTIONS, item
from benchmarks.indexer.scope import WORK
from benchmarks.indexer.servers import Indexer

# Raise it when the vectors or the layout in which the indexer stores them change.
_VERSION = 1
_CALL = 512


def filled(size: int, metric: data.Metric = "cosine") -> Path:
    """A data directory with a collection named after the metric, its graph complete, and a serving snapshot."""
    folder = WORK / f"filled-{_VERSION}" / f"{metric}-{size}"
    if folder.is_dir():
        return folder
    half_made = folder.with_name(f".{folder.name}")
    shutil.rmtree(half_made, ignore_errors=True)
    half_made.mkdir(parents=True)
    print(f"  storing {size} items ({metric}) in {folder}, once …", flush=True)
    with Indexer(f"filling {metric} {size}", half_made) as indexer:
        indexer.ready()
        begun = time.perf_counter()
        with grpc.insecure_channel(indexer.address, options=OPTIONS) as channel:
            _fill(indexer_pb2_grpc.IndexerServiceStub(channel), size, metric)
        print(f"  {size / (time.perf_counter() - begun):.0f} items/s", flush=True)
        indexer.graph_complete()
        indexer.stop()
    half_made.rename(folder)
    return folder


def _fill(stub: indexer_pb2_grpc.IndexerServiceStub, size: int, metric: data.Metric) -> None:
    made = indexer_pb2.CreateCollectionRequest(name=metric, fingerprint=FINGERPRINT, metric=METRICS[metric])
    stub.CreateCollection(made, timeout=60)
    vectors, numbers, clusters = data.vectors(size, metric), data.numbers(size), data.clusters(size)
    under_way = []
    for begin in range(0, size, _CALL):
        rows = range(begin, min(begin + _CALL, size))
        items = [item(row, vectors[row], float(numbers[row]), int(clusters[row])) for row in rows]
        request = indexer_pb2.UpsertItemsRequest(collection=metric, items=items)
        under_way.append(stub.UpsertItems.future(request, timeout=300))
        if len(under_way) > 2:  # one is written, the next waits
            under_way.pop(0).result()
    for each in under_way:
        each.result()
