"""Imports of files, against an indexer in memory."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import cast

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from likeness.indexer.v1 import indexer_pb2 as pb

from likeness_client import LikenessError
from likeness_client.indexer import IndexerClient
from likeness_client.indexer.types import Limits
from likeness_client.transfer.importing import Import
from likeness_client.transfer.jsonl import JsonLinesSource
from likeness_client.transfer.rows import Row
from likeness_client.transfer.sources import open_source
from likeness_client.transfer.upload import Upload
from tests.unit.client.fake_gateway import shutting_down, status
from tests.unit.client.fake_indexer import FakeIndexer


def lines(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def into_photos(client: IndexerClient, path: Path, csv: Path | None = None, **options: object) -> Import:
    """Imports a file into the collection "photos", and closes it."""
    work = Import(client, path, csv, **options)  # type: ignore[arg-type]
    try:
        work.prepare("photos", create=False, model="", digest="", metric=None)
        work.run()
    finally:
        work.close()
    return work


def test_bad_rows_are_named_and_their_neighbours_stored(
    client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path
) -> None:
    good = [{"id": f"g{n}", "vector": [1, 2, 3, 4]} for n in range(300)]
    bad: list[object] = [
        {"id": "no vector"},
        {"id": "words", "vector": ["1", "2", "3", "4"]},
        {"id": "nested", "vector": [1, 2, 3, 4], "metadata": {"a": {"b": 1}}},
        {"id": "null", "vector": [1, 2, 3, 4], "metadata": {"a": None}},
        {"id": "long", "vector": [1, 2, 3, 4, 5]},
        {"id": 7, "vector": [1, 2, 3, 4]},
        {"id": "big", "vector": [1, 2, 3, 4], "metadata": {"a": 2**70}},
        {"id": "huge", "vector": [1, 2, 3, 4], "metadata": {"a": "x" * 300_000}},
        [1],
    ]
    path = lines(tmp_path / "a.jsonl", [*good[:150], *bad, *good[150:]])
    with path.open("a") as file:
        file.write("no json\n")

    done = into_photos(client, path).progress

    assert (done.stored, done.refused) == (300, 10)
    assert set(indexer.items["photos"]) == {row["id"] for row in good}
    assert [refusal.row for refusal in done.refusals] == [*range(151, 160), 310]
    told = {refusal.id: refusal for refusal in done.refusals}
    assert (told["long"].reason, told["long"].message) == ("VECTOR_INVALID", "vector: 20 bytes; expected 16")
    assert "metadata 'a' is a dict" in told["nested"].message
    assert "holds" in told["huge"].message


def test_more_bad_rows_than_one_answer_names_are_all_named(
    client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path
) -> None:
    rows: list[object] = [{"id": f"r{n:03}", "vector": [1, 2, 3, 4]} for n in range(400)]
    indexer.bad_ids = {f"r{n:03}" for n in range(50, 350)}
    done = into_photos(client, lines(tmp_path / "a.jsonl", rows)).progress
    assert (done.stored, done.refused) == (100, 300)
    assert [refusal.row for refusal in done.refusals] == list(range(51, 351))


def test_strict_stops_at_the_first_bad_row(
    client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path
) -> None:
    rows: list[object] = [{"id": f"r{n:03}", "vector": [1, 2, 3, 4]} for n in range(400)]
    indexer.bad_ids = {"r100"}
    with pytest.raises(LikenessError, match=r"row 101 \(id 'r100'\)"):
        into_photos(client, lines(tmp_path / "a.jsonl", rows), strict=True)


def test_an_overloaded_indexer_is_given_time_and_every_row_arrives(
    client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path
) -> None:
    full = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", "the queue is full", retry_after_s=0.01)
    indexer.failures["UpsertItems"] = deque([full, shutting_down(), full, full])
    rows: list[object] = [{"id": f"r{n:04}", "vector": [1, 2, 3, 4]} for n in range(1000)]
    work = Import(client, lines(tmp_path / "a.jsonl", rows))
    waits: list[float] = []
    work.prepare("photos", create=False, model="", digest="", metric=None)
    work.run(on_wait=lambda error, wait_s: waits.append(wait_s))
    work.close()
    assert len(indexer.items["photos"]) == 1000
    assert waits
    assert not work.state_path.exists()


class Unordered:
    """An indexer that carries out what it is sent only when it is waited for, the last call first."""

    def __init__(self, failures: int = 0) -> None:
        self.stored: dict[str, bytes] = {}
        self.most_under_way = 0
        self.under_way: list[pb.UpsertItemsRequest] = []
        self._failures = failures

    def begin_upsert(self, request: pb.UpsertItemsRequest) -> Callable[[], pb.UpsertItemsResponse]:
        self.under_way.append(request)
        self.most_under_way = max(self.most_under_way, len(self.under_way))

        def answer() -> pb.UpsertItemsResponse:
            if self._failures and request in self.under_way:
                self._failures -= 1
                self.under_way.remove(request)
                raise LikenessError("UNAVAILABLE", "OVERLOADED", "full", retry_after_s=0.001)
            while self.under_way:
                self.stored.update({item.id: item.vector.f32 for item in self.under_way.pop().items})
            return pb.UpsertItemsResponse(stored=len(request.items))

        return answer


def limits(batch: int) -> Limits:
    return Limits(**{limit.name: 0 for limit in fields(Limits)} | {"batch": batch})


@pytest.mark.parametrize("failures", [0, 3])
def test_of_rows_with_one_id_the_last_one_is_kept_in_whatever_order_calls_are_carried_out(failures: int) -> None:
    indexer = Unordered(failures)
    ids = ["a", "b", "c", "d", "e", "a", "f", "g", "h", "b", "i", "g"]
    rows = [Row(number, item_id, np.full(4, number, "<f4").tobytes()) for number, item_id in enumerate(ids, start=1)]
    upload = Upload(cast(IndexerClient, indexer), "photos", limits(batch=2), first_backoff_s=0.001)
    upload.run(iter(rows))
    assert indexer.stored == {row.id: row.f32 for row in rows}
    assert (upload.progress.after, upload.progress.stored) == (12, 12)
    assert indexer.most_under_way > 1, "what shares no id does not wait"


def rows_of(*ids: str) -> Iterator[Row]:
    for number, item_id in enumerate(ids, start=1):
        yield Row(number, item_id, np.ones(4, "<f4").tobytes(), fault="no vector" if item_id == "bad" else "")


def damaged(rows: Iterator[Row]) -> Iterator[Row]:
    yield from rows
    raise LikenessError("INVALID_ARGUMENT", "FILE_INVALID", "damaged behind row 3")


@pytest.mark.parametrize(
    ("rows", "words", "sent"),
    [
        (rows_of("bad", "a", "b", "c", "d"), "row 1.*no vector", {"a", "b", "c"}),
        (damaged(rows_of("a", "b", "c")), "damaged behind row 3", {"a", "b"}),
    ],
    ids=["a bad row", "a damaged file"],
)
def test_nothing_is_written_any_more_once_the_caller_knows(rows: Iterator[Row], words: str, sent: set[str]) -> None:
    indexer = Unordered()
    upload = Upload(cast(IndexerClient, indexer), "photos", limits(batch=1), strict=True)
    with pytest.raises(LikenessError, match=words):
        upload.run(rows)
    assert indexer.under_way == []
    assert indexer.stored.keys() == sent
    assert upload.progress.after == 0


def test_what_cannot_pass_ends_an_import_at_once_and_it_goes_on_where_it_was(
    client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path
) -> None:
    rows: list[object] = [{"id": f"r{n:04}", "vector": [1, 2, 3, 4]} for n in range(1000)]
    path = lines(tmp_path / "a.jsonl", rows)
    full = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL", "the disk is full")

    work = Import(client, path)
    work.prepare("photos", create=False, model="", digest="", metric=None)

    def fill_the_disk() -> None:
        if work.progress.after >= 384:
            indexer.failures["UpsertItems"] = deque([full] * 100)

    with pytest.raises(LikenessError, match="the disk is full"):
        work.run(on_rows=fill_the_disk)
    work.close()
    done = work.progress.after
    assert 384 <= done < 1000
    indexer.failures.clear()
    indexer.upserts.clear()

    again = into_photos(client, path, resume=True)

    assert sum(indexer.upserts) == 1000 - done
    assert again.progress.after == 1000
    assert len(indexer.items["photos"]) == 1000
    assert not again.state_path.exists()


@pytest.fixture
def always_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far an import is, is remembered after each answer."""
    monkeypatch.setattr("likeness_client.transfer.importing.SAVE_EVERY_S", 0.0)


@pytest.mark.usefixtures("always_saving")
def test_an_import_that_cannot_remember_how_far_it_is_tells_once_and_goes_on(
    client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path
) -> None:
    path = lines(tmp_path / "a.jsonl", [{"id": f"r{n:04}", "vector": [1, 2, 3, 4]} for n in range(1000)])
    (tmp_path / "a.jsonl.import.json.new").mkdir()  # where it would be written
    work = Import(client, path)
    work.prepare(photos, create=False, model="", digest="", metric=None)
    unsaved: list[OSError] = []

    work.run(on_unsaved=unsaved.append)
    work.close()

    assert len(indexer.items[photos]) == 1000
    assert [type(error) for error in unsaved] == [IsADirectoryError]
    assert not work.resumable


def test_what_ended_an_import_is_raised_although_it_cannot_be_remembered(
    client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path
) -> None:
    path = lines(tmp_path / "a.jsonl", [{"id": "a", "vector": [1, 2, 3, 4]}])
    (tmp_path / "a.jsonl.import.json.new").mkdir()
    indexer.failures["UpsertItems"] = deque([status(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL", "full")])
    with pytest.raises(LikenessError, match="full"):
        into_photos(client, path)


def test_an_import_of_a_file_whose_name_is_no_utf_8_goes_on_where_it_was(
    client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path
) -> None:
    path = lines(tmp_path / os.fsdecode(b"caf\xe9.jsonl"), [{"id": "a", "vector": [1, 2, 3, 4]}])
    indexer.failures["UpsertItems"] = deque([status(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL", "full")])
    with pytest.raises(LikenessError, match="full"):
        into_photos(client, path)
    assert into_photos(client, path, resume=True).progress.stored == 1


def test_an_import_is_not_resumed_with_another_file_or_into_another_collection(
    client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path
) -> None:
    path = lines(tmp_path / "a.jsonl", [{"id": "a", "vector": [1, 2, 3, 4]}])
    with pytest.raises(LikenessError, match="nothing to go on with"):
        Import(client, path, resume=True)
    indexer.failures["UpsertItems"] = deque([status(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL", "full")])
    with pytest.raises(LikenessError, match="full"):
        into_photos(client, path)
    indexer.collections["photos"].uid = "another"
    with pytest.raises(LikenessError, match="another one than the import was begun into"):
        into_photos(client, path, resume=True)
    lines(path, [{"id": "b", "vector": [1, 2, 3, 4]}])
    with pytest.raises(LikenessError, match="not what it was"):
        into_photos(client, path, resume=True)


def test_an_array_and_its_csv_become_items_with_a_type_a_column(
    client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path
) -> None:
    vectors = np.arange(12, dtype=np.float64).reshape(3, 4)
    np.save(tmp_path / "v.npy", vectors)
    table = 'id,width,share,seen,zip,note\na,640,0.5,true,00700,\nb,,1,false,10115,"x,\ny"\nc,-3,2e1,,1,z\n'
    (tmp_path / "v.csv").write_text(table)

    done = into_photos(client, tmp_path / "v.npy", tmp_path / "v.csv").progress

    assert (done.stored, done.refused) == (3, 0)
    read = client.get("photos", ["a", "b", "c"], include_vectors=True).items
    assert [item.vector for item in read] == [tuple(row) for row in vectors.tolist()]
    assert [dict(item.metadata) for item in read] == [
        {"seen": True, "share": 0.5, "width": 640, "zip": "00700"},
        {"note": "x,\ny", "seen": False, "share": 1.0, "zip": "10115"},
        {"note": "z", "share": 20.0, "width": -3, "zip": "1"},
    ]
    assert isinstance(read[1].metadata["share"], float)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("id\na\nb\n", "2 rows"),
        ("name\na\nb\nc\n", "no column 'id'"),
        ("id,my key\na,1\nb,2\nc,3\n", "cannot be a metadata key"),
        ("id,x\na,1\nb\nc,3\n", "cannot be read as CSV"),
        ("id,x,x\na,1,1\nb,1,1\nc,1,1\n", "two columns 'x'"),
        ("", "cannot be read as CSV"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused_before_anything_is_sent(
    client: IndexerClient, photos: str, tmp_path: Path, table: str, words: str
) -> None:
    np.save(tmp_path / "v.npy", np.ones((3, 4), np.float32))
    (tmp_path / "v.csv").write_text(table)
    with pytest.raises(LikenessError, match=words) as caught:
        open_source(tmp_path / "v.npy", tmp_path / "v.csv")
    assert caught.value.reason == "FILE_INVALID"


def test_a_table_whose_name_is_no_utf_8_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((1, 4), np.float32))
    csv = tmp_path / os.fsdecode(b"caf\xe9.csv")
    csv.write_text("id\na\n")
    assert [row.id for row in open_source(tmp_path / "v.npy", csv).rows(0)] == ["a"]


def empty(path: Path) -> None:
    path.touch()


def zipped(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.ones((1, 4)))


def no_numbers(path: Path) -> None:
    np.save(path, np.array([["a"]], object))


@pytest.mark.parametrize("write", [empty, zipped, no_numbers])
def test_what_is_no_array_is_refused_before_anything_is_sent(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "v.npy")
    (tmp_path / "v.csv").write_text("id\na\n")
    with pytest.raises(LikenessError, match="cannot be read as a numpy array") as caught:
        open_source(tmp_path / "v.npy", tmp_path / "v.csv")
    assert caught.value.reason == "FILE_INVALID"


DEEP = "[" * 200_000


def test_rows_that_are_nested_too_deep_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(DEEP + "\n")
    columns = {"id": ["a"], "vector": pa.array([[1.0]], pa.list_(pa.float32())), "metadata": [DEEP]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        (row,) = open_source(tmp_path / name).rows(0)
        assert "recursion" in row.fault


def test_a_parquet_file_that_says_what_cannot_be_read_of_its_collection_is_refused(tmp_path: Path) -> None:
    columns = {"id": ["a"], "vector": pa.array([[1.0]], pa.list_(pa.float32()))}
    for about in (DEEP, "no JSON", "[]"):
        pq.write_table(pa.table(columns).replace_schema_metadata({"likeness": about}), tmp_path / "a.parquet")
        with pytest.raises(LikenessError, match="export it again") as caught:
            open_source(tmp_path / "a.parquet")
        assert caught.value.reason == "FILE_INVALID"


def test_a_file_that_cannot_be_read_on_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.symlink_to("/proc/self/mem")  # whose first byte cannot be read
    with pytest.raises(LikenessError, match=r"a\.jsonl: Input/output error") as caught:
        open_source(path)
    assert caught.value.reason == "FILE_UNREADABLE"

    path = lines(tmp_path / "b.jsonl", [{"id": "a", "vector": [1, 2, 3, 4]}])
    source = JsonLinesSource(path)
    (opened,) = (int(each.name) for each in Path("/proc/self/fd").iterdir() if each.resolve() == path)
    with Path("/proc/self/mem").open("rb") as broken:
        os.dup2(broken.fileno(), opened)
    with pytest.raises(LikenessError, match=r"b\.jsonl: Input/output error"):
        list(source.rows(0))
    source.close()


def test_a_parquet_file_of_somebody_else_may_have_a_column_a_key(
    client: IndexerClient, indexer: FakeIndexer, photos: str, tmp_path: Path
) -> None:
    table = pa.table(
        {
            "id": ["a", None, "c", "d"],
            "vector": pa.array([[1, 2, 3, 4], [1, 2, 3, 4], None, [1, 2, 3, 4]], pa.list_(pa.float64())),
            "width": [640, 1, 2, None],
            "tags": pa.array([["x"], [], [], ["y", "z"]], pa.list_(pa.string())),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    done = into_photos(client, tmp_path / "a.parquet").progress
    assert [(refusal.row, refusal.reason) for refusal in done.refusals] == [(2, "ROW_INVALID"), (3, "VECTOR_INVALID")]
    read = client.get("photos", ["a", "d"]).items
    assert [dict(item.metadata) for item in read] == [{"tags": ["x"], "width": 640}, {"tags": ["y", "z"]}]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"id": ["a"]}, "no column 'vector'"),
        ({"id": [1], "vector": [[1.0]]}, "column 'id' is int64"),
        ({"id": ["a"], "vector": ["x"]}, "column 'vector' is string"),
        ({"id": ["a"], "vector": [[1.0]], "when": [{"a": 1}]}, "column 'when' is struct"),
    ],
)
def test_a_parquet_file_of_other_columns_is_refused(tmp_path: Path, columns: dict[str, object], words: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(LikenessError, match=words):
        open_source(tmp_path / "a.parquet")


def test_rows_behind_a_given_one_are_read_without_those_before(tmp_path: Path) -> None:
    ids = [f"r{n}" for n in range(50)]
    pq.write_table(pa.table({"id": ids, "vector": [[1.0]] * 50}), tmp_path / "a.parquet", row_group_size=7)
    for after in (0, 6, 7, 8, 49, 50):
        source = open_source(tmp_path / "a.parquet")
        assert [row.id for row in source.rows(after)] == ids[after:]
        source.close()


def test_nothing_is_made_without_knowing_the_model(client: IndexerClient, tmp_path: Path) -> None:
    work = Import(client, lines(tmp_path / "a.jsonl", [{"id": "a", "vector": [1, 2]}]))
    with pytest.raises(LikenessError, match="name the collection by --collection"):
        work.prepare("", create=True, model="", digest="", metric=None)
    with pytest.raises(LikenessError, match="needs --model and --digest"):
        work.prepare("new", create=True, model="", digest="", metric=None)
    with pytest.raises(LikenessError) as caught:
        work.prepare("new", create=False, model="", digest="", metric=None)
    assert caught.value.reason == "COLLECTION_NOT_FOUND"
    work.close()
