"""Exports to files, and what comes back of them, against an indexer in memory."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from likeness_client import LikenessError
from likeness_client.indexer import IndexerClient, Item
from likeness_client.items import MetadataValue
from likeness_client.transfer import parquet, state
from likeness_client.transfer.download import Downloaded, download
from likeness_client.transfer.formats import FileFormat
from likeness_client.transfer.importing import Import
from likeness_client.transfer.jsonl import JsonLinesWriter
from likeness_client.transfer.sources import open_source
from tests.unit.client.fake_indexer import FakeIndexer

FORMATS = pytest.mark.parametrize("file_format", list(FileFormat))
# What float32 holds exactly, and what its shortest text must bring back.
NUMBERS = (0.1, -1e-7, 3.4e38, 1.0)
METADATA: dict[str, MetadataValue] = {
    "whole": 3,
    "real": 3.0,
    "yes": True,
    "text": 'ü "q"\n',
    "list": ["a", "b"],
    "big": 2**60,
}


def fill(client: IndexerClient, number: int, name: str = "photos") -> None:
    items = [Item(f"i{n:04}", {**METADATA, "n": n}, NUMBERS) for n in range(number)]
    for start in range(0, number, 50):
        client.upsert(name, items[start : start + 50])


def copied(client: IndexerClient, path: Path, **options: object) -> Import:
    """Imports a file into the collection "copy", and closes it."""
    work = Import(client, path, **options)  # type: ignore[arg-type]
    try:
        work.prepare("copy", create=True, model="", digest="", metric=None)
        work.run()
    finally:
        work.close()
    return work


def export(client: IndexerClient, path: Path, file_format: FileFormat, **options: object) -> Downloaded:
    return download(client, "photos", path, file_format, **options)  # type: ignore[arg-type]


def ids_of(path: Path) -> list[str]:
    source = open_source(path)
    try:
        return [row.id for row in source.rows(0)]
    finally:
        source.close()


@FORMATS
def test_what_is_exported_and_imported_is_the_same_to_the_last_bit(
    client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path, file_format: FileFormat
) -> None:
    fill(client, 130)
    path = tmp_path / f"photos.{file_format}"
    done = export(client, path, file_format)
    assert (done.rows, done.resumed, done.size) == (130, 0, path.stat().st_size)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]

    work = copied(client, path)

    assert (work.progress.stored, work.progress.refused) == (130, 0)
    assert indexer.items["copy"] == indexer.items["photos"]
    made = indexer.collections["copy"]
    assert made.fingerprint == indexer.collections["photos"].fingerprint
    assert (made.hnsw.ef_search, made.description) == (64, "tests")
    assert max(indexer.upserts) == 64
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_parquet_file_has_the_promised_columns_and_says_what_it_is_of(
    client: IndexerClient, photos: str, tmp_path: Path
) -> None:
    fill(client, 3)
    export(client, tmp_path / "a.parquet", FileFormat.PARQUET)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.names == ["id", "vector", "metadata"]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 4)
    assert table.column("id").to_pylist() == ["i0000", "i0001", "i0002"]
    assert '"real": 3.0' in table.column("metadata")[0].as_py()
    about = json.loads(table.schema.metadata[b"likeness"])
    assert about["collection"]["uid"] == "uid of photos"
    assert about["collection"]["digest"] == "a1" * 32
    assert (about["export"], about["where"], about["vectors"]) == (1, "", True)


def test_json_lines_begin_with_what_they_are_of(client: IndexerClient, photos: str, tmp_path: Path) -> None:
    fill(client, 2)
    export(client, tmp_path / "a.jsonl", FileFormat.JSONL, where="n = 1", vectors=False)
    header, line = (tmp_path / "a.jsonl").read_text().splitlines()
    assert json.loads(header)["likeness"]["where"] == "n = 1"
    assert json.loads(line) == {"id": "i0001", "metadata": {**METADATA, "n": 1}}
    with pytest.raises(LikenessError, match="without vectors"):
        open_source(tmp_path / "a.jsonl")


@FORMATS
def test_an_empty_collection_is_a_file_without_rows(
    client: IndexerClient, photos: str, tmp_path: Path, file_format: FileFormat
) -> None:
    path = tmp_path / f"a.{file_format}"
    assert export(client, path, file_format).rows == 0
    assert copied(client, path).progress.stored == 0


@FORMATS
def test_an_interrupted_export_goes_on_where_it_was_and_the_file_appears_only_when_complete(
    *,
    client: IndexerClient,
    indexer: FakeIndexer,
    photos: str,
    tmp_path: Path,
    file_format: FileFormat,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(client, 100)
    monkeypatch.setattr(parquet.ParquetWriter, "checkpoint_rows", 20)
    monkeypatch.setattr(JsonLinesWriter, "checkpoint_rows", 20)
    path = tmp_path / f"a.{file_format}"

    def interrupt(rows: int, _total: int) -> None:
        if rows >= 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(client, path, file_format, on_rows=interrupt)
    assert not path.exists()
    with pytest.raises(LikenessError, match="--resume goes on"):
        export(client, path, file_format)
    with pytest.raises(LikenessError, match="begun with where ''"):
        export(client, path, file_format, where="n = 1", resume=True)

    done = export(client, path, file_format, resume=True)

    assert (done.rows, done.resumed) == (100, 50)
    assert indexer.export_requests[-1].after_id == "i0049"
    assert copied(client, path).progress.stored == 100
    assert indexer.items["copy"] == indexer.items["photos"]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@FORMATS
def test_what_a_killed_export_wrote_behind_its_last_checkpoint_is_written_again(
    client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path, file_format: FileFormat
) -> None:
    fill(client, 40)
    path = tmp_path / f"a.{file_format}"

    def interrupt(rows: int, _total: int) -> None:
        if rows >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(client, path, file_format, on_rows=interrupt)
    folder = tmp_path / f"a.{file_format}.part"
    half = folder / "0001.parquet" if file_format is FileFormat.PARQUET else folder / "items.jsonl"
    with half.open("ab") as file:
        file.write(b'{"id": "half a li')

    export(client, path, file_format, resume=True)

    copied(client, path)
    assert indexer.items["copy"] == indexer.items["photos"]


@FORMATS
def test_what_a_checkpoint_tells_of_is_on_the_disk_before_it_tells_of_it(
    client: IndexerClient, photos: str, tmp_path: Path, file_format: FileFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(client, 100)
    monkeypatch.setattr(parquet.ParquetWriter, "checkpoint_rows", 50)
    monkeypatch.setattr(JsonLinesWriter, "checkpoint_rows", 50)
    folder = tmp_path / f"a.{file_format}.part"
    fsync, save = os.fsync, state.save
    forced: dict[Path, int] = {}  # what was forced to disk, and its size then
    told = []

    def forcing(opened: int) -> None:
        fsync(opened)
        path = Path(f"/proc/self/fd/{opened}").readlink()
        forced[path] = path.stat().st_size

    def saving(path: Path, what: dict[str, object]) -> None:
        told.append(what["rows"])
        for file in folder.iterdir():
            if file.suffix in (".parquet", ".jsonl") and what["rows"]:
                assert forced.get(file) == file.stat().st_size, f"{file.name}, {what['rows']} rows"
                assert folder in forced or file_format is FileFormat.JSONL
        save(path, what)

    monkeypatch.setattr(os, "fsync", forcing)
    monkeypatch.setattr(state, "save", saving)
    export(client, tmp_path / f"a.{file_format}", file_format)
    assert told == [0, 50, 100]


@FORMATS
@pytest.mark.parametrize("moment", ["behind a batch", "at a checkpoint"])
def test_an_export_interrupted_amid_a_batch_has_every_item_once_when_it_goes_on(
    *,
    client: IndexerClient,
    indexer: FakeIndexer,
    photos: str,
    tmp_path: Path,
    file_format: FileFormat,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(client, 100)
    writer = parquet.ParquetWriter if file_format is FileFormat.PARQUET else JsonLinesWriter
    monkeypatch.setattr(writer, "checkpoint_rows", 20)
    method = "write" if moment == "behind a batch" else "checkpoint"
    done, calls = getattr(writer, method), 0

    def interrupted(self: object, *args: object) -> object:
        nonlocal calls
        calls += 1
        answer = done(self, *args)
        if calls == 4:
            raise KeyboardInterrupt
        return answer

    path = tmp_path / f"a.{file_format}"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writer, method, interrupted)
        export(client, path, file_format)

    assert export(client, path, file_format, resume=True).rows == 100

    assert ids_of(path) == sorted(indexer.items["photos"])


def test_an_export_interrupted_while_its_parts_are_joined_goes_on(
    client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(client, 100)
    monkeypatch.setattr(parquet.ParquetWriter, "checkpoint_rows", 20)
    path = tmp_path / "a.parquet"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pq.ParquetFile, "read_row_group", interrupt)
        export(client, path, FileFormat.PARQUET)

    assert export(client, path, FileFormat.PARQUET, resume=True).rows == 100

    assert ids_of(path) == sorted(indexer.items["photos"])


@FORMATS
@pytest.mark.usefixtures("hasty")
def test_an_export_is_not_resumed_of_another_collection_of_that_name(
    client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path, file_format: FileFormat
) -> None:
    fill(client, 30)
    path = tmp_path / f"a.{file_format}"
    indexer.export_breaks.extend([20] + [0] * 10)
    with pytest.raises(LikenessError, match="stopping"):
        export(client, path, file_format)
    indexer.export_breaks.clear()
    indexer.collections["photos"].uid = "another"
    with pytest.raises(LikenessError) as caught:
        export(client, path, file_format, resume=True)
    assert caught.value.reason == "RESUME_REFUSED"
    assert not path.exists()


def test_an_existing_file_is_replaced_only_if_asked(client: IndexerClient, photos: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("mine")
    with pytest.raises(LikenessError, match="--overwrite"):
        export(client, path, FileFormat.JSONL)
    assert path.read_text() == "mine"
    export(client, path, FileFormat.JSONL, overwrite=True)
    assert path.read_text() != "mine"
