"""Files of deleted collections come back, and those of collections that are only missing stay."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from likeness.common.v1 import error_pb2, types_pb2
from likeness.gateway.v1 import gateway_pb2
from structlog.testing import capture_logs

from chassis.deadline import Deadline
from chassis.errors import LikenessError
from gateway.collections import Collections
from gateway.media import Media, PictureMedia
from gateway.media_files import MediaFiles
from gateway.media_sweep import GRACE_S, MediaSweep
from gateway.picture_facts import content_hash
from tests.pictures import noise
from tests.unit.gateway.http.serving import serving
from tests.unit.gateway.shelves import Shelves, shelves

THERE, GONE = "a" * 32, "b" * 32
NOW = 1_800_000_000.0


@dataclass
class Place:
    """Two folders with a picture in each: one is of the collection "photos", one of a collection that was deleted."""

    services: Shelves
    sweep: MediaSweep
    root: Path

    @property
    def folders(self) -> set[str]:
        return {path.name for path in self.root.iterdir()}

    def files(self, uid: str) -> set[str]:
        return {path.suffix or path.name for path in (self.root / uid).rglob("*") if path.is_file()}


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    image = types_pb2.Image(encoded=noise(1))
    async with shelves() as (services, _, indexer):
        media = Media(str(tmp_path))
        for uid in (THERE, GONE):
            picture = PictureMedia("a", content_hash(image), image)
            async with media.replacing(uid, [picture], thumbnails=True, originals=True):
                pass
        media.close()
        services.make("photos")
        services.found["photos"].uid = THERE
        services.deleted.append(GONE)
        yield Place(services, MediaSweep(indexer, MediaFiles(str(tmp_path)), asyncio.Event(), 20), tmp_path)


async def test_what_is_restored_while_others_are_swept_keeps_its_files(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.sweep.once(NOW)
    marked = MediaSweep._marked

    async def restored(self: MediaSweep, uid: str) -> float | None:
        found = await marked(self, uid)
        if uid == GONE:
            place.services.deleted.remove(GONE)
        return found

    monkeypatch.setattr(MediaSweep, "_marked", restored)
    assert await place.sweep.once(NOW + GRACE_S) == []
    assert ".original" in place.files(GONE)


async def test_files_of_a_deleted_collection_go_a_day_after_that_was_seen(place: Place) -> None:
    assert await place.sweep.once(NOW) == []
    assert await place.sweep.once(NOW + GRACE_S - 1) == []
    assert place.folders == {THERE, GONE}

    assert await place.sweep.once(NOW + GRACE_S) == [GONE]

    assert place.folders == {THERE}
    assert place.files(THERE) == {".webp", ".original"}


async def test_a_collection_that_shows_up_again_keeps_its_files(place: Place) -> None:
    await place.sweep.once(NOW)
    place.services.make("late")
    place.services.found["late"].uid = GONE
    await place.sweep.once(NOW + GRACE_S)
    del place.services.found["late"]

    assert await place.sweep.once(NOW + 2 * GRACE_S) == []
    assert await place.sweep.once(NOW + 3 * GRACE_S) == [GONE]


async def test_what_a_collection_was_restored_from_keeps_its_files(place: Place) -> None:
    await place.sweep.once(NOW)
    place.services.make("restored")
    place.services.found["restored"].earlier_uids[:] = ["c" * 32, GONE]
    for days in range(1, 4):
        assert await place.sweep.once(NOW + days * GRACE_S) == []
    assert place.files(GONE) == {".webp", ".original"}, "the mark has gone"

    del place.services.found["restored"]
    await place.sweep.once(NOW + 4 * GRACE_S)
    assert await place.sweep.once(NOW + 5 * GRACE_S) == [GONE]


@pytest.mark.parametrize("restored", [set(), {"photos"}])
async def test_what_nobody_deleted_is_lost_and_about_to_be_restored(place: Place, restored: set[str]) -> None:
    """Chroma was lost, and of two collections none, or one, is back: what the indexer was told to delete it forgot."""
    place.services.deleted.clear()
    place.services.found = {name: place.services.found[name] for name in restored}

    for days in range(4):
        assert await place.sweep.once(NOW + days * GRACE_S) == []

    assert place.files(THERE) == place.files(GONE) == {".webp", ".original"}


async def test_every_page_of_the_collections_counts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.uids._PAGE", 1)
    for name in ("aaa", "zzz"):
        place.services.make(name)
    place.services.found["zzz"].uid = GONE

    for days in range(3):
        assert await place.sweep.once(NOW + days * GRACE_S) == []
    assert place.files(GONE) == {".webp", ".original"}

    del place.services.found["zzz"]
    assert [await place.sweep.once(NOW + days * GRACE_S) for days in (3, 4)] == [[], [GONE]]


async def test_nothing_goes_while_the_collections_are_not_all_known(place: Place) -> None:
    await place.sweep.once(NOW)
    place.services.make("newer")
    place.services.found["newer"].uid = ""
    assert await place.sweep.once(NOW + GRACE_S) == []
    place.services.fail["ListCollections"] = LikenessError(error_pb2.REASON_SCHEMA_UNSUPPORTED, "cannot be read")
    with pytest.raises(LikenessError):
        await place.sweep.once(NOW + GRACE_S)

    assert place.files(THERE) == {".webp", ".original"}
    assert place.files(GONE) == {".webp", ".original", "orphaned"}


async def test_what_is_no_collections_folder_is_left_alone(place: Place) -> None:
    (place.root / "backups").mkdir()
    (place.root / "notes.txt").write_text("mine")

    await place.sweep.once(NOW)
    await place.sweep.once(NOW + GRACE_S)

    assert place.folders == {THERE, "backups", "notes.txt"}


async def test_a_deletion_that_the_gateways_stop_breaks_off_goes_on_at_the_next_sweep(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.sweep.once(NOW)
    (place.root / GONE / "zz").mkdir()
    whole = MediaFiles.remove_folder

    def stopped(files: MediaFiles, path: str) -> None:
        whole(files, path)
        place.sweep.stopping.set()

    with monkeypatch.context() as stops:
        stops.setattr(MediaFiles, "remove_folder", stopped)
        assert await place.sweep.once(NOW + GRACE_S) == []
    assert GONE in place.folders
    assert (place.root / GONE / "orphaned").exists()

    place.sweep.stopping.clear()
    assert await place.sweep.once(NOW + GRACE_S) == [GONE]


async def test_it_sweeps_at_once_and_ends_with_the_gateway(place: Place) -> None:
    running = asyncio.create_task(place.sweep.run())
    await place.services.until_asked("ListCollections", 1)
    place.sweep.stopping.set()
    await asyncio.wait_for(running, 60)


async def test_a_gateway_sweeps_once_it_has_seen_the_indexer(tmp_path: Path) -> None:
    (tmp_path / GONE).mkdir()
    services = Shelves()  # type: ignore[abstract]  # only what the gateway calls
    async with serving(services, media_url=str(tmp_path)):
        await services.until_asked("ListCollections", 1)


async def test_files_that_were_out_of_reach_when_their_collection_was_deleted_go_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.services.deleted.clear()
    place.services.make("lost")
    place.services.found["lost"].uid = GONE
    media = Media(str(place.root))

    async def away(_uid: str) -> None:
        raise LikenessError(error_pb2.REASON_MEDIA_UNAVAILABLE, "away")

    monkeypatch.setattr(media, "forget_collection", away)
    async with shelves() as (_, embedder, _indexer):
        with pytest.raises(LikenessError):
            request = gateway_pb2.DeleteCollectionRequest(name="lost")
            await Collections(embedder, place.sweep.indexer, media).delete(request, Deadline(20))
    media.close()

    assert "lost" not in place.services.found
    assert await place.sweep.once(NOW) == []
    assert await place.sweep.once(NOW + GRACE_S) == [GONE]


async def test_an_indexer_that_does_not_answer_the_sweep_holds_up_no_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(self: Shelves, request: Any, context: Any) -> None:
        await self._begin("ListCollections", request, context)
        await asyncio.Event().wait()

    monkeypatch.setattr(Shelves, "ListCollections", silent)
    (tmp_path / GONE).mkdir()
    async with shelves() as (services, _, indexer):
        sweep = MediaSweep(indexer, MediaFiles(str(tmp_path)), asyncio.Event(), 3600)
        with capture_logs() as lines:
            async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
                tasks.create_task(sweep.run())
                await services.until_asked("ListCollections", 1)
                sweep.stopping.set()
    assert not lines
