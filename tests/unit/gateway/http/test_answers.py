"""Answers go in parts, in time, and not too many at once."""

import asyncio
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from chassis.errors import LikenessError
from gateway.http import answers
from gateway.http.answers import ABORT, PART_BYTES, InParts
from gateway.http.bodies import Bodies, Body

START = {"type": "http.response.start", "status": 200, "headers": []}
LARGE = bytes(range(256)) * (PART_BYTES // 256 * 20 + 1)
PARTS = 21


@dataclass
class Client:
    """Takes an answer, each of its parts in so many seconds.

    Attributes:
        sent: what came.
        aborted: how often its connection was closed.
    """

    seconds: float = 0.0
    sent: list[MutableMapping[str, Any]] = field(default_factory=list)
    aborted: int = 0

    async def ask(self, *bodies: bytes) -> None:
        """Asks for an answer of these bodies."""

        async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
            await send(START)
            for number, body in enumerate(bodies, start=1):
                await send({"type": "http.response.body", "body": body, "more_body": number < len(bodies)})

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.disconnect"}

        await InParts(app)({"type": "http", "state": {ABORT: self._abort}}, receive, self._send)

    @property
    def body(self) -> bytes:
        """All that came."""
        return b"".join(message.get("body", b"") for message in self.sent)

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message.get("body"):
            await asyncio.sleep(self.seconds)
        self.sent.append(message)

    def _abort(self) -> None:
        self.aborted += 1


async def test_a_large_body_goes_in_parts_and_a_small_one_as_it_is() -> None:
    client = Client()
    await client.ask(b"small", LARGE, b"")

    assert client.body == b"small" + LARGE
    start, small, *parts, end = client.sent
    assert start == START
    assert small["body"] == b"small"
    assert [len(part["body"]) for part in parts] == [PART_BYTES] * (PARTS - 1) + [256]
    assert {part["more_body"] for part in parts} == {True}
    assert (end["body"], end["more_body"]) == (b"", False)


async def test_the_last_part_of_the_last_body_ends_the_answer() -> None:
    client = Client()
    await client.ask(LARGE)

    assert [message["more_body"] for message in client.sent[1:]] == [True] * (PARTS - 1) + [False]


async def test_a_client_that_takes_each_part_in_time_and_all_of_them_too_slowly_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "UNREAD_S", 0.3)
    monkeypatch.setattr(answers, "LEAST_BYTES_PER_S", 2**40)
    client = Client(seconds=0.05)
    await client.ask(LARGE)

    assert client.aborted == 1
    assert 0 < len(client.body) < len(LARGE)
    assert (client.sent[-1]["body"], client.sent[-1]["more_body"]) == (b"", False)


async def test_a_larger_body_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "UNREAD_S", 0.3)
    monkeypatch.setattr(answers, "LEAST_BYTES_PER_S", len(LARGE) / 30)
    client = Client(seconds=0.05)
    await client.ask(LARGE)

    assert (client.aborted, client.body) == (0, LARGE)


async def receive_nothing() -> None:
    raise AssertionError


async def test_answers_are_held_up_to_a_bound_but_for_the_only_one_and_apart_from_requests() -> None:
    held: list[int] = []
    bodies = Bodies(2**20, 2**20, 10, observe_answers=held.append)
    first, second, small = (Body(bodies, receive_nothing, None) for _ in range(3))
    first.hold(2**20)
    first.answered(2**21)
    small.answered(PART_BYTES)
    small.hold(2**20)  # of the request nothing is held any more
    with pytest.raises(LikenessError) as caught:
        second.answered(PART_BYTES + 1)
    first.release()
    second.answered(2**20)
    second.release()
    second.release()

    assert caught.value.reason_name == "OVERLOADED"
    assert caught.value.retry_after_s is not None
    assert held == [2**21, 0, 2**20, 0]
