"""Collections and aliases through the gateway: made with the embedder's model, passed on to the indexer."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from likeness.common.v1 import types_pb2
from likeness.gateway.v1 import gateway_pb2 as pb

from chassis.deadline import Deadline
from chassis.errors import LikenessError
from gateway.collections import Collections, find_or_create
from gateway.media import Media, PictureMedia
from tests.unit.gateway.behind import MODEL, OTHER, vector
from tests.unit.gateway.shelves import shelves


@pytest.fixture
def media(tmp_path: Path) -> Iterator[Media]:
    kept = Media(str(tmp_path))
    yield kept
    kept.close()


async def test_a_collection_is_made_for_the_embedders_model_and_is_called_images_unless_told(media: Media) -> None:
    async with shelves() as (services, embedder, indexer):
        collections = Collections(embedder, indexer, media)
        services.model = OTHER
        made = await collections.create(pb.CreateCollectionRequest(description="holidays"), Deadline(20))
        got = await collections.get(pb.GetCollectionRequest(), Deadline(20))

    assert (made.name, made.fingerprint, made.metric) == ("images", OTHER, types_pb2.METRIC_COSINE)
    assert (got.uid, got.description) == (made.uid, "holidays")


async def test_no_collection_is_made_when_the_model_is_not_the_one_expected(media: Media) -> None:
    async with shelves() as (services, embedder, indexer):
        request = pb.CreateCollectionRequest(name="photos", expected_fingerprint=OTHER)
        with pytest.raises(LikenessError) as caught:
            await Collections(embedder, indexer, media).create(request, Deadline(20))

    assert caught.value.reason_name == "MODEL_MISMATCH"
    assert not services.found


async def test_what_the_indexer_refuses_names_the_field_of_the_gateways_request(media: Media) -> None:
    async with shelves() as (_, embedder, indexer):
        request = pb.CreateCollectionRequest(name="photos", metric=types_pb2.METRIC_L1)
        with pytest.raises(LikenessError) as caught:
            await Collections(embedder, indexer, media).create(request, Deadline(20))
        with pytest.raises(LikenessError) as misnamed:
            await Collections(embedder, indexer, media).get(pb.GetCollectionRequest(name="No"), Deadline(20))

    assert [violation.field for violation in caught.value.violations] == ["metric"]
    assert [violation.field for violation in misnamed.value.violations] == ["name"]


async def test_collections_are_listed_page_by_page_with_their_aliases_and_counts(media: Media) -> None:
    async with shelves() as (services, embedder, indexer):
        for name in ("aaa", "bbb", "ccc"):
            services.make(name)
        services.store("bbb", "x", vector(1))
        services.aliases["now"] = "bbb"
        collections = Collections(embedder, indexer, media)
        first = await collections.list(pb.ListCollectionsRequest(page_size=2), Deadline(20))
        token = first.next_page_token
        second = await collections.list(pb.ListCollectionsRequest(page_size=2, page_token=token), Deadline(20))

    assert [found.name for found in (*first.collections, *second.collections)] == ["aaa", "bbb", "ccc"]
    assert second.next_page_token == ""
    assert (list(first.collections[1].aliases), first.collections[1].count) == (["now"], 1)


async def test_only_what_is_named_of_a_collection_changes(media: Media) -> None:
    async with shelves() as (services, embedder, indexer):
        services.make("images")
        services.found["images"].description = "before"
        collections = Collections(embedder, indexer, media)
        same = await collections.update(pb.UpdateCollectionRequest(), Deadline(20))
        changed = await collections.update(pb.UpdateCollectionRequest(description=""), Deadline(20))

    assert (same.description, changed.description) == ("before", "")


async def test_nothing_is_deleted_without_a_name(media: Media) -> None:
    async with shelves() as (services, embedder, indexer):
        services.make("images")
        services.make("photos")
        collections = Collections(embedder, indexer, media)
        with pytest.raises(LikenessError) as caught:
            await collections.delete(pb.DeleteCollectionRequest(), Deadline(20))
        await collections.delete(pb.DeleteCollectionRequest(name="photos"), Deadline(20))

    assert caught.value.violations[0].field == "name"
    assert list(services.found) == ["images"]


async def test_thumbnails_and_originals_go_with_their_collection(media: Media) -> None:
    sha256 = hashlib.sha256(b"x").hexdigest()
    picture = PictureMedia("a", sha256, types_pb2.Image(encoded=b"x"))
    async with shelves() as (services, embedder, indexer):
        for name in ("photos", "others"):
            services.make(name)
            async with media.replacing(f"uid-{name}", [picture], thumbnails=False, originals=True):
                pass
        await Collections(embedder, indexer, media).delete(pb.DeleteCollectionRequest(name="photos"), Deadline(20))
    assert await media.original("uid-photos", "a", sha256) is None
    assert await media.original("uid-others", "a", sha256) == b"x"


async def test_files_that_another_collection_was_restored_with_stay(media: Media) -> None:
    sha256 = hashlib.sha256(b"x").hexdigest()
    picture = PictureMedia("a", sha256, types_pb2.Image(encoded=b"x"))
    async with shelves() as (services, embedder, indexer):
        for name in ("photos", "copy"):
            services.make(name)
            async with media.replacing(f"uid-{name}", [picture], thumbnails=False, originals=True):
                pass
        services.found["copy"].earlier_uids.append("uid-photos")
        collections = Collections(embedder, indexer, media)
        await collections.delete(pb.DeleteCollectionRequest(name="photos"), Deadline(20))
        assert await media.original("uid-photos", "a", sha256) == b"x"
        await collections.delete(pb.DeleteCollectionRequest(name="copy"), Deadline(20))
    assert await media.original("uid-photos", "a", sha256) == b"x", "that is for the sweep"
    assert await media.original("uid-copy", "a", sha256) is None


async def test_an_alias_is_made_moved_only_from_where_it_is_expected_and_deleted(media: Media) -> None:
    async with shelves() as (services, embedder, indexer):
        services.make("one")
        services.make("two")
        collections = Collections(embedder, indexer, media)
        made = await collections.set_alias(
            pb.SetAliasRequest(alias="now", collection="one", expected_collection=""), Deadline(20)
        )
        with pytest.raises(LikenessError) as caught:
            await collections.set_alias(
                pb.SetAliasRequest(alias="now", collection="two", expected_collection="two"), Deadline(20)
            )
        moved = await collections.set_alias(pb.SetAliasRequest(alias="now", collection="two"), Deadline(20))
        listed = await collections.aliases(Deadline(20))
        gone = await collections.delete_alias(pb.DeleteAliasRequest(alias="now"), Deadline(20))

    assert (made.previous_collection, moved.previous_collection, gone.collection) == ("", "one", "two")
    assert caught.value.reason_name == "ALIAS_MOVED"
    assert [(alias.name, alias.collection) for alias in listed] == [("now", "two")]
    assert not services.aliases


async def test_a_collection_is_found_or_made_and_never_taken_for_one_of_another_model() -> None:
    async with shelves() as (services, _, indexer):
        with pytest.raises(LikenessError) as missing:
            await find_or_create(indexer, "new", MODEL, 20, create=False)
        made, created = await find_or_create(indexer, "new", MODEL, 20, create=True, metric=types_pb2.METRIC_L2)
        _, again = await find_or_create(indexer, "new", MODEL, 20, create=True)
        with pytest.raises(LikenessError) as other:
            await find_or_create(indexer, "new", OTHER, 20, create=True)

    assert missing.value.reason_name == "COLLECTION_NOT_FOUND"
    assert (created, again, made.metric) == (True, False, types_pb2.METRIC_L2)
    assert other.value.reason_name == "MODEL_MISMATCH"
    assert list(services.found) == ["new"]
