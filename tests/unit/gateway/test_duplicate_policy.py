"""What the collection has already is skipped: by id, by picture, by likeness."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from likeness.common.v1 import error_pb2
from likeness.gateway.v1 import gateway_pb2

from chassis.errors import LikenessError
from gateway import duplicate_policy
from tests.pictures import noise
from tests.unit.gateway.behind import OTHER, vector
from tests.unit.gateway.ingesting import Desk, Told, ingesting, item, sha256

SKIP = gateway_pb2.EXISTING_POLICY_SKIP
EXISTS, EXACT, NEAR = (
    gateway_pb2.SKIP_REASON_EXISTS,
    gateway_pb2.SKIP_REASON_EXACT_DUPLICATE,
    gateway_pb2.SKIP_REASON_NEAR_DUPLICATE,
)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with ingesting(tmp_path) as made:
        yield made


def skips(told: Told) -> dict[int, tuple[int, str]]:
    """Reason and existing id of what was skipped, by sequence."""
    found = {n: r.skipped for n, r in told.results.items() if r.HasField("skipped")}
    return {n: (skipped.reason, skipped.existing_id) for n, skipped in found.items()}


def embedded(desk: Desk) -> int:
    """How many pictures the embedder was given."""
    return sum(len(request.inputs) for request in desk.services.asked("Embed"))


async def test_an_id_that_is_there_stays_as_it_is_and_is_not_embedded_again(desk: Desk) -> None:
    await desk.index([item(1, "cat")])
    told = await desk.index([item(2, "cat"), item(3, "dog")], existing=SKIP)

    assert skips(told) == {2: (EXISTS, "cat")}
    assert desk.services.items["cat"]["sha256"] == sha256(noise(1))
    assert embedded(desk) == 2


async def test_of_one_id_twice_in_a_stream_the_first_stays(desk: Desk) -> None:
    told = await desk.index([item(1, "cat"), item(2, "cat")], existing=SKIP)

    assert skips(told) == {2: (EXISTS, "cat")}
    assert desk.services.items["cat"]["sha256"] == sha256(noise(1))


async def test_unless_told_otherwise_an_id_that_is_there_is_replaced(desk: Desk) -> None:
    told = await desk.index([item(1, "cat"), item(2, "cat")])

    assert skips(told) == {}
    assert desk.services.items["cat"]["sha256"] == sha256(noise(2))


async def test_the_same_picture_under_another_id_is_skipped_before_it_is_embedded(desk: Desk) -> None:
    await desk.index([item(1, "cat")])
    told = await desk.index(
        [item(2, "copy", noise(1)), item(3, "cat", noise(1)), item(4, "dog")], skip_exact_duplicates=True
    )

    assert skips(told) == {2: (EXACT, "cat")}
    assert set(desk.services.items) == {"cat", "dog"}
    assert embedded(desk) == 3


async def test_copies_within_one_stream_are_skipped_once_the_first_is_stored(desk: Desk) -> None:
    told = await desk.index([item(n, f"copy-{n}", noise(7)) for n in range(40)], skip_exact_duplicates=True)

    assert skips(told) == dict.fromkeys(range(1, 40), (EXACT, "copy-0"))
    assert set(desk.services.items) == {"copy-0"}
    assert embedded(desk) == 1


async def test_a_copy_of_a_picture_that_was_refused_is_looked_at_itself(desk: Desk) -> None:
    bad = item(0, "bad", noise(7))
    bad.labels.append("")
    told = await desk.index(
        [bad, item(1, "b", noise(7)), item(2, "c", noise(7)), item(3, "d")], skip_exact_duplicates=True
    )

    assert told.results[0].HasField("error")
    assert skips(told) == {2: (EXACT, "b")}
    assert set(desk.services.items) == {"b", "d"}
    assert told.error is None


async def test_a_copy_of_what_was_skipped_for_its_id_is_not_skipped_for_it(desk: Desk) -> None:
    desk.services.put("cat", vector(1), sha256="another picture")
    told = await desk.index(
        [item(1, "cat", noise(7)), item(2, "copy", noise(7))], existing=SKIP, skip_exact_duplicates=True
    )

    assert skips(told) == {1: (EXISTS, "cat")}
    assert desk.services.items["copy"]["sha256"] == sha256(noise(7))


async def test_many_copies_in_the_collection_hide_no_other_picture(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicate_policy, "_PAGE", 3)
    for i in range(10):
        desk.services.put(f"a-{i}", vector(1), sha256=sha256(noise(1)))
    desk.services.put("b", vector(1), sha256=sha256(noise(2)))

    told = await desk.index([item(1, "x"), item(2, "y"), item(3, "z")], skip_exact_duplicates=True)

    assert skips(told).keys() == {1, 2}
    assert skips(told)[2] == (EXACT, "b")


def looks_like(desk: Desk, seed: int, *numbers: float) -> None:
    desk.services.meaning[noise(seed).decode("latin-1")] = vector(*numbers)


async def test_a_near_duplicate_is_skipped_and_told_with_its_score(desk: Desk) -> None:
    desk.services.put("cat", vector(1))
    looks_like(desk, 1, 1, 0.1)
    looks_like(desk, 2, 0, 1)

    told = await desk.index([item(1, "near"), item(2, "far")], skip_near_duplicates=0.97)

    skipped = told.results[1].skipped
    assert (skipped.reason, skipped.existing_id) == (NEAR, "cat")
    assert skipped.score == pytest.approx(1 / np.sqrt(1.01), abs=1e-5)
    assert set(desk.services.items) == {"cat", "far"}
    assert await desk.media.thumbnail("uid-images", "near", sha256(noise(1))) is None


async def test_near_duplicates_are_found_within_a_batch_and_from_one_batch_to_the_next(desk: Desk) -> None:
    for seed in range(100):
        looks_like(desk, seed, 1, 0.001 * seed)
    told = await desk.index([item(n, f"item-{n:02}") for n in range(100)], skip_near_duplicates=0.9)

    assert skips(told) == dict.fromkeys(range(1, 100), (NEAR, "item-00"))
    assert set(desk.services.items) == {"item-00"}


async def test_what_is_near_an_item_that_could_not_be_stored_is_not_called_a_duplicate(desk: Desk) -> None:
    for seed in range(3):
        looks_like(desk, seed, 1, 0.001 * seed)
    desk.services.fail["UpsertItems"] = LikenessError(error_pb2.REASON_INTERNAL, "no")

    told = await desk.index([item(n, f"item-{n}") for n in range(3)], skip_near_duplicates=0.9)

    assert told.error is not None
    assert told.results == {}


async def test_what_is_near_an_item_that_is_being_erased_is_stored(desk: Desk) -> None:
    for seed in range(4):
        looks_like(desk, seed, 1, 0.001 * seed)
    desk.services.erasing = {"item-0"}

    told = await desk.index([item(n, f"item-{n}") for n in range(4)], skip_near_duplicates=0.9)

    assert told.error is None
    assert told.results[0].error.reason == error_pb2.REASON_COLLECTION_BUSY
    assert told.results[1].HasField("stored")
    assert skips(told) == {2: (NEAR, "item-1"), 3: (NEAR, "item-1")}
    assert set(desk.services.items) == {"item-1"}


async def test_near_duplicates_that_are_both_there_are_skipped_for_each_other(desk: Desk) -> None:
    for seed in (1, 2):
        looks_like(desk, seed, 1, 0.001 * seed)
    pair = [item(1, "one"), item(2, "other")]
    await desk.index(pair)

    told = await desk.index(pair, skip_near_duplicates=0.9)

    assert skips(told) == {1: (NEAR, "other"), 2: (NEAR, "one")}


async def test_the_score_of_equal_vectors_is_1_at_most(desk: Desk) -> None:
    rng = np.random.default_rng(3)
    for seed in range(0, 64, 2):
        numbers = rng.normal(size=8)
        looks_like(desk, seed, *numbers)
        looks_like(desk, seed + 1, *numbers)

    told = await desk.index([item(n) for n in range(64)], skip_near_duplicates=0.999)

    scores = [result.skipped.score for result in told.results.values() if result.HasField("skipped")]
    assert len(scores) == 32
    assert max(scores) <= 1


async def test_vectors_of_another_model_are_not_compared(desk: Desk) -> None:
    desk.services.put("cat", vector(1))
    looks_like(desk, 1, 1)
    stream = desk.open().start(skip_near_duplicates=0.9)
    await stream.told.until(lambda told: told.answers)
    desk.services.model = OTHER

    told = await stream.send(item(1, "near")).half_close().ended()

    assert told.error is not None
    assert told.error.reason_name == "MODEL_MISMATCH"
    assert told.results == {}


async def test_an_item_is_no_near_duplicate_of_what_it_replaces(desk: Desk) -> None:
    desk.services.put("cat", vector(1))
    looks_like(desk, 1, 1, 0.01)

    told = await desk.index([item(1, "cat")], skip_near_duplicates=0.97)

    assert skips(told) == {}
    assert desk.services.items["cat"]["sha256"] == sha256(noise(1))
