"""The client: one method for each thing that a gateway does."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import Self, TypeVar

import grpc
from likeness.common.v1 import types_pb2
from likeness.gateway.v1 import gateway_pb2
from likeness.gateway.v1.gateway_pb2_grpc import SearchServiceStub

from likeness_client import defaults, wire
from likeness_client.errors import LikenessError
from likeness_client.filters import Filter
from likeness_client.ingest import Ingest, IngestLimits, OnReconnect
from likeness_client.items import Fingerprint, GetResult, IndexOutcome, Picture, SearchResult, Term
from likeness_client.rpc_errors import from_rpc_error
from likeness_client.status import Status
from likeness_client.where import parse_where

MAX_MESSAGE_BYTES = 64 * 2**20
MAX_IDS = 1024

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Client:
    """A gateway's client. Threads may share one. Connects on first use; close it, or use it as a context manager.

    Every method raises ``LikenessError`` for what the gateway refuses, and for a gateway that cannot be reached.
    """

    def __init__(self, address: str = defaults.ADDRESS, *, timeout: float | None = defaults.TIMEOUT_S) -> None:
        """Prepares a channel.

        Args:
            address: ``host:port``, or a full gRPC target such as ``unix:/run/likeness.sock``.
            timeout: seconds that one call may take; None: any time. An ingest stream may take any time.
        """
        self.address = address
        self.timeout = timeout
        self._channel = grpc.insecure_channel(_target(address), options=_channel_options())
        self._stub = SearchServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the connection back; calls under way end."""
        self._channel.close()

    def search(
        self,
        *terms: Term,
        where: str | Filter | None = None,
        collection: str = "",
        top_k: int = defaults.TOP_K,
        min_score: float | None = None,
        include_vectors: bool = False,
        expected_fingerprint: Fingerprint | None = None,
    ) -> SearchResult:
        """Finds the pictures most like a weighted mix of terms.

        Args:
            terms: 1 to 64 of ``Term.image``, ``Term.text``, ``Term.id`` and ``Term.vector``.
            where: only items for which it is true; a text such as ``label = "cat" and width >= 300``, or a filter.
            collection: its name; empty: the gateway's default, ``images``.
            top_k: most hits, 1 to 1,000.
            min_score: only hits with at least this score.
            include_vectors: whether the hits carry their vectors.
            expected_fingerprint: the model that the vectors among the terms come from; None: not checked.

        Raises:
            WhereError: ``where`` is no condition; the message shows the place.
            LikenessError: the gateway refused, or could not be reached.
        """
        condition = parse_where(where) if isinstance(where, str) else where
        request = gateway_pb2.SearchRequest(
            collection=collection,
            expected_fingerprint=wire.fingerprint_to_proto(expected_fingerprint),
            terms=map(wire.term_to_proto, terms),
            filter=None if condition is None else wire.filter_to_proto(condition),
            min_score=min_score,
            top_k=top_k,
            fields=types_pb2.ItemFields(metadata=True, vector=include_vectors),
        )
        return wire.search_from_proto(self._call(self._stub.Search, request))

    def index(
        self,
        pictures: Iterable[Picture],
        *,
        collection: str = "",
        create_collection: bool = True,
        expected_fingerprint: Fingerprint | None = None,
        limits: IngestLimits | None = None,
        on_reconnect: OnReconnect | None = None,
    ) -> Iterator[IndexOutcome]:
        """Takes pictures in, and yields what became of each, in any order, while it goes on.

        Memory stays flat however many there are: files are read as the stream takes them, and few pictures wait for an
        answer at a time. Both the iterable and the files are read in the thread that reads the outcomes. A stream that
        breaks for a reason that may pass is opened again, and what has no answer is sent again.

        Args:
            pictures: what to take in.
            collection: its name; empty: the gateway's default, ``images``.
            create_collection: whether to make it if there is none of that name.
            expected_fingerprint: the model that should embed the pictures; None: not checked.
            limits: the bounds of a stream. The embedder's own limits on a picture's size hold in any case.
            on_reconnect: called before a stream is opened again, with what broke it, the number of pictures without an
                answer, and the seconds until then.

        Raises:
            IndexInterruptedError: the stream broke for good; it names the pictures without an outcome.
            LikenessError: no gateway answers.
        """
        bounds = limits or IngestLimits()
        model = self.status().model
        if model is not None:
            bounds = replace(
                bounds,
                max_encoded_bytes=min(bounds.max_encoded_bytes, model.limits.max_encoded_bytes or MAX_MESSAGE_BYTES),
                max_message_bytes=min(bounds.max_message_bytes, model.limits.max_message_bytes or MAX_MESSAGE_BYTES),
            )
        start = gateway_pb2.IndexStart(
            collection=collection,
            create_collection=create_collection,
            expected_fingerprint=wire.fingerprint_to_proto(expected_fingerprint),
        )

        def explain(error: grpc.RpcError) -> LikenessError:
            return from_rpc_error(error, self.address, None)

        yield from Ingest(
            self._stub,
            start=start,
            pictures=iter(pictures),
            limits=bounds,
            explain=explain,
            on_reconnect=on_reconnect,
        ).run()

    def get(self, ids: Sequence[str], *, collection: str = "", include_vectors: bool = False) -> GetResult:
        """Reads items by id, in calls of at most 1,024."""
        fields = types_pb2.ItemFields(metadata=True, vector=include_vectors)
        return wire.get_from_proto(
            self._call(self._stub.GetItems, gateway_pb2.GetItemsRequest(collection=collection, ids=some, fields=fields))
            for some in _batches(ids, MAX_IDS)
        )

    def delete(self, ids: Sequence[str], *, collection: str = "") -> int:
        """Deletes items by id, in calls of at most 1,024; unknown ids are no error.

        Returns:
            How many of the ids existed.
        """
        return sum(
            self._call(self._stub.DeleteItems, gateway_pb2.DeleteItemsRequest(collection=collection, ids=some)).deleted
            for some in _batches(ids, MAX_IDS)
        )

    def status(self) -> Status:
        """The state of the services, the model and the collections; answers also when one of the services is down."""
        return wire.status_from_proto(self._call(self._stub.GetStatus, gateway_pb2.GetStatusRequest()))

    def _call(self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request) -> _Response:
        try:
            return method(request, timeout=self.timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address, self.timeout) from None


def _batches(ids: Sequence[str], size: int) -> Iterator[list[str]]:
    remaining = iter(ids)
    while batch := list(islice(remaining, size)):
        yield batch


def _target(address: str) -> str:
    if "://" in address or address.startswith(("unix:", "dns:", "ipv4:", "ipv6:")):
        return address
    return f"dns:///{address}"


def _channel_options() -> list[tuple[str, int | str]]:
    service = gateway_pb2.DESCRIPTOR.services_by_name["SearchService"]
    repeatable = [{"service": service.full_name, "method": m.name} for m in service.methods if not m.client_streaming]
    # What cannot be reached is told soon: a gateway that restarts is met by whoever repeats the command.
    retry = {
        "maxAttempts": 3,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": repeatable, "retryPolicy": retry}],
    }
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_http_proxy", 0),
    ]
