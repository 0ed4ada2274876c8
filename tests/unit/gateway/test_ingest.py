"""An ingest stream: checkpoints, resuming, back-off, patience, media; over in-process services."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from likeness.common.v1 import error_pb2, types_pb2
from likeness.gateway.v1 import gateway_pb2

from chassis import calls
from chassis.errors import LikenessError, from_status
from chassis.keys import Limits
from chassis.quota import Allowance
from gateway import checkpoints, ingest_stream, picture_facts
from gateway.checkpoints import Checkpoint
from gateway.fetch import Fetch
from gateway.ingest import Patience
from gateway.ingest_fetch import PatientFetch
from tests.pictures import noise
from tests.unit.gateway.behind import direction_of
from tests.unit.gateway.ingesting import UID, Desk, ingesting, item, sha256

BUSY = LikenessError(error_pb2.REASON_OVERLOADED, "busy", retry_after_s=0.3)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with ingesting(tmp_path) as made:
        yield made


def reason(error: LikenessError | None) -> str:
    return "" if error is None else error.reason_name


async def test_every_item_is_answered_and_a_last_checkpoint_counts_them_all(desk: Desk) -> None:
    told = await desk.index(item(n, f"item-{n}") for n in range(10))

    assert told.error is None
    assert {n: r.WhichOneof("outcome") for n, r in told.results.items()} == dict.fromkeys(range(10), "stored")
    assert Checkpoint.read(told.checkpoints[-1].resume_token, "") == Checkpoint(UID, 10)
    assert told.checkpoints[-1].items_done == 10
    assert told.answers[-1].HasField("checkpoint")


async def test_a_checkpoint_comes_every_256_items_and_while_the_client_waits(desk: Desk) -> None:
    stream = desk.open().start().send(*(item(n % 3, f"item-{n}", noise(n % 3)) for n in range(300)))
    found = stream.told
    await found.until(lambda told: told.checkpoints and told.checkpoints[-1].items_done == 300)

    assert found.checkpoints[0].items_done <= 256
    done = [c.items_done for c in found.checkpoints]
    assert done == sorted(set(done))


async def test_a_checkpoint_does_not_pass_an_item_that_has_no_result(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.01)
    gate, entered = asyncio.Event(), asyncio.Event()
    upsert = desk.ingest.services.indexer.upsert

    async def held(request: object, timeout_s: float) -> None:
        if any(each.id == "slow" for each in request.items):  # type: ignore[attr-defined]
            entered.set()
            await gate.wait()
        await upsert(request, timeout_s)  # type: ignore[arg-type]

    monkeypatch.setattr(desk.ingest.services.indexer, "upsert", held)
    stream = desk.open().start().send(item(0, "fast"))
    await stream.told.until(lambda told: told.checkpoints)
    stream.send(item(1, "slow"))
    await asyncio.wait_for(entered.wait(), 30)
    stream.send(item(2, "later"), item(3, "latest"))
    await stream.told.until(lambda told: {2, 3} <= told.results.keys())
    assert [c.items_done for c in stream.told.checkpoints] == [1]

    gate.set()
    stream.half_close()

    assert (await stream.ended()).checkpoints[-1].items_done == 4


async def test_a_stream_goes_on_where_another_was(desk: Desk) -> None:
    first = await desk.index([item(0, "a"), item(1, "b")])
    second = await desk.index([item(2, "c")], token=first.checkpoints[-1].resume_token)

    assert (first.started.items_done, second.started.items_done) == (0, 2)
    assert second.checkpoints[-1].items_done == 3


async def test_a_token_of_another_collection_or_one_made_anew_is_stale(desk: Desk) -> None:
    desk.services.collections["other"] = desk.services.model
    token = (await desk.index([item(0)])).checkpoints[-1].resume_token

    other = await desk.open().start("other", token).ended()
    gone = await desk.open().start("missing", token).ended()
    nonsense = await desk.open().start(token="nonsense").ended()

    assert [reason(told.error) for told in (other, gone, nonsense)] == [
        "RESUME_TOKEN_STALE",
        "RESUME_TOKEN_STALE",
        "FIELD_INVALID",
    ]


async def test_while_the_embedder_is_busy_the_client_is_told_and_nothing_more_is_read(desk: Desk) -> None:
    desk.services.fail["Embed"] = BUSY
    stream = desk.open().start().send(item(0, "first"))
    await stream.told.until(lambda told: told.backoffs)
    taken = stream.taken
    stream.send(*(item(n, f"item-{n}") for n in range(1, 50)))
    await stream.told.until(lambda told: len(told.backoffs) >= 2)

    assert stream.taken - taken <= 1  # one that was being waited for when the first back-off began
    assert stream.told.backoffs[0] == pytest.approx(0.3)
    assert stream.told.results == {}

    del desk.services.fail["Embed"]
    told = await stream.half_close().ended()
    assert told.error is None
    assert len(told.results) == 50


async def test_a_service_that_stays_busy_ends_the_stream(tmp_path: Path) -> None:
    async with ingesting(tmp_path, ingest_call_s=0.5) as desk:
        desk.services.fail["UpsertItems"] = BUSY
        told = await desk.index([item(0, "a")])

    assert reason(told.error) == "OVERLOADED"
    assert told.results == {}
    assert told.checkpoints == []
    assert told.backoffs


async def test_a_key_whose_rate_is_used_up_makes_the_stream_wait_and_fails_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowance = Allowance(Limits(rate_per_s=4, burst=1))
    monkeypatch.setattr(calls, "allowance", lambda: allowance)
    began = time.monotonic()

    told = await desk.index(item(n, f"item-{n}") for n in range(5))

    assert told.error is None
    assert len(told.results) == 5
    assert len(told.backoffs) >= 3
    assert time.monotonic() - began >= 0.7  # the first is in the burst, the last may be read before it is earned


async def test_a_stop_ends_a_back_off_and_what_was_read_is_answered(desk: Desk) -> None:
    desk.services.fail["Embed"] = LikenessError(error_pb2.REASON_OVERLOADED, "busy", retry_after_s=100)
    stream = desk.open().start().send(item(0, "first"))
    await stream.told.until(lambda told: told.backoffs)

    del desk.services.fail["Embed"]
    desk.stopping.set()

    told = await stream.ended()
    assert reason(told.error) == "SHUTTING_DOWN"
    assert told.results[0].HasField("stored")
    assert told.checkpoints[-1].items_done == 1


async def test_a_stop_ends_a_wait_for_the_rate_and_no_more_is_read(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    allowance = Allowance(Limits(rate_per_s=0.01, burst=1))
    monkeypatch.setattr(calls, "allowance", lambda: allowance)
    stream = desk.open().start().send(item(0, "first"), item(1, "second"), item(2, "third"))
    await stream.told.until(lambda told: told.backoffs and told.results)

    desk.stopping.set()

    told = await stream.ended()
    assert reason(told.error) == "SHUTTING_DOWN"
    assert told.checkpoints[-1].items_done == len(told.results) < 3
    assert stream.taken == 2


async def test_items_that_are_being_erased_are_refused_alone_and_can_be_sent_again(desk: Desk) -> None:
    desk.services.erasing = {"item-3", "item-7"}
    told = await desk.index([item(n, f"item-{n}") for n in range(10)])

    assert told.error is None
    refused = {n: result.error for n, result in told.results.items() if result.HasField("error")}
    assert set(refused) == {3, 7}
    assert from_status(refused[3].status).retry_after_s == 5.0
    assert set(desk.services.items) == {f"item-{n}" for n in range(10)} - desk.services.erasing


async def test_an_item_that_fits_into_no_message_is_refused_alone(tmp_path: Path) -> None:
    async with ingesting(tmp_path) as desk:
        desk.services.max_message_bytes = 2**20
        large = gateway_pb2.IndexItem(sequence=1, id="large")
        large.image.rgb.width, large.image.rgb.height, large.image.rgb.pixels = 600, 600, bytes(600 * 600 * 3)
        told = await desk.index([item(0, "a"), large, item(2, "c")])

    assert told.error is None
    refused = from_status(told.results[1].error.status)
    assert refused.reason_name == "IMAGE_TOO_LARGE"
    assert refused.message.startswith("item.image: 1,080,0")
    assert set(desk.services.items) == {"a", "c"}


async def test_a_stream_without_a_start_in_time_is_ended(tmp_path: Path) -> None:
    async with ingesting(tmp_path, Patience(start_s=0.05)) as desk:
        told = await desk.open().ended()

    assert reason(told.error) == "DEADLINE_EXCEEDED"


async def test_a_stream_without_an_item_for_too_long_is_ended_and_says_how_far_it_is(tmp_path: Path) -> None:
    async with ingesting(tmp_path, Patience(idle_s=0.5)) as desk:
        told = await desk.open().start().send(item(0)).ended()

    assert reason(told.error) == "DEADLINE_EXCEEDED"
    assert told.checkpoints[-1].items_done == 1


async def test_a_stream_whose_results_nobody_takes_is_ended(tmp_path: Path) -> None:
    async with ingesting(tmp_path, Patience(unread_s=0.05)) as desk:
        stuck = asyncio.Event()

        async def requests() -> AsyncIterator[gateway_pb2.IndexImagesRequest]:
            yield gateway_pb2.IndexImagesRequest(start=gateway_pb2.IndexStart())
            yield gateway_pb2.IndexImagesRequest(item=item(0))
            await asyncio.Event().wait()

        async def write(answer: gateway_pb2.IndexImagesResponse) -> None:
            if answer.HasField("result"):
                await stuck.wait()

        with pytest.raises(LikenessError) as caught:
            await asyncio.wait_for(desk.ingest(requests(), write), 30)

    assert caught.value.reason_name == "DEADLINE_EXCEEDED"


async def test_an_alias_that_is_moved_meanwhile_changes_nothing_for_the_stream(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = desk.ingest.services.indexer.collection

    async def through_alias(name: str, timeout_s: float) -> object:
        return await collection("images" if name == "current" else name, timeout_s)

    monkeypatch.setattr(desk.ingest.services.indexer, "collection", through_alias)
    told = await desk.open().start("current").send(item(0, "a")).half_close().ended()

    assert told.started.collection == "images"
    assert [request.collection for request in desk.services.asked("UpsertItems")] == ["images"]


async def test_a_stream_does_not_go_on_into_a_collection_that_was_made_anew(desk: Desk) -> None:
    stream = desk.open().start(keep_originals=True).send(item(0, "a"))
    await stream.told.until(lambda told: 0 in told.results)
    desk.services.uids["images"] = "uid-anew"
    told = await stream.send(item(1, "b")).half_close().ended()

    assert reason(told.error) == "COLLECTION_NOT_FOUND"
    assert told.results.keys() == {0}
    assert told.checkpoints[-1].items_done == 1
    assert "b" not in desk.services.items
    assert await desk.media.original("uid-anew", "b", sha256(noise(1))) is None


@pytest.mark.parametrize(
    "options", [{"existing": gateway_pb2.EXISTING_POLICY_SKIP}, {"skip_near_duplicates": 0.9}], ids=["id", "near"]
)
async def test_nothing_is_skipped_for_what_a_collection_made_anew_holds(desk: Desk, options: dict[str, object]) -> None:
    stream = desk.open().start(**options)  # type: ignore[arg-type]
    await stream.told.until(lambda told: told.answers)
    desk.services.uids["images"] = "uid-anew"
    desk.services.put("a" if "existing" in options else "other", direction_of(noise(0).decode("latin-1")))
    told = await stream.send(item(0, "a")).half_close().ended()

    assert reason(told.error) == "COLLECTION_NOT_FOUND"
    assert told.results == {}


async def test_stored_items_have_thumbnails_and_refused_ones_have_none(desk: Desk) -> None:
    desk.services.damaged.add(noise(1).decode("latin-1"))
    told = await desk.index([item(0, "good"), item(1, "bad")], keep_originals=True)

    assert told.results[1].HasField("error")
    assert await desk.media.thumbnail(UID, "good", sha256(noise(0))) is not None
    assert await desk.media.original(UID, "good", sha256(noise(0))) == noise(0)
    assert await desk.media.thumbnail(UID, "bad", sha256(noise(1))) is None


async def test_no_thumbnail_is_made_for_who_wants_none(desk: Desk) -> None:
    await desk.index([item(0, "a")], no_thumbnails=True)

    assert "a" in desk.services.items
    assert await desk.media.thumbnail(UID, "a", sha256(noise(0))) is None


async def test_media_that_cannot_be_written_end_the_stream_and_nothing_is_stored(tmp_path: Path) -> None:
    where = tmp_path / "media"
    where.write_bytes(b"no folder")
    async with ingesting(where) as desk:
        told = await desk.index([item(0, "a")])
        items = dict(desk.services.items)

    assert reason(told.error) == "MEDIA_UNAVAILABLE"
    assert told.error is not None
    assert told.error.retry_after_s
    assert (told.results, items) == ({}, {})


async def test_a_uri_is_refused_alone_where_nothing_is_fetched(desk: Desk) -> None:
    told = await desk.index([item(0, uri="http://192.0.2.1/a.jpg"), item(1, "good")])

    error = told.results[0].error
    assert error.reason == error_pb2.REASON_FETCH_DISABLED
    assert told.results[1].HasField("stored")


async def test_what_a_known_failure_hides_is_logged(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[BaseException] = []

    def incident(_event: str, error: BaseException) -> LikenessError:
        seen.append(error)
        return LikenessError(error_pb2.REASON_INTERNAL, "")

    monkeypatch.setattr(ingest_stream, "incident", incident)
    fault, failing = ZeroDivisionError("a fault of ours"), asyncio.Event()

    async def upsert(_request: object, _timeout_s: float) -> None:
        failing.set()
        raise fault

    async def write(answer: gateway_pb2.IndexImagesResponse) -> None:
        if answer.HasField("result"):  # nobody takes it, just when the other item meets the fault
            try:
                await asyncio.Event().wait()
            finally:
                raise LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, "no reader")

    async def requests() -> AsyncIterator[gateway_pb2.IndexImagesRequest]:
        yield gateway_pb2.IndexImagesRequest(start=gateway_pb2.IndexStart())
        yield gateway_pb2.IndexImagesRequest(item=item(0, picture=b"no picture"))
        yield gateway_pb2.IndexImagesRequest(item=item(1))

    monkeypatch.setattr(desk.ingest.services.indexer, "upsert", upsert)
    with pytest.raises(LikenessError) as caught:
        await asyncio.wait_for(desk.ingest(requests(), write), 30)

    assert caught.value.reason_name == "DEADLINE_EXCEEDED"
    assert failing.is_set()
    (hidden,) = seen
    assert isinstance(hidden, ExceptionGroup)
    assert hidden.subgroup(lambda each: each is fault) is not None


async def test_a_picture_whose_host_redirects_to_nonsense_is_refused_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def redirected(*_: object) -> str:
        return "http://["

    monkeypatch.setattr(Fetch, "_ask", redirected)
    items = [item(0, "away", uri="http://pictures.example/a.jpg"), item(1, "good")]
    async with ingesting(tmp_path, fetch=True) as desk:
        told = await desk.index(items)
        batch = await desk.batch(items)

    assert told.error is None
    assert told.results[0].error.reason == error_pb2.REASON_FETCH_FAILED
    assert told.results[1].HasField("stored")
    assert batch.results[0].error.reason == error_pb2.REASON_FETCH_FAILED
    assert batch.results[1].HasField("stored")


@pytest.mark.parametrize("where", ["fetching", "reading"])
async def test_a_fault_of_ours_at_one_item_is_that_items_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async def fetch(_: object, uri: str) -> bytes:
        if where == "fetching":
            raise ZeroDivisionError
        return b"odd"

    read = picture_facts.read

    def reading(image: types_pb2.Image, *more: object) -> object:
        if image.encoded == b"odd":
            raise ZeroDivisionError
        return read(image, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(PatientFetch, "__call__", fetch)
    monkeypatch.setattr(picture_facts, "read", reading)
    async with ingesting(tmp_path) as desk:
        told = await desk.index([item(0, "odd", uri="http://pictures.example/a.jpg"), item(1, "good")])

    assert told.error is None
    assert told.results[0].error.reason == error_pb2.REASON_INTERNAL
    assert "incident" in told.results[0].error.status.message
    assert told.results[1].HasField("stored")
    assert told.checkpoints[-1].items_done == 2
