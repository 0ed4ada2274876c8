"""Queries: many in a call, pages, re-scoring."""

from collections.abc import Callable

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from likeness.common.v1 import metadata_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from tests.integration.conftest import read
from tests.integration.indexer.calls import (
    DIMENSION,
    EVERYTHING,
    FINGERPRINT,
    Stub,
    compared,
    create,
    failure,
    item,
    like,
    query,
    unit,
    upsert,
)

Array64 = npt.NDArray[np.float64]

# The contract's formulas, in float64.
FORMULAS: dict[types_pb2.Metric.ValueType, Callable[[Array64, Array64], float]] = {
    types_pb2.METRIC_COSINE: lambda q, v: float(q @ v / np.linalg.norm(q) / np.linalg.norm(v)),
    types_pb2.METRIC_L2: lambda q, v: -float(np.linalg.norm(q - v)),
    types_pb2.METRIC_INNER_PRODUCT: lambda q, v: float(q @ v),
    types_pb2.METRIC_L1: lambda q, v: -float(np.abs(q - v).sum()),
    types_pb2.METRIC_CORRELATION: lambda q, v: float(np.corrcoef(q, v)[0, 1]),
}
OF_COLLECTIONS = [types_pb2.METRIC_COSINE, types_pb2.METRIC_L2, types_pb2.METRIC_INNER_PRODUCT]
COUNT = 120


def array(n: int) -> Array64:
    return np.frombuffer(unit(n).f32, "<f4").astype(np.float64)


def filled(stub: Stub, metric: types_pb2.Metric.ValueType) -> str:
    """A collection of that metric with items of different lengths, made once."""
    name = f"filled-{types_pb2.Metric.Name(metric).lower().replace('_', '-')}"
    if name not in {c.name for c in stub.ListCollections(pb.ListCollectionsRequest(page_size=1000)).collections}:
        create(stub, name, metric)
        upsert(stub, name, *(item(n, width=n) for n in range(COUNT)))
    return name


def test_a_call_of_many_queries_answers_each_by_itself(stub: Stub) -> None:
    name = create(stub, "many")
    upsert(stub, name, *(item(n, width=n) for n in range(100)))
    narrow = metadata_pb2.Comparison(key="width", op=metadata_pb2.OPERATOR_LT)
    narrow.values.add(int_value=5)
    bad = metadata_pb2.Filter()
    bad.all_of.filters.add(comparison=narrow)
    bad.all_of.filters.add(comparison=metadata_pb2.Comparison(key="a", op=metadata_pb2.OPERATOR_EQ))
    opposite = pb.Query(examples=[pb.Example(id="i1"), pb.Example(id="i1", weight=-1)])
    answer = query(
        stub,
        name,
        like(unit(7), 3),
        like(unit(7), 1000, metadata_pb2.Filter(comparison=narrow)),
        like(unit(7), where=bad),
        pb.Query(examples=[pb.Example(id="nobody")]),
        like(types_pb2.Vector(f32=b"1234")),
        opposite,
        pb.Query(examples=[pb.Example(id="i7")], top_k=2),
        like(unit(7), 1001),
        pb.Query(examples=[pb.Example(vector=unit(1), weight=0)]),
        like(types_pb2.Vector(f32=bytes(4 * DIMENSION))),
    )
    assert answer.fingerprint == FINGERPRINT
    results = answer.results
    assert len(results[0].hits) == 3
    assert results[0].hits[0].id == "i7"
    assert results[0].hits[0].score == pytest.approx(1, abs=1e-6)
    assert {h.id for h in results[1].hits} == {"i0", "i1", "i2", "i3", "i4"}
    failed = {n: failure(results[n]) for n in (2, 3, 4, 5, 7, 8, 9)}
    assert {n: (e.reason_name, e.violations[0].field if e.violations else "") for n, e in failed.items()} == {
        2: ("FILTER_INVALID", "queries[2].filter.all_of.filters[1].comparison.values"),
        3: ("ITEM_NOT_FOUND", ""),
        4: ("VECTOR_INVALID", "queries[4].examples[0].vector"),
        5: ("QUERY_CANCELS_OUT", "queries[5].examples"),
        7: ("FIELD_INVALID", "queries[7].top_k"),
        8: ("FIELD_INVALID", "queries[8].examples[0].weight"),
        9: ("VECTOR_INVALID", "queries[9].examples[0].vector"),
    }
    assert [h.id for h in results[6].hits] == [h.id for h in results[0].hits][1:3]


def test_hits_carry_what_was_asked_for(stub: Stub) -> None:
    name = create(stub, "fields")
    upsert(stub, name, item(1, label="x"))
    bare = query(stub, name, like(unit(1))).results[0].hits[0]
    assert not bare.HasField("metadata")
    assert not bare.HasField("vector")
    full = stub.Query(pb.QueryRequest(collection=name, queries=[like(unit(1))], fields=EVERYTHING)).results[0].hits[0]
    assert full.metadata == item(1, label="x").metadata
    assert len(full.vector.f32) == 4 * DIMENSION


def test_a_query_of_an_empty_collection_finds_nothing(stub: Stub) -> None:
    name = create(stub, "empty")
    result = query(stub, name, like(unit(1))).results[0]
    assert list(result.hits) == []
    assert not result.HasField("error")


@pytest.mark.parametrize("rescore", [None, *FORMULAS])
@pytest.mark.parametrize("metric", OF_COLLECTIONS)
def test_scores_and_distances_are_those_of_the_formulas(
    stub: Stub, metric: types_pb2.Metric.ValueType, rescore: types_pb2.Metric.ValueType | None
) -> None:
    name, by = filled(stub, metric), rescore or metric
    asked = like(unit(1000), 20)
    if rescore is not None:
        asked.rescore.metric, asked.rescore.candidates = rescore, COUNT
    target = array(1000)
    if metric == types_pb2.METRIC_COSINE:
        target = target / np.linalg.norm(target)
    scores = {f"i{n}": FORMULAS[by](target, array(n)) for n in range(COUNT)}
    hits = query(stub, name, asked).results[0].hits
    assert [h.id for h in hits] == sorted(scores, key=lambda i: -scores[i])[:20]
    for hit in hits:
        assert hit.score == pytest.approx(scores[hit.id], rel=1e-5, abs=1e-5)
        bounded = by in (types_pb2.METRIC_COSINE, types_pb2.METRIC_CORRELATION)
        assert hit.distance == pytest.approx(1 - hit.score if bounded else -hit.score, rel=1e-5, abs=1e-5)


def test_only_the_candidates_are_scored_again(stub: Stub) -> None:
    name = filled(stub, types_pb2.METRIC_L2)
    nearest = query(stub, name, like(unit(1001), 10)).results[0].hits
    asked = like(unit(1001), 10)
    asked.rescore.metric, asked.rescore.candidates = types_pb2.METRIC_CORRELATION, 10
    rescored = query(stub, name, asked).results[0].hits
    assert {h.id for h in rescored} == {h.id for h in nearest}
    assert [h.score for h in rescored] == sorted((h.score for h in rescored), reverse=True)


@pytest.mark.parametrize("metric", OF_COLLECTIONS)
def test_pages_by_offset_are_the_parts_of_one_answer(stub: Stub, metric: types_pb2.Metric.ValueType) -> None:
    name = filled(stub, metric)
    where = compared("width", "LT", 100)
    whole = query(stub, name, like(unit(1002), 1000, where)).results[0].hits
    assert len(whole) == 100
    paged = [
        pb.Query(examples=[pb.Example(vector=unit(1002))], top_k=30, offset=o, filter=where) for o in (0, 30, 60, 90)
    ]
    results = query(stub, name, *paged).results
    assert [h for result in results for h in result.hits] == list(whole)
    beyond = pb.Query(examples=[pb.Example(vector=unit(1002))], offset=100, filter=where)
    assert not query(stub, name, beyond).results[0].hits


def test_a_rescore_without_a_metric_keeps_the_collections_own(stub: Stub) -> None:
    name = filled(stub, types_pb2.METRIC_L2)
    asked = like(unit(1004), 10)
    asked.rescore.candidates = 50
    assert query(stub, name, asked).results[0].hits == query(stub, name, like(unit(1004), 10)).results[0].hits


def test_an_exact_query_compares_every_item_or_is_refused_by_name(stub: Stub) -> None:
    name = filled(stub, types_pb2.METRIC_COSINE)
    asked = like(unit(1005), 10)
    asked.exact = True
    status = stub.GetStatus(pb.GetStatusRequest(), timeout=30)
    (mode,) = (found.mode for found in status.collections if found.name == name)
    if mode == pb.SERVING_MODE_MEMORY:
        scores = {f"i{n}": FORMULAS[types_pb2.METRIC_COSINE](array(1005), array(n)) for n in range(COUNT)}
        hits = query(stub, name, asked).results[0].hits
        assert [hit.id for hit in hits] == sorted(scores, key=lambda i: -scores[i])[:10]
    else:
        refused, answered = query(stub, name, asked, like(unit(1005), 10)).results
        assert "queries[0].exact" in refused.error.status.message
        assert len(answered.hits) == 10


def test_the_candidates_of_a_call_are_bounded_together(stub: Stub) -> None:
    name = filled(stub, types_pb2.METRIC_COSINE)
    asked = like(unit(1006), 10)
    asked.rescore.candidates = 10_000
    assert len(query(stub, name, asked, asked).results) == 2
    with pytest.raises(grpc.RpcError) as caught:
        query(stub, name, asked, asked, asked)
    assert read(caught.value).reason_name == "BATCH_TOO_LARGE"


def test_a_threshold_counts_after_rescoring(stub: Stub) -> None:
    name = filled(stub, types_pb2.METRIC_COSINE)
    asked = like(unit(1003), 50)
    asked.rescore.metric = types_pb2.METRIC_L1
    everything = query(stub, name, asked).results[0].hits
    asked.min_score = everything[6].score
    assert query(stub, name, asked).results[0].hits == everything[:7]


def test_many_queries_with_filters_of_their_own_answer_like_single_ones(stub: Stub) -> None:
    name = filled(stub, types_pb2.METRIC_COSINE)
    asked = [like(unit(2000 + n), 5, compared("width", "GE", n) if n % 2 else None) for n in range(0, 60, 3)]
    together = query(stub, name, *asked).results
    for one, result in zip(asked, together, strict=True):
        alone = query(stub, name, one).results[0]
        assert [h.id for h in result.hits] == [h.id for h in alone.hits]
