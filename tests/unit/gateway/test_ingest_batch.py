"""IndexBatch: the same as a stream, in one call, results in the order of the items."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from likeness.common.v1 import error_pb2
from likeness.gateway.v1 import gateway_pb2

from chassis.errors import LikenessError, from_status
from gateway import ingest_fetch
from gateway.fetch import Fetch
from tests.pictures import noise
from tests.unit.gateway.ingesting import UID, Desk, ingesting, item, sha256


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with ingesting(tmp_path) as made:
        yield made


async def test_results_come_in_the_order_of_the_items_whatever_their_numbers(desk: Desk) -> None:
    items = [item(7, "a"), item(7, "b", b"no picture"), item(0, "c"), item(7, "a", noise(9))]

    answer = await desk.batch(items)

    assert [(r.sequence, r.id, r.WhichOneof("outcome")) for r in answer.results] == [
        (7, "a", "stored"),
        (7, "b", "error"),
        (0, "c", "stored"),
        (7, "a", "stored"),
    ]
    assert desk.services.items["a"]["sha256"] == sha256(noise(9))
    assert (answer.collection, answer.created) == ("images", False)
    assert answer.fingerprint == desk.services.model
    assert await desk.media.thumbnail(UID, "c", sha256(noise(0))) is not None


async def test_an_error_names_the_field_in_the_batch(desk: Desk) -> None:
    desk.services.damaged.add(noise(2).decode("latin-1"))

    answer = await desk.batch([item(0, "a"), item(1, "b\n"), item(2, "c")])

    fields = [[v.field for v in from_status(r.error.status).violations] for r in answer.results[1:]]
    assert fields == [["items[1].id"], ["items[2].text"]]
    assert from_status(answer.results[1].error.status).message.startswith("items[1].id")


async def test_an_error_of_no_violations_names_the_field_in_the_batch_too(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def get(_fetch: Fetch, _uri: str, field: str, *_rest: object) -> bytes:
        raise LikenessError(error_pb2.REASON_FETCH_UNAVAILABLE, f"{field}: its host cannot be reached", (), 5.0)

    monkeypatch.setattr(Fetch, "__call__", get)
    monkeypatch.setattr(ingest_fetch, "growing_s", lambda _refused: 1e9)
    answer = await desk.batch([item(0), item(1, uri="http://unknown/")])

    error = from_status(answer.results[1].error.status)
    assert error.message == "items[1].image.uri: its host cannot be reached"
    assert error.retry_after_s == 5.0


async def test_a_batch_under_which_the_collection_is_made_anew_fails(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = desk.ingest.services.embedder.embed

    async def meanwhile(*args: Any, **more: Any) -> Any:
        desk.services.uids["images"] = "uid-anew"
        return await embed(*args, **more)

    monkeypatch.setattr(desk.ingest.services.embedder, "embed", meanwhile)
    with pytest.raises(LikenessError) as caught:
        await desk.batch([item(0, "a")])

    assert caught.value.reason_name == "COLLECTION_NOT_FOUND"
    assert desk.services.items == {}


async def test_keys_that_are_too_many_with_the_gateways_own_are_told_apart(desk: Desk) -> None:
    full = item(0)
    for n in range(64):
        full.metadata.fields[f"key{n}"].int_value = n

    error = from_status((await desk.batch([full])).results[0].error.status)

    assert error.reason_name == "METADATA_INVALID"
    assert error.message == "items[0].metadata: 64 keys, and 5 that the gateway adds; at most 64 are taken together"


async def test_duplicates_within_a_batch_are_skipped_as_in_a_stream(desk: Desk) -> None:
    answer = await desk.batch(
        [item(0, "a", noise(1)), item(1, "b", noise(1)), item(2, "a")],
        skip_exact_duplicates=True,
        existing=gateway_pb2.EXISTING_POLICY_SKIP,
    )

    assert [r.skipped.reason for r in answer.results] == [
        gateway_pb2.SKIP_REASON_UNSPECIFIED,
        gateway_pb2.SKIP_REASON_EXACT_DUPLICATE,
        gateway_pb2.SKIP_REASON_EXISTS,
    ]


@pytest.mark.parametrize(
    ("count", "reason"), [(0, error_pb2.REASON_FIELD_INVALID), (65, error_pb2.REASON_BATCH_TOO_LARGE)]
)
async def test_a_batch_of_none_or_too_many_is_refused(desk: Desk, count: int, reason: int) -> None:
    with pytest.raises(LikenessError) as caught:
        await desk.batch(item(n) for n in range(count))

    assert caught.value.reason == reason
    assert caught.value.violations[0].field == "items"


async def test_more_batches_than_there_are_places_are_refused(tmp_path: Path) -> None:
    async with ingesting(tmp_path, ingest_streams=1) as desk:
        desk.open().start()
        await desk.streams[0].told.until(lambda told: told.answers)

        with pytest.raises(LikenessError) as caught:
            await desk.batch([item(0)])

    assert caught.value.reason == error_pb2.REASON_OVERLOADED


async def test_a_busy_embedder_makes_a_batch_wait_and_fails_it_in_the_end(tmp_path: Path) -> None:
    async with ingesting(tmp_path, ingest_call_s=0.3) as desk:
        desk.services.fail["Embed"] = LikenessError(error_pb2.REASON_OVERLOADED, "busy", retry_after_s=0.1)

        with pytest.raises(LikenessError) as caught:
            await desk.batch([item(0)])

    assert caught.value.reason == error_pb2.REASON_OVERLOADED
    assert len(desk.services.asked("Embed")) > 1


async def test_a_batch_that_came_before_a_stop_is_seen_through(desk: Desk) -> None:
    desk.stopping.set()

    assert (await desk.batch([item(0)])).results[0].HasField("stored")
