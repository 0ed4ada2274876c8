"""What is left in the files of Chroma's indexes beyond their rows."""

import struct
import uuid
from pathlib import Path

from structlog.testing import capture_logs

from indexer.reclaim import clear_unused

ROW = 268


def index(directory: Path, rows: int, data: bytes, lengths: bytes) -> Path:
    path = directory / str(uuid.uuid4())
    path.mkdir()
    header = struct.pack("<i6Q2i3QdQ", 1, 0, 100, rows, ROW, 260, 132, 0, 0, 16, 32, 16, 0.36, 200)
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


def test_an_index_of_another_layout_is_left_as_it_is_and_named(tmp_path: Path) -> None:
    path = index(tmp_path, 0, b"rows", b"lengths")
    (path / "header.bin").write_bytes(b"another")
    with capture_logs() as lines:
        assert clear_unused(tmp_path) == 0
    assert (path / "data_level0.bin").read_bytes() == b"rows"
    assert [line["path"] for line in lines] == [str(path)]
