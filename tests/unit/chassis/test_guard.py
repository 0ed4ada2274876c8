"""Who may call what, over gRPC on loopback: keys, scopes, limits, revocation."""

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from likeness.common.v1 import error_pb2
from likeness.embedder.v1 import embedder_pb2
from structlog.testing import capture_logs

from chassis import calls as chassis_calls
from chassis.errors import from_rpc_error
from tests.unit.chassis.guarded import EMBED, GET, SERVICE, Metadata, bearer, keys_file, reason, refusal, serving
from tests.unit.chassis.stingy import HEADERS, connected


@pytest.mark.parametrize(
    "metadata",
    [
        bearer("good"),
        (("authorization", "bearer   good"),),
        (("x-api-key", "good"),),
        (("authorization", "Basic Z29vZA=="), ("x-api-key", "good")),
    ],
)
async def test_a_known_key_passes_and_the_outcome_says_whose_it_is(tmp_path: Path, metadata: Metadata) -> None:
    async with serving(keys_file(tmp_path / "k", web="good:read")) as (running, stub, _):
        await stub.GetModel(GET, metadata=metadata)
    assert [(o.code, o.key) for o in running.outcomes] == [(grpc.StatusCode.OK, "web")]


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ((), "KEY_MISSING"),
        ((("authorization", "good"),), "KEY_MISSING"),
        ((("authorization", "Bearer "),), "KEY_MISSING"),
        ((("x-api-key", ""),), "KEY_MISSING"),
        (bearer("wrong"), "KEY_INVALID"),
        (bearer("good and more"), "KEY_INVALID"),
        (bearer("x" * 4000), "KEY_INVALID"),
        ((("authorization", "Bearer wrong"), ("x-api-key", "good")), "KEY_INVALID"),
    ],
)
async def test_no_key_or_a_wrong_one_is_refused_and_reaches_nothing(
    tmp_path: Path, metadata: Metadata, why: str
) -> None:
    async with serving(keys_file(tmp_path / "k", web="good:read")) as (running, stub, _):
        error = await refusal(stub.GetModel(GET, metadata=metadata))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert reason(error) == why
    assert not running.servicer.reached
    assert [(o.reason, o.key) for o in running.outcomes] == [(why, None)]


async def test_a_key_without_the_scope_is_refused_and_a_wider_one_passes(tmp_path: Path) -> None:
    file = keys_file(tmp_path / "k", reader="r:read", writer="w:write", root="a:admin")
    async with serving(file) as (running, stub, _):
        error = await refusal(stub.Embed(EMBED, metadata=bearer("r")))
        assert (error.code(), reason(error)) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
        await stub.Embed(EMBED, metadata=bearer("w"))
        await stub.Embed(EMBED, metadata=bearer("a"))
        await stub.GetModel(GET, metadata=bearer("a"))
    assert running.servicer.reached == ["Embed", "Embed", "GetModel"]


async def test_health_needs_no_key(tmp_path: Path) -> None:
    async with serving(keys_file(tmp_path / "k", web="good:read")) as (_, _stub, channel):
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_call_without_a_key_is_refused_before_its_request_has_come(tmp_path: Path) -> None:
    async with serving(keys_file(tmp_path / "k", web="good:read")) as (running, _, channel):
        call: Any = channel.stream_unary(f"/{SERVICE}/Embed")()
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED  # nothing was ever sent
    assert not running.servicer.reached


async def test_a_rate_is_kept_and_told_with_retry_info_and_pushback(tmp_path: Path) -> None:
    file = keys_file(tmp_path / "k", web="good:write:rate_per_s = 0.01:burst = 2", other="other:write")
    async with serving(file) as (_, stub, _channel):
        await stub.GetModel(GET, metadata=bearer("good"))
        await stub.GetModel(GET, metadata=bearer("good"))
        error = await refusal(stub.GetModel(GET, metadata=bearer("good")))
        await stub.GetModel(GET, metadata=bearer("other"))
    back = from_rpc_error(error, error_pb2.REASON_UNSPECIFIED, "")
    assert (error.code(), back.reason_name) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert back.retry_after_s == pytest.approx(100, rel=0.2)
    pushback = dict(error.trailing_metadata())["grpc-retry-pushback-ms"]
    assert int(pushback) == pytest.approx(100_000, rel=0.2)


async def test_a_batch_is_charged_by_its_items(tmp_path: Path) -> None:
    async with serving(keys_file(tmp_path / "k", web="good:write:rate_per_s = 0.01:burst = 20")) as (running, stub, _):
        batch = embedder_pb2.EmbedRequest(inputs=[embedder_pb2.EmbedInput(text="a")] * 15)
        await stub.Embed(batch, metadata=bearer("good"))
        error = await refusal(stub.Embed(batch, metadata=bearer("good")))
        await stub.Embed(EMBED, metadata=bearer("good"))
    assert reason(error) == "RATE_LIMITED"
    assert running.servicer.reached == ["Embed", "Embed"]


async def test_a_batch_larger_than_the_burst_passes_when_nothing_is_owed(tmp_path: Path) -> None:
    async with serving(keys_file(tmp_path / "k", web="good:write:rate_per_s = 0.01:burst = 20")) as (running, stub, _):
        batch = embedder_pb2.EmbedRequest(inputs=[embedder_pb2.EmbedInput(text="a")] * 50)
        await stub.Embed(batch, metadata=bearer("good"))
        assert reason(await refusal(stub.Embed(EMBED, metadata=bearer("good")))) == "RATE_LIMITED"
    assert running.servicer.reached == ["Embed"]


async def test_a_batch_that_is_refused_takes_nothing(tmp_path: Path) -> None:
    async with serving(keys_file(tmp_path / "k", web="good:write:rate_per_s = 0.01:burst = 20")) as (running, stub, _):
        await stub.Embed(EMBED, metadata=bearer("good"))
        batch = embedder_pb2.EmbedRequest(inputs=[embedder_pb2.EmbedInput(text="a")] * 20)
        for _ in range(25):
            assert reason(await refusal(stub.Embed(batch, metadata=bearer("good")))) == "RATE_LIMITED"
        await stub.Embed(EMBED, metadata=bearer("good"))
    assert running.servicer.reached == ["Embed", "Embed"]


async def test_calls_refused_for_those_at_once_do_not_count_against_the_rate(tmp_path: Path) -> None:
    file = keys_file(tmp_path / "k", web="good:write:rate_per_s = 0.01:burst = 3:concurrent = 1")
    async with serving(file) as (running, stub, _):
        running.servicer.hold.clear()
        first: Any = stub.GetModel(GET, metadata=bearer("good"))
        await running.servicer.holding.wait()
        for _ in range(5):
            error = await refusal(stub.GetModel(GET, metadata=bearer("good")))
            assert "one call at once" in str(error.details())
        running.servicer.hold.set()
        await first
        await stub.GetModel(GET, metadata=bearer("good"))


async def test_calls_at_once_are_limited_and_a_place_is_free_again_when_a_client_has_gone(tmp_path: Path) -> None:
    async with serving(keys_file(tmp_path / "k", web="good:write:concurrent = 1")) as (running, stub, _):
        running.servicer.hold.clear()
        first: Any = stub.GetModel(GET, metadata=bearer("good"))
        await running.servicer.holding.wait()
        error = await refusal(stub.GetModel(GET, metadata=bearer("good")))
        assert reason(error) == "RATE_LIMITED"
        assert "grpc-retry-pushback-ms" in dict(error.trailing_metadata())

        first.cancel()
        assert (await running.ended.get()).reason == "RATE_LIMITED"
        assert (await running.ended.get()).code is grpc.StatusCode.CANCELLED
        running.servicer.hold.set()
        await stub.GetModel(GET, metadata=bearer("good"))


async def test_a_client_that_sends_no_request_and_goes_leaves_no_place_taken(tmp_path: Path) -> None:
    async with serving(keys_file(tmp_path / "k", web="good:write:concurrent = 1")) as (running, stub, channel):
        silent: Any = channel.stream_unary(f"/{SERVICE}/Embed")(metadata=bearer("good"))
        await running.calls.admitted.wait()
        silent.cancel()
        assert (await running.ended.get()).code is grpc.StatusCode.CANCELLED
        await stub.GetModel(GET, metadata=bearer("good"))
    assert not running.calls.under_way


async def test_more_calls_than_the_process_takes_are_told_to_come_again(tmp_path: Path) -> None:
    async with serving(keys_file(tmp_path / "k", web="good:write"), max_calls=1) as (running, stub, _):
        running.servicer.hold.clear()
        first: Any = stub.GetModel(GET, metadata=bearer("good"))
        await running.servicer.holding.wait()
        error = await refusal(stub.GetModel(GET, metadata=bearer("good")))
        running.servicer.hold.set()
        await first
    assert (error.code(), reason(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert "grpc-retry-pushback-ms" in dict(error.trailing_metadata())


async def test_a_key_that_is_added_or_revoked_counts_without_a_restart(tmp_path: Path) -> None:
    file = keys_file(tmp_path / "k", web="old:read")
    async with serving(file) as (running, stub, _):
        keys_file(file, web="new:read")
        assert reason(await refusal(stub.GetModel(GET, metadata=bearer("new")))) == "KEY_INVALID"
        running.reload()
        await stub.GetModel(GET, metadata=bearer("new"))
        assert reason(await refusal(stub.GetModel(GET, metadata=bearer("old")))) == "KEY_INVALID"


@pytest.mark.parametrize(("after", "why"), [("other:write", "KEY_INVALID"), ("mine:read", "SCOPE_MISSING")])
async def test_an_open_stream_ends_when_its_key_loses_what_it_needs(tmp_path: Path, after: str, why: str) -> None:
    file = keys_file(tmp_path / "k", web="mine:write", other="kept:write")
    async with serving(file) as (running, stub, _):
        mine: Any = stub.EmbedStream(metadata=bearer("mine"))
        kept: Any = stub.EmbedStream(metadata=bearer("kept"))
        await mine.read()
        await kept.read()

        keys_file(file, web=after, other="kept:write")
        running.reload()
        error = await refusal(mine.read())
        assert reason(error) == why
        await kept.write(embedder_pb2.EmbedStreamRequest())
        assert await kept.read() == embedder_pb2.EmbedStreamResponse()
        kept.cancel()


async def test_a_stream_whose_key_is_revoked_while_it_sends_its_first_message_ends(tmp_path: Path) -> None:
    file = keys_file(tmp_path / "k", web="mine:write")
    async with serving(file) as (running, stub, _):
        running.servicer.before_write = lambda: asyncio.get_running_loop().call_soon(running.reload)
        keys_file(file, web="other:write")
        mine: Any = stub.EmbedStream(metadata=bearer("mine"))
        assert await mine.read() == embedder_pb2.EmbedStreamResponse()
        assert reason(await refusal(mine.read())) == "KEY_INVALID"
    assert [outcome.reason for outcome in running.outcomes] == ["KEY_INVALID"]


async def test_a_client_that_is_revoked_in_the_first_message_and_goes_then_is_no_fault(tmp_path: Path) -> None:
    file, faults = keys_file(tmp_path / "k", web="mine:write"), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _loop, told: faults.append(told))
    async with serving(file) as (running, _stub, _channel):
        async with connected(running.port) as stingy:
            await stingy.call(f"/{SERVICE}/EmbedStream", metadata=bearer("mine"))
            await stingy.received(HEADERS)  # and the message behind it is under way
            keys_file(file, web="other:write")
            running.reload()
            await running.servicer.stream_left.wait()
        assert (await running.ended.get()).reason == "KEY_INVALID"
    gc.collect()
    assert not faults


async def test_the_file_is_looked_at_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chassis_calls, "LOOK_S", 0.01)
    file = keys_file(tmp_path / "k", web="mine:write")
    async with serving(file) as (running, stub, _):
        watching = asyncio.create_task(running.calls.watch_keys())
        stream: Any = stub.EmbedStream(metadata=bearer("mine"))
        await stream.read()
        keys_file(file, web="new:write")
        assert reason(await refusal(stream.read())) == "KEY_INVALID"
        await stub.GetModel(GET, metadata=bearer("new"))
        watching.cancel()


def faulty_once(then: Callable[[], Any]) -> Callable[[], Any]:
    faults = [ZeroDivisionError()]

    def run() -> Any:
        if faults:
            raise faults.pop()
        return then()

    return run


async def test_a_fault_of_a_look_at_the_file_is_told_and_does_not_end_the_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chassis_calls, "LOOK_S", 0.01)
    file = keys_file(tmp_path / "k", web="mine:write")
    async with serving(file) as (running, stub, _):
        stream: Any = stub.EmbedStream(metadata=bearer("mine"))
        await stream.read()
        keys_file(file, web="new:write")
        for owner, name in ((running.keys, "refresh"), (running.calls, "check_keys")):
            monkeypatch.setattr(owner, name, faulty_once(getattr(owner, name)))
        with capture_logs() as lines:
            watching = asyncio.create_task(running.calls.watch_keys())
            async with asyncio.timeout(30):
                assert reason(await refusal(stream.read())) == "KEY_INVALID"
        watching.cancel()
    assert [line["log_level"] for line in lines if "incident" in line] == ["error", "error"]


async def test_an_unreadable_file_locks_nobody_out_and_lets_nobody_in(tmp_path: Path) -> None:
    file = keys_file(tmp_path / "k", web="good:read")
    async with serving(file) as (running, stub, _):
        file.write_text("")
        assert not running.keys.refresh()
        await stub.GetModel(GET, metadata=bearer("good"))
        assert reason(await refusal(stub.GetModel(GET))) == "KEY_MISSING"
        assert reason(await refusal(stub.GetModel(GET, metadata=bearer("wrong")))) == "KEY_INVALID"
