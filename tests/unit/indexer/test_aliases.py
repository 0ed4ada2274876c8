"""Aliases over a store that the test holds in its hand: what they stand for, races, and answers that are lost."""

import asyncio
from typing import Any

import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.aliases import Aliases, latest
from indexer.catalog import Collections
from indexer.collections import Fingerprint, Metric, StoredCollection
from tests.unit.indexer.shelf import Shelf, refusal, use

FINGERPRINT = Fingerprint("m", "a1" * 32, 4)


@pytest.fixture
async def shelf() -> Shelf:
    """With the collections "one" and "two"."""
    made = Shelf()
    collections = Collections(made)
    for name in ("one", "two"):
        await collections.create(name, FINGERPRINT, Metric.COSINE)
    made.log.clear()
    return made


@pytest.fixture
def collections(shelf: Shelf) -> Collections:
    return Collections(shelf)


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_an_alias_is_made_moved_and_deleted(shelf: Shelf, collections: Collections) -> None:
    assert await collections.set_alias("al", "one") == ""
    assert (await use(collections, "al")).name == "one"
    assert await collections.set_alias("al", "two") == "one"
    assert (await use(collections, "al")).name == "two"
    assert await collections.set_alias("al", "two") == "two"
    assert await collections.list_aliases() == [("al", "two")]
    assert (collections.aliases_of("one"), collections.aliases_of("two")) == ([], ["al"])
    assert await collections.delete_alias("al") == "two"
    assert (await refusal(use(collections, "al"))).reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert (await refusal(collections.delete_alias("al"))).reason == error_pb2.REASON_ALIAS_NOT_FOUND


async def test_aliases_outlive_the_indexer(shelf: Shelf, collections: Collections) -> None:
    await collections.set_alias("zebra", "one")
    await collections.set_alias("ape", "two")
    later = Collections(shelf)
    assert (await use(later, "zebra")).name == "one"
    assert await later.list_aliases() == [("ape", "two"), ("zebra", "one")]
    assert sorted(shelf.kept) == ["Likeness.Aliases.2", "one", "two"]


async def test_one_moved_by_a_change_that_a_crash_cut_short_has_moved(shelf: Shelf, collections: Collections) -> None:
    await collections.set_alias("al", "one")
    before = dict(shelf.kept)
    await collections.set_alias("al", "two")
    shelf.kept |= before  # the new document is there, the old one not dropped yet
    later = Collections(shelf)
    assert (await use(later, "al")).name == "two"
    await later.recover()
    later.drop_left()
    assert await later.left_dropped()
    assert sorted(shelf.kept) == ["Likeness.Aliases.2", "one", "two"]


@pytest.mark.parametrize(
    ("call", "reason", "says"),
    [
        (lambda c: c.set_alias("one", "two"), "COLLECTION_EXISTS", "is the name of a collection"),
        (lambda c: c.set_alias("new", "nowhere"), "COLLECTION_NOT_FOUND", "'nowhere'"),
        (lambda c: c.set_alias("new", "al"), "FIELD_INVALID", "is an alias (of 'one')"),
        (lambda c: c.set_alias("al", "two", "two"), "ALIAS_MOVED", "stands for 'one', expected 'two'"),
        (lambda c: c.set_alias("al", "two", ""), "ALIAS_MOVED", "stands for 'one', expected none"),
        (lambda c: c.set_alias("new", "two", "one"), "ALIAS_MOVED", "does not exist, expected 'one'"),
        (lambda c: c.create("al", FINGERPRINT, Metric.COSINE), "COLLECTION_EXISTS", "is an alias of 'one'"),
        (lambda c: c.stage_new("al", FINGERPRINT, Metric.COSINE), "COLLECTION_EXISTS", "is an alias of 'one'"),
        (lambda c: c.leaving("al").__aenter__(), "FIELD_INVALID", "is an alias (of 'one')"),
        (lambda c: c.leaving("one").__aenter__(), "COLLECTION_ALIASED", "('al'); delete or move them first"),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    shelf: Shelf, collections: Collections, call: Any, reason: str, says: str
) -> None:
    await collections.set_alias("al", "one")
    before = dict(shelf.kept)
    error = await refusal(call(collections))
    assert error.reason_name == reason
    assert says in error.message
    assert shelf.kept == before


async def test_an_alias_moves_if_it_stands_for_what_is_expected(collections: Collections) -> None:
    await collections.set_alias("al", "one", "")
    assert await collections.set_alias("al", "two", "one") == "one"


async def test_of_two_that_expect_the_same_one_moves_it(collections: Collections) -> None:
    await collections.set_alias("al", "one")
    moves = (collections.set_alias("al", "two", "one"), collections.set_alias("al", "one", "one"))
    first, second = await asyncio.gather(*moves, return_exceptions=True)
    assert first == "one"
    assert isinstance(second, LikenessError)
    assert second.reason == error_pb2.REASON_ALIAS_MOVED


async def test_an_alias_of_a_collection_that_is_no_more_is_kept_and_says_so(
    shelf: Shelf, collections: Collections
) -> None:
    await collections.set_alias("al", "one")
    del shelf.kept["one"]  # by somebody else
    assert await collections.list_aliases() == [("al", "one")]
    error = await refusal(use(collections, "al"))
    assert error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND
    assert "alias 'al' stands for 'one'" in error.message
    await collections.create("one", FINGERPRINT, Metric.COSINE)
    assert (await use(collections, "al")).name == "one"


# Races


async def test_of_an_alias_and_a_collection_of_one_name_made_together_one_is(
    shelf: Shelf, collections: Collections
) -> None:
    for calls in (
        (collections.set_alias("name.a", "one"), collections.create("name.a", FINGERPRINT, Metric.COSINE)),
        (collections.create("name.b", FINGERPRINT, Metric.COSINE), collections.set_alias("name.b", "one")),
    ):
        first, second = await asyncio.gather(*calls, return_exceptions=True)
        assert not isinstance(first, BaseException)
        assert isinstance(second, LikenessError)
        assert second.reason == error_pb2.REASON_COLLECTION_EXISTS


async def test_no_alias_is_given_to_a_collection_that_is_being_deleted(collections: Collections) -> None:
    async with collections.leaving("one") as collection:
        error = await refusal(collections.set_alias("al", "one"))
        assert error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND
        await collections.delete(collection)
    assert await collections.list_aliases() == []


async def test_a_collection_that_is_given_an_alias_first_is_not_deleted(shelf: Shelf, collections: Collections) -> None:
    shelf.entered.clear()
    shelf.gate.clear()
    aliasing = asyncio.create_task(collections.set_alias("al", "one"))
    await shelf.entered.wait()
    deleting = asyncio.create_task(collections.leaving("one").__aenter__())
    await settle()
    assert not deleting.done()
    shelf.gate.set()
    assert await aliasing == ""
    assert (await refusal(deleting)).reason == error_pb2.REASON_COLLECTION_ALIASED


async def test_a_list_read_before_an_alias_moved_does_not_move_it_back(shelf: Shelf, collections: Collections) -> None:
    await collections.set_alias("al", "one")
    listing, asked = asyncio.Event(), asyncio.Event()
    read = shelf.collections

    async def slowly() -> list[StoredCollection]:
        found = await read()
        asked.set()
        await listing.wait()
        return found

    shelf.collections = slowly  # type: ignore[method-assign]
    looking = asyncio.create_task(use(collections, "unknown"))
    await asked.wait()
    shelf.collections = read  # type: ignore[method-assign]
    moving = asyncio.create_task(collections.set_alias("al", "two"))
    await settle()
    listing.set()
    await moving
    await refusal(looking)
    assert (await use(collections, "al")).name == "two"


# Lost answers


async def test_a_move_whose_answer_is_lost_is_repeated_until_it_is_known(
    shelf: Shelf, collections: Collections
) -> None:
    await collections.set_alias("al", "one")
    for lost, missed in ((1, 0), (0, 1), (1, 2)):
        before = (await use(collections, "al")).name
        other = "two" if before == "one" else "one"
        shelf.lost, shelf.missed = lost, missed
        assert await collections.set_alias("al", other) == before
        assert (await use(collections, "al")).name == (await use(Collections(shelf), "al")).name == other
    assert len([name for name in shelf.kept if name.startswith("Likeness")]) == 1


async def test_meanwhile_reads_go_on_and_other_changes_fail_at_once(shelf: Shelf, collections: Collections) -> None:
    await collections.set_alias("al", "one")
    shelf.lost = 1
    shelf.entered.clear()
    shelf.gate.clear()
    moving = asyncio.create_task(collections.set_alias("al", "two"))
    await shelf.entered.wait()
    shelf.away = True
    shelf.gate.set()
    await settle()
    assert not moving.done()
    for other in (collections.set_alias("other", "one"), collections.create("three", FINGERPRINT, Metric.COSINE)):
        error = await refusal(other)
        assert error.reason == error_pb2.REASON_STORE_UNAVAILABLE
        assert "changing the aliases" in error.message
    assert (await use(collections, "al")).name == "one"
    shelf.away = False
    assert await moving == "one"
    assert (await use(collections, "al")).name == "two"
    assert await collections.set_alias("other", "one") == ""


async def test_a_change_fails_at_once_while_the_store_is_away(shelf: Shelf, collections: Collections) -> None:
    await collections.set_alias("al", "one")
    shelf.away = True
    assert (await refusal(collections.set_alias("al", "two"))).reason == error_pb2.REASON_STORE_UNAVAILABLE
    shelf.away = False
    assert (await use(collections, "al")).name == "one"


async def test_a_change_that_another_indexer_was_first_to_make_is_not_overwritten(
    shelf: Shelf, collections: Collections
) -> None:
    await collections.set_alias("al", "one")
    create = shelf.create

    async def too_late(name: str, *rest: Any) -> StoredCollection | None:
        theirs = Aliases(2, {"al": "two"}, "theirs")
        shelf.kept[theirs.store_name] = StoredCollection(theirs.store_name, "theirs", theirs.metadata)
        return await create(name, *rest)

    shelf.create = too_late  # type: ignore[method-assign]
    error = await refusal(collections.set_alias("al2", "one"))
    assert error.reason == error_pb2.REASON_READ_ONLY
    assert await collections.list_aliases() == [("al", "two")]


def test_of_several_documents_the_highest_number_counts() -> None:
    documents = [Aliases(n, {"al": f"c{n}"}, str(n)) for n in (9, 10, 2)]
    stored = [StoredCollection(d.store_name, f"k{d.version}", d.metadata) for d in documents]
    found, all_of_them = latest(
        [*stored, StoredCollection("Likeness.Aliases.x", "k", {}), StoredCollection("c", "k", {})]
    )
    assert found == documents[1]
    assert [each.key for each in all_of_them] == ["k2", "k9", "k10"]
    assert latest([]) == (Aliases(), [])
