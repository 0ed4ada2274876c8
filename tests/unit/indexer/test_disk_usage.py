"""What is measured on the disk, and what is not ours to measure."""

import shutil
import sqlite3
from pathlib import Path

from indexer.disk_usage import DiskUsage, folder_bytes


def written(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))


def test_the_bytes_of_all_files_below_a_folder_count(tmp_path: Path) -> None:
    written(tmp_path / "a", 3)
    written(tmp_path / "deep" / "er" / "b", 4)
    assert folder_bytes(tmp_path) == 7
    assert folder_bytes(tmp_path / "none") == 0


async def test_a_collection_takes_its_index_and_its_snapshots(tmp_path: Path) -> None:
    chroma, serving = tmp_path / "chroma", tmp_path / "serving"
    usage = DiskUsage(chroma, serving)
    assert await usage.of([("uid", "key")]) == [0]
    chroma.mkdir()
    with sqlite3.connect(chroma / "chroma.sqlite3") as database:
        database.execute("CREATE TABLE segments (id TEXT, scope TEXT, collection TEXT)")
        database.execute("INSERT INTO segments VALUES ('segment', 'VECTOR', 'key'), ('meta', 'METADATA', 'key')")
    database.close()
    written(chroma / "segment" / "data_level0.bin", 50)
    written(serving / "uid" / "00000001" / "graph", 7)
    assert await usage.of([("uid", "key"), ("other", "unknown")]) == [57, 0]
    assert await usage.store() == folder_bytes(chroma)


async def test_what_a_killed_chroma_has_left_is_not_measured(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "chroma.sqlite3", isolation_level=None)
    database.execute("CREATE TABLE segments (id TEXT, scope TEXT, collection TEXT)")
    database.execute("PRAGMA cache_size = 1")
    database.execute("BEGIN")
    database.executemany("INSERT INTO segments VALUES (?, 'VECTOR', ?)", [("s" * 500, f"{i}") for i in range(500)])
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("chroma.sqlite3", "chroma.sqlite3-journal"):  # as they are in the middle of the write
        shutil.copy(tmp_path / name, killed / name)
    database.close()
    (killed / "chroma.sqlite3").chmod(0o444)
    assert await DiskUsage(killed).of([("uid", "key")]) == [None]
    assert await DiskUsage(killed).store() == folder_bytes(killed)


async def test_somebody_elses_chroma_is_not_measured(tmp_path: Path) -> None:
    usage = DiskUsage(None, tmp_path)
    assert await usage.of([("uid", "key")]) == [None]
    assert await usage.store() is None
