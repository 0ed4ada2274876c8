"""What the chaos tells the indexer and asks it, through gRPC."""

from collections.abc import Iterable, Mapping, Sequence

import grpc
from grpc_status import rpc_status
from likeness.common.v1 import metadata_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from chassis import metadata, vectors
from chassis.errors import from_status
from chassis.metadata import Plain
from chassis.vectors import Array
from tests.chaos.checker import Below, Found, Hit
from tests.chaos.items import DIMENSION
from tests.chaos.ledger import Content

COLLECTION = "chaos"
# Longer than anything takes: a call that is given up may still take effect.
_WRITE_S, _READ_S = 120.0, 30.0
_FINGERPRINT = types_pb2.ModelFingerprint(model="chaos", digest="c4a05" + "0" * 59, dimension=DIMENSION)
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
]


class Client:
    """A connection to the indexer. Every method raises grpc.RpcError."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub = indexer_pb2_grpc.IndexerServiceStub(self._channel)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def create(self) -> None:
        """Makes the collection."""
        request = indexer_pb2.CreateCollectionRequest(name=COLLECTION, fingerprint=_FINGERPRINT)
        self._stub.CreateCollection(request, timeout=_WRITE_S)

    def upsert(self, items: Mapping[str, Content]) -> None:
        """Writes items."""
        request = indexer_pb2.UpsertItemsRequest(
            collection=COLLECTION,
            items=_items(items),
        )
        self._stub.UpsertItems(request, timeout=_WRITE_S)

    def update(self, metadata_of: Mapping[str, Mapping[str, Plain]]) -> list[str]:
        """Sets metadata keys and leaves vectors alone; returns the ids that were missing."""
        updates = [
            indexer_pb2.MetadataUpdate(id=item_id, set=metadata.to_proto(plain))
            for item_id, plain in metadata_of.items()
        ]
        request = indexer_pb2.UpdateMetadataRequest(collection=COLLECTION, updates=updates)
        return list(self._stub.UpdateMetadata(request, timeout=_WRITE_S).missing_ids)

    def delete(self, ids: Iterable[str]) -> int:
        """Deletes items; returns how many were there."""
        request = indexer_pb2.DeleteItemsRequest(collection=COLLECTION, ids=list(ids))
        return int(self._stub.DeleteItems(request, timeout=_WRITE_S).deleted)

    def get(self, ids: Sequence[str]) -> list[Found]:
        """The items that exist among these, with all they hold."""
        request = indexer_pb2.GetItemsRequest(collection=COLLECTION, ids=ids, fields=_ALL)
        return [_found(item) for item in self._stub.GetItems(request, timeout=_READ_S).items]

    def list_all(self) -> list[Found]:
        """Every item, through all pages, in the order of the ids."""
        found: list[Found] = []
        token = ""
        while True:
            request = indexer_pb2.ListItemsRequest(collection=COLLECTION, page_size=1000, page_token=token, fields=_ALL)
            page = self._stub.ListItems(request, timeout=_READ_S)
            found += [_found(item) for item in page.items]
            token = page.next_page_token
            if not token:
                return found

    def count(self, where: Below | None = None) -> int:
        """How many items there are, or for how many the filter is true."""
        request = indexer_pb2.CountItemsRequest(collection=COLLECTION, filter=_filter(where))
        return int(self._stub.CountItems(request, timeout=_READ_S).count)

    def query(self, queries: Sequence[Array], where: Below | None, k: int) -> list[list[Hit]]:
        """The nearest neighbours of each vector, in one call."""
        asked = [
            indexer_pb2.Query(
                examples=[indexer_pb2.Example(vector=vectors.to_proto(query))], filter=_filter(where), top_k=k
            )
            for query in queries
        ]
        request = indexer_pb2.QueryRequest(collection=COLLECTION, queries=asked)
        results = self._stub.Query(request, timeout=_READ_S).results
        for result in results:
            assert not result.HasField("error"), result.error
        return [[Hit(hit.id, hit.score) for hit in result.hits] for result in results]

    def make_latest(self, name: str, before: str, items: Mapping[str, Content]) -> None:
        """Makes a collection with these items, moves the alias "latest" there, and deletes the one before."""
        request = indexer_pb2.CreateCollectionRequest(name=name, fingerprint=_FINGERPRINT)
        self._stub.CreateCollection(request, timeout=_WRITE_S)
        self._stub.UpsertItems(indexer_pb2.UpsertItemsRequest(collection=name, items=_items(items)), timeout=_WRITE_S)
        self._stub.SetAlias(indexer_pb2.SetAliasRequest(alias="latest", collection=name), timeout=_WRITE_S)
        if before:
            self._stub.DeleteCollection(indexer_pb2.DeleteCollectionRequest(name=before), timeout=_WRITE_S)

    def standing(self) -> tuple[list[tuple[str, int]], list[tuple[str, str]], bytes]:
        """Everything but the items: collections with their counts, aliases, and the facets of the collection."""
        listed = self._stub.ListCollections(indexer_pb2.ListCollectionsRequest(), timeout=_READ_S)
        aliases = self._stub.ListAliases(indexer_pb2.ListAliasesRequest(), timeout=_READ_S)
        wanted = [indexer_pb2.FacetRequest(key=key, limit=20) for key in ("tag", "labels")]
        facets = self._stub.GetFacets(
            indexer_pb2.GetFacetsRequest(collection=COLLECTION, facets=wanted), timeout=_READ_S
        )
        return (
            [(found.name, found.count) for found in listed.collections],
            [(alias.name, alias.collection) for alias in aliases.aliases],
            facets.SerializeToString(deterministic=True),
        )

    def lag_s(self) -> float:
        """By how many seconds it says that it may be behind the writer."""
        return self._stub.GetStatus(indexer_pb2.GetStatusRequest(), timeout=_READ_S).lag_seconds

    def status(self) -> indexer_pb2.CollectionStatus | None:
        """Where the collection is served from; None: the indexer does not know it yet."""
        answer = self._stub.GetStatus(indexer_pb2.GetStatusRequest(), timeout=_READ_S)
        return next((found for found in answer.collections if found.name == COLLECTION), None)


_ALL = types_pb2.ItemFields(metadata=True, vector=True)


def reason(error: grpc.RpcError) -> str:
    """Why a call failed, as the contract names it; the gRPC code where nobody of ours answered."""
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    return from_status(status).reason_name if status is not None else error.code().name


def _items(items: Mapping[str, Content]) -> list[indexer_pb2.Item]:
    return [
        indexer_pb2.Item(id=item_id, vector=vectors.to_proto(item.vector), metadata=metadata.to_proto(item.metadata))
        for item_id, item in items.items()
    ]


def _found(item: indexer_pb2.Item) -> Found:
    return Found(item.id, Content(vectors.from_proto(item.vector, "vector"), metadata.from_proto(item.metadata, "")))


def _filter(where: Below | None) -> metadata_pb2.Filter | None:
    if where is None:
        return None
    limit = metadata_pb2.Value(double_value=where.limit)
    comparison = metadata_pb2.Comparison(key=where.key, op=metadata_pb2.OPERATOR_LT, values=[limit])
    return metadata_pb2.Filter(comparison=comparison)
