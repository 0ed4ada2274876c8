"""The Python client of the indexer: collections, aliases, items, backups, and what keeps them in order.

from likeness_client.indexer import IndexerClient

with IndexerClient() as indexer:
    indexer.set_alias("photos", "photos-v2", expected="photos-v1")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from likeness_client.facets import Facet, Facets, FacetValue
    from likeness_client.indexer.client import IndexerClient
    from likeness_client.indexer.export import Export
    from likeness_client.indexer.types import (
        Alias,
        Batch,
        Collection,
        CollectionUpdate,
        Described,
        ErasureReport,
        GetResult,
        Hit,
        Hnsw,
        IndexerStatus,
        Item,
        Limits,
        Metric,
        Progress,
        QueryResult,
        Rebuilt,
        ServingStatus,
        Snapshot,
        SnapshotMade,
    )

_HOMES = {
    ".client": ["IndexerClient"],
    "..facets": ["Facet", "FacetValue", "Facets"],
    ".export": ["Export"],
    ".types": [
        "Alias",
        "Batch",
        "Collection",
        "CollectionUpdate",
        "Described",
        "ErasureReport",
        "GetResult",
        "Hit",
        "Hnsw",
        "IndexerStatus",
        "Item",
        "Limits",
        "Metric",
        "Progress",
        "QueryResult",
        "Rebuilt",
        "ServingStatus",
        "Snapshot",
        "SnapshotMade",
    ],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Alias",
    "Batch",
    "Collection",
    "CollectionUpdate",
    "Described",
    "ErasureReport",
    "Export",
    "Facet",
    "FacetValue",
    "Facets",
    "GetResult",
    "Hit",
    "Hnsw",
    "IndexerClient",
    "IndexerStatus",
    "Item",
    "Limits",
    "Metric",
    "Progress",
    "QueryResult",
    "Rebuilt",
    "ServingStatus",
    "Snapshot",
    "SnapshotMade",
]


def __getattr__(name: str) -> Any:
    # grpc, numpy and the stubs take half a second to import: `likeness --help` should not wait for them.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
