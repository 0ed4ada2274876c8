"""What is left in the files of Chroma's indexes beyond their rows."""

import struct
import uuid
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from indexer.reclaim import clear_unused

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
