"""Chroma is lost, and neither backups nor pictures: what is restored has its pictures, and nothing is swept away."""

import asyncio
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from gateway.backends import Indexer
from gateway.media_files import MediaFiles
from gateway.media_sweep import GRACE_S, MediaSweep
from gateway.settings import GatewaySettings
from likeness_client import Client, IngestOptions, Picture
from likeness_client.indexer import IndexerClient
from tests.pictures import noise
from tests.processes import Service, free_port, launch, start_service
from tests.unit.embedder import tiny

PORT = "LIKENESS_INDEXER_PORT"
PICTURES = {f"p{n}": noise(n) for n in range(3)}
KEPT = IngestOptions(keep_originals=True)


@dataclass
class Place:
    """A gateway and its two services; backups and media lie beside the indexer's data, not in it."""

    path: Path
    indexer: Service
    gateway: str
    http: str

    @property
    def folders(self) -> set[str]:
        """The uids under which there are files."""
        return {found.name for found in (self.path / "media").iterdir()}

    def originals(self, uid: str) -> int:
        return len(list((self.path / "media" / uid).rglob("*.original")))

    def lose_chroma(self) -> None:
        """The indexer goes on without all that it had, as on a new machine."""
        self.indexer.kill()
        shutil.rmtree(self.path / "data")
        self.indexer = start_indexer(self.path, self.indexer.address.rpartition(":")[2])

    def end(self) -> None:
        """Ends the indexer that is there now."""
        self.indexer.kill()

    def sweep(self, *days: int) -> list[str]:
        """Whose files have gone, by gateways that looked so many days from now."""

        async def look() -> list[str]:
            indexer = Indexer(GatewaySettings(indexer_address=self.indexer.address))
            swept = MediaSweep(indexer, MediaFiles(str(self.path / "media")), asyncio.Event(), 60)
            try:
                return [uid for day in days for uid in await swept.once(time.time() + day * GRACE_S)]
            finally:
                await indexer.close()

        return asyncio.run(look())

    def thumbnail(self, collection: str, item_id: str) -> httpx.Response:
        return httpx.get(f"{self.http}/thumbnails/{collection}/{item_id}", trust_env=False, timeout=60)


def start_indexer(path: Path, port: str) -> Service:
    env = {"LIKENESS_DATA_DIR": str(path / "data"), "LIKENESS_SNAPSHOTS": str(path / "snapshots"), PORT: port}
    return start_service("indexer", env, PORT, path)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        model = tiny.save_folder(tmp_path / "model", 1)
        env = {"LIKENESS_MODEL": model, "LIKENESS_DEVICE": "cpu", "LIKENESS_BACKEND": "torch"}
        embedder = launch("embedder", env, "LIKENESS_EMBEDDER_PORT", tmp_path)
        stack.callback(embedder.kill)
        indexer = start_indexer(tmp_path, str(free_port()))
        made = Place(tmp_path, indexer, "", f"http://127.0.0.1:{free_port()}")
        stack.callback(made.end)
        embedder.wait_until_serving()
        env = {
            "LIKENESS_EMBEDDER_ADDRESS": embedder.address,
            "LIKENESS_INDEXER_ADDRESS": indexer.address,
            "LIKENESS_MEDIA_URL": str(tmp_path / "media"),
            "LIKENESS_HTTP_PORT": made.http.rpartition(":")[2],
        }
        gateway = start_service("gateway", env, "LIKENESS_GATEWAY_PORT", tmp_path)
        stack.callback(gateway.kill)
        made.gateway = gateway.address
        yield made


def test_restored_collections_have_their_pictures_and_give_them_back_when_they_are_deleted(place: Place) -> None:
    uids, backups = {}, {}
    with Client(place.gateway) as gateway, IndexerClient(place.indexer.address) as indexer:
        for name in ("photos", "others"):
            pictures = [Picture(encoded, id=item_id) for item_id, encoded in PICTURES.items()]
            assert all(each.stored for each in gateway.index(pictures, collection=name, options=KEPT))
            uids[name] = gateway.collection(name).uid
            backups[name] = indexer.create_snapshot(name).snapshot.name
        before = place.thumbnail("photos", "p0")
    assert place.folders == set(uids.values())

    place.lose_chroma()
    assert place.sweep(0, 2, 4) == [], "none is restored"
    with Client(place.gateway) as gateway, IndexerClient(place.indexer.address) as indexer:
        restored = indexer.restore_snapshot(backups["photos"])
        assert restored.earlier_uids == (uids["photos"],)
        assert place.sweep(6, 8) == [], "one is restored, the other is not yet"
        indexer.restore_snapshot(backups["others"])
        assert place.sweep(10, 12) == []
        assert place.folders == set(uids.values())

        after = place.thumbnail("photos", "p0")
        assert (after.status_code, after.content) == (200, before.content)
        told = gateway.reembed("photos", "again", keep_originals=True)
        assert (told.embedded, told.failed) == (len(PICTURES), 0)
        assert place.originals(gateway.collection("again").uid) == len(PICTURES)

        gateway.delete(["p0"], collection="photos")
        assert place.originals(uids["photos"]) == len(PICTURES) - 1
        assert place.thumbnail("others", "p0").status_code == 200

        gateway.delete_collection("photos")
        assert place.originals(uids["photos"]) == len(PICTURES) - 1
        assert place.sweep(14, 16) == [uids["photos"]]
        assert place.folders == {uids["others"], gateway.collection("again").uid}


def test_a_copy_needs_the_pictures_of_its_original_until_both_are_deleted(place: Place) -> None:
    with Client(place.gateway) as gateway, IndexerClient(place.indexer.address) as indexer:
        pictures = [Picture(encoded, id=item_id) for item_id, encoded in PICTURES.items()]
        assert all(each.stored for each in gateway.index(pictures, collection="photos", options=KEPT))
        uid = gateway.collection("photos").uid
        indexer.restore_snapshot(indexer.create_snapshot("photos").snapshot.name, collection="copy")

        gateway.delete(["p0"], collection="copy")
        assert place.thumbnail("photos", "p0").status_code == 200
        gateway.delete_collection("photos")
        assert place.sweep(0, 2) == []
        assert place.thumbnail("copy", "p1").status_code == 200

        gateway.delete_collection("copy")
        assert place.sweep(4) == []
        assert place.sweep(6) == [uid]
        assert place.folders == set()
