"""Deleting items of a restored collection: their files go from where they came from, if nobody else needs them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from likeness.common.v1 import error_pb2, metadata_pb2, types_pb2
from likeness.gateway.v1 import gateway_pb2

from chassis.deadline import Deadline
from chassis.errors import LikenessError
from gateway.deletion import Deletion
from gateway.media import Media, PictureMedia
from gateway.picture_facts import content_hash
from tests.pictures import noise
from tests.unit.gateway.behind import vector
from tests.unit.gateway.shelves import Shelves, shelves

OWN, LAST, FIRST = "uid-photos", "uid-last", "uid-first"
IMAGE = types_pb2.Image(encoded=noise(1))
SHA256 = content_hash(IMAGE)


class Desk:
    """The collection "photos", restored from what was restored itself; each of the three has files of its items."""

    def __init__(self, services: Shelves, deletion: Deletion, media: Media) -> None:
        self.services, self.deletion, self.media = services, deletion, media

    def make(self, name: str, *earlier: str, items: tuple[str, ...] = ()) -> None:
        self.services.make(name)
        self.services.found[name].earlier_uids[:] = earlier
        for item_id in items:
            self.services.store(name, item_id, vector(1))

    async def delete(self, *ids: str, collection: str = "photos") -> None:
        await self.deletion(gateway_pb2.DeleteItemsRequest(collection=collection, ids=ids), Deadline(30))

    async def left(self, item_id: str) -> list[str]:
        """Where an item still has a picture."""
        return [uid for uid in (OWN, LAST, FIRST) if await self.media.original(uid, item_id, SHA256) is not None]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with shelves() as (services, _, indexer):
        media = Media(str(tmp_path))
        made = Desk(services, Deletion(indexer, media, 30), media)
        made.make("photos", LAST, FIRST, items=("a", "b"))
        made.make("unrelated", "uid-other", items=("a", "b"))
        pictures = [PictureMedia(item_id, SHA256, IMAGE) for item_id in ("a", "b")]
        for uid in (OWN, LAST, FIRST):
            async with media.replacing(uid, pictures, thumbnails=False, originals=True):
                pass
        yield made
        media.close()


async def test_files_go_from_every_place_where_they_are_found(desk: Desk) -> None:
    await desk.delete("a", "never")
    assert await desk.left("a") == []
    assert await desk.left("b") == [OWN, LAST, FIRST]
    everything = metadata_pb2.Filter(
        comparison=metadata_pb2.Comparison(
            key="kind", op=metadata_pb2.OPERATOR_EQ, values=[metadata_pb2.Value(string_value="cat")]
        )
    )
    await desk.deletion(gateway_pb2.DeleteItemsRequest(collection="photos", filter=everything), Deadline(30))
    assert await desk.left("b") == []


async def test_what_the_collection_it_was_restored_from_still_has_keeps_its_files_there(desk: Desk) -> None:
    desk.make("last", FIRST, items=("a",))
    await desk.delete("a", "b")
    assert await desk.left("a") == [LAST, FIRST]
    assert await desk.left("b") == []
    # There too: LAST is its own.
    await desk.delete("a", collection="last")
    assert await desk.left("a") == []


async def test_of_two_that_were_restored_from_one_the_last_to_delete_an_item_deletes_its_files(desk: Desk) -> None:
    desk.make("twin", FIRST, items=("a", "b"))
    await desk.delete("a", "b")
    assert await desk.left("a") == [FIRST]
    await desk.delete("a", collection="twin")
    assert await desk.left("a") == []
    assert await desk.left("b") == [FIRST]


@pytest.mark.parametrize(
    ("reason", "left"),
    [(error_pb2.REASON_COLLECTION_NOT_FOUND, []), (error_pb2.REASON_SCHEMA_UNSUPPORTED, [LAST, FIRST])],
)
async def test_a_sharing_collection_that_cannot_be_read_keeps_files_and_one_that_is_gone_does_not(
    desk: Desk, reason: error_pb2.Reason.ValueType, left: list[str]
) -> None:
    desk.make("twin", LAST, FIRST)
    desk.services.fail["GetItems"] = LikenessError(reason, "no")
    await desk.delete("a")
    assert await desk.left("a") == left


async def test_what_cannot_be_asked_for_deletes_nothing(desk: Desk) -> None:
    desk.make("twin", LAST, FIRST)
    desk.services.fail["GetItems"] = LikenessError(error_pb2.REASON_BATCH_TOO_LARGE, "no")
    with pytest.raises(LikenessError):
        await desk.delete("a")
    assert "a" in desk.services.shelves["photos"]
    assert await desk.left("a") == [OWN, LAST, FIRST]


async def test_a_collection_that_was_not_restored_needs_no_look_at_the_others(desk: Desk) -> None:
    desk.make("plain", items=("a",))
    await desk.delete("a", collection="plain")
    assert desk.services.asked("ListCollections") == desk.services.asked("GetItems") == []
    assert await desk.left("a") == [OWN, LAST, FIRST]
