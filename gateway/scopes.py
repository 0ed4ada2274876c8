"""What each rpc of the gateway asks of an API key: a scope, and how many items a request counts as."""

from typing import Any

from chassis.guard import Rpc
from chassis.keys import Scope

SERVICE = "likeness.gateway.v1.SearchService"


def _searches(request: Any) -> int:
    return len(request.searches)


def _inputs(request: Any) -> int:
    return len(request.inputs)


def _items(request: Any) -> int:
    return len(request.items)


def _ids(request: Any) -> int:
    return len(request.ids)


def _updates(request: Any) -> int:
    return len(request.updates)


# IndexImages counts each item as it comes: see gateway.ingest. Classify and SuggestLabels count texts that have to be
# embedded, besides: see gateway.labelling.
_RPCS = {
    "Search": Rpc(Scope.READ),
    "BatchSearch": Rpc(Scope.READ, _searches),
    "GetItems": Rpc(Scope.READ, _ids),
    "ListItems": Rpc(Scope.READ),
    "CountItems": Rpc(Scope.READ),
    "GetFacets": Rpc(Scope.READ),
    "Classify": Rpc(Scope.READ, _inputs),
    "SuggestLabels": Rpc(Scope.READ),
    "FindDuplicates": Rpc(Scope.READ),
    "GetCollection": Rpc(Scope.READ),
    "ListCollections": Rpc(Scope.READ),
    "ListAliases": Rpc(Scope.READ),
    "GetStatus": Rpc(Scope.READ),
    "IndexImages": Rpc(Scope.WRITE),
    "IndexBatch": Rpc(Scope.WRITE, _items),
    "UpdateLabels": Rpc(Scope.WRITE, _ids),
    "UpdateMetadata": Rpc(Scope.WRITE, _updates),
    "DeleteItems": Rpc(Scope.WRITE, _ids),
    "CreateCollection": Rpc(Scope.ADMIN),
    "UpdateCollection": Rpc(Scope.ADMIN),
    "DeleteCollection": Rpc(Scope.ADMIN),
    "SetAlias": Rpc(Scope.ADMIN),
    "DeleteAlias": Rpc(Scope.ADMIN),
    "ReembedCollection": Rpc(Scope.ADMIN),
}
RPCS = {f"/{SERVICE}/{name}": rpc for name, rpc in _RPCS.items()}
