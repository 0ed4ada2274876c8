"""Requests as HTTP brings them: what is refused before it becomes a message, and who is to blame."""

import asyncio
import base64
import gzip
import json
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from likeness.gateway.v1.gateway_pb2 import IndexBatchRequest, SearchRequest, Term

from chassis.errors import LikenessError
from gateway.http import messages
from gateway.http.bodies import Bodies, Body
from gateway.http.messages import GZIP_RATIO, Messages, Received

MAX_BYTES = 8 * 2**20


async def reading(body: bytes, *, gzipped: bool = False, held: list[int] | None = None) -> SearchRequest:
    hold = (lambda _size: None) if held is None else held.append
    return await Messages(MAX_BYTES).read(Received(body, gzipped, as_json=True), SearchRequest, hold)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "is empty"),
        (b"{", "cannot be read"),
        (b"[]", "expected an object"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"terms": [' * 40_000, "nested too deeply"),
        (b'{"filter":' + b'{"allOf": {"filters": [' * 200 + b"]}}" * 200 + b"}", "cannot be read"),
        (b'{"topK": 1' + b"0" * 5000 + b"}", "cannot be read"),
        (b'{"topK": -1}', "cannot be read"),
        (b'{"topK": 1e999}', "cannot be read"),
        (b'{"minScore": "abc"}', "cannot be read"),
        (b'{"topK": "1e5000"}', "cannot be read"),
        (b'{"terms": {"text": "x"}}', "cannot be read"),
        (b'{"terms": [{"text": "\\ud800"}]}', "cannot be read"),
        (b'{"terms": [{"text": "x", "id": "y"}]}', "cannot be read"),
        (b'{"topK": 1, "topK": 2}', "twice"),
        (b'{"topK": 1, "top_k": 3}', "top_k: is there twice"),
        (b'{"terms": [{"text": "x"}, {"image": {"rgb": {"width": 1, "width": 2}}}]}', "twice"),
        (b'{"rescore": {}, "minScore": 1, "min_score": 1}', "min_score: is there twice"),
        (b'{"colour": "red"}', "colour"),
        (b'{"terms": [{"image": {"encoded": "data:image/png;base64,AAAA"}}]}', "terms[0].image.encoded"),
        (b'{"terms": [{"image": {"encoded": "AAAAA"}}]}', "cannot be read"),
        (b'{"terms": [{"vector": {"f32": "%%%%"}}]}', "terms[0].vector.f32"),
        (b'{"terms": [' + b"{}," * 60_000 + b"{}]}", "JSON values"),
    ],
)
async def test_json_that_cannot_be_read_is_the_callers_fault(body: bytes, said: str) -> None:
    with pytest.raises(LikenessError) as caught:
        await reading(body)

    assert caught.value.code.name == "INVALID_ARGUMENT"
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["AAAA", "AAA=", "AAA", "-_-_", "+/+/", ""])
async def test_base64_of_either_alphabet_with_or_without_padding_is_taken(text: str) -> None:
    request = await reading(json.dumps({"terms": [{"image": {"encoded": text}}]}).encode())

    assert len(request.terms[0].image.encoded) == len(text.rstrip("=")) * 3 // 4


async def test_a_picture_in_a_map_or_a_message_below_is_checked_too() -> None:
    nested: Any = {"terms": [{"text": "x"}, {"vector": {"f32": "not base64!"}}]}

    with pytest.raises(LikenessError) as caught:
        await reading(json.dumps(nested).encode())

    assert caught.value.violations[0].field == "terms[1].vector.f32"


async def test_names_as_in_the_protos_are_taken_too() -> None:
    assert (await reading(b'{"top_k": 7}')).top_k == (await reading(b'{"topK": 7}')).top_k == 7


async def test_keys_of_a_map_may_look_like_two_names_of_one_field() -> None:
    fields = {"topK": {"intValue": "1"}, "top_k": {"intValue": "2"}}
    body = json.dumps({"items": [{"metadata": {"fields": fields}}]}).encode()
    received = Received(body, gzipped=False, as_json=True)

    request = await Messages(MAX_BYTES).read(received, IndexBatchRequest, lambda _size: None)

    assert {key: value.int_value for key, value in request.items[0].metadata.fields.items()} == {"topK": 1, "top_k": 2}


async def test_unpacking_is_bounded_and_asks_for_room_before_it_begins() -> None:
    held: list[int] = []
    small = gzip.compress(b'{"topK": 7}')
    bomb = gzip.compress(b" " * (MAX_BYTES + 1))

    assert (await reading(small, gzipped=True, held=held)).top_k == 7
    with pytest.raises(LikenessError, match="larger than"):
        await reading(bomb, gzipped=True, held=held)

    most = len(small) * GZIP_RATIO
    assert held == [most, len(b'{"topK": 7}') - most, min(len(bomb) * GZIP_RATIO, MAX_BYTES)]


async def test_only_what_is_being_unpacked_holds_more_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()
    read = messages._read

    def slow(*arguments: Any) -> Any:
        begun.release()
        go_on.wait(60)
        return read(*arguments)

    monkeypatch.setattr(messages, "_read", slow)
    picture = base64.b64encode(random.Random(1).randbytes(50_000)).decode()
    whole = json.dumps({"terms": [{"image": {"encoded": picture}}]}).encode()
    received, bodies = Received(gzip.compress(whole), gzipped=True, as_json=True), Bodies(MAX_BYTES, 2**40, 60)
    reader = Messages(MAX_BYTES)

    async def receive() -> None:
        """Nothing comes."""

    calls = [Body(bodies, receive, None) for _ in range(10)]
    tasks = [asyncio.create_task(reader.read(received, SearchRequest, call.hold)) for call in calls]
    for _ in range(messages.THREADS):
        assert await asyncio.to_thread(begun.acquire, timeout=60)
    unpacking = bodies.held
    go_on.set()
    await asyncio.gather(*tasks)

    assert unpacking == messages.THREADS * MAX_BYTES
    assert bodies.held == len(calls) * len(whole)


async def test_what_takes_long_is_read_and_written_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_loop: list[bool] = []

    def noted(work: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*arguments: Any) -> Any:
            on_the_loop.append(threading.current_thread() is threading.main_thread())
            return work(*arguments)

        return noting

    monkeypatch.setattr(messages, "_read", noted(messages._read))
    monkeypatch.setattr(messages, "_as_json", noted(messages._as_json))
    small, large, many = SearchRequest(top_k=7), SearchRequest(), SearchRequest()
    large.terms.add().image.encoded = bytes(range(256)) * 4096
    many.terms.extend([Term()] * 400)

    for request in (small, large, many):
        sent = await Messages(MAX_BYTES).written(request, as_json=True)
        assert await reading(sent) == request
        assert SearchRequest.FromString(await Messages(MAX_BYTES).written(request, as_json=False)) == request

    assert on_the_loop == [True, True, False, False, True, False]  # written and read: many are soon written


async def test_work_that_nobody_waits_for_any_more_keeps_its_place_until_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()
    read = messages._read

    def slow(*arguments: Any) -> Any:
        begun.release()
        go_on.wait(60)
        return read(*arguments)

    monkeypatch.setattr(messages, "_read", slow)
    reader, body = Messages(MAX_BYTES), Received(b" " * 10_000 + b"{}", gzipped=False, as_json=True)

    def begin() -> asyncio.Task[SearchRequest]:
        return asyncio.create_task(reader.read(body, SearchRequest, lambda _size: None))

    given_up = [begin() for _ in range(messages.THREADS)]
    for _ in given_up:
        assert await asyncio.to_thread(begun.acquire, timeout=60)
    for task in given_up:
        task.cancel()
    await asyncio.wait(given_up)
    next_one = begin()
    await asyncio.sleep(0)
    waits = not begun.acquire(blocking=False)
    go_on.set()

    assert waits
    assert await next_one == SearchRequest()
