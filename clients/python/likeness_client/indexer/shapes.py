"""How a collection is written as JSON: by every command that shows one, and in exports."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from likeness_client.indexer.types import Collection, Hnsw, Metric
from likeness_client.items import Fingerprint


def collection_as_json(collection: Collection) -> dict[str, Any]:
    """A collection, flat but for its HNSW parameters; without these and earlier uids where a gateway tells of it."""
    return {
        "name": collection.name,
        "uid": collection.uid,
        **({} if collection.hnsw is None else {"earlier_uids": list(collection.earlier_uids)}),
        "model": collection.fingerprint.model,
        "digest": collection.fingerprint.digest,
        "dimension": collection.fingerprint.dimension,
        "metric": collection.metric.value,
        **({} if collection.hnsw is None else {"hnsw": asdict(collection.hnsw)}),
        "description": collection.description,
        "aliases": list(collection.aliases),
        "count": collection.count,
        "created": time_as_json(collection.create_time),
    }


def collection_from_json(told: Mapping[str, Any]) -> Collection:
    """What ``collection_as_json`` wrote; count and aliases are of then.

    Raises:
        KeyError, TypeError, ValueError: it was written by something else.
    """
    hnsw = told["hnsw"]
    created = told.get("created")
    return Collection(
        name=str(told["name"]),
        uid=str(told["uid"]),
        fingerprint=Fingerprint(str(told["model"]), str(told["digest"]), int(told["dimension"])),
        metric=Metric(told["metric"]),
        hnsw=Hnsw(int(hnsw["max_neighbors"]), int(hnsw["ef_construction"]), int(hnsw["ef_search"])),
        description=str(told["description"]),
        aliases=tuple(map(str, told["aliases"])),
        count=int(told["count"]),
        create_time=datetime.fromisoformat(created) if created else None,
        earlier_uids=tuple(map(str, told.get("earlier_uids", ()))),  # which older releases do not write
    )


def time_as_json(moment: datetime | None) -> str | None:
    """ISO 8601, of UTC."""
    return moment.isoformat() if moment else None
