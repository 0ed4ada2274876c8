"""Clients that hold what they have opened and say no more: what they take comes to an end, or is bounded."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from chassis import beside
from tests.unit.chassis.guarded import GET, SERVICE, bearer, keys_file, reason, refusal, serving


@pytest.mark.parametrize("rpc", ["GetModel", "Embed"])
async def test_a_call_whose_request_does_not_come_ends_whatever_its_deadline(tmp_path: Path, rpc: str) -> None:
    async with serving(keys_file(tmp_path / "k", web="good:write"), default_deadline_s=0.1) as (running, _, channel):
        silent: Any = channel.stream_unary(f"/{SERVICE}/{rpc}")(metadata=bearer("good"), timeout=3000)
        error = await refusal(silent)
        assert (error.code(), reason(error)) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        assert (await running.ended.get()).reason == "DEADLINE_EXCEEDED"
        assert not running.calls.under_way
    assert not running.servicer.reached


async def test_a_call_whose_request_does_not_come_ends_when_its_key_is_revoked(tmp_path: Path) -> None:
    file = keys_file(tmp_path / "k", web="good:write")
    async with serving(file) as (running, _, channel):
        silent: Any = channel.stream_unary(f"/{SERVICE}/GetModel")(metadata=bearer("good"))
        await running.calls.admitted.wait()
        keys_file(file, other="other:write")
        running.reload()
        assert reason(await refusal(silent)) == "KEY_INVALID"
        assert (await running.ended.get()).reason == "KEY_INVALID"
        assert not running.calls.under_way


async def test_a_call_that_is_closed_without_a_request_is_told_so(tmp_path: Path) -> None:
    async with serving(keys_file(tmp_path / "k", web="good:write")) as (running, _, channel):
        closed: Any = channel.stream_unary(f"/{SERVICE}/GetModel")(metadata=bearer("good"))
        await closed.done_writing()
        error = await refusal(closed)
        assert reason(error) == "FIELD_INVALID"
        outcome = await running.ended.get()
    assert (outcome.code, outcome.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert outcome.trace is not None
    assert dict(error.trailing_metadata() or ())["likeness-trace-id"] == outcome.trace.id
    assert not running.servicer.reached


async def test_a_client_that_goes_before_it_has_asked_is_no_bad_request(tmp_path: Path) -> None:
    async with serving(keys_file(tmp_path / "k", web="good:write")) as (running, _, channel):
        silent: Any = channel.stream_unary(f"/{SERVICE}/GetModel")(metadata=bearer("good"))
        await running.calls.admitted.wait()
        silent.cancel()
        outcome = await running.ended.get()
    assert (outcome.code, outcome.reason) == (grpc.StatusCode.CANCELLED, None)


async def test_streams_that_watch_the_health_are_bounded_and_checks_are_answered_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "STREAMS_BESIDE", 2)
    async with serving(keys_file(tmp_path / "k", web="good:read")) as (running, stub, channel):
        health: Any = health_pb2_grpc.HealthStub(channel)
        watching = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        for watch in watching:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        error = await refusal(health.Watch(health_pb2.HealthCheckRequest()).read())
        assert (error.code(), reason(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert (await running.ended.get()).reason == "OVERLOADED"
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        await stub.GetModel(GET, metadata=bearer("good"))

        watching[0].cancel()
        async with asyncio.timeout(30):
            while not await may_watch(health):
                pass


async def may_watch(health: Any) -> bool:
    """Whether another stream that watches the health is let in."""
    watch = health.Watch(health_pb2.HealthCheckRequest())
    try:
        await watch.read()
    except grpc.aio.AioRpcError:
        return False
    return True


@pytest.mark.parametrize("rpc", ["Check", "Watch"])
async def test_a_health_check_that_is_never_asked_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rpc: str
) -> None:
    monkeypatch.setattr(beside, "CHECK_S", 0.05)
    async with asyncio.timeout(30), serving(keys_file(tmp_path / "k", web="good:read")) as (_, _stub, channel):
        silent: Any = channel.stream_unary(f"/grpc.health.v1.Health/{rpc}")()
        assert reason(await refusal(silent)) == "DEADLINE_EXCEEDED"


REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.mark.parametrize("method", ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", REFLECTION])
async def test_a_stop_does_not_wait_for_who_asks_nothing_more(tmp_path: Path, method: str) -> None:
    async with asyncio.timeout(30), serving(keys_file(tmp_path / "k", web="good:read")) as (running, _, channel):
        silent: Any = channel.stream_stream(method)(metadata=bearer("good"))
        if method == REFLECTION:
            await silent.write(reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString())
            await silent.read()
        else:
            await silent.wait_for_connection()
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
        await running.readiness.stop()
        assert await silent.code() is grpc.StatusCode.UNAVAILABLE
        late: Any = channel.stream_stream(method)(metadata=bearer("good"))
        assert await late.code() is grpc.StatusCode.UNAVAILABLE


async def test_what_is_no_message_of_reflection_is_refused_as_bad_input(tmp_path: Path) -> None:
    async with serving(keys_file(tmp_path / "k", web="good:read")) as (_, _stub, channel):
        call: Any = channel.stream_stream(REFLECTION)(metadata=bearer("good"))
        await call.write(b"\xff\xff\xff")
        assert reason(await refusal(call.read())) == "FIELD_INVALID"


async def test_reflection_needs_a_key_of_any_scope_and_its_streams_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "STREAMS_BESIDE", 1)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    async with serving(keys_file(tmp_path / "k", web="good:read")) as (running, _, channel):
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
        for metadata, why in (((), "KEY_MISSING"), (bearer("wrong"), "KEY_INVALID")):
            assert reason(await refusal(stub.ServerReflectionInfo(metadata=metadata).read())) == why
            assert (await running.ended.get()).reason == why
        open_: Any = stub.ServerReflectionInfo(metadata=bearer("good"))
        await open_.write(asked)
        told = await open_.read()
        assert SERVICE in [service.name for service in told.list_services_response.service]
        assert reason(await refusal(stub.ServerReflectionInfo(metadata=bearer("good")).read())) == "OVERLOADED"
        open_.cancel()
