"""Vectors that are remembered: by model and content, bounded, counted, made once; never of two models in one answer."""

import asyncio
from typing import Any

import pytest
from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import Image, RgbImage
from likeness.embedder.v1 import embedder_pb2
from likeness.embedder.v1.embedder_pb2 import EmbedInput
from likeness.gateway.v1.gateway_pb2 import SearchRequest, Term
from prometheus_client import CollectorRegistry

from chassis.deadline import Deadline
from chassis.errors import LikenessError
from gateway.embedding import Embedded
from gateway.fetch import Fetch
from gateway.fetch_policy import FetchPolicy
from gateway.metrics import Metrics
from gateway.search import Search
from gateway.settings import GatewaySettings
from tests.unit.gateway.behind import MODEL, OTHER, Behind, behind, direction_of, embedding, vector
from tests.unit.gateway.hostile import hostile, response


def text(words: str) -> EmbedInput:
    return EmbedInput(text=words)


def picture(encoded: bytes) -> EmbedInput:
    return EmbedInput(image=Image(encoded=encoded))


def asked(services: Behind) -> list[list[str]]:
    return [[each.text or each.image.encoded.decode() for each in call.inputs] for call in services.asked("Embed")]


def contents(embedded: Embedded) -> list[bytes | str]:
    return [each.reason_name if isinstance(each, LikenessError) else each.f32 for each in embedded.outcomes]


def bytes_of(content: str | bytes) -> bytes:
    return direction_of(content).tobytes()


async def test_what_was_embedded_once_is_not_embedded_again() -> None:
    metrics = Metrics(CollectorRegistry())
    async with behind() as (services, embedder, _):
        embed = embedding(embedder, 100, metrics=metrics)
        first = await embed([text("a"), picture(b"a")], Deadline(20))
        second = await embed([picture(b"a"), text("b"), text("a"), text("b")], Deadline(20))
        third = await embed([text("b")], Deadline(20))

    assert asked(services) == [["a", "a"], ["b"]]
    assert contents(second) == [bytes_of(b"a"), bytes_of("b"), bytes_of("a"), bytes_of("b")]
    assert (first.remembered, second.remembered, third.remembered) == (False, True, True)
    assert third.fingerprint == MODEL
    sample = metrics.registry.get_sample_value
    assert sample("likeness_gateway_cache_hits_total", {"cache": "picture"}) == 1
    assert sample("likeness_gateway_cache_hits_total", {"cache": "text"}) == 2
    assert sample("likeness_gateway_cache_misses_total", {"cache": "text"}) == 2
    assert sample("likeness_gateway_cache_entries", {"cache": "text"}) == 2


async def test_only_the_vectors_used_last_are_remembered() -> None:
    async with behind() as (services, embedder, _):
        embed = embedding(embedder, 2)
        for words in ("a", "b", "a", "c", "a", "b"):
            await embed([text(words)], Deadline(20))
    assert asked(services) == [["a"], ["b"], ["c"], ["b"]]


async def test_a_text_is_not_taken_for_a_picture_nor_pixels_for_bytes() -> None:
    async with behind() as (services, embedder, _):
        embed = embedding(embedder, 100)
        pixels = EmbedInput(image=Image(rgb=RgbImage(width=1, height=1, pixels=b"abc")))
        for each in (text("abc"), picture(b"abc"), pixels, picture(b"rgb:1x1:abc")):
            await embed([each], Deadline(20))
    assert asked(services) == [["abc"], ["abc"], [""], ["rgb:1x1:abc"]]


async def test_what_was_refused_is_asked_again() -> None:
    async with behind() as (services, embedder, _):
        embed = embedding(embedder, 100)
        for _ in range(2):
            assert contents(await embed([text("bad"), text("a")], Deadline(20))) == ["FIELD_INVALID", bytes_of("a")]
    assert asked(services) == [["bad", "a"], ["bad"]]


class Gated(Behind):
    """Holds calls to Embed until its gate is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.entered = asyncio.Event(), asyncio.Event()

    async def Embed(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.entered.set()
        await self.open.wait()
        return await super().Embed(request, context)


async def test_equal_ones_under_way_are_made_once() -> None:
    services = Gated()  # type: ignore[abstract]  # only what is called
    async with behind(services) as (_, embedder, _):
        embed = embedding(embedder, 100)
        calls = [asyncio.create_task(embed([text("a"), text(words)], Deadline(20))) for words in "bcd"]
        await services.entered.wait()
        services.open.set()
        answers = await asyncio.gather(*calls)

    assert sorted(words for call in asked(services) for words in call) == ["a", "b", "c", "d"]
    assert [contents(answer) for answer in answers] == [[bytes_of("a"), bytes_of(words)] for words in "bcd"]


async def test_nobody_waits_for_somebody_elses_many() -> None:
    services = Gated()  # type: ignore[abstract]  # only what is called
    async with behind(services) as (_, embedder, _):
        embed = embedding(embedder, 100)
        many = asyncio.create_task(embed([text(f"text {n}") for n in range(100)], Deadline(20)))
        await services.entered.wait()
        services.entered.clear()
        one = asyncio.create_task(embed([text("text 99")], Deadline(20)))
        async with asyncio.timeout(20):
            await services.entered.wait()
        services.open.set()
        await asyncio.gather(many, one)

    assert sorted(len(call) for call in asked(services)) == [1, 100]


async def test_texts_that_are_wanted_at_the_same_moment_go_in_one_call_and_pictures_do_not() -> None:
    async with behind() as (services, embedder, _):
        embed = embedding(embedder, 100)
        long, longest = "f" * 1000, "g" * 3000
        wanted = [[text("a")], [text("bad")], [text("c"), text("d")], [picture(b"e")], [text(long)], [text(longest)]]
        found = await asyncio.gather(*(embed(each, Deadline(20)) for each in wanted))
        again = await embed([text("a")], Deadline(20))

    assert sorted(asked(services)) == [["a", "bad"], ["c", "d"], ["e"], [long], [longest]]
    assert [contents(each) for each in found[:4]] == [
        [bytes_of("a")],
        ["FIELD_INVALID"],
        [bytes_of("c"), bytes_of("d")],
        [bytes_of(b"e")],
    ]
    assert again.remembered
    assert contents(again) == [bytes_of("a")]
    assert all(each.timings.inference.ToMilliseconds() == 3 for each in found)


async def test_texts_are_embedded_one_by_one_where_together_they_are_refused() -> None:
    async with behind() as (services, embedder, _):
        embed = embedding(embedder, 100)
        services.fail["Embed"] = LikenessError(error_pb2.REASON_BATCH_TOO_LARGE, "too many")
        both = await asyncio.gather(*(embed([text(words)], Deadline(20)) for words in "ab"), return_exceptions=True)
        del services.fail["Embed"]
        await asyncio.gather(*(embed([text(words)], Deadline(20)) for words in "cd"))

    assert [each.reason for each in both if isinstance(each, LikenessError)] == [error_pb2.REASON_BATCH_TOO_LARGE] * 2
    assert sorted(asked(services)) == [["a"], ["a", "b"], ["b"], ["c", "d"]]


async def test_an_embedder_that_refuses_nearly_everything_is_asked_for_little_and_what_is_remembered_is_answered() -> (
    None
):
    metrics = Metrics(CollectorRegistry())
    async with behind() as (services, embedder, _):
        embed = embedding(embedder, 100, metrics=metrics)
        await embed([text("known")], Deadline(20))
        services.fail["Embed"] = LikenessError(error_pb2.REASON_OVERLOADED, "busy", retry_after_s=0.5)
        refused: list[Embedded | BaseException] = []
        for calls in (20, 100):
            at_once = (embed([picture(b"%d of %d" % (n, calls))], Deadline(20)) for n in range(calls))
            refused += await asyncio.gather(*at_once, return_exceptions=True)
        known = await embed([text("known")], Deadline(20))

    assert {each.reason for each in refused if isinstance(each, LikenessError)} == {error_pb2.REASON_OVERLOADED}
    throttled = metrics.registry.get_sample_value("likeness_gateway_throttled_total")
    assert throttled
    assert throttled == len(refused) - (len(asked(services)) - 1)
    assert known.remembered


async def test_bulk_says_what_it_is_before_it_is_read() -> None:
    async with behind() as (services, embedder, _):
        await embedder.embed([text("a")], 20, bulk=True)
        await embedder.embed([text("a")], 20, priority=embedder_pb2.PRIORITY_BULK)
        await embedder.embed([text("a")], 20)

    assert services.announced == [True, True, False]


async def test_texts_that_are_refused_together_for_want_of_room_are_not_sent_again_one_by_one() -> None:
    async with behind() as (services, embedder, _):
        embed = embedding(embedder, 100)
        services.fail["Embed"] = LikenessError(error_pb2.REASON_OVERLOADED, "busy", retry_after_s=0.5)
        both = await asyncio.gather(*(embed([text(words)], Deadline(20)) for words in "ab"), return_exceptions=True)

    assert [each.message for each in both if isinstance(each, LikenessError)] == ["busy", "busy"]
    assert asked(services) == [["a", "b"]]


async def test_who_waits_for_a_call_that_is_given_up_makes_it_itself() -> None:
    services = Gated()  # type: ignore[abstract]  # as above
    async with behind(services) as (_, embedder, _):
        embed = embedding(embedder, 100)
        given_up = asyncio.create_task(embed([text("a")], Deadline(20)))
        await services.entered.wait()
        waiting = asyncio.create_task(embed([text("a")], Deadline(20)))
        late = asyncio.create_task(embed([text("a")], Deadline(0.1)))
        with pytest.raises(LikenessError) as caught:
            await late
        given_up.cancel()
        services.open.set()
        assert contents(await waiting) == [bytes_of("a")]
    assert caught.value.reason_name == "DEADLINE_EXCEEDED"
    assert given_up.cancelled()


async def test_one_answer_is_of_one_model_however_it_changes() -> None:
    async with behind() as (services, embedder, _):
        embed = embedding(embedder, 100)
        await embed([text("a")], Deadline(20))
        services.model = OTHER
        services.meaning["a"] = vector(0, 0, 0, 1)
        known = await embed([text("a")], Deadline(20))
        mixed = await embed([text("a"), text("b")], Deadline(20))
        services.model = MODEL
        back = await embed([text("a"), text("c")], Deadline(20), fresh=True)

    assert (known.fingerprint, contents(known)) == (MODEL, [bytes_of("a")])
    assert (mixed.fingerprint, contents(mixed)) == (OTHER, [vector(0, 0, 0, 1).tobytes(), bytes_of("b")])
    assert not mixed.remembered
    assert (back.fingerprint, back.remembered) == (MODEL, False)


async def test_vectors_are_recalled_by_the_model_that_is_asked_for() -> None:
    async with behind() as (services, embedder, _):
        embed = embedding(embedder, 100)
        await embed([text("a")], Deadline(20))
        services.model = OTHER
        await embed([text("b")], Deadline(20))
        old = await embed([text("a")], Deadline(20), digest=MODEL.digest)
        new = await embed([text("a")], Deadline(20), digest=OTHER.digest)
    assert (old.fingerprint, new.fingerprint) == (MODEL, OTHER)


async def test_a_search_after_the_model_was_switched_is_answered_by_the_new_one() -> None:
    async with behind() as (services, embedder, indexer):
        search = Search(embedding(embedder, 100), indexer)
        services.put("x", vector(1))
        services.put("y", vector(0, 1))
        services.meaning["w"] = vector(1)
        request = SearchRequest(terms=[Term(text="w")])
        before = await search(request, Deadline(20))
        services.model = services.collections["images"] = OTHER
        services.meaning["w"] = vector(0, 1)
        after = await search(request, Deadline(20))
        again = await search(request, Deadline(20))

    assert [(answer.hits[0].item.id, answer.fingerprint) for answer in (before, after, again)] == [
        ("x", MODEL),
        ("y", OTHER),
        ("y", OTHER),
    ]
    assert asked(services) == [["w"], ["w"]]
    assert len(services.asked("Query")) == 4


async def test_a_collection_of_the_model_before_is_searched_by_what_is_remembered_or_refused() -> None:
    async with behind() as (services, embedder, indexer):
        search = Search(embedding(embedder, 100), indexer)
        services.put("x", vector(1))
        await search(SearchRequest(terms=[Term(text="a")]), Deadline(20))
        services.model = OTHER
        known = await search(SearchRequest(terms=[Term(text="a")]), Deadline(20))
        with pytest.raises(LikenessError) as caught:
            await search(SearchRequest(terms=[Term(text="a"), Term(text="b")]), Deadline(20))

    assert known.fingerprint == MODEL
    assert caught.value.reason_name == "MODEL_MISMATCH"


async def test_a_picture_by_uri_is_fetched_and_then_as_any_other() -> None:
    metrics = Metrics(CollectorRegistry())
    settings = GatewaySettings(fetch=True)

    async def here(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async with behind() as (services, embedder, _), hostile() as web:
        encoded = b"a picture"
        web.answers["/a"] = response(encoded)
        policy = FetchPolicy(ports=frozenset((web.port,)), allows=lambda address: address.is_loopback)
        fetch = Fetch(settings, metrics, policy, here)
        embed = embedding(embedder, 100, fetch)
        inputs = [
            text("a"),
            EmbedInput(image=Image(uri=web.url("/missing"))),
            EmbedInput(image=Image(uri=web.url("/a"))),
            picture(encoded),
        ]
        whole = await embed(inputs, Deadline(20))
        alone = await embed(inputs[1:2], Deadline(20))
        await fetch.close()

    assert contents(whole) == [bytes_of("a"), "FETCH_FAILED", bytes_of(encoded), bytes_of(encoded)]
    failed = whole.outcomes[1]
    assert isinstance(failed, LikenessError)
    assert [violation.field for violation in failed.violations] == ["inputs[1].image.uri"]
    assert (contents(alone), alone.fingerprint) == (["FETCH_FAILED"], MODEL)
    assert asked(services) == [["a", "a picture"]]


async def test_fetched_pictures_are_together_no_larger_than_a_message() -> None:
    async with behind() as (_, embedder, _), hostile() as web:
        web.answers["/a"] = response(b"x" * 2**20)
        policy = FetchPolicy(ports=frozenset((web.port,)), allows=lambda address: address.is_loopback)

        async def here(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        fetch = Fetch(GatewaySettings(fetch=True), Metrics(CollectorRegistry()), policy, here)
        inputs = [EmbedInput(image=Image(uri=web.url("/a"))) for _ in range(3)]
        embed = embedding(embedder, 100, fetch, max_bytes=2 * 2**20)
        outcomes = (await embed(inputs, Deadline(20))).outcomes
        await fetch.close()
    reasons = [each.reason for each in outcomes if isinstance(each, LikenessError)]
    assert reasons == [error_pb2.REASON_BATCH_TOO_LARGE] * 2


async def test_a_uri_in_a_search_is_refused_by_name_where_nothing_is_fetched() -> None:
    async with behind() as (_, embedder, indexer):
        terms = [Term(text="a"), Term(image=Image(uri="https://example.org/a.png"))]
        with pytest.raises(LikenessError) as caught:
            await Search(embedding(embedder), indexer)(SearchRequest(terms=terms), Deadline(20))
    assert caught.value.reason_name == "FETCH_DISABLED"
    assert caught.value.violations[0].field == "terms[1].image.uri"
