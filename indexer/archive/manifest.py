"""What a backup says of itself: the collection as it was, its files, and how to tell that they are as written.

The manifest is written last, so a folder without one is no backup. It holds a digest of everything else in it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NoReturn

from likeness.common.v1 import error_pb2

from chassis import names
from chassis.errors import LikenessError
from indexer.collections import UID, Collection, Fingerprint, Hnsw, Metric
from indexer.messages import MAX_DIMENSION

FORMAT = 1
MANIFEST = "manifest.json"
_DIGEST = "sha256_of_the_rest"


@dataclass(frozen=True)
class Part:
    """A file of a backup.

    Attributes:
        name: in the backup's folder.
        rows: items in it.
        size: bytes it has.
        sha256: of those, as hexadecimal digits.
    """

    name: str
    rows: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is known of a backup.

    Attributes:
        collection: as it was.
        created: when the backup was made, UTC.
        rows: items in it.
        parts: its files, in the order of the items' ids.
        releases: of what wrote it, by name.
    """

    collection: Collection
    created: datetime
    rows: int
    parts: Sequence[Part]
    releases: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(part.size for part in self.parts)

    def encoded(self) -> bytes:
        """As it is written."""
        collection = self.collection
        return _signed(
            {
                "format": FORMAT,
                "created": self.created.isoformat(),
                "releases": dict(self.releases),
                "collection": {
                    "name": collection.name,
                    "uid": collection.uid,
                    "earlier_uids": list(collection.earlier_uids),
                    "schema": collection.schema_version,
                    "created": collection.created.isoformat(),
                    "description": collection.description,
                    "metric": collection.metric.value,
                    "fingerprint": asdict(collection.fingerprint),
                    "hnsw": asdict(collection.hnsw),
                },
                "rows": self.rows,
                "files": [asdict(part) for part in self.parts],
            }
        )


def decoded(written: bytes, backup: str) -> Manifest:
    """A manifest as it was written.

    Args:
        written: the file's bytes.
        backup: the backup's name, for the error.

    Raises:
        LikenessError: SNAPSHOT_DAMAGED; SCHEMA_UNSUPPORTED: a newer release wrote it.
    """
    try:
        manifest: Any = json.loads(written)
    except (ValueError, RecursionError) as error:
        _damaged(backup, f"cannot be read: {error}")
    if not isinstance(manifest, dict):
        _damaged(backup, "is none")
    layout = manifest.get("format")
    if isinstance(layout, int) and layout > FORMAT:
        message = (
            f"backup {backup!r} has format {layout}, this release reads up to {FORMAT}; use the release that wrote it, "
            "or a newer one"
        )
        raise LikenessError(error_pb2.REASON_SCHEMA_UNSUPPORTED, message)
    if _signed({key: value for key, value in manifest.items() if key != _DIGEST}) != written:
        _damaged(backup, f"was altered or cut: {_DIGEST} is not that of the rest of it")
    if layout != FORMAT:
        _damaged(backup, f"has format {layout!r}, expected {FORMAT}")
    try:
        return _read(manifest)
    except (LookupError, TypeError, ValueError, AttributeError, LikenessError) as error:
        _damaged(backup, f"is none of this format: {error!r}")


def damaged(backup: str, why: str) -> LikenessError:
    """SNAPSHOT_DAMAGED.

    Args:
        backup: its name.
        why: what is wrong with it.
    """
    message = f"backup {backup!r} is damaged: {why}; restore another one, or bring its files back as they were"
    return LikenessError(error_pb2.REASON_SNAPSHOT_DAMAGED, message)


def _read(manifest: Mapping[str, Any]) -> Manifest:
    of = manifest["collection"]
    fingerprint = Fingerprint(**of["fingerprint"])
    if not 1 <= fingerprint.dimension <= MAX_DIMENSION:
        raise ValueError(f"dimension {fingerprint.dimension}")
    uid, earlier_uids = of["uid"], tuple(of.get("earlier_uids", ()))  # which older releases do not write
    if bad := [each for each in (uid, *earlier_uids) if not UID.fullmatch(each)]:
        raise ValueError(f"uids {bad}")
    collection = Collection(
        name=names.check_collection(of["name"], "collection.name"),
        key="",
        fingerprint=fingerprint,
        metric=Metric(of["metric"]),
        created=datetime.fromisoformat(of["created"]),
        schema_version=of["schema"],
        uid=uid,
        hnsw=Hnsw(**of["hnsw"]),
        description=of["description"],
        earlier_uids=earlier_uids,
    )
    parts = [Part(**part) for part in manifest["files"]]
    if any("/" in part.name or part.name.startswith(".") for part in parts):
        raise ValueError("a file outside the backup's folder")
    if sum(part.rows for part in parts) != manifest["rows"]:
        raise ValueError("its files have other rows than it says")
    return Manifest(
        collection, datetime.fromisoformat(manifest["created"]), manifest["rows"], parts, manifest["releases"]
    )


def _signed(manifest: Mapping[str, Any]) -> bytes:
    return _json({**manifest, _DIGEST: hashlib.sha256(_json(manifest)).hexdigest()})


def _json(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def _damaged(backup: str, why: str) -> NoReturn:
    raise damaged(backup, f"its {MANIFEST} {why}") from None
