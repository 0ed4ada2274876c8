"""Pictures given by a uri: several fetched at once, taken in order, and waited for while their host is unavailable."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, from_status
from gateway.fetch import Fetch
from tests.pictures import noise
from tests.unit.gateway.ingesting import WAIT_S, Desk, ingesting, item, sha256

AWAY = LikenessError(error_pb2.REASON_FETCH_UNAVAILABLE, "item.image.uri: status 503; try again", retry_after_s=5.0)


@dataclass
class Web:
    """What is behind uris: ``http://HOST/N`` is picture N; a host may be away, a uri may come late."""

    away: dict[str, int] = field(default_factory=dict)  # by host: how many more fetches find it away
    late: dict[str, asyncio.Event] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    under_way: set[str] = field(default_factory=set)
    most: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def get(self, uri: str) -> bytes:
        self.asked.append(uri)
        self.under_way.add(uri)
        self.most = max(self.most, len(self.under_way))
        self._changed.set()
        try:
            if uri in self.late:
                await self.late[uri].wait()
            host, name = uri.removeprefix("http://").split("/")
            if self.away.get(host, 0):
                self.away[host] -= 1
                raise AWAY
            if name == "missing":
                raise LikenessError(error_pb2.REASON_FETCH_FAILED, "item.image.uri: status 404")
            return noise(int(name))
        finally:
            self.under_way.remove(uri)
            self._changed.set()

    async def until(self, come: Callable[[], bool]) -> None:
        """Waits for something to be so after a fetch has begun or ended."""
        async with asyncio.timeout(WAIT_S):
            while not come():
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    made = Web()

    async def get(_fetch: Fetch, uri: str, name: str, timeout_s: float, max_bytes: int) -> bytes:
        assert (name, max_bytes) == ("item.image.uri", 2**25)
        try:
            async with asyncio.timeout(timeout_s):
                return await made.get(uri)
        except TimeoutError:
            raise LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, "too late") from None

    monkeypatch.setattr(Fetch, "__call__", get)
    return made


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with ingesting(tmp_path, thumbnails=False) as made:
        yield made


async def test_a_picture_given_by_a_uri_is_hashed_and_kept_as_it_was_fetched(desk: Desk, web: Web) -> None:
    told = await desk.index([item(0, uri="http://a/5"), item(1, uri="http://a/missing")])

    assert told.results[0].id == sha256(noise(5))
    assert desk.services.items[sha256(noise(5))]["uri"] == "http://a/5"
    final = from_status(told.results[1].error.status)
    assert (final.reason_name, final.retry_after_s) == ("FETCH_FAILED", None)
    assert Counter(web.asked)["http://a/missing"] == 1
    assert told.checkpoints[-1].items_done == 2


async def test_a_host_that_is_away_for_a_moment_costs_no_item(desk: Desk, web: Web) -> None:
    web.away = {"a": 2}

    told = await desk.index([item(0, uri="http://a/0")])

    assert told.results[0].HasField("stored")
    assert len(web.asked) == 3


async def test_a_host_that_stays_away_fails_its_items_alone_and_says_to_try_again(tmp_path: Path, web: Web) -> None:
    web.away = {"a": 1000}
    async with ingesting(tmp_path, ingest_call_s=0.5, thumbnails=False) as desk:
        stream = desk.open().start().send(item(0, uri="http://a/0"), item(1, uri="http://b/1"))
        await stream.told.until(lambda told: len(told.results) == 2)
        tries = len(web.asked)
        told = await stream.send(*(item(n, uri=f"http://a/{n}") for n in range(2, 12))).half_close().ended()

    error = from_status(told.results[0].error.status)
    assert (error.reason_name, error.retry_after_s) == ("FETCH_UNAVAILABLE", 5.0)
    assert told.results[1].HasField("stored")
    assert told.error is None
    assert tries == 3
    assert len(web.asked) == tries + 10  # once for each picture, now that it is known


async def test_a_picture_that_does_not_come_in_time_may_be_sent_again(tmp_path: Path, web: Web) -> None:
    web.late = {"http://a/0": asyncio.Event()}
    async with ingesting(tmp_path, ingest_call_s=0.3, thumbnails=False) as desk:
        told = await desk.index([item(0, uri="http://a/0"), item(1)])

    error = from_status(told.results[0].error.status)
    assert (error.reason_name, error.retry_after_s) == ("FETCH_UNAVAILABLE", 5.0)
    assert told.results[1].HasField("stored")


@pytest.mark.parametrize("by", ["stream", "batch"])
async def test_eight_pictures_are_fetched_at_once(desk: Desk, web: Web, by: str) -> None:
    uris = [f"http://a/{n}" for n in range(20)]
    gate = asyncio.Event()
    web.late = dict.fromkeys(uris, gate)
    items = [item(n, f"item-{n}", uri=uri) for n, uri in enumerate(uris)]

    taking = asyncio.ensure_future(desk.index(items) if by == "stream" else desk.batch(items))
    await web.until(lambda: len(web.under_way) == 8)
    gate.set()
    await asyncio.wait_for(taking, WAIT_S)

    assert web.most == 8
    assert desk.services.items.keys() == {f"item-{n}" for n in range(20)}


async def test_pictures_are_taken_in_the_order_sent_whatever_comes_first(tmp_path: Path, web: Web) -> None:
    web.late = {"http://a/0": asyncio.Event()}
    async with ingesting(tmp_path, ingest_batch_items=4, ingest_batches=1, thumbnails=False) as desk:
        stream = desk.open().start().send(item(0, "same", uri="http://a/0"), item(1, "same", uri="http://a/1"))
        stream.send(item(2, "other"), item(3, "last", uri="http://a/3")).half_close()
        await web.until(lambda: len(web.asked) == 3 and web.under_way == {"http://a/0"})
        assert stream.told.results == {}
        web.late["http://a/0"].set()
        told = await stream.ended()

    assert [told.results[n].WhichOneof("outcome") for n in range(4)] == ["stored"] * 4
    stored = [each.id for request in desk.services.asked("UpsertItems") for each in request.items]
    assert stored == ["same", "same", "other", "last"]
    assert desk.services.items["same"]["sha256"] == sha256(noise(1))


async def test_fetched_pictures_fill_the_window(tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    large = noise(0, (700, 700))
    assert len(large) * 8 > 2**20

    async def get(_fetch: Fetch, uri: str, *_rest: object) -> bytes:
        web.asked.append(uri)
        return large + uri.encode()

    monkeypatch.setattr(Fetch, "__call__", get)
    gate = asyncio.Event()
    async with ingesting(tmp_path, ingest_window_mb=1, thumbnails=False) as desk:
        upsert = desk.ingest.services.indexer.upsert

        async def held(request: object, timeout_s: float) -> None:
            await gate.wait()
            await upsert(request, timeout_s)  # type: ignore[arg-type]

        monkeypatch.setattr(desk.ingest.services.indexer, "upsert", held)
        stream = desk.open().start().send(*(item(n, f"item-{n}", uri=f"http://a/{n}") for n in range(40))).half_close()
        await asyncio.wait_for(desk.services.until_asked("Embed", 1), WAIT_S)
        for _ in range(100):
            await asyncio.sleep(0)
        most = len(web.asked)
        gate.set()
        told = await stream.ended()

    assert most <= 8
    assert len(told.results) == 40


async def test_a_message_out_of_order_lets_what_came_before_it_arrive(desk: Desk, web: Web) -> None:
    web.late = {"http://a/0": asyncio.Event()}
    stream = desk.open().start().send(item(0, "a", uri="http://a/0"), item(1, "b")).start()
    await web.until(lambda: len(web.under_way) == 1)
    web.late["http://a/0"].set()

    told = await stream.ended()

    assert told.error is not None
    assert told.error.reason_name == "FIELD_INVALID"
    assert {n: r.WhichOneof("outcome") for n, r in told.results.items()} == {0: "stored", 1: "stored"}


async def test_a_stop_does_not_wait_for_a_picture_that_is_being_fetched(desk: Desk, web: Web) -> None:
    web.late = {"http://a/1": asyncio.Event()}
    stream = desk.open().start().send(item(0, "a", uri="http://a/0"), item(1, "b", uri="http://a/1")).half_close()
    await stream.told.until(lambda told: 0 in told.results)

    desk.stopping.set()
    told = await stream.ended()

    assert told.error is not None
    assert told.error.reason_name == "SHUTTING_DOWN"
    assert told.results.keys() == {0}
    assert told.checkpoints[-1].items_done == 1
