"""Between searches with their answers and the contract's messages."""

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration
from likeness.common.v1 import types_pb2
from likeness.gateway.v1 import gateway_pb2

from likeness_client.facets import Facet, FacetValue
from likeness_client.items import Hit, SearchResult, SearchTimings
from likeness_client.lists import listed
from likeness_client.rpc_errors import from_item_error
from likeness_client.searches import Rescore, RescoreMetric, Search, SearchOutcome
from likeness_client.wire import (
    condition_to_proto,
    fingerprint_from_proto,
    fingerprint_to_proto,
    item_from_proto,
    term_to_proto,
    value_from_proto,
)

_METRICS = {metric: types_pb2.Metric.Value(f"METRIC_{metric.name}") for metric in RescoreMetric}


def search_to_proto(search: Search) -> gateway_pb2.SearchRequest:
    """A search.

    Raises:
        WhereError: its condition is none.
    """
    return gateway_pb2.SearchRequest(
        collection=search.collection,
        expected_fingerprint=fingerprint_to_proto(search.expected_fingerprint),
        terms=map(term_to_proto, search.terms),
        filter=condition_to_proto(search.where),
        min_score=search.min_score,
        rescore=None if search.rescore is None else _rescore_to_proto(search.rescore),
        exact=search.exact,
        facets=facets_to_proto(search.facets, search.facet_limit),
        explain=search.explain,
        top_k=search.top_k,
        offset=search.offset,
        fields=types_pb2.ItemFields(metadata=True, vector=search.include_vectors),
    )


def facets_to_proto(keys: Iterable[str], limit: int) -> list[gateway_pb2.FacetRequest]:
    """Keys to count the values of, up to ``limit`` values of each (0: the contract's default)."""
    return [gateway_pb2.FacetRequest(key=key, limit=limit) for key in listed(keys, "keys")]


def search_from_proto(
    message: gateway_pb2.SearchResponse, search: Search, timings: gateway_pb2.SearchTimings | None = None
) -> SearchResult:
    """What a search found; ``timings`` are the batch's, if it was part of one."""
    hits = (
        Hit(rank, item_from_proto(hit.item), hit.score, hit.distance, tuple(hit.term_similarities))
        for rank, hit in enumerate(message.hits, start=search.offset + 1)
    )
    return SearchResult(
        hits=tuple(hits),
        collection=message.collection,
        fingerprint=fingerprint_from_proto(message.fingerprint),
        timings=_timings_from_proto(timings or message.timings),
        facets=facets_from_proto(message.facets),
        count=message.count if search.facets else None,
    )


def outcome_from_proto(
    message: gateway_pb2.BatchSearchResult, search: Search, timings: gateway_pb2.SearchTimings
) -> SearchOutcome:
    """What became of one search of a batch."""
    if message.HasField("response"):
        return SearchOutcome(search_from_proto(message.response, search, timings), None)
    return SearchOutcome(None, from_item_error(message.error))


def facets_from_proto(messages: Iterable[gateway_pb2.Facet]) -> tuple[Facet, ...]:
    """Counts by value; the contract knows no lists here."""
    facets = []
    for facet in messages:
        values = [FacetValue(value_from_proto(entry.value), entry.count) for entry in facet.values]  # type: ignore[arg-type]
        facets.append(Facet(facet.key, tuple(values), facet.distinct, facet.missing))
    return tuple(facets)


def _rescore_to_proto(rescore: Rescore) -> gateway_pb2.Rescore:
    metric = types_pb2.METRIC_UNSPECIFIED if rescore.metric is None else _METRICS[rescore.metric]
    return gateway_pb2.Rescore(metric=metric, candidates=rescore.candidates)


def _timings_from_proto(message: gateway_pb2.SearchTimings) -> SearchTimings:
    def seconds(name: str) -> float | None:
        duration: Duration = getattr(message, name)
        return duration.ToNanoseconds() / 1e9 if message.HasField(name) else None  # type: ignore[arg-type]

    return SearchTimings(
        embed_s=seconds("embed") or 0.0,
        query_s=seconds("query") or 0.0,
        total_s=seconds("total") or 0.0,
        facets_s=seconds("facets"),
        explain_s=seconds("explain"),
        embed_queue_s=seconds("embed_queue"),
        embed_decode_s=seconds("embed_decode"),
        embed_inference_s=seconds("embed_inference"),
    )
