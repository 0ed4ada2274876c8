"""A collection into a file. It appears under its name only when it is complete.

Until then ``FILE.part`` is a directory: what has come, and ``state.json``, which says of which collection it is, by its
uid, and behind which id to go on.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from likeness_client.backoff import OnReconnect
from likeness_client.errors import FILE_UNREADABLE, RESUME_REFUSED, LikenessError
from likeness_client.indexer.client import IndexerClient
from likeness_client.indexer.export import another_collection
from likeness_client.indexer.shapes import collection_as_json
from likeness_client.indexer.types import Batch, Collection
from likeness_client.transfer import state
from likeness_client.transfer.durable import to_disk
from likeness_client.transfer.facts import VERSION
from likeness_client.transfer.formats import FileFormat
from likeness_client.transfer.jsonl import JsonLinesWriter
from likeness_client.transfer.parquet import ParquetWriter

OnRows = Callable[[int, int], None]


class Writer(Protocol):
    """Writes batches into a folder; see ``ParquetWriter`` and ``JsonLinesWriter``."""

    checkpoint_rows: int

    def write(self, batch: Batch) -> None:
        """Adds items."""

    def checkpoint(self) -> dict[str, int]:
        """Makes what was written lasting; returns what is needed to go on behind it."""

    def finish(self) -> Path:
        """Closes everything; returns the one file."""


@dataclass(frozen=True)
class Downloaded:
    """A finished export.

    Attributes:
        path: the file.
        collection: what it is of.
        rows: items in it.
        resumed: of these, those that an earlier command had brought.
        size: bytes of the file.
    """

    path: Path
    collection: Collection
    rows: int
    resumed: int
    size: int


def state_path(path: Path) -> Path:
    """What an export into a file remembers, once it has begun, of how far it is."""
    return path.with_name(path.name + ".part") / "state.json"


def download(
    client: IndexerClient,
    collection: str,
    path: Path,
    file_format: FileFormat,
    *,
    where: str = "",
    vectors: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    on_rows: OnRows | None = None,
    on_reconnect: OnReconnect | None = None,
) -> Downloaded:
    """Exports a collection, or goes on where an export was interrupted.

    Args:
        client: of the indexer.
        collection: its name, or an alias.
        path: the file to make.
        file_format: how items are written.
        where: only items for which it is true; empty: all.
        vectors: whether the vectors come along.
        resume: whether to go on with ``path.part``.
        overwrite: whether ``path`` may exist.
        on_rows: called with the rows so far and those there are (0: unknown).
        on_reconnect: see ``Export``.

    Raises:
        LikenessError: the indexer refused or could not be reached; or there is something else where the export would
            go; or (RESUME_REFUSED) what was begun is another export. What has come so far can be gone on with.
    """
    folder = state_path(path).parent
    asked = {"version": VERSION, "format": file_format.value, "where": where, "vectors": vectors}
    _check_place(path, folder, resume=resume, overwrite=overwrite)
    begun = _load(state_path(path), asked) if resume else None
    rows = before = int(begun["rows"]) if begun else 0
    last_id = str(begun["last_id"]) if begun else ""
    with client.export(
        collection, where=where or None, after_id=last_id, include_vectors=vectors, on_reconnect=on_reconnect
    ) as export:
        told = collection_as_json(export.collection)
        if begun is not None:
            if begun["collection"]["uid"] != export.collection.uid:
                raise another_collection(export.collection.name, begun["collection"]["uid"], export.collection.uid)
            told = begun["collection"]
        folder.mkdir(parents=True, exist_ok=True)
        writer = _writer(file_format, folder, told, asked, begun["checkpoint"] if begun else None)
        total = before + export.total if export.total else 0
        since = 0

        def save() -> None:
            checkpoint = writer.checkpoint()
            state.save(
                state_path(path),
                {**asked, "collection": told, "last_id": last_id, "rows": rows, "checkpoint": checkpoint},
            )

        whole = False  # what is written ends behind last_id
        try:
            if begun is None:
                save()
            whole = True
            for batch in export:
                whole = False
                writer.write(batch)
                rows, last_id, since = rows + len(batch), batch.ids[-1], since + len(batch)
                if since >= writer.checkpoint_rows:
                    save()
                    since = 0
                whole = True
                if on_rows is not None:
                    on_rows(rows, total)
        except BaseException:  # an interrupt too: what has come is kept
            # Amid a batch nobody knows how much of it is written: what is behind the last checkpoint is cut off then.
            if whole:
                save()
            raise
    _put_in_place(writer.finish(), path)
    shutil.rmtree(folder)
    return Downloaded(path, export.collection, rows, before, path.stat().st_size)


def _check_place(path: Path, folder: Path, *, resume: bool, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise LikenessError("NOT_FOUND", FILE_UNREADABLE, f"{path.parent}: there is no such directory")
    if path.exists() and not overwrite:
        raise LikenessError("ALREADY_EXISTS", FILE_UNREADABLE, f"{path} exists; remove it, or say --overwrite")
    if folder.exists() and not resume:
        message = f"{folder} is an interrupted export; --resume goes on with it, removing it begins anew"
        raise LikenessError("ALREADY_EXISTS", RESUME_REFUSED, message)


def _load(told: Path, asked: dict[str, Any]) -> dict[str, Any]:
    begun, folder = state.load(told), told.parent
    for key, value in asked.items():
        if begun.get(key) != value:
            message = (
                f"{folder} was begun with {key} {begun.get(key)!r}, not {value!r}; go on as it was begun, or remove it"
            )
            raise LikenessError("FAILED_PRECONDITION", RESUME_REFUSED, message)
    return begun


def _writer(
    file_format: FileFormat,
    folder: Path,
    collection: dict[str, Any],
    asked: dict[str, Any],
    checkpoint: dict[str, int] | None,
) -> Writer:
    about = {
        "export": VERSION,
        "collection": collection,
        "where": asked["where"],
        "vectors": asked["vectors"],
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    text = json.dumps(about, ensure_ascii=False)
    vectors = bool(asked["vectors"])
    if file_format is FileFormat.JSONL:
        at = JsonLinesWriter.cut(folder, checkpoint) if checkpoint else {}
        return JsonLinesWriter(folder, vectors=vectors, about=text, **at)
    at = ParquetWriter.cut(folder, checkpoint) if checkpoint else {}
    return ParquetWriter(folder, int(collection["dimension"]), vectors=vectors, about=text, **at)


def _put_in_place(complete: Path, path: Path) -> None:
    to_disk(complete)
    complete.replace(path)
