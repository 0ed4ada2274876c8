"""Finds pictures by likeness: the Python client of the Likeness gateway.

from likeness_client import Client, Term

with Client() as likeness:
    found = likeness.search(Term.text("a cat"), where='label = "pet"')
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from likeness_client.client import Client
    from likeness_client.duplicates import DuplicateGroup, DuplicateItem
    from likeness_client.errors import IndexInterruptedError, LikenessError, Violation
    from likeness_client.facets import Facet, Facets, FacetValue
    from likeness_client.filters import AllOf, AnyOf, Comparison, Filter, NoneOf, Operator
    from likeness_client.indexer.types import Alias, Collection, Metric
    from likeness_client.ingest import IngestLimits
    from likeness_client.items import (
        Fingerprint,
        GetResult,
        Hit,
        IndexOutcome,
        IngestOptions,
        Item,
        MetadataUpdated,
        MetadataValue,
        Picture,
        SearchResult,
        SearchTimings,
        Skipped,
        Term,
    )
    from likeness_client.labelling import Classification, ClassifyResult, LabelScore, LabelSuggestion, LabelsUpdated
    from likeness_client.reembedding import Reembedded, ReembedFailure
    from likeness_client.searches import Rescore, RescoreMetric, Search, SearchOutcome
    from likeness_client.security import Security
    from likeness_client.status import CollectionStatus, Limits, ModelStatus, ServiceStatus, Status
    from likeness_client.where import WhereError, parse_where
    from likeness_client.where_text import to_where

_HOMES = {
    "client": ["Client"],
    "errors": ["IndexInterruptedError", "LikenessError", "Violation"],
    "filters": ["AllOf", "AnyOf", "Comparison", "Filter", "NoneOf", "Operator"],
    "indexer.types": ["Alias", "Collection", "Metric"],
    "ingest": ["IngestLimits"],
    "items": [
        "Fingerprint",
        "GetResult",
        "Hit",
        "IndexOutcome",
        "IngestOptions",
        "Item",
        "MetadataUpdated",
        "MetadataValue",
        "Picture",
        "SearchResult",
        "SearchTimings",
        "Skipped",
        "Term",
    ],
    "duplicates": ["DuplicateGroup", "DuplicateItem"],
    "facets": ["Facet", "FacetValue", "Facets"],
    "labelling": ["Classification", "ClassifyResult", "LabelScore", "LabelSuggestion", "LabelsUpdated"],
    "security": ["Security"],
    "reembedding": ["ReembedFailure", "Reembedded"],
    "searches": ["Rescore", "RescoreMetric", "Search", "SearchOutcome"],
    "status": ["CollectionStatus", "Limits", "ModelStatus", "ServiceStatus", "Status"],
    "where": ["WhereError", "parse_where"],
    "where_text": ["to_where"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Alias",
    "AllOf",
    "AnyOf",
    "Classification",
    "ClassifyResult",
    "Client",
    "Collection",
    "CollectionStatus",
    "Comparison",
    "DuplicateGroup",
    "DuplicateItem",
    "Facet",
    "FacetValue",
    "Facets",
    "Filter",
    "Fingerprint",
    "GetResult",
    "Hit",
    "IndexInterruptedError",
    "IndexOutcome",
    "IngestLimits",
    "IngestOptions",
    "Item",
    "LabelScore",
    "LabelSuggestion",
    "LabelsUpdated",
    "LikenessError",
    "Limits",
    "MetadataUpdated",
    "MetadataValue",
    "Metric",
    "ModelStatus",
    "NoneOf",
    "Operator",
    "Picture",
    "ReembedFailure",
    "Reembedded",
    "Rescore",
    "RescoreMetric",
    "Search",
    "SearchOutcome",
    "SearchResult",
    "SearchTimings",
    "Security",
    "ServiceStatus",
    "Skipped",
    "Status",
    "Term",
    "Violation",
    "WhereError",
    "parse_where",
    "to_where",
]


def __getattr__(name: str) -> Any:
    # grpc and the stubs take 0.4 s to import: `likeness --help` and shell completion should not wait for them.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
