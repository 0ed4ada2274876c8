"""DeleteItems: files go once their items have gone, and a call that is refused takes nothing away."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from likeness.common.v1 import error_pb2, metadata_pb2, types_pb2
from likeness.gateway.v1 import gateway_pb2

from chassis.deadline import Deadline
from chassis.errors import LikenessError
from gateway.deletion import Deletion
from gateway.media import Media, PictureMedia
from gateway.media_files import MediaFiles
from gateway.picture_facts import content_hash
from tests.pictures import noise
from tests.unit.gateway.behind import Behind, behind, direction_of

UID = "uid-images"
OLD = metadata_pb2.Filter(
    comparison=metadata_pb2.Comparison(
        key="age", op=metadata_pb2.OPERATOR_EQ, values=[metadata_pb2.Value(string_value="old")]
    )
)


class Desk:
    """A deletion, and what it deletes from."""

    def __init__(self, services: Behind, deletion: Deletion, media: Media) -> None:
        self.services, self.deletion, self.media = services, deletion, media
        image = types_pb2.Image(encoded=noise(1))
        self.sha256, self.image = content_hash(image), image

    async def put(self, item_id: str, age: str) -> None:
        picture = PictureMedia(item_id, self.sha256, self.image)
        async with self.media.replacing(UID, [picture], thumbnails=True, originals=False):
            self.services.put(item_id, direction_of(item_id), age=age)

    async def delete(self, **request: object) -> int:
        asked = gateway_pb2.DeleteItemsRequest(**request)  # type: ignore[arg-type]
        return (await self.deletion(asked, Deadline(30))).deleted

    async def thumbnails(self) -> set[str]:
        ids = [*self.services.items, "a", "b", "c"]
        return {i for i in ids if await self.media.thumbnail(UID, i, self.sha256) is not None}


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with behind() as (services, _, indexer):
        media = Media(str(tmp_path))
        made = Desk(services, Deletion(indexer, media, 30), media)
        for item_id, age in (("a", "old"), ("b", "new"), ("c", "old")):
            await made.put(item_id, age)
        yield made
        media.close()


async def test_items_deleted_by_id_go_with_their_files_and_so_do_files_whose_item_is_gone(desk: Desk) -> None:
    del desk.services.items["c"]

    assert await desk.delete(ids=["a", "c", "never"]) == 1

    assert set(desk.services.items) == await desk.thumbnails() == {"b"}


async def test_items_deleted_by_filter_go_with_their_files_page_after_page(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.deletion._PAGE", 1)

    assert await desk.delete(filter=OLD) == 2

    assert set(desk.services.items) == await desk.thumbnails() == {"b"}


async def test_files_that_could_not_be_deleted_go_when_the_call_is_repeated(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(desk.media, "forget", _away)
        with pytest.raises(LikenessError) as caught:
            await desk.delete(ids=["a"])
    assert caught.value.reason == error_pb2.REASON_MEDIA_UNAVAILABLE
    assert await desk.thumbnails() == {"a", "b", "c"}

    assert await desk.delete(ids=["a"]) == 0

    assert await desk.thumbnails() == {"b", "c"}


async def test_files_that_cannot_be_reached_keep_what_a_filter_would_not_find_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.media.MediaFiles.names", _broken)
    with pytest.raises(LikenessError) as caught:
        await desk.delete(filter=OLD)

    assert caught.value.reason == error_pb2.REASON_MEDIA_UNAVAILABLE
    assert set(desk.services.items) == {"a", "b", "c"}


async def test_a_delete_that_the_indexer_refuses_keeps_the_files(desk: Desk) -> None:
    desk.services.fail["DeleteItems"] = LikenessError(error_pb2.REASON_READ_ONLY, "a reader")
    for request in ({"ids": ["a", "x" * 513]}, {"filter": OLD}):
        with pytest.raises(LikenessError) as caught:
            await desk.delete(**request)
        assert caught.value.reason == error_pb2.REASON_READ_ONLY

    assert await desk.thumbnails() == {"a", "b", "c"}


async def test_a_refused_request_takes_no_file_away(desk: Desk) -> None:
    desk.services.fail["DeleteItems"] = LikenessError(error_pb2.REASON_FIELD_INVALID, "ids or filter")
    for request in ({}, {"ids": ["a"], "filter": OLD}, {"ids": ["a"] * 1025}):
        with pytest.raises(LikenessError):
            await desk.delete(**request)

    assert await desk.thumbnails() == {"a", "b", "c"}


class Held:
    """Folders are removed when it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        remove = MediaFiles.remove_folder

        def held(files: MediaFiles, path: str) -> None:
            self.reached.set()
            assert self.go.wait(30)
            remove(files, path)

        monkeypatch.setattr(MediaFiles, "remove_folder", held)


@pytest.mark.parametrize("request_", [{"ids": ["a", "c"]}, {"filter": OLD}])
async def test_whoever_goes_while_files_are_deleted_leaves_none_behind(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, request_: dict[str, object]
) -> None:
    held = Held(monkeypatch)
    deleting = asyncio.create_task(desk.delete(**request_))
    assert await asyncio.to_thread(held.reached.wait, 30)
    deleting.cancel()
    held.go.set()
    with pytest.raises(asyncio.CancelledError):
        await deleting

    assert set(desk.services.items) == await desk.thumbnails() == {"b"}


async def test_an_item_taken_in_again_while_it_is_deleted_keeps_its_new_files(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    deleting = asyncio.create_task(desk.delete(ids=["a"]))
    assert await asyncio.to_thread(held.reached.wait, 30)
    again = asyncio.create_task(desk.put("a", "new"))
    other = asyncio.create_task(desk.put("b", "newer"))
    await other  # others need not wait
    assert not again.done()
    held.go.set()
    await deleting
    await again

    assert set(desk.services.items) == await desk.thumbnails() == {"a", "b", "c"}


async def test_an_item_deleted_while_it_is_taken_in_again_leaves_no_files(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, until = asyncio.Event(), desk.media._until

    async def told(free: Callable[[], bool]) -> None:
        if not free():
            waits.set()
        await until(free)

    monkeypatch.setattr(desk.media, "_until", told)
    picture = PictureMedia("a", desk.sha256, desk.image)
    async with desk.media.replacing(UID, [picture], thumbnails=True, originals=False):
        deleting = asyncio.create_task(desk.delete(ids=["a"]))
        await waits.wait()
        desk.services.put("a", direction_of("a"), age="newest")
    assert await deleting == 1

    assert set(desk.services.items) == await desk.thumbnails() == {"b", "c"}


@pytest.mark.parametrize("done", [True, False])
async def test_a_delete_of_which_no_answer_comes_takes_the_files_of_what_is_gone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    async def lost(request: Any, _timeout_s: float) -> None:
        if done:
            for item_id in request.ids:
                del desk.services.items[item_id]
        raise LikenessError(error_pb2.REASON_INDEXER_UNAVAILABLE, "gone")

    monkeypatch.setattr(desk.deletion.indexer, "delete", lost)
    with pytest.raises(LikenessError) as caught:
        await desk.delete(filter=OLD)
    assert caught.value.reason == error_pb2.REASON_INDEXER_UNAVAILABLE

    assert set(desk.services.items) == await desk.thumbnails() == ({"b"} if done else {"a", "b", "c"})


async def test_a_stop_waits_for_what_was_begun(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    deleting = asyncio.create_task(desk.delete(filter=OLD))
    assert await asyncio.to_thread(held.reached.wait, 30)
    deleting.cancel()
    finishing = asyncio.create_task(desk.deletion.finish())
    await asyncio.wait({finishing}, timeout=0)
    assert not finishing.done()
    held.go.set()
    await finishing

    assert set(desk.services.items) == await desk.thumbnails() == {"b"}
    await asyncio.wait({deleting})


async def test_a_deletion_does_not_wait_for_those_who_come_after_it(desk: Desk) -> None:
    """Two who take an item in, one always before the other has ended, would let nobody delete it."""
    picture = PictureMedia("a", desk.sha256, desk.image)
    async with desk.media.replacing(UID, [picture], thumbnails=True, originals=False):
        deleting = asyncio.create_task(desk.delete(ids=["a"]))
        while "a" in desk.services.items and not desk.media._leaving:
            await asyncio.wait({deleting}, timeout=0.01)
        later = asyncio.create_task(desk.put("a", "newest"))
        await asyncio.wait({later}, timeout=0.01)
    assert await deleting == 1
    await later

    assert set(desk.services.items) == await desk.thumbnails() == {"a", "b", "c"}


async def _away(_uid: str, _ids: object) -> None:
    raise LikenessError(error_pb2.REASON_MEDIA_UNAVAILABLE, "away")


def _broken(_files: object, _folder: str) -> list[str]:
    raise LikenessError(error_pb2.REASON_MEDIA_UNAVAILABLE, "away")
