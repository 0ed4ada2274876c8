"""Which calls are logged when they succeed, and what of them."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from likeness.common.v1 import error_pb2
from likeness.common.v1.metadata_pb2 import Comparison, Filter
from likeness.indexer.v1 import indexer_pb2
from structlog.testing import capture_logs

from chassis import calls as chassis_calls
from chassis.audit import fields, where_filtered
from chassis.calls import Calls
from chassis.errors import LikenessError
from chassis.guard import Guard, Rpc
from chassis.keys import Keys, Scope
from chassis.readiness import Readiness
from tests.unit.chassis.guarded import keys_file

DELETE, QUERY = "/likeness.test.v1.TestService/DeleteCollection", "/likeness.test.v1.TestService/Query"
REQUEST = indexer_pb2.DeleteCollectionRequest(name="photos")


def test_what_a_table_takes_is_named_cut_and_counted() -> None:
    take = fields("collection", "ids", "delete_snapshots")
    request = indexer_pb2.EraseItemsRequest(collection="c" * 10_000, ids=["a", "b"], delete_snapshots=True)
    assert take(request) == {"collection": "c" * 512, "ids": 2, "delete_snapshots": True}
    assert take(indexer_pb2.EraseItemsRequest()) == {}
    assert fields(collection="name")(REQUEST) == {"collection": "photos"}


def test_a_deletion_by_filter_is_recorded_without_the_filter_and_one_by_ids_is_not() -> None:
    take = where_filtered(fields("collection"))
    some = Filter(comparison=Comparison(key="owner"))
    assert take(indexer_pb2.DeleteItemsRequest(collection="c", filter=some)) == {"collection": "c", "filter": True}
    assert take(indexer_pb2.DeleteItemsRequest(collection="c", ids=["a"])) is None


def peer() -> str:
    return "ipv4:192.0.2.1:5000"


async def answered(calls: Calls, method: str, request: Any, *metadata: tuple[str, str], **more: object) -> None:
    """A call that succeeds, in which more may be said."""
    call = calls.admit(method, metadata, "grpc")
    call.peer = peer
    async with call.under_way(None):
        call.received(request)
        if more:
            await asyncio.create_task(touching(more))
    call.end()


async def touching(what: dict[str, object]) -> None:
    chassis_calls.touch(**what)


async def ready(**told: Any) -> Calls:
    readiness = Readiness("test")
    await readiness.set(True, "test")
    return Calls(readiness, records={DELETE: fields(collection="name")}, **told)


async def test_a_recorded_call_that_succeeds_is_logged_at_info_with_key_and_what_it_touched(tmp_path: Path) -> None:
    keys = Keys(keys_file(tmp_path / "keys", ops="secret:admin"), "")
    calls = await ready(guard=Guard(keys, {DELETE: Rpc(Scope.ADMIN)}))
    with capture_logs() as lines:
        await answered(calls, DELETE, REQUEST, ("x-api-key", "secret"))
    (line,) = lines
    assert (line["log_level"], line["event"], line["method"], line["code"]) == ("info", "call", DELETE, "OK")
    assert (line["key"], line["touched"], line["peer"]) == ("ops", {"collection": "photos"}, peer())


async def test_any_other_call_that_succeeds_is_not() -> None:
    calls = await ready()
    with capture_logs() as lines:
        await answered(calls, QUERY, indexer_pb2.QueryRequest(collection="photos"))
    assert [line for line in lines if line["log_level"] != "debug" or {"touched", "peer"} & set(line)] == []


async def test_what_turns_out_on_the_way_is_told_beside_and_has_a_call_recorded_by_itself() -> None:
    calls = await ready()
    with capture_logs() as lines:
        await answered(calls, DELETE, REQUEST, deleted=7)
        await answered(calls, QUERY, indexer_pb2.QueryRequest(), collection="made", created=True)
    assert [(line["log_level"], line["touched"], line["peer"]) for line in lines] == [
        ("info", {"collection": "photos", "deleted": 7}, peer()),
        ("info", {"collection": "made", "created": True}, peer()),
    ]
    chassis_calls.touch(deleted=1)  # for no call: of no effect


async def test_one_that_fails_says_what_it_was_to_touch() -> None:
    calls = await ready()
    call = calls.admit(DELETE, (), "http")
    with capture_logs() as lines:
        with pytest.raises(LikenessError):
            async with call.under_way(None):
                call.received(REQUEST)
                raise LikenessError(error_pb2.REASON_COLLECTION_NOT_FOUND, "no such collection")
        call.end()
    (line,) = lines
    assert (line["code"], line["touched"]) == (grpc.StatusCode.NOT_FOUND.name, {"collection": "photos"})


async def test_refusals_in_a_crowd_are_left_out_but_for_those_that_have_touched_something() -> None:
    calls = await ready()
    with capture_logs() as lines:
        for touched in (True, False, False, True):
            call = calls.admit(DELETE if touched else QUERY, (), "grpc")
            with pytest.raises(LikenessError):
                async with call.under_way(None):
                    call.received(REQUEST)
                    raise LikenessError(error_pb2.REASON_OVERLOADED, "too much")
            call.end()
    assert ["touched" in line for line in lines if line["log_level"] == "info"] == [True, False, True]
