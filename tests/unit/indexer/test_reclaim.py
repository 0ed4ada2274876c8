"""What is left in Chroma's own file, and in the files of its indexes beyond their rows."""

import resource
import sqlite3
import struct
import uuid
from pathlib import Path

import pytest
from likeness.common.v1 import error_pb2
from structlog.testing import capture_logs

from chassis.errors import LikenessError
from indexer.reclaim import DATABASE, clear_unused, compact

ROW = 268


def index(
    directory: Path, rows: int, data: bytes, lengths: bytes, *, version: int = 1, room: int = 100, row: int = ROW
) -> Path:
    path = directory / str(uuid.uuid4())
    path.mkdir()
    header = struct.pack("<i6Q2i3QdQ", version, 0, room, rows, row, 260, 132, 0, 0, 16, 32, 16, 0.36, 200)
    (path / "header.bin").write_bytes(header)
    (path / "data_level0.bin").write_bytes(data)
    (path / "length.bin").write_bytes(lengths)
    return path


def test_what_lies_beyond_the_rows_becomes_zeros_and_nothing_else_changes(tmp_path: Path) -> None:
    secret = b"what was in memory"
    rows, lengths = b"\x07" * 3 * ROW, b"\x05" * 3 * 4
    small = index(tmp_path, 3, rows + secret + bytes(5 * ROW), lengths + secret)
    empty = index(tmp_path, 0, secret * 100, secret)
    full = index(tmp_path, 3, rows, lengths)
    assert clear_unused(tmp_path) == (1 + 1 + 100 + 1) * sum(byte != 0 for byte in secret)
    assert (small / "data_level0.bin").read_bytes() == rows + bytes(len(secret) + 5 * ROW)
    assert (small / "length.bin").read_bytes() == lengths + bytes(len(secret))
    assert (empty / "data_level0.bin").read_bytes() == bytes(100 * len(secret))
    assert ((full / "data_level0.bin").read_bytes(), (full / "length.bin").read_bytes()) == (rows, lengths)
    assert clear_unused(tmp_path) == 0


@pytest.mark.parametrize(
    ("rows", "changed"),
    [(0, {"version": 2}), (101, {}), (3, {"room": 2}), (0, {"row": 300}), (2, {"room": 100})],
    ids=["version", "more rows than fit the file", "more rows than room", "row", "cut"],
)
def test_an_index_that_is_not_as_expected_is_left_as_it_is_and_named(
    tmp_path: Path, rows: int, changed: dict[str, int]
) -> None:
    path = index(tmp_path, rows, b"r" * ROW, b"l" * 4, **changed)
    assert left_alone(tmp_path) == [str(path)]
    assert (path / "data_level0.bin").read_bytes() == b"r" * ROW
    assert (path / "length.bin").read_bytes() == b"l" * 4


@pytest.mark.parametrize("name", ["header.bin", "data_level0.bin", "length.bin"])
def test_a_file_that_is_missing_keeps_no_other_index_from_being_cleared(tmp_path: Path, name: str) -> None:
    broken = index(tmp_path, 0, b"rows", b"lengths")
    (broken / name).unlink()
    other = index(tmp_path, 0, b"what was in memory", b"")
    assert left_alone(tmp_path) == [str(broken)]
    assert set((other / "data_level0.bin").read_bytes()) == {0}


def test_a_header_that_is_all_zeros_or_cut_is_not_believed(tmp_path: Path) -> None:
    paths = [index(tmp_path, 1, b"r" * ROW, b"l" * 4) for _ in range(2)]
    (paths[0] / "header.bin").write_bytes(bytes(100))
    (paths[1] / "header.bin").write_bytes(b"cut")
    assert sorted(left_alone(tmp_path)) == sorted(map(str, paths))
    assert all((path / "data_level0.bin").read_bytes() == b"r" * ROW for path in paths)


def left_alone(directory: Path) -> list[str]:
    with capture_logs() as lines:
        clear_unused(directory)
    return [line["path"] for line in lines]


def database(directory: Path) -> Path:
    """A file of Chroma's, as far as it is looked at."""
    path = directory / DATABASE
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE embeddings (id INTEGER PRIMARY KEY, text TEXT)")
        made.execute("CREATE TABLE embedding_metadata_array (id INTEGER, text TEXT)")
        made.executemany("INSERT INTO embeddings VALUES (?, ?)", [(n, "x" * 1000) for n in range(500)])
        made.execute("INSERT INTO embedding_metadata_array VALUES (1, 'of one'), (1000, 'of none')")
    made.close()
    return path


class FullDisk(sqlite3.Connection):
    """The disk is full when half of the new file is written; what SQLite says is what it says of a full device."""

    def execute(self, statement: str, parameters: tuple[str, ...] = ()) -> sqlite3.Cursor:  # type: ignore[override]
        if not statement.startswith("VACUUM"):
            return super().execute(statement, parameters)
        Path(parameters[0]).write_bytes(b"half of it")
        return super().execute(statement, ("/dev/full",))


def test_what_belongs_to_nothing_is_not_in_the_new_file(tmp_path: Path) -> None:
    path = database(tmp_path)
    compact(tmp_path)
    with sqlite3.connect(path) as made:
        assert made.execute("SELECT text FROM embedding_metadata_array").fetchall() == [("of one",)]
    made.close()
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_while_the_file_is_written_anew_is_named_and_given_back_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, connect = database(tmp_path), sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **more: connect(*args, **more, factory=FullDisk))
    with pytest.raises(LikenessError, match=r"has filled up.*make room") as caught:
        compact(tmp_path)
    assert caught.value.reason == error_pb2.REASON_STORE_FULL
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_that_may_not_grow_is_removed(tmp_path: Path) -> None:
    path = database(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(sqlite3.OperationalError):
            compact(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [path]
