"""Groups of equal and of nearly equal pictures are found whole, and nothing else is."""

import asyncio

import pytest
from likeness.common.v1 import error_pb2
from likeness.common.v1.metadata_pb2 import OPERATOR_EQ, Comparison, Filter, FilterList, Value
from likeness.gateway.v1.gateway_pb2 import FindDuplicatesRequest, FindDuplicatesResponse

from chassis.deadline import Deadline
from chassis.errors import LikenessError
from gateway import duplicates, streams
from gateway.backends import Indexer
from gateway.clusters import Clusters
from gateway.duplicates import FindDuplicates
from tests.unit.gateway.behind import behind, direction_of, vector


def finder(indexer: Indexer, stalled_s: float = 300) -> FindDuplicates:
    return FindDuplicates(indexer, asyncio.Event(), 20, asyncio.Semaphore(1), stalled_s)


async def look(find: FindDuplicates, **fields: object) -> list[FindDuplicatesResponse]:
    written: list[FindDuplicatesResponse] = []

    async def write(message: FindDuplicatesResponse) -> None:
        written.append(message)

    await find(FindDuplicatesRequest(**fields), write, Deadline(20))  # type: ignore[arg-type]
    return written


def groups(messages: list[FindDuplicatesResponse]) -> list[list[str]]:
    return [[each.item.id for each in group.items] for message in messages for group in message.groups]


async def test_items_of_one_hash_are_a_group_and_no_vector_is_read() -> None:
    async with behind() as (services, _, indexer):
        for item_id, sha256 in (("a", "1"), ("b", "2"), ("c", "1"), ("d", "3"), ("e", "2"), ("f", "1")):
            services.put(item_id, direction_of(item_id), sha256=sha256, labels=[item_id])
        services.put("without", vector(1))
        messages = await look(finder(indexer))

    assert groups(messages) == [["a", "c", "f"], ["b", "e"]]
    assert (messages[-1].done, messages[-1].total) == (5, 5)
    shown = next(message for message in messages if message.groups).groups[0]
    assert (list(shown.items[1].item.labels), shown.items[1].score, shown.count) == (["c"], 1, 3)
    assert not any(request.fields.vector for name, request in services.calls if name in ("ListItems", "GetItems"))
    assert not services.asked("Query")


async def test_more_repeated_hashes_than_facets_tell_are_found_by_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_FACET_VALUES", 2)
    monkeypatch.setattr(duplicates, "_PAGE", 4)
    async with behind() as (services, _, indexer):
        for i in range(13):
            services.put(f"{i:02}", vector(1), sha256=str(i % 5))
        messages = await look(finder(indexer))

    assert groups(messages) == [
        ["00", "05", "10"], ["01", "06", "11"], ["02", "07", "12"], ["03", "08"], ["04", "09"]
    ]  # fmt: skip
    assert messages[-1].done == 13


async def test_a_filter_as_deep_as_any_may_be_is_taken_beside_the_hashes() -> None:
    deepest = Filter(comparison=Comparison(key="n", op=OPERATOR_EQ, values=[Value(int_value=1)]))
    for _ in range(15):
        deepest = Filter(all_of=FilterList(filters=[deepest]))
    async with behind() as (services, _, indexer):
        for item_id, n in (("a", 1), ("b", 1), ("c", 2)):
            services.put(item_id, vector(1), sha256="same", n=n)
        messages = await look(finder(indexer), filter=deepest)

    assert groups(messages) == [["a", "b"]]


async def test_a_group_shows_its_first_items_and_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_GROUP", 3)
    async with behind() as (services, _, indexer):
        for i in range(5):
            services.put(str(i), vector(1), sha256="same")
        messages = await look(finder(indexer))

    assert groups(messages) == [["0", "1", "2"]]
    assert messages[-1].groups[0].count == 5


async def test_a_message_is_cut_by_its_bytes_and_counts_stay_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_BYTES", 4000)
    async with behind() as (services, _, indexer):
        for i in range(6):  # three of them fit
            services.put(f"large {i}", vector(1), sha256="0", text="x" * 1000)
        for i in range(4):
            services.put(f"small {i}", vector(1), sha256=str(1 + i // 2), text="x" * 1000)
        messages = await look(finder(indexer))

    assert groups(messages) == [["large 0", "large 1", "large 2"], ["small 0", "small 1"], ["small 2", "small 3"]]
    assert [group.count for message in messages for group in message.groups] == [6, 2, 2]
    assert max(message.ByteSize() for message in messages) <= 4000 + 100


def test_the_largest_items_of_a_group_fit_into_a_message() -> None:
    metadata_and_vector = 64 * 2**10 + 4 * 4096
    assert duplicates.MAX_GROUP * metadata_and_vector < streams.MAX_BYTES


async def test_near_duplicates_are_joined_through_each_other_and_tell_their_best_score() -> None:
    async with behind() as (services, _, indexer):
        services.put("a", vector(1))
        services.put("b", vector(1, 0.1))
        services.put("c", vector(1, 0.2))
        services.put("far", vector(0, 0, 0, 1))
        messages = await look(finder(indexer), min_score=0.99, neighbors=1)

    assert groups(messages) == [["a", "b", "c"]]  # a and c are less alike than 0.99
    scores = {each.item.id: each.score for message in messages for group in message.groups for each in group.items}
    assert scores["a"] == pytest.approx(1 / 1.01**0.5)
    assert scores["b"] == max(scores["a"], scores["c"])
    assert (messages[-1].done, messages[-1].total) == (4, 4)


async def test_progress_comes_on_the_way_and_each_item_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_QUERIES", 10)
    async with behind() as (services, _, indexer):
        for i in range(35):
            services.put(f"{i:02}", direction_of(str(i)))
        messages = await look(finder(indexer), min_score=0.999999)

    assert [message.done for message in messages[:4]] == [10, 20, 30, 35]
    asked = [each.examples[0].id for call in services.asked("Query") for each in call.queries]
    assert asked == [f"{i:02}" for i in range(35)]
    assert groups(messages) == []


@pytest.mark.parametrize("fields", [{}, {"min_score": 0.9}])
async def test_a_filter_leaves_others_out(fields: dict[str, object]) -> None:
    mine = Filter(comparison=Comparison(key="owner", op=OPERATOR_EQ, values=[Value(string_value="me")]))
    async with behind() as (services, _, indexer):
        services.put("a", vector(1), sha256="1", owner="me")
        services.put("b", vector(1), sha256="1", owner="you")
        services.put("c", vector(1), sha256="1", owner="me")
        messages = await look(finder(indexer), filter=mine, **fields)

    assert groups(messages) == [["a", "c"]]


async def test_a_stopping_gateway_ends_the_stream() -> None:
    async with behind() as (services, _, indexer):
        services.put("a", vector(1))
        find = finder(indexer)
        find.stopping.set()
        with pytest.raises(LikenessError) as caught:
            await look(find, min_score=0.9)

    assert caught.value.reason == error_pb2.REASON_SHUTTING_DOWN


async def test_more_streams_than_allowed_are_told_to_come_again() -> None:
    async with behind() as (_, _, indexer):
        find = finder(indexer)
        async with find.streams:
            with pytest.raises(LikenessError) as caught:
                await look(find)

    assert caught.value.reason == error_pb2.REASON_OVERLOADED
    assert caught.value.retry_after_s is not None


async def test_a_client_that_reads_nothing_loses_its_stream_and_the_next_one_gets_its_place() -> None:
    async def never(_message: FindDuplicatesResponse) -> None:
        await asyncio.Event().wait()

    async with behind() as (services, _, indexer):
        services.put("a", vector(1))
        find = finder(indexer, stalled_s=0.01)
        with pytest.raises(LikenessError) as caught:
            await find(FindDuplicatesRequest(), never, Deadline(20))
        assert await look(find)

    assert caught.value.reason == error_pb2.REASON_DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"min_score": float("nan")}, "min_score"),
        ({"min_score": 0.9, "neighbors": 101}, "neighbors"),
        ({"neighbors": 5}, "neighbors"),
    ],
)
async def test_a_bad_request_is_refused_by_the_name_of_its_field(fields: dict[str, object], where: str) -> None:
    async with behind() as (services, _, indexer):
        with pytest.raises(LikenessError) as caught:
            await look(finder(indexer), **fields)

    assert [violation.field for violation in caught.value.violations] == [where]
    assert services.calls == []


def test_what_is_remembered_is_bounded() -> None:
    clusters = Clusters(most=3)
    clusters.join("a", "b", 0.9)
    clusters.join("b", "c", 0.8)
    with pytest.raises(LikenessError) as caught:
        clusters.join("c", "d", 0.8)

    assert caught.value.reason == error_pb2.REASON_BATCH_TOO_LARGE
    assert clusters.groups() == [[("a", 0.9), ("b", 0.9), ("c", 0.8)]]
