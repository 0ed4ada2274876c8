"""Searches one by one and in batches: what is asked behind, what fails alone, what is counted and explained."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from likeness.common.v1 import error_pb2, types_pb2
from likeness.common.v1.metadata_pb2 import OPERATOR_CONTAINS, Comparison, Filter, Value
from likeness.gateway.v1 import gateway_pb2
from likeness.gateway.v1.gateway_pb2 import BatchSearchRequest, FacetRequest, Rescore, SearchRequest, Term
from prometheus_client import CollectorRegistry

from chassis.deadline import Deadline
from chassis.errors import LikenessError, from_status, invalid
from chassis.vectors import to_proto
from gateway import batch as batches
from gateway import search as searching
from gateway.batch import BatchSearch
from gateway.fetch import Fetch
from gateway.metrics import Metrics
from gateway.search import Search
from gateway.settings import GatewaySettings
from tests.unit.gateway.behind import MODEL, OTHER, Behind, behind, embedding, vector

CATS = Filter(comparison=Comparison(key="labels", op=OPERATOR_CONTAINS, values=[Value(string_value="cat")]))


def stock(services: Behind) -> None:
    services.put("red cat", vector(1, 1), labels=["cat", "red"], uri="a")
    services.put("cat", vector(1), labels=["cat"])
    services.put("car", vector(0, 0, 1), labels=["car"])
    services.meaning |= {"cat": vector(1), "red": vector(0, 1), "car": vector(0, 0, 1)}


async def batch(services: tuple[Behind, Search], *searches: SearchRequest) -> gateway_pb2.BatchSearchResponse:
    return await BatchSearch(services[1])(BatchSearchRequest(searches=searches), Deadline(20))


def found(result: gateway_pb2.BatchSearchResult) -> list[str]:
    assert result.WhichOneof("outcome") == "response", result
    return [hit.item.id for hit in result.response.hits]


def failure(result: gateway_pb2.BatchSearchResult) -> LikenessError:
    assert result.WhichOneof("outcome") == "error"
    return from_status(result.error.status)


async def test_each_hit_tells_how_alike_it_is_to_each_term_before_weights() -> None:
    async with behind() as (services, embedder, indexer):
        stock(services)
        terms = [Term(text="red", weight=-3), Term(id="car"), Term(vector=to_proto(vector(1) * 7))]
        answer = await Search(embedding(embedder), indexer)(SearchRequest(terms=terms, explain=True), Deadline(20))

    alike = {hit.item.id: list(hit.term_similarities) for hit in answer.hits}
    assert alike["cat"] == pytest.approx([0, 0, 1])
    assert alike["red cat"] == pytest.approx([0.5**0.5, 0, 0.5**0.5])
    assert not answer.hits[0].item.HasField("vector")
    assert answer.timings.explain.ToNanoseconds() > 0


async def test_without_being_asked_nothing_is_explained_and_no_vector_is_read() -> None:
    async with behind() as (services, embedder, indexer):
        stock(services)
        answer = await Search(embedding(embedder), indexer)(SearchRequest(terms=[Term(id="cat")]), Deadline(20))

    assert not any(hit.term_similarities for hit in answer.hits)
    assert [name for name, _ in services.calls] == ["Query"]
    assert not services.asked("Query")[0].fields.vector


async def test_searches_that_come_together_are_answered_each_by_itself() -> None:
    terms = [[Term(text="cat")], [Term(id="lost")], [Term(text="car")], [Term(text="cat"), Term(text="bad one")]]
    async with behind() as (services, embedder, indexer):
        stock(services)
        search = Search(embedding(embedder), indexer)
        together = (search(SearchRequest(terms=each, top_k=1), Deadline(20)) for each in terms)
        cat, lost, car, bad = await asyncio.gather(*together, return_exceptions=True)

    assert [hit.item.id for each in (cat, car) for hit in each.hits] == ["cat", "car"]  # type: ignore[union-attr]
    assert isinstance(lost, LikenessError)
    assert lost.reason == error_pb2.REASON_ITEM_NOT_FOUND
    assert isinstance(bad, LikenessError)
    assert bad.violations[0].field == "terms[1].text"
    assert [len(call.inputs) for call in services.asked("Embed")] == [3]  # the second cat waits for the first
    assert sorted(len(call.queries) for call in services.asked("Query")) == [1, 2]


async def test_facets_count_what_the_filter_leaves_and_not_the_hits() -> None:
    async with behind() as (services, embedder, indexer):
        stock(services)
        request = SearchRequest(
            terms=[Term(text="cat")], filter=CATS, top_k=1, facets=[FacetRequest(key="labels"), FacetRequest(key="uri")]
        )
        answer = await Search(embedding(embedder), indexer)(request, Deadline(20))

    assert len(answer.hits) == 1
    assert answer.count == 2
    labels, uri = answer.facets
    assert [(each.value.string_value, each.count) for each in labels.values] == [("cat", 2), ("red", 1)]
    assert (labels.distinct, uri.missing) == (2, 1)
    assert answer.timings.facets.ToNanoseconds() > 0


async def test_paging_rescoring_and_exactness_are_passed_on() -> None:
    async with behind() as (services, embedder, indexer):
        stock(services)
        rescore = Rescore(metric=types_pb2.METRIC_L1, candidates=500)
        request = SearchRequest(terms=[Term(text="cat")], top_k=1, offset=1, exact=True, rescore=rescore)
        answer = await Search(embedding(embedder), indexer)(request, Deadline(20))

    query = services.asked("Query")[0].queries[0]
    assert (query.offset, query.exact, query.rescore.metric) == (1, True, types_pb2.METRIC_L1)
    assert query.rescore.candidates == 500
    assert [hit.item.id for hit in answer.hits] == ["red cat"]
    assert answer.hits[0].distance == pytest.approx(1 - answer.hits[0].score)


async def test_the_embedders_own_timings_are_told() -> None:
    async with behind() as (services, embedder, indexer):
        stock(services)
        timings = (
            await Search(embedding(embedder), indexer)(SearchRequest(terms=[Term(text="cat")]), Deadline(20))
        ).timings

    told = [timings.embed_queue, timings.embed_decode, timings.embed_inference]
    assert [each.ToMilliseconds() for each in told] == [1, 2, 3]
    assert not timings.HasField("facets")
    assert not timings.HasField("explain")


async def test_a_failed_count_fails_the_search_by_its_reason() -> None:
    async with behind() as (services, embedder, indexer):
        services.fail["GetFacets"] = LikenessError(error_pb2.REASON_FILTER_INVALID, "too many to count")
        request = SearchRequest(terms=[Term(text="cat")], facets=[FacetRequest(key="labels")])
        with pytest.raises(LikenessError) as caught:
            await Search(embedding(embedder), indexer)(request, Deadline(20))

    assert caught.value.reason == error_pb2.REASON_FILTER_INVALID


async def test_a_batch_is_one_embed_call_and_one_query_call_and_repeated_texts_are_embedded_once() -> None:
    async with behind() as (services, embedder, indexer):
        stock(services)
        searches = [SearchRequest(terms=[Term(text=text)], top_k=1) for text in ("cat", "car", "cat", "red")]
        answer = await batch((services, Search(embedding(embedder), indexer)), *searches)

    assert [found(result) for result in answer.results] == [["cat"], ["car"], ["cat"], ["red cat"]]
    assert [each.text for each in services.asked("Embed")[0].inputs] == ["cat", "car", "red"]
    assert len(services.asked("Embed")) == len(services.asked("Query")) == 1
    assert answer.timings.total.ToNanoseconds() > 0
    assert not answer.results[0].response.HasField("timings")


async def test_a_batch_is_split_by_the_embedders_limits() -> None:
    async with behind() as (services, embedder, indexer):
        stock(services)
        services.max_inputs = 2
        searches = [SearchRequest(terms=[Term(text=text)], top_k=1) for text in ("cat", "car", "red")]
        answer = await batch((services, Search(embedding(embedder), indexer)), *searches)

    assert [len(call.inputs) for call in services.asked("Embed")] == [2, 1]
    assert [found(result) for result in answer.results] == [["cat"], ["car"], ["red cat"]]
    assert answer.timings.embed_inference.ToMilliseconds() == 6


async def test_a_bad_search_fails_alone_and_names_its_own_fields() -> None:
    async with behind() as (services, embedder, indexer):
        stock(services)
        answer = await batch(
            (services, Search(embedding(embedder), indexer)),
            SearchRequest(terms=[Term(id="cat"), Term(text="bad")]),
            SearchRequest(terms=[Term(text="cat")], top_k=1),
            SearchRequest(),
            SearchRequest(terms=[Term(text="cat"), Term(id="nobody")]),
            SearchRequest(collection="nowhere", terms=[Term(id="cat")]),
            SearchRequest(terms=[Term(text="cat"), Term(text="cat", weight=-1)]),
        )

    bad, good, empty, nobody, nowhere, cancelling = answer.results
    assert found(good) == ["cat"]
    assert [v.field for v in failure(bad).violations] == ["terms[1].text"]
    assert [v.field for v in failure(empty).violations] == ["terms"]
    assert failure(nobody).reason_name == "ITEM_NOT_FOUND"
    assert failure(nowhere).reason_name == "COLLECTION_NOT_FOUND"
    assert [v.field for v in failure(cancelling).violations] == ["terms"]


async def test_a_collection_of_another_model_fails_only_what_was_embedded() -> None:
    async with behind() as (services, embedder, indexer):
        stock(services)
        services.collections["other"] = OTHER
        answer = await batch(
            (services, Search(embedding(embedder), indexer)),
            SearchRequest(collection="other", terms=[Term(text="cat")]),
            SearchRequest(collection="other", terms=[Term(id="cat")], top_k=1),
            SearchRequest(terms=[Term(text="cat")], expected_fingerprint=OTHER),
            SearchRequest(terms=[Term(text="cat")], expected_fingerprint=MODEL, top_k=1),
        )

    by_text, by_id, expecting, fitting = answer.results
    assert failure(by_text).reason_name == "MODEL_MISMATCH"
    assert found(by_id) == ["red cat"]
    assert failure(expecting).reason_name == "MODEL_MISMATCH"
    assert found(fitting) == ["cat"]


async def test_without_an_embedder_searches_by_stored_items_go_on() -> None:
    async with behind() as (services, embedder, indexer):
        stock(services)
        services.fail["Embed"] = LikenessError(error_pb2.REASON_OVERLOADED, "busy", retry_after_s=1)
        answer = await batch(
            (services, Search(embedding(embedder), indexer)),
            SearchRequest(terms=[Term(text="cat")]),
            SearchRequest(terms=[Term(id="cat")], top_k=1),
        )

    assert failure(answer.results[0]).reason_name == "OVERLOADED"
    assert found(answer.results[1]) == ["red cat"]


async def test_in_a_batch_only_who_asked_for_vectors_gets_them() -> None:
    async with behind() as (services, embedder, indexer):
        stock(services)
        answer = await batch(
            (services, Search(embedding(embedder), indexer)),
            SearchRequest(terms=[Term(id="cat")], fields=types_pb2.ItemFields(vector=True)),
            SearchRequest(terms=[Term(id="cat")]),
        )

    with_vector, without = (result.response.hits[0].item for result in answer.results)
    assert with_vector.HasField("vector")
    assert not without.HasField("vector")
    # Calls of their own: a large answer cannot take its neighbours down with it.
    assert sorted((call.fields.vector, len(call.queries)) for call in services.asked("Query")) == [
        (False, 1),
        (True, 1),
    ]


async def test_answers_that_are_too_large_together_fail_behind_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_BYTES", 2500)
    async with behind() as (services, embedder, indexer):
        stock(services)
        services.put("large", vector(1), text="x" * 1000)
        search = SearchRequest(terms=[Term(id="cat")], top_k=1)
        answer = await batch((services, Search(embedding(embedder), indexer)), search, search, search)

    assert [found(result) for result in answer.results[:2]] == [["large"], ["large"]]
    assert failure(answer.results[2]).reason_name == "BATCH_TOO_LARGE"


class Full(Behind):
    """Refuses a Query call whose hits are more than a message takes: as many as ``room``."""

    room = 5

    async def Query(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = await super().Query(request, context)
        if sum(len(result.hits) for result in answer.results) > self.room:
            field = "queries" if len(answer.results) > 1 else "queries[0].top_k"
            error = invalid(field, "the answer would be larger", error_pb2.REASON_BATCH_TOO_LARGE)
            await self._abort(context, error)
        return answer


async def test_what_is_too_large_together_is_asked_for_in_parts() -> None:
    async with behind(Full()) as (services, embedder, indexer):  # type: ignore[abstract]
        for i in range(6):
            services.put(str(i), vector(1, i), number=i)
        two, six = (SearchRequest(terms=[Term(vector=to_proto(vector(1)))], top_k=top_k) for top_k in (2, 6))
        answer = await batch((services, Search(embedding(embedder), indexer)), two, two, six, two)

    assert [found(answer.results[i]) for i in (0, 1, 3)] == [["0", "1"]] * 3
    error = failure(answer.results[2])
    assert (error.reason_name, error.violations[0].field) == ("BATCH_TOO_LARGE", "top_k")
    assert [len(request.queries) for request in services.asked("Query")] == [4, 2, 2, 1, 1]


async def test_no_more_is_asked_for_once_what_was_found_fills_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "MAX_BYTES", 1500)
    async with behind(Full()) as (services, embedder, indexer):  # type: ignore[abstract]
        for i in range(3):
            services.put(str(i), vector(1), text="x" * 1000)
        one = SearchRequest(terms=[Term(vector=to_proto(vector(1)))], top_k=1)
        answer = await batch((services, Search(embedding(embedder), indexer)), *[one] * 8)

    assert [found(result) for result in answer.results[:4]] == [["0"]] * 4
    assert {failure(result).reason_name for result in answer.results[4:]} == {"BATCH_TOO_LARGE"}
    assert [len(request.queries) for request in services.asked("Query")] == [8, 4]


@pytest.mark.parametrize("asked", [{"explain": True}, {"fields": types_pb2.ItemFields()}])
async def test_what_is_read_and_not_sent_takes_no_room(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "MAX_BYTES", 100)
    text = "" if "explain" in asked else "x" * 100
    async with behind(Full()) as (services, embedder, indexer):  # type: ignore[abstract]
        for i in range(6):
            services.put(str(i), vector(1, i), **({"text": text} if text else {}))
        one = SearchRequest(terms=[Term(vector=to_proto(vector(1)))], top_k=1, **asked)
        answer = await batch((services, Search(embedding(embedder), indexer)), *[one] * 6)

    assert [found(result) for result in answer.results] == [["0"]] * 6


async def test_a_search_that_is_refused_by_itself_takes_no_room_from_others() -> None:
    term = [Term(id="cat")]
    greedy = [
        SearchRequest(terms=term, rescore=Rescore(candidates=20_001)),
        SearchRequest(terms=term, facets=[FacetRequest(key="k")] * 129),
    ]
    async with behind() as (services, embedder, indexer):
        stock(services)
        search = SearchRequest(terms=term, top_k=1)
        answer = await batch((services, Search(embedding(embedder), indexer)), search, *greedy)

    assert found(answer.results[0]) == ["red cat"]
    assert failure(answer.results[2]).violations[0].field == "facets"


async def test_a_batch_of_no_searches_is_not_called_too_large() -> None:
    async with behind() as (services, embedder, indexer):
        with pytest.raises(LikenessError, match="searches: is empty") as caught:
            await batch((services, Search(embedding(embedder), indexer)))

    assert caught.value.reason_name == "FIELD_INVALID"


async def test_a_picture_whose_host_is_away_is_named_by_its_term(monkeypatch: pytest.MonkeyPatch) -> None:
    async def get(_fetch: Fetch, _uri: str, field: str, *_rest: object) -> bytes:
        raise LikenessError(error_pb2.REASON_FETCH_UNAVAILABLE, f"{field}: its host cannot be reached", (), 5.0)

    monkeypatch.setattr(Fetch, "__call__", get)
    terms = [Term(id="cat"), Term(text="red"), Term(image=types_pb2.Image(uri="http://unknown/"))]
    async with behind() as (services, embedder, indexer):
        stock(services)
        with pytest.raises(LikenessError) as caught:
            await Search(embedding(embedder), indexer)(SearchRequest(terms=terms), Deadline(20))

    assert caught.value.message == "terms[2].image.uri: its host cannot be reached"
    assert caught.value.retry_after_s == 5.0


@pytest.mark.parametrize(
    ("searches", "says"),
    [
        ([SearchRequest()] * 129, "129 searches"),
        ([SearchRequest(top_k=1000, offset=1)] * 10, "10,010 hits"),
        ([SearchRequest(rescore=Rescore(candidates=10_000))] * 3, "30,000 candidates"),
        ([SearchRequest(facets=[FacetRequest(key="k")] * 2)] * 65, "130 facets"),
    ],
)
async def test_a_batch_that_asks_for_too_much_is_refused_whole(searches: list[SearchRequest], says: str) -> None:
    async with behind() as (services, embedder, indexer):
        with pytest.raises(LikenessError) as caught:
            await batch((services, Search(embedding(embedder), indexer)), *searches)

    assert caught.value.reason_name == "BATCH_TOO_LARGE"
    assert says in caught.value.message
    assert services.calls == []


async def test_a_picture_whose_host_redirects_to_nonsense_fails_its_search_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def redirected(*_: object) -> str:
        return "http://["

    monkeypatch.setattr(Fetch, "_ask", redirected)
    away = Term(image=types_pb2.Image(uri="http://pictures.example/a.jpg"))
    metrics = Metrics(CollectorRegistry())
    fetch = Fetch(GatewaySettings(fetch=True), metrics)
    async with behind() as (services, embedder, indexer):
        stock(services)
        search = Search(embedding(embedder, fetch=fetch), indexer)
        answer = await batch((services, search), SearchRequest(terms=[away]), SearchRequest(terms=[Term(text="cat")]))
    await fetch.close()

    assert failure(answer.results[0]).reason_name == "FETCH_FAILED"
    assert found(answer.results[1])[0] == "cat"


async def test_many_hits_are_put_together_off_the_event_loop_and_few_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shaped: list[threading.Thread] = []
    assembled: list[threading.Thread] = []

    def watched(work: Callable[..., Any], where: list[threading.Thread]) -> Callable[..., Any]:
        def watching(*arguments: Any) -> Any:
            where.append(threading.current_thread())
            return work(*arguments)

        return watching

    monkeypatch.setattr(searching, "_outcome", watched(searching._outcome, shaped))
    monkeypatch.setattr(batches, "_together", watched(batches._together, assembled))
    async with behind() as (services, embedder, indexer):
        stock(services)
        for number in range(searching.INLINE_ROWS + 1):
            services.put(f"{number:03}", vector(1, number), n=str(number))
        search = Search(embedding(embedder), indexer)
        few = SearchRequest(terms=[Term(id="cat")])
        many = SearchRequest(terms=[Term(id="cat")], top_k=1000)
        counted = SearchRequest(terms=[Term(id="cat")], facets=[FacetRequest(key="n", limit=1000)])
        for asked in (few, many, counted):
            await search(asked, Deadline(20))
            await batch((services, search), asked)

    loop = [thread is threading.current_thread() for thread in (*shaped, *assembled)]
    assert loop == [True, True, False, False, False, False, True, False, False]
