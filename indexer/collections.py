"""What a collection is.

Everything about a collection is kept in the metadata of the Chroma collection itself, under keys that begin with
``likeness.``, so a data directory explains itself. Chroma collections without them are somebody else's and are not
seen.

A rebuild stores a collection anew beside what there is: another *generation* of it, in a Chroma collection of another
name and id. What stays is its *uid*, and everything that is remembered of a collection is remembered by that. Of all
Chroma collections with one uid the collection is the one of the highest generation.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError

# 1: without stamps on the items. 2: with them, beside items that were written before. 3: the same, in a Chroma
# collection of another name; written only where that is so, that older releases may read all others.
SCHEMA_VERSION = 3
STAMPED_SCHEMA = 2
PREFIX = "likeness."

# What uids look like: they become names of folders, also elsewhere.
UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Metric(StrEnum):
    """How likeness is measured; the value is Chroma's name of the space."""

    COSINE = "cosine"
    L2 = "l2"
    INNER_PRODUCT = "ip"


@dataclass(frozen=True)
class Fingerprint:
    """The identity of a model; the digest is what is compared."""

    model: str
    digest: str
    dimension: int


@dataclass(frozen=True)
class Hnsw:
    """How an HNSW index is made and searched; 0: the default, which Chroma and the index in memory each have.

    Attributes:
        max_neighbors: links of an item (M), 4 to 128.
        ef_construction: how wide the index is searched when an item is added, 16 to 2,000.
        ef_search: how wide it is searched by a query, 10 to 10,000.
    """

    max_neighbors: int = 0
    ef_construction: int = 0
    ef_search: int = 0


DEFAULT_HNSW = Hnsw()


@dataclass(frozen=True)
class Collection:
    """A collection that this release can read and write.

    Attributes:
        name: unique.
        key: Chroma's own id of it; of each generation another.
        fingerprint: the model whose vectors it holds.
        metric: how likeness is measured.
        created: when it was made, UTC.
        schema_version: of the layout in which it was stored.
        uid: what tells it from another of the same name, made later. Without one of its own: its key.
        store_name: what Chroma calls it. Without one of its own: its name.
        generation: how often it was rebuilt.
        hnsw: how its index should be made and is searched.
        built: how the index of this generation was made.
        description: what it is for.
        earlier_uids: of the collection that it was restored from, then of what that one was restored from, and so on:
            whoever keeps files by uid finds them by these too. Older releases read past them, and lose them when they
            change or rebuild the collection.
    """

    name: str
    key: str
    fingerprint: Fingerprint
    metric: Metric
    created: datetime
    schema_version: int = STAMPED_SCHEMA
    uid: str = ""
    store_name: str = ""
    generation: int = 0
    hnsw: Hnsw = Hnsw()
    built: Hnsw = Hnsw()
    description: str = ""
    earlier_uids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _identify(self)


@dataclass(frozen=True)
class NewerCollection:
    """A collection that a newer release wrote: all that is known for sure."""

    name: str
    key: str
    schema_version: int
    uid: str = ""
    store_name: str = ""
    generation: int = 0
    earlier_uids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _identify(self)


def _identify(collection: Collection | NewerCollection) -> None:
    """What releases before generations wrote has the uid and the name of its Chroma collection."""
    object.__setattr__(collection, "uid", collection.uid or collection.key)
    object.__setattr__(collection, "store_name", collection.store_name or collection.name)


@dataclass(frozen=True)
class StoredCollection:
    """A collection as the store knows it: foreign ones too.

    Attributes:
        name: what the store calls it.
        key: the store's id of it.
        metadata: its own.
    """

    name: str
    key: str
    metadata: Mapping[str, Any]


def check_fingerprint(collection: Collection, expected: Fingerprint | None) -> None:
    """Refuses vectors of another model than the collection's.

    Raises:
        LikenessError: MODEL_MISMATCH, naming both models.
    """
    if expected is None or expected.digest == collection.fingerprint.digest:
        return
    holds = collection.fingerprint
    raise LikenessError(
        error_pb2.REASON_MODEL_MISMATCH,
        f"collection {collection.name!r} holds vectors of model {holds.model!r} (digest {holds.digest[:12]}…, "
        f"{holds.dimension} numbers), the call is for model {expected.model!r} (digest {expected.digest[:12]}…, "
        f"{expected.dimension} numbers); use an embedder with the collection's model, or a collection of the call's: "
        "vectors of two models cannot be compared, so changing models means filling a new collection and moving an "
        "alias to it",
    )


def not_found(name: str) -> LikenessError:
    """COLLECTION_NOT_FOUND."""
    message = f"there is no collection {name!r}; create it first, or list the collections to find its name"
    return LikenessError(error_pb2.REASON_COLLECTION_NOT_FOUND, message)


def made_anew(collection: Collection) -> LikenessError:
    """COLLECTION_NOT_FOUND: the one that was meant was deleted, and this one has its name."""
    message = (
        f"collection {collection.name!r} was deleted and made anew meanwhile, and what was stored in the one before is "
        "gone: send everything again"
    )
    return LikenessError(error_pb2.REASON_COLLECTION_NOT_FOUND, message)


def to_metadata(collection: Collection) -> dict[str, Any]:
    """What Chroma keeps of a collection beside its items: all marks of one that can be used."""
    marks = {
        "schema": STAMPED_SCHEMA if collection.store_name == collection.name else SCHEMA_VERSION,
        "name": collection.name,
        "uid": collection.uid,
        "generation": collection.generation,
        "model": collection.fingerprint.model,
        "digest": collection.fingerprint.digest,
        "dimension": collection.fingerprint.dimension,
        "metric": collection.metric.value,
        "created": collection.created.isoformat(),
        "hnsw": json.dumps(asdict(collection.hnsw)),
        "built": json.dumps(asdict(collection.built)),
        "description": collection.description,
    }
    if collection.earlier_uids:
        marks["earlier_uids"] = json.dumps(collection.earlier_uids)
    return {f"{PREFIX}{name}": value for name, value in marks.items()}


def is_ours(stored: StoredCollection) -> bool:
    """Whether it is a collection of Likeness, of any release."""
    return isinstance(stored.metadata.get(f"{PREFIX}schema"), int)


def from_stored(stored: StoredCollection) -> Collection | NewerCollection:
    """The collection that ``to_metadata`` described, or an older release."""
    values = {key.removeprefix(PREFIX): value for key, value in stored.metadata.items() if key.startswith(PREFIX)}
    name, uid = str(values.get("name", stored.name)), str(values.get("uid", ""))
    generation = int(values.get("generation", 0))
    earlier_uids = tuple(json.loads(values.get("earlier_uids", "[]")))
    if values["schema"] > SCHEMA_VERSION:
        return NewerCollection(name, stored.key, values["schema"], uid, stored.name, generation, earlier_uids)
    return Collection(
        name,
        stored.key,
        Fingerprint(values["model"], values["digest"], values["dimension"]),
        Metric(values["metric"]),
        datetime.fromisoformat(values["created"]),
        values["schema"],
        uid,
        stored.name,
        generation,
        Hnsw(**json.loads(values.get("hnsw", "{}"))),
        Hnsw(**json.loads(values.get("built", "{}"))),
        values.get("description", ""),
        earlier_uids,
    )


def readable(collection: Collection | NewerCollection) -> Collection:
    """The collection, if this release can read it.

    Raises:
        LikenessError: SCHEMA_UNSUPPORTED.
    """
    if isinstance(collection, NewerCollection):
        raise LikenessError(
            error_pb2.REASON_SCHEMA_UNSUPPORTED,
            f"collection {collection.name!r} has layout {collection.schema_version}, this release reads up to "
            f"{SCHEMA_VERSION}; use the release that wrote it, or a newer one",
        )
    return collection
