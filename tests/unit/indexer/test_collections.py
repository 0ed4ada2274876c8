"""What is a collection, and what is not, in a real Chroma."""

from typing import Any

import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.collections import Collections, Fingerprint, Metric, NewerCollection, check_fingerprint
from tests.unit.indexer.conftest import DIGEST, Connected

FINGERPRINT = Fingerprint("starter", DIGEST, 8)
OTHER = Fingerprint("ViT-B-32/laion", "b2" * 32, 512)


async def use(collections: Collections, name: str) -> Any:
    async with collections.use(name) as collection:
        return collection


def refused(connected: Connected, work: Any) -> LikenessError:
    with pytest.raises(LikenessError) as caught:
        connected.loop.run(work)
    return caught.value


@pytest.mark.parametrize("metric", list(Metric))
def test_a_collection_is_read_back_from_the_store_as_it_was_made(connected: Connected, metric: Metric) -> None:
    made = connected.loop.run(Collections(connected.store).create(f"made-{metric.value}", FINGERPRINT, metric))
    assert connected.loop.run(use(Collections(connected.store), made.name)) == made
    assert (made.fingerprint, made.metric, made.schema_version) == (FINGERPRINT, metric, 1)


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
    assert refused(connected, collections.find_to_delete("foreign")).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    page, _ = connected.loop.run(collections.list("", 1000))
    assert "foreign" not in {c.name for c in page}
    error = refused(connected, collections.create("foreign", FINGERPRINT, Metric.L2))
    assert error.reason == error_pb2.REASON_COLLECTION_EXISTS
    assert "not one of Likeness's" in error.message


def test_the_layout_of_a_newer_release_is_refused_but_listed(connected: Connected) -> None:
    connected.loop.run(connected.store.create("newer", Metric.L2, {"likeness.schema": 2, "likeness.metric": "hamming"}))
    collections = Collections(connected.store)
    assert refused(connected, use(collections, "newer")).reason == error_pb2.REASON_SCHEMA_UNSUPPORTED
    page, _ = connected.loop.run(collections.list("", 1000))
    (newer,) = [c for c in page if c.name == "newer"]
    assert isinstance(newer, NewerCollection)
    assert newer.schema_version == 2
    connected.loop.run(collections.delete(connected.loop.run(collections.find_to_delete("newer"))))
    assert refused(connected, use(collections, "newer")).reason == error_pb2.REASON_COLLECTION_NOT_FOUND


def test_a_collection_deleted_behind_our_back_is_forgotten(connected: Connected) -> None:
    collections = Collections(connected.store)
    connected.loop.run(collections.create("replaced-there", FINGERPRINT, Metric.L2))
    elsewhere = Collections(connected.store)
    connected.loop.run(elsewhere.delete(connected.loop.run(elsewhere.find_to_delete("replaced-there"))))
    connected.loop.run(elsewhere.create("replaced-there", OTHER, Metric.COSINE))

    async def count() -> int:
        async with collections.use("replaced-there") as collection:
            return await connected.store.count(collection)

    assert refused(connected, count()).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert connected.loop.run(use(collections, "replaced-there")).fingerprint == OTHER


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
