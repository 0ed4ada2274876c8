import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from chassis.metadata import Plain
from indexer.collections import Collection, Metric
from indexer.serving import snapshot, snapshot_files
from indexer.serving.graph import Graph, GraphSettings
from indexer.serving.snapshot import MANIFEST, Snapshot, read, write
from indexer.serving.snapshot_files import FILES
from indexer.serving.table import Table
from indexer.writes import Written
from tests.unit.indexer import strategies
from tests.unit.indexer.serving.tables import (
    DIMENSION,
    GRAPH,
    MASK_BYTES,
    absorb,
    assert_same,
    collection,
    empty,
    filled,
    vectors,
    written,
)

EVERYTHING = (MANIFEST, *FILES)


def save(folder: Path, table: Table, watermark: int = 7, of: Collection | None = None) -> int:
    return write(folder, of or collection(), GRAPH, Snapshot(watermark, table.state()))


def load(folder: Path, of: Collection | None = None) -> Table | None:
    of = of or collection()
    found = read(folder, of, GRAPH)
    return None if found is None else Table.from_state(of.metric, GRAPH, MASK_BYTES, found.state)


def watermark(folder: Path) -> int | None:
    found = read(folder, collection(), GRAPH)
    return None if found is None else found.watermark


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("metric", Metric)
def test_what_was_written_is_read_with_every_type_of_metadata_and_dead_and_tail_rows(
    metric: Metric, tmp_path: Path
) -> None:
    table = filled(metric)
    assert min(table.view.dead_count, len(table.view.tail), table.view.tail_from) > 0
    save(tmp_path, table, 12345, collection(metric))
    found = load(tmp_path, collection(metric))
    assert found is not None
    assert_same(found.view, table.view)
    assert found.row_of == table.row_of
    assert read(tmp_path, collection(metric), GRAPH).watermark == 12345  # type: ignore[union-attr]


def test_what_was_read_goes_on_as_what_was_written_would(tmp_path: Path) -> None:
    table = filled()
    save(tmp_path, table)
    found = load(tmp_path)
    assert found is not None
    for each in (table, found):
        each.apply(written(range(20, 50), seed=3), ["id7", "unknown"])
        absorb(each, 45)
    assert_same(found.view, table.view)
    kept = found.compacted(found.view, lambda: False)
    kept.catch_up(found.view)
    assert kept.view.live_count == found.view.live_count == kept.view.count


@given(
    metadata=st.lists(strategies.metadata, max_size=12),
    deleted=st.lists(st.integers(0, 11), max_size=4),
    absorbed=st.integers(0, 12),
    metric=st.sampled_from(Metric),
)
@settings(max_examples=15, deadline=None)
def test_any_metadata_comes_back(
    metadata: list[dict[str, Plain]],
    deleted: list[int],
    absorbed: int,
    metric: Metric,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("snapshots")
    table = empty(metric)
    items = zip(metadata, vectors(len(metadata)), strict=True)
    table.apply([Written.of(f"{i} 𝄞", vector, values) for i, (values, vector) in enumerate(items)], [])
    absorb(table, min(absorbed, len(metadata)))
    table.apply([], [f"{i} 𝄞" for i in deleted])
    save(folder, table, of=collection(metric))
    found = load(folder, collection(metric))
    assert found is not None
    assert_same(found.view, table.view)


def test_a_key_of_its_own_for_every_row_comes_back(tmp_path: Path) -> None:
    table = empty()
    table.apply(written(range(3000), values=lambda i: {f"key{i}": i, "all": f"text{i}"}), [])
    save(tmp_path, table)
    found = load(tmp_path)
    assert found is not None
    assert_same(found.view, table.view)


def test_more_texts_and_values_than_go_at_once_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_files, "_TEXTS_AT_ONCE", 3)
    monkeypatch.setattr(snapshot_files, "_VALUES_AT_ONCE", 10)
    save(tmp_path, filled())
    found = load(tmp_path)
    assert found is not None
    assert_same(found.view, filled().view)


def test_an_empty_table_comes_back(tmp_path: Path) -> None:
    save(tmp_path, empty())
    found = load(tmp_path)
    assert found is not None
    assert found.view.count == 0


def test_rows_that_the_graph_got_and_the_tail_kept_come_back(tmp_path: Path) -> None:
    table = filled()
    view = table.view
    view.graph.add(view.tail[:4])  # and nobody called absorbed()
    save(tmp_path, table)
    found = load(tmp_path)
    assert found is not None
    assert_same(found.view, view)
    assert found.view.graph.count == view.tail_from + 4


def test_a_snapshot_replaces_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, filled(), 1)
    save(tmp_path, filled(), 2)
    assert watermark(tmp_path) == 2
    assert only(tmp_path).is_dir()


def test_there_is_none_where_none_was_written(tmp_path: Path) -> None:
    assert read(tmp_path, collection(), GRAPH) is None
    assert read(tmp_path / "nowhere", collection(), GRAPH) is None


def test_removed_is_gone(tmp_path: Path) -> None:
    save(tmp_path / "one", filled())
    snapshot.remove(tmp_path / "one")
    snapshot.remove(tmp_path / "one")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "other",
    [
        collection(key="other"),
        collection(digest="b2"),
        collection(dimension=DIMENSION + 1),
        collection(Metric.L2),
        collection(Metric.INNER_PRODUCT),
    ],
)
def test_one_of_another_collection_is_refused(other: Collection, tmp_path: Path) -> None:
    save(tmp_path, filled())
    assert read(tmp_path, other, GRAPH) is None
    assert watermark(tmp_path) == 7


@pytest.mark.parametrize("other", [GraphSettings(16, 40), GraphSettings(8, 41)])
def test_one_with_a_graph_made_otherwise_is_refused(other: GraphSettings, tmp_path: Path) -> None:
    save(tmp_path, filled())
    assert read(tmp_path, collection(), other) is None


def test_one_of_another_layout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, filled())
    monkeypatch.setattr(snapshot, "FORMAT", snapshot.FORMAT + 1)
    assert watermark(tmp_path) is None
    save(tmp_path, filled(), 8)
    assert watermark(tmp_path) == 8
    assert only(tmp_path).is_dir()


@pytest.mark.parametrize("name", EVERYTHING)
def test_one_with_a_file_missing_is_refused(name: str, tmp_path: Path) -> None:
    save(tmp_path, filled())
    (only(tmp_path) / name).unlink()
    assert watermark(tmp_path) is None


@pytest.mark.parametrize("name", EVERYTHING)
def test_one_with_a_file_cut_or_longer_is_refused(name: str, tmp_path: Path) -> None:
    save(tmp_path, filled())
    file = only(tmp_path) / name
    whole = file.read_bytes()
    for size in {0, 1, len(whole) // 2, len(whole) - 8, len(whole) - 1}:
        file.write_bytes(whole[:size])
        assert watermark(tmp_path) is None, size
    file.write_bytes(whole + b"\0")
    assert watermark(tmp_path) is None
    file.write_bytes(whole)
    assert watermark(tmp_path) == 7


@pytest.mark.parametrize("name", EVERYTHING)
def test_one_with_any_byte_altered_is_refused(name: str, tmp_path: Path) -> None:
    save(tmp_path, filled())
    file = only(tmp_path) / name
    whole = file.read_bytes()
    random = np.random.default_rng()
    # Every byte of the manifest; of the rest, which its hashes cover, other ones every time this runs.
    offsets = random.permutation(len(whole))[: None if name == MANIFEST else 200].tolist()
    with capture_logs():
        for at in offsets:
            altered = bytearray(whole)
            altered[at] ^= int(random.integers(1, 256))
            file.write_bytes(altered)
            assert watermark(tmp_path) is None, at
    file.write_bytes(whole)
    assert watermark(tmp_path) == 7


def test_one_with_two_files_exchanged_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "one", filled())
    save(tmp_path / "other", empty())
    for name in FILES:
        shutil.copytree(tmp_path / "one", tmp_path / name)
        shutil.copy(only(tmp_path / "other") / name, only(tmp_path / name) / name)
        assert watermark(tmp_path / name) is None


@pytest.mark.parametrize("manifest", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"files": {}}'])
def test_a_manifest_that_is_none_is_refused(manifest: bytes, tmp_path: Path) -> None:
    save(tmp_path, filled())
    (only(tmp_path) / MANIFEST).write_bytes(manifest)
    assert watermark(tmp_path) is None


def test_files_that_are_whole_and_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    table = filled()
    state = table.state()
    absorb(table, 40)  # the state's tail begins at 25, where its graph no longer ends; no harm, it is known
    table.apply(written(range(100, 110)), [])
    absorb(table, 50)  # but these rows the state does not have
    write(tmp_path, collection(), GRAPH, Snapshot(7, state))
    assert watermark(tmp_path) is None


class StopError(Exception):
    """What a test has a step of writing end with."""


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> Iterator[Callable[[], int]]:
    """Everything that writing does to the disk, failing at the given step; gives the steps taken."""
    taken = 0

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal taken
            taken += 1
            if taken == at:
                raise error
            return step(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Graph, "write", counted(Graph.write))
        patch.setattr(pa, "OSFile", counted(pa.OSFile))
        patch.setattr(pa, "record_batch", counted(pa.record_batch))
        patch.setattr(np, "save", counted(np.save))
        patch.setattr(os, "fsync", counted(os.fsync))
        patch.setattr(json, "dumps", counted(json.dumps))
        for name in ("mkdir", "open", "write_bytes", "rename"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        yield lambda: taken


def steps(monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    save(folder, filled(), 1)
    with failing(monkeypatch, -1, StopError()) as taken:
        save(folder, filled(), 2)
        return taken()


def test_a_crash_at_any_step_of_writing_leaves_one_to_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    count = steps(monkeypatch, tmp_path / "count")
    assert count > 20
    for step in range(1, count + 1):
        folder = tmp_path / str(step)
        save(folder, filled(), 1)
        # A process that is killed cleans nothing up either.
        with failing(monkeypatch, step, StopError()), monkeypatch.context() as patch, pytest.raises(StopError):
            patch.setattr(snapshot, "_give_back", lambda path: None)
            save(folder, filled(), 2)
        assert watermark(folder) in (1, 2), step
        save(folder, filled(), 3)
        assert watermark(folder) == 3, step
        assert only(folder).is_dir()


def test_a_disk_that_is_full_at_any_step_of_writing_leaves_the_old_one_and_no_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "full"
    save(folder, filled(), 1)
    full = OSError(errno.ENOSPC, "No space left on device")
    for step in range(1, steps(monkeypatch, tmp_path / "count") - 1):  # then the new one is there, and the old one goes
        with failing(monkeypatch, step, full), pytest.raises(OSError, match="No space left"):
            save(folder, filled(), 2)
        assert watermark(folder) == 1, step
        assert len(list(folder.iterdir())) == 1, step


def test_an_old_one_that_cannot_be_removed_stays_behind_the_new_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save(tmp_path, filled(), 1)
    with monkeypatch.context() as patch:

        def refuse(path: Path, **_: object) -> None:
            raise OSError(errno.EACCES, "Permission denied", str(path))

        patch.setattr(shutil, "rmtree", refuse)
        save(tmp_path, filled(), 2)
    assert len(list(tmp_path.iterdir())) == 2
    assert watermark(tmp_path) == 2
    (max(tmp_path.iterdir()) / MANIFEST).unlink()
    assert watermark(tmp_path) == 1  # old, and everything since can be read from Chroma


def test_files_that_may_not_grow_leave_the_old_one(tmp_path: Path) -> None:
    """The real thing: writes that the system cuts off, at whatever size."""
    table = empty()
    table.apply(written(range(2000), values=lambda i: {"name": f"picture {i}", "width": i}), [])
    absorb(table, 1990)
    save(tmp_path, table, 1)
    largest = max(file.stat().st_size for file in only(tmp_path).iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (*range(0, largest, largest // 40), *range(largest - 5000, largest, 500)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises((OSError, RuntimeError)):
                save(tmp_path, table, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert watermark(tmp_path) == 1, limit
        assert len(list(tmp_path.iterdir())) == 1, limit
