"""Labels are added, removed, renamed and replaced, by ids and over a collection, and nothing else changes."""

import asyncio

import pytest
from likeness.common.v1.metadata_pb2 import OPERATOR_CONTAINS, Comparison, Filter, Value
from likeness.gateway.v1.gateway_pb2 import LabelList, LabelRename, UpdateLabelsRequest, UpdateLabelsResponse

from chassis.deadline import Deadline
from chassis.errors import LikenessError, invalid
from gateway.labels import Change, Labels
from tests.unit.gateway.behind import Behind, behind, vector


def request(**fields: object) -> UpdateLabelsRequest:
    return UpdateLabelsRequest(**fields)  # type: ignore[arg-type]


def rename(old: str, new: str) -> LabelRename:
    return LabelRename(**{"from": old}, to=new)


def has(label: str) -> Filter:
    return Filter(comparison=Comparison(key="labels", op=OPERATOR_CONTAINS, values=[Value(string_value=label)]))


def labels(services: Behind) -> dict[str, object]:
    return {item_id: metadata.get("labels", []) for item_id, metadata in services.items.items()}


async def update(services: Behind, changes: Labels, **fields: object) -> UpdateLabelsResponse:
    return await changes.update(request(**fields), Deadline(20))


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        ({"add": ["b", "c", "c"]}, ["a", "b"], ["a", "b", "c"]),
        ({"remove": ["a", "z"]}, ["a", "b"], ["b"]),
        ({"set": LabelList(labels=["x", "y", "x"])}, ["a"], ["x", "y"]),
        ({"set": LabelList()}, ["a"], []),
        ({"set": LabelList(labels=["x"]), "add": ["y"]}, ["a"], ["x", "y"]),
        ({"rename": [rename("a", "b")]}, ["a", "b", "c"], ["b", "c"]),
        ({"rename": [rename("a", "x"), rename("b", "y")], "remove": ["x"], "add": ["a"]}, ["a", "b"], ["y", "a"]),
    ],
)
def test_a_change_gives_the_labels_asked_for_and_the_same_again_when_repeated(
    change: dict[str, object], before: list[str], after: list[str]
) -> None:
    changed = Change.of(request(**change))

    assert changed(before) == after
    assert changed(changed(before)) == after


async def test_by_ids_only_what_differs_is_written_and_missing_ids_are_named() -> None:
    async with behind() as (services, _, indexer):
        services.put("a", vector(1), labels=["cat"], width=7)
        services.put("b", vector(1))
        answer = await update(services, Labels(indexer), ids=["b", "x", "a", "b"], add=["cat"])

        assert (answer.updated, answer.unchanged, list(answer.missing_ids)) == (1, 1, ["x"])
        assert services.items == {"a": {"labels": ["cat"], "width": 7}, "b": {"labels": ["cat"]}}
        assert [each.id for each in services.asked("UpdateMetadata")[0].updates] == ["b"]


async def test_an_item_deleted_between_reading_and_writing_is_missing() -> None:
    async with behind() as (services, _, indexer):
        services.put("a", vector(1))
        services.put("b", vector(1))
        services.vanish_before_write = {"a"}
        answer = await update(services, Labels(indexer), ids=["a", "b"], add=["cat"])

    assert (answer.updated, list(answer.missing_ids)) == (1, ["a"])


async def test_taking_the_last_label_away_leaves_none() -> None:
    async with behind() as (services, _, indexer):
        services.put("a", vector(1), labels=["cat"])
        await update(services, Labels(indexer), ids=["a"], remove=["cat"])

        assert labels(services) == {"a": []}


async def test_a_label_is_renamed_over_a_whole_collection_page_by_page() -> None:
    async with behind() as (services, _, indexer):
        for i in range(2500):
            services.put(f"{i:04}", vector(1), labels=["old" if i % 2 else "other"])
        answer = await update(services, Labels(indexer), all_items=True, rename=[rename("old", "new")])

        assert (answer.updated, answer.unchanged, answer.next_page_token) == (1250, 0, "")
        assert set(map(str, labels(services).values())) == {"['new']", "['other']"}
        assert len(services.asked("UpdateMetadata")) == 2  # pages of those that have the label


async def test_a_call_over_many_items_goes_on_where_it_stopped() -> None:
    async with behind() as (services, _, indexer):
        for i in range(25):
            services.put(f"{i:02}", vector(1), labels=["a"])
        changes = Labels(indexer)
        first = await update(services, changes, filter=has("a"), add=["b"], page_size=10)
        second = await update(
            services, changes, filter=has("a"), add=["b"], page_size=1000, page_token=first.next_page_token
        )

        assert (first.updated, second.updated, second.next_page_token) == (10, 15, "")
        assert set(map(str, labels(services).values())) == {"['a', 'b']"}


async def test_changes_at_the_same_time_lose_nothing() -> None:
    async with behind() as (services, _, indexer):
        services.put("a", vector(1))
        changes = Labels(indexer)
        await asyncio.gather(*(update(services, changes, ids=["a"], add=[f"{i:02}"]) for i in range(30)))

        assert sorted(services.items["a"]["labels"]) == [f"{i:02}" for i in range(30)]  # type: ignore[arg-type]


async def test_too_many_labels_on_one_item_are_refused_by_its_id() -> None:
    async with behind() as (services, _, indexer):
        services.put("full", vector(1), labels=[str(i) for i in range(256)])
        with pytest.raises(LikenessError) as caught:
            await update(services, Labels(indexer), ids=["full"], add=["x"])

    assert "'full'" in caught.value.message
    assert [violation.field for violation in caught.value.violations] == ["add"]


async def test_a_refused_page_token_is_said_to_be_none_of_this_rpc() -> None:
    async with behind() as (services, _, indexer):
        services.fail["ListItems"] = invalid("page_token", "'x' is none that ListItems gave")
        with pytest.raises(LikenessError, match="'x' is none that UpdateLabels gave"):
            await update(services, Labels(indexer), all_items=True, add=["b"], page_token="x")


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"ids": ["a"]}, "add"),
        ({"add": ["x"]}, "ids"),
        ({"add": ["x"], "ids": ["a"], "all_items": True}, "ids"),
        ({"add": ["x"], "ids": ["a"] * 1025}, "ids"),
        ({"add": ["x", ""], "ids": ["a"]}, "add[1]"),
        ({"add": ["x"], "remove": ["x"], "ids": ["a"]}, "remove"),
        ({"set": LabelList(labels=["x" * 5000]), "ids": ["a"]}, "set.labels[0]"),
        ({"set": LabelList(), "rename": [rename("a", "b")], "ids": ["a"]}, "rename"),
        ({"rename": [rename("a", "b"), rename("a", "c")], "ids": ["a"]}, "rename[1].from"),
        ({"rename": [rename("a", "b"), rename("b", "a")], "ids": ["a"]}, "rename[0].to"),
        ({"rename": [rename("", "b")], "ids": ["a"]}, "rename[0].from"),
        ({"add": ["x"], "all_items": True, "page_size": 10_001}, "page_size"),
        ({"add": ["x"], "ids": ["a"], "page_token": "t"}, "page_size"),
        ({"add": [str(i) for i in range(257)], "ids": ["a"]}, "add"),
    ],
)
async def test_a_bad_change_is_refused_by_the_name_of_its_field(fields: dict[str, object], where: str) -> None:
    async with behind() as (services, _, indexer):
        with pytest.raises(LikenessError) as caught:
            await update(services, Labels(indexer), **fields)

    assert [violation.field for violation in caught.value.violations] == [where]
    assert services.calls == []
