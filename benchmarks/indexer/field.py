"""Everybody who takes part at one size, started once and ended together."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks import environments
from benchmarks.desk import Answer, Request
from benchmarks.embedder.contenders import merge, shares
from benchmarks.embedder.processes import Contender, FailedError
from benchmarks.embedder.turns import Measure
from benchmarks.indexer import data
from benchmarks.indexer.filled import filled
from benchmarks.indexer.library import LIBRARIES
from benchmarks.indexer.peers import PEERS
from benchmarks.indexer.scope import WORK, Scope
from benchmarks.indexer.servers import BareServer, ChromaServer, Indexer, copied
from benchmarks.indexer.theirs import embedded_client, http_client, search_alike

OURS, CHROMA, EMBEDDED, FAISS = "ours", "chroma http", "chroma embedded", "faiss"
# faiss behind gRPC, and nothing else.
BARE = "bare"
COLLECTION = "cosine"
_RUN = WORK / "run"


class Field:
    """The indexer, Chroma's server, both with the same items, the clients of both, and the libraries."""

    def __init__(self, scope: Scope, size: int) -> None:
        """Starts nothing yet.

        Args:
            scope: how much is measured.
            size: items in the collection.
        """
        self.scope, self.size = scope, size
        self._open = ExitStack()
        self._libraries: dict[str, Contender] = {}
        self.bare: BareServer | None = None
        self.missing: dict[str, FailedError] = {}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _start(self) -> None:
        folder = filled(self.size)
        self.ours = self._open.enter_context(Indexer(f"indexer {self.size}", copied(folder, _RUN / "ours")))
        self.ours.ready()
        self.ours.graph_complete()
        self.chroma = self._chroma(copied(folder / "chroma", _RUN / "chroma"))
        callers = [Contender(f"client {n}", "benchmarks.indexer.callers", {}, [str(n)]) for n in range(self._callers)]
        self.clients = [self._open.enter_context(caller) for caller in callers]
        for client in self.clients:
            client.ready()
        embedded = copied(folder / "chroma", _RUN / "embedded")
        search_alike_in_a_process(embedded)
        installed = {peer.name: environments.state(peer.name)["installed"] for peer in PEERS}
        for name in LIBRARIES:
            if name not in installed:
                self._library(name, embedded if name == EMBEDDED else None)
            elif self.scope.peers_at(self.size) and installed[name]:
                self._library(name, None)
        if FAISS in self._libraries:
            self.bare = self._open.enter_context(BareServer(f"bare {self.size}", self.size, _kept(FAISS, self.size)))
            self.bare.ready()
        for name in self.servers:
            self.queries(name, 1, 16)()

    @property
    def _callers(self) -> int:
        return self.scope.clients + 1  # one that writes while the others ask

    def about(self) -> dict[str, Any]:
        """What those who take part say of themselves."""
        said = {name: contender.about for name, contender in self._libraries.items()}
        return {**said, **{name: {"error": str(error)} for name, error in self.missing.items()}}

    @property
    def libraries(self) -> list[str]:
        """Those that have started."""
        return list(self._libraries)

    @property
    def servers(self) -> list[str]:
        """Those that are asked through a network."""
        return [CHROMA, OURS] if self.bare is None else [CHROMA, BARE, OURS]

    def queries(self, name: str, concurrency: int, batch: int = 1, where: data.Where | None = None) -> Measure:
        """A measurement of queries."""
        window = {"ramp_s": self.scope.ramp_s, "seconds": self.scope.window_s}
        return self.window(name, concurrency, batch, where, window)

    def window(
        self, name: str, concurrency: int, batch: int, where: data.Where | None, window: Mapping[str, float]
    ) -> Measure:
        """The same, of another length."""
        request = {"how": "queries", "batch": batch, "where": where, **window}
        if name in self._libraries:
            return partial(self._libraries[name].ask, **request, concurrency=concurrency)
        each = shares(concurrency, self.scope.clients)
        return partial(self._together, [{**self._told(name), **request, "concurrency": share} for share in each])

    def answers(self, name: str, where: data.Where | None) -> list[list[int]]:
        """The rows that are found for each of the first queries."""
        request = {"how": "answers", "queries": self.scope.recall_queries, "where": where}
        library = self._libraries.get(name)
        answer = library.ask(**request) if library else self.clients[0].ask(**self._told(name), **request)
        rows: list[list[int]] = answer["rows"]
        return rows

    def ask_writer(self, name: str, **request: Any) -> Answer:
        """Has one client write, and waits for it."""
        return self.writer.ask(**{**self._told(name), **request})

    def send_to_writer(self, name: str, **request: Any) -> None:
        """Has one client write, and does not wait."""
        self.writer.send({**self._told(name), **request})

    @property
    def writer(self) -> Contender:
        """The client that writes."""
        return self.clients[-1]

    def _told(self, name: str) -> Request:
        if name != CHROMA:
            server = self.bare if name == BARE and self.bare else self.ours
            return {"of": "ours", "address": server.address, "collection": COLLECTION}
        return {"of": "chroma", "address": self.chroma.url, "collection": COLLECTION}

    def _together(self, requests: Sequence[Request]) -> Answer:
        """Each request to a client of its own; there may be fewer than clients that ask."""
        asked = self.clients[: len(requests)]
        for client, request in zip(asked, requests, strict=True):
            client.send(request)
        answers, errors = [], []
        for client in asked:
            try:
                answers.append(client.answer())
            except FailedError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return merge(answers)

    def _chroma(self, folder: Path) -> ChromaServer:
        with ChromaServer(f"chroma {self.size}, settings", folder) as server:
            server.ready()
            search_alike(http_client(server.url), COLLECTION)
        server = self._open.enter_context(ChromaServer(f"chroma {self.size}", folder))
        server.ready()
        return server

    def _library(self, name: str, folder: Path | None) -> None:
        kept = folder or _kept(name, self.size)
        own = environments.python_of(name)
        python = {"python": own} if own.is_file() else {}
        try:
            arguments = [name, str(self.size), str(kept)]
            contender = Contender(f"{name} {self.size}", "benchmarks.indexer.library", {}, arguments, **python)
            self._open.enter_context(contender)
            about = contender.ready()
        except FailedError as error:
            print(f"  {name} did not start: {error}", flush=True)
            self.missing[name] = error
            # What is half built would be opened next time.
            if folder is None:
                shutil.rmtree(kept, ignore_errors=True)
        else:
            print(f"  {name} {about['version']}: opened or built in {about['opened_s']} s", flush=True)
            self._libraries[name] = contender

    def _close(self) -> None:
        self._open.close()
        shutil.rmtree(_RUN, ignore_errors=True)


def _kept(name: str, size: int) -> Path:
    return WORK / "libraries" / f"{name}-{size}"


def search_alike_in_a_process(folder: Path) -> None:
    """Sets the embedded Chroma's ef_search; what this process opens here it closes again."""
    client = embedded_client(str(folder))
    search_alike(client, COLLECTION)
    client.close()
