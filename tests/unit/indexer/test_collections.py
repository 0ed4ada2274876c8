"""What is a collection, and what is not, in a real Chroma."""

import asyncio
import dataclasses
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.catalog import Collections
from indexer.collections import (
    SCHEMA_VERSION,
    STAMPED_SCHEMA,
    Collection,
    Fingerprint,
    Hnsw,
    Metric,
    NewerCollection,
    check_fingerprint,
)
from indexer.reads import Fields, Item
from tests.unit.indexer.conftest import DIGEST, Connected

FINGERPRINT = Fingerprint("starter", DIGEST, 8)
OTHER = Fingerprint("ViT-B-32/laion", "b2" * 32, 512)


async def use(collections: Collections, name: str) -> Any:
    async with collections.use(name) as collection:
        return collection


async def delete(collections: Collections, name: str) -> Collection | NewerCollection:
    async with collections.leaving(name) as collection:
        await collections.delete(collection)
    await asyncio.gather(*collections._behind)  # what was in it goes behind the deletion
    return collection


def refused(connected: Connected, work: Any) -> LikenessError:
    with pytest.raises(LikenessError) as caught:
        connected.loop.run(work)
    return caught.value


@pytest.mark.parametrize("metric", list(Metric))
def test_a_collection_is_read_back_from_the_store_as_it_was_made(connected: Connected, metric: Metric) -> None:
    made = connected.loop.run(Collections(connected.store).create(f"made-{metric.value}", FINGERPRINT, metric))
    assert connected.loop.run(use(Collections(connected.store), made.name)) == made
    assert (made.fingerprint, made.metric, made.schema_version) == (FINGERPRINT, metric, STAMPED_SCHEMA)


def test_a_name_is_given_once(connected: Connected) -> None:
    collections = Collections(connected.store)
    connected.loop.run(collections.create("once", FINGERPRINT, Metric.COSINE))
    error = refused(connected, collections.create("once", OTHER, Metric.L2))
    assert error.reason == error_pb2.REASON_COLLECTION_EXISTS
    assert connected.loop.run(use(collections, "once")).fingerprint == FINGERPRINT


def test_foreign_collections_are_not_seen_and_not_touched(connected: Connected) -> None:
    connected.loop.run(connected.store.create("foreign", Metric.L2, {"hnsw:space": "l2"}))
    collections = Collections(connected.store)
    assert refused(connected, use(collections, "foreign")).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert refused(connected, delete(collections, "foreign")).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    page, _ = connected.loop.run(collections.list("", 1000))
    assert "foreign" not in {c.name for c in page}
    error = refused(connected, collections.create("foreign", FINGERPRINT, Metric.L2))
    assert error.reason == error_pb2.REASON_COLLECTION_EXISTS
    assert "not one of Likeness's" in error.message


def test_the_layout_of_a_newer_release_is_refused_but_listed(connected: Connected) -> None:
    metadata = {"likeness.schema": SCHEMA_VERSION + 1, "likeness.metric": "hamming"}
    connected.loop.run(connected.store.create("newer", Metric.L2, metadata))
    collections = Collections(connected.store)
    assert refused(connected, use(collections, "newer")).reason == error_pb2.REASON_SCHEMA_UNSUPPORTED
    page, _ = connected.loop.run(collections.list("", 1000))
    (newer,) = [c for c in page if c.name == "newer"]
    assert isinstance(newer, NewerCollection)
    assert newer.schema_version == SCHEMA_VERSION + 1
    connected.loop.run(delete(collections, "newer"))
    assert refused(connected, use(collections, "newer")).reason == error_pb2.REASON_COLLECTION_NOT_FOUND


def test_a_collection_of_the_first_layout_is_read_and_marked_before_it_is_written_to(connected: Connected) -> None:
    collections = Collections(connected.store)
    made = connected.loop.run(collections.create("first-layout", FINGERPRINT, Metric.L2))
    stored = connected.loop.run(connected.store.find("first-layout"))
    assert stored is not None
    as_before = {**stored.metadata, "likeness.schema": 1}
    connected.loop.run(connected.store.describe(made, as_before))

    later = Collections(connected.store)
    old = connected.loop.run(use(later, "first-layout"))
    assert old == dataclasses.replace(made, schema_version=1)
    connected.loop.run(later.upgrade(old))
    for seen_by in (later, Collections(connected.store)):
        assert connected.loop.run(use(seen_by, "first-layout")) == made
    written = connected.loop.run(connected.store.find("first-layout"))
    assert written is not None
    assert written.metadata == stored.metadata


def test_a_collection_deleted_behind_our_back_is_forgotten(connected: Connected) -> None:
    collections = Collections(connected.store)
    connected.loop.run(collections.create("replaced-there", FINGERPRINT, Metric.L2))
    elsewhere = Collections(connected.store)
    connected.loop.run(delete(elsewhere, "replaced-there"))
    connected.loop.run(elsewhere.create("replaced-there", OTHER, Metric.COSINE))

    async def count() -> int:
        async with collections.use("replaced-there") as collection:
            return await connected.store.count(collection)

    assert refused(connected, count()).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert connected.loop.run(use(collections, "replaced-there")).fingerprint == OTHER


def test_a_name_that_is_not_there_is_not_asked_for_by_everybody(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    collections, lists = Collections(connected.store), 0
    listed = connected.store.collections

    async def counted() -> Any:
        nonlocal lists
        lists += 1
        return await listed()

    monkeypatch.setattr(connected.store, "collections", counted)

    async def many() -> list[Any]:
        return await asyncio.gather(*[use(collections, "not-there") for _ in range(20)], return_exceptions=True)

    reasons = {error.reason for error in connected.loop.run(many())}
    assert reasons == {error_pb2.REASON_COLLECTION_NOT_FOUND}
    assert lists == 1
    connected.loop.run(collections.create("not-there", FINGERPRINT, Metric.COSINE))
    assert connected.loop.run(use(collections, "not-there")).name == "not-there"
    elsewhere = Collections(connected.store)
    connected.loop.run(elsewhere.create("made-elsewhere", FINGERPRINT, Metric.COSINE))
    assert connected.loop.run(use(collections, "made-elsewhere")).name == "made-elsewhere"


def test_a_collection_made_anew_is_not_deleted_in_place_of_the_old_one(connected: Connected) -> None:
    collections = Collections(connected.store)
    old = connected.loop.run(collections.create("made-anew", FINGERPRINT, Metric.L2))
    connected.loop.run(delete(collections, "made-anew"))
    assert refused(connected, collections.delete(old)).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    new = connected.loop.run(collections.create("made-anew", OTHER, Metric.COSINE))
    assert refused(connected, collections.delete(old)).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert connected.loop.run(use(collections, "made-anew")) == new
    connected.loop.run(collections.delete(new))


def test_pages_follow_names_while_collections_come_and_go(connected: Connected) -> None:
    collections = Collections(connected.store)
    for name in ("page.a", "page.c", "page.e", "page.g"):
        connected.loop.run(collections.create(name, FINGERPRINT, Metric.L2))
    first, more = connected.loop.run(collections.list("page.", 2))
    assert ([c.name for c in first], more) == (["page.a", "page.c"], True)
    connected.loop.run(collections.delete(first[1]))
    connected.loop.run(collections.create("page.d", FINGERPRINT, Metric.L2))
    second, _ = connected.loop.run(collections.list("page.c", 3))
    assert [c.name for c in second] == ["page.d", "page.e", "page.g"]


def test_vectors_of_another_model_are_refused_by_digest_naming_both(connected: Connected) -> None:
    collection = connected.loop.run(Collections(connected.store).create("guarded", FINGERPRINT, Metric.L2))
    check_fingerprint(collection, None)
    check_fingerprint(collection, Fingerprint("another name for it", DIGEST, 8))
    with pytest.raises(LikenessError) as caught:
        check_fingerprint(collection, OTHER)
    assert caught.value.reason == error_pb2.REASON_MODEL_MISMATCH
    assert "'starter'" in caught.value.message
    assert "'ViT-B-32/laion'" in caught.value.message
    assert "use an embedder with the collection's model" in caught.value.message


def test_parameters_and_description_are_kept_and_changed(connected: Connected) -> None:
    hnsw = Hnsw(max_neighbors=4, ef_construction=16, ef_search=10)
    collections = Collections(connected.store)
    made = connected.loop.run(collections.create("described", FINGERPRINT, Metric.L2, hnsw, "Fotos für …"))
    assert (made.hnsw, made.built, made.description) == (hnsw, hnsw, "Fotos für …")
    connected.loop.run(collections.set_alias("described.alias", "described"))
    changed = connected.loop.run(collections.update("described.alias", Hnsw(max_neighbors=128), None))
    assert changed == dataclasses.replace(made, hnsw=Hnsw(max_neighbors=128))
    again = connected.loop.run(collections.update("described", None, ""))
    assert again == dataclasses.replace(changed, description="")
    for seen_by in (collections, Collections(connected.store)):
        assert connected.loop.run(use(seen_by, "described")) == again


@pytest.mark.parametrize("hnsw", [Hnsw(), Hnsw(4, 16, 10), Hnsw(128, 2000, 10_000)])
def test_every_parameter_in_range_makes_an_index(connected: Connected, hnsw: Hnsw) -> None:
    name = f"range-{hnsw.max_neighbors}"
    made = connected.loop.run(Collections(connected.store).create(name, FINGERPRINT, Metric.COSINE, hnsw))
    connected.upsert(made, *(Item(f"i{n}", np.eye(8, dtype=np.float32)[n]) for n in range(8)))
    (found,) = connected.loop.run(connected.store.search(made, np.eye(8, dtype=np.float32)[2:3], None, 1, Fields()))
    assert [row.item.id for row in found] == ["i2"]


def test_what_a_release_before_generations_wrote_is_read(connected: Connected) -> None:
    written = {
        "likeness.schema": 2,
        "likeness.model": "starter",
        "likeness.digest": DIGEST,
        "likeness.dimension": 8,
        "likeness.metric": "l2",
        "likeness.created": "2026-01-02T03:04:05+00:00",
    }
    stored = connected.loop.run(connected.store.create("as-before", Metric.L2, written))
    assert stored is not None
    read = connected.loop.run(use(Collections(connected.store), "as-before"))
    assert read == Collection(
        "as-before", stored.key, FINGERPRINT, Metric.L2, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), 2
    )
    assert (read.uid, read.store_name, read.generation) == (stored.key, "as-before", 0)
    updated = connected.loop.run(Collections(connected.store).update("as-before", None, "now described"))
    assert updated == dataclasses.replace(read, description="now described")
    assert connected.loop.run(use(Collections(connected.store), "as-before")) == updated
