"""EmbedStream: the window, the numbers, and every way in which a stream ends."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.common.v1 import error_pb2
from likeness.embedder.v1 import embedder_pb2

from chassis.errors import LikenessError
from chassis.wire import Gone, until_gone
from embedder.inputs import Lane, Outcome
from tests.unit.embedder.streams import FINGERPRINT, Client, Embedder, Response, serving, settled, undecided


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    yield
    await settled()
    left = [task for task in asyncio.all_tasks() if "_Stream." in repr(task)]
    assert not left


async def test_the_first_message_names_the_model_and_the_window() -> None:
    client = Client()
    client.half_close()

    await serving(Embedder(), window=7)(client.requests(), client.write)

    assert client.answers == [Response(opened=embedder_pb2.EmbedStreamOpened(fingerprint=FINGERPRINT, window=7))]


async def test_answers_come_as_they_finish_and_all_before_the_end() -> None:
    embedder, client = Embedder(), Client()
    for number in (1, 2, 3):
        client.send(number)
    client.half_close()
    stream = asyncio.create_task(serving(embedder)(client.requests(), client.write))
    await settled()

    for text in ("3", "1"):
        embedder.answer(text)
        await settled()
    assert client.answered == [3, 1]
    assert not stream.done()

    embedder.answer("2")
    await stream
    assert client.answered == [3, 1, 2]
    assert client.kinds == ["opened", "result", "result", "result"]


async def test_no_more_than_the_window_is_read_until_an_answer_was_written() -> None:
    embedder, client = Embedder(), Client()
    for number in range(10):
        client.send(number)
    stream = asyncio.create_task(serving(embedder, window=3)(client.requests(), client.write))
    await settled()
    assert client.taken == 3

    client.may_write.clear()
    embedder.answer("1")
    await settled()
    assert client.taken == 3, "an answer that the client does not take makes no room"

    client.may_write.set()
    await settled()
    assert client.taken == 4

    stream.cancel()
    await asyncio.wait({stream})


async def test_nothing_but_the_first_is_read_while_there_is_no_room_for_it() -> None:
    embedder, client = Embedder(at_once=True), Client()
    embedder.room[Lane.BULK].clear()
    for number in range(3):
        client.send(number)
    client.half_close()
    stream = asyncio.create_task(serving(embedder)(client.requests(), client.write))
    await settled()
    assert client.taken == 1
    embedder.room[Lane.BULK].set()
    await asyncio.wait_for(stream, 60)
    assert sorted(client.answered) == [0, 1, 2]


async def test_interactive_inputs_do_not_wait_for_room_for_bulk_ones() -> None:
    embedder, client = Embedder(at_once=True), Client()
    embedder.room[Lane.BULK].clear()
    for number in range(3):
        client.send(number, priority=embedder_pb2.PRIORITY_INTERACTIVE)
    client.half_close()

    await asyncio.wait_for(serving(embedder)(client.requests(), client.write), 60)

    assert sorted(client.answered) == [0, 1, 2]


async def test_interactive_inputs_wait_for_room_of_their_own() -> None:
    embedder, client = Embedder(at_once=True), Client()
    embedder.room[Lane.INTERACTIVE].clear()
    client.send(1, priority=embedder_pb2.PRIORITY_INTERACTIVE)
    client.half_close()
    stream = asyncio.create_task(serving(embedder)(client.requests(), client.write))
    await settled()
    assert client.taken == 0
    embedder.room[Lane.INTERACTIVE].set()
    await asyncio.wait_for(stream, 60)


async def test_all_streams_together_hold_a_bounded_number_of_bytes() -> None:
    embedder, first, second = Embedder(), Client(), Client()
    first.send(1, "a" * 1500)  # larger than the limit, but alone
    first.send(2, "b" * 900)
    second.send(1, "c" * 900)
    streams = serving(embedder, window=4, max_held_bytes=1000)
    running = [asyncio.create_task(streams(first.requests(), first.write))]
    await settled()
    running.append(asyncio.create_task(streams(second.requests(), second.write)))
    await settled()
    assert (first.taken, second.taken) == (1, 0)

    embedder.answer("a" * 1500)
    await settled()
    assert (first.taken, second.taken) == (2, 1), "each may read one, and finds out then"

    third = Client()
    third.send(1)
    running.append(asyncio.create_task(streams(third.requests(), third.write)))
    await settled()
    assert third.taken == 0

    for stream in running[:2]:  # a client that goes gives back what it holds
        stream.cancel()
    await settled()
    assert third.taken == 1
    embedder.answer("1")
    third.half_close()
    await running[2]


async def test_bulk_is_the_default_and_interactive_can_be_asked_for() -> None:
    embedder, client = Embedder(at_once=True), Client()
    client.send(1, "a")
    client.send(2, "b", embedder_pb2.PRIORITY_INTERACTIVE)
    client.send(3, "c", embedder_pb2.PRIORITY_BULK)
    client.send(4, "d", 17)
    client.half_close()

    await serving(embedder)(client.requests(), client.write)

    assert sorted(embedder.seen) == [("a", Lane.BULK), ("b", Lane.INTERACTIVE), ("c", Lane.BULK)]
    refused = {a.result.correlation_id for a in client.answers if a.result.result.HasField("error")}
    assert refused == {4}


async def test_an_input_that_fails_fails_alone() -> None:
    embedder, client = Embedder(), Client()
    for number in (1, 2, 3):
        client.send(number)
    client.half_close()
    stream = asyncio.create_task(serving(embedder)(client.requests(), client.write))
    await settled()

    embedder.answer("1", Outcome(LikenessError(error_pb2.REASON_IMAGE_DAMAGED, "broken")))
    embedder.answer("2", RuntimeError("a secret of ours"))
    embedder.answer("3")
    await stream

    reasons = {a.result.correlation_id: a.result.result.error.reason for a in client.answers[1:]}
    assert reasons == {1: error_pb2.REASON_IMAGE_DAMAGED, 2: error_pb2.REASON_INTERNAL, 3: 0}
    assert "secret" not in str(client.answers)


async def test_a_number_sent_again_unanswered_ends_the_stream_after_what_came_before() -> None:
    embedder, client = Embedder(), Client()
    for number, text in ((1, "a"), (2, "b"), (1, "c"), (3, "d")):
        client.send(number, text)
    stream = asyncio.create_task(serving(embedder)(client.requests(), client.write))
    await settled()
    assert client.taken == 3
    assert not stream.done()

    embedder.answer("b")
    embedder.answer("a")
    with pytest.raises(LikenessError) as caught:
        await stream

    assert caught.value.reason == error_pb2.REASON_FIELD_INVALID
    assert caught.value.violations[0].field == "correlation_id"
    assert client.answered == [2, 1]
    assert [text for text, _ in embedder.seen] == ["a", "b"]


async def test_a_number_can_be_used_again_once_its_answer_is_on_its_way() -> None:
    embedder, client = Embedder(), Client()
    client.send(1, "a")
    stream = asyncio.create_task(serving(embedder)(client.requests(), client.write))
    await settled()
    client.may_write.clear()
    embedder.answer("a")
    await settled()

    client.send(1, "b")
    client.half_close()
    await settled()
    client.may_write.set()
    embedder.answer("b")
    await stream

    assert client.answered == [1, 1]


async def test_a_message_that_cannot_be_read_ends_the_stream_after_what_came_before() -> None:
    embedder, client = Embedder(), Client()
    client.send(1)
    client.send_raw(LikenessError(error_pb2.REASON_FIELD_INVALID, "no message"))
    stream = asyncio.create_task(serving(embedder)(client.requests(), client.write))
    await settled()

    embedder.answer("1")
    with pytest.raises(LikenessError, match="no message"):
        await stream

    assert client.answered == [1]


async def test_a_process_that_stops_answers_what_it_has_read_and_reads_no_more() -> None:
    embedder, client = Embedder(), Client()
    client.send(1)
    client.send(2)
    streams = serving(embedder)
    stream = asyncio.create_task(streams(client.requests(), client.write))
    await settled()

    streams.stop()
    client.send(3)
    await settled()
    assert client.kinds == ["opened", "stopping"]
    assert not stream.done()

    embedder.answer("2")
    embedder.answer("1")
    await stream
    assert client.kinds == ["opened", "stopping", "result", "result"]
    assert client.taken == 2


async def test_a_process_that_stops_ends_a_stream_whose_window_is_full() -> None:
    embedder, client = Embedder(), Client()
    for number in range(5):
        client.send(number)
    streams = serving(embedder, window=2)
    stream = asyncio.create_task(streams(client.requests(), client.write))
    await settled()

    streams.stop()
    embedder.answer("0")
    embedder.answer("1")
    await stream

    assert client.taken == 2
    assert sorted(client.answered) == [0, 1]


@pytest.mark.parametrize("steps", range(8))
async def test_a_message_is_answered_or_unread_whenever_the_stop_comes(steps: int) -> None:
    embedder, client = Embedder(at_once=True), Client()
    for number in range(6):
        client.send(number)
    streams = serving(embedder, window=2)
    stream = asyncio.create_task(streams(client.requests(), client.write))
    for _ in range(steps):
        await asyncio.sleep(0)

    streams.stop()
    await stream

    assert sorted(client.answered) == list(range(len(embedder.seen)))
    assert client.kinds[0] == "opened"
    assert client.kinds.count("stopping") == 1


async def test_a_stream_opened_while_stopping_ends_at_once() -> None:
    embedder, client = Embedder(), Client()
    client.send(1)
    streams = serving(embedder)
    streams.stop()

    await streams(client.requests(), client.write)

    assert client.kinds == ["opened", "stopping"]
    assert client.taken == 0


async def test_a_stream_that_was_all_read_is_not_told_that_the_process_stops() -> None:
    embedder, client = Embedder(), Client()
    client.send(1)
    client.half_close()
    streams = serving(embedder)
    stream = asyncio.create_task(streams(client.requests(), client.write))
    await settled()

    streams.stop()
    embedder.answer("1")
    await stream

    assert client.kinds == ["opened", "result"]


async def test_a_client_that_goes_takes_its_inputs_with_it() -> None:
    embedder, client = Embedder(), Client()
    for number in range(3):
        client.send(number)
    streams = serving(embedder)
    stream = asyncio.create_task(streams(client.requests(), client.write))
    await settled()

    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream

    assert embedder.cancelled == 3
    assert not embedder.waiting
    streams.stop()  # knows nothing of it any more


async def test_a_client_that_goes_during_a_write_has_gone_and_nothing_has_failed() -> None:
    embedder, client = Embedder(), Client()
    for number in range(3):
        client.send(number)
    stream = asyncio.create_task(until_gone(serving(embedder)(client.requests(), client.write)))
    await settled()
    client.gone = Gone()

    embedder.answer("1")
    await asyncio.wait({stream})

    assert stream.cancelled()
    assert embedder.cancelled == 2
    assert not embedder.waiting


async def test_a_fault_of_ours_during_a_write_is_none_of_the_clients() -> None:
    embedder, client = Embedder(), Client()
    client.send(1)
    stream = asyncio.create_task(until_gone(serving(embedder)(client.requests(), client.write)))
    await settled()
    client.gone = ValueError("a fault of ours")

    embedder.answer("1")
    with pytest.raises(ExceptionGroup):
        await stream


Step = tuple[str, int]


@settings(max_examples=150, deadline=None)
@given(
    window=st.integers(1, 5),
    steps=st.lists(st.tuples(st.sampled_from(["send", "answer", "yield", "stop", "close"]), st.integers(0, 6))),
)
def test_every_input_that_was_read_is_answered_exactly_once(window: int, steps: list[Step]) -> None:
    async def scenario() -> None:
        embedder, client, sent = Embedder(), Client(), 0
        streams = serving(embedder, window)
        stream = asyncio.create_task(streams(client.requests(), client.write))
        for what, n in steps:
            if what == "send":
                client.send(sent)
                sent += 1
            elif what == "answer" and (pending := undecided(embedder)):
                embedder.answer(pending[n % len(pending)])
            elif what == "yield":
                for _ in range(n):
                    await asyncio.sleep(0)
            elif what == "stop":
                streams.stop()
            elif what == "close":
                client.half_close()
            assert len(embedder.waiting) <= window
        client.half_close()
        while not stream.done():
            for text in undecided(embedder):
                embedder.answer(text)
            await asyncio.sleep(0)
        await stream
        assert Counter(client.answered) == Counter(int(text) for text, _ in embedder.seen)
        assert len(client.answered) == len(set(client.answered))
        assert client.kinds.count("stopping") <= 1

    asyncio.run(scenario())
