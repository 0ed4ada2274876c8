"""A serving collection on disk, so that a start need not read all of it from Chroma.

A snapshot is a folder: the files of ``snapshot_files`` and a manifest with the size and the CRC-32 of each.

1. It is written under the name ``NUMBER.partial``, every file and then the folder forced to the disk.
2. It is renamed to ``NUMBER``, and only then are older ones removed. So a crash at any moment leaves one that is whole.
3. Nothing of it is used before everything of it was found as it was written, for this collection and by this layout.

A snapshot saves time and is never the only place of anything: one that is refused costs a load from Chroma.
"""

import json
import shutil
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from chassis.durable import to_disk
from indexer.collections import Collection
from indexer.serving.graph import GraphSettings
from indexer.serving.snapshot_files import FILES, read_files, write_files
from indexer.serving.table import TableState

log = structlog.get_logger()

FORMAT = 2  # 1: each row is a node of the graph
MANIFEST = "manifest.json"
_PARTIAL = ".partial"
_DIGEST = "crc32_of_the_rest"
_READ_AT_ONCE = 2**20


@dataclass(frozen=True)
class Snapshot:
    """What was read.

    Attributes:
        watermark: everything that Chroma held with a stamp up to this one is in it.
        state: of the table.
    """

    watermark: int
    state: TableState


class _RefusedError(Exception):
    """Why a snapshot is not used."""


def write(folder: Path, collection: Collection, graph: GraphSettings, snapshot: Snapshot) -> int:
    """Writes a snapshot, which then is the only one. Takes long; runs in a thread.

    Until it returns, nothing may be added to the graph.

    Args:
        folder: of the collection's snapshots; nothing else may be in it.
        collection: whose state it is.
        graph: how the state's graph was made.
        snapshot: what to write.

    Returns:
        Bytes written.

    Raises:
        OSError: the disk is full or fails; what was there before is there still.
        RuntimeError: the same, from faiss.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"*{_PARTIAL}"):
        remove(left)
    number = max((int(there.name) for there in _finished(folder)), default=0) + 1
    partial, final = folder / f"{number:08}{_PARTIAL}", folder / f"{number:08}"
    try:
        partial.mkdir()
        write_files(partial, snapshot.state)
        size = _seal(partial, {**_identity(collection, graph), **_counts(snapshot)})
        partial.rename(final)
        to_disk(folder)
    except BaseException:
        _give_back(partial)
        raise
    for old in _finished(folder):
        if old != final:
            remove(old)
    return size


def size(folder: Path, collection: Collection, graph: GraphSettings) -> tuple[int, int] | None:
    """The bytes and the rows of the newest snapshot of such a collection, as its manifest has them. Runs in a thread.

    Returns:
        None: there is none.
    """
    for path in reversed(_finished(folder)):
        try:
            manifest = _manifest(path / MANIFEST)
        except _RefusedError:
            continue
        if all(manifest.get(name) == value for name, value in _identity(collection, graph).items()):
            return sum(file["bytes"] for file in manifest["files"].values()), manifest["rows"]
    return None


def read(folder: Path, collection: Collection, graph: GraphSettings) -> Snapshot | None:
    """Reads the newest snapshot that is whole. Takes long; runs in a thread.

    Args:
        folder: of the collection's snapshots.
        collection: whose state is wanted.
        graph: how its graph should have been made.

    Returns:
        None: there is none that can be used; why not is logged.
    """
    for path in reversed(_finished(folder)):
        try:
            return _read(path, collection, graph)
        except _RefusedError as why:
            log.warning("snapshot refused", collection=collection.name, snapshot=str(path), why=str(why))
        except Exception as error:
            # Whatever it is that is wrong with it, Chroma has everything.
            log.warning("snapshot cannot be read", collection=collection.name, snapshot=str(path), exc_info=error)
    return None


def remove(path: Path) -> None:
    """Removes one snapshot, or the folder of a collection with all of them."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("a snapshot cannot be removed", path=str(path), why=str(error))


def _give_back(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)  # what stays, the next write removes


def _read(path: Path, collection: Collection, graph: GraphSettings) -> Snapshot:
    manifest = _manifest(path / MANIFEST)
    for name, value in _identity(collection, graph).items():
        if manifest.get(name) != value:
            raise _RefusedError(f"{name} is {manifest.get(name)!r}, expected {value!r}")
    for name in FILES:
        file, expected = path / name, manifest["files"][name]
        if not file.is_file() or file.stat().st_size != expected["bytes"]:
            raise _RefusedError(f"{name} is missing or of another size than {expected['bytes']:,} bytes")
        if _crc32(file) != expected["crc32"]:
            raise _RefusedError(f"{name} was altered: its CRC-32 is not the manifest's")
    state = read_files(path, collection, graph, manifest["tail_from"])
    found = Snapshot(manifest["watermark"], state)
    rows = len(state.ids)
    whole = state.tail_from + len(state.tail) == rows and state.tail_from <= state.graph.count <= rows
    if not whole or any(manifest[name] != count for name, count in _counts(found).items()):
        raise _RefusedError("its files do not belong together")
    return found


def _identity(collection: Collection, graph: GraphSettings) -> dict[str, Any]:
    """What must be equal when it is read."""
    return {
        "format": FORMAT,
        "collection": collection.uid,
        "model_digest": collection.fingerprint.digest,
        "dimension": collection.fingerprint.dimension,
        "metric": collection.metric.value,
        "graph": asdict(graph),
    }


def _counts(snapshot: Snapshot) -> dict[str, int]:
    state = snapshot.state
    return {
        "watermark": snapshot.watermark,
        "rows": len(state.ids),
        "live_rows": int(np.count_nonzero(state.live)),
        "tail_from": state.tail_from,
    }


def _seal(folder: Path, manifest: dict[str, Any]) -> int:
    """Forces the files to the disk and adds the manifest; returns their bytes."""
    files: dict[str, dict[str, Any]] = {}
    for name in FILES:
        to_disk(folder / name)
        files[name] = {"bytes": (folder / name).stat().st_size, "crc32": _crc32(folder / name)}
    (folder / MANIFEST).write_bytes(_signed({**manifest, "files": files}))
    to_disk(folder / MANIFEST)
    to_disk(folder)
    return sum(file["bytes"] for file in files.values())


def _manifest(file: Path) -> dict[str, Any]:
    try:
        written = file.read_bytes()
        manifest: Any = json.loads(written)
    except (OSError, ValueError, RecursionError) as error:
        raise _RefusedError(f"{MANIFEST} cannot be read: {error}") from error
    if isinstance(manifest, dict):
        rest = {name: value for name, value in manifest.items() if name != _DIGEST}
        if _signed(rest) == written:
            return rest
    raise _RefusedError(f"{MANIFEST} was altered")


def _signed(manifest: dict[str, Any]) -> bytes:
    digest = zlib.crc32(_json(manifest))
    return _json({**manifest, _DIGEST: digest})


def _json(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def _finished(folder: Path) -> list[Path]:
    """Snapshots that were written to the end, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def _crc32(file: Path) -> int:
    found = 0
    with file.open("rb") as opened:
        while block := opened.read(_READ_AT_ONCE):
            found = zlib.crc32(block, found)
    return found
