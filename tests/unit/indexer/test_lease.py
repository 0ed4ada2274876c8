import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer import heartbeat
from indexer.collections import StoredCollection
from indexer.heartbeat import Heartbeat, Holder, Journal, Published
from indexer.lease import Lease, ReadOnly, this_process
from tests.unit.indexer.passing_time import PassingTime, settled

LEASE_S = 15.0


class Documents:
    """Chroma, as far as leases go."""

    def __init__(self) -> None:
        self.there: dict[str, StoredCollection] = {}
        self.away = False
        # Requests that are carried out, and fail all the same.
        self.silent: set[str] = set()
        self.held: asyncio.Event | None = None
        self._made = 0

    async def collections(self) -> list[StoredCollection]:
        self._answer("collections")
        return list(self.there.values())

    async def make_document(self, name: str, metadata: Mapping[str, str | int]) -> bool:
        if self.held is not None:
            await self.held.wait()
        self._answer()
        made = name not in self.there
        if made:
            self._made += 1
            self.there[name] = StoredCollection(name, f"key{self._made}", dict(metadata))
        self._answer("make")
        return made

    async def rewrite_document(self, name: str, key: str, metadata: Mapping[str, str | int]) -> None:
        self._answer("rewrite")
        if name not in self.there or self.there[name].key != key:
            raise LikenessError(error_pb2.REASON_COLLECTION_NOT_FOUND, name)
        self.there[name] = StoredCollection(name, key, dict(metadata))

    async def drop_document(self, name: str) -> None:
        self._answer("drop")
        self.there.pop(name, None)

    def last(self) -> Heartbeat:
        return heartbeat.read(self.there.values())[-1][0]

    def _answer(self, what: str = "") -> None:
        if self.away or what in self.silent:
            raise LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, "no answer")


@dataclass
class Process:
    """An indexer with its own clock."""

    store: Documents
    name: str
    place: str = ""
    time: PassingTime = field(default_factory=PassingTime)
    lost: list[str] = field(default_factory=list)
    journal: Journal = field(default_factory=Journal)

    def __post_init__(self) -> None:
        self.me = Holder(f"owner {self.name}", self.place or f"place {self.name}", self.name, 7, "here:1", LEASE_S)
        self.lease = Lease(
            self.store, self.journal.published, self.on_lost, clock=self.time.clock, sleep=self.time.sleep
        )

    async def acquire(self) -> bool:
        return await self.lease.acquire(self.me)

    async def on_lost(self, why: str) -> None:
        self.lost.append(why)

    @asynccontextmanager
    async def acquiring(self) -> AsyncIterator[asyncio.Task[bool]]:
        task = asyncio.create_task(self.acquire())
        yield task
        task.cancel()
        await asyncio.wait({task})


async def writing(store: Documents, name: str = "first", place: str = "") -> Process:
    process = Process(store, name, place)
    await process.acquire()
    return process


def reason(error: pytest.ExceptionInfo[LikenessError]) -> str:
    return error.value.reason_name


async def test_the_first_one_writes_at_once_and_stays_the_writer() -> None:
    store = Documents()
    process = Process(store, "first")
    assert await process.acquire() is True
    for _ in range(100):
        await process.time.passes(1.0)
        process.lease.require()
    assert (store.last().term, store.last().beat >= 100) == (1, True)


async def test_a_second_writer_is_refused_and_told_who_writes() -> None:
    store = Documents()
    first, second = await writing(store), Process(store, "second")
    async with second.acquiring() as acquiring:
        for _ in range(3):
            await second.time.passes(1.0)
            await first.time.passes(1.0)
        with pytest.raises(LikenessError) as error:
            await acquiring
    assert reason(error) == "READ_ONLY"
    assert "process 7 on first, at here:1" in error.value.message
    first.lease.require()
    assert list(store.there) == ["Likeness.Writer.1"]


async def test_after_a_release_nobody_waits() -> None:
    store = Documents()
    first = await writing(store)
    await first.lease.release()
    second = Process(store, "second")
    assert await second.acquire() is True
    assert list(store.there) == ["Likeness.Writer.2"]
    with pytest.raises(LikenessError, match="stopping"):
        first.lease.require()


async def test_one_of_whom_something_may_still_be_done_is_followed_as_if_it_had_died() -> None:
    store = Documents()
    first, second = await writing(store), Process(store, "second")
    await first.lease.release(in_doubt=True)
    with pytest.raises(LikenessError, match="stopping"):
        first.lease.require()
    async with second.acquiring() as acquiring:
        await second.time.passes(LEASE_S)
        assert not acquiring.done()
        await second.time.passes(2.0)
        assert await acquiring is False, "it was no release"


async def test_a_release_while_another_waits_ends_its_waiting() -> None:
    store = Documents()
    first, second = await writing(store), Process(store, "second")
    async with second.acquiring() as acquiring:
        await settled()
        await first.lease.release()
        await second.time.passes(1.0)
        assert await acquiring is True


async def test_one_that_died_is_followed_after_its_lease_and_not_before() -> None:
    store = Documents()
    await writing(store)  # and its clock stands still from now on
    second = Process(store, "second")
    async with second.acquiring() as acquiring:
        await second.time.passes(LEASE_S)
        assert not acquiring.done()
        await second.time.passes(2.0)
        assert await acquiring is False, "it was no release"
    assert list(store.there) == ["Likeness.Writer.2"]


async def test_one_that_died_at_the_same_place_is_followed_at_once() -> None:
    store = Documents()
    await writing(store, "first", "machine and directory")
    second = Process(store, "second", "machine and directory")
    assert await second.acquire() is False
    assert store.last().holder.host == "second"


async def test_of_two_that_claim_at_once_one_wins() -> None:
    store = Documents()
    store.held = asyncio.Event()
    processes = [Process(store, "one"), Process(store, "two")]
    async with processes[0].acquiring() as one, processes[1].acquiring() as two:
        await settled()
        store.held.set()
        for _ in range(4):
            for process in processes:
                await process.time.passes(1.0)
        (won,) = [task for task in (one, two) if not task.exception()]
        (refused,) = [task for task in (one, two) if task.exception()]
        assert await won is True
        assert "READ_ONLY" in str(refused.exception())


async def test_of_two_that_wait_for_a_dead_one_one_wins() -> None:
    store = Documents()
    await writing(store, "dead")
    processes = [Process(store, "one"), Process(store, "two")]
    async with processes[0].acquiring() as one, processes[1].acquiring() as two:
        for _ in range(25):
            for process in processes:
                await process.time.passes(1.0)
        assert sorted(task.exception() is None for task in (one, two)) == [False, True]
    assert list(store.there) == ["Likeness.Writer.2"]


async def test_one_that_was_stopped_sees_the_higher_term_before_it_writes() -> None:
    store = Documents()
    first, second = await writing(store), Process(store, "second")
    async with second.acquiring() as acquiring:
        await second.time.passes(LEASE_S + 2.0)
        assert await acquiring is False
    first.time.stands_still_for(LEASE_S + 2.0)
    with pytest.raises(LikenessError) as uncertain:
        first.lease.require()
    assert reason(uncertain) == "STORE_UNAVAILABLE"
    with pytest.raises(LikenessError) as error:
        await first.lease.permit()
    assert reason(error) == "READ_ONLY"
    assert "process 7 on second" in error.value.message
    assert first.lost == ["process 7 on second, at here:1 has become the writer"]
    await second.lease.permit()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system decides what its clock counts")
async def test_by_itself_it_goes_by_a_clock_that_counts_what_the_machine_was_suspended_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, now = Documents(), {time.CLOCK_MONOTONIC: 50.0, time.CLOCK_BOOTTIME: 1000.0}
    monkeypatch.setattr(time, "clock_gettime", now.__getitem__)
    lost: list[str] = []

    async def on_lost(why: str) -> None:
        lost.append(why)

    first, second = Lease(store, dict, on_lost, sleep=PassingTime().sleep), Process(store, "second")
    await first.acquire(Holder("owner", "place", "first", 7, "here:1", LEASE_S))
    async with second.acquiring() as acquiring:
        await second.time.passes(LEASE_S + 2.0)
        assert await acquiring is False
    first.require()
    now[time.CLOCK_BOOTTIME] += LEASE_S + 2.0
    with pytest.raises(LikenessError) as uncertain:
        first.require()
    assert reason(uncertain) == "STORE_UNAVAILABLE"
    with pytest.raises(LikenessError) as error:
        await first.permit()
    assert reason(error) == "READ_ONLY"
    assert lost == ["process 7 on second, at here:1 has become the writer"]


async def test_one_that_is_suspended_after_a_look_looks_again_before_it_takes_over() -> None:
    store = Documents()
    first, second = await writing(store), Process(store, "second")
    answers, resumed = store.collections, asyncio.Event()

    async def held() -> list[StoredCollection]:
        found = await answers()
        await resumed.wait()
        return found

    async with second.acquiring() as acquiring:
        await settled()
        store.collections = held  # type: ignore[method-assign]
        await second.time.passes(1.0)
        store.collections = answers  # type: ignore[method-assign]
        second.time.stands_still_for(LEASE_S + 2.0)
        await first.time.passes(LEASE_S + 2.0)
        resumed.set()
        await second.time.passes(1.0)
        assert acquiring.done()
        assert "READ_ONLY" in str(acquiring.exception())
    assert first.lost == []
    assert list(store.there) == ["Likeness.Writer.1"]


async def test_one_that_was_stopped_and_not_followed_goes_on() -> None:
    store = Documents()
    first = await writing(store)
    first.time.stands_still_for(100.0)
    await first.lease.permit()
    first.lease.require()
    assert first.lost == []


async def test_while_chroma_is_away_nothing_is_written_and_afterwards_it_goes_on() -> None:
    store = Documents()
    first = await writing(store)
    store.away = True
    await first.time.passes(LEASE_S + 1.0)
    for refused in (first.lease.permit(), asyncio.to_thread(first.lease.require)):
        with pytest.raises(LikenessError) as error:
            await refused
        assert reason(error) == "STORE_UNAVAILABLE"
    store.away = False
    await first.lease.permit()
    first.lease.require()


async def test_a_write_needs_a_rest_of_the_lease() -> None:
    store = Documents()
    first = await writing(store)
    store.away = True
    first.time.stands_still_for(0.6 * LEASE_S)
    await first.lease.permit()
    first.time.stands_still_for(0.2 * LEASE_S)
    first.lease.require()
    with pytest.raises(LikenessError):
        await first.lease.permit()


async def test_a_failure_that_nobody_thought_of_does_not_end_the_renewing() -> None:
    store = Documents()
    first = await writing(store)
    answers = store.collections

    async def fails() -> list[StoredCollection]:
        raise RuntimeError("nobody thought of it")

    store.collections = fails  # type: ignore[method-assign]
    await first.time.passes(LEASE_S + 1.0)
    with pytest.raises(LikenessError, match="STORE_UNAVAILABLE"):
        first.lease.require()
    store.collections = answers  # type: ignore[method-assign]
    await first.time.passes(2.0)
    first.lease.require()


async def test_a_claim_without_an_answer_counts_if_it_is_there() -> None:
    store = Documents()
    store.silent = {"make"}
    process = await writing(store)
    process.lease.require()
    assert store.last().holder.host == "first"


async def test_a_renewal_at_the_last_moment_makes_the_next_one_wait_for_it() -> None:
    store = Documents()
    first, second = await writing(store), Process(store, "second")
    async with second.acquiring() as acquiring:
        store.held = asyncio.Event()
        await second.time.passes(LEASE_S + 2.0)  # now it has been told to make its term
        # The first one wakes and renews: its look for a higher term finds none, and its lease counts.
        first.time.stands_still_for(LEASE_S)
        await first.lease.permit()
        store.held.set()
        await settled()
        assert not acquiring.done()
        first.lease.require()
        for _ in range(int(LEASE_S) + 2):
            await second.time.passes(1.0)
        assert await acquiring is False
    await first.time.passes(1.0)
    assert len(first.lost) == 1


async def test_a_lease_that_was_deleted_in_chroma_is_lost() -> None:
    store = Documents()
    first = await writing(store)
    store.there.clear()
    await first.time.passes(2.0)
    assert first.lost == ["its lease was deleted in Chroma"]
    await first.lease.release()
    assert store.there == {}


async def test_a_document_that_cannot_be_read_holds_its_term() -> None:
    store = Documents()
    store.there["Likeness.Writer.4"] = StoredCollection("Likeness.Writer.4", "key", {"writer": "{"})
    process = Process(store, "next")
    async with process.acquiring() as acquiring:
        await process.time.passes(LEASE_S)
        assert not acquiring.done()
        await process.time.passes(2.0)
        await acquiring
    assert list(store.there) == ["Likeness.Writer.5"]


async def test_a_failure_to_drop_an_old_term_is_made_up_for() -> None:
    store = Documents()
    first = await writing(store)
    await first.lease.release()
    store.silent = {"drop"}
    second = Process(store, "second")
    await second.acquire()
    assert len(store.there) == 2
    store.silent = set()
    await second.time.passes(1.0)
    assert list(store.there) == ["Likeness.Writer.2"]


async def test_the_document_says_what_was_written() -> None:
    store = Documents()
    first = await writing(store)
    first.journal.wrote("uid", 40)
    first.journal.wrote("uid", 41, ["a", "é"])
    await first.time.passes(1.0)
    (published,) = store.last().collections.values()
    assert (published.stamp, published.count, published.again) == (41, 2, ("a", "é"))


def test_readers_are_told_which_ids_they_have_missed_or_that_they_have_missed_too_many() -> None:
    journal = Journal()
    journal.wrote("uid", 1, [f"id{i}" for i in range(300)])
    published = journal.published()["uid"]
    assert published.count == 300
    assert published.since(298) == ("id298", "id299")
    assert published.since(300) == ()
    assert published.since(44) == tuple(f"id{i}" for i in range(44, 300))
    assert published.since(43) is None
    assert published.since(301) is None, "another process counts anew"


def test_long_ids_do_not_make_the_document_long() -> None:
    journal = Journal()
    for uid in ("one", "two"):
        journal.wrote(uid, 1, [f"{i:0500d}" for i in range(256)])
    document = Heartbeat(1, Holder("", "", "", 1, "", 1.0), 1, False, journal.published())
    assert 20_000 < len(str(document.to_metadata())) < 40_000
    assert journal.published()["one"].since(255) == (f"{255:0500d}",)


def test_a_document_comes_back_as_it_was_written() -> None:
    collections = {"uid": Published("epoch", None, 3, ("a", '"\n', "𝄞"))}
    holder = Holder("owner", "place", "host", 3, "address", 2.5)
    document = Heartbeat(12, holder, 5, True, collections)
    other = StoredCollection("pictures", "k", {"likeness.schema": 2})
    stored = StoredCollection(document.name, "key", document.to_metadata())
    assert heartbeat.read([other, stored]) == [(document, stored)]


def test_a_reader_names_the_writer_if_it_knows_one(tmp_path: Path) -> None:
    document = Heartbeat(1, this_process(tmp_path, "10.0.0.1:50052", 15.0), 1)
    with pytest.raises(LikenessError, match=r"LIKENESS_ROLE=reader.*10\.0\.0\.1:50052") as error:
        ReadOnly(lambda: document, lambda: 0.0).require()
    assert reason(error) == "READ_ONLY"
    with pytest.raises(LikenessError, match="no writer is known"):
        ReadOnly(lambda: None, lambda: 0.0).require()


def test_a_place_is_a_directory_of_a_machine(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    here, again, there = (this_process(path, "", 1.0) for path in (tmp_path, tmp_path, tmp_path / "other"))
    assert here.place == again.place != there.place
    assert here.owner != again.owner
