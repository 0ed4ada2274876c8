"""The indexer beside a model in plain Python: whatever is done to both, they answer alike.

In memory a collection begins with items enough for the graph to answer most queries, and it is searched so widely that
it finds all there is: what is missing is a fault and no approximation. ``LIKENESS_MODEL_EXAMPLES`` (12) sets how many
sequences of 40 steps are tried in each mode.
"""

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from likeness.common.v1 import error_pb2, metadata_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2

from chassis import metadata
from chassis.metadata import Plain
from indexer import filters
from tests.integration.drawn import DIMENSION, IDS, KEYS, METRICS, Asked, asked, ids, metadatas, trees, vectors, wheres
from tests.integration.restarted import Indexer
from tests.unit.indexer import model

EXAMPLES = int(os.environ.get("LIKENESS_MODEL_EXAMPLES", "12"))
FINGERPRINT = types_pb2.ModelFingerprint(model="model", digest="a" * 64, dimension=DIMENSION)

# In memory. Of these vectors some items share one, as copies of a picture do.
BASE, VECTORS = 420, 360
# Half as wide as there are vectors, for the nearest 16; and the graph is taken from some 30 items on.
WIDE = {"LIKENESS_EF_SEARCH": "160", "LIKENESS_ROWS_PER_STEP": "0.2"}

ENDS = ["stop", "kill", "chroma", "damage", "rebuild", "rest"]

Numbers = npt.NDArray[np.float64]
Items = dict[str, tuple[npt.NDArray[np.float32], dict[str, Plain]]]


@pytest.fixture(scope="module", params=["memory", "chroma"])
def indexer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Indexer]:
    started = Indexer(tmp_path_factory.mktemp(request.param), request.param, **WIDE)
    try:
        yield started
        started.stop(kill=False)
    finally:
        started.service.kill()  # whatever has become of it


class Beside(RuleBasedStateMachine):
    """Does everything to an indexer and to a dictionary."""

    indexer: Indexer

    @initialize(metric=st.sampled_from(METRICS), seed=st.integers(0, 1000))
    def begin(self, metric: str, seed: int) -> None:
        self.indexer.collections += 1
        self.name = f"collection-{self.indexer.collections}"
        self.metric = types_pb2.Metric.Value(f"METRIC_{metric}")
        self.items: Items = {}
        request = indexer_pb2.CreateCollectionRequest(name=self.name, fingerprint=FINGERPRINT, metric=self.metric)
        self.indexer.call("CreateCollection", request)
        self.base = _base(seed) if self.indexer.reads == "memory" else {}
        if self.base:
            self._upsert([(item_id, vector, given) for item_id, (vector, given) in self.base.items()])
            self.indexer.wait_for_graph(self.name, len(self.base))

    @rule(batch=st.lists(st.tuples(ids, vectors, metadatas), min_size=1, max_size=12))
    def upsert(self, batch: list[tuple[str, list[int], dict[str, Plain]]]) -> None:
        self._upsert([(item_id, np.array(vector, np.float32), given) for item_id, vector, given in batch])

    def _upsert(self, items: list[tuple[str, npt.NDArray[np.float32], dict[str, Plain]]]) -> None:
        request = indexer_pb2.UpsertItemsRequest(collection=self.name)
        for item_id, vector, given in items:
            item = request.items.add(id=item_id, metadata=metadata.to_proto(given))
            item.vector.f32 = vector.tobytes()
        answer = self.indexer.call("UpsertItems", request)
        self.items |= {item_id: (vector, given) for item_id, vector, given in items}
        assert answer.stored == len({item_id for item_id, _, _ in items})

    @rule(
        updates=st.dictionaries(
            ids,
            st.tuples(metadatas, st.lists(st.sampled_from(KEYS), max_size=2), st.booleans()),
            min_size=1,
            max_size=6,
        )
    )
    def update(self, updates: dict[str, tuple[dict[str, Plain], list[str], bool]]) -> None:
        request = indexer_pb2.UpdateMetadataRequest(collection=self.name)
        for item_id, (given, remove, replace) in updates.items():
            request.updates.add(id=item_id, set=metadata.to_proto(given), remove_keys=remove, replace=replace)
        answer = self.indexer.call("UpdateMetadata", request)
        assert list(answer.missing_ids) == [item_id for item_id in updates if item_id not in self.items]
        for item_id, (given, remove, replace) in updates.items():
            if item_id in self.items:
                vector, old = self.items[item_id]
                kept = {} if replace else {key: value for key, value in old.items() if key not in remove}
                self.items[item_id] = (vector, kept | given)

    @rule(some=st.lists(ids, min_size=1, max_size=5))
    def delete(self, some: list[str]) -> None:
        request = indexer_pb2.DeleteItemsRequest(collection=self.name, ids=some)
        answer = self.indexer.call("DeleteItems", request)
        assert answer.deleted == len(set(some) & self.items.keys())
        for item_id in some:
            self.items.pop(item_id, None)

    @rule(where=trees)
    def delete_matching(self, where: metadata_pb2.Filter) -> None:
        request = indexer_pb2.DeleteItemsRequest(collection=self.name, filter=where)
        answer = self.indexer.call("DeleteItems", request)
        gone = self._matching(where).keys()
        assert answer.deleted == len(gone)
        for item_id in list(gone):
            del self.items[item_id]

    @rule(queries=st.lists(asked, min_size=1, max_size=3))
    def query(self, queries: list[Asked]) -> None:
        request = indexer_pb2.QueryRequest(collection=self.name)
        for each in queries:
            query = request.queries.add(
                top_k=each.top_k, offset=each.offset, filter=each.where, min_score=each.min_score
            )
            for example, weight in each.examples:
                if isinstance(example, str):
                    query.examples.add(id=example, weight=weight)
                else:
                    vector = types_pb2.Vector(f32=np.array(example, np.float32).tobytes())
                    query.examples.add(vector=vector, weight=weight)
            if each.rescore:
                query.rescore.metric = types_pb2.Metric.Value(f"METRIC_{each.rescore}")
                query.rescore.candidates = 1000
            query.exact = each.exact and self.indexer.reads == "memory"
        request.fields.metadata = request.fields.vector = True
        answer = self.indexer.call("Query", request)
        assert len(answer.results) == len(queries)
        for each, result in zip(queries, answer.results, strict=True):
            self._check(each, result)

    def _check(self, query: Asked, result: indexer_pb2.QueryResult) -> None:
        named = {example for example, _ in query.examples if isinstance(example, str)}
        if not named <= self.items.keys():
            assert result.error.reason == error_pb2.REASON_ITEM_NOT_FOUND
            return
        wanted, length = self._wanted(query)
        if length < 1e-9:
            assert result.error.reason == error_pb2.REASON_QUERY_CANCELS_OUT
            return
        assert not result.HasField("error"), result.error
        there = {i: item for i, item in self._matching(query.where).items() if i not in named}
        of_all = self._scores(wanted, there, query.rescore)
        least = -np.inf if query.min_score is None else query.min_score
        of_all = {item_id: score for item_id, score in of_all.items() if score >= least - 1e-4}
        near_least = any(score <= least + 1e-4 for score in of_all.values())  # rounding decides about those
        expected = sorted(of_all.values(), reverse=True)[query.offset : query.offset + query.top_k]
        scores = [hit.score for hit in result.hits]
        assert len(scores) <= len(expected) if near_least else len(scores) == len(expected)
        assert np.allclose(scores, expected[: len(scores)], rtol=1e-4, atol=1e-4), (scores, expected)
        assert scores == sorted(scores, reverse=True)
        assert len({hit.id for hit in result.hits}) == len(result.hits)
        for hit in result.hits:
            assert np.isclose(hit.score, of_all[hit.id], rtol=1e-4, atol=1e-4)
            self._same(hit.id, hit.vector, hit.metadata)

    @rule(
        where=wheres,
        order_by=st.sampled_from(["", *KEYS]),
        down=st.booleans(),
        size=st.sampled_from([4, 30]),
    )
    def pages(self, where: metadata_pb2.Filter | None, order_by: str, down: bool, size: int) -> None:
        found: list[str] = []
        token = ""
        while True:
            request = indexer_pb2.ListItemsRequest(
                collection=self.name, filter=where, order_by=order_by, descending=down, page_size=size, page_token=token
            )
            answer = self.indexer.call("ListItems", request)
            found += [item.id for item in answer.items]
            token = answer.next_page_token
            if not token:
                break
        there = {item_id: given for item_id, (_, given) in self._matching(where).items()}
        assert found == model.ordered(there, order_by, down)

    @rule(where=wheres)
    def facets(self, where: metadata_pb2.Filter | None) -> None:
        wanted = dict.fromkeys(KEYS, 3)
        request = indexer_pb2.GetFacetsRequest(collection=self.name, filter=where)
        for key, limit in wanted.items():
            request.facets.add(key=key, limit=limit)
        answer = self.indexer.call("GetFacets", request)
        there = [given for _, given in self._matching(where).values()]
        assert answer.count == len(there)
        for facet, expected in zip(answer.facets, model.facets(there, wanted), strict=True):
            values = [(metadata.value_from_proto(v.value, "value"), v.count) for v in facet.values]
            assert (facet.key, values, facet.distinct, facet.missing) == (
                expected.key,
                expected.values,
                expected.distinct,
                expected.missing,
            )

    @rule(where=wheres)
    def count(self, where: metadata_pb2.Filter | None) -> None:
        request = indexer_pb2.CountItemsRequest(collection=self.name, filter=where)
        assert self.indexer.call("CountItems", request).count == len(self._matching(where))

    def teardown(self) -> None:
        if hasattr(self, "items"):
            self._end(ENDS[self.indexer.collections % len(ENDS)])
            self.everything_is_there()
            # What comes next need not be read with it.
            self.indexer.call("DeleteCollection", indexer_pb2.DeleteCollectionRequest(name=self.name))

    @precondition(lambda self: len(self.items) > 3)
    @rule(
        how=st.sampled_from(ENDS),
        damage=st.sampled_from(["flip", "cut", "remove"]),
        where=st.floats(0, 1),
        # Each costs seconds, so many sequences have none but the last.
        now=st.integers(0, 2),
    )
    def end(self, how: str, damage: str, where: float, now: int) -> None:
        if not now:
            self._end(how, damage, where)

    def _end(self, how: str, damage: str = "flip", where: float = 0.5) -> None:
        self.indexer.ended[how] += 1
        match how:
            case "chroma":
                self.indexer.kill_chroma()
                self.indexer.service.wait_until_serving()
            case "rebuild":
                self.indexer.stream("RebuildCollection", indexer_pb2.RebuildCollectionRequest(collection=self.name))
            case "rest" if self.indexer.reads == "memory":
                self.indexer.wait_for_graph(self.name, len(self.items))
            case "stop" | "kill" | "damage":
                self.indexer.stop(kill=how == "kill")
                if how == "damage":
                    self.indexer.damage_snapshots(damage, where)
                self.indexer.start()

    @invariant()
    def everything_is_there(self) -> None:
        every = sorted({*IDS, *self.base})
        request = indexer_pb2.GetItemsRequest(collection=self.name, ids=every)
        request.fields.metadata = request.fields.vector = True
        answer = self.indexer.call("GetItems", request)
        assert [item.id for item in answer.items] == [item_id for item_id in every if item_id in self.items]
        for item in answer.items:
            self._same(item.id, item.vector, item.metadata)

    def _matching(self, where: metadata_pb2.Filter | None) -> Items:
        node = None if where is None else filters.from_proto(where, "filter")
        return {i: item for i, item in self.items.items() if model.true_for(node, item[1])}

    def _same(self, item_id: str, vector: types_pb2.Vector, given: metadata_pb2.Metadata) -> None:
        expected, plain = self.items[item_id]
        assert abs(np.frombuffer(vector.f32, np.float32) - expected).max() < 1e-5
        stored = metadata.from_proto(given, "metadata")
        assert stored == plain
        assert {k: type(v) for k, v in stored.items()} == {k: type(v) for k, v in plain.items()}

    def _own(self) -> str:
        return types_pb2.Metric.Name(self.metric).removeprefix("METRIC_")

    def _wanted(self, query: Asked) -> tuple[Numbers, float]:
        """The vector that its examples stand for, and how long their sum was."""
        total, weights = np.zeros(DIMENSION), 0.0
        for example, given in query.examples:
            numbers = self.items[example][0] if isinstance(example, str) else example
            vector, weight = np.array(numbers, np.float64), 1.0 if given is None else given
            total += weight * (vector / np.linalg.norm(vector) if self._own() == "COSINE" else vector)
            weights += abs(weight)
        length = float(np.linalg.norm(total))
        return (total / (length or 1.0) if self._own() == "COSINE" else total / weights), length

    def _scores(self, q: Numbers, there: Items, rescore: str) -> dict[str, float]:
        return {item_id: _score(rescore or self._own(), q, v.astype(np.float64)) for item_id, (v, _) in there.items()}


def _base(seed: int) -> Items:
    """What a collection in memory begins with."""
    rng = np.random.default_rng(seed)
    some = rng.integers(1, 9, (VECTORS, DIMENSION)) * rng.choice([-1, 1], (VECTORS, DIMENSION))
    found: Items = {}
    for n in range(BASE):
        plain: dict[str, Plain] = {
            "size": n % 5,
            "name": ["a", "b", "ä"][n % 3],
            "tags": ["a"] if n % 2 else ["b", "ä"],
        }
        found[f"base-{n:03}"] = (some[rng.integers(VECTORS)].astype(np.float32), plain)
    return found


def _score(name: str, q: Numbers, v: Numbers) -> float:
    match name:
        case "COSINE":
            return float(q @ v / (np.linalg.norm(q) * np.linalg.norm(v)))
        case "L2":
            return -float(np.linalg.norm(q - v))
        case "INNER_PRODUCT":
            return float(q @ v)
        case "L1":
            return -float(np.abs(q - v).sum())
        case _:
            a, b = q - q.mean(), v - v.mean()
            lengths = np.linalg.norm(a) * np.linalg.norm(b)
            return float(a @ b / lengths) if np.ptp(q) and np.ptp(v) else 0.0


@pytest.mark.timeout(600 + 30 * EXAMPLES)
def test_the_indexer_answers_as_the_model_whatever_is_done(indexer: Indexer) -> None:
    run_state_machine_as_test(
        type("Beside", (Beside,), {"indexer": indexer}),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    counted = indexer.counted()
    assert indexer.ended.keys() == set(ENDS)
    if indexer.reads == "memory":
        kinds = [("queries", "graph"), ("queries", "exact"), ("loads", "snapshot"), ("loads", "chroma")]
        assert not [kind for kind in kinds if not counted[kind]], counted
        assert "snapshot refused" in indexer.service.log
