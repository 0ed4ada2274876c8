"""The indexer's client against an indexer in memory."""

from collections import deque

import grpc
import numpy as np
import pytest

from likeness_client import LikenessError, WhereError
from likeness_client.backoff import backoff_s
from likeness_client.indexer import Hnsw, IndexerClient, Item, Metric, Progress
from likeness_client.items import Fingerprint, Term
from tests.unit.client.fake_gateway import status
from tests.unit.client.fake_indexer import FakeIndexer

OTHER = Fingerprint("ViT-B-32", "b2" * 32, 4)


def some(number: int) -> list[Item]:
    return [
        Item(f"i{n:03}", {"n": n, "kind": "cat" if n % 2 else "dog"}, (float(n), 0.5, 0.0, 1.0)) for n in range(number)
    ]


def test_a_collection_is_made_described_changed_and_deleted(client: IndexerClient, photos: str) -> None:
    described = client.collection(photos)
    assert described.collection.fingerprint == Fingerprint("starter", "a1" * 32, 4)
    assert described.collection.metric is Metric.COSINE
    assert described.collection.hnsw == Hnsw(0, 0, 64)
    assert described.collection.create_time is not None
    assert (described.status.mode, described.status.dead_share, described.status.recall) == ("memory", 0.2, None)
    changed = client.update_collection(photos, description="new words")
    assert (changed.collection.description, changed.needs_rebuild) == ("new words", False)
    assert changed.collection.hnsw == Hnsw(0, 0, 64)
    assert client.update_collection(photos, hnsw=Hnsw(32)).needs_rebuild
    client.delete_collection(photos)
    with pytest.raises(LikenessError) as caught:
        client.collection(photos)
    assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "COLLECTION_NOT_FOUND")


def test_every_page_of_the_collections_is_read(client: IndexerClient, indexer: FakeIndexer) -> None:
    indexer.page = 2
    for name in ("eee", "aaa", "ccc", "bbb", "ddd"):
        client.create_collection(name, OTHER, metric=Metric.L2)
    assert [collection.name for collection in client.collections()] == ["aaa", "bbb", "ccc", "ddd", "eee"]


def test_an_alias_moves_only_from_where_it_is_expected(client: IndexerClient, photos: str) -> None:
    client.create_collection("photos-v2", OTHER)
    assert client.set_alias("current", photos, expected="") == ""
    with pytest.raises(LikenessError) as caught:
        client.set_alias("current", "photos-v2", expected="nothing")
    assert caught.value.reason == "ALIAS_MOVED"
    assert client.set_alias("current", "photos-v2", expected=photos) == photos
    assert [(alias.name, alias.collection) for alias in client.aliases()] == [("current", "photos-v2")]
    assert client.collection("current").collection.aliases == ("current",)
    assert client.delete_alias("current") == "photos-v2"


def test_items_are_written_listed_counted_read_and_deleted(
    client: IndexerClient, indexer: FakeIndexer, photos: str
) -> None:
    assert client.upsert(photos, some(25)) == 25
    assert [item.id for item in client.items(photos, page_size=7)] == [f"i{n:03}" for n in range(25)]
    assert client.count(photos, where='kind = "cat"') == 12
    facets = client.facets(photos, ["kind", "none"])
    assert [(value.value, value.count) for value in facets.facets[0].values] == [("dog", 13), ("cat", 12)]
    assert (facets.count, facets.facets[1].distinct, facets.facets[1].missing) == (25, 0, 25)
    read = client.get(photos, ["i002", "x"], include_vectors=True)
    assert read.items == (Item("i002", {"kind": "dog", "n": 2}, (2.0, 0.5, 0.0, 1.0)),)
    assert read.missing_ids == ("x",)
    assert client.delete(photos, ids=["i000", "x"]) == 1
    assert client.delete(photos, where='kind = "cat"') == 12
    assert len(indexer.items[photos]) == 12


def test_what_is_no_condition_or_no_vector_is_told_before_anything_is_sent(client: IndexerClient, photos: str) -> None:
    with pytest.raises(WhereError):
        client.count(photos, where="width >=")
    with pytest.raises(ValueError, match="no vector"):
        client.upsert(photos, [Item("a")])
    with pytest.raises(TypeError, match="ask a gateway"):
        client.query(photos, Term.text("a cat"))


def test_a_query_names_its_model_and_is_refused_by_another_collection(client: IndexerClient, photos: str) -> None:
    client.upsert(photos, some(5))
    found = client.query(photos, Term.vector([1, 0, 0, 0]), Term.id("i001", weight=-1), top_k=2)
    assert [hit.item.id for hit in found.hits] == ["i000", "i001"]
    assert found.fingerprint.digest == "a1" * 32
    with pytest.raises(LikenessError) as caught:
        client.query(photos, Term.vector([1, 0, 0, 0]), expected_fingerprint=OTHER)
    assert caught.value.reason == "MODEL_MISMATCH"
    with pytest.raises(LikenessError) as caught:
        client.query(photos, Term.id("nobody"))
    assert caught.value.reason == "ITEM_NOT_FOUND"


def test_what_takes_a_while_tells_how_far_it_is_and_gives_its_result(
    client: IndexerClient, indexer: FakeIndexer, photos: str
) -> None:
    client.upsert(photos, some(3))
    seen: list[Progress] = []
    made = client.create_snapshot(photos, on_progress=seen.append)
    assert (made.snapshot.name, made.deleted, made.snapshot.size) == ("photos/0", ("photos/old",), 1234)
    restored = client.restore_snapshot("photos/0", collection="again", on_progress=seen.append)
    assert (restored.name, restored.count) == ("again", 3)
    assert client.rebuild(photos, on_progress=seen.append).bytes_after == 1000
    report = client.erase(photos, ["i000"], on_progress=seen.append)
    assert (report.deleted, report.traces, report.clean) == (1, 6, True)
    assert [progress.stage for progress in seen] == ["copying", "restoring", "copying", "searching"]
    assert [snapshot.name for snapshot in client.snapshots(photos)] == ["photos/0"]
    client.delete_snapshot("photos/0")
    assert client.snapshots() == []


def test_a_job_that_fails_on_the_way_raises_what_it_failed_of(
    client: IndexerClient, indexer: FakeIndexer, photos: str
) -> None:
    busy = status(grpc.StatusCode.FAILED_PRECONDITION, "COLLECTION_BUSY", "it is being rebuilt: 40 %")
    indexer.failures["CreateSnapshot"] = deque([busy])
    with pytest.raises(LikenessError, match="being rebuilt: 40 %"):
        client.create_snapshot(photos)


def test_reads_and_repeatable_writes_are_tried_again_by_themselves(
    client: IndexerClient, indexer: FakeIndexer, photos: str
) -> None:
    away = status(grpc.StatusCode.UNAVAILABLE, "NOT_READY", "starting")
    indexer.failures["UpsertItems"] = deque([away, away])
    assert client.upsert(photos, some(1)) == 1
    indexer.failures["CreateSnapshot"] = deque([away])
    with pytest.raises(LikenessError, match="starting"):
        client.create_snapshot(photos)


def test_an_alias_is_moved_once_even_where_the_answer_is_lost(
    client: IndexerClient, indexer: FakeIndexer, photos: str
) -> None:
    away = status(grpc.StatusCode.UNAVAILABLE, "NOT_READY", "starting")
    indexer.failures["SetAlias"] = deque([away])
    with pytest.raises(LikenessError, match="starting"):
        client.set_alias("now", photos, expected="")
    assert indexer.aliases == {"now": photos}
    client.set_alias("now", photos, expected=photos)


def test_an_export_that_breaks_goes_on_behind_the_last_id_and_brings_everything_once(
    client: IndexerClient, indexer: FakeIndexer, photos: str
) -> None:
    client.upsert(photos, some(50))
    indexer.export_breaks.extend([15, 0, 20])
    broken: list[str] = []
    with client.export(photos, on_reconnect=lambda error, _wait_s: broken.append(error.reason)) as export:
        batches = list(export)
    assert (export.collection.name, export.total, export.last_id) == (photos, 50, "i049")
    assert [item_id for batch in batches for item_id in batch.ids] == [f"i{n:03}" for n in range(50)]
    assert broken == ["SHUTTING_DOWN"] * 3
    assert [request.after_id for request in indexer.export_requests] == ["", "i014", "i014", "i034"]
    vectors = np.concatenate([batch.vectors for batch in batches if batch.vectors is not None])
    assert vectors.dtype == np.float32
    assert vectors[:, 0].tolist() == list(range(50))


def test_an_export_does_not_go_on_with_another_collection_of_the_same_name(
    client: IndexerClient, indexer: FakeIndexer, photos: str
) -> None:
    client.upsert(photos, some(30))
    indexer.export_breaks.append(15)
    with client.export(photos) as export, pytest.raises(LikenessError) as caught:
        for _ in export:
            indexer.collections[photos].uid = "another"
    assert caught.value.reason == "RESUME_REFUSED"


@pytest.mark.usefixtures("hasty")
def test_an_export_that_breaks_again_and_again_is_given_up(
    client: IndexerClient, indexer: FakeIndexer, photos: str
) -> None:
    client.upsert(photos, some(30))
    indexer.export_breaks.extend([15] + [0] * 20)
    with client.export(photos) as export, pytest.raises(LikenessError) as caught:
        list(export)
    assert caught.value.reason == "SHUTTING_DOWN"
    assert len(indexer.export_requests) == 6


def test_what_the_server_asks_for_is_the_least_wait_and_no_shorter_one_is_made_of_it() -> None:
    soon = LikenessError("UNAVAILABLE", "NOT_READY", "starting", retry_after_s=1.0)
    late = LikenessError("UNAVAILABLE", "NOT_READY", "starting", retry_after_s=30.0)
    assert [backoff_s(soon, failures) for failures in range(1, 6)] == [1, 1, 2, 4, 8]
    assert backoff_s(late, 1) == 30
    with pytest.raises(LikenessError, match="starting"):
        backoff_s(soon, 6)


def test_an_indexer_that_cannot_be_reached_is_called_so(nobody: str) -> None:
    with IndexerClient(nobody) as client, pytest.raises(LikenessError) as caught:
        client.status()
    assert caught.value.reason == "INDEXER_UNREACHABLE"
    assert f"no indexer answers at {nobody}" in caught.value.message


def test_limits_and_role_are_told(client: IndexerClient) -> None:
    told = client.status()
    assert (told.role, told.limits.batch, told.limits.message_bytes) == ("writer", 64, 262_144)
    assert told.store_bytes is None
