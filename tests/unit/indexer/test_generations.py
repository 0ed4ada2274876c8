"""Collections stored anew: what is seen when, and what becomes of it when something fails."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer import leftovers
from indexer.catalog import Collections
from indexer.collections import Collection, Fingerprint, Hnsw, Metric, StoredCollection, to_metadata
from indexer.deleted import STORE_NAME
from indexer.listed import COPY_OF
from indexer.reads import Item
from tests.unit.indexer.conftest import Connected
from tests.unit.indexer.shelf import Shelf

FINGERPRINT = Fingerprint("m", "a1" * 32, 4)
WIDE = Hnsw(max_neighbors=32)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
async def collections(shelf: Shelf) -> Collections:
    """With the collection "col"."""
    made = Collections(shelf)
    await made.create("col", FINGERPRINT, Metric.L2, Hnsw(ef_search=64), "pictures")
    return made


async def use(collections: Collections, name: str = "col") -> Collection:
    async with collections.use(name) as collection:
        return collection


async def swept(collections: Collections) -> None:
    """A start, once everything is served."""
    await collections.recover()
    collections.drop_left()
    assert await collections.left_dropped()


async def refusal(work: Any) -> LikenessError:
    with pytest.raises(LikenessError) as caught:
        await work
    return caught.value


async def test_a_copy_is_the_collection_from_its_commit_on(shelf: Shelf, collections: Collections) -> None:
    old = await use(collections)
    copy = await collections.stage_copy(old, WIDE)
    assert (copy.uid, copy.generation, copy.hnsw, copy.built) == (old.uid, 1, WIDE, WIDE)
    assert shelf.hnsw[copy.store_name] == WIDE
    for seen_by in (collections, Collections(shelf)):
        assert await use(seen_by) == old
        assert [c.name for c in (await seen_by.list("", 10))[0]] == ["col"]

    committed = await collections.commit(copy)
    assert shelf.homes[old.uid] == committed
    for seen_by in (collections, Collections(shelf)):
        assert await use(seen_by) == committed
        assert [c.uid for c in (await seen_by.list("", 10))[0]] == [old.uid]
    assert (committed.name, committed.uid, committed.key, committed.generation) == ("col", old.uid, copy.key, 1)
    assert (committed.created, committed.fingerprint, committed.metric) == (old.created, FINGERPRINT, Metric.L2)
    await collections.drop_generation(old)
    assert shelf.kept.keys() == {copy.store_name}
    assert await use(Collections(shelf)) == committed


async def test_what_is_changed_while_it_is_copied_is_kept(shelf: Shelf, collections: Collections) -> None:
    old = await use(collections)
    copy = await collections.stage_copy(old, old.hnsw)
    await collections.update("col", Hnsw(max_neighbors=64), "others")
    committed = await collections.commit(copy)
    assert (committed.hnsw, committed.built) == (Hnsw(max_neighbors=64), old.hnsw)
    assert committed.description == "others"
    assert await use(Collections(shelf)) == committed


async def test_a_commit_whose_answer_is_lost_is_repeated_until_it_is_known(
    shelf: Shelf, collections: Collections
) -> None:
    for lost, missed in ((1, 0), (0, 1), (2, 2)):
        old = await use(collections)
        copy = await collections.stage_copy(old, WIDE)
        shelf.lost, shelf.missed = lost, missed
        committed = await collections.commit(copy)
        assert committed.generation == old.generation + 1
        assert await use(collections) == await use(Collections(shelf)) == committed


async def test_a_commit_that_cannot_be_sent_leaves_a_copy(shelf: Shelf, collections: Collections) -> None:
    old = await use(collections)
    copy = await collections.stage_copy(old, WIDE)
    shelf.away = True
    assert (await refusal(collections.commit(copy))).reason == error_pb2.REASON_STORE_UNAVAILABLE
    shelf.away = False
    assert await use(collections) == old
    collections.discard(copy)
    assert await collections.left_dropped()
    assert shelf.kept.keys() == {"col"}


async def test_a_copy_of_what_is_deleted_meanwhile_is_never_the_collection(
    shelf: Shelf, collections: Collections
) -> None:
    copy = await collections.stage_copy(await use(collections), WIDE)
    async with collections.leaving("col") as collection:
        assert (await refusal(collections.commit(copy))).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
        await collections.delete(collection)
    assert (await refusal(collections.commit(copy))).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    await collections.create("col", FINGERPRINT, Metric.L2)
    assert (await refusal(collections.commit(copy))).reason == error_pb2.REASON_COLLECTION_NOT_FOUND


async def test_deleting_what_was_rebuilt_leaves_no_earlier_generation(shelf: Shelf, collections: Collections) -> None:
    await collections.commit(await collections.stage_copy(await use(collections), WIDE))
    assert "col" in shelf.kept  # its first generation, which was not dropped
    async with collections.leaving("col") as collection:
        await collections.delete(collection)
    for seen_by in (collections, Collections(shelf)):
        assert (await refusal(use(seen_by))).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    await swept(Collections(shelf))
    assert shelf.kept.keys() == {STORE_NAME}


async def test_a_restored_collection_is_not_seen_before_its_commit_and_its_name_is_kept(
    shelf: Shelf, collections: Collections
) -> None:
    staged = await collections.stage_new(
        "new", FINGERPRINT, Metric.COSINE, WIDE, "restored", earlier_uids=["lost", "before"]
    )
    assert (await refusal(use(collections, "new"))).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    for taken in (
        collections.create("new", FINGERPRINT, Metric.COSINE),
        collections.stage_new("new", FINGERPRINT, Metric.COSINE),
        collections.set_alias("new", "col"),
    ):
        assert (await refusal(taken)).reason == error_pb2.REASON_COLLECTION_EXISTS
    await collections.update("col", None, "another list meanwhile")
    committed = await collections.commit(staged)
    assert committed == await use(collections, "new") == await use(Collections(shelf), "new")
    assert (committed.key, committed.description, committed.built) == (staged.key, "restored", WIDE)
    assert committed.earlier_uids == ("lost", "before")


async def test_what_a_collection_was_restored_from_is_kept_by_changes_and_rebuilds(
    shelf: Shelf, collections: Collections
) -> None:
    staged = await collections.stage_new("new", FINGERPRINT, Metric.COSINE, earlier_uids=["lost", "before"])
    await collections.commit(staged)
    await collections.update("new", WIDE, "changed")
    await collections.commit(await collections.stage_copy(await use(collections, "new"), WIDE))
    for seen_by in (collections, Collections(shelf)):
        found = await use(seen_by, "new")
        assert (found.generation, found.earlier_uids) == (1, ("lost", "before"))


async def test_the_name_of_what_was_not_restored_is_free_again(shelf: Shelf, collections: Collections) -> None:
    staged = await collections.stage_new("new", FINGERPRINT, Metric.COSINE)
    collections.discard(staged)
    await collections.create("new", FINGERPRINT, Metric.COSINE)
    assert await collections.left_dropped()
    assert shelf.kept.keys() == {"col", "new"}


async def test_what_is_discarded_while_chroma_is_away_is_dropped_when_it_is_back(
    shelf: Shelf, collections: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "_TRY_AGAIN_S", 0.001)
    copy = await collections.stage_copy(await use(collections), WIDE)
    shelf.away = True
    collections.discard(copy)
    waiting = asyncio.create_task(collections.left_dropped())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    shelf.away = False
    async with asyncio.timeout(10):
        assert await waiting
    assert shelf.kept.keys() == {"col"}


async def test_what_is_discarded_and_cannot_be_dropped_is_not_taken_for_gone(
    shelf: Shelf, collections: Collections
) -> None:
    copy = await collections.stage_copy(await use(collections), WIDE)
    shelf.failure = LikenessError(error_pb2.REASON_READ_ONLY, "another is the writer")
    collections.discard(copy)
    for _ in range(2):
        assert not await collections.left_dropped()


@pytest.mark.parametrize("begun", [False, True])
async def test_what_is_discarded_at_a_stop_is_dropped_after_the_next_start(
    shelf: Shelf, collections: Collections, begun: bool
) -> None:
    """Also where it was set apart already, and emptied in part."""
    copy = await collections.stage_copy(await use(collections), WIDE)
    staged = await collections.stage_new("new", FINGERPRINT, Metric.L2)
    if begun:
        await shelf.set_apart(copy.store_name, copy.key)
        await shelf.set_apart(staged.store_name, staged.key)
    collections.end()
    made = len(shelf.log)
    collections.discard(copy)
    collections.discard(staged)
    await collections.stop()
    assert (len(shelf.log), len(shelf.kept)) == (made, 3)
    await swept(Collections(shelf))
    assert shelf.kept.keys() == {"col"}


async def test_a_start_drops_what_was_not_finished_and_nothing_else(shelf: Shelf, collections: Collections) -> None:
    old = await use(collections)
    await collections.create("other", FINGERPRINT, Metric.COSINE)
    await collections.set_alias("al", "col")
    committed = await collections.commit(await collections.stage_copy(old, WIDE))
    await collections.stage_copy(committed, WIDE)
    await collections.stage_new("new", FINGERPRINT, Metric.COSINE)
    shelf.kept["foreign"] = StoredCollection("foreign", "f", {"owner": "somebody"})
    shelf.kept["gone"] = StoredCollection("gone", "g", {"likeness.dropped": "uid"})
    later = Collections(shelf)
    await swept(later)
    assert shelf.kept.keys() == {committed.store_name, "other", "Likeness.Aliases.1", "foreign"}
    assert await use(later, "al") == committed


async def test_a_generation_is_dropped_when_nobody_asks_it_any_more(shelf: Shelf, collections: Collections) -> None:
    old = await use(collections)
    await collections.commit(await collections.stage_copy(old, WIDE))
    shelf.quiet.clear()
    dropping = asyncio.create_task(collections.drop_generation(old))
    for _ in range(20):
        await asyncio.sleep(0)
    assert "col" in shelf.kept
    shelf.quiet.set()
    await dropping
    assert "col" not in shelf.kept


async def test_a_reader_sees_what_it_is_told_and_asks_for_nothing(shelf: Shelf, collections: Collections) -> None:
    reader = Collections(shelf, follows=True)
    listings = shelf.listings
    assert (await refusal(use(reader))).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert await reader.list("", 10) == ([], False)
    assert shelf.listings == listings
    (told,) = reader.refresh(await shelf.collections())
    assert await use(reader) == told == await use(collections)
    await collections.commit(await collections.stage_copy(told, WIDE))
    await collections.set_alias("al", "col")
    assert await use(reader) == told
    reader.refresh(await shelf.collections())
    assert await use(reader, "al") == await use(collections)


async def test_what_an_earlier_run_left_holds_nobody_up(shelf: Shelf, collections: Collections) -> None:
    old = await use(collections)
    await collections.commit(await collections.stage_copy(old, WIDE))
    later = Collections(shelf)
    shelf.gate.clear()  # dropping takes long
    shelf.entered.clear()
    async with asyncio.timeout(10):
        await later.recover()
        assert (await use(later)).generation == 1
        later.drop_left()
        await shelf.entered.wait()
        assert [c.name for c in (await later.list("", 10))[0]] == ["col"]
    shelf.gate.set()
    assert await later.left_dropped()
    assert len(shelf.kept) == 1


async def test_a_stop_leaves_the_rest_to_the_next_start(shelf: Shelf, collections: Collections) -> None:
    await collections.commit(await collections.stage_copy(await use(collections), WIDE))
    later = Collections(shelf)
    await later.recover()
    drop = shelf.drop

    async def never(name: str, key: str, /) -> None:
        shelf.entered.set()
        await asyncio.Event().wait()

    shelf.entered.clear()
    shelf.drop = never  # type: ignore[method-assign]
    later.drop_left()
    await shelf.entered.wait()
    async with asyncio.timeout(10):
        await later.stop()
    assert not await later.left_dropped()
    shelf.drop = drop  # type: ignore[method-assign]
    await swept(Collections(shelf))
    assert [c.metadata["likeness.generation"] for c in shelf.kept.values()] == [1]


async def test_deleting_waits_for_nothing_to_be_emptied(shelf: Shelf, collections: Collections) -> None:
    old = await use(collections)
    committed = await collections.commit(await collections.stage_copy(old, WIDE))
    copy = await collections.stage_copy(committed, WIDE)  # a rebuild is under way
    emptied = asyncio.Event()
    drop = shelf.drop

    async def slowly(name: str, key: str, /) -> None:
        await emptied.wait()
        await drop(name, key)

    shelf.drop = slowly  # type: ignore[method-assign]
    async with asyncio.timeout(10), collections.leaving("col") as collection:
        await collections.delete(collection)
    await collections.create("other", FINGERPRINT, Metric.L2)
    assert len(shelf.kept) == 5
    # Whatever a kill leaves of them now is no collection.
    for gone in ((), (committed.key,), (old.key, committed.key), (copy.key,)):
        left = Shelf()
        left.kept = {name: stored for name, stored in shelf.kept.items() if stored.key not in gone}
        assert [c.name for c in (await Collections(left).list("", 10))[0]] == ["other"]
    emptied.set()
    await asyncio.gather(*collections._behind)
    assert shelf.kept.keys() == {"other", STORE_NAME}


@pytest.mark.parametrize("changes", range(5))
async def test_a_deletion_that_is_killed_on_the_way_brings_no_earlier_generation_back(
    shelf: Shelf, collections: Collections, changes: int
) -> None:
    """After so many changes in the store."""
    await collections.commit(await collections.stage_copy(await use(collections), WIDE))
    made, left = len(shelf.log), Shelf()
    answer = shelf._answer

    async def until_killed(verb: str, name: str) -> None:
        if len(shelf.log) - made == changes - 1:
            left.kept = dict(shelf.kept)
        await answer(verb, name)

    shelf._answer = until_killed  # type: ignore[method-assign]
    if not changes:
        left.kept = dict(shelf.kept)
    async with collections.leaving("col") as collection:
        await collections.delete(collection)
    await asyncio.gather(*collections._behind)
    later = Collections(left)
    await swept(later)
    found = [(c.name, c.generation) for c in (await later.list("", 10))[0]]
    assert found == ([("col", 1)] if changes < 2 else [])


async def test_who_means_another_collection_of_the_name_makes_nobody_forget_this_one(
    shelf: Shelf, collections: Collections
) -> None:
    there = await use(collections)

    async def use_another() -> None:
        async with collections.use("col", "the uid of one before"):
            pass

    error = await refusal(use_another())
    assert error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert "made anew" in error.message
    shelf.away = True
    assert await use(collections) == there
    async with collections.use("col", there.uid) as collection:
        assert collection == there


# In a real Chroma


def test_an_earlier_generation_stands_for_the_present_one(connected: Connected) -> None:
    run, store = connected.loop.run, connected.store
    collections = Collections(store)
    old = run(collections.create("rebuilt", FINGERPRINT, Metric.L2))
    connected.upsert(old, Item("a", np.zeros(4, np.float32)))
    copy = run(collections.stage_copy(old, Hnsw(max_neighbors=24, ef_construction=150, ef_search=77)))
    connected.upsert(copy, Item("b", np.zeros(4, np.float32)), Item("c", np.zeros(4, np.float32)))
    assert (run(store.ids(old)), sorted(run(store.ids(copy)))) == (["a"], ["b", "c"])
    run(collections.commit(copy))
    run(collections.drop_generation(old))
    assert sorted(run(store.ids(old))) == ["b", "c"]
    connected.upsert(old, Item("d", np.zeros(4, np.float32)))
    elsewhere = Collections(store)
    now = run(use(elsewhere, "rebuilt"))
    assert (now.uid, now.key, now.generation) == (old.uid, copy.key, 1)
    assert sorted(run(store.ids(now))) == ["b", "c", "d"]
    handle = run(configured(connected, now))
    assert (handle["max_neighbors"], handle["ef_construction"], handle["ef_search"]) == (24, 150, 77)


def test_with_a_rebuilt_collection_goes_what_was_replaced_and_what_was_staged(connected: Connected) -> None:
    run, store = connected.loop.run, connected.store
    collections = Collections(store)
    # As a release before generations wrote it: its uid is its key.
    stored = run(store.create("deleted", Metric.L2, {"owner": "test"}))
    assert stored is not None
    old = Collection("deleted", stored.key, FINGERPRINT, Metric.L2, datetime.now(UTC))
    run(store.describe(old, to_metadata(old)))
    connected.upsert(old, Item("a", np.zeros(4, np.float32)))
    committed = run(collections.commit(run(collections.stage_copy(run(use(collections, "deleted")), WIDE))))
    run(collections.stage_copy(committed, WIDE))

    async def delete() -> None:
        async with collections.leaving("deleted") as collection:
            await collections.delete(collection)
        assert "deleted" not in {c.name for c in (await Collections(store).list("", 1000))[0]}
        assert await store.find("deleted") is None, "its earlier generation has lost name and marks"
        await asyncio.gather(*collections._behind)

    run(delete())
    left = {stored.key, committed.key}
    assert [c for c in run(store.collections()) if c.key in left or c.metadata.get(COPY_OF) == old.uid] == []


async def configured(connected: Connected, collection: Collection) -> Any:
    async with connected.store._chroma.handle("looking at it", collection) as handle:
        return handle.configuration["hnsw"]


def test_a_request_under_way_keeps_its_generation(connected: Connected) -> None:
    store = connected.store

    async def rebuild() -> None:
        collections = Collections(store)
        old = await collections.create("under-way", FINGERPRINT, Metric.L2)
        copy = await collections.stage_copy(old, WIDE)
        async with store._chroma.handle("reading", old) as handle:
            await collections.commit(copy)
            dropping = asyncio.create_task(collections.drop_generation(old))
            assert await handle.count() == 0
            assert not dropping.done()
        await dropping
        assert "under-way" not in {c.name for c in await store.collections()}
        assert await store.count(replace(old)) == 0

    connected.loop.run(rebuild())


async def test_what_a_late_request_made_a_collection_is_not_dropped_as_left(
    shelf: Shelf, collections: Collections
) -> None:
    """The writer before has asked for its commit, and only now Chroma carries it out."""
    old = await use(collections)
    copy = await collections.stage_copy(old, WIDE)
    later = Collections(shelf)
    await later.recover()
    await shelf.describe(copy, to_metadata(copy))
    later.drop_left()
    assert await later.left_dropped()
    assert (await use(later)).key == copy.key
    assert copy.store_name in shelf.kept


async def test_what_is_being_dropped_is_no_collection_whatever_its_marks_say(
    shelf: Shelf, collections: Collections
) -> None:
    old = await use(collections)
    copy = await collections.stage_copy(old, WIDE)
    apart = await shelf.set_apart(copy.store_name, copy.key)
    await shelf.describe(replace(copy, store_name=apart), to_metadata(copy))
    assert (await use(Collections(shelf))).key == old.key
    await swept(Collections(shelf))
    assert shelf.kept.keys() == {"col"}


async def test_what_is_being_restored_from_is_not_deleted(shelf: Shelf, collections: Collections) -> None:
    old = await use(collections)
    staged = await collections.stage_new("again", FINGERPRINT, Metric.L2, earlier_uids=[old.uid])
    error = await refusal(collections.leaving("col").__aenter__())
    assert error.reason == error_pb2.REASON_COLLECTION_BUSY
    assert "being restored" in error.message
    await collections.commit(staged)
    async with collections.leaving("col") as collection:
        await collections.delete(collection)
    assert old.uid not in collections.deleted_uids
