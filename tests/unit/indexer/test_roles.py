from pathlib import Path
from typing import Any, cast

import pytest

from indexer import aftermath, roles
from indexer.catalog import Collections
from indexer.registry import Registry
from indexer.serving.collection import ServingCollection
from indexer.serving.loader import LATE_US
from indexer.settings import IndexerSettings
from indexer.writers import Writers
from tests.unit.indexer.held_store import HeldStore
from tests.unit.indexer.serving.tables import collection, empty

COLLECTION = collection()


class Nothing:
    """A registry of no collections."""

    uids: set[str] = set()  # noqa: RUF012 (never changed)


@pytest.mark.parametrize("clean", [True, False])
async def test_a_writer_is_unsettled_until_the_requests_of_one_that_did_not_stop_in_good_order_can_hardly_come(
    clean: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def loaded(*_: Any) -> None:
        pass

    monkeypatch.setattr(roles, "_load", loaded)
    settings = IndexerSettings(data_dir=tmp_path, chroma_url="http://127.0.0.1:9", store_timeout_s=0.1)
    writer = roles.Writer(settings)
    writer._clean = clean
    assert not writer.unsettled
    await writer.load(cast(Collections, None), cast(Registry, Nothing()), Writers(HeldStore(), 64, 1024))
    assert writer.unsettled is not clean
    if writer._aftermath is not None:
        await writer._aftermath
    assert not writer.unsettled


@pytest.mark.parametrize("looked", [True, False])
async def test_whoever_stops_before_the_last_look_has_the_next_writer_look(
    looked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def loaded(*_: Any) -> None:
        pass

    told: list[bool] = []

    async def release(*, in_doubt: bool) -> None:
        told.append(in_doubt)

    monkeypatch.setattr(roles, "_load", loaded)
    settings = IndexerSettings(
        data_dir=tmp_path, chroma_url="http://127.0.0.1:9", store_timeout_s=0.01 if looked else 600
    )
    writer = roles.Writer(settings)
    monkeypatch.setattr(writer.lease, "release", release)
    writer._clean = False
    await writer.load(cast(Collections, None), cast(Registry, Nothing()), Writers(HeldStore(), 64, 1024))
    if looked:
        assert writer._aftermath is not None
        await writer._aftermath
    await writer.rest()
    await writer.end()
    assert told == [not looked]


async def test_a_request_that_is_late_by_twice_the_time_limit_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def loaded(*_: Any) -> None:
        pass

    asked: list[int] = []

    async def look_again(store: object, since: int, serving: ServingCollection, review: object) -> int:
        asked.append(since)
        return 0

    class OneCollection:
        uids: set[str] = {COLLECTION.uid}  # noqa: RUF012 (never changed)

        def serving(self, uid: str) -> ServingCollection:
            return ServingCollection(COLLECTION, empty(), 1_000_000_000)

    monkeypatch.setattr(roles, "_load", loaded)
    monkeypatch.setattr(aftermath, "look_again", look_again)
    settings = IndexerSettings(data_dir=tmp_path, chroma_url="http://127.0.0.1:9", store_timeout_s=0.25)
    writer = roles.Writer(settings)
    writer._clean = False
    await writer.load(cast(Collections, None), cast(Registry, OneCollection()), Writers(HeldStore(), 64, 1024))
    assert writer._aftermath is not None
    await writer._aftermath
    assert asked
    assert set(asked) == {1_000_000_000 - 500_000 - LATE_US}
