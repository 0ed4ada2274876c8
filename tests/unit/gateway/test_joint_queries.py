"""Small queries that are there at the same moment share a call to the indexer, and nothing else."""

import asyncio
from typing import Any, cast

import numpy as np
import pytest
from likeness.common.v1 import error_pb2
from likeness.common.v1.metadata_pb2 import OPERATOR_EQ, Comparison, Filter
from likeness.common.v1.types_pb2 import ModelFingerprint, Vector
from likeness.indexer.v1 import indexer_pb2
from likeness.indexer.v1.indexer_pb2 import Example, Query, QueryRequest, Rescore
from structlog.testing import CapturingLogger

from chassis import trace
from chassis.deadline import Deadline
from chassis.errors import LikenessError, invalid
from chassis.vectors import from_proto, to_proto
from gateway.backends import Indexer
from gateway.joint_queries import Answered, JointQueries

MODEL = ModelFingerprint(model="m", digest="aa", dimension=2)
AWAY = LikenessError(error_pb2.REASON_INDEXER_UNAVAILABLE, "gone", retry_after_s=2.0)
OVERLOADED = LikenessError(error_pb2.REASON_OVERLOADED, "too much", retry_after_s=2.0)


class Answering:
    """An indexer that finds, for each query, an item with the number that its vector says."""

    def __init__(self) -> None:
        self.calls: list[QueryRequest] = []
        self.timeouts: list[float] = []
        self.traces: list[trace.Trace | None] = []
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.bad: dict[int, Exception] = {}
        self.held = asyncio.Event()
        self.held.set()
        self.forgetful = False

    async def query(self, request: QueryRequest, timeout_s: float) -> indexer_pb2.QueryResponse:
        self.calls.append(request)
        self.timeouts.append(timeout_s)
        self.traces.append(trace.current())
        self.begun.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self.held.wait()
        except TimeoutError:
            raise LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, "too late") from None
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        response = indexer_pb2.QueryResponse(fingerprint=MODEL)
        for number in self.asked[-1]:
            if number in self.bad:
                raise self.bad[number]
            response.results.add().hits.add(id=str(number))
        if self.forgetful and len(response.results) > 1:
            del response.results[0]
        return response

    @property
    def asked(self) -> list[list[int]]:
        """The numbers in each call."""
        return [[vector_of(query) for query in call.queries] for call in self.calls]

    def joint(self) -> JointQueries:
        return JointQueries(cast(Indexer, self))


def vector_of(query: Query) -> int:
    return int(from_proto(query.examples[0].vector, "vector")[0])


def request(*numbers: int, collection: str = "images", top_k: int = 3, **changed: Any) -> QueryRequest:
    examples = [Example(vector=to_proto(np.array([number, 1], np.float32))) for number in numbers]
    queries = [Query(examples=[example], top_k=top_k, **changed) for example in examples]
    return QueryRequest(collection=collection, expected_fingerprint=MODEL, queries=queries)


def found(answered: Answered, count: int = 1) -> list[int]:
    return [int(result.hits[0].id) for result in answered.response.results[answered.first :][:count]]


async def at_once(joint: JointQueries, *requests: QueryRequest) -> list[Any]:
    """What became of each."""
    return await asyncio.gather(*(joint(each, Deadline(5)) for each in requests), return_exceptions=True)


async def two_waiting(indexer: Answering, joint: JointQueries) -> list[asyncio.Task[Answered]]:
    """Callers that share a call, which the indexer holds."""
    indexer.held.clear()
    callers = [asyncio.create_task(joint(request(number), Deadline(20))) for number in (1, 2)]
    await indexer.begun.wait()
    return callers


async def test_queries_that_are_there_together_share_a_call_and_get_their_own_answers() -> None:
    indexer = Answering()
    joint = indexer.joint()
    answers = await asyncio.gather(*(joint(request(n), Deadline(left)) for n, left in ((1, 9), (2, 9.1))))
    assert [found(answered) for answered in answers] == [[1], [2]]
    assert indexer.calls == [request(1, 2)]
    assert 9 < indexer.timeouts[0] <= 9.1


async def test_a_shared_call_is_in_the_trace_of_its_first_caller_and_the_log_names_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def asking(number: int, wanted: QueryRequest) -> Any:
        trace.enter(traces[number])
        return await joint(wanted, Deadline(9))

    indexer, traces = Answering(), [trace.Trace.of([]) for _ in range(4)]
    joint = indexer.joint()
    entered = trace.enter(traces[3])
    await joint(request(3), Deadline(9))  # so that the joint calls are there already
    trace.leave(entered)
    wanted = [request(0, top_k=4), request(1), request(2)]
    log = CapturingLogger()
    monkeypatch.setattr("gateway.joint.log", log)
    await asyncio.gather(*(asking(number, each) for number, each in enumerate(wanted)))
    assert indexer.asked[1:] in ([[1, 2], [0]], [[0], [1, 2]])
    of = {tuple(asked): of for asked, of in zip(indexer.asked, indexer.traces, strict=True)}
    assert of == {(3,): traces[3], (0,): traces[0], (1, 2): traces[1]}
    assert [call.kwargs["trace_ids"] for call in log.calls] == [[traces[1].id, traces[2].id]]


async def test_who_is_alone_is_sent_as_it_came() -> None:
    indexer = Answering()
    [answered] = await at_once(indexer.joint(), request(1))
    assert (found(answered), answered.first) == ([1], 0)
    assert indexer.calls == [request(1)]


async def test_what_differs_in_more_than_its_vector_is_not_mixed() -> None:
    indexer = Answering()
    joint = indexer.joint()
    other_model, with_metadata = request(3), request(4)
    other_model.expected_fingerprint.digest = "bb"
    with_metadata.fields.metadata = True
    asked = [request(1), request(2, collection="others"), other_model, with_metadata, request(5, top_k=4), request(6)]
    answers = await at_once(joint, *asked)
    assert [found(answered) for answered in answers] == [[1], [2], [3], [4], [5], [6]]
    assert sorted(indexer.asked) == [[1, 6], [2], [3], [4], [5]]
    assert with_metadata in indexer.calls


async def test_what_may_take_long_or_is_large_has_a_call_of_its_own() -> None:
    indexer = Answering()
    joint = indexer.joint()
    where = Filter(comparison=Comparison(key="n", op=OPERATOR_EQ))
    with_vectors, by_id, large = request(6), request(7), request(8)
    with_vectors.fields.vector = True
    by_id.queries[0].examples.add(id="some")
    large.queries[0].examples.add(vector=Vector(f32=bytes(40_000)))
    asked = [
        request(1, exact=True),
        request(2, filter=where),
        request(3, rescore=Rescore(candidates=1000)),
        request(4, offset=1),
        request(5, 5),
        with_vectors,
        by_id,
        large,
        request(9, top_k=51),
        request(10),
        request(11),
    ]
    answers = await at_once(joint, *asked)
    assert [found(answered)[0] for answered in answers] == list(range(1, 12))
    assert sorted(indexer.asked) == [[1], [2], [3], [4], [5, 5], [6], [7], [8], [9], [10, 11]]


async def test_no_more_than_eight_share_a_call() -> None:
    indexer = Answering()
    await at_once(indexer.joint(), *map(request, range(20)))
    assert [len(numbers) for numbers in indexer.asked] == [8, 8, 4]


@pytest.mark.parametrize("error", [invalid("queries", "too large"), OVERLOADED, ValueError("no answer")])
async def test_a_failure_that_may_be_one_querys_fault_is_its_alone(error: Exception) -> None:
    indexer = Answering()
    indexer.bad[2] = error
    one, failed, three = await at_once(indexer.joint(), *map(request, (1, 2, 3)))
    assert (found(one), found(three)) == ([1], [3])
    assert failed is error
    assert indexer.asked == [[1, 2, 3], [1], [2], [3]]


async def test_an_indexer_that_is_away_is_so_for_everybody_and_not_asked_again() -> None:
    indexer = Answering()
    indexer.bad[1] = AWAY
    answers = await at_once(indexer.joint(), request(1), request(2))
    for answer in answers:
        assert isinstance(answer, LikenessError)
        assert (answer.reason, answer.message, answer.retry_after_s) == (AWAY.reason, "gone", 2.0)
    assert answers[0] is not answers[1]
    assert indexer.asked == [[1, 2]]


async def test_an_answer_that_is_not_one_for_each_is_nobodys() -> None:
    indexer = Answering()
    indexer.forgetful = True
    assert list(map(found, await at_once(indexer.joint(), request(1), request(2)))) == [[1], [2]]
    assert indexer.asked == [[1, 2], [1], [2]]


async def test_nobody_waits_longer_than_its_own_deadline() -> None:
    indexer = Answering()
    indexer.held.clear()
    joint = indexer.joint()
    asked = ((1, Deadline(0.43)), (2, Deadline(0.42)))
    answers = await asyncio.gather(*(joint(request(n), until) for n, until in asked), return_exceptions=True)
    for answer in answers:
        assert isinstance(answer, LikenessError)
        assert answer.reason == error_pb2.REASON_DEADLINE_EXCEEDED
    assert indexer.asked == [[1, 2]]


async def test_who_has_more_time_shares_no_call() -> None:
    indexer = Answering()
    joint = indexer.joint()
    await asyncio.gather(*(joint(request(n), Deadline(left)) for n, left in ((1, 3), (2, 4), (3, 3.02))))
    assert sorted(indexer.asked) == [[1, 3], [2]]


async def test_results_that_are_not_one_for_each_query_of_a_call_of_its_own_are_a_fault() -> None:
    indexer = Answering()
    indexer.forgetful = True
    with pytest.raises(ValueError, match="1 results for 2 queries"):
        await indexer.joint()(request(1, 2), Deadline(5))


async def test_the_call_ends_when_the_last_caller_has_gone() -> None:
    indexer = Answering()
    callers = await two_waiting(indexer, indexer.joint())
    callers[0].cancel()
    await asyncio.wait({callers[0]})
    assert not indexer.cancelled.is_set()
    callers[1].cancel()
    await asyncio.wait({callers[1]})
    await asyncio.wait_for(indexer.cancelled.wait(), 10)


async def test_a_call_that_is_cancelled_by_somebody_else_leaves_nobody_waiting() -> None:
    indexer = Answering()
    joint = indexer.joint()
    callers = await two_waiting(indexer, joint)
    [under_way] = joint._joint._under_way
    under_way.cancel()
    indexer.held.set()
    assert [found(await caller) for caller in callers] == [[1], [2]]
    assert indexer.asked == [[1, 2], [1], [2]]


async def test_who_has_gone_before_is_not_asked_for() -> None:
    indexer = Answering()
    joint = indexer.joint()
    callers = [asyncio.create_task(joint(request(number), Deadline(20))) for number in (1, 2, 3)]
    await asyncio.sleep(0)
    callers[1].cancel()
    assert [found(await callers[0]), found(await callers[2])] == [[1], [3]]
    assert indexer.asked == [[1, 3]]
