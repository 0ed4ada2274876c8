"""The three services as they run in production, on free ports of this machine, and the processes that call them."""

import shutil
import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import grpc
from likeness.common.v1 import types_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from benchmarks.embedder.models import local
from benchmarks.embedder.processes import START_S, Contender, Process, Service, free_port
from benchmarks.embedder.scope import WORK, Target, surroundings
from benchmarks.gateway.scope import COLLECTION, Scope
from benchmarks.indexer import data
from benchmarks.indexer.servers import Indexer
from chassis.health import serving

_FOLDER = WORK / "gateway"
_CHUNK = 256
_PAUSE_S = 0.05
_LABELS = ("cat", "dog", "bird", "tree")


class Gateway(Process):
    """A running gateway.

    Attributes:
        address: ``host:port`` of its gRPC server.
        http_port: of its HTTP server.
    """

    def __init__(self, embedder: str, indexer: str) -> None:
        """Starts it on free ports before an embedder and an indexer; ``ready`` waits for it."""
        port, self.http_port = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        settings = {
            "LIKENESS_GATEWAY_PORT": str(port),
            "LIKENESS_HTTP_PORT": str(self.http_port),
            "LIKENESS_EMBEDDER_ADDRESS": embedder,
            "LIKENESS_INDEXER_ADDRESS": indexer,
            "LIKENESS_MEDIA_URL": (_FOLDER / "media").as_uri(),
            "LIKENESS_LOG_STYLE": "json",
        }
        super().__init__("gateway", [sys.executable, "-m", "gateway"], surroundings(settings), talks=False)

    def ready(self) -> None:
        """Waits until it says SERVING."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and not self.ended:
            if serving(self.address, 1.0) is None:
                return
            time.sleep(_PAUSE_S)
        raise self.failed("not serving")


class Stack:
    """Embedder, indexer and gateway, with a collection to search in, and clients of them."""

    def __init__(self, scope: Scope, model: str, items: int) -> None:
        """Starts nothing yet.

        Args:
            scope: how much is measured.
            model: of the embedder.
            items: in the collection to search in; without any there is none.
        """
        self.scope, self._model, self._items = scope, model, items
        self._open = ExitStack()

    def __enter__(self) -> Self:
        shutil.rmtree(_FOLDER, ignore_errors=True)
        target = Target(model=self._model)
        self.embedder = self._open.enter_context(Service("embedder", target.environment(local(target.model))))
        self.indexer = self._open.enter_context(Indexer("indexer", _FOLDER / "data"))
        self.embedder.ready()
        self.indexer.ready()
        self.gateway = self._open.enter_context(Gateway(self.embedder.address, self.indexer.address))
        self.gateway.ready()
        self.client = self._contender("client", "benchmarks.gateway.client")
        self.embedder_client = self._contender("embedder client", "benchmarks.embedder.served", "400000")
        self._fill()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        shutil.rmtree(_FOLDER, ignore_errors=True)

    @property
    def addresses(self) -> dict[str, str]:
        """Where the services are, by name."""
        return {
            "gateway": self.gateway.address,
            "embedder": self.embedder.address,
            "indexer": self.indexer.address,
            "http": f"http://127.0.0.1:{self.gateway.http_port}",
        }

    def _contender(self, name: str, module: str, *arguments: str) -> Contender:
        contender = self._open.enter_context(Contender(name, module, {}, arguments))
        contender.ready()
        return contender

    def _fill(self) -> None:
        """Stores vectors of the embedder's model, without pictures, which would take a quarter of an hour."""
        if not self._items:
            return
        with grpc.insecure_channel(self.embedder.address) as channel:
            model = embedder_pb2_grpc.EmbedderServiceStub(channel).GetModel(embedder_pb2.GetModelRequest(), timeout=30)
        vectors = data.vectors(self._items)
        with grpc.insecure_channel(self.indexer.address) as channel:
            stub = indexer_pb2_grpc.IndexerServiceStub(channel)
            make = indexer_pb2.CreateCollectionRequest(name=COLLECTION, fingerprint=model.fingerprint)
            stub.CreateCollection(make, timeout=60)
            for begin in range(0, len(vectors), _CHUNK):
                request = indexer_pb2.UpsertItemsRequest(collection=COLLECTION)
                for row, vector in enumerate(vectors[begin : begin + _CHUNK], begin):
                    made = request.items.add(id=data.item_id(row), vector=types_pb2.Vector(f32=vector.tobytes()))
                    made.metadata.fields["labels"].strings_value.values.append(_LABELS[row % len(_LABELS)])
                    made.metadata.fields["width"].int_value = 500
                stub.UpsertItems(request, timeout=120)
        self.indexer.graph_complete()
