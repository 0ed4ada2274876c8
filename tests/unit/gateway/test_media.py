"""Thumbnails and originals: written before the item, gone with it, never another picture's."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from likeness.common.v1 import error_pb2, types_pb2
from structlog.testing import capture_logs

from chassis import trace
from chassis.errors import LikenessError
from gateway.media import Media, PictureMedia
from gateway.media_files import MediaFiles
from gateway.picture_facts import content_hash
from tests.pictures import noise

UID = "0a1b-uid"


@pytest.fixture(params=["directory", "memory"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "media") if request.param == "directory" else f"memory://{uuid4().hex}"


@pytest.fixture
def media(where: str) -> Iterator[Media]:
    made = Media(where)
    yield made
    made.close()


def picture(seed: int, item_id: str = "") -> PictureMedia:
    image = types_pb2.Image(encoded=noise(seed))
    return PictureMedia(item_id or content_hash(image), content_hash(image), image)


async def keep(media: Media, *pictures: PictureMedia, uid: str = UID, originals: bool = True) -> None:
    async with media.replacing(uid, pictures, thumbnails=True, originals=originals):
        pass


def files(where: str) -> list[str]:
    """Every file, by its path below the root."""
    fs, root = fsspec.core.url_to_fs(where)
    return sorted(path.removeprefix(root).lstrip("/") for path in fs.find(root))


async def test_what_the_threads_write_to_the_log_is_in_the_trace_of_the_call(media: Media) -> None:
    entered = trace.enter(mine := trace.Trace.of([]))
    no_picture = PictureMedia("odd", "00" * 32, types_pb2.Image(encoded=b"junk"))
    with capture_logs(processors=[trace.in_log]) as lines:
        await keep(media, no_picture, originals=False)
    trace.leave(entered)
    assert [(line["event"], line["trace_id"]) for line in lines] == [("no thumbnail", mine.id)]


async def test_a_thumbnail_and_the_original_are_there_before_the_item_is(media: Media) -> None:
    one = picture(1, "cat")
    async with media.replacing(UID, [one], thumbnails=True, originals=True):
        thumbnail = await media.thumbnail(UID, "cat", one.sha256)
        assert thumbnail is not None
        assert thumbnail[8:12] == b"WEBP"
        assert await media.original(UID, "cat", one.sha256) == one.image.encoded

    assert await media.thumbnail(UID, "cat", one.sha256) == thumbnail
    assert await media.thumbnail(UID, "dog", one.sha256) is None
    assert await media.thumbnail("another", "cat", one.sha256) is None
    assert await media.thumbnail(UID, "cat", picture(2).sha256) is None


async def test_originals_are_kept_only_if_asked_and_decoded_pictures_never(media: Media) -> None:
    pixels = types_pb2.Image(rgb=types_pb2.RgbImage(width=2, height=1, pixels=b"abcdef"))
    decoded = PictureMedia("decoded", content_hash(pixels), pixels)

    await keep(media, picture(1, "cat"), originals=False)
    await keep(media, decoded)

    assert await media.original(UID, "cat", picture(1).sha256) is None
    assert await media.original(UID, "decoded", decoded.sha256) is None
    assert await media.thumbnail(UID, "decoded", decoded.sha256) is not None


async def test_what_an_item_was_before_is_dropped_when_the_new_one_is_stored(media: Media, where: str) -> None:
    old, new = picture(1, "cat"), picture(2, "cat")
    await keep(media, old, picture(3, "dog"))

    async with media.replacing(UID, [new], thumbnails=True, originals=True):
        assert await media.thumbnail(UID, "cat", old.sha256) is not None

    assert await media.thumbnail(UID, "cat", old.sha256) is None
    assert await media.original(UID, "cat", new.sha256) == new.image.encoded
    assert len(files(where)) == 4


async def test_what_could_not_be_stored_leaves_the_old_item_its_files(media: Media) -> None:
    old, new = picture(1, "cat"), picture(2, "cat")
    await keep(media, old)

    with pytest.raises(RuntimeError):
        async with media.replacing(UID, [new], thumbnails=True, originals=True):
            raise RuntimeError("no indexer")

    assert await media.thumbnail(UID, "cat", old.sha256) is not None


async def test_who_is_cancelled_while_writing_leaves_nothing_behind_a_deletion(
    media: Media, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, writing, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    write = MediaFiles.write

    def slow(self: MediaFiles, *arguments: Any, **options: Any) -> None:
        loop.call_soon_threadsafe(writing.set)
        assert go_on.wait(30)
        write(self, *arguments, **options)

    monkeypatch.setattr(MediaFiles, "write", slow)
    keeping = asyncio.create_task(keep(media, picture(1, "cat")))
    await writing.wait()
    keeping.cancel()

    async def delete() -> None:
        async with media.leaving([UID], ["cat"]):
            await media.forget(UID, ["cat"])

    deleting = asyncio.create_task(delete())
    deleted, _ = await asyncio.wait({deleting}, timeout=0.5)
    assert not deleted
    go_on.set()
    await deleting
    with pytest.raises(asyncio.CancelledError):
        await keeping
    assert files(where) == []


async def test_two_who_replace_an_item_at_once_both_leave_its_files(media: Media) -> None:
    first, second = picture(1, "cat"), picture(2, "cat")
    inside = asyncio.Event()

    async def slow() -> None:
        async with media.replacing(UID, [first], thumbnails=True, originals=False):
            await inside.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(slow())
        async with media.replacing(UID, [second], thumbnails=True, originals=False):
            inside.set()

    assert await media.thumbnail(UID, "cat", first.sha256) is not None
    assert await media.thumbnail(UID, "cat", second.sha256) is not None
    await keep(media, picture(3, "cat"))
    assert await media.thumbnail(UID, "cat", first.sha256) is None


async def test_items_and_collections_go_with_all_their_files(media: Media, where: str) -> None:
    await keep(media, *(picture(i, f"item-{i}") for i in range(3)))
    await keep(media, picture(9, "item-9"), uid="kept")

    await media.forget(UID, ["item-0", "item-2", "never there"])
    assert len(files(where)) == 4

    await media.forget_collection(UID)
    await media.forget_collection("never-there")
    assert [path.partition("/")[0] for path in files(where)] == ["kept", "kept"]


async def test_what_is_not_under_its_own_uid_is_looked_for_under_earlier_ones(media: Media, where: str) -> None:
    cat, dog = picture(1, "cat"), picture(2, "dog")
    await keep(media, cat, uid="older")
    await keep(media, dog, uid="oldest")
    before = files(where)
    earlier = ("older", "oldest")

    assert await media.thumbnail(UID, "cat", cat.sha256) is None
    thumbnail = await media.thumbnail("older", "cat", cat.sha256)
    assert thumbnail is not None
    assert await media.thumbnail(UID, "cat", cat.sha256, earlier) == thumbnail
    assert await media.original(UID, "dog", dog.sha256, earlier) == dog.image.encoded
    assert await media.original(UID, "dog", dog.sha256, earlier[:1]) is None
    assert await media.original(UID, "cat", dog.sha256, earlier) is None, "another item's"

    await keep(media, picture(3, "cat"))
    assert set(before) < set(files(where)), "only what is its own is written, and what the item was stays"
    assert {path.partition("/")[0] for path in set(files(where)) - set(before)} == {UID}


async def test_no_id_and_no_hash_becomes_a_path(media: Media, where: str, tmp_path: Path) -> None:
    outside = tmp_path / "secret.webp"
    outside.write_bytes(b"secret")
    ids = ["../../../etc/passwd", "/etc/passwd", "a/b", "..", "ü" * 200]

    await keep(media, *(picture(i, item_id) for i, item_id in enumerate(ids)))

    assert len(files(where)) == 2 * len(ids)
    assert all(len(path.split("/")) == 4 and ".." not in path for path in files(where))
    assert await media.thumbnail(UID, ids[0], picture(0).sha256) is not None
    for bad in ("../../../../secret", "../" * 5 + "secret", str(outside.with_suffix("")), ""):
        assert await media.thumbnail(UID, ids[0], bad) is None
    with pytest.raises(ValueError, match="no collection's uid"):
        await media.thumbnail("../..", ids[0], picture(0).sha256)


async def test_a_place_that_cannot_be_written_is_told_and_nothing_is_stored(tmp_path: Path) -> None:
    (tmp_path / "media").write_bytes(b"a file where the folder should be")
    media, stored = Media(str(tmp_path / "media")), False

    with pytest.raises(LikenessError) as caught:
        async with media.replacing(UID, [picture(1, "cat")], thumbnails=True, originals=False):
            stored = True

    assert (caught.value.reason, stored) == (error_pb2.REASON_MEDIA_UNAVAILABLE, False)
    assert caught.value.retry_after_s
    assert str(tmp_path) not in caught.value.message
    assert await media.thumbnail(UID, "cat", picture(1).sha256) is None
    media.close()


async def test_no_half_written_file_is_left_behind_or_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media = Media(str(tmp_path))
    await keep(media, picture(0, "cat"))

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LikenessError):
        await keep(media, picture(1, "cat"))

    assert {Path(path).stem for path in files(str(tmp_path))} == {picture(0).sha256}
    media.close()


def test_a_folder_goes_though_somebody_else_removes_parts_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(20):
        (tmp_path / "uid" / str(i)).mkdir(parents=True)
        (tmp_path / "uid" / str(i) / "original").write_bytes(b"x")
    unlink = os.unlink

    def overtaken(*arguments: Any, **options: Any) -> None:
        unlink(*arguments, **options)
        raise FileNotFoundError(arguments[0])

    monkeypatch.setattr(os, "unlink", overtaken)
    MediaFiles(str(tmp_path)).remove_folder("uid")

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_removed_is_said_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "uid").mkdir()
    (tmp_path / "uid" / "original").write_bytes(b"x")

    def refused(*_arguments: Any, **_options: Any) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(os, "unlink", refused)
    with pytest.raises(LikenessError) as caught:
        MediaFiles(str(tmp_path)).remove_folder("uid")

    assert caught.value.reason_name == "MEDIA_UNAVAILABLE"
