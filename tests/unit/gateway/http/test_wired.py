"""What a whole gateway makes of its settings and of its state, by gRPC and by HTTP alike."""

import asyncio
from typing import Any

import grpc
import pytest
from likeness.common.v1 import error_pb2
from likeness.gateway.v1 import gateway_pb2 as pb

from chassis.errors import from_rpc_error
from tests.unit.gateway.behind import Behind
from tests.unit.gateway.http.serving import serving

CATS = pb.Labelling(labels=["cat", "dog"])


class Held(Behind):
    """Answers what it is asked for collections and numbers of items when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()

    async def GetCollection(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = await super().GetCollection(request, context)
        await self.may_answer.wait()
        return answer

    async def CountItems(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self.may_answer.wait()
        return await super().CountItems(request, context)


def held() -> Held:
    return Held()  # type: ignore[abstract]  # only what the gateway calls


def reason(error: grpc.aio.AioRpcError) -> str:
    return from_rpc_error(error, error_pb2.REASON_UNSPECIFIED, "").reason_name


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_its_status_is_told_while_it_starts_and_nothing_else_is_answered() -> None:
    async with serving(held(), started=False) as gateway:
        by_grpc = await gateway.grpc.GetStatus(pb.GetStatusRequest(), timeout=30)
        by_http = await gateway.call("GetStatus", {})
        counting = await refusal(gateway.grpc.CountItems(pb.CountItemsRequest(), timeout=30))

    assert [service.name for service in by_grpc.services] == ["embedder", "indexer"]
    assert by_http.status_code == 200
    assert by_http.json()["version"] == by_grpc.version
    assert reason(counting) == "NOT_READY"


async def test_a_longer_deadline_than_is_allowed_is_cut_and_told() -> None:
    services = held()
    async with serving(services, default_deadline_s=0.1, max_deadline_s=0.2) as gateway:
        by_grpc = await refusal(gateway.grpc.CountItems(pb.CountItemsRequest(), timeout=20))
        by_http = await gateway.call("CountItems", {}, connect_timeout_ms="20000")
        services.may_answer.set()

    assert reason(by_grpc) == "DEADLINE_EXCEEDED"
    assert dict(by_grpc.trailing_metadata())["likeness-deadline-ms"] == "200"
    assert by_http.status_code == 504
    assert by_http.json()["details"][0]["debug"]["reason"] == "DEADLINE_EXCEEDED"
    assert by_http.headers["likeness-deadline-ms"] == "200"
    for told in (by_grpc.details() or "", by_http.json()["message"]):
        assert told.startswith("no answer within 0.2 s, ")


async def test_of_searches_for_duplicates_and_of_suggestions_as_many_are_open_as_their_own_settings_allow() -> None:
    services = held()
    async with serving(services, duplicate_streams=1, suggestion_streams=2) as gateway:
        rpcs: list[tuple[Any, Any, int]] = [
            (gateway.grpc.FindDuplicates, pb.FindDuplicatesRequest(), 1),
            (gateway.grpc.SuggestLabels, pb.SuggestLabelsRequest(labelling=CATS), 2),
        ]
        streams = []
        for rpc, request, allowed in rpcs:
            for _ in range(allowed):
                streams.append(rpc(request, timeout=60))
                async with asyncio.timeout(30):
                    await services.until_asked("GetCollection", len(streams))
            error = await refusal(rpc(request, timeout=10).read())
            assert reason(error) == "OVERLOADED", error.details()
        services.may_answer.set()
        for stream in streams:
            assert [message async for message in stream], "one that is open is answered"
