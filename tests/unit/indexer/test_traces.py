"""Looking for what items leave in files."""

import json
from pathlib import Path

import numpy as np
import pytest

from indexer.traces import Traces
from indexer.writes import StoredRecord

RANDOM = np.random.default_rng(0)
RECORD = StoredRecord(
    "picture-0001",
    (3 * RANDOM.standard_normal(24)).astype(np.float32),
    {"title": "a title — né à Paris", "note": "so long " * 20 + "that it is cut", "tags": ["in a list"], "n": 7},
    1,
)


def of_record(*, cosine: bool = True) -> Traces:
    return Traces.of(["picture-0001", "short"], [RECORD], cosine=cosine)


@pytest.mark.parametrize("offset", [0, 1, 7, 2**17 - 5, 2**20 - 20])
@pytest.mark.parametrize(
    "left",
    [
        b"picture-0001",
        "a title — né à Paris".encode(),
        json.dumps("a title — né à Paris")[1:-1].encode(),
        b"so long so long so long so long so",
        b"in a list",
        RECORD.vector.tobytes(),
        np.nextafter(RECORD.vector / np.linalg.norm(RECORD.vector), np.float32(9)).astype("<f4").tobytes(),
    ],
)
def test_what_an_item_leaves_is_found_wherever_it_lies(tmp_path: Path, left: bytes, offset: int) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(RANDOM.bytes(offset) + left + RANDOM.bytes(1000))
    (tmp_path / "clean").write_bytes(RANDOM.bytes(2**20 + 500))
    searched = of_record().search(tmp_path, lambda _: None)
    assert list(searched.found) == [tmp_path / "folder" / "file"]
    assert searched.files == 2
    assert searched.size == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())


def test_what_is_too_short_is_counted_and_not_looked_for() -> None:
    traces = of_record()
    assert traces.too_short == 1
    assert traces.found(b"short") == set()
    assert len(traces.traces) == 5
    assert all(trace.stored for trace in traces.traces)


def test_a_changed_text_or_vector_is_not_found() -> None:
    near = RECORD.vector * np.float32(1.01)
    for other in (b"picture-0002", b"a title - ne a Paris", b"in a lisT", near.astype("<f4").tobytes()):
        assert of_record(cosine=False).found(b"x" * 100 + other + b"x" * 100) == set()
