"""The processes that take part, started once and ended together; each one asked as a function of no arguments."""

from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Self

from benchmarks.desk import Answer, Request
from benchmarks.embedder.models import local
from benchmarks.embedder.peers import Infinity
from benchmarks.embedder.processes import Contender, FailedError, Service
from benchmarks.embedder.scope import Scope, Target
from benchmarks.embedder.turns import Measure

_PACKAGE = "benchmarks.embedder"
# Numbers of inputs that no two clients share.
_APART = 400_000


class Missing:
    """Stands for a contender that did not start: whoever asks it hears why."""

    def __init__(self, why: FailedError) -> None:
        self._why = why

    def __call__(self) -> Answer:
        """Raises what it was given."""
        raise self._why


class Field:
    """All contenders of a section."""

    def __init__(self, scope: Scope, target: Target | None = None) -> None:
        """Starts nothing yet.

        Args:
            scope: how much is measured.
            target: the embedder, if not the scope's.
        """
        self.scope = scope
        self.target = target or scope.target
        self._settings = self.target.environment(local(self.target.model))
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def service(self, workers: int = 1) -> Service:
        """A running embedder; raises FailedError if it does not come up."""
        name = "embedder" if workers == 1 else f"embedder of {workers} processes"
        service = self._open.enter_context(Service(name, self._settings, workers))
        service.ready()
        return service

    def clients(self) -> "Clients":
        """Processes that call it."""
        found = []
        for number in range(self.scope.clients):
            arguments = [str(number * _APART)]
            client = Contender(f"client {number}", f"{_PACKAGE}.served", {}, arguments)
            found.append(self._open.enter_context(client))
        for client in found:
            client.ready()
        return Clients(found)

    def course(self) -> Contender:
        """The course's way and the plain batched loop."""
        return self._ready(Contender("course", f"{_PACKAGE}.course", {}, [self.target.model, self.target.device]))

    def forward(self) -> Contender:
        """The bare forward pass."""
        return self._ready(Contender("forward", f"{_PACKAGE}.forward", self._settings))

    def pipeline(self) -> Contender:
        """The pipeline without gRPC."""
        return self._ready(Contender("pipeline", f"{_PACKAGE}.pipeline", self._settings))

    def infinity(self) -> tuple[Infinity, Contender]:
        """A running ``infinity-emb`` and what calls it."""
        server = self._open.enter_context(Infinity(self.target.model))
        server.ready()
        client = self._ready(Contender("infinity client", f"{_PACKAGE}.infinity_load", {}))
        for kind in ("224x224", "words_3"):
            client.ask(kind=kind, concurrency=1, port=server.port, ramp_s=0, seconds=0.5)
        return server, client

    def _ready(self, contender: Contender) -> Contender:
        self._open.enter_context(contender)
        contender.ready()
        return contender


class Clients:
    """Processes that call a service at the same time, and their figures taken together."""

    def __init__(self, clients: list[Contender]) -> None:
        self._clients = clients

    def closed(
        self, service: Service, kind: str, concurrency: int, scope: Scope, seconds: float | None = None
    ) -> Measure:
        """Callers that wait for their answers, so many in all clients together."""
        window = _window(scope, kind, seconds)
        requests: list[Request] = []
        for share in shares(concurrency, len(self._clients)):
            # With several processes behind one port, a connection belongs to one of them.
            asked = {"concurrency": share, "connections": min(share, 32) if "processes" in service.name else 1}
            requests.append({"how": "closed", "kind": kind, **asked, **window})
        return partial(self._together, service, requests)

    def stream(self, service: Service, kind: str, scope: Scope) -> Measure:
        """One EmbedStream a client."""
        requests: list[Request] = [{"how": "stream", "kind": kind, **_window(scope, kind, None)}] * len(self._clients)
        return partial(self._together, service, requests)

    def ask(self, service: Service, **request: object) -> Answer:
        """One client alone."""
        return self._clients[0].ask(address=service.address, **request)

    def _together(self, service: Service, requests: list[Request]) -> Answer:
        """Each request to a client of its own; there may be fewer than clients."""
        cpu = service.cpu_s()
        asked = self._clients[: len(requests)]
        for client, request in zip(asked, requests, strict=True):
            client.send({"address": service.address, **request})
        answers, errors = [], []
        for client in asked:
            try:
                answers.append(client.answer())
            except FailedError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        merged = merge(answers)
        seconds = requests[0]["ramp_s"] + requests[0]["seconds"]
        # What the service took of the cores; a little more than a window's worth, as it begins and ends with it.
        return {**merged, "server_cores": round((service.cpu_s() - cpu) / seconds, 2)}


def shares(concurrency: int, clients: int) -> list[int]:
    """A concurrency split as evenly as it goes; who would have nothing to do is left out."""
    each, more = divmod(concurrency, clients)
    return [share for share in (each + (number < more) for number in range(clients)) if share]


def merge(answers: list[Answer]) -> Answer:
    """Several clients' figures as one's: counts and rates added, the worst of the latencies."""
    first = answers[0]
    if len(answers) == 1:
        return first
    merged = dict(first)
    for key in first:
        values = [answer[key] for answer in answers if answer.get(key) is not None]
        if not values or isinstance(values[0], str):
            merged[key] = values[0] if values else None
        elif key.endswith("_ms"):
            merged[key] = max(values)
        elif key in ("batch", "batch_s"):
            merged[key] = sum(values) / len(values)
        else:
            merged[key] = sum(values)
    return merged


def _window(scope: Scope, kind: str, seconds: float | None) -> dict[str, float]:
    return {"ramp_s": scope.ramp_s, "seconds": seconds if seconds is not None else scope.seconds(kind)}
