"""A real Chroma for the tests of this folder, and a loop that its client can live in."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from indexer.collections import Collection, Fingerprint, Metric
from indexer.commit import Committer
from indexer.reads import Item
from indexer.store import ChromaStore
from indexer.surroundings import Surroundings
from tests.processes import start_chroma

DIGEST = "a1" * 32


@pytest.fixture(scope="session")
def chroma_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, url = start_chroma(tmp_path_factory.mktemp("chroma") / "data")
    yield url
    process.kill()
    process.wait(10)


@dataclass
class Connected:
    """A store and the loop that it belongs to."""

    store: ChromaStore
    loop: asyncio.Runner

    def collection(self, name: str, metric: Metric, dimension: int) -> Collection:
        """Makes one in the store, without the layer above it."""
        stored = self.loop.run(self.store.create(name, metric, {"owner": "test"}))
        assert stored is not None
        return Collection(name, stored.key, Fingerprint("m", DIGEST, dimension), metric, datetime.now(UTC))

    def upsert(self, collection: Collection, *items: Item) -> None:
        """Writes items as a writer without a mirror does."""

        async def write() -> None:
            committer = Committer(collection, self.store, Surroundings())
            for start in range(0, len(items), 64):
                await committer.upsert(items[start : start + 64])

        self.loop.run(write())


@pytest.fixture(scope="module")
def connected(chroma_url: str) -> Iterator[Connected]:
    with asyncio.Runner() as loop:
        store = ChromaStore({}, 60)
        loop.run(store.connect(chroma_url))
        yield Connected(store, loop)
