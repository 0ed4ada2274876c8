"""The backups there are: folders ``COLLECTION/WHEN`` with a manifest. All of it blocks; for threads.

A folder without a manifest is what an unfinished backup has left, or a deletion: it is never listed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, invalid
from indexer.archive import manifest as manifests
from indexer.archive import parts
from indexer.archive.files import Storage
from indexer.archive.manifest import MANIFEST, Manifest, Part, damaged

_WHEN = re.compile(r"\d{8}T\d{6}\.\d{3}Z")
_COLLECTION = re.compile(r"[a-z0-9][a-z0-9._-]{1,126}[a-z0-9]")


@dataclass(frozen=True)
class Snapshot:
    """A backup.

    Attributes:
        name: the collection's, a slash, and when it was made.
        manifest: what it says of itself; None: that cannot be read.
        size: bytes it takes.
        fault: why it cannot be restored, as far as manifest and sizes show; empty: it can.
    """

    name: str
    manifest: Manifest | None
    size: int
    fault: str = ""

    @property
    def collection(self) -> str:
        """The name of the collection that it is of."""
        return self.name.partition("/")[0]

    @property
    def created(self) -> datetime:
        """When it was made, UTC."""
        return _read_when(self.name.partition("/")[2])


def check_name(name: str, field: str) -> str:
    """The name, if it is one that a backup can have: no path to anywhere else.

    Raises:
        LikenessError: FIELD_INVALID, naming the field.
    """
    collection, _, when = name.partition("/")
    if not _COLLECTION.fullmatch(collection) or ".." in collection or not _WHEN.fullmatch(when) or not _is_time(when):
        raise invalid(
            field,
            f"{name[:200]!r} is no backup's name; expected one like 'photos/20261122T101500.123Z', see ListSnapshots",
        )
    return name


class Snapshots:
    """Backups below one root."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def all(self, collection: str = "") -> list[Snapshot]:
        """The backups, of one collection or of all, the newest first.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        of = [collection] if collection else filter(_is_collection, self._storage.folders())
        found = [self._look(f"{name}/{when}") for name in of for when in self._storage.folders(name) if _is_time(when)]
        return sorted((s for s in found if s is not None), key=lambda s: (s.created, s.name), reverse=True)

    def manifest(self, name: str) -> Manifest:
        """What a backup says of itself.

        Raises:
            LikenessError: SNAPSHOT_NOT_FOUND, SNAPSHOT_DAMAGED, SCHEMA_UNSUPPORTED or STORE_UNAVAILABLE.
        """
        return manifests.decoded(self._manifest(name), name)

    def new_name(self, collection: str) -> str:
        """The name of a backup that is made now; nobody else may make one of the collection meanwhile.

        Names tell which backup is the newest. So where the clock was set back, they go on from the last one.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        now = datetime.now(UTC)
        taken = [when for when in self._storage.folders(collection) if _is_time(when)]
        if taken:
            now = max(now, _read_when(max(taken)) + timedelta(milliseconds=1))
        return f"{collection}/{_when(now)}"

    def complete(self, name: str, manifest: Manifest) -> Snapshot:
        """Adds the manifest: from now on it is a backup.

        Raises:
            LikenessError: STORE_FULL or STORE_UNAVAILABLE.
        """
        encoded = manifest.encoded()
        self._storage.put(f"{name}/{MANIFEST}", encoded)
        return Snapshot(name, manifest, manifest.size + len(encoded))

    def check(self, name: str, part: Part) -> None:
        """Reads a file to its end.

        Raises:
            LikenessError: SNAPSHOT_DAMAGED: it is not as it was written; STORE_UNAVAILABLE.
        """
        path = f"{name}/{part.name}"
        try:
            found = self._storage.sha256(path)
        except FileNotFoundError:
            raise damaged(name, f"its file {part.name} is missing") from None
        if found != part.sha256:
            raise damaged(name, f"its file {part.name} was altered or cut: its SHA-256 is not the manifest's")

    def remove(self, name: str) -> None:
        """Deletes a backup, or what is left of one.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        self._storage.remove(name, first=MANIFEST)

    def delete(self, name: str) -> None:
        """Deletes a backup.

        Raises:
            LikenessError: SNAPSHOT_NOT_FOUND or STORE_UNAVAILABLE.
        """
        self._manifest(name)
        self.remove(name)

    def leftovers(self, collection: str) -> list[str]:
        """Folders of a collection that are no backups.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        names = [f"{collection}/{when}" for when in self._storage.folders(collection) if _is_time(when)]
        return [name for name in names if MANIFEST not in self._storage.sizes(name)]

    def holding(self, ids: Sequence[str]) -> list[Snapshot]:
        """The backups that hold one of the items, or cannot be read: it may be in those too. The newest first.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        wanted = pa.array(ids, pa.string())
        return [snapshot for snapshot in self.all() if self._holds(snapshot, wanted)]

    def _holds(self, snapshot: Snapshot, wanted: pa.Array) -> bool:
        if snapshot.fault or snapshot.manifest is None:
            return True
        return any(self._part_holds(snapshot.name, part, wanted) for part in snapshot.manifest.parts)

    def _part_holds(self, name: str, part: Part, wanted: pa.Array) -> bool:
        try:
            found = parts.ids(self._storage, f"{name}/{part.name}")
            return any(pc.any(pc.is_in(ids, value_set=wanted)).as_py() for ids in found)
        except (FileNotFoundError, ValueError, KeyError, pa.ArrowException):
            return True
        except LikenessError:
            # Of some damage pyarrow says what a disk says that fails: an OSError.
            if self._is_damaged(name, part):
                return True
            raise

    def _is_damaged(self, name: str, part: Part) -> bool:
        try:
            self.check(name, part)
        except LikenessError as error:
            if error.reason == error_pb2.REASON_SNAPSHOT_DAMAGED:
                return True
            raise
        return False

    def _look(self, name: str) -> Snapshot | None:
        sizes = self._storage.sizes(name)
        if MANIFEST not in sizes:
            return None
        size = sum(sizes.values())
        try:
            manifest = self.manifest(name)
        except LikenessError as error:
            if error.reason == error_pb2.REASON_SNAPSHOT_NOT_FOUND:  # deleted just now
                return None
            if error.reason == error_pb2.REASON_STORE_UNAVAILABLE:
                raise
            return Snapshot(name, None, size, error.message)
        for part in manifest.parts:
            if sizes.get(part.name) != part.size:
                there = f"has {sizes[part.name]:,} bytes" if part.name in sizes else "is missing"
                why = damaged(name, f"its file {part.name} {there}, expected {part.size:,} bytes")
                return Snapshot(name, manifest, size, why.message)
        return Snapshot(name, manifest, size)

    def _manifest(self, name: str) -> bytes:
        try:
            return self._storage.read(f"{name}/{MANIFEST}")
        except FileNotFoundError:
            message = f"there is no backup {name!r} below {self._storage.shown}; list the backups to find its name"
            raise LikenessError(error_pb2.REASON_SNAPSHOT_NOT_FOUND, message) from None


def _is_collection(name: str) -> bool:
    return _COLLECTION.fullmatch(name) is not None


def _when(time: datetime) -> str:
    return f"{time:%Y%m%dT%H%M%S}.{time.microsecond // 1000:03}Z"


def _read_when(when: str) -> datetime:
    return datetime.strptime(f"{when[:-1]}000+0000", "%Y%m%dT%H%M%S.%f%z")


def _is_time(when: str) -> bool:
    if not _WHEN.fullmatch(when):
        return False
    try:
        _read_when(when)
    except ValueError:
        return False
    return True
