"""A collection that is deleted and made anew while somebody lists it page after page: no token is blamed for it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from likeness.gateway.v1.gateway_pb2 import DeleteItemsRequest, FindDuplicatesRequest, UpdateLabelsRequest

from chassis.deadline import Deadline
from chassis.errors import LikenessError, invalid
from gateway import classify, deletion, duplicates, labels
from gateway.backends import Embedder, Indexer
from gateway.deletion import Deletion
from gateway.duplicates import FindDuplicates
from gateway.labels import Labels
from gateway.media import Media
from tests.unit.gateway.behind import Behind, behind, vector
from tests.unit.gateway.test_classify import classifier, meanings, suggested
from tests.unit.gateway.test_deletion import OLD

Rpc = Callable[[Embedder, Indexer, Path], Awaitable[Any]]


class MadeAnew(Behind):
    """Refuses every second page, as the indexer does where the token is one of another collection."""

    async def ListItems(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.page_token:
            await self._abort(context, invalid("page_token", "is none that ListItems gave"))
        return await super().ListItems(request, context)


async def delete(_: Embedder, indexer: Indexer, folder: Path) -> None:
    media = Media(str(folder))
    try:
        await Deletion(indexer, media, 30)(DeleteItemsRequest(filter=OLD), Deadline(20))
    finally:
        media.close()


async def find_duplicates(_: Embedder, indexer: Indexer, _folder: Path) -> None:
    async def write(_: object) -> None:
        """Nobody reads it."""

    find = FindDuplicates(indexer, asyncio.Event(), 20, asyncio.Semaphore(1), 300)
    await find(FindDuplicatesRequest(min_score=0.9), write, Deadline(20))


async def change_labels(_: Embedder, indexer: Indexer, _folder: Path) -> None:
    await Labels(indexer).update(UpdateLabelsRequest(all_items=True, add=["x"]), Deadline(20))


async def suggest(embedder: Embedder, indexer: Indexer, _folder: Path) -> None:
    await suggested(classifier(embedder, indexer))


@pytest.mark.parametrize(
    ("rpc", "module"),
    [(delete, deletion), (find_duplicates, duplicates), (change_labels, labels), (suggest, classify)],
)
async def test_the_collection_is_said_to_be_another(
    rpc: Rpc, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAGE", 2)
    async with behind(MadeAnew()) as (services, embedder, indexer):  # type: ignore[abstract]
        meanings(services)
        for i in range(5):
            services.put(str(i), vector(1), age="old", sha256=str(i))
        with pytest.raises(LikenessError, match="deleted and made anew") as caught:
            await rpc(embedder, indexer, tmp_path)

    assert caught.value.reason_name == "COLLECTION_NOT_FOUND"
    assert not caught.value.violations
