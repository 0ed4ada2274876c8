"""The client: one method for each thing that an indexer does."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import Self, TypeVar

import grpc
from likeness.common.v1 import types_pb2
from likeness.indexer.v1 import indexer_pb2 as pb
from likeness.indexer.v1.indexer_pb2_grpc import IndexerServiceStub

from likeness_client import channel, defaults
from likeness_client.backoff import OnReconnect
from likeness_client.call_metadata import Traceparent, traced
from likeness_client.errors import LikenessError
from likeness_client.facets import Facets
from likeness_client.filters import Filter
from likeness_client.indexer import wire
from likeness_client.indexer.export import Export
from likeness_client.indexer.jobs import Jobs
from likeness_client.indexer.types import (
    Alias,
    Collection,
    CollectionUpdate,
    Described,
    GetResult,
    Hnsw,
    IndexerStatus,
    Item,
    Metric,
    QueryResult,
)
from likeness_client.items import Fingerprint, Term
from likeness_client.lists import listed
from likeness_client.rpc_errors import from_rpc_error
from likeness_client.security import Security
from likeness_client.wire import condition_to_proto, fingerprint_to_proto

MAX_ITEMS = 1024
PAGE = 1000

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_T = TypeVar("_T")
_Where = str | Filter | None


class IndexerClient(Jobs):
    """An indexer's client. Threads may share one. Connects on first use; close it, or use it as a context manager.

    Every method raises ``LikenessError`` for what the indexer refuses, and for an indexer that cannot be reached; and
    ``WhereError`` for a ``where`` that is no condition. Wherever a collection is named, an alias of it will do.
    """

    def __init__(
        self,
        address: str = defaults.INDEXER_ADDRESS,
        *,
        timeout: float | None = defaults.TIMEOUT_S,
        security: Security | None = None,
        traceparent: Traceparent | None = None,
    ) -> None:
        """Prepares a channel.

        Args:
            address: ``host:port``, or a full gRPC target such as ``unix:/run/indexer.sock``.
            timeout: seconds that one call may take; None: the server's default, a minute. No server gives more than
                LIKENESS_MAX_DEADLINE_S, an hour. Streams (exports, backups, restoring, rebuilding,
                erasing) may take any time.
            security: TLS; None: none. An API key in it is not sent: indexers know none.
            traceparent: asked at each call for the W3C ``traceparent`` of what it is done for; see ``Client``.

        Raises:
            ValueError: a file of certificates cannot be read, or ``timeout`` is not above 0.
        """
        self.address = address
        self.timeout = channel.deadline_s(timeout)
        service = pb.DESCRIPTOR.services_by_name["IndexerService"]
        untraced = (security or Security()).without_key()
        self._channel = traced(untraced.channel(channel.target(address), channel.options(service)), traceparent)
        self._stub = IndexerServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the connection back; calls under way end."""
        self._channel.close()

    # --- collections and aliases ---

    def create_collection(
        self,
        name: str,
        fingerprint: Fingerprint,
        *,
        metric: Metric = Metric.COSINE,
        hnsw: Hnsw | None = None,
        description: str = "",
        earlier_uids: Sequence[str] = (),
    ) -> Collection:
        """Makes an empty collection for the vectors of a model.

        Args:
            name: its name.
            fingerprint: the model.
            metric: how likeness is measured.
            hnsw: how its index is made and searched; None: all defaults.
            description: what it is for.
            earlier_uids: if it is to hold what another collection does, that one's uid, then its ``earlier_uids``: the
                gateway finds thumbnails and originals of the items by these.
        """
        request = pb.CreateCollectionRequest(
            name=name,
            fingerprint=fingerprint_to_proto(fingerprint),
            metric=wire.metric_to_proto(metric),
            hnsw=wire.hnsw_to_proto(hnsw),
            description=description,
            earlier_uids=earlier_uids,
        )
        return wire.collection_from_proto(self._call(self._stub.CreateCollection, request).collection)

    def collection(self, name: str) -> Described:
        """Describes one collection, and where it is served from."""
        answer = self._call(self._stub.GetCollection, pb.GetCollectionRequest(name=name))
        return Described(wire.collection_from_proto(answer.collection), wire.serving_from_proto(answer.status))

    def collections(self) -> list[Collection]:
        """Every collection, ordered by name."""
        found: list[Collection] = []
        request = pb.ListCollectionsRequest(page_size=PAGE)
        while True:
            page = self._call(self._stub.ListCollections, request)
            found.extend(map(wire.collection_from_proto, page.collections))
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def update_collection(
        self, name: str, *, hnsw: Hnsw | None = None, description: str | None = None
    ) -> CollectionUpdate:
        """Changes what can be changed of a collection; what is None stays."""
        request = pb.UpdateCollectionRequest(name=name, hnsw=wire.hnsw_to_proto(hnsw), description=description)
        answer = self._call(self._stub.UpdateCollection, request)
        return CollectionUpdate(wire.collection_from_proto(answer.collection), answer.needs_rebuild)

    def delete_collection(self, name: str) -> None:
        """Deletes a collection and everything in it; an alias is refused, and so is a collection that has aliases."""
        self._call(self._stub.DeleteCollection, pb.DeleteCollectionRequest(name=name))

    def set_alias(self, alias: str, collection: str, *, expected: str | None = None) -> str:
        """Makes an alias, or moves it at once for everybody.

        Args:
            alias: its name.
            collection: the collection that it is to stand for.
            expected: the collection that it must stand for until now (empty: none), else ALIAS_MOVED; None: any.

        Returns:
            The collection that it stood for; empty if it is new.
        """
        request = pb.SetAliasRequest(alias=alias, collection=collection, expected_collection=expected)
        return self._call(self._stub.SetAlias, request).previous_collection

    def delete_alias(self, alias: str) -> str:
        """Deletes an alias; returns the collection that it stood for, which stays."""
        return self._call(self._stub.DeleteAlias, pb.DeleteAliasRequest(alias=alias)).collection

    def aliases(self) -> list[Alias]:
        """Every alias, ordered by name."""
        answer = self._call(self._stub.ListAliases, pb.ListAliasesRequest())
        return [Alias(alias.name, alias.collection) for alias in answer.aliases]

    # --- items ---

    def upsert(self, collection: str, items: Iterable[Item], *, expected_fingerprint: Fingerprint | None = None) -> int:
        """Writes items, in calls of at most 1,024, one after another; one with a known id replaces what was stored.

        Of a call with a bad item nothing is written. For millions of items see ``likeness_client.transfer.upload``.

        Returns:
            How many items were stored.
        """
        expected = fingerprint_to_proto(expected_fingerprint)
        stored = 0
        for some in _batches(items, MAX_ITEMS):
            messages = map(wire.item_to_proto, some)
            request = pb.UpsertItemsRequest(collection=collection, expected_fingerprint=expected, items=messages)
            stored += self._call(self._stub.UpsertItems, request).stored
        return stored

    def get(self, collection: str, ids: Sequence[str], *, include_vectors: bool = False) -> GetResult:
        """Reads items by id, in calls of at most 1,024."""
        items: list[Item] = []
        missing: list[str] = []
        fields = types_pb2.ItemFields(metadata=True, vector=include_vectors)
        for some in _batches(listed(ids, "ids"), MAX_ITEMS):
            request = pb.GetItemsRequest(collection=collection, ids=some, fields=fields)
            answer = self._call(self._stub.GetItems, request)
            items.extend(map(wire.item_from_proto, answer.items))
            missing.extend(answer.missing_ids)
        return GetResult(tuple(items), tuple(missing))

    def delete(
        self,
        collection: str,
        *,
        ids: Sequence[str] = (),
        where: _Where = None,
        expected_fingerprint: Fingerprint | None = None,
    ) -> int:
        """Deletes items by id (in calls of at most 1,024) or by condition, not both; returns how many there were."""
        listed(ids, "ids")
        expected = fingerprint_to_proto(expected_fingerprint)

        def ask(**what: object) -> int:
            request = pb.DeleteItemsRequest(collection=collection, expected_fingerprint=expected, **what)  # type: ignore[arg-type]
            return self._call(self._stub.DeleteItems, request).deleted

        if where is not None:
            return ask(filter=condition_to_proto(where), ids=ids)
        return sum(ask(ids=some) for some in _batches(ids, MAX_ITEMS))

    def items(
        self,
        collection: str,
        *,
        where: _Where = None,
        order_by: str = "",
        descending: bool = False,
        include_vectors: bool = False,
        page_size: int = PAGE,
    ) -> Iterator[Item]:
        """Every item, page by page as they are read, in the order of a metadata key or (empty) of the ids."""
        request = pb.ListItemsRequest(
            collection=collection,
            filter=condition_to_proto(where),
            order_by=order_by,
            descending=descending,
            page_size=min(page_size, PAGE),
            fields=types_pb2.ItemFields(metadata=True, vector=include_vectors),
        )
        while True:
            page = self._call(self._stub.ListItems, request)
            yield from map(wire.item_from_proto, page.items)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def count(self, collection: str, *, where: _Where = None) -> int:
        """How many items there are, or how many a condition leaves."""
        request = pb.CountItemsRequest(collection=collection, filter=condition_to_proto(where))
        return self._call(self._stub.CountItems, request).count

    def facets(self, collection: str, keys: Sequence[str], *, where: _Where = None, limit: int = 0) -> Facets:
        """Counts items by the values of 1 to 32 metadata keys, up to ``limit`` values of each (0: 10)."""
        request = pb.GetFacetsRequest(
            collection=collection,
            filter=condition_to_proto(where),
            facets=[pb.FacetRequest(key=key, limit=limit) for key in listed(keys, "keys")],
        )
        return wire.facets_from_proto(self._call(self._stub.GetFacets, request))

    def query(
        self,
        collection: str,
        *examples: Term,
        where: _Where = None,
        top_k: int = defaults.TOP_K,
        min_score: float | None = None,
        exact: bool = False,
        include_vectors: bool = False,
        expected_fingerprint: Fingerprint | None = None,
    ) -> QueryResult:
        """Finds the items most like a weighted mix of ``Term.vector`` and ``Term.id``.

        With ``expected_fingerprint``, the model that the vectors come from, a collection of another model is refused
        with MODEL_MISMATCH, rather than answered with nonsense.
        """
        query = pb.Query(
            examples=map(wire.example_to_proto, examples),
            filter=condition_to_proto(where),
            min_score=min_score,
            exact=exact,
            top_k=top_k,
        )
        request = pb.QueryRequest(
            collection=collection,
            expected_fingerprint=fingerprint_to_proto(expected_fingerprint),
            queries=[query],
            fields=types_pb2.ItemFields(metadata=True, vector=include_vectors),
        )
        return wire.query_from_proto(self._call(self._stub.Query, request))

    def export(
        self,
        collection: str,
        *,
        where: _Where = None,
        after_id: str = "",
        include_vectors: bool = True,
        on_reconnect: OnReconnect | None = None,
    ) -> Export:
        """Opens a stream of the items in the order of their ids, behind ``after_id``: ``with … as export``."""
        request = pb.ExportItemsRequest(
            collection=collection,
            filter=condition_to_proto(where),
            after_id=after_id,
            fields=types_pb2.ItemFields(metadata=True, vector=include_vectors),
        )
        return Export(self._stub.ExportItems, request, explain=self._explain_stream, on_reconnect=on_reconnect)

    def status(self) -> IndexerStatus:
        """What the indexer is doing, and its limits."""
        return wire.status_from_proto(self._call(self._stub.GetStatus, pb.GetStatusRequest()))

    def begin_upsert(self, request: pb.UpsertItemsRequest) -> "Callable[[], pb.UpsertItemsResponse]":
        """Sends a batch and does not wait; the function returned does, and raises ``LikenessError``."""
        future = self._stub.UpsertItems.future(request, timeout=self.timeout)

        def answer() -> pb.UpsertItemsResponse:
            try:
                return future.result()
            except grpc.RpcError as error:
                raise self._explain(error) from None

        return answer

    def upsert_each(self, request: pb.UpsertItemsStreamRequest) -> pb.UpsertItemsStreamResponse:
        """Writes what is good of a batch, and tells of each bad item (of the first 100)."""
        try:
            return self._stub.UpsertItemsStream(iter([request]), timeout=self.timeout)
        except grpc.RpcError as error:
            raise self._explain(error) from None

    def _call(self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request) -> _Response:
        try:
            return method(request, timeout=self.timeout)
        except grpc.RpcError as error:
            raise self._explain(error) from None

    def _explain(self, error: grpc.RpcError) -> LikenessError:
        return from_rpc_error(error, self.address, self.timeout, "indexer")

    def _explain_stream(self, error: grpc.RpcError) -> LikenessError:
        return from_rpc_error(error, self.address, None, "indexer")


def _batches(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    remaining = iter(values)
    while batch := list(islice(remaining, size)):
        yield batch
