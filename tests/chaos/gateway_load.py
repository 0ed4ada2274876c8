"""Clients of a gateway at work, by gRPC and by HTTP: each failure judged, each acknowledgement kept."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import httpx
import numpy as np
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from likeness.gateway.v1 import gateway_pb2, gateway_pb2_grpc

from chassis.errors import DOMAIN, from_status
from tests.chaos.checker import Kind, Violation
from tests.chaos.gateway_http import ByHttp, RefusedError
from tests.chaos.gateway_rig import Rig
from tests.pictures import noise

# A call may end so much later than its deadline, on a machine that does many things at once.
_SLACK_S = 5.0
_LONGEST_CALL_S = 30.0
_PAUSE_S, _PACE_S = 0.1, 0.1
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
# Failures that nobody told the client of: its time was over, or its connection broke.
OWN_DEADLINE, OWN_NETWORK = "own deadline", "own network"


@dataclass(frozen=True)
class Failure:
    """A call, or one item of it, that was not answered: when it began, and the reason."""

    began: float
    why: str


class Load:
    """The load of one round.

    Attributes:
        stored: ids that the gateway acknowledged, but for those that are to be deleted.
        deleted: ids of stored items of which it acknowledged that they are deleted.
        edited: by id, the number that label and metadata of it were set to last, as far as acknowledged.
        begun: calls so far.
        done: calls that were answered, by what they were.
        failures: those that were not.
        violations: what was wrong at once.
    """

    def __init__(self, rig: Rig, seed: int, workers: "list[Callable[[int], Worker]]") -> None:
        """Nothing is at work yet.

        Args:
            rig: what is called.
            seed: of everything that is random, and of the ids.
            workers: one thread each; made with its number.
        """
        self.stored: set[str] = set()
        self.deleted: set[str] = set()
        self.edited: dict[str, int] = {}
        self.begun = self._ended = 0
        self._answered: set[int] = set()
        self.done: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self.violations: list[Violation] = []
        self._rig, self._seed = rig, seed
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._pictures = [noise(number) for number in range(_PICTURES)]
        self._threads = [
            threading.Thread(target=self._work, args=(make, number), name=f"load {number}")
            for number, make in enumerate(workers)
        ]

    def start(self) -> None:
        """Sets them to work."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets every call under way end; one that does not is a violation."""
        self._stop.set()
        deadline = time.monotonic() + _LONGEST_CALL_S + 2 * _SLACK_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self.wrong(Kind.LATE, f"{thread.name}: its call does not end")

    def at_work(self) -> bool:
        """Whether every worker has had an answer."""
        with self._lock:
            return len(self._answered) == len(self._threads)

    def under_way(self) -> int:
        """Calls that have begun and not ended."""
        with self._lock:
            return self.begun - self._ended

    def failed_since(self, began: float) -> Counter[str]:
        """Why calls that began since then have failed, and how many."""
        with self._lock:
            return Counter(failure.why for failure in self.failures if failure.began >= began)

    def _work(self, make: "Callable[[int], Worker]", number: int) -> None:
        worker = make(number)
        rng = np.random.default_rng((self._seed, number))
        # A client that looks for its gateway again within a second, and not after up to two minutes.
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
        with grpc.insecure_channel(self._rig.grpc, options) as channel, ByHttp(self._rig.http) as http:
            worker.stub, worker.http = gateway_pb2_grpc.SearchServiceStub(channel), http
            while not self._stop.is_set():
                if not self._step(worker, rng):
                    return

    def _step(self, worker: "Worker", rng: np.random.Generator) -> bool:
        worker.began = began = time.monotonic()
        with self._lock:
            self.begun += 1
        try:
            what = worker.step(self, rng)
        except grpc.RpcError as error:
            self._failed(error, worker)
        except (RefusedError, httpx.TransportError) as error:
            self._failed_by_http(error, worker)
        except Exception as error:  # a fault of the test's own must not look like a quiet round
            self.wrong(Kind.UNAVAILABLE, f"{type(error).__name__}: {error}")
            return False
        else:
            with self._lock:
                self.done[what] += 1
                self._answered.add(worker.number)
        finally:
            with self._lock:
                self._ended += 1
        took = time.monotonic() - began
        if took > worker.patience_s + _SLACK_S:
            self.wrong(Kind.LATE, f"{worker} took {took:.1f} s, its deadline was {worker.patience_s:g} s")
        self._stop.wait(_PACE_S - took)  # quick calls leave the machine to the slow ones
        return True

    def _failed(self, error: grpc.RpcError, worker: "Worker") -> None:
        assert isinstance(error, grpc.Call)
        status = rpc_status.from_call(error)
        if status is not None:
            self.judge(status, worker)
        elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and worker.out_of_time():
            self._fails(worker, OWN_DEADLINE)
        elif error.code() is grpc.StatusCode.UNAVAILABLE and self._rig.cut_off(worker.began):
            self._fails(worker, OWN_NETWORK)
        else:
            what = f"{worker}: no details: {error.code()}: {error.details()}"
            self._fails(worker, error.code().name, what)
        self._stop.wait(_PAUSE_S)

    def _failed_by_http(self, error: RefusedError | httpx.TransportError, worker: "Worker") -> None:
        if isinstance(error, RefusedError):
            self.judge(error.status, worker)
        elif isinstance(error, httpx.TimeoutException) and worker.out_of_time() and self._rig.cut_off(worker.began):
            self._fails(worker, OWN_DEADLINE)
        elif not isinstance(error, httpx.TimeoutException) and self._rig.cut_off(worker.began):
            self._fails(worker, OWN_NETWORK)
        else:
            self._fails(worker, type(error).__name__, f"{worker}: {type(error).__name__}: {error}")
        self._stop.wait(_PAUSE_S)

    def judge(self, status: status_pb2.Status, worker: "Worker") -> None:
        """Counts a failure that was told, of the worker's call or of one item of it.

        Wrong are: one without a reason of ours, or with another code than the reason's; one that no fault explains; one
        that does not say when to try again; a deadline that was not over.
        """
        info = error_details_pb2.ErrorInfo()
        for detail in status.details:
            if detail.Is(info.DESCRIPTOR):
                detail.Unpack(info)
        error, name, wrong = from_status(status), info.reason, ""
        if info.domain != DOMAIN or error.code.value[0] != status.code:
            wrong = "not typed"
        elif name == "DEADLINE_EXCEEDED":
            wrong = "" if worker.out_of_time() else "its deadline was not over"
        elif name not in _PASSING:
            wrong = "nothing explains it"
        elif error.retry_after_s is None:
            wrong = "does not say when to try again"
        self._fails(worker, name or "no reason", f"{worker}: {wrong}: {error}" if wrong else "")

    def _fails(self, worker: "Worker", why: str, wrong: str = "") -> None:
        with self._lock:
            self.failures.append(Failure(worker.began, why))
        if wrong:
            self.wrong(Kind.UNAVAILABLE, wrong)

    def wrong(self, kind: Kind, what: str) -> None:
        """Something that was promised is not so."""
        self.violations.append(Violation(kind, what))

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
            with self._lock:
                self.stored.add(result.id)
        else:
            self.wrong(Kind.LOST, f"{result.id} was not stored: {result}")


class Worker:
    """One thread's client.

    Attributes:
        number: its own.
        patience_s: the deadline of its call.
        early_s: how much before its deadline it may hear that it is over.
        began: when it made the call.
        stub: calls by gRPC.
        http: calls by HTTP.
    """

    patience_s = 10.0
    early_s = 0.05  # gRPC counts milliseconds; and the gateway hears of the time that is left, rounded
    stub: gateway_pb2_grpc.SearchServiceStub
    http: ByHttp

    def __init__(self, number: int) -> None:
        self.number = number
        self.began = 0.0

    def __str__(self) -> str:
        return type(self).__name__

    def out_of_time(self) -> bool:
        """Whether its call's deadline is over."""
        return time.monotonic() - self.began >= self.patience_s - self.early_s

    def step(self, load: Load, rng: np.random.Generator) -> str:
        """One call; returns what it was."""
        raise NotImplementedError
