"""Clients that hold what they have opened and say no more: what they take comes to an end, or is bounded."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.unit.chassis.guarded import SERVICE, bearer, keys_file, reason, refusal, serving


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
        assert reason(await refusal(closed)) == "FIELD_INVALID"
    assert not running.servicer.reached
