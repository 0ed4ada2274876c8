"""Callers' metadata is changed by id; what the gateway writes itself is not."""

import pytest
from likeness.common.v1 import error_pb2
from likeness.common.v1.metadata_pb2 import Metadata
from likeness.gateway.v1.gateway_pb2 import MetadataUpdate, UpdateMetadataRequest

from chassis.errors import LikenessError
from chassis.metadata import to_proto
from gateway.metadata_changes import to_indexer
from tests.unit.gateway.behind import behind, vector


def request(*updates: MetadataUpdate) -> UpdateMetadataRequest:
    return UpdateMetadataRequest(updates=updates)


async def test_keys_are_set_and_removed_and_the_others_stay() -> None:
    async with behind() as (services, _, indexer):
        services.put("a", vector(1), width=7, labels=["cat"], uri="file:///a.png", mood="calm", draft=True)
        services.put("b", vector(1), uri="file:///b.png")
        services.put("c", vector(1), uri="file:///c.png")
        changing = to_indexer(
            request(
                MetadataUpdate(id="a", set=to_proto({"mood": "wild", "year": 2020}), remove_keys=["draft", "nothing"]),
                MetadataUpdate(id="x", remove_keys=["mood"]),
                MetadataUpdate(id="b", uri="s3://bucket/b.png"),
                MetadataUpdate(id="c", uri=""),
            )
        )
        answer = await indexer.update_metadata(changing, 20)
        assert changing.collection == "images"
        assert (answer.updated, list(answer.missing_ids)) == (3, ["x"])
        assert services.items["a"] == {
            "width": 7,
            "labels": ["cat"],
            "uri": "file:///a.png",
            "mood": "wild",
            "year": 2020,
        }
        assert services.items["b"] == {"uri": "s3://bucket/b.png"}
        assert services.items["c"] == {}


@pytest.mark.parametrize(
    ("update", "reason", "words"),
    [
        (MetadataUpdate(set=to_proto({"width": 9})), "METADATA_INVALID", "key 'width' is written by the gateway"),
        (MetadataUpdate(set=to_proto({"labels": ["a"]})), "METADATA_INVALID", "labels are changed by UpdateLabels"),
        (MetadataUpdate(set=to_proto({"uri": "x"})), "METADATA_INVALID", "set the update's uri"),
        (MetadataUpdate(remove_keys=["mood", "sha256"]), "METADATA_INVALID", "key 'sha256' is written by the gateway"),
        (MetadataUpdate(), "FIELD_INVALID", "changes nothing"),
        (MetadataUpdate(set=Metadata()), "FIELD_INVALID", "changes nothing"),
        (MetadataUpdate(uri="é" * 2049), "FIELD_INVALID", "4098 bytes; at most 4096"),
    ],
)
def test_what_is_not_the_callers_to_change_is_refused_by_its_place(
    update: MetadataUpdate, reason: str, words: str
) -> None:
    good = MetadataUpdate(id="a", remove_keys=["mood"])
    with pytest.raises(LikenessError) as caught:
        to_indexer(request(good, update))
    (violation,) = caught.value.violations
    assert error_pb2.Reason.Name(caught.value.reason) == f"REASON_{reason}"
    assert violation.field.startswith("updates[1]")
    assert words in violation.description


@pytest.mark.parametrize(("count", "reason"), [(0, "FIELD_INVALID"), (1025, "BATCH_TOO_LARGE")])
def test_a_call_of_no_updates_or_too_many_is_refused_before_they_are_looked_at(count: int, reason: str) -> None:
    with pytest.raises(LikenessError, match="expected 1 to 1,024") as caught:
        to_indexer(request(*[MetadataUpdate()] * count))
    assert caught.value.reason_name == reason
