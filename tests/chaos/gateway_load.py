"""Clients of a gateway at work: searches, ingest, batches and lists, each failure judged, each acknowledgement kept."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import grpc
import numpy as np
from grpc_status import rpc_status
from likeness.common.v1 import types_pb2
from likeness.gateway.v1 import gateway_pb2, gateway_pb2_grpc

from chassis.errors import LikenessError, from_status
from tests.chaos.checker import Kind, Violation
from tests.chaos.gateway_rig import COLLECTION
from tests.pictures import noise

CALL_S, STREAM_S = 10.0, 30.0
# A call may end so much later than its deadline, on a machine that does many things at once.
_SLACK_S = 5.0
_PAUSE_S = 0.1
_STREAM_ITEMS, _BATCH = 12, 4
_PICTURES = 64
# What a client may be told while a service or its network is down. Those after which trying again helps say when.
_PASSING = {
    "EMBEDDER_UNAVAILABLE",
    "INDEXER_UNAVAILABLE",
    "STORE_UNAVAILABLE",
    "NOT_READY",
    "SHUTTING_DOWN",
    "OVERLOADED",
}
EXPECTED = _PASSING | {"DEADLINE_EXCEEDED"}


class Load:
    """The load of one round.

    Attributes:
        stored: ids that the gateway acknowledged.
        done: calls that were answered, by what they were.
        failed: calls that were not, by reason.
        violations: what was wrong at once.
    """

    def __init__(self, address: str, seed: int) -> None:
        """Nothing is at work yet.

        Args:
            address: the gateway's.
            seed: of everything that is random, and of the ids.
        """
        self.stored: set[str] = set()
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self._address, self._seed = address, seed
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._pictures = [noise(number) for number in range(_PICTURES)]
        kinds: list[Callable[[int], _Worker]] = [_Searcher, _Searcher, _Ingester, _Ingester, _Batcher, _Lister]
        self._threads = [
            threading.Thread(target=self._work, args=(make, number), name=f"load {number}")
            for number, make in enumerate(kinds)
        ]

    def start(self) -> None:
        """Sets them to work."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets every call under way end; one that does not is a violation."""
        self._stop.set()
        deadline = time.monotonic() + STREAM_S + 2 * _SLACK_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self.violations.append(Violation(Kind.LATE, f"{thread.name}: its call does not end"))

    def _work(self, make: "Callable[[int], _Worker]", number: int) -> None:
        worker = make(number)
        rng = np.random.default_rng((self._seed, number))
        with grpc.insecure_channel(self._address) as channel:
            stub = gateway_pb2_grpc.SearchServiceStub(channel)
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    what = worker.step(stub, self, rng)
                    with self._lock:
                        self.done[what] += 1
                except grpc.RpcError as error:
                    self._judge(error)
                    self._stop.wait(_PAUSE_S)
                except Exception as error:  # a fault of the test's own must not look like a quiet round
                    self.violations.append(Violation(Kind.UNAVAILABLE, f"{type(error).__name__}: {error}"))
                    return
                took = time.monotonic() - began
                if took > worker.longest_s + _SLACK_S:
                    what = f"{type(worker).__name__} took {took:.1f} s, its deadline was {worker.longest_s:g} s"
                    self.violations.append(Violation(Kind.LATE, what))

    def _judge(self, error: grpc.RpcError) -> None:
        assert isinstance(error, grpc.Call)
        status = rpc_status.from_call(error)
        if status is None:
            # A deadline may pass at the client itself, before the gateway's answer comes.
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                self.violations.append(Violation(Kind.UNAVAILABLE, f"untyped: {error.code()}: {error.details()}"))
            with self._lock:
                self.failed["DEADLINE_EXCEEDED"] += 1
            return
        self.judge(from_status(status))

    def judge(self, error: LikenessError) -> None:
        """Counts a typed failure; one that no fault explains, or that does not say when to try again, is wrong."""
        name = error.reason_name
        with self._lock:
            self.failed[name] += 1
        if name not in EXPECTED:
            self.violations.append(Violation(Kind.UNAVAILABLE, str(error)))
        elif name in _PASSING and error.retry_after_s is None:
            self.violations.append(Violation(Kind.UNAVAILABLE, f"does not say when to try again: {error}"))

    def acknowledged(self, item_id: str) -> None:
        """The gateway said that it has stored this item."""
        with self._lock:
            self.stored.add(item_id)

    def some_stored(self, rng: np.random.Generator, n: int) -> list[str]:
        """Ids of stored items; fewer than n while there are fewer."""
        with self._lock:
            known = sorted(self.stored)
        return [known[i] for i in rng.choice(len(known), min(n, len(known)), replace=False)] if known else []

    def item(self, number: int, item_id: str) -> gateway_pb2.IndexItem:
        """A good picture under an id of this round's."""
        made = gateway_pb2.IndexItem(sequence=number, id=item_id, labels=["noise"])
        made.image.encoded = self._pictures[number % _PICTURES]
        return made

    def new_id(self, worker: int, number: int) -> str:
        """An id of nobody else's."""
        return f"s{self._seed}-{worker}-{number:06d}"

    def take(self, result: gateway_pb2.IndexResult) -> None:
        """What became of an item: every picture is good, so that none may be refused for good."""
        if result.HasField("stored"):
            self.acknowledged(result.id)
        else:
            self.violations.append(Violation(Kind.LOST, f"{result.id} was not stored: {result}"))


class _Worker:
    """One thread's client."""

    longest_s = CALL_S

    def __init__(self, number: int) -> None:
        self.number = number

    def step(self, stub: gateway_pb2_grpc.SearchServiceStub, load: Load, rng: np.random.Generator) -> str:
        """One call; returns what it was."""
        raise NotImplementedError


class _Searcher(_Worker):
    def step(self, stub: gateway_pb2_grpc.SearchServiceStub, load: Load, rng: np.random.Generator) -> str:
        stub.Search(_search(load, rng), timeout=CALL_S)
        return "search"


class _Ingester(_Worker):
    """A stream after the other; one that broke is gone on with where its last checkpoint was."""

    longest_s = STREAM_S

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._numbers = itertools.count()
        self._sent: list[gateway_pb2.IndexItem] = []
        self._unanswered: set[str] = set()
        self._token, self._done = "", 0

    def step(self, stub: gateway_pb2_grpc.SearchServiceStub, load: Load, rng: np.random.Generator) -> str:
        if not self._unanswered:
            numbers = itertools.islice(self._numbers, _STREAM_ITEMS)
            self._sent = [load.item(number, load.new_id(self.number, number)) for number in numbers]
            self._unanswered = {item.id for item in self._sent}
            self._token, self._done = "", 0
        for answer in stub.IndexImages(self._messages(), timeout=STREAM_S):
            if answer.HasField("result"):
                load.take(answer.result)
                self._unanswered.discard(answer.result.id)
            elif answer.HasField("checkpoint"):
                self._token, self._done = answer.checkpoint.resume_token, answer.checkpoint.items_done
                if early := self._unanswered & {item.id for item in self._sent[: self._done]}:
                    load.violations.append(Violation(Kind.LOST, f"a checkpoint stands for unanswered items: {early}"))
        if self._unanswered:
            what = f"a stream ended well, with {len(self._unanswered)} items unanswered"
            load.violations.append(Violation(Kind.LOST, what))
        return "ingest"

    def _messages(self) -> Iterator[gateway_pb2.IndexImagesRequest]:
        start = gateway_pb2.IndexStart(collection=COLLECTION, create_collection=True, resume_token=self._token)
        yield gateway_pb2.IndexImagesRequest(start=start)
        for item in self._sent[self._done :]:
            yield gateway_pb2.IndexImagesRequest(item=item)


class _Batcher(_Worker):
    """Many searches in one call, zero-shot classification, pictures without a stream."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._numbers = itertools.count()

    def step(self, stub: gateway_pb2_grpc.SearchServiceStub, load: Load, rng: np.random.Generator) -> str:
        kind = rng.random()
        if kind < 0.3:
            numbers = itertools.islice(self._numbers, _BATCH)
            items = [load.item(number, load.new_id(self.number, number)) for number in numbers]
            request = gateway_pb2.IndexBatchRequest(collection=COLLECTION, items=items)
            for result in stub.IndexBatch(request, timeout=CALL_S).results:
                load.take(result)
            return "index batch"
        if kind < 0.6:
            image = types_pb2.Image(encoded=noise(int(rng.integers(1_000))))
            labelling = gateway_pb2.Labelling(labels=["noise", "a cat", "a dog"])
            inputs = [gateway_pb2.ClassifyInput(image=image)]
            classify = gateway_pb2.ClassifyRequest(collection=COLLECTION, inputs=inputs, labelling=labelling)
            _judge_each(load, stub.Classify(classify, timeout=CALL_S).results)
            return "classify"
        searches = [_search(load, rng) for _ in range(_BATCH)]
        answer = stub.BatchSearch(gateway_pb2.BatchSearchRequest(searches=searches), timeout=CALL_S)
        _judge_each(load, answer.results)
        return "batch"


class _Lister(_Worker):
    """Reads of what is stored, by ids and by page."""

    def step(self, stub: gateway_pb2_grpc.SearchServiceStub, load: Load, rng: np.random.Generator) -> str:
        ids = load.some_stored(rng, 20)
        if ids and rng.random() < 0.5:
            missing = stub.GetItems(gateway_pb2.GetItemsRequest(collection=COLLECTION, ids=ids), timeout=CALL_S)
            for item_id in missing.missing_ids:
                load.violations.append(Violation(Kind.LOST, f"{item_id} was acknowledged and is not there"))
            return "get"
        stub.ListItems(gateway_pb2.ListItemsRequest(collection=COLLECTION, page_size=50), timeout=CALL_S)
        return "list"


def _search(load: Load, rng: np.random.Generator) -> gateway_pb2.SearchRequest:
    terms = [gateway_pb2.Term(text=f"picture number {rng.integers(10_000)}")]
    kind = rng.random()
    if kind < 0.3:
        terms = [gateway_pb2.Term(image=types_pb2.Image(encoded=noise(int(rng.integers(1_000)))))]
    elif kind < 0.5 and (ids := load.some_stored(rng, 1)):
        terms = [gateway_pb2.Term(id=ids[0])]
    return gateway_pb2.SearchRequest(collection=COLLECTION, terms=terms, top_k=5)


def _judge_each(
    load: Load, results: Iterable[gateway_pb2.BatchSearchResult] | Iterable[gateway_pb2.Classification]
) -> None:
    for result in results:
        if result.HasField("error"):
            load.judge(from_status(result.error.status))
