"""The indexer beside a model in plain Python: whatever is done to both, they answer alike.

``LIKENESS_MODEL_EXAMPLES`` (12) sets how many sequences of 40 steps are tried in each mode.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
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
from likeness.common.v1 import metadata_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from chassis import metadata
from chassis.metadata import Plain
from indexer import filters
from tests.integration.conftest import read
from tests.processes import Service, free_port, start_service
from tests.unit.indexer import model

DIMENSION = 6
IDS = [f"item-{n}" for n in range(30)]
KEYS = ["size", "name", "mixed", "tags"]
TIMEOUT_S = 60
EXAMPLES = int(os.environ.get("LIKENESS_MODEL_EXAMPLES", "12"))
FINGERPRINT = types_pb2.ModelFingerprint(model="model", digest="a" * 64, dimension=DIMENSION)


class Indexer:
    """An indexer that is stopped, killed and started again over the same data."""

    def __init__(self, folder: Path, reads: str) -> None:
        self.folder = folder
        self._env = {
            "LIKENESS_DATA_DIR": str(folder / "data"),
            "LIKENESS_READS": reads,
            "LIKENESS_INDEXER_PORT": str(free_port()),
            "LIKENESS_RECALL_PROBE_S": "1",
        }
        self.collections = 0
        self.start()

    def start(self) -> None:
        self.service: Service = start_service("indexer", self._env, "LIKENESS_INDEXER_PORT", self.folder)
        self._channel = grpc.insecure_channel(self.service.address)
        self._stub = indexer_pb2_grpc.IndexerServiceStub(self._channel)

    def call(self, method: str, request: Any) -> Any:
        """Calls again as long as Chroma is away."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                return getattr(self._stub, method)(request, timeout=TIMEOUT_S, wait_for_ready=True)
            except grpc.RpcError as error:
                if read(error).code is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise

    def stop(self, *, kill: bool) -> None:
        self._channel.close()
        if kill:
            self.service.kill()
        else:
            assert self.service.stop() == 0, self.service.log

    def kill_chroma(self) -> None:
        for child in psutil.Process(self.service.process.pid).children(recursive=True):
            if "run" in child.cmdline():
                child.send_signal(signal.SIGKILL)
                psutil.wait_procs([child], TIMEOUT_S)

    def damage_snapshots(self) -> int:
        files = [path for path in (self.folder / "data" / "serving").rglob("*") if path.is_file()]
        for path in files:
            data = bytearray(path.read_bytes())
            if data:
                data[len(data) // 2] ^= 0xFF
            path.write_bytes(data)
        return len(files)


@pytest.fixture(scope="module", params=["memory", "chroma"])
def indexer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Indexer]:
    started = Indexer(tmp_path_factory.mktemp(request.param), request.param)
    yield started
    started.stop(kill=False)


words = st.sampled_from(["", "a", "b", "ä", "🐈", "a long one"])
numbers = st.one_of(
    st.integers(-3, 3), st.sampled_from([-0.5, 0.5, 1.0, 1.5, 1e300]), st.sampled_from([2**53, -(10**15)])
)
plain_values: st.SearchStrategy[Plain] = st.one_of(
    words, numbers, st.booleans(), st.lists(words.filter(bool), min_size=1, max_size=3)
)
metadatas = st.fixed_dictionaries(
    {},
    optional={
        "size": numbers,
        "name": words,
        "mixed": plain_values,
        "tags": st.lists(words.filter(bool), min_size=1, max_size=4),
    },
)
vectors = st.lists(st.integers(-8, 8), min_size=DIMENSION, max_size=DIMENSION).filter(any)
ids = st.sampled_from(IDS)


@st.composite
def comparisons(draw: st.DrawFn) -> metadata_pb2.Filter:
    found = metadata_pb2.Filter()
    c = found.comparison
    c.key = draw(st.sampled_from([*KEYS, "absent"]))
    name = draw(st.sampled_from(["EQ", "NE", "LT", "LE", "GT", "GE", "IN", "NOT_IN", "EXISTS", "CONTAINS"]))
    c.op = metadata_pb2.Operator.Value(f"OPERATOR_{name}")
    if name in ("LT", "LE", "GT", "GE"):
        given: list[Any] = [draw(numbers)]
    elif name == "CONTAINS":
        given = [draw(words)]
    elif name == "EXISTS":
        given = []
    else:
        of_one_kind = draw(st.sampled_from([words, numbers, st.booleans()]))
        given = draw(st.lists(of_one_kind, min_size=1, max_size=3 if "IN" in name else 1))
    for each in given:
        c.values.append(metadata.to_proto({"v": each}).fields["v"])
    return found


def _group(children: list[metadata_pb2.Filter], name: str) -> metadata_pb2.Filter:
    found = metadata_pb2.Filter()
    getattr(found, name).filters.extend(children)
    return found


trees = st.recursive(
    comparisons(),
    lambda inner: st.builds(
        _group, st.lists(inner, min_size=1, max_size=3), st.sampled_from(["all_of", "any_of", "none_of"])
    ),
    max_leaves=5,
)
wheres = st.none() | trees


class Beside(RuleBasedStateMachine):
    """Does everything to an indexer and to a dictionary."""

    indexer: Indexer

    @initialize(metric=st.sampled_from(["METRIC_COSINE", "METRIC_L2", "METRIC_INNER_PRODUCT"]))
    def begin(self, metric: str) -> None:
        self.indexer.collections += 1
        self.name = f"collection-{self.indexer.collections}"
        self.metric = types_pb2.Metric.Value(metric)
        self.items: dict[str, tuple[np.ndarray[Any, Any], dict[str, Plain]]] = {}
        request = indexer_pb2.CreateCollectionRequest(name=self.name, fingerprint=FINGERPRINT, metric=self.metric)
        self.indexer.call("CreateCollection", request)

    @rule(batch=st.lists(st.tuples(ids, vectors, metadatas), min_size=1, max_size=12))
    def upsert(self, batch: list[tuple[str, list[int], dict[str, Plain]]]) -> None:
        items = [(i, np.array(v, np.float32), m) for i, v, m in batch]
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

    @rule(
        vector=vectors,
        where=wheres,
        top_k=st.integers(1, 12),
        offset=st.integers(0, 4),
        rescore=st.sampled_from(["", "COSINE", "L2", "INNER_PRODUCT", "L1", "CORRELATION"]),
    )
    def query(
        self, vector: list[int], where: metadata_pb2.Filter | None, top_k: int, offset: int, rescore: str
    ) -> None:
        request = indexer_pb2.QueryRequest(collection=self.name)
        query = request.queries.add(top_k=top_k, offset=offset, filter=where)
        query.examples.add().vector.f32 = np.array(vector, np.float32).tobytes()
        if rescore:
            query.rescore.metric = types_pb2.Metric.Value(f"METRIC_{rescore}")
            query.rescore.candidates = 1000
        request.fields.metadata = request.fields.vector = True
        answer = self.indexer.call("Query", request)
        (result,) = answer.results
        assert not result.HasField("error"), result.error
        of_all = self._scores(np.array(vector, np.float64), self._matching(where), rescore)
        expected = sorted(of_all.values(), reverse=True)[offset : offset + top_k]
        scores = [hit.score for hit in result.hits]
        assert np.allclose(scores, expected, rtol=1e-4, atol=1e-4), (scores, expected)
        assert scores == sorted(scores, reverse=True)
        assert len({hit.id for hit in result.hits}) == len(result.hits)
        for hit in result.hits:
            assert np.isclose(hit.score, of_all[hit.id], rtol=1e-4, atol=1e-4)
            self._same(hit.id, hit.vector, hit.metadata)

    @rule(where=wheres, order_by=st.sampled_from(["", "size", "name", "mixed", "tags"]), down=st.booleans())
    def pages(self, where: metadata_pb2.Filter | None, order_by: str, down: bool) -> None:
        found: list[str] = []
        token = ""
        while True:
            request = indexer_pb2.ListItemsRequest(
                collection=self.name, filter=where, order_by=order_by, descending=down, page_size=4, page_token=token
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

    @precondition(lambda self: len(self.items) > 3)
    @rule(
        how=st.sampled_from(["stop", "kill", "chroma", "damage"]),
        # Each costs seconds, so most sequences have none.
        now=st.integers(0, 9),
    )
    def end(self, how: str, now: int) -> None:
        if now:
            return
        if how == "chroma":
            self.indexer.kill_chroma()
            self.indexer.service.wait_until_serving()
            return
        self.indexer.stop(kill=how == "kill")
        if how == "damage":
            self.indexer.damage_snapshots()
        self.indexer.start()

    @invariant()
    def everything_is_there(self) -> None:
        request = indexer_pb2.GetItemsRequest(collection=self.name, ids=IDS)
        request.fields.metadata = request.fields.vector = True
        answer = self.indexer.call("GetItems", request)
        assert [item.id for item in answer.items] == [item_id for item_id in IDS if item_id in self.items]
        for item in answer.items:
            self._same(item.id, item.vector, item.metadata)

    def _matching(self, where: metadata_pb2.Filter | None) -> dict[str, tuple[np.ndarray[Any, Any], dict[str, Plain]]]:
        node = None if where is None else filters.from_proto(where, "filter")
        return {i: item for i, item in self.items.items() if model.true_for(node, item[1])}

    def _same(self, item_id: str, vector: types_pb2.Vector, given: metadata_pb2.Metadata) -> None:
        expected, plain = self.items[item_id]
        assert np.allclose(np.frombuffer(vector.f32, np.float32), expected, rtol=1e-5, atol=1e-5)
        stored = metadata.from_proto(given, "metadata")
        assert stored == plain
        assert {k: type(v) for k, v in stored.items()} == {k: type(v) for k, v in plain.items()}

    def _scores(
        self, q: np.ndarray[Any, Any], there: dict[str, tuple[np.ndarray[Any, Any], dict[str, Plain]]], rescore: str
    ) -> dict[str, float]:
        own = types_pb2.Metric.Name(self.metric).removeprefix("METRIC_")
        if own == "COSINE":
            q = q / np.linalg.norm(q)
        return {item_id: _score(rescore or own, q, v.astype(np.float64)) for item_id, (v, _) in there.items()}


def _score(name: str, q: np.ndarray[Any, Any], v: np.ndarray[Any, Any]) -> float:
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


def test_the_indexer_answers_as_the_model_whatever_is_done(indexer: Indexer) -> None:
    machine = type("Beside", (Beside,), {"indexer": indexer})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
