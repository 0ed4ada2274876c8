"""Pictures and stored items are given the label that is nearest; labels' vectors are means, remembered, bounded."""

import asyncio
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import EmbedLimits, Image
from likeness.embedder.v1 import embedder_pb2
from likeness.gateway.v1.gateway_pb2 import (
    Classification,
    ClassifyInput,
    ClassifyRequest,
    ClassifyResponse,
    Labelling,
    SuggestLabelsRequest,
    SuggestLabelsResponse,
)
from prometheus_client import CollectorRegistry

from chassis import calls
from chassis.deadline import Deadline
from chassis.errors import LikenessError, from_status, invalid
from chassis.keys import Limits
from chassis.quota import Allowance
from chassis.vectors import Array, to_proto
from gateway import labelling
from gateway.backends import Embedder, Indexer
from gateway.classify import Classify
from gateway.fetch import Fetch
from gateway.labelling import LabelVectors, softmax
from gateway.metrics import Metrics
from tests.unit.gateway.behind import MODEL, OTHER, Behind, behind, direction_of, embedding, ids, vector


def classifier(embedder: Embedder, indexer: Indexer, size: int = 100, stalled_s: float = 300) -> Classify:
    vectors = LabelVectors(embedder, size, Metrics(CollectorRegistry()))
    return Classify(embedding(embedder), indexer, vectors, asyncio.Event(), 20, asyncio.Semaphore(1), stalled_s)


def image(content: bytes) -> ClassifyInput:
    return ClassifyInput(image=Image(encoded=content))


def request(*inputs: ClassifyInput, labels: tuple[str, ...] = ("cat", "car"), **more: object) -> ClassifyRequest:
    options = {key: more.pop(key) for key in ("templates", "scale") if key in more}
    return ClassifyRequest(inputs=inputs, labelling=Labelling(labels=labels, **options), **more)  # type: ignore[arg-type]


async def ask(classify: Classify, asked: ClassifyRequest) -> ClassifyResponse:
    return await classify(asked, Deadline(20))


def best(result: Classification) -> str:
    return result.labels[0].label


def meanings(services: Behind) -> None:
    services.meaning |= {
        "a photo of a cat.": vector(1),
        "a photo of a car.": vector(0, 1),
        "whiskers": vector(3, 1),
        "wheels": vector(1, 3),
    }


async def test_a_picture_and_a_stored_item_get_the_nearest_label_and_its_probability() -> None:
    async with behind() as (services, embedder, indexer):
        meanings(services)
        services.put("stored", vector(0, 1))
        answer = await ask(
            classifier(embedder, indexer), request(image(b"whiskers"), ClassifyInput(id="stored"), scale=10)
        )

    first, second = answer.results
    assert (best(first), best(second)) == ("cat", "car")
    cosines = np.array([3, 1]) / 10**0.5
    powers = np.exp(10 * cosines)
    assert [label.similarity for label in first.labels] == pytest.approx(list(cosines))
    assert [label.probability for label in first.labels] == pytest.approx(list(powers / powers.sum()))
    assert answer.scale == 10


async def test_a_label_is_the_mean_of_its_templates() -> None:
    async with behind() as (services, embedder, indexer):
        services.meaning |= {"one cat": vector(1), "two cat": vector(0, 1), "picture": vector(1, 1)}
        answer = await ask(
            classifier(embedder, indexer), request(image(b"picture"), labels=("cat",), templates=["one {}", "two {}"])
        )

    assert answer.results[0].labels[0].similarity == pytest.approx(1)
    assert answer.results[0].labels[0].probability == 1


async def test_an_input_fails_alone() -> None:
    async with behind() as (services, embedder, indexer):
        meanings(services)
        answer = await ask(
            classifier(embedder, indexer),
            request(ClassifyInput(id="nobody"), image(b"wheels"), image(b"bad"), ClassifyInput(id="\n")),
        )

    nobody, wheels, bad, unnamed = answer.results
    assert best(wheels) == "car"
    assert from_status(nobody.error.status).reason_name == "ITEM_NOT_FOUND"
    assert from_status(bad.error.status).violations[0].field == "inputs[2].text"
    assert from_status(unnamed.error.status).violations[0].field == "inputs[3].id"


async def test_a_picture_whose_host_is_away_is_named_by_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    async def get(_fetch: Fetch, _uri: str, field: str, *_rest: object) -> bytes:
        raise LikenessError(error_pb2.REASON_FETCH_UNAVAILABLE, f"{field}: its host cannot be reached", (), 5.0)

    monkeypatch.setattr(Fetch, "__call__", get)
    away = ClassifyInput(image=Image(uri="http://unknown/"))
    async with behind() as (services, embedder, indexer):
        services.put("stored", vector(1))
        answer = await ask(classifier(embedder, indexer), request(ClassifyInput(id="stored"), away))

    error = from_status(answer.results[1].error.status)
    assert error.message == "inputs[1].image.uri: its host cannot be reached"


async def test_labels_are_embedded_once_and_forgotten_when_there_are_too_many() -> None:
    async with behind() as (services, embedder, indexer):
        meanings(services)
        classify = classifier(embedder, indexer, size=2)
        for labels in (("cat", "car"), ("car", "cat"), ("dog",), ("cat",), ("car",)):
            await ask(classify, request(image(b"wheels"), labels=labels))

    texts = [each.text for call in services.asked("Embed") for each in call.inputs if each.text]
    asked = [text.removeprefix("a photo of a ").removesuffix(".") for text in texts]
    assert asked == ["cat", "car", "dog", "car"]


def test_labels_are_told_apart_by_label_templates_and_model() -> None:
    def of(*labels: str, templates: tuple[str, ...] = ("{}",), digest: str = "aa") -> list[bytes]:
        return labelling.Labelling(labels, templates, None).identities(digest)

    different = [
        *of("a", "b", "ab"),
        *of("a", templates=("{}", "a {}")),
        *of("a", templates=("a {}", "{}")),
        *of("a", templates=("{}a {}",)),
        *of("}a", templates=("{",)),
        *of("a", digest="bb"),
    ]
    assert len(set(different)) == len(different)
    assert of("b", "a") == [*of("b"), *of("a")]


async def test_what_is_remembered_of_a_label_is_as_little_with_many_long_templates() -> None:
    class Texts:
        async def embed(self, inputs: Sequence[object], *_: object, **__: object) -> embedder_pb2.EmbedResponse:
            results = [embedder_pb2.EmbedResult(vector=to_proto(vector(1)))] * len(inputs)
            return embedder_pb2.EmbedResponse(fingerprint=MODEL, results=results)

    model = embedder_pb2.GetModelResponse(fingerprint=MODEL, limits=EmbedLimits(max_inputs=256))
    vectors = LabelVectors(Texts(), 1000, Metrics(CollectorRegistry()))  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(50):
            templates = tuple(f"{i} {'x' * 1000} {{}}" for i in range(100))
            asked = labelling.Labelling((str(number),), templates, None)
            await vectors.of(asked, model, Deadline(20), taken=1)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert after - before < 50 * 4096


@dataclass
class Taken:
    """Stands for the caller's allowance, and remembers what was charged: items, and how many of them were before."""

    charged: list[tuple[int, int]] = field(default_factory=list)

    def charge(self, items: int, *, taken: int = 0) -> None:
        self.charged.append((items, taken))


async def test_sixteen_texts_that_are_to_be_embedded_count_as_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Taken()
    monkeypatch.setattr(calls, "allowance", lambda: taken)
    labels = tuple(str(i) for i in range(17))
    async with behind() as (services, embedder, indexer):
        services.put("stored", vector(1))
        classify = classifier(embedder, indexer)
        stored = ClassifyInput(id="stored")
        for more in ((), ("one more",)):
            asked = request(stored, stored, labels=(*labels, *more), templates=[f"{{}} {i}" for i in range(16)])
            await ask(classify, asked)
            await ask(classify, asked)  # of these nothing is left to embed
        await suggested(classify)

    assert taken.charged == [(2 + 17, 2), (2 + 1, 2), (1 + 1, 1)]


async def test_texts_beyond_the_keys_rate_are_refused_before_anything_is_embedded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowance = Allowance(Limits(rate_per_s=1, burst=10), lambda: 0.0)
    monkeypatch.setattr(calls, "allowance", lambda: allowance)
    labels = tuple(str(i) for i in range(900))
    async with behind() as (services, embedder, indexer):
        classify = classifier(embedder, indexer, size=1000)
        allowance.charge(2)  # as the transport does with two inputs
        await ask(classify, request(image(b"x"), image(b"y"), labels=labels))  # more than ever: nothing was owed
        embedded = len(services.asked("Embed"))
        allowance.limits = Limits(rate_per_s=1, burst=100)
        allowance.charge(1)
        with pytest.raises(LikenessError) as caught:
            await ask(classify, request(image(b"z"), labels=tuple(f"b{i}" for i in range(900))))
        allowance.limits = Limits(rate_per_s=1, burst=10)
        with pytest.raises(LikenessError):
            await suggested(classify)
        assert len(services.asked("Embed")) == embedded

    assert caught.value.reason_name == "RATE_LIMITED"
    assert caught.value.retry_after_s is not None


async def test_another_model_has_its_own_labels() -> None:
    async with behind() as (services, embedder, indexer):
        meanings(services)
        classify = classifier(embedder, indexer)
        await ask(classify, request(image(b"wheels")))
        services.model = OTHER
        answer = await ask(classify, request(image(b"wheels")))

    assert answer.fingerprint == OTHER
    assert sum(any(each.text for each in call.inputs) for call in services.asked("Embed")) == 2


async def test_many_labels_are_embedded_behind_searches_and_within_the_embedders_limits() -> None:
    async with behind() as (services, embedder, indexer):
        services.max_inputs = 10
        labels = tuple(str(i) for i in range(40))
        answer = await ask(
            classifier(embedder, indexer), request(image(b"x"), labels=labels, templates=["a {}", "b {}", "c {}"])
        )

    asked = services.asked("Embed")[:-1]
    assert max(len(call.inputs) for call in asked) == 9  # whole labels
    assert {call.priority for call in asked} == {2}
    assert len(answer.results[0].labels) == 5


async def test_a_text_that_is_refused_is_named_by_its_label() -> None:
    async with behind() as (_, embedder, indexer):
        with pytest.raises(LikenessError) as caught:
            await ask(
                classifier(embedder, indexer), request(image(b"x"), labels=("cat", "bad"), templates=["{}", "{} {}"])
            )

    assert [violation.field for violation in caught.value.violations] == ["labelling.labels[1]"]


async def test_stored_vectors_of_another_model_are_not_compared() -> None:
    async with behind() as (services, embedder, indexer):
        services.collections["images"] = OTHER
        services.put("stored", vector(1))
        with pytest.raises(LikenessError) as caught:
            await ask(classifier(embedder, indexer), request(ClassifyInput(id="stored")))

    assert caught.value.reason_name == "MODEL_MISMATCH"


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        (request(ClassifyInput()), "inputs[0]"),
        (request(*[image(b"x")] * 257), "inputs"),
        (request(*[image(b"x")] * 21, top_k=1000), "inputs"),
        (request(image(b"x"), labels=("a", "a")), "labelling.labels[1]"),
        (request(image(b"x"), labels=tuple(str(i) for i in range(1001))), "labelling.labels"),
        (request(image(b"x"), templates=["a photo"]), "labelling.templates[0]"),
        (request(image(b"x"), templates=[f"{{}} {i}" for i in range(101)]), "labelling.templates"),
        (request(image(b"x"), scale=0.0), "labelling.scale"),
        (request(image(b"x"), scale=float("nan")), "labelling.scale"),
        (request(image(b"x"), top_k=1001), "top_k"),
    ],
)
async def test_a_bad_request_is_refused_by_the_name_of_its_field(asked: ClassifyRequest, where: str) -> None:
    async with behind() as (services, embedder, indexer):
        with pytest.raises(LikenessError) as caught:
            await ask(classifier(embedder, indexer), asked)

    assert [violation.field for violation in caught.value.violations] == [where]
    assert services.calls == []


@pytest.mark.parametrize(
    ("asked", "where"), [(request(), "inputs"), (request(image(b"x"), labels=()), "labelling.labels")]
)
async def test_nothing_given_is_not_called_too_much(asked: ClassifyRequest, where: str) -> None:
    async with behind() as (_, embedder, indexer):
        with pytest.raises(LikenessError) as caught:
            await ask(classifier(embedder, indexer), asked)

    assert caught.value.reason_name == "FIELD_INVALID"
    assert caught.value.message.startswith(f"{where}: is empty")


async def suggested(classify: Classify, **fields: object) -> list[SuggestLabelsResponse]:
    written: list[SuggestLabelsResponse] = []

    async def write(message: SuggestLabelsResponse) -> None:
        written.append(message)

    labelling = Labelling(labels=["cat", "car"])
    asked = SuggestLabelsRequest(labelling=labelling, **fields)  # type: ignore[arg-type]
    await classify.suggest(asked, write, Deadline(20))
    return written


async def test_a_collection_is_gone_through_and_only_good_suggestions_come_back() -> None:
    async with behind() as (services, embedder, indexer):
        meanings(services)
        services.put("a", vector(0, 1))
        services.put("b", vector(1, 1))
        services.put("c", vector(1))
        (page,) = await suggested(classifier(embedder, indexer), min_probability=0.9)

    assert ids(page.suggestions) == ["a", "c"]
    assert [each.labels[0].label for each in page.suggestions] == ["car", "cat"]
    assert (page.done, page.total, page.next_page_token, page.scale) == (3, 3, "", 100)
    assert not services.asked("UpdateMetadata")


class Silent(Behind):
    """Embeds for ever."""

    async def _begin(self, method: str, request: Any, context: Any, *names: str) -> None:
        await super()._begin(method, request, context, *names)
        if method == "Embed":
            await asyncio.Event().wait()


async def test_a_stop_is_heard_while_labels_are_embedded() -> None:
    silent = Silent()  # type: ignore[abstract]  # only what is called
    async with behind(silent) as (services, embedder, indexer):
        classify = classifier(embedder, indexer)
        suggesting = asyncio.create_task(suggested(classify))
        await services.until_asked("Embed", 1)
        classify.stopping.set()
        with pytest.raises(LikenessError) as caught:
            async with asyncio.timeout(10):
                await suggesting

    assert caught.value.reason_name == "SHUTTING_DOWN"


async def test_a_broken_stream_of_suggestions_goes_on_after_the_last_page() -> None:
    async with behind() as (services, embedder, indexer):
        meanings(services)
        for i in range(1500):
            services.put(f"{i:04}", direction_of(str(i)))
        classify = classifier(embedder, indexer)
        first, second = await suggested(classify)
        (again,) = await suggested(classify, page_token=first.next_page_token)

    assert [len(first.suggestions), len(second.suggestions)] == [1000, 500]
    assert (second.done, second.total) == (1500, 1500)
    assert again.suggestions == second.suggestions


async def test_a_refused_page_token_is_said_to_be_none_of_this_rpc() -> None:
    async with behind() as (services, embedder, indexer):
        services.fail["ListItems"] = invalid("page_token", "'x' is none that ListItems gave")
        with pytest.raises(LikenessError, match="'x' is none that SuggestLabels gave"):
            await suggested(classifier(embedder, indexer), page_token="x")


async def test_pages_of_suggestions_are_smaller_the_more_labels_each_item_gets() -> None:
    async with behind() as (services, embedder, indexer):
        meanings(services)
        for i in range(50):
            services.put(f"{i:02}", direction_of(str(i)))
        pages = await suggested(classifier(embedder, indexer), top_k=1000)

    assert [len(page.suggestions) for page in pages] == [20, 20, 10]


async def test_a_client_that_reads_no_suggestions_loses_its_stream_and_its_place_is_free_again() -> None:
    async def never(_message: SuggestLabelsResponse) -> None:
        await asyncio.Event().wait()

    async with behind() as (services, embedder, indexer):
        services.put("a", vector(1))
        classify = classifier(embedder, indexer, stalled_s=0.01)
        with pytest.raises(LikenessError) as caught:
            await classify.suggest(SuggestLabelsRequest(labelling=Labelling(labels=["cat"])), never, Deadline(20))
        assert await suggested(classify)

    assert caught.value.reason_name == "DEADLINE_EXCEEDED"


async def test_more_streams_of_suggestions_than_allowed_are_told_to_come_again() -> None:
    async with behind() as (services, embedder, indexer):
        classify = classifier(embedder, indexer)
        async with classify.streams:
            with pytest.raises(LikenessError) as caught:
                await suggested(classify)

    assert caught.value.reason_name == "OVERLOADED"
    assert caught.value.retry_after_s is not None
    assert services.calls == []


def test_probabilities_add_up_to_one_at_any_scale() -> None:
    similarities: Array = np.array([[1, -1, 0.5]], np.float32)

    assert softmax(similarities, 10_000).sum() == pytest.approx(1)
    assert softmax(similarities, 1e-6)[0] == pytest.approx([1 / 3] * 3, abs=1e-5)
