"""What is remembered of collections that were deleted, and of what they were restored from."""

from collections.abc import Sequence

import pytest
from likeness.common.v1 import error_pb2
from structlog.testing import capture_logs

from chassis.errors import LikenessError
from indexer import deleted
from indexer.catalog import Collections
from indexer.collections import Collection, Fingerprint, Metric
from tests.unit.indexer.conftest import Connected
from tests.unit.indexer.shelf import Shelf

FINGERPRINT = Fingerprint("m", "a1" * 32, 4)


async def restored(collections: Collections, name: str, *earlier: str) -> Collection:
    """A collection that was made from a backup of another."""
    return await collections.commit(
        await collections.stage_new(name, FINGERPRINT, Metric.L2, earlier_uids=earlier),
    )


async def delete(collections: Collections, name: str) -> None:
    async with collections.leaving(name) as collection:
        await collections.delete(collection)


async def told(collections: Collections) -> Sequence[str]:
    await collections.list("", 1)
    return collections.deleted_uids


async def test_a_collection_that_was_deleted_is_told_from_one_that_never_was() -> None:
    shelf = Shelf()
    collections = Collections(shelf)
    uids = [(await collections.create(name, FINGERPRINT, Metric.L2)).uid for name in ("one", "two", "three")]
    assert await told(collections) == ()
    await delete(collections, "one")
    await delete(collections, "three")
    reader = Collections(shelf, follows=True)
    reader.refresh(await shelf.collections())
    for seen_by in (collections, Collections(shelf), reader):
        assert list(await told(seen_by)) == [uids[2], uids[0]]


async def test_what_it_was_restored_from_is_deleted_with_the_last_that_was_restored_from_it() -> None:
    collections = Collections(Shelf())
    first = await restored(collections, "first", "lost", "before")
    second = await restored(collections, "second", "lost", "before")
    copy = await restored(collections, "copy", first.uid, "lost", "before")
    await delete(collections, "second")
    assert list(await told(collections)) == [second.uid]
    await delete(collections, "first")
    assert list(await told(collections)) == [second.uid], "the copy needs it"
    await delete(collections, "copy")
    assert list(await told(collections)) == [copy.uid, first.uid, "lost", "before", second.uid]


async def test_a_copy_beside_its_original_leaves_that_alone() -> None:
    collections = Collections(Shelf())
    original = await collections.create("original", FINGERPRINT, Metric.L2)
    copy = await restored(collections, "copy", original.uid)
    await delete(collections, "copy")
    assert list(await told(collections)) == [copy.uid]


async def test_a_deletion_that_cannot_be_remembered_is_one_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf()
    collections = Collections(shelf)
    await collections.create("col", FINGERPRINT, Metric.L2)

    async def full(*_: object) -> None:
        raise LikenessError(error_pb2.REASON_STORE_FULL, "full")

    monkeypatch.setattr(shelf, "create", full)
    with capture_logs() as logs:
        await delete(collections, "col")
    assert await collections.list("", 10) == ([], False)
    assert collections.deleted_uids == ()
    assert [(entry["log_level"], entry["why"]) for entry in logs] == [("warning", "full")]


async def test_only_the_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deleted, "MOST", 2)
    collections = Collections(Shelf())
    for name in ("one", "two", "three"):
        await restored(collections, name, f"earlier-{name}")
        await delete(collections, name)
    assert len(await told(collections)) == 2
    assert collections.deleted_uids[1] == "earlier-three"


# In a real Chroma


def test_it_is_kept_in_chroma(connected: Connected) -> None:
    run, collections = connected.loop.run, Collections(connected.store)
    made = [run(restored(collections, f"kept-{n}", f"earlier-{n}")) for n in range(3)]
    for each in made:
        assert run(listed(connected, each.name)).earlier_uids == each.earlier_uids
        run(delete(collections, each.name))
    expected = [uid for each in reversed(made) for uid in (each.uid, *each.earlier_uids)]
    assert list(run(told(Collections(connected.store))))[:6] == expected


async def listed(connected: Connected, name: str) -> Collection:
    async with Collections(connected.store).use(name) as collection:
        return collection
